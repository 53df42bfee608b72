"""What a package is, for `edgetune inspect`: read, not opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.files import list_files, read_json
from edgetune.runtime.manifest import Manifest, Variant, read_manifest


def describe_package(path: Path) -> dict[str, Any]:
    """{kind, name, digest, bytes, variants, devices, self_test, provenance, warnings, reports} of a
    package.

    Raises InputRefusedError when it is none, or a file of it was changed, is missing or was added.
    """
    manifest = read_manifest(path)
    return {
        "kind": "package",
        "path": str(path),
        "name": manifest.name,
        "package_digest": manifest.digest,
        "package_bytes": package_bytes(path),
        "variants": [_describe_variant(v) for v in manifest.variants.values()],
        "devices": [{"name": name, **entry} for name, entry in sorted(manifest.devices.items())],
        "self_test": _describe_self_test(path),
        "provenance": _provenance(manifest),
        "warnings": _warnings(path),
        "problems": [],
        "reports": [_describe_report(file) for file in sorted((path / "reports").glob("*.json"))],
    }


def package_bytes(path: Path) -> int:
    """Bytes of what ships: every file of the package but its reports."""
    names = [name for name in list_files(path) if not name.startswith("reports/")]
    return sum((path / name).stat().st_size for name in names)


def graph_bytes(variant: Variant) -> int:
    """Bytes of a variant's graph: model.onnx and its data."""
    model = read_json(variant.folder / "genai_config.json")["model"]
    name = str(model["decoder"]["filename"])
    return sum(file.stat().st_size for file in variant.folder.glob(f"{name}*") if file.is_file())


def _describe_variant(variant: Variant) -> dict[str, Any]:
    model = read_json(variant.folder / "genai_config.json")["model"]
    return {
        "name": variant.name,
        "provider": variant.provider,
        "model_type": model.get("type"),
        "context_length": model.get("context_length"),
        "vocabulary_size": model.get("vocab_size"),
        "graph_bytes": graph_bytes(variant),
    }


def _describe_self_test(path: Path) -> dict[str, Any] | None:
    file = path / "self_test" / "self_test.json"
    if not file.is_file():
        return None
    facts = read_json(file)
    keys = ("task", "items", "positions", "source", "evaluation_text", "metrics")
    return {key: facts.get(key) for key in keys}


def _warnings(path: Path) -> list[str]:
    """What somebody who passes the package on should know."""
    facts = _describe_self_test(path) or {}
    text = facts.get("evaluation_text")
    if not isinstance(text, Mapping):
        return []
    return [
        f"it carries {text.get('items')} evaluation items ({text.get('bytes')} bytes of text in "
        "self_test/items.jsonl), which whoever has it can read"
    ]


def _provenance(manifest: Manifest) -> dict[str, Any]:
    lock = manifest.lock
    base = lock.get("base")
    adapters = lock.get("adapters") or []
    return {
        "base": base.get("name") if isinstance(base, Mapping) else base,
        "adapters": [a.get("name") if isinstance(a, Mapping) else a for a in adapters],
        "versions": lock.get("versions"),
    }


def _describe_report(file: Path) -> dict[str, Any]:
    report = read_json(file)
    row = report if isinstance(report, Mapping) else {}
    return {"file": file.name, "device": row.get("device"), "verdict": row.get("verdict")}
