"""A report made from its measured sections: judged, and checked against its own form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgetune.errors import InputRefusedError
from edgetune.report.plain import SCHEMA_VERSION, as_report, not_finite
from edgetune.report.verdict import Judged, Judgement, judge

if TYPE_CHECKING:
    from edgetune.report.schema import Report


def finish_report(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its verdicts. `sections` has every key but `schema_version` and `verdict`;
    its checks have name, limit, required, reason. Raises InputRefusedError when a section is unfit,
    above all when a figure is not finite.
    """
    from edgetune.report.schema import parse_report

    return write_verdicts(parse_report(_draft(sections)))


def finish_on_device(sections: Mapping[str, Any]) -> dict[str, Any]:
    """As `finish_report`, judged by the same function, where the schema's library is not: of the
    report's form only this is proved, that every figure is finite."""
    draft = _draft(sections)
    if (place := not_finite(draft, "")) is not None:
        msg = f"report: {place} is not a finite number"
        raise InputRefusedError(msg, "measure again: no figure of a report may be NaN or infinite")
    return {**draft, **_verdicts(judge(as_report(draft)))}


def _draft(sections: Mapping[str, Any]) -> dict[str, Any]:
    undecided = [
        {"name": c["name"], "value": None, "limit": c["limit"], "verdict": "not measured",
         "required": c.get("required", False), "reason": c.get("reason")}
        for c in sections["checks"]
    ]  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        **sections,
        "verdict": "inconclusive",
        "checks": undecided,
    }


def write_verdicts(report: Report) -> dict[str, Any]:
    """The report's JSON value with the verdicts that `judge` gives now."""
    judgement = judge(report)
    return {**report.model_dump(mode="json"), **_verdicts(judgement)}


def _verdicts(judgement: Judgement) -> dict[str, Any]:
    return {
        "verdict": judgement.verdict,
        "checks": [check_as_json(check) for check in judgement.checks],
    }


def check_as_json(check: Judged) -> dict[str, Any]:
    """A judged check as a report carries it."""
    figure = check.figure
    return {
        "name": check.name,
        "value": figure.value if figure else None,
        "low": figure.low if figure else None,
        "high": figure.high if figure else None,
        "limit": check.limit,
        "verdict": check.verdict,
        "required": check.required,
        "reason": check.reason,
    }
