"""A hub's cache, made by hand."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def cache(hub: Path, identifier: str, commit: str, files: Path, *refs: str) -> Path:
    """A folder's files as huggingface_hub lays them into its cache; the snapshot."""
    place = hub / f"models--{identifier.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for file in sorted(p for p in files.rglob("*") if p.is_file()):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        path = place / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return snapshot
