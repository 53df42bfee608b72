"""Which device of a package this host is, by what the package itself says of its devices."""

from __future__ import annotations

from edgetune.host import THIS_MACHINE, Host, is_machine
from edgetune.runtime.manifest import Manifest


def told_here(manifest: Manifest, device: str, host: Host) -> bool | None:
    """Whether the host is the package's device, or one of its class; null where the package does
    not tell, because it was built for a machine by probing or does not know the device."""
    machine = manifest.devices.get(device, {}).get("machine")
    return None if machine is None else is_machine(machine, host)


def own_device(manifest: Manifest, host: Host) -> str:
    """The package's device that this host is, else its first, else this machine."""
    names = sorted(manifest.devices)
    found = next((name for name in names if told_here(manifest, name, host)), None)
    return found or (names or [THIS_MACHINE])[0]
