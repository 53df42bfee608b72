"""Tensors read from and written to safetensors files, one at a time.

A tensor is read by `pread` into memory of its own: a mapped file would count its touched pages in
the process's peak resident set, and keep the file open. A file is written header first (all shapes
are known), then tensor after tensor, so that no more than one is held.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from edgetune.checkpoint.folder import INDEX_FILE, SINGLE_FILE
from edgetune.checkpoint.header import DTYPE_BYTES, FLOAT_DTYPES, TensorEntry
from edgetune.errors import InputRefusedError, StepFailedError
from edgetune.files import dump_json, write_text

CHUNK_BYTES = 16 << 20
BLOCK_BYTES = 64 << 20  # of float32 rows, where a matrix is worked on in blocks
SHARD_BYTES = 4_000_000_000
_KEPT_BYTES = 64 << 20  # written before freed memory goes back to the system
TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

Rows = Callable[[int, int], torch.Tensor]  # rows start…stop of a tensor


@dataclass(frozen=True)
class Output:
    """A tensor to be written. `blocks` makes its values, whole or in blocks of rows, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' spelling of a torch dtype."""
    return _NAMES[dtype]


def load_tensor(
    folder: Path, entry: TensorEntry, dtype: torch.dtype | None = None, *, packed: bool = False
) -> torch.Tensor:
    """One tensor in memory of its own, cast to `dtype` if given; every float in it is finite,
    unless it is `packed`: 4-bit codes in the guise of another type.

    Raises InputRefusedError naming tensor and file for NaN, infinity or a file that shrank.
    """
    tensor = _read(folder, entry, 0, entry.nbytes).view(_torch_dtype(folder, entry))
    tensor = tensor.reshape(entry.shape)
    if not packed:
        check_finite(tensor, entry.name, folder / entry.file)
    return tensor if dtype is None else tensor.to(dtype)


def load_rows(folder: Path, entry: TensorEntry, start: int, stop: int) -> torch.Tensor:
    """Rows start…stop of a matrix in its own dtype, checked as `load_tensor` does."""
    width = entry.nbytes // max(entry.shape[0], 1)
    part = _read(folder, entry, start * width, (stop - start) * width)
    rows = part.view(_torch_dtype(folder, entry)).reshape(stop - start, *entry.shape[1:])
    check_finite(rows, entry.name, folder / entry.file)
    return rows


def load_blocks(folder: Path, entry: TensorEntry) -> Iterator[torch.Tensor]:
    """A tensor's values, flat, in blocks of at most 16 MiB, each checked as `load_tensor` does."""
    for start in range(0, entry.nbytes, CHUNK_BYTES):
        nbytes = min(CHUNK_BYTES, entry.nbytes - start)
        block = _read(folder, entry, start, nbytes).view(_torch_dtype(folder, entry))
        check_finite(block, entry.name, folder / entry.file)
        yield block


def row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows that take at most 64 MiB in float32."""
    height = max(1, BLOCK_BYTES // (4 * max(math.prod(shape[1:]), 1)))
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def same_values(shape: Sequence[int], one: Rows, other: Rows) -> bool:
    """True when two tensors of this shape hold the same values."""
    return all(torch.equal(one(*rows), other(*rows)) for rows in row_blocks(shape))


def check_finite(tensor: torch.Tensor, name: str, file: Path) -> None:
    """Raise InputRefusedError when a tensor that was read from `file` holds NaN or infinity."""
    if tensor.is_floating_point() and _NAMES[tensor.dtype] in FLOAT_DTYPES:
        if is_finite(tensor):
            return
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        msg = f"{file}: tensor {name!r} holds NaN or infinity ({bad} of {tensor.numel()} values)"
        raise InputRefusedError(msg, "the weights are broken: save them again, or train again")


def is_finite(tensor: torch.Tensor) -> bool:
    """True when no value is NaN or infinity.

    The extremes show it: they are NaN where any value is. Looking at each value takes ten times as
    long.
    """
    if tensor.numel() == 0:
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def write_checkpoint_weights(
    folder: Path,
    outputs: Sequence[Output],
    told: Callable[[str], None] = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write `model.safetensors`, or shards with an index above `shard_bytes`; the files' names.

    The same tensors give the same bytes: names sorted, wider types first as safetensors does it
    (so that each tensor is aligned), no time stamp. `told` is called with each tensor's name.
    """
    shards = _shards(sorted(outputs, key=lambda o: o.name), shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, shards[0], told)
        return [SINGLE_FILE]
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    weight_map = {}
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard, told)
        weight_map.update({output.name: file for output in shard})
    index = {
        "metadata": {"total_size": sum(output.nbytes for output in outputs)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_text(folder / INDEX_FILE, dump_json(index))
    return [*files, INDEX_FILE]


def write_safetensors(
    path: Path, outputs: Sequence[Output], told: Callable[[str], None] = lambda _: None
) -> None:
    """Write one safetensors file: the header, then tensor after tensor."""
    ordered = sorted(outputs, key=lambda o: (-DTYPE_BYTES[o.dtype], o.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for output in ordered:
        end = place + output.nbytes
        header[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the first tensor is aligned to eight bytes
    # One block is written while the next one is made; no more than two are held.
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        last: Future[int] | None = None
        kept = 0
        for output in ordered:
            told(output.name)
            made = 0
            for block in output.blocks():
                values = _bytes_of(block, output)
                made += values.nbytes
                if last is not None:
                    last.result()
                last = pool.submit(file.write, values)
            if made != output.nbytes:
                msg = f"{path}: {output.name} got {made} bytes instead of {output.nbytes}"
                raise StepFailedError(msg, "this is an error in edgetune; please report it")
            kept += made
            if kept >= _KEPT_BYTES:
                _give_memory_back()
                kept = 0
        if last is not None:
            last.result()


def _give_memory_back() -> None:
    """Hand freed memory back to the system (glibc).

    It may keep what each tensor left behind, and a merge then grows with the model's depth
    (measured: 250 MB written took 260 MB in some runs, 55 in others). After every tensor it would
    cost more than it gives: the next one needs the pages again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _shards(outputs: Sequence[Output], shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.nbytes
    return shards


def _bytes_of(block: torch.Tensor, output: Output) -> memoryview:
    if block.device.type == "meta" or block.dtype != TORCH_DTYPES[output.dtype]:
        msg = f"{output.name}: made as {block.dtype} on {block.device}, not as {output.dtype}"
        raise StepFailedError(msg, "this is an error in edgetune; please report it")
    flat = block.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _read(folder: Path, entry: TensorEntry, start: int, nbytes: int) -> torch.Tensor:
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    view = memoryview(buffer.numpy())
    descriptor = os.open(folder / entry.file, os.O_RDONLY)
    try:
        done = 0
        while done < nbytes:
            count = os.preadv(descriptor, [view[done:]], entry.begin + start + done)
            if count == 0:
                msg = f"{folder / entry.file}: truncated while it was read"
                raise InputRefusedError(msg, "copy the file again from where it came from")
            done += count
    finally:
        os.close(descriptor)
    return buffer


def _torch_dtype(folder: Path, entry: TensorEntry) -> torch.dtype:
    if entry.dtype not in TORCH_DTYPES:
        msg = f"{folder / entry.file}: tensor {entry.name!r} has dtype {entry.dtype}"
        raise InputRefusedError(msg, "weights are stored in F32, F16 or BF16")
    return TORCH_DTYPES[entry.dtype]
