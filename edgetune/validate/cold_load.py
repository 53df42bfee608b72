"""How long a model takes to load when none of its files is in memory, as after a start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.validate.worker import open_worker

# A model that loads for longer warm is not loaded again.
LONGEST_LOAD_S = 60.0
_TIMEOUT_S = 1800.0
_PROBES = 16


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

    posix_fadvise is only a request: whether it was followed is read with RWF_NOWAIT, which
    fails for what is not in memory (preadv2(2)).
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return "the system cannot drop files from its page cache"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        kept = [path.name for path in files if _in_memory(path)]
    except OSError as why:
        return f"the system does not tell what is in its page cache ({why.strerror})"
    return f"the page cache still holds {kept[0]}" if kept else None


def _in_memory(path: Path) -> bool:
    """Whether any of some places spread over the file is in memory. Raises OSError where the file
    system does not tell."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for place in range(_PROBES):
            try:
                os.preadv(file.fileno(), [bytearray(1)], size * place // _PROBES, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            return True
    return False
