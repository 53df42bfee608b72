"""Folders that are whole or absent, and digests of what is in them.

A folder is written under a temporary name, fsynced, then renamed. Files are 0644, folders 0755,
there are no links.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import InputRefusedError, MissingError

_CHUNK_BYTES = 1 << 20
_MOST_JSON_BYTES = 256 << 20
_RENAME_EXCHANGE = 2  # linux/fs.h: swap two paths atomically
_AT_FDCWD = -100


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of one file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below `folder`, sorted.

    Raises InputRefusedError for a symbolic link or a special file: nothing edgetune writes
    or trusts contains one.
    """
    found: list[str] = []
    for root, names, files in os.walk(folder):
        names.sort()
        for name in [*names, *files]:
            path = Path(root) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                msg = f"{path}: a link or special file has no place in this folder"
                raise InputRefusedError(msg, "replace it by the file it points to")
        found.extend((Path(root) / name).relative_to(folder).as_posix() for name in files)
    return sorted(found)


def digests_of_folder(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """{relative path: SHA-256} of all files below `folder`; `without` names top-level entries."""
    skip = set(without)
    return {
        name: sha256_of_file(folder / name)
        for name in list_files(folder)
        if name.split("/", 1)[0] not in skip
    }


def is_file(path: Path) -> bool:
    """As `Path.is_file`; False also for a name that no file can have (too long, a NUL byte)."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`; False also for a name that no folder can have, or that may not be seen."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_dir()
    return False


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, proved to lie inside `root` after links are resolved.

    Raises InputRefusedError when the path is absolute or escapes through `..` or a link.
    """
    joined = root / relative
    if Path(relative).is_absolute() or not joined.resolve().is_relative_to(root.resolve()):
        msg = f"{relative}: this path leads out of {root}"
        raise InputRefusedError(msg, "keep the files of a checkpoint in its own folder")
    return joined


def dump_json(value: Any) -> str:
    """JSON text as edgetune writes it: indented, keys in order of insertion, newline at the end.

    Raises ValueError for NaN and infinities: no report may carry one.
    """
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises InputRefusedError when it is missing or not JSON."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            msg = f"more than {_MOST_JSON_BYTES >> 20} MiB"
            raise ValueError(msg)
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():
            # half of a surrogate pair is legal in JSON and in no other place that text goes to
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        msg = f"{path}: no such file"
    except OSError as why:
        msg = f"{path}: cannot be read ({why.strerror})"
    except (ValueError, RecursionError) as why:
        msg = f"{path}: not valid JSON ({why})"
    else:
        return value
    raise InputRefusedError(msg, "copy the file again from where it came from")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle_folder(folder: Path) -> None:
    """Give everything below `folder` the modes 0644 and 0755 and make it durable."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root) / name
            path.chmod(0o644)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        Path(root).chmod(0o755)
        fsync_folder(Path(root))


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` at `place`; whoever looks sees the old one or the new one, whole.

    Where the system can swap two names at once (Linux renameat2) there is no moment without a
    folder at `place`; elsewhere the old one is moved aside first.
    """
    if not place.exists():
        new.rename(place)
    elif _exchange(new, place):
        shutil.rmtree(new)
    else:
        aside = place.with_name(f".{place.name}.old-{os.getpid()}")
        place.rename(aside)
        new.rename(place)
        shutil.rmtree(aside)
    fsync_folder(place.parent)


def _exchange(one: Path, other: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return bool(done == 0)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content (links followed, modes not kept); never a hard or symbolic link.

    onnx refuses external data with more than one hard link, so a copy it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def need_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise MissingError when the disk of `folder` has less than `needed_bytes` free."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        msg = (
            f"{what} needs about {needed_bytes / 1e9:.2f} GB on the disk of {folder}, "
            f"{free / 1e9:.2f} GB are free"
        )
        raise MissingError(msg, "free some space, or name another output folder with -o")


def is_out_of_space(error: BaseException) -> bool:
    """True when the error, or one that caused it, says that the disk or a quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def shipped_folder(name: str) -> Path:
    """Where the shipped `recipes` or `devices` lie: in the wheel, else beside the sources."""
    here = Path(__file__).resolve().parent
    for folder in (here / name, here.parent / name):
        if folder.is_dir():
            return folder
    msg = f"the shipped folder {name!r} is missing from this installation"
    raise MissingError(msg, "install edgetune again")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ between two flat mappings, sorted."""
    return sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
