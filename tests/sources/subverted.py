"""What the reader of a pickle could do if a pickle took it over: called in its place."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

from edgetune.checkpoint import pickles

WEIGHTS = "adapter_model.safetensors"


def links_out(arguments: Any, out: Path, progress: Any) -> dict[str, bool]:
    (out / WEIGHTS).symlink_to("/etc/passwd")
    return {}


def writes_more(arguments: Any, out: Path, progress: Any) -> dict[str, bool]:
    (out / "adapter_config.json").write_text("{}")
    return {}


def writes_nonsense(arguments: Any, out: Path, progress: Any) -> dict[str, bool]:
    (out / WEIGHTS).write_bytes(b"\xff" * 5)
    return {}


def connects(arguments: Any, out: Path, progress: Any) -> dict[str, bool]:
    socket.create_connection(("127.0.0.1", arguments["trap"]["port"])).close()
    return {}


def says_nonsense(arguments: Any, out: Path, progress: Any) -> Any:
    _say(b'{"error": 3}\n')


def says_much(arguments: Any, out: Path, progress: Any) -> Any:
    _say(b"[" * (3 << 20))


def _say(words: bytes) -> None:
    """On the pipe to the parent, past the machinery."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        place = f"/proc/self/fd/{name}"
        if Path(place).exists() and os.readlink(place).startswith("pipe:"):  # noqa: PTH115
            os.write(int(name), words)
    os._exit(0)


def dies(arguments: Any, out: Path, progress: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def fails(arguments: Any, out: Path, progress: Any) -> Any:
    msg = "no"
    raise RuntimeError(msg)


def unconfined(arguments: Any, out: Path, progress: Any) -> Any:
    """The reader as it is, on a kernel that grants nothing."""
    pickles.confine = lambda *_: None
    return pickles.convert_step(arguments, out, progress)


def unlimited(arguments: Any, out: Path, progress: Any) -> Any:
    """The reader as it is, where memory cannot be limited."""
    from edgetune.confined import confine

    confine._ceilings = lambda memory, seconds: {}
    return pickles.convert_step(arguments, out, progress)
