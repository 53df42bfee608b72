"""`edgetune validate PACKAGE`: a package alone, on this host, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.console import step_progress
from edgetune.device import THIS_MACHINE, find_device, is_here
from edgetune.environments.emulator import find_emulation
from edgetune.errors import GATE_FAILED, INCONCLUSIVE, PASS, UsageError
from edgetune.host import Host, probe_host
from edgetune.runtime.manifest import Manifest, choose_variant, read_manifest
from edgetune.runtime.session import session_threads
from edgetune.validate.here import told_here
from edgetune.validate.job import Job
from edgetune.validate.validate import measure_package

_CODES = {"pass": PASS, "fail": GATE_FAILED, "inconclusive": INCONCLUSIVE}


def validate_package(
    package: Path, device: str | None = None, emulate: bool = False, thorough: bool = False
) -> dict[str, Any]:
    """The report of a package on this host; see `validate_with_answers`."""
    return validate_with_answers(package, device, emulate, thorough)[0]


def validate_with_answers(
    package: Path, device: str | None = None, emulate: bool = False, thorough: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(report, answers item by item) of a package on this host, for the device named, else one of
    its own that this host is, else its first. Never writes into the package.

    `emulate`: on the device's processor as well, emulated; any device whose profile names one, by
    default the package's first of those. `thorough`: with a sustained minute. Raises
    InputRefusedError: no package, changed, or it does not open; UsageError: no such device, or none
    that can be emulated; MissingError: no emulator.
    """
    with step_progress("validate") as progress:
        progress.update("checking the package's files")
        manifest = read_manifest(package)
        host = probe_host()
        name = device or choose_device(manifest, host, emulate)
        emulation = find_emulation(find_device(name), host) if emulate else None
        # A package is built for its devices, and may be tried on others.
        free = name == THIS_MACHINE or emulate
        known = name if name in manifest.devices or not free else None
        job = Job(
            identifier=f"{manifest.name}@{name}",
            device=name,
            here=_here(manifest, name, host),
            threads=session_threads(manifest, name),
            variant=choose_variant(manifest, None, known),
            evidence={"built": True},
            emulation=emulation,
            must_emulate=emulate,
            thorough=thorough,
        )
        return measure_package(manifest, job, progress.update)


def exit_code_of(report: Mapping[str, Any]) -> int:
    """The exit code that a report's verdict means."""
    return _CODES[str(report["verdict"])]


def choose_device(manifest: Manifest, host: Host, emulate: bool = False) -> str:
    """The device of a package to validate for when none is named. Raises UsageError when one that
    can be emulated is asked for and there is none."""
    names = sorted(manifest.devices)
    if emulate:
        if found := next((name for name in names if _can_be_emulated(name)), None):
            return found
        msg = f"{manifest.path}: none of its devices can be emulated ({', '.join(names)})"
        raise UsageError(msg, "name another one: --emulate raspberry-pi-5")
    return next(
        (name for name in names if _here(manifest, name, host)), (names or [THIS_MACHINE])[0]
    )


def _can_be_emulated(name: str) -> bool:
    try:
        return find_device(name).emulate is not None
    except UsageError:
        return False


def _here(manifest: Manifest, name: str, host: Host) -> bool:
    """By what the package says of its device, else by the device's profile."""
    told = told_here(manifest, name, host)
    return _is_here(name, host) if told is None else told


def _is_here(name: str, host: Host) -> bool:
    try:
        return is_here(find_device(name), host)
    except UsageError:
        # A profile that only the build machine had: nothing says that this host is one.
        return False
