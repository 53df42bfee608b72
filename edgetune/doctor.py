"""Is this environment fit: versions, providers, disk, memory, pairs known to be bad."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetune.host import available_memory_bytes, probe_host
from edgetune.plan import BUILD_LIBRARIES
from edgetune.step import versions_of

_CORE = ("numpy", "onnxruntime", "onnxruntime-genai", "click", "pydantic", "rich", "ruamel.yaml")
_BUILD = (*BUILD_LIBRARIES, "onnxscript", "requests")
_OPTIONAL = ("bitsandbytes", "optimum")
_REMEDY_BUILD = "python -m pip install 'edgetune[build]'"
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
    return [*_python(), *_versions(), *_bad_pairs(), *_providers(), *_machine()]


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
