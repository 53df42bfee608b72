"""Steps for the tests of edgetune.step: small, and each does one thing wrong or right."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError

Progress = Callable[[str], None]


def write_words(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    progress("writing")
    (out / "sub").mkdir()
    (out / "words.txt").write_text(arguments["words"], encoding="utf-8")
    (out / "sub" / "pid.txt").write_text(str(arguments.get("pid", "")), encoding="utf-8")
    return {"count": len(arguments["words"].split())}


def refuse(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    (out / "half.txt").write_text("half", encoding="utf-8")
    raise InputRefusedError("the input is bad", "bring a better one")


def crash(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    sys.stdout.write("about to die\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    return {"value": 1 // 0}


def fill_disk(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sleep(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    (out / "half.txt").write_text("half", encoding="utf-8")
    Path(arguments["started"]).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)
    return {}


def count_run(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    with Path(arguments["counter"]).open("a", encoding="utf-8") as file:
        file.write("x")
    time.sleep(0.3)
    (out / "done.txt").write_text("done", encoding="utf-8")
    return {}


def tell_modules(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Which of the modules `names` are imported, and which can be found."""
    if "says" in arguments:
        sys.stdout.write(f"{arguments['says']}\n")
    names = arguments["names"]
    return {
        "pid": os.getpid(),
        "imported": [name for name in names if sys.modules.get(name)],
        "found": [name for name in names if importlib.util.find_spec(name)],
    }
