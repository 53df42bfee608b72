"""A finished report into a package's `reports/`: JSON for machines, two forms for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.files import dump_json, write_text
from edgetune.report.make import write_verdicts
from edgetune.report.markdown import to_markdown
from edgetune.report.page.page import to_page
from edgetune.report.schema import Report, load_report, parse_report


def publish_report(
    report_file: Path,
    folder: Path,
    steps: Sequence[Mapping[str, Any]] | None = None,
    allocation: Mapping[str, Any] | None = None,
) -> tuple[Path, str]:
    """Write `<device>.json`, `.md` and `.html` into `folder`; returns the JSON's path and the
    verdict, judged anew.

    `steps`: what each step of the build cost, put into the report; `allocation`: how the widths
    were chosen, where they were. Raises InputRefusedError when
    the report is unfit.
    """
    report = load_report(report_file)
    if steps is not None:
        report = _with(report, steps=[dict(step) for step in steps])
    if allocation is not None:
        report = _with(report, allocation=dict(allocation))
    value = write_verdicts(report)
    place = folder / f"{report.device}.json"
    write_text(place, dump_json(value))
    write_text(place.with_suffix(".md"), to_markdown(value))
    write_text(place.with_suffix(".html"), to_page(value))
    return place, str(value["verdict"])


def _with(report: Report, **more: Any) -> Report:
    return parse_report({**report.model_dump(mode="json"), **more})
