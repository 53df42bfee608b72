"""Reading a report: whatever a file holds, it is a report or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgetune.errors import InputRefusedError
from edgetune.files import is_file, is_folder
from edgetune.report.plain import SCHEMA_VERSION, not_finite
from edgetune.report.schema.whole import Report

_MOST_BYTES = 64 << 20


def parse_report(value: Mapping[str, Any], where: str = "report") -> Report:
    """A report from its JSON value. Raises InputRefusedError naming what is unfit."""
    if (place := not_finite(value, "")) is not None:
        msg = f"{where}: {place} is not a finite number"
        raise InputRefusedError(msg, "measure again: no figure of a report may be NaN or infinite")
    version = value.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        msg = f"{where}: schema_version is {version!r}, this edgetune reads {SCHEMA_VERSION}"
        hint = "use the edgetune that made the report, or make it again with this one"
        raise InputRefusedError(msg, hint)
    try:
        report = Report.model_validate(value)
    except ValidationError as why:
        error = why.errors()[0]
        place = ".".join(str(part) for part in error["loc"])
        msg = f"{where}: {place}: {error['msg'][:1].lower()}{error['msg'][1:]}"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why
    names = [check.name for check in report.checks]
    if len(set(names)) < len(names):
        msg = f"{where}: a check is listed twice"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`")
    return report


def load_report(path: Path) -> Report:
    """Read a report file. Raises InputRefusedError: missing, no regular file, not JSON, keys
    missing or listed twice, wrong types, a number that is not finite."""
    if not is_file(path):
        what = "a folder, not a report" if is_folder(path) else "no such file"
        msg = f"{path}: {what}"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json")
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"more than {_MOST_BYTES >> 20} MiB, no report is that large"
            raise ValueError(msg)
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\ud" in text.lower():
            # half of a surrogate pair is legal in JSON and in no place that a report is shown in
            json.dumps(value, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as why:
        msg = f"{path}: not a JSON document ({why})"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why
    if not isinstance(value, dict):
        msg = f"{path}: not a report, the document is no object"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json")
    try:
        return parse_report(value, str(path))
    except RecursionError as why:
        msg = f"{path}: nested too deep, no report is"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        msg = "a key is listed twice"
        raise ValueError(msg)
    return value
