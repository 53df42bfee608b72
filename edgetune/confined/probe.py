"""Whether a confinement holds, found out by trying to break it from inside.

The parent opens a `Trap` first: a listening port, a file to read, a folder to write into, all of
which its own user can reach, so that each attempt would succeed in a free process.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import MissingError

# Without these nothing is read; the others are told when they could not be had.
REQUIRED = ("no network", "limited memory")
_MORE_BYTES = 64 << 20


@dataclass(frozen=True)
class Trap:
    """What a confined process must not reach; `arguments` tell it where that is."""

    listener: socket.socket
    folder: Path

    def arguments(self) -> dict[str, Any]:
        """The trap as a job's arguments."""
        return {"port": self.listener.getsockname()[1], "folder": str(self.folder)}

    def was_sprung(self) -> bool:
        """True when something connected to the port or wrote into the folder."""
        if [p.name for p in self.folder.iterdir()] != ["secret"]:
            return True
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def open_trap() -> Iterator[Trap]:
    """A trap, proved to catch: this process itself connects to the port first.

    Raises MissingError where there is no loopback network to try it with.
    """
    with tempfile.TemporaryDirectory(prefix="edgetune-trap-") as folder, _listen() as listener:
        (Path(folder) / "secret").write_text("not to be read", encoding="ascii")
        yield Trap(listener, Path(folder))


def _listen() -> socket.socket:
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        with socket.create_connection(listener.getsockname(), timeout=5):
            listener.accept()[0].close()
    except OSError as why:
        msg = f"no loopback network here to try a confinement with ({why})"
        raise MissingError(msg, "convert the file to safetensors where you trust it") from why
    listener.setblocking(False)
    return listener


def probe(
    trap: Mapping[str, Any], out: Path, memory_bytes: int, file_bytes: int
) -> dict[str, bool]:
    """{measure: whether it holds}, each found by an attempt of this process.

    `memory_bytes`, `file_bytes`: what the limits and `confine.confine` were given.
    """
    outside = Path(str(trap["folder"]))
    return {
        "no network": _fails(lambda: _connect(int(trap["port"]))),
        "limited memory": _fails(lambda: mmap.mmap(-1, memory_bytes + _MORE_BYTES).close()),
        "no writing elsewhere": _fails(lambda: (outside / "written").touch()),
        "no reading elsewhere": _fails(lambda: (outside / "secret").read_bytes()),
        "no other programs": _refuses_programs(),
        "no other processes": _fails(_start_process),
        "limited files": _fails(lambda: _write_far(out / "probe", file_bytes)),
        "limited time": resource.getrlimit(resource.RLIMIT_CPU)[0] != resource.RLIM_INFINITY,
    }


def _fails(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, MemoryError):
        return True
    return False


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def _start_process() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _refuses_programs() -> bool:
    """A program that is not there: a free process is told so, a confined one is not permitted."""
    try:
        os.execv("/nonexistent/program", ["program"])
    except OSError as why:
        return why.errno == errno.EPERM


def _write_far(file: Path, most_bytes: int) -> None:
    try:
        with file.open("wb", buffering=0) as opened:
            opened.seek(most_bytes)
            opened.write(b"x")
    finally:
        file.unlink(missing_ok=True)
