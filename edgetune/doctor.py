"""Is this environment fit: versions, providers, disk, memory, pairs known to be bad."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetune.environments import aarch64
from edgetune.environments.emulator import find_qemu, try_environment
from edgetune.errors import MissingError
from edgetune.host import available_memory_bytes, probe_host, versions_of
from edgetune.problems import BUILD_LIBRARIES

_CORE = ("numpy", "onnxruntime", "onnxruntime-genai", "click", "pydantic", "rich", "ruamel.yaml")
_BUILD = (*BUILD_LIBRARIES, "onnxscript", "requests")
_OPTIONAL = ("bitsandbytes", "optimum")
_REMEDY_BUILD = "python -m pip install 'edgetune[build]'"
_INSTALL = "install QEMU's user mode: "
_LITTLE_MEMORY_BYTES = 2_000_000_000
_LITTLE_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was found, ok / note / fault, and the remedy."""

    name: str
    found: str
    state: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """The check as a JSON object."""
        return asdict(self)


def check_environment() -> list[Check]:
    """All checks; a `fault` keeps edgetune from running or validating packages here."""
    return [*_python(), *_versions(), *_bad_pairs(), *_providers(), *_emulators(), *_machine()]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fit = sys.version_info >= (3, 11)
    yield Check("python", version, "ok" if fit else "fault", "" if fit else "use Python 3.11")


def _versions() -> Iterator[Check]:
    for names, state, remedy in (
        (_CORE, "fault", "python -m pip install edgetune"),
        (_BUILD, "note", f"only to build: {_REMEDY_BUILD}"),
        (_OPTIONAL, "note", f"only for 4-bit bases: {_REMEDY_BUILD}"),
    ):
        for name, version in versions_of(*names).items():
            if version is None:
                yield Check(name, "not installed", state, remedy)
            else:
                yield Check(name, version, "ok")


def _bad_pairs() -> Iterator[Check]:
    """Combinations that fail, or fail silently, each met by trying it."""
    found = versions_of("olive-ai", "requests", "onnxruntime-genai", "transformers")
    if found["olive-ai"] and not found["requests"]:
        remedy = "python -m pip install requests"
        yield Check("olive-ai without requests", "cannot be imported", "fault", remedy)
    genai, transformers = found["onnxruntime-genai"], found["transformers"]
    if genai and transformers and not transformers.startswith("5."):
        remedy = "python -m pip install 'transformers>=5.20,<6'"
        yield Check(
            f"onnxruntime-genai {genai} with transformers {transformers}",
            "the model builder fails at import",
            "note",
            remedy,
        )


def _providers() -> Iterator[Check]:
    try:
        import onnxruntime
    except ImportError as why:
        yield Check("execution providers", f"onnxruntime: {why}", "fault", "install onnxruntime")
        return
    yield Check("execution providers", ", ".join(onnxruntime.get_available_providers()), "ok")


def make_environment(source: Path | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Make the aarch64 environment; {"path", "bytes", …what its record says}.

    Raises MissingError: no emulator to try it with, or what `make_aarch64` lacks.
    """
    find_qemu("aarch64")
    versions = versions_of("numpy", "onnxruntime", "onnxruntime-genai")
    place = aarch64.make_aarch64(versions, try_environment, progress, source)
    size = sum(
        file.stat().st_size for file in place.rglob("*") if file.is_file() and not file.is_symlink()
    )
    return {"path": str(place), "bytes": size, **aarch64.read_record(place)}


def _emulators() -> Iterator[Check]:
    """Which processors other than this one a package can be tried on here."""
    if not sys.platform.startswith("linux"):
        yield Check("emulators", "QEMU's user mode is for Linux", "note", "validate on the device")
        return
    for arch in ("x86_64", "aarch64"):
        try:
            _, version = find_qemu(arch)
            yield Check(f"emulator {arch}", version, "ok")
        except MissingError as why:
            remedy = f"only to emulate devices: {why.hint.removeprefix(_INSTALL)}"
            yield Check(f"emulator {arch}", why.message, "note", remedy)
    yield _arm_environment()


def _arm_environment() -> Check:
    name, remedy = "environment aarch64", "edgetune doctor --make aarch64"
    folder = aarch64.environment_folder("aarch64")
    if not aarch64.is_made(folder):
        return Check(name, f"none in {folder}", "note", f"only to emulate Arm devices: {remedy}")
    wheels = [str(wheel) for wheel in aarch64.read_record(folder).get("wheels", [])]
    own = versions_of("onnxruntime", "onnxruntime-genai")
    for library, version in own.items():
        stem = f"{library.replace('-', '_')}-{version}"
        if version and not any(wheel.startswith(stem) for wheel in wheels):
            found = f"{folder} has another {library} than {version}"
            return Check(name, found, "note", f"make it again: {remedy}")
    versions = ", ".join(f"{library} {version}" for library, version in own.items())
    return Check(name, f"{folder}: {versions}", "ok")


def _machine() -> Iterator[Check]:
    host = probe_host()
    yield Check("processor", f"{host.cpu_model}, {host.cores} usable cores, {host.arch}", "ok")
    memory = available_memory_bytes()
    little = memory < _LITTLE_MEMORY_BYTES
    yield Check(
        "memory",
        f"{memory / 1e9:.1f} GB available of {host.memory_bytes / 1e9:.1f}",
        "note" if little else "ok",
        "close other programs, or build on a larger machine" if little else "",
    )
    free = shutil.disk_usage(Path.cwd()).free
    little = free < _LITTLE_DISK_BYTES
    yield Check(
        "disk",
        f"{free / 1e9:.1f} GB free in this folder",
        "note" if little else "ok",
        "free some space, or use -o on another disk" if little else "",
    )
