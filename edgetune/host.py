"""What this machine is: processor, cores, memory; read from the system, nothing assumed.

On Linux with the standard library alone: a package's own self-test runs where nothing else is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from edgetune.errors import MissingError

# The device that every machine is.
THIS_MACHINE = "this-machine"


@dataclass(frozen=True)
class Host:
    """The machine a figure was taken on."""

    arch: str
    os: Literal["linux", "macos", "windows"]
    cpu_model: str
    cores: int
    memory_bytes: int
    instruction_sets: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits: equal for machines whose latencies can be compared."""
        gib = round(self.memory_bytes / (1 << 30))
        text = "|".join([self.arch, self.os, self.cpu_model, str(self.cores), str(gib)])
        text += "|" + " ".join(self.instruction_sets)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def probe_host() -> Host:
    """Ask the system what this machine is.

    Raises MissingError on another system than Linux without archspec and psutil.
    """
    arch = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    if sys.platform == "linux":
        name, features, memory = arch, _cpu_flags(), _meminfo_bytes("MemTotal")
    else:
        name, features, memory = _ask_libraries()
    names: dict[str, Literal["linux", "macos", "windows"]] = {"darwin": "macos", "win32": "windows"}
    return Host(
        arch=arch,
        os=names.get(sys.platform, "linux"),
        cpu_model=_cpu_model() or name,
        cores=usable_cores(),
        memory_bytes=memory,
        instruction_sets=tuple(sorted(features)),
    )


def is_machine(machine: Mapping[str, Any], host: Host) -> bool:
    """Whether a host is the machine that a device's profile describes, or one of its class.

    `machine`: {arch, os, cpu_model, instruction_sets, generic}, as a package carries it.
    """
    if machine["arch"] != host.arch or machine["os"] != host.os:
        return False
    if not set(machine["instruction_sets"]) <= set(host.instruction_sets):
        return False
    own = str(machine["cpu_model"]).casefold()
    return bool(machine["generic"]) or own in host.cpu_model.casefold()


def versions_of(*distributions: str) -> dict[str, str | None]:
    """{distribution: installed version, null if absent}, without importing any of them."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def usable_cores() -> int:
    """Processors this process may use: affinity masks of containers and taskset respected."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Memory that a new process can take without swapping, a container's limit respected."""
    if sys.platform == "linux":
        free = _meminfo_bytes("MemAvailable")
    else:
        import psutil

        free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no version 2 control group, or "max": no limit
        return free
    return max(0, min(free, limit - used))


def total_memory_bytes(host: Host) -> int:
    """Memory that all programs here can take, a container's limit respected; the same whatever
    runs."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no version 2 control group, or "max": no limit
        return host.memory_bytes
    return min(host.memory_bytes, limit)


def _ask_libraries() -> tuple[str, set[str], int]:
    """(the processor's family, its instruction sets, bytes of memory) where there is no /proc."""
    try:
        import psutil
        from archspec.cpu import detect
    except ImportError as why:
        msg = f"{why.name} is not installed, and only Linux tells without it what this machine is"
        raise MissingError(msg, "python -m pip install archspec psutil") from why
    info = detect.detected_info()
    return str(info.name), set(info.features), int(psutil.virtual_memory().total)


def _cpu_flags() -> set[str]:
    """The first processor's flags in /proc/cpuinfo: `flags` on x86, `Features` on Arm."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _meminfo_bytes(key: str) -> int:
    """A row of /proc/meminfo, whose kB are 1024 bytes (proc(5)). Raises MissingError without it."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    msg = f"/proc/meminfo does not tell {key}, so this machine's memory is not known"
    raise MissingError(msg, "mount /proc")


def _cpu_model() -> str:
    """The processor's name as Linux shows it; Arm kernels show none, the board's name does."""
    for path, prefix in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if not prefix:
            return text.strip("\0\n ")
        for line in text.splitlines():
            if line.startswith(prefix):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def own_peak_rss_mb() -> float | None:
    """The peak resident set of this process in MB (10**6 bytes), mapped pages included.

    VmHWM of the process itself: `ru_maxrss` would inherit the parent's peak. Null where the
    system does not tell.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return None
