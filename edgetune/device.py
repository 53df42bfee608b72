"""The device profile: what a device is, with a source and a status for every number."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from edgetune.documents import Strict, load_document
from edgetune.errors import UsageError
from edgetune.files import is_file, shipped_folder
from edgetune.host import THIS_MACHINE as THIS_MACHINE
from edgetune.host import Host, is_machine, probe_host

Status = Literal["datasheet", "vendor-benchmark", "derived", "measured", "unverified"]


class Sourced(Strict):
    """A number, where it comes from, and how far it can be trusted."""

    value: float = Field(gt=0)
    source: str
    status: Status


class Cpu(Strict):
    """The processor: what identifies it on a host, and what code it can run."""

    model: str
    cores: Sourced
    frequency_ghz: Sourced | None = None
    # Flags as Linux writes them in /proc/cpuinfo; a host must have all of them to be this device.
    instruction_sets: tuple[str, ...] = ()


class ProviderEntry(Strict):
    """An execution provider in ONNX Runtime's spelling, and its options."""

    name: str
    options: dict[str, str] = Field(default_factory=dict)


class Session(Strict):
    """Session settings that the runtime applies when it opens a package on this device."""

    intra_op_num_threads: int = Field(ge=1, le=1024)


class Reach(Strict):
    """How the device is reached."""

    by: Literal["local", "ssh"] = "local"
    # Where, for `edgetune validate --on`: ssh://user@host:port. A build never contacts it.
    address: str | None = Field(default=None, pattern=r"^ssh://[^/\s]+$")
    # The Python to run there; null: python3.
    python: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Reach:
        if self.by == "local" and (self.address or self.python):
            msg = "address and python are for a device that is reached by ssh"
            raise ValueError(msg)
        return self


class Emulate(Strict):
    """The processor that an emulator shows in place of the device's."""

    # QEMU's name for it, with switches where there are some: cortex-a76, "max,sve=off".
    cpu: str
    # MIDR_EL1 that /proc/cpuinfo shows on Arm, where the emulated processor's own names no core:
    # onnxruntime 1.32 crashes at import when it does not know the implementer.
    main_id: int | None = Field(default=None, ge=0, lt=1 << 32)
    # In which way it is a stand-in; empty when its instruction sets are the device's.
    differs: str = ""


class Device(Strict):
    """One device, or a class of devices that share what matters."""

    name: str
    description: str
    arch: Literal["x86_64", "aarch64"]
    os: Literal["linux", "macos", "windows"] = "linux"
    cpu: Cpu
    memory_gb: Sourced
    memory_bandwidth_gb_s: Sourced | None = None
    # 10**9 operations a second (a multiplication and an addition are two), 8-bit weights.
    int8_gops: Sourced | None = None
    storage_gb: Sourced | None = None
    providers: tuple[ProviderEntry, ...] = (ProviderEntry(name="CPUExecutionProvider"),)
    data_types: tuple[str, ...] = ("float32", "int8", "int4")
    session: Session
    reach: Reach = Reach()
    # A class of machines (true) or one model, recognized by `cpu.model` (false).
    generic: bool = False
    sources: tuple[str, ...] = ()
    emulate: Emulate | None = None
    # Why there is nothing to emulate it with.
    not_emulated: str = ""


def load_device(path: Path) -> Device:
    """Read `<name>.yaml`. Raises UsageError with file:line:column for each problem."""
    device = load_document(path, Device, {"name": path.stem})
    if device.name != path.stem:
        msg = f"{path}: name is {device.name!r}, but the file is called {path.name!r}"
        raise UsageError(msg, "leave `name` out, or rename the file")
    return device


def find_device(name_or_path: str) -> Device:
    """The device that `-d` means: `this-machine`, a profile file, or a shipped profile's name.

    Raises UsageError for an unknown one.
    """
    if name_or_path == THIS_MACHINE:
        return this_machine(probe_host())
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") and is_file(path):
        return load_device(path)
    shipped = shipped_folder("devices")
    found = shipped / f"{name_or_path}.yaml"
    if "/" not in name_or_path and is_file(found):
        return load_device(found)
    names = [THIS_MACHINE, *(p.stem for p in shipped.glob("*.yaml"))]
    close = difflib.get_close_matches(name_or_path, names, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]!r}? " if close else ""
    msg = f"no device is called {name_or_path!r}"
    raise UsageError(msg, f"{meant}`edgetune devices list` shows them")


def shipped_devices() -> list[Device]:
    """All shipped profiles, by name."""
    return [load_device(p) for p in sorted(shipped_folder("devices").glob("*.yaml"))]


def this_machine(host: Host) -> Device:
    """A profile of the machine this runs on, from what the system says of itself."""
    return Device(
        name=THIS_MACHINE,
        description=f"this machine: {host.cpu_model}",
        arch="aarch64" if host.arch == "aarch64" else "x86_64",
        os=host.os,
        cpu=Cpu(
            model=host.cpu_model,
            cores=Sourced(value=host.cores, source="the operating system", status="measured"),
            instruction_sets=host.instruction_sets,
        ),
        memory_gb=Sourced(
            value=host.memory_bytes / 1e9, source="the operating system", status="measured"
        ),
        session=Session(intra_op_num_threads=host.cores),
    )


def is_here(device: Device, host: Host) -> bool:
    """True when this host is the device, or one of the class of devices it describes."""
    if device.name == THIS_MACHINE:
        return True
    return is_machine(machine_of(device), host)


def machine_of(device: Device) -> dict[str, Any]:
    """What tells that a host is the device; a package carries it, so that it can tell by itself."""
    return {
        "arch": device.arch,
        "os": device.os,
        "cpu_model": device.cpu.model,
        "instruction_sets": sorted(device.cpu.instruction_sets),
        "generic": device.generic,
    }


def emulated_as(device: Device) -> str:
    """In words: the processor that stands in under an emulator, or why none does."""
    if device.emulate is None:
        return f"nothing: {device.not_emulated or 'the profile names no processor'}"
    differs = f" (a stand-in: {device.emulate.differs})" if device.emulate.differs else ""
    return device.emulate.cpu + differs
