"""What this machine is: processor, cores, memory; read from the system, nothing assumed."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
    """Ask the system what this machine is. Loads archspec and psutil."""
    import psutil
    from archspec.cpu import detect

    info = detect.detected_info()
    arch = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    names: dict[str, Literal["linux", "macos", "windows"]] = {"darwin": "macos", "win32": "windows"}
    return Host(
        arch=arch,
        os=names.get(sys.platform, "linux"),
        cpu_model=_cpu_model() or str(info.name),
        cores=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        instruction_sets=tuple(sorted(info.features)),
    )


def usable_cores() -> int:
    """Processors this process may use: affinity masks of containers and taskset respected."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Memory that a new process can take without swapping, a container's limit respected."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no version 2 control group, or "max": no limit
        return free
    return max(0, min(free, limit - used))


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
