"""Another processor's instructions on this host: QEMU's user mode under the real wheels.

x86-64 is run with this environment's own Python and libraries, so only on an x86-64 host; 64-bit
Arm with the root folder and wheels that `environments/aarch64.py` makes. Time under an emulator
says nothing about time on the processor, and is never reported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgetune
from edgetune.device import Device
from edgetune.environments.aarch64 import environment_folder, is_made, read_record
from edgetune.environments.cpuinfo import cpuinfo_text
from edgetune.errors import MissingError, UsageError
from edgetune.host import Host

INSTALL_QEMU = "install QEMU's user mode: apt-get install qemu-user"
_ASK_S = 120


@dataclass(frozen=True)
class Emulation:
    """An emulated processor that can be had here, resolved to the programs that make it."""

    arch: str
    # QEMU's name, with switches where there are some ("max,sve=off").
    cpu: str
    # In which way this processor is not the device's; empty when it is.
    differs: str
    program: str
    # "qemu-aarch64 7.2.22"
    emulator: str
    # The folder of an environment; null: this environment's own Python.
    environment: str | None
    # What the device's profile asks of a processor.
    needs: tuple[str, ...]
    # MIDR_EL1 to show in place of the processor's own; Arm only.
    main_id: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The emulation as a step's argument."""
        return {**self.__dict__, "needs": list(self.needs)}

    def as_input(self) -> dict[str, Any]:
        """What a result depends on, no path in it."""
        made = read_record(Path(self.environment)) if self.environment else None
        kept = ("arch", "cpu", "differs", "emulator", "needs", "main_id")
        return {**{key: self.as_json()[key] for key in kept}, "environment": made}


def emulation_from_json(value: Mapping[str, Any]) -> Emulation:
    """The inverse of `Emulation.as_json`."""
    return Emulation(**{**value, "needs": tuple(value["needs"])})


def find_emulation(device: Device, host: Host) -> Emulation:
    """The emulated processor of a device's profile.

    Raises UsageError: the profile names none, or one that the emulator does not know; MissingError:
    emulator or environment is not here.
    """
    if device.emulate is None:
        why = device.not_emulated or "its profile names no processor to emulate"
        msg = f"{device.name} cannot be emulated: {why}"
        raise UsageError(
            msg, "a profile says `emulate: {cpu: …}`; `edgetune devices list` shows all"
        )
    if device.os != "linux" or host.os != "linux":
        msg = f"{device.name} cannot be emulated: QEMU's user mode runs Linux programs on Linux"
        raise UsageError(msg, "validate the package on the device itself")
    program, emulator = find_qemu(device.arch)
    known = qemu_cpus(program)
    name = device.emulate.cpu.split(",")[0]
    if name not in known:
        msg = f"{device.name}: {emulator} knows no processor {name!r}"
        raise UsageError(msg, f"it knows {', '.join(known[:40])}")
    return Emulation(
        arch=device.arch,
        cpu=device.emulate.cpu,
        differs=device.emulate.differs,
        program=program,
        emulator=emulator,
        environment=_environment(device.arch, host),
        needs=device.cpu.instruction_sets,
        main_id=device.emulate.main_id,
    )


def find_qemu(arch: str) -> tuple[str, str]:
    """(path, "qemu-<arch> <version>"). Raises MissingError when it is not installed."""
    name = f"qemu-{arch}"
    program = shutil.which(name) or shutil.which(f"{name}-static")
    if program is None:
        msg = f"{name} is not installed here"
        raise MissingError(msg, INSTALL_QEMU)
    first = _output([program, "--version"]).splitlines()[0]
    words = first.split()
    version = words[words.index("version") + 1] if "version" in words[:-1] else first
    return program, f"{name} {version}"


def qemu_cpus(program: str) -> list[str]:
    """The processors that this QEMU has, by the names that its `-cpu` takes."""
    names = []
    for line in _output([program, "-cpu", "help"]).splitlines():
        if line.startswith("Recognized"):
            break
        words = line.removeprefix("x86 ").split()
        if line.startswith(("x86 ", "  ")) and words:
            names.append(words[0])
    return sorted(set(names))


def _environment(arch: str, host: Host) -> str | None:
    if arch == "aarch64":
        folder = environment_folder("aarch64")
        if not is_made(folder):
            msg = f"there is no aarch64 environment in {folder}"
            raise MissingError(msg, "make it: edgetune doctor --make aarch64")
        return str(folder)
    if arch != host.arch:
        msg = f"{arch} is emulated with an {arch} host's own Python, this host is {host.arch}"
        raise MissingError(msg, f"validate the package on an {arch} machine")
    return None


