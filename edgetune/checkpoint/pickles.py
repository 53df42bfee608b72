"""Pickled weights turned into safetensors, by a process that has given up its rights first.

Three layers, each enough against what is known: the pickle may name nothing but what plain tensors
need (`pickle_scan`); `torch.load(weights_only=True)` calls nothing else either; and the process
that does it has no network, little memory, and can write into one folder only (`confined`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.checkpoint.pickle_scan import scan_pickle
from edgetune.confined.confine import confine, limit_for_good, limited_for_now
from edgetune.confined.probe import REQUIRED, probe
from edgetune.errors import EdgetuneError, InputRefusedError, MissingError
from edgetune.files import is_out_of_space

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("torch", "numpy")
_SPARE_BYTES = 512 << 20
_SAVE_AGAIN = "where you trust it, load it with PyTorch and save its tensors as safetensors"


def convert_step(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Write the tensors of pickle files into `out` as safetensors; {measure: whether it holds}.

    `arguments`: files, target (a file's name; null for a checkpoint, sharded if large), bytes (of
    the files), seconds (of processor time), trap (see `confined.probe`). Raises InputRefusedError
    for a file that is anything but a dictionary of plain tensors, MissingError when this system
    cannot confine the process.
    """
    files = [Path(name) for name in arguments["files"]]
    # Twice: the files are mapped whole, a tensor is copied; one stored once may have two names.
    most_bytes = 2 * int(arguments["bytes"]) + _SPARE_BYTES
    seconds = int(arguments["seconds"])
    confine(files, out, _LIBRARIES, most_bytes)
    tempfile.tempdir = str(out)  # torch wants to know one; there is no other place to write
    with limited_for_now(most_bytes, seconds):
        _prove_confined(arguments, out, most_bytes)
        for file in files:
            _guarded(file, partial(scan_pickle, file))
    import torch

    torch.set_num_threads(1)
    from edgetune.checkpoint.tensors import Output, write_checkpoint_weights, write_safetensors

    limit_for_good(most_bytes, seconds)
    held = _prove_confined(arguments, out, most_bytes)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        progress(f"reading {file.name}")
        found = _guarded(file, partial(_load, file))
        if doubled := sorted(found.keys() & tensors.keys()):
            raise _refused(file, f"tensor {doubled[0]!r} is in another file too")
        tensors.update(found)
    outputs = [_output(files[0], name, tensors[name], Output) for name in sorted(tensors)]
    if sum(output.nbytes for output in outputs) > most_bytes:
        raise _refused(files[0], "its tensors claim more bytes than the files have")
    target = arguments["target"]
    if target is None:
        _guarded(files[0], lambda: write_checkpoint_weights(out, outputs))
    else:
        _guarded(files[0], lambda: write_safetensors(out / str(target), outputs))
    return held


def _prove_confined(arguments: Mapping[str, Any], out: Path, most_bytes: int) -> dict[str, bool]:
    held = probe(arguments["trap"], out, most_bytes, most_bytes)
    if missing := [name for name in REQUIRED if not held[name]]:
        msg = f"pickles are read by a confined process only, and here it lacks: {missing[0]}"
        raise MissingError(msg, "convert the file to safetensors where you trust it")
    return held


def _load(file: Path) -> dict[str, torch.Tensor]:
    import torch

    # Mapped, a storage is a part of this file and of no other memory, whatever size it claims.
    value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(value, dict):
        raise _refused(file, f"holds {type(value).__name__}, not a dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise _refused(file, f"has a key of type {type(name).__name__}, no tensor's name")
        _check_plain(file, name, tensor)
    return value


def _check_plain(file: Path, name: str, tensor: Any) -> None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise _refused(file, f"{name!r} is {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise _refused(file, f"{name!r} is not a plain tensor")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise _refused(file, f"{name!r} claims more values than are stored")


def _output(file: Path, name: str, tensor: torch.Tensor, kind: Any) -> Any:
    from edgetune.checkpoint.tensors import TORCH_DTYPES, dtype_name

    if tensor.dtype not in TORCH_DTYPES.values():
        raise _refused(file, f"{name!r} has dtype {tensor.dtype}")
    dtype = dtype_name(tensor.dtype)
    return kind(name, dtype, tuple(tensor.shape), lambda: [tensor.detach()])


def _guarded(file: Path, work: Callable[[], Any]) -> Any:
    """Whatever torch raises for a broken file, as a refusal."""
    try:
        return work()
    except EdgetuneError:
        raise
    except MemoryError:
        raise _refused(file, "asks for more memory than its size explains") from None
    except Exception as why:
        if is_out_of_space(why):
            raise
        text = " ".join(str(why).split())[:200]
        if "allocate memory" in text or "Cannot allocate" in text:
            raise _refused(file, "asks for more memory than its size explains") from why
        raise _refused(file, f"torch refuses it ({type(why).__name__}: {text})") from why


def _refused(file: Path, what: str) -> InputRefusedError:
    return InputRefusedError(f"{file}: {what}", _SAVE_AGAIN)
