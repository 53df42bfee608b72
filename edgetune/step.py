"""A step: its key, its folder, its record, and the store it lies in.

A step's key is the digest of all it depends on. Its folder is written under a temporary name,
fsynced, given its record `step.json` last, and renamed: a folder with a record is done, and its
files are checked against the record's digests before it is trusted. A lock a key lets two builds
share a store: the second waits, then finds the step done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgetune.artifact import StepRecord, StepResult
from edgetune.child import NO_LIBRARIES, Libraries, prepare_child, run_child
from edgetune.console import StepProgress, print_note, step_progress
from edgetune.errors import (
    EdgetuneError,
    MissingError,
)
from edgetune.files import (
    difference,
    digest_of_json,
    digests_of_folder,
    dump_json,
    fsync_folder,
    is_out_of_space,
    locked,
    replace_folder,
    settle_folder,
    write_text,
)

RECORD = "step.json"
_TAG = "CACHEDIR.TAG"
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# edgetune step store: finished steps, reused\n"
)


@dataclass(frozen=True)
class Step:
    """One unit of work. `function` is `module:name`, called as f(arguments, out, progress)."""

    name: str
    function: str
    arguments: Mapping[str, Any]
    # What the result depends on, flat, for the key and for saying why a step is stale.
    inputs: Mapping[str, Any]
    # Where the files go when not into the store's own folder (the package).
    payload: Path | None = None
    # Top-level entries of the payload that others write and the record does not cover.
    payload_without: tuple[str, ...] = ()
    # What its child imports first.
    libraries: Libraries = NO_LIBRARIES
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", digest_of_json([self.name, dict(self.inputs)])[:16])


def open_store(out: Path) -> Path:
    """`OUT/steps`, made if absent. The caller has checked that OUT is ours or empty."""
    store = out / "steps"
    store.mkdir(parents=True, exist_ok=True)
    if not (store / _TAG).exists():
        write_text(store / _TAG, _TAG_TEXT)
    return store


def is_ours(out: Path) -> bool:
    """True when OUT is absent, empty, or was made by edgetune."""
    if not out.exists():
        return True
    return out.is_dir() and ((out / "steps" / _TAG).is_file() or not any(out.iterdir()))


def folder_of(store: Path, step: Step) -> Path:
    """Where the step's record lies."""
    return store / f"{step.name}-{step.key}"


def path_of(store: Path, step: Step) -> Path:
    """Where the step's files lie."""
    return step.payload or folder_of(store, step)


def read_record(folder: Path) -> StepRecord | None:
    """The record in a folder of the store; None when there is none or it is damaged."""
    try:
        return StepRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError):
        return None


def passed(record: StepRecord) -> bool:
    """Whether a validation passed; one that did not is measured again: latency has its moods."""
    return bool(record.facts.get("verdict") == "pass")


def find_done(store: Path, step: Step) -> StepRecord | None:
    """The record of a finished step whose files are still what they were; else None."""
    record = read_record(folder_of(store, step))
    if record is None or record.key != step.key:
        return None
    where = path_of(store, step)
    without = (RECORD, *step.payload_without)
    try:
        intact = where.is_dir() and digests_of_folder(where, without) == record.files
    except (OSError, EdgetuneError):
        intact = False
    return record if intact else None


def why_not_done(store: Path, step: Step) -> str:
    """In words, why a step must run: never built, damaged, or which inputs changed."""
    if read_record(folder_of(store, step)) is not None:
        return "its files changed since it was built"
    earlier = [
        (folder.stat().st_mtime, record)
        for folder in store.glob(f"{step.name}-*")
        if (record := read_record(folder)) is not None
    ]
    if not earlier:
        return "not built yet"
    _, newest = max(earlier, key=lambda pair: pair[0])
    changed = difference(newest.inputs, dict(step.inputs))
    return "changed: " + ", ".join(changed) if changed else "not built yet"


