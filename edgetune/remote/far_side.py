"""The far side of a validation by ssh: sent as text to the Python there, standard library only.

It shares nothing with the rest of edgetune and is written for Python 3.7, so that one that is too
old can say so. Its answer is one line of JSON behind a mark: a login shell may print lines of its
own. Files arrive in `parts/<digest>`, are proved there, and only then moved to their places.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    # {relative path: (SHA-256, bytes)}
    Files = Mapping[str, tuple[str, int]]

MARK = "edgetune-answer "


def main(job: Mapping[str, Any]) -> None:
    """Do one job and print its answer."""
    cache = os.environ.get("XDG_CACHE_HOME")
    home = Path(cache) if cache else Path.home() / ".cache"
    root = home / "edgetune" / "on-device" / job["name"]
    answer: dict[str, Any]
    try:
        answer = (look if job["do"] == "look" else place)(root, job["files"])
    except OSError as why:
        answer = {"error": str(why)}
    sys.stdout.write("\n" + MARK + json.dumps(answer) + "\n")


def look(root: Path, files: Files) -> dict[str, Any]:
    """What this machine is and has, and what of the files it lacks."""
    package, parts = root / "package", root / "parts"
    package.mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    lacking = sorted(name for name in files if not _is_there(package / name, *files[name]))
    wanted = {files[name][0] for name in lacking}
    arrived = {}
    for part in parts.iterdir():
        if part.name in wanted:
            arrived[part.name] = part.stat().st_size
        else:
            part.unlink()
    return {
        "root": str(root),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "libraries": _libraries(),
        "free_bytes": shutil.disk_usage(str(root)).free,
        "lacking": lacking,
        "arrived": arrived,
    }


def place(root: Path, files: Files) -> dict[str, Any]:
    """Prove the parts and move them to their places; remove what is not in `files`. Answers with
    the digests of parts that are not what they should be, which are removed."""
    package, parts = root / "package", root / "parts"
    names: dict[str, list[str]] = {}
    for name in files:
        if not _is_there(package / name, *files[name]):
            names.setdefault(files[name][0], []).append(name)
    damaged: set[str] = set()
    for digest, places in names.items():
        part = parts / digest
        if not part.is_file() or _digest(part) != digest:
            damaged.add(digest)
            if part.exists():
                part.unlink()
            continue
        part.chmod(0o644)
        for name in places[1:]:
            shutil.copyfile(str(part), str(_make_room(package / name)))
        part.replace(_make_room(package / places[0]))
    for path in list(package.rglob("*")):
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(
            package
        ).as_posix() not in files:
            path.unlink()
    # Of an earlier run: what lies there after this one is its own.
    if (root / "report.json").exists():
        (root / "report.json").unlink()
    return {"damaged": sorted(damaged)}


def _is_there(path: Path, digest: str, size: int) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
        return False
    return _digest(path) == digest


def _make_room(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(str(path))
    return path


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def _libraries() -> dict[str, str | None]:
    """{library: its version, "" where it does not tell, null where it is not installed}."""
    from importlib.util import find_spec

    # Not from the folder that the login shell stands in.
    sys.path[:] = [place for place in sys.path if place]
    found: dict[str, str | None] = {}
    for name in ("numpy", "onnxruntime", "onnxruntime-genai"):
        found[name] = None
        if find_spec(name.replace("-", "_")) is not None:
            try:
                from importlib.metadata import version

                found[name] = version(name)
            except Exception:  # a distribution of another name, or Python 3.7
                found[name] = ""
    return found
