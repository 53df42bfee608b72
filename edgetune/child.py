"""A function called in a child process: its memory is freed, a crash leaves the caller standing.

`python -m edgetune.child FILE` is the child. It reads one job and speaks JSON lines on the
descriptor it is given: `{"progress": text}`, at the end `{"result": facts}` or `{"error": …}`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetune.errors import (
    ENVIRONMENT,
    STEP_FAILED,
    EdgetuneError,
    MissingError,
    StepFailedError,
    error_from_code,
)
from edgetune.files import is_out_of_space
from edgetune.host import own_peak_rss_mb

Progress = Callable[[str], None]
_MOST_CHARACTERS = 1 << 20  # of one event
# Less than this is a full disk: a library that could not write may just have died of it.
_NO_SPACE_BYTES = 1 << 20
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
}


class CrashError(StepFailedError):
    """A child that died without a word; `status` is its exit status, −N for signal N."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


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
) -> tuple[dict[str, Any], float | None]:
    """Call `module:name`(arguments, out, progress) in a child process.

    Returns (facts, peak resident set in MB). The child's output goes to `log`; `inherited` is the
    environment that it starts from. Raises the error it reports, CrashError when it died or was
    killed after `timeout_s`. Ctrl-C kills the child with all it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    job = {"function": function, "arguments": dict(arguments), "out": str(out), "events": writer}
    environment = {**inherited, **_CHILD_ENVIRONMENT, **python_path(inherited)}
    environment["EDGETUNE_PARENT"] = str(os.getpid())
    with tempfile.TemporaryDirectory(prefix="edgetune-") as folder:
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        with log.open("w", encoding="utf-8") as log_file:
            child = subprocess.Popen(
                [python, "-P", "-m", "edgetune.child", str(job_file)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
                env=environment,
                start_new_session=True,
            )
            os.close(writer)
            watch = threading.Timer(timeout_s or 0, _kill, [child])
            if timeout_s is not None:
                watch.start()
            try:
                last = _listen(reader, progress)
                code = child.wait()
            except BaseException:
                _kill(child)
                child.wait()
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


def _child_main(job_file: Path) -> int:
    """The child's side of `run_child`."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    die_with_parent()
    os.umask(0o022)
    events = os.fdopen(job["events"], "w", encoding="utf-8")

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    module, _, name = str(job["function"]).partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        facts = function(job["arguments"], Path(job["out"]), lambda text: tell({"progress": text}))
    except EdgetuneError as why:
        _log_traceback()
        code, message, hint = why.exit_code, why.message, why.hint
    except ModuleNotFoundError as why:
        _log_traceback()
        code, message = ENVIRONMENT, f"{why.name} is not installed"
        hint = "install the build tools: python -m pip install 'edgetune[build]'"
    except MemoryError:
        _log_traceback()
        code, message = ENVIRONMENT, "out of memory"
        hint = "close other programs, or build on a machine with more memory"
    except BaseException as why:
        _log_traceback()
        code, message = STEP_FAILED, f"{module}: {type(why).__name__}: {why}"
        hint = ""
        if is_out_of_space(why):
            code, message = ENVIRONMENT, f"{job['out']}: the disk is full"
            hint = "free some space and run the same command again; finished steps are kept"
    else:
        tell({"result": facts or {}, "peak_rss_mb": own_peak_rss_mb()})
        return 0
    tell({"error": {"exit_code": code, "message": message, "hint": hint}})
    return code


def _log_traceback() -> None:
    """Into the log; on a full disk that fails too, and must not hide the error itself."""
    with suppress(OSError):
        traceback.print_exc()


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


if __name__ == "__main__":
    sys.exit(_child_main(Path(sys.argv[1])))