def run_step(
    step: Step,
    store: Path,
    *,
    reuse: Callable[[StepRecord], bool] = lambda _: True,
    then: Step | None = None,
) -> StepResult:
    """Run a step in a child process unless it is done already; returns its result.

    `then`: the step after it, whose child imports its libraries meanwhile. `reuse` may decline a
    done step by its record. Raises the child's error, StepFailedError for a crash (with the log's
    path), MissingError when the disk is full. A failed step leaves no folder behind.
    """
    folder = folder_of(store, step)
    with _lock_of(store, step):
        record = find_done(store, step)
        if record is not None and reuse(record):
            print_note(f"{step.name:<10} done already ({record.seconds:.1f} s when it ran)")
            return _result(step, store, record, cached=True)
        _remove_leftovers(store, step)
        if then is not None:
            prepare_step(then, store)
        work = (step.payload.parent if step.payload else store) / f".tmp-{step.name}-{step.key}"
        with _cleared(work), step_progress(step.name) as progress:
            record = _make(step, store, work, progress)
            if step.payload is None:
                write_text(work / RECORD, dump_json(record.model_dump()))
                replace_folder(work, folder)
            else:
                # The record comes after the payload: a record without its files is never seen.
                shutil.rmtree(folder, ignore_errors=True)
                replace_folder(work, step.payload)
                folder.mkdir()
                write_text(folder / RECORD, dump_json(record.model_dump()))
                fsync_folder(store)
            peak = "" if record.peak_rss_mb is None else f", peak {record.peak_rss_mb:.0f} MB"
            progress.stop(f"{record.seconds:.1f} s{peak}")
        return _result(step, store, record, cached=False)


def prepare_step(step: Step, store: Path) -> None:
    """Let a child import what the step needs, unless the step seems done."""
    if step.libraries.imported and read_record(folder_of(store, step)) is None:
        prepare_child(step.libraries)


def _make(step: Step, store: Path, work: Path, progress: StepProgress) -> StepRecord:
    started = time.monotonic()
    facts, peak = run_child(
        step.function,
        step.arguments,
        work,
        log=store / "logs" / f"{step.name}-{step.key}.log",
        progress=progress.update,
        libraries=step.libraries,
    )
    # The disk writes while the files are read back from memory and digested.
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle_folder, work)
        files = digests_of_folder(work, step.payload_without)
        settled.result()
    return StepRecord(
        name=step.name,
        key=step.key,
        inputs=dict(step.inputs),
        files=files,
        facts=facts,
        seconds=round(time.monotonic() - started, 3),
        peak_rss_mb=peak,
    )


def _result(step: Step, store: Path, record: StepRecord, *, cached: bool) -> StepResult:
    return StepResult(
        name=step.name,
        path=str(path_of(store, step)),
        seconds=record.seconds,
        peak_rss_mb=record.peak_rss_mb,
        cached=cached,
        facts=record.facts,
    )


@contextmanager
def _lock_of(store: Path, step: Step) -> Iterator[None]:
    with locked(store / "locks" / f"{step.name}-{step.key}"):
        yield


@contextmanager
def _cleared(work: Path) -> Iterator[None]:
    """Make the working folder, and leave nothing of it behind when the block fails."""
    work.mkdir(parents=True)
    try:
        yield
    except BaseException as why:
        shutil.rmtree(work, ignore_errors=True)
        if is_out_of_space(why) and not isinstance(why, EdgetuneError):
            msg = f"{work.parent}: the disk is full"
            hint = "free some space and run the same command again; finished steps are kept"
            raise MissingError(msg, hint) from why
        raise


def _remove_leftovers(store: Path, step: Step) -> None:
    """What a killed build left of this very step; the lock says that nobody else writes it."""
    for parent in {store, step.payload.parent if step.payload else store}:
        for left in parent.glob(f".tmp-{step.name}-{step.key}*"):
            shutil.rmtree(left, ignore_errors=True)
