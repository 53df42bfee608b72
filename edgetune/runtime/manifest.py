"""What a package says of itself: variants, devices, provenance. Standard library only.

A package is an ONNX Runtime model package, spec 1.0, with one component; what edgetune adds lies
in `additional_metadata`, in `devices/` and in `edgetune.lock`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.checksums import verify_checksums
from edgetune.errors import InputRefusedError, UsageError
from edgetune.files import inside, read_json

_PARTS = ("manifest.json", "edgetune.lock", "SHA256SUMS")
_AGAIN = "build the package again, or copy it again from where it came from"


@dataclass(frozen=True)
class Variant:
    """One complete flat onnxruntime-genai folder of a package."""

    name: str
    folder: Path
    provider: str
    device_kind: str


@dataclass(frozen=True)
class Manifest:
    """A package's parts, read and checked; nothing is opened."""

    path: Path
    name: str
    variants: Mapping[str, Variant]
    # {device: {"variant": name, "session": {"intra_op_num_threads": n} or null, "machine": what
    # tells that a host is the device (`host.is_machine`), or null}}
    devices: Mapping[str, Mapping[str, Any]]
    lock: Mapping[str, Any]
    # Digest of SHA256SUMS; null when the files were not checked against it.
    digest: str | None


def read_manifest(path: Path, verify: bool = True) -> Manifest:
    """Read a package's manifest, device entries and lock; with `verify`, check every file first.

    Raises InputRefusedError: no package, a file changed, missing or added, a manifest unfit.
    """
    if not path.is_dir():
        msg = f"{path}: no such folder"
        raise InputRefusedError(msg, "name the folder of a package, such as out/demo")
    missing = [name for name in _PARTS if not (path / name).is_file()]
    if missing:
        msg = f"{path}: not a package of edgetune, it has no {', '.join(missing)}"
        raise InputRefusedError(msg, "name the folder that `edgetune build` made, such as out/demo")
    digest = verify_checksums(path) if verify else None
    manifest = _mapping(read_json(path / "manifest.json"), path / "manifest.json")
    lock = _mapping(read_json(path / "edgetune.lock"), path / "edgetune.lock")
    variants = _variants(path, manifest)
    return Manifest(
        path=path,
        name=str(manifest.get("package_name") or path.resolve().name),
        variants=variants,
        devices=_devices(path, manifest, variants),
        lock=lock,
        digest=digest,
    )


def choose_variant(manifest: Manifest, variant: str | None, device: str | None) -> Variant:
    """The variant asked for, else the device's, else the only one.

    Raises UsageError for an unknown variant or device, and when several variants leave a choice.
    """
    if variant is None and device is not None:
        if device not in manifest.devices:
            known = ", ".join(sorted(manifest.devices)) or "none"
            msg = f"{manifest.path}: built for no device called {device!r}"
            raise UsageError(msg, f"its devices: {known}")
        variant = str(manifest.devices[device]["variant"])
    if variant is None:
        names = {str(entry["variant"]) for entry in manifest.devices.values()}
        names = names or set(manifest.variants)
        if len(names) > 1:
            msg = f"{manifest.path}: has the variants {', '.join(sorted(names))}"
            raise UsageError(msg, "say which device it is for with -d")
        variant = names.pop()
    if variant not in manifest.variants:
        msg = f"{manifest.path}: has no variant called {variant!r}"
        raise UsageError(msg, f"its variants: {', '.join(sorted(manifest.variants))}")
    return manifest.variants[variant]


def _variants(path: Path, manifest: Mapping[str, Any]) -> dict[str, Variant]:
    where = path / "manifest.json"
    version = str(manifest.get("schema_version"))
    if version.split(".")[0] != "1":
        msg = f"{where}: schema_version {version!r}, this edgetune reads 1.x"
        raise InputRefusedError(msg, "update edgetune, or build the package again")
    components = _mapping(manifest.get("components"), where, "components")
    if len(components) != 1:
        msg = f"{where}: {len(components)} components, onnxruntime-genai takes exactly one"
        raise InputRefusedError(msg, _AGAIN)
    component = _mapping(next(iter(components.values())), where, "components")
    found: dict[str, Variant] = {}
    for name, entry in _mapping(component.get("variants"), where, "variants").items():
        row = _mapping(entry, where, f"variants.{name}")
        folder = inside(path, str(row.get("variant_directory") or name))
        if not (folder / "genai_config.json").is_file():
            msg = f"{where}: variant {name!r} has no folder with a genai_config.json"
            raise InputRefusedError(msg, _AGAIN)
        provider = str(row.get("ep") or "CPUExecutionProvider")
        found[name] = Variant(name, folder, provider, str(row.get("device") or "cpu"))
    if not found:
        msg = f"{where}: no variant in it"
        raise InputRefusedError(msg, _AGAIN)
    return found


def _devices(
    path: Path, manifest: Mapping[str, Any], variants: Mapping[str, Variant]
) -> dict[str, dict[str, Any]]:
    """Entries of the manifest's own metadata, with the session settings of `devices/*.json`."""
    where = path / "manifest.json"
    metadata = _mapping(manifest.get("additional_metadata") or {}, where, "additional_metadata")
    own = _mapping(metadata.get("edgetune") or {}, where, "additional_metadata.edgetune")
    rows: dict[str, Any] = {}
    listed = own.get("devices") or {}
    if isinstance(listed, Mapping):
        rows.update(listed)
    for file in sorted((path / "devices").glob("*.json")):
        rows[file.stem] = read_json(file)
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        entry = dict(row) if isinstance(row, Mapping) else {"variant": row}
        if entry.get("variant") not in variants:
            msg = f"{path}: device {name!r} names the variant {entry.get('variant')!r}, not here"
            raise InputRefusedError(msg, _AGAIN)
        found[name] = {
            "variant": entry["variant"],
            "session": entry.get("session"),
            "machine": _machine(entry.get("machine"), path / "devices" / f"{name}.json"),
        }
    return found


def _machine(value: Any, where: Path) -> Mapping[str, Any] | None:
    if value is None:
        return None
    row = _mapping(value, where, "machine")
    if {"arch", "os", "cpu_model", "instruction_sets", "generic"} <= row.keys():
        return row
    msg = f"{where}: machine does not say what the device is"
    raise InputRefusedError(msg, _AGAIN)


def _mapping(value: Any, where: Path, key: str = "") -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    msg = f"{where}: {key or 'the document'} is not an object"
    raise InputRefusedError(msg, _AGAIN)
