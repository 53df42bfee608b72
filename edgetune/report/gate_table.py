"""The gate's outcome for a terminal: the comparison with a baseline, and the lines below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.report.gate import Gated, Outcome
from edgetune.report.terminal import Row, summary_lines
from edgetune.report.words import bounds, flips_in_words

BASELINE_COLUMNS = ("since the baseline", "baseline", "package", "difference", "limit", "verdict")
SELF_TEST_COLUMNS = ("case", "measured", "bounds", "limit", "expected", "verdict")


def baseline_rows(one: Gated) -> list[Row]:
    """The rows under BASELINE_COLUMNS; none without a baseline."""
    if one.comparison is None:
        return []
    found: list[Row] = []
    for row in one.comparison.rows:
        check = one.judgement.of(row.check)
        verdict = check.verdict if check else ""
        found.append((row.label, row.baseline, row.package, row.difference, row.limit, verdict))
    return found


def gate_lines(one: Gated) -> list[str]:
    """What stands below a gated report's tables: its summary, the baseline, the notes."""
    lines = summary_lines(one.report, one.judgement)
    if one.comparison is not None:
        baseline = one.comparison.baseline
        lines.append(f"baseline {baseline.path}, package {baseline.report.package_digest[:16]}")
        if one.comparison.flips is not None:
            lines.append(f"flips    since the baseline {flips_in_words(one.comparison.flips)}")
    return lines


def outcome_line(outcome: Outcome) -> str:
    """The gate's verdict over all reports, in one line."""
    verdicts = [one.judgement.verdict for one in outcome.gated]
    parts = [f"{verdicts.count(v)} {v}" for v in ("fail", "inconclusive", "pass") if v in verdicts]
    reports = "1 report" if len(verdicts) == 1 else f"{len(verdicts)} reports"
    return f"gate     {outcome.verdict}: {reports}, {', '.join(parts)}"


def self_test_rows(checks: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows under SELF_TEST_COLUMNS; the last cell says whether an outcome is as expected."""
    found: list[Row] = []
    for check in checks:
        keys = ("value", "low", "high", "limit")
        value, low, high, limit = (_figure(check[key]) for key in keys)
        between = bounds(low, high) if low and high else ""
        verdict = check["verdict"] if check["as_expected"] else f"{check['verdict']} (unexpected)"
        found.append((str(check["name"]), value, between, limit, str(check["expected"]), verdict))
    return found


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.4g}".replace("-", "−")
