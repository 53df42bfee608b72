"""What a process does to itself, in order: no new privileges, no network, files, calls, limits.

All of it must happen in a process with one thread, before torch is imported: Landlock and the
call filter hold for the thread that asks and for what it starts later. Only the final limits of
memory and time come after the imports, whose cost they would have to guess.

No bubblewrap: it fails where user namespaces are forbidden (containers, Ubuntu 24.04), and what it
adds elsewhere is asked of the kernel directly here.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
import site
import sys
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path

from edgetune.confined.landlock import restrict_files
from edgetune.confined.seccomp import forbid_calls
from edgetune.errors import MissingError

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_OPEN_FILES = 256
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
# What Python and the C library read on their way to `import torch`.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system", "/sys/fs/cgroup",
)  # fmt: skip


def confine(readable: Sequence[Path], out: Path, libraries: Sequence[str], file_bytes: int) -> None:
    """Give up everything but reading `readable` and what Python and `libraries` need, and
    writing plain files of at most `file_bytes` each into `out`.

    What of it the kernel granted is not returned: `probe` finds out. Raises MissingError on a
    system that is not Linux.
    """
    if platform.system() != "Linux":
        msg = "pickles are read by a confined process only, and that takes Linux"
        raise MissingError(msg, "convert the file to safetensors where you trust it")
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    places = [*readable, *library_paths(libraries)]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _leave_namespaces()
    restrict_files([*places, *map(Path, _SYSTEM), *map(Path, _DEVICES)], [out, Path("/dev/null")])
    forbid_calls()


@contextlib.contextmanager
def limited_for_now(memory_bytes: int, seconds: int) -> Iterator[None]:
    """As `limit_for_good`, for a block: what comes after it needs more (importing torch)."""
    before = {what: resource.getrlimit(what) for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU)}
    for what, most in _ceilings(memory_bytes, seconds).items():
        resource.setrlimit(what, (_tighter(most, before[what][1]), before[what][1]))
    yield
    for what, limits in before.items():
        resource.setrlimit(what, limits)


def limit_for_good(memory_bytes: int, seconds: int) -> None:
    """Let the address space grow by at most so many bytes from now on, and end this process after
    so many more seconds of processor time."""
    for what, most in _ceilings(memory_bytes, seconds).items():
        _limit(what, most)


def _ceilings(memory_bytes: int, seconds: int) -> dict[int, int]:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + 1 + seconds,
    }


def library_paths(names: Sequence[str]) -> list[Path]:
    """Folders that hold Python, edgetune and the given packages."""
    found = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parent.parent)}
    found.update(site.getsitepackages())
    for name in names:
        spec = util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found.add(str(Path(place).parent))
    # a Python in / would make all of it readable: then only what is below it by name
    return [Path(place) for place in sorted(found) if place != "/"]


def _leave_namespaces() -> None:
    """A network and a user of its own, where an unprivileged process may have them."""
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is not None:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)


def _limit(what: int, most: int) -> None:
    """A limit that cannot be raised again; one that is tighter already stays."""
    hard = resource.getrlimit(what)[1]
    # processor time: a signal at the soft limit, death at the hard one
    spare = 1 if what == resource.RLIMIT_CPU else 0
    resource.setrlimit(what, (_tighter(most, hard), _tighter(most + spare, hard)))


def _tighter(most: int, hard: int) -> int:
    return most if hard == resource.RLIM_INFINITY else min(most, hard)
