"""Which baseline a report is compared with, and whether the two can be compared at all.

Two reports are comparable when they answer the same questions: the same recipe and the same
reference (the self-test's digest). Anything else is refused by name, never compared halfway. Times
are compared only on the same machine with the same number of threads; where those differ the
accuracy still is, and the times are "not measured".
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.errors import UsageError
from edgetune.report.collect import Found
from edgetune.report.schema import Report

_INPUTS = {
    "recipe": (
        "recipes differ",
        "compare builds of one recipe; after a change of the recipe itself make a new baseline",
    ),
    "self_test": (
        "references differ",
        "keep OUT/steps between builds, so that both are measured against one reference step",
    ),
}


def match_baselines(reports: Sequence[Found], baselines: Sequence[Found]) -> list[Found]:
    """The baseline of each report: the one with its identifier, else with its recipe and device.

    Raises UsageError that lists each report without one, with several, or with one of another
    recipe or reference.
    """
    problems: list[str] = []
    hints: list[str] = []
    matched: list[Found] = []
    for found in reports:
        candidates = _candidates(found.report, baselines)
        if len(candidates) == 1:
            baseline = candidates[0]
            matched.append(baseline)
            for key, (what, hint) in _INPUTS.items():
                own, old = (f.report.inputs.get(key) for f in (found, baseline))
                if own is None or own != old:
                    problems.append(
                        f"{found.path} and {baseline.path} cannot be compared: their {what} "
                        f"({_short(own)}, {_short(old)})"
                    )
                    hints.append(hint)
        elif candidates:
            names = ", ".join(str(c.path) for c in candidates)
            problems.append(f"{found.path}: several baselines fit: {names}")
            hints.append("name the one baseline that is meant")
        else:
            known = ", ".join(sorted({b.report.identifier for b in baselines}))
            problems.append(
                f"{found.path}: no baseline for {found.report.identifier} (there are: {known})"
            )
            hints.append("compare a report with one of the same recipe and device")
    if problems:
        raise UsageError("\n".join(problems), hints[0])
    return matched


def why_no_times(new: Report, old: Report) -> str | None:
    """Why the two reports' times cannot be compared; null when they can."""
    for what, report in (("this report", new), ("the baseline", old)):
        if report.latency.candidate is None:
            return f"{what} has no latency: {report.latency.reason or 'no reason was given'}"
    one, other = new.environment, old.environment
    if one.fingerprint != other.fingerprint:
        return (
            f"the baseline was measured on another machine ({other.fingerprint}, "
            f"this one is {one.fingerprint})"
        )
    for what in ("threads", "prompt_tokens", "new_tokens"):
        both = [_latency_fact(report, what) for report in (new, old)]
        if both[0] != both[1]:
            return f"the baseline was measured with {what} {both[1]}, this report with {both[0]}"
    return None


def why_no_reference(new: Report, old: Report) -> str | None:
    """Why the unconverted model's times are no common measure of the two runs; null if they are."""
    if new.latency.reference is None or old.latency.reference is None:
        return "one of the reports has no times of the unconverted model"
    one, other = (r.latency.reference.model_extra or {} for r in (new, old) if r.latency.reference)
    if one.get("dtype") != other.get("dtype"):
        return f"the unconverted model ran in {other.get('dtype')}, then in {one.get('dtype')}"
    versions = [report.environment.versions.get("torch") for report in (new, old)]
    if versions[0] != versions[1]:
        return f"the unconverted model ran in torch {versions[1]}, then in {versions[0]}"
    return None


def notes_on(found: Found, baseline: Found) -> list[str]:
    """What a reader should know of this pair that hinders nothing."""
    notes = []
    if baseline.digest == found.digest:
        notes.append("the baseline is this very report")
    versions = [f.report.environment.versions.get("edgetune") for f in (found, baseline)]
    if versions[0] != versions[1]:
        notes.append(
            f"the baseline was made by edgetune {versions[1]}, this report by {versions[0]}"
        )
    if found.report.variant != baseline.report.variant:
        notes.append(
            f"the baseline is of the variant {baseline.report.variant}, this report of "
            f"{found.report.variant}"
        )
    return notes


def _candidates(report: Report, baselines: Sequence[Found]) -> list[Found]:
    by_name = [b for b in baselines if b.report.identifier == report.identifier]
    chosen = by_name or [
        b
        for b in baselines
        if b.report.device == report.device
        and b.report.inputs.get("recipe") is not None
        and b.report.inputs.get("recipe") == report.inputs.get("recipe")
    ]
    # Of several reports of one build the one from this machine is meant, if there is one.
    here = [b for b in chosen if b.report.environment.fingerprint == report.environment.fingerprint]
    return here if len(chosen) > 1 and here else chosen


def _latency_fact(report: Report, name: str) -> object:
    if name == "threads":
        return report.environment.threads
    return (report.latency.model_extra or {}).get(name)


def _short(digest: str | None) -> str:
    return "none given" if digest is None else f"{digest[:12]}"
