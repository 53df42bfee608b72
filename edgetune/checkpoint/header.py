"""The header of a safetensors file: what tensors it holds, and where. Standard library only.

Format: eight bytes, little endian, the length N of the header; N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`; then the
tensors' bytes without hole or overlap (huggingface/safetensors, README "Format"). Everything in
the header is proved here, so that a reader may trust it.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MOST_NAME_CHARACTERS = 1000
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")  # what weights and adapters may be stored in
_COPY_AGAIN = "copy the file again from where it came from"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `begin` is the offset of its first byte in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, in the order of their bytes; `file` is its bare name.

    Raises InputRefusedError, naming the file, for anything that is not a whole and consistent
    safetensors file: truncated, not JSON, a doubled name, an overlap or hole, trailing bytes, a
    header over 100 MB, a dtype, shape and size that do not agree.
    """
    try:
        header, start, size = _read(path)
        return _entries(path.name, header, start, size)
    except _UnfitError as why:
        msg = f"{path}: {why}"
    except OSError as why:
        msg = f"{path}: cannot be read ({why.strerror or why})"
    except RecursionError:
        msg = f"{path}: its header is nested too deep"
    raise InputRefusedError(msg, _COPY_AGAIN)


class _UnfitError(ValueError):
    """What is wrong with a header; `read_header` adds the file."""


def _read(path: Path) -> tuple[dict[str, Any], int, int]:
    """(the header, the offset where the tensors begin, the file's size)."""
    if not stat.S_ISREG(path.stat().st_mode):
        msg = "not a regular file"
        raise _UnfitError(msg)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            msg = "a Git LFS pointer, not the weights themselves"
            raise _UnfitError(msg)
        if size < 8:
            msg = f"truncated: {size} bytes are no safetensors file"
            raise _UnfitError(msg)
        if length > MAX_HEADER_BYTES:
            msg = f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed"
            raise _UnfitError(msg)
        if 8 + length > size:
            msg = f"truncated: its header needs {8 + length} bytes, the file has {size}"
            raise _UnfitError(msg)
        text = file.read(length)
    if not text.startswith(b"{"):
        msg = "its header is not a JSON object; this is no safetensors file"
        raise _UnfitError(msg)
    try:
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_doubles, parse_constant=_no_constant
        )
        if b"\\ud" in text.lower():
            # half of a surrogate pair is legal in JSON and in no other place that text goes to
            json.dumps(header, ensure_ascii=False).encode()
    except _UnfitError:
        raise
    except ValueError as why:
        msg = f"its header is not valid JSON ({why})"
        raise _UnfitError(msg) from None
    return header, 8 + length, size


def _no_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            msg = f"the name {key!r} occurs twice in its header"
            raise _UnfitError(msg)
        if len(key) > _MOST_NAME_CHARACTERS:
            msg = f"its header holds a name of {len(key)} characters"
            raise _UnfitError(msg)
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    msg = f"its header holds {text}, which is not JSON"
    raise _UnfitError(msg)


def _entries(file: str, header: dict[str, Any], start: int, size: int) -> dict[str, TensorEntry]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        msg = "__metadata__ is not a mapping of strings"
        raise _UnfitError(msg)
    entries = [_entry(file, name, value, start) for name, value in header.items()]
    entries.sort(key=lambda e: (e.begin, e.nbytes, e.name))
    place = start
    for entry in entries:
        if entry.begin != place:
            kind = "overlaps the one before it" if entry.begin < place else "leaves a hole"
            msg = f"tensor {entry.name!r} {kind} (it begins at byte {entry.begin}, not {place})"
            raise _UnfitError(msg)
        place += entry.nbytes
    if place > size:
        msg = f"truncated: its tensors need {place} bytes, the file has {size}"
        raise _UnfitError(msg)
    if place < size:
        msg = f"{size - place} bytes follow its last tensor"
        raise _UnfitError(msg)
    return {entry.name: entry for entry in entries}


def _entry(file: str, name: str, value: Any, start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        msg = f"tensor {name!r}: not {{dtype, shape, data_offsets}}"
        raise _UnfitError(msg)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        msg = f"tensor {name!r}: dtype {dtype!r} is not supported"
        raise _UnfitError(msg)
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        msg = f"tensor {name!r}: its shape or data_offsets are not whole numbers from 0"
        raise _UnfitError(msg)
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != nbytes:
        msg = f"tensor {name!r}: {dtype} of shape {shape} is {nbytes} bytes, not {end - begin}"
        raise _UnfitError(msg)
    return TensorEntry(name, dtype, tuple(shape), file, start + begin, nbytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
