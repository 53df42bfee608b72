"""Energy that the processor packages took, where the machine tells: Linux's powercap, Intel's and
AMD's RAPL counters (Documentation/power/powercap in the kernel's sources).

It is all that the processors took, other programs' share included; memory, disks and the rest of
the machine are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_MICRO = 1e6


def read_energy() -> Mapping[Path, int] | None:
    """{a processor package's zone: its counter in microjoules}; null where none can be read."""
    found = {}
    # `intel-rapl:0`; the zones inside one, `intel-rapl:0:0`, are parts of it.
    for zone in sorted(POWERCAP.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if zone.name.count(":") == 1 and name.startswith("package"):
                found[zone] = int((zone / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
    return found or None


def joules_since(before: Mapping[Path, int] | None) -> float | None:
    """What was used since `before`; a counter that went round is seen once. Null: not known."""
    after = read_energy()
    if before is None or after is None or before.keys() != after.keys():
        return None
    total = 0.0
    for zone, count in after.items():
        used = count - before[zone]
        if used < 0:
            try:
                used += int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            except (OSError, ValueError):
                return None
        total += used / _MICRO
    return total


def why_no_energy() -> str:
    """Why the energy is not measured here."""
    if not any(POWERCAP.glob("*-rapl:*")):
        return "the machine has no energy counter (Linux powercap, RAPL)"
    return "the energy counters cannot be read (they are the administrator's)"
