"""The child's side of `child.run_child`: `python -m edgetune.called FD [LIBRARY …] [-HIDDEN …]`.

It hides and imports what it is told to, reads one job from its standard input, and tells on the
descriptor what comes of it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetune.child import die_with_parent
from edgetune.errors import ENVIRONMENT, STEP_FAILED, EdgetuneError
from edgetune.files import is_out_of_space
from edgetune.host import own_peak_rss_mb


def main(events_fd: int, names: list[str]) -> int:
    """Import, wait for the job, do it, tell what came of it; returns the exit status."""
    die_with_parent()
    os.umask(0o022)
    for name in names:
        if name.startswith("-"):
            sys.modules[name[1:]] = None  # type: ignore[assignment]  # Python's way to hide one
    for name in names:
        if not name.startswith("-"):
            with suppress(Exception):  # told by the step itself, which imports it again
                importlib.import_module(name)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    job = json.loads(line)
    _redirect(Path(job["log"]))
    events = os.fdopen(events_fd, "w", encoding="utf-8")

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


def _redirect(log: Path) -> None:
    """Output to the log, input from nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def _log_traceback() -> None:
    """Into the log; on a full disk that fails too, and must not hide the error itself."""
    with suppress(OSError):
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
