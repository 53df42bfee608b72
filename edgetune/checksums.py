"""`SHA256SUMS` of a package, in the format of `sha256sum -c`: all files but itself and `reports/`.

The package's digest is the SHA-256 of that file. Standard library only: runtime and package both
use it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from edgetune.errors import InputRefusedError
from edgetune.files import (
    digest_of_json,
    digests_of_folder,
    list_files,
    sha256_of_file,
    write_text,
)

SHA256SUMS = "SHA256SUMS"
# Written after the package, on each device it is validated on.
REPORTS = "reports"
# The program in `self_test/` that checks the package on a device.
SELF_TEST_APP = "run.pyz"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\r\\]+)")
_AGAIN = "copy the package again from where it came from, or build it again"


def write_checksums(folder: Path) -> str:
    """Write `SHA256SUMS` of a folder, paths sorted; returns the package digest.

    Raises InputRefusedError for a link, or a name that sha256sum would have to escape.
    """
    lines: list[str] = []
    for name in _covered(folder):
        if not _LINE.fullmatch(f"{'0' * 64}  {name}"):
            msg = f"{folder}: the file name {name!r} cannot be listed in {SHA256SUMS}"
            raise InputRefusedError(msg, "rename it: no line breaks and no backslashes")
        lines.append(f"{sha256_of_file(folder / name)}  {name}\n")
    text = "".join(lines)
    write_text(folder / SHA256SUMS, text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify_checksums(folder: Path) -> str:
    """Check every file of a package against its `SHA256SUMS`; returns the package digest.

    Raises InputRefusedError naming what is changed, missing or extra.
    """
    text = _read(folder)
    listed = _parse(folder / SHA256SUMS, text)
    present = set(_covered(folder))
    # Compared as sets of names first: a listed path that leads elsewhere is never opened.
    found = [("missing", name) for name in listed if name not in present]
    found += [("not in its list", name) for name in present if name not in listed]
    found += [
        ("changed", name)
        for name in sorted(present & listed.keys())
        if sha256_of_file(folder / name) != listed[name]
    ]
    if found:
        shown = "; ".join(
            f"{name} ({what})" for what, name in sorted(found, key=lambda f: f[1])[:5]
        )
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        msg = f"{folder}: not the package that was built: {shown}{more}"
        raise InputRefusedError(msg, _AGAIN)
    return hashlib.sha256(text.encode()).hexdigest()


def checksums_of(folder: Path) -> dict[str, str]:
    """{relative path: SHA-256} as a package's `SHA256SUMS` lists them; the files are not read.

    Raises InputRefusedError when there is no readable list.
    """
    return _parse(folder / SHA256SUMS, _read(folder))


def self_test_digest(folder: Path) -> str:
    """Digest of a self-test's data, by which reports are comparable; the program that runs it is
    another in every version of edgetune."""
    return digest_of_json(digests_of_folder(folder, without=(SELF_TEST_APP,)))


def _read(folder: Path) -> str:
    try:
        return (folder / SHA256SUMS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as why:
        msg = f"{folder}: no readable {SHA256SUMS}, so nothing proves that it is whole"
        raise InputRefusedError(msg, _AGAIN) from why


def _covered(folder: Path) -> list[str]:
    return [
        name
        for name in list_files(folder)
        if name != SHA256SUMS and name.split("/", 1)[0] != REPORTS
    ]


def _parse(sums: Path, text: str) -> dict[str, str]:
    listed: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in listed:
            what = "is no checksum line" if match is None else f"lists {match[2]} again"
            msg = f"{sums}:{number}: {what}"
            raise InputRefusedError(msg, _AGAIN)
        listed[match[2]] = match[1]
    if not listed or not text.endswith("\n"):
        msg = f"{sums}: cut short"
        raise InputRefusedError(msg, _AGAIN)
    return listed
