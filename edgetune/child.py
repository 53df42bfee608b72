"""A function called in a child process: its memory is freed, a crash leaves the caller standing.

The child's side is `called.py`. Its job goes to its standard input; it answers in JSON lines:
`{"progress": text}`, at the end `{"result": facts}` or `{"error": …}`.

Importing torch, transformers and PEFT takes longer than many a step: a child can be prepared while
something else runs. It does nothing but import, and waits; one that died, or that nobody came for,
is as if it had never been.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import (
    STEP_FAILED,
    EdgetuneError,
    MissingError,
    StepFailedError,
    error_from_code,
)
from edgetune.host import available_memory_bytes, usable_cores

Progress = Callable[[str], None]
_MOST_CHARACTERS = 1 << 20  # of one event
# Less than this is a full disk: a library that could not write may just have died of it.
_NO_SPACE_BYTES = 1 << 20
# What an idle child with its libraries takes, and room for the step that runs meanwhile.
_ROOM_TO_PREPARE_BYTES = 4_000_000_000
# What may not reach a result: locale, time zone, hash seed. Olive's telemetry is off.
_CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TOKENIZERS_PARALLELISM": "false",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONIOENCODING": "utf-8",
    # OpenMP threads that wait without sleeping slow each other many times on a busy machine.
    "GOMP_SPINCOUNT": "10000",
    # torch asks for huge pages where a tensor has 2 MiB: in small ones the memory that a merge
    # takes and gives back costs as much processor time as its arithmetic.
    "THP_MEM_ALLOC_ENABLE": "1",
}


class CrashError(StepFailedError):
    """A child that died without a word; `status` is its exit status, −N for signal N."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True)
class Libraries:
    """What a child imports first, and the modules that it must do without.

    An optional dependency of a library can take seconds to import and be of no use to a step;
    hidden, it is to the child as if it were not installed.
    """

    imported: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


NO_LIBRARIES = Libraries()


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[bytes]
    reader: int


# Children that wait for their job, by what they imported. Ended with the program.
_prepared: dict[Libraries, _Started] = {}


def prepare_child(libraries: Libraries) -> None:
    """Start a child that imports these now, for a `run_child` with the same libraries later.

    Does nothing where it would take a core or memory from the work at hand.
    """
    if libraries in _prepared or usable_cores() < 2:
        return
    if available_memory_bytes() >= _ROOM_TO_PREPARE_BYTES:
        _prepared[libraries] = _start(libraries, sys.executable, os.environ, subprocess.DEVNULL)


def run_child(
    function: str,
    arguments: Mapping[str, Any],
    out: Path,
    *,
    log: Path,
    progress: Progress,
    python: str = sys.executable,
    inherited: Mapping[str, str] = os.environ,
    timeout_s: float | None = None,
    libraries: Libraries | None = None,
) -> tuple[dict[str, Any], float | None]:
    """Call `module:name`(arguments, out, progress) in a child process.

    Returns (facts, peak resident set in MB). The child's output goes to `log`; `inherited` is the
    environment that it starts from; a child prepared with the same `libraries` is used. Raises the
    error it reports, CrashError when it died or was killed after `timeout_s`. Ctrl-C kills the
    child with all it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    job = {"function": function, "arguments": dict(arguments), "out": str(out), "log": str(log)}
    text = (json.dumps(job) + "\n").encode()
    with log.open("w", encoding="utf-8") as log_file:
        child = _take_prepared(libraries, text) if libraries else None
        if child is None:
            child = _start(libraries or NO_LIBRARIES, python, inherited, log_file.fileno())
            with suppress(BrokenPipeError):  # a child that died at once is told below
                _send(child, text)
    watch = threading.Timer(timeout_s or 0, _kill, [child.process])
    if timeout_s is not None:
        watch.start()
    try:
        last = _listen(child.reader, progress)
        code = child.process.wait()
    except BaseException:
        _kill(child.process)
        child.process.wait()
        raise
    finally:
        watch.cancel()
    if "error" in last:
        code, message, hint = (last["error"][key] for key in ("exit_code", "message", "hint"))
        if code == STEP_FAILED:
            hint = f"{hint}; the log is {log}" if hint else f"the log is {log}"
        raise error_from_code(code, message, hint)
    if "result" not in last or code != 0:
        raise _crash(function, code, log)
    return last["result"], last["peak_rss_mb"]


def _start(
    libraries: Libraries, python: str, inherited: Mapping[str, str], output: int
) -> _Started:
    reader, writer = os.pipe()
    environment = {**inherited, **_CHILD_ENVIRONMENT, **python_path(inherited)}
    environment["EDGETUNE_PARENT"] = str(os.getpid())
    names = [*libraries.imported, *(f"-{name}" for name in libraries.without)]
    process = subprocess.Popen(
        [python, "-P", "-m", "edgetune.called", str(writer), *names],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[writer],
        env=environment,
        start_new_session=True,
    )
    os.close(writer)
    return _Started(process, reader)


def _send(child: _Started, text: bytes) -> None:
    assert child.process.stdin is not None
    with child.process.stdin as job:
        job.write(text)


def _take_prepared(libraries: Libraries, text: bytes) -> _Started | None:
    child = _prepared.pop(libraries, None)
    if child is None:
        return None
    try:
        if child.process.poll() is None:
            _send(child, text)
            return child
    except BrokenPipeError:
        pass
    _end(child)
    return None


def _end(child: _Started) -> None:
    assert child.process.stdin is not None
    with suppress(BrokenPipeError):
        child.process.stdin.close()
    _kill(child.process)
    child.process.wait()
    os.close(child.reader)


@atexit.register
def _end_prepared() -> None:
    while _prepared:
        _end(_prepared.popitem()[1])


def python_path(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that lets `python -P` find edgetune where it is not installed.

    Without -P a child would import from the folder that the user happens to stand in: a
    downloaded model may bring a torch.py.
    """
    root = str(Path(__file__).resolve().parent.parent)
    if root in site.getsitepackages():
        return {}
    more = [path for path in inherited.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {"PYTHONPATH": os.pathsep.join([root, *more])}


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _listen(reader: int, progress: Progress) -> dict[str, Any]:
    last: dict[str, Any] = {}
    with os.fdopen(reader, encoding="utf-8") as events:
        while line := events.readline(_MOST_CHARACTERS):
            last = json.loads(line)
            if "progress" in last:
                progress(last["progress"])
    return last


def _crash(function: str, code: int, log: Path) -> EdgetuneError:
    what = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    words = f"; its last words: {text.splitlines()[-1][:300]}" if text else ""
    hint = f"the log is {log}"
    if shutil.disk_usage(log.parent).free < _NO_SPACE_BYTES:
        msg = f"{log.parent.parent}: the disk is full ({function.split(':')[0]} {what})"
        again = "free some space and run the same command again; finished steps are kept"
        return MissingError(msg, again)
    if code == -signal.SIGKILL:
        hint = f"the system may have run out of memory; {hint}"
    return CrashError(f"{function.split(':')[0]} {what}{words}", hint, code)


def die_with_parent() -> None:
    """Ask the system to end this process with its parent (Linux), so that kill -9 of a build
    leaves no step running on alone."""
    with suppress(OSError, AttributeError):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    parent = os.environ.get("EDGETUNE_PARENT")
    if parent is not None and os.getppid() != int(parent):
        os._exit(1)
