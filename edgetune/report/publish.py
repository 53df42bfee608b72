"""Puts a finished report beside its package: JSON for machines, Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.files import dump_json, write_text
from edgetune.report.markdown import markdown
from edgetune.report.schema import load_report
from edgetune.report.verdict import judge


def publish_report(
    source: Path, folder: Path, steps: Sequence[Mapping[str, Any]]
) -> tuple[Path, str]:
    """Add the build's steps to the report in `source`, write `<device>.json` and `.md`.

    Returns the path of the JSON file and the verdict, computed anew from the report's values.
    """
    report: dict[str, Any] = load_report(source).model_dump(mode="json")
    report["steps"] = [dict(step) for step in steps]
    verdict = judge(report)
    report["verdict"] = verdict.verdict
    target = folder / f"{report['device']}.json"
    write_text(target, dump_json(report))
    write_text(target.with_suffix(".md"), markdown(report))
    return target, verdict.verdict
