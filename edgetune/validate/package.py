"""`edgetune validate PACKAGE`: a package alone, on this host, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.console import step_progress
from edgetune.device import THIS_MACHINE, find_device, is_here
from edgetune.errors import GATE_FAILED, INCONCLUSIVE, PASS, UsageError
from edgetune.host import Host, probe_host
from edgetune.runtime.manifest import Manifest, choose_variant, read_manifest
from edgetune.runtime.session import session_threads
from edgetune.validate.validate import Job, make_report

_CODES = {"pass": PASS, "fail": GATE_FAILED, "inconclusive": INCONCLUSIVE}


def validate_package(package: Path, device: str | None = None) -> dict[str, Any]:
    """The report of a package on this host, for the device named, else one of its own that this
    host is, else its first. Never writes into the package.

    Raises InputRefusedError: no package, changed, or it does not open; UsageError: no such device.
    """
    with step_progress("validate") as progress:
        progress.update("checking the package's files")
        manifest = read_manifest(package)
        host = probe_host()
        name = device or choose_device(manifest, host)
        known = name if name in manifest.devices or name != THIS_MACHINE else None
        job = Job(
            identifier=f"{manifest.name}@{name}",
            device=name,
            here=_is_here(name, host),
            threads=session_threads(manifest, name),
            variant=choose_variant(manifest, None, known),
            evidence={"built": True},
        )
        return make_report(manifest, job, progress.update)


def exit_code_of(report: Mapping[str, Any]) -> int:
    """The exit code that a report's verdict means."""
    return _CODES[str(report["verdict"])]


def choose_device(manifest: Manifest, host: Host) -> str:
    """The device of a package to validate for when none is named."""
    names = sorted(manifest.devices)
    return next((name for name in names if _is_here(name, host)), (names or [THIS_MACHINE])[0])


def _is_here(name: str, host: Host) -> bool:
    try:
        return is_here(find_device(name), host)
    except UsageError:
        # A profile that only the build machine had: nothing says that this host is one.
        return False
