"""How long a model takes to load when none of its files is in memory, as after a start."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.validate.worker import open_worker

# A model that loads for longer warm is not loaded again.
LONGEST_LOAD_S = 60.0
_TIMEOUT_S = 1800.0


def load_cold(
    module: str, job: Mapping[str, Any], folder: Path, warm_s: float
) -> tuple[float | None, str | None]:
    """(seconds a fresh worker needs to load `folder`'s model from the disk, null) or (null, why
    not). No other process may have the files open. Raises what the worker reports."""
    if warm_s > LONGEST_LOAD_S:
        return None, f"loading takes {warm_s:.0f} s already from memory"
    if why := drop_from_memory(folder):
        return None, why
    with open_worker([module]) as worker:
        return float(worker.ask(job, _TIMEOUT_S)["load_s"]), None


def drop_from_memory(folder: Path) -> str | None:
    """Ask the system to drop the folder's files from its page cache; the reason if they stay.

    posix_fadvise is only a request: whether it was followed is read with mincore(2), which tells
    nothing of files that are not one's own.
    """
    if not hasattr(os, "posix_fadvise") or sys.platform != "linux":
        return "the system cannot drop files from its page cache"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        kept = [path.name for path in files if share_in_memory(path) > 0]
    except OSError as why:
        return f"the system does not tell what is in its page cache ({why.strerror})"
    return f"the page cache still holds {kept[0]}" if kept else None


def share_in_memory(path: Path) -> float:
    """The share of a file's pages that the page cache holds. Raises OSError where the system does
    not tell."""
    size, page = path.stat().st_size, mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = ctypes.create_string_buffer(-(-size // page))
    with path.open("rb") as file:
        place = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if place == ctypes.c_void_p(-1).value:
            raise _last_error()
        try:
            if libc.mincore(place, size, pages) != 0:
                raise _last_error()
        finally:
            libc.munmap(place, size)
    return sum(byte & 1 for byte in pages.raw[: -(-size // page)]) / -(-size // page)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
