"""The gate: reports judged together, with their baselines; one verdict that everything shows.

Exit code, tables, JSON, JUnit, Markdown and annotations are all made from this `Outcome`, so none
can say what another does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.errors import InputRefusedError
from edgetune.report.baseline import match_baselines, notes_on
from edgetune.report.collect import Found
from edgetune.report.contradictions import contradictions, edited_verdicts
from edgetune.report.make import check_as_json
from edgetune.report.regression import Comparison, Margins, compare
from edgetune.report.schema import Report, Verdict
from edgetune.report.verdict import Judgement, judge

# Of several reports the first of these that one of them has.
_WORST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class Gated:
    """One report, judged. `title` tells it from the others."""

    found: Found
    title: str
    judgement: Judgement
    comparison: Comparison | None
    # Nothing that decides: edited verdicts, another version's baseline.
    notes: tuple[str, ...]

    @property
    def report(self) -> Report:
        """The report itself."""
        return self.found.report


@dataclass(frozen=True)
class Outcome:
    """All reports and the verdict over them."""

    verdict: Verdict
    gated: tuple[Gated, ...]

    def as_json(self) -> dict[str, Any]:
        """`edgetune gate --json`: the verdict, every check with its report, and each report."""
        return {
            "verdict": self.verdict,
            "checks": [
                {"report": one.title, **check_as_json(check)}
                for one in self.gated
                for check in one.judgement.checks
            ],
            "reports": [_as_json(one) for one in self.gated],
        }


def gate_reports(
    reports: Sequence[Found], baselines: Sequence[Found] | None, margins: Margins
) -> Outcome:
    """Judge reports, each against its baseline where some are given.

    Raises UsageError for reports that cannot be compared, InputRefusedError for one with a check
    that is not known, or one that would pass with figures that contradict each other.
    """
    matched: Sequence[Found | None] = (
        [None] * len(reports) if baselines is None else match_baselines(reports, baselines)
    )
    titles = _titles(reports)
    gated = tuple(
        _gate(found, title, baseline, margins)
        for found, title, baseline in zip(reports, titles, matched, strict=True)
    )
    verdicts = {one.judgement.verdict for one in gated}
    # Nothing to judge is nothing passed.
    verdict: Verdict = next((v for v in _WORST if v in verdicts), "inconclusive")
    return Outcome(verdict, gated)


def _gate(found: Found, title: str, baseline: Found | None, margins: Margins) -> Gated:
    comparison = None if baseline is None else compare(found, baseline, margins)
    judgement = judge(found.report, comparison.questions if comparison else ())
    notes = [f"{found.path}: {text}: edited by hand?" for text in edited_verdicts(found.report)]
    if baseline is not None:
        notes += notes_on(found, baseline)
        if (verdict := judge(baseline.report).verdict) != "pass":
            notes.append(f"the baseline's own verdict is {verdict}")
    for entry in (found, baseline):
        against_itself = contradictions(entry.report) if entry else []
        if entry and against_itself and judgement.verdict == "pass":
            msg = f"{entry.path}: it contradicts itself: {'; '.join(against_itself[:5])}"
            hint = "a report edited by hand can fail and never passes: make it again"
            raise InputRefusedError(msg, hint)
        notes += [f"{entry.path}: contradicts itself: {text}" for text in against_itself if entry]
    return Gated(found, title, judgement, comparison, tuple(notes))


def _titles(reports: Sequence[Found]) -> list[str]:
    """Each report's identifier; with its path where two share one."""
    names = [found.report.identifier for found in reports]
    return [
        name if names.count(name) == 1 else f"{name} ({found.path})"
        for name, found in zip(names, reports, strict=True)
    ]


def _as_json(one: Gated) -> dict[str, Any]:
    report, comparison = one.report, one.comparison
    return {
        "path": str(one.found.path),
        "identifier": report.identifier,
        "device": report.device,
        "variant": report.variant,
        "package_digest": report.package_digest,
        "verdict": one.judgement.verdict,
        "checks": [check_as_json(check) for check in one.judgement.checks],
        "flips": dict(report.fidelity.flips),
        "baseline": None if comparison is None else _baseline_as_json(comparison),
        "notes": list(one.notes),
    }


def _baseline_as_json(comparison: Comparison) -> dict[str, Any]:
    baseline = comparison.baseline
    return {
        "path": str(baseline.path),
        "identifier": baseline.report.identifier,
        "variant": baseline.report.variant,
        "package_digest": baseline.report.package_digest,
        "fingerprint": baseline.report.environment.fingerprint,
        "flips": comparison.flips,
    }