@contextmanager
def guest(emulation: Emulation) -> Iterator[tuple[list[str], dict[str, str]]]:
    """(command that ends in the guest's Python, its whole environment), for the block's duration.

    On Arm the processor is asked what it is first, and /proc/cpuinfo says so: onnxruntime 1.32
    crashes at import where it finds the host's (QEMU before 8.2 shows that one).
    """
    with tempfile.TemporaryDirectory(prefix="edgetune-guest-") as folder:
        here = Path(folder)
        # Nothing else of this environment's may be found by the guest.
        (here / "own").mkdir()
        (here / "own" / "edgetune").symlink_to(Path(edgetune.__file__).resolve().parent)
        paths = [here / "own"]
        command = [emulation.program, "-cpu", emulation.cpu]
        if emulation.environment is None:
            paths += _own_libraries()
            # Not the virtual environment's link: QEMU would not find what lies beside it.
            command.append(os.path.realpath(sys.executable))
        else:
            root = _root(Path(emulation.environment) / "root", here / "root")
            paths.insert(0, Path(emulation.environment) / "wheels")
            command += ["-L", str(root), str(_python(root))]
        environment = _guest_environment(paths)
        if emulation.environment is not None:
            found = ask_processor(command, environment)
            if emulation.main_id is not None:
                found["main_id"] = emulation.main_id
            text = cpuinfo_text(found)
            (here / "root" / "proc" / "cpuinfo").write_text(text, encoding="ascii")
        yield command, environment


def ask_processor(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """{machine, instruction_sets, main_id} of the processor that a guest's programs see.

    Raises MissingError when nothing runs there.
    """
    module = "edgetune.environments.instructions"
    try:
        done = subprocess.run(
            [*command, "-s", "-P", "-m", module],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as why:
        msg = f"{' '.join(command[:3])}: Python does not run there ({str(why).splitlines()[0]})"
        raise MissingError(msg, "`edgetune doctor` shows what is missing") from why
    return found


def check_needs(emulation: Emulation, found: Mapping[str, Any], device: str) -> None:
    """Raise UsageError when the processor lacks what the profile asks for, and the profile does
    not say so: QEMU drops what it cannot do (AVX-512, say) from a processor that it knows."""
    shown = found.get("instruction_sets")
    if shown is None or emulation.differs:
        return
    missing = [name for name in emulation.needs if name not in shown]
    if missing:
        msg = f"{device}: {emulation.cpu} in {emulation.emulator} has no {', '.join(missing)}"
        raise UsageError(msg, "say in the profile under emulate.differs that it is a stand-in")


def try_environment(folder: Path) -> None:
    """Load what a package needs in an aarch64 environment. Raises MissingError when it fails."""
    program, emulator = find_qemu("aarch64")
    trial = Emulation("aarch64", "cortex-a76", "", program, emulator, str(folder), ())
    code = "import numpy, onnxruntime, onnxruntime_genai, edgetune.runtime.session"
    with guest(trial) as (command, environment):
        done = subprocess.run(
            [*command, "-s", "-P", "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:300]
        msg = f"{folder}: onnxruntime-genai does not load under {emulator}: {words}"
        raise MissingError(msg, "make it again: edgetune doctor --make aarch64")


def _root(made: Path, root: Path) -> Path:
    """A root folder of links to the environment's, with a /proc of its own."""
    (root / "proc").mkdir(parents=True)
    for entry in made.iterdir():
        if entry.name != "proc":
            (root / entry.name).symlink_to(entry)
    return root


def _python(root: Path) -> Path:
    found = sorted((root / "usr" / "bin").glob("python3.*"))
    if not found:
        msg = f"{root}: no Python in this environment"
        raise MissingError(msg, "make it again: edgetune doctor --make aarch64")
    return found[-1]


def _own_libraries() -> list[Path]:
    """Where this environment's own copies of what a package needs lie."""
    found = []
    for name in ("numpy", "onnxruntime", "onnxruntime_genai"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            msg = f"{name} is not installed here"
            raise MissingError(msg, "python -m pip install edgetune")
        found.append(Path(spec.origin).parent.parent)
    return list(dict.fromkeys(found))


def _guest_environment(paths: list[Path]) -> dict[str, str]:
    """Little of the host's: its library paths and switches are for another processor."""
    kept = {key: os.environ[key] for key in ("PATH", "TMPDIR", "HOME") if key in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }


def _output(command: list[str]) -> str:
    """What a QEMU prints; `-cpu help` ends with status 1 and prints all the same."""
    why = "it printed nothing"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
        if done.stdout.strip():
            return done.stdout
        why = (done.stderr.strip().splitlines() or [why])[-1]
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error).splitlines()[0]
    msg = f"{command[0]} does not run: {why}"
    raise MissingError(msg, INSTALL_QEMU)
