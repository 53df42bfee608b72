"""A package's files on the far side, by digest: what is there stays, the rest is sent.

A file that did not arrive whole is continued by the next run (sftp's `reput`), and proved by its
digest before it takes its place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune.checksums import SHA256SUMS, checksums_of
from edgetune.errors import MissingError
from edgetune.remote.address import Address
from edgetune.remote.ssh import BrokenLinkError, ask, copy, quoted

Files = Mapping[str, tuple[str, int]]
# For what the check itself writes there: its report, the libraries' temporary files.
_ROOM_BYTES = 2_000_000


def files_of(package: Path, digest: str) -> Files:
    """{name: (digest, bytes)} of all that ships, the list of checksums itself too."""
    digests = {**checksums_of(package), SHA256SUMS: digest}
    return {name: (own, (package / name).stat().st_size) for name, own in digests.items()}


def folder_name(package_name: str) -> str:
    """The package's folder there, on any file system."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", package_name)[:60]
    if safe == package_name:
        return safe
    return f"{safe}-{hashlib.sha256(package_name.encode()).hexdigest()[:8]}"


def send(
    address: Address,
    python: str,
    package: Path,
    job: Mapping[str, Any],
    found: Mapping[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Send what the far side lacks, and put it in its place.

    `job`: {name, files} for `far_side`; `found`: its answer to "look". Raises MissingError: no
    space there, or files that arrive damaged twice; BrokenLinkError: it broke, and what arrived is
    kept.
    """
    files: Files = job["files"]
    for attempt in (1, 2):
        tell(_plan_in_words(files, found))
        _send_once(address, python, package, job, found)
        damaged = ask(address, python, {**job, "do": "place"})["damaged"]
        if not damaged:
            return
        tell(f"{len(damaged)} files arrived damaged, once more")
        found = ask(address, python, {**job, "do": "look"})
        if attempt == 2:
            break
    msg = f"{address}: {len(damaged)} files arrived damaged, twice"
    raise MissingError(msg, "check the disk and the memory of both machines")


def missing_bytes(files: Files, found: Mapping[str, Any]) -> int:
    """How many bytes are still to be sent."""
    sizes = {files[name][0]: files[name][1] for name in found["lacking"]}
    return sum(max(0, size - found["arrived"].get(own, 0)) for own, size in sizes.items())


def _send_once(
    address: Address,
    python: str,
    package: Path,
    job: Mapping[str, Any],
    found: Mapping[str, Any],
) -> None:
    files: Files = job["files"]
    missing = missing_bytes(files, found)
    if missing + _ROOM_BYTES > found["free_bytes"]:
        raise _no_space(address, missing, found)
    lines = list(_lines(files, found))
    if not lines:
        return
    said = copy(address, lines, package)
    if said is None:
        return
    try:
        now = ask(address, python, {**job, "do": "look"})
    except BrokenLinkError:
        now = None
    if now is not None and missing_bytes(files, now) + _ROOM_BYTES > now["free_bytes"]:
        raise _no_space(address, missing_bytes(files, now), now)
    arrived = "" if now is None else f" after {megabytes(missing - missing_bytes(files, now))} of"
    total = f"{arrived} {megabytes(missing)}" if arrived else f" before all {megabytes(missing)}"
    msg = f"{address}: the transfer broke{total}: {said}"
    raise BrokenLinkError(msg, "run the same command again: it goes on from there")


def _lines(files: Files, found: Mapping[str, Any]) -> Iterator[str]:
    """sftp's lines; small files first, the graph's weights last."""
    names = {files[name][0]: name for name in found["lacking"]}
    for digest, name in sorted(names.items(), key=lambda own: (files[own[1]][1], own[1])):
        size, arrived = files[name][1], found["arrived"].get(digest)
        if arrived == size:
            continue
        # Continued from where it ended; one that is longer than it should be is sent anew.
        verb = "reput" if arrived and arrived < size else "put"
        yield f"{verb} {quoted(name)} {quoted(found['root'] + '/parts/' + digest)}"


def _plan_in_words(files: Files, found: Mapping[str, Any]) -> str:
    missing = missing_bytes(files, found)
    total = sum(size for _, size in files.values())
    text = f"{len(found['lacking'])} of {len(files)} files, {megabytes(missing)} to send"
    if found["arrived"]:
        text += " (an earlier transfer is continued)"
    return f"{text}; the package has {megabytes(total)}"


def _no_space(address: Address, missing: int, found: Mapping[str, Any]) -> MissingError:
    msg = f"{address}: no space there: {megabytes(missing)} are to be sent to {found['root']}, "
    msg += f"{megabytes(found['free_bytes'])} are free"
    return MissingError(msg, "free some space there and run the same command again")


def megabytes(count: int) -> str:
    """`4.1 MB` (10**6 bytes)."""
    return f"{count / 1e6:.1f} MB"
