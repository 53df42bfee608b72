"""Pickled weights (`--allow-pickle`): converted by a confined child, checked like any safetensors.

The converted folder is a temporary one, of the same name as the original, and goes when the
command ends. What a build depends on are the digests of the original files.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.checkpoint.adapter import (
    PICKLE_FILE,
    WEIGHTS_FILE,
    Adapter,
    read_adapter,
)  # fmt: skip
from edgetune.checkpoint.folder import (
    CheckpointFolder,
    list_side_files,
    pickle_files,
    read_checkpoint,
    safe_file,
)  # fmt: skip
from edgetune.child import CrashError, run_child
from edgetune.confined.probe import open_trap
from edgetune.console import print_note, print_warning
from edgetune.errors import InputRefusedError, MissingError, StepFailedError
from edgetune.files import copy_file, difference, sha256_of_file

_FUNCTION = "edgetune.checkpoint.pickles:convert_step"
_INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
_BYTES_A_SECOND = 50_000_000
_SECONDS = 10  # of processor time, besides
_WAIT_S = 60  # of wall time, besides
_SAFE = "where you trust it, load it with PyTorch and save its tensors as safetensors"


def adapter_from_pickle(folder: Path, into: Path, called: str) -> tuple[Adapter, dict[str, str]]:
    """(adapter with its weights as safetensors in a new folder below `into`, {file: digest} of the
    original). The new folder has the last part of what the original is `called`.

    Raises InputRefusedError, MissingError where the reader cannot be confined."""
    names = read_adapter(folder, pickled=True).files
    before = _digests(folder, names)
    target = _new_folder(into, called)
    _convert(folder, [PICKLE_FILE], target, WEIGHTS_FILE)
    for name in {*names, *list_side_files(folder)} - {PICKLE_FILE}:
        _copy(folder, name, target)
    _prove_unchanged(folder, before)
    return read_adapter(target), before


def checkpoint_from_pickle(
    folder: Path, into: Path, called: str
) -> tuple[CheckpointFolder, dict[str, str]]:
    """As `adapter_from_pickle`, for a base whose weights are `pytorch_model*.bin`."""
    index, weights = pickle_files(folder)
    names = ["config.json", *index, *weights, *list_side_files(folder)]
    before = _digests(folder, names)
    target = _new_folder(into, called)
    _convert(folder, weights, target, None)
    for name in ["config.json", *list_side_files(folder)]:
        _copy(folder, name, target)
    _prove_unchanged(folder, before)
    return read_checkpoint(target), before


def _copy(folder: Path, name: str, target: Path) -> None:
    (target / name).parent.mkdir(exist_ok=True)  # of additional chat templates
    copy_file(safe_file(folder, name), target / name)


def _convert(folder: Path, names: Sequence[str], target: Path, file: str | None) -> None:
    """Convert in a confined child, then move what it wrote into `target`."""
    files = [safe_file(folder, name).resolve() for name in names]
    size = sum(f.stat().st_size for f in files)
    seconds = _SECONDS + size // _BYTES_A_SECOND
    if (free := shutil.disk_usage(target).free) < size:
        msg = f"{folder}: converting it needs {size / 1e9:.2f} GB in {target.parent.parent}, "
        msg += f"{free / 1e9:.2f} GB are free"
        raise MissingError(msg, "set TMPDIR to a folder on another disk")
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        out = Path(made) / "out"
        out.mkdir()
        arguments = {
            "files": [str(f) for f in files],
            "target": file,
            "bytes": size,
            "seconds": seconds,
        }
        held = _run_confined(files[0], arguments, out, Path(made) / "log")
        print_note(f"unpickle   {folder.name}: {', '.join(k for k, v in held.items() if v)}")
        if lacking := [name for name, holds in held.items() if not holds]:
            print_warning(f"{files[0].name} was read without: {', '.join(lacking)}")
        for entry in list(os.scandir(out)):
            facts = entry.stat(follow_symlinks=False)
            plain = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1
            expected = entry.name == file if file else entry.name.startswith("model")
            if not plain or not expected:
                raise _refused(files[0], f"its reader left {entry.name!r} behind")
            Path(entry.path).rename(target / entry.name)


def _run_confined(file: Path, arguments: dict[str, Any], out: Path, log: Path) -> dict[str, bool]:
    environment = {k: v for k, v in os.environ.items() if k in _INHERITED}
    # No more threads than one: each takes address space, which is limited.
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    seconds = int(arguments["seconds"])
    with open_trap() as trap:
        try:
            facts, _ = run_child(
                _FUNCTION,
                {**arguments, "trap": trap.arguments()},
                out,
                log=log,
                progress=lambda _: None,
                inherited=environment,
                timeout_s=_WAIT_S + 4 * seconds,
            )
            held = {str(name): holds is True for name, holds in facts.items()}
        except CrashError as why:
            raise _refused(file, _cause(why.status, seconds)) from why
        except StepFailedError as why:
            raise _refused(file, f"its reader failed ({why.message})") from why
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
            raise _refused(file, "its reader answered nonsense") from why
        if trap.was_sprung():
            raise _refused(file, "its reader left its confinement")
    return held


def _cause(status: int, seconds: int) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"reading it had not ended after {seconds} seconds of processor time"
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"its reader died of it ({how})"


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_of_file(safe_file(folder, name)) for name in sorted(names)}


def _prove_unchanged(folder: Path, before: Mapping[str, str]) -> None:
    """What was digested is what was converted."""
    if changed := difference(before, _digests(folder, list(before))):
        msg = f"{folder}: {changed[0]} changed while it was read"
        raise InputRefusedError(msg, "let the other program finish, and run the command again")


def _new_folder(into: Path, called: str) -> Path:
    """A new folder of this name, or a hub id's last part; two adapters may share one."""
    folder = Path(tempfile.mkdtemp(dir=into)) / (called.rpartition("/")[2] or "model")
    folder.mkdir()
    return folder


def _refused(file: Path, what: str) -> InputRefusedError:
    return InputRefusedError(f"{file}: {what}", _SAFE)
