"""Which reports a path means: a report file, a package, a folder of either; each read and checked.

A package is proved against its checksums first, and its reports against the package: a report of
other files, or of another recipe or self-test than the ones beside it, proves nothing of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune.checksums import REPORTS, SHA256SUMS, self_test_digest, verify_checksums
from edgetune.errors import InputRefusedError, UsageError
from edgetune.files import (
    digest_of_json,
    is_file,
    is_folder,
    read_json,
)
from edgetune.report.schema import Report, load_report

_PACKAGE_PARTS = (SHA256SUMS, "manifest.json", "edgetune.lock")
_AGAIN = "make the report again: edgetune validate PACKAGE -o report.json"


@dataclass(frozen=True)
class Found:
    """A report and the file it was read from."""

    path: Path
    report: Report
    # Of the file's bytes: what tells that two files are the same report.
    digest: str


def find_reports(places: Sequence[Path]) -> list[Found]:
    """The reports that `places` mean, in order, each file once.

    Raises InputRefusedError: a place without a report, a file that is none, a package that was
    changed or whose report is of another one; UsageError: the same report named twice.
    """
    found = [report for place in places for report in _reports_of(place)]
    seen: dict[str, Path] = {}
    for entry in found:
        other = seen.setdefault(entry.digest, entry.path)
        if other is not entry.path:
            same = other.resolve() == entry.path.resolve()
            both = f"{entry.path}" if same else f"{other} and {entry.path}"
            msg = f"{both}: the same report twice"
            raise UsageError(msg, "name each report once: a second copy is no second measurement")
    return found


def _reports_of(place: Path) -> Iterator[Found]:
    if not is_folder(place):
        yield _read(place)
    elif _is_package(place):
        yield from _reports_of_package(place)
    elif files := sorted(place.glob("*.json")):
        for file in files:
            yield _read(file)
    elif packages := [p for p in sorted(place.iterdir()) if is_folder(p) and _is_package(p)]:
        for package in packages:
            yield from _reports_of_package(package)
    else:
        msg = f"{place}: no report in this folder"
        hint = "name a report file, a package, or a folder that holds reports or packages"
        raise InputRefusedError(msg, hint)


def _is_package(folder: Path) -> bool:
    """Whether the folder says that it is a package; one with parts missing is one, and broken."""
    return any(is_file(folder / name) for name in _PACKAGE_PARTS)


def _reports_of_package(package: Path) -> Iterator[Found]:
    digest = verify_checksums(package)
    lock = read_json(package / "edgetune.lock")
    inputs = {
        "recipe": digest_of_json(lock.get("recipe") if isinstance(lock, Mapping) else None),
        "self_test": self_test_digest(package / "self_test"),
    }
    files = sorted((package / REPORTS).glob("*.json"))
    if not files:
        msg = f"{package}: this package has no report"
        raise InputRefusedError(msg, f"edgetune validate {package} -o report.json makes one")
    for file in files:
        found = _read(file)
        if found.report.package_digest != digest:
            msg = (
                f"{file}: a report of another package ({found.report.package_digest[:12]}…, "
                f"this one is {digest[:12]}…)"
            )
            raise InputRefusedError(msg, _AGAIN)
        told = found.report.inputs
        for key, own in inputs.items():
            # Measured on private data, the report's self-test is not the one that ships.
            shipped = told.get(f"shipped_{key}")
            if (told.get(key) if shipped is None else shipped) != own:
                msg = f"{file}: inputs.{key} is not the digest of this package's {key}"
                raise InputRefusedError(msg, _AGAIN)
        yield found


def _read(file: Path) -> Found:
    report = load_report(file)
    return Found(file, report, hashlib.sha256(file.read_bytes()).hexdigest())
