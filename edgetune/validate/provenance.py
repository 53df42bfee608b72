"""What a package was made of, for its report: from its lock, which is digests and names only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.files import digest_of_json


def describe_provenance(lock: Mapping[str, Any]) -> dict[str, Any]:
    """The report's `provenance` section; what a lock of an earlier version does not say is null or
    left out."""
    return {
        "base": _model(lock.get("base")),
        "base_before": _model(lock.get("base_before")),
        "adapters": [found for entry in lock.get("adapters") or [] if (found := _model(entry))],
        "data": dict(lock.get("data") or {}),
        "versions": dict(lock.get("versions") or {}),
        "seeds": dict(lock.get("seeds") or {}),
        "steps": dict(lock.get("steps") or {}),
    }


def _model(entry: Any) -> dict[str, Any] | None:
    if not isinstance(entry, Mapping):
        return None
    files = dict(entry.get("files") or {})
    return {
        "name": str(entry.get("name")),
        "commit": entry.get("commit"),
        "digest": digest_of_json(files),
        "files": files,
        "license": entry.get("license"),
    }
