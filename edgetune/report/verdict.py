"""The one function that judges. Pure: a report goes in, verdicts come out; nothing stored is
believed but values, bounds and limits.

Each check compares a figure with its limit, and knows which side is bad. `low` and `high` are
one-sided 95 % bounds, so a decision on either side is wrong at most once in twenty times.

* pass: the figure is within the limit, and so is its bound on the bad side (non-inferiority: "not
  significantly worse" is no pass).
* fail: the figure violates the limit, and so does its bound on the good side. A figure that lies
  outside its own bounds (an edited report) fails by itself.
* inconclusive: the limit lies between the bounds, or fewer than five items were measured. What
  noise hides is never passed.

Figures over the given items, such as the mean KL, come out the same every time; they still have
bounds, for the items are a sample of what the model will be asked, and a claim about the model has
to hold for the next sample too. Counts and sizes (tokenizer mismatches, bytes) are compared as
they are.

A null figure is "not measured": it counts only where the check is required. The whole: any fail →
fail; else any inconclusive, or a required check not measured → inconclusive; else, when nothing was
measured → inconclusive; else pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgetune.errors import InputRefusedError
from edgetune.report.schema import CheckVerdict, Interval, Report, Verdict

# With five items that all lie on one side the chance of that by accident is 1/32 < 5 %.
FEWEST_ITEMS = 5
DROP = "_drop"
# The same check over the figures from an emulated processor.
EMULATED = "emulated_"

Bad = Literal["above", "below"]


@dataclass(frozen=True)
class Judged:
    """One check, judged: the figure as found in the report, and what it means."""

    name: str
    bad: Bad
    figure: Interval | None
    limit: float
    verdict: CheckVerdict
    required: bool
    reason: str | None


@dataclass(frozen=True)
class Judgement:
    """The verdict over a report and over each of its checks, in their order."""

    verdict: Verdict
    checks: tuple[Judged, ...]

    def of(self, name: str) -> Judged | None:
        """The check of this name, null when the report has none."""
        return next((check for check in self.checks if check.name == name), None)


def judge(report: Report) -> Judgement:
    """Judge a report. Raises InputRefusedError for a check that this edgetune does not know: what
    cannot be recomputed cannot be passed."""
    checks = tuple(
        _judge_check(report, check.name, check.limit, check.required, check.reason)
        for check in report.checks
    )
    verdicts = [check.verdict for check in checks]
    missed = any(c.required and c.verdict == "not measured" for c in checks)
    measured = any(verdict != "not measured" for verdict in verdicts)
    if "fail" in verdicts:
        return Judgement("fail", checks)
    if "inconclusive" in verdicts or missed or not measured:
        return Judgement("inconclusive", checks)
    return Judgement("pass", checks)


def decide(figure: Interval, limit: float, bad: Bad) -> Literal["pass", "fail", "inconclusive"]:
    """One figure against its limit, as the module says."""
    sign = 1.0 if bad == "above" else -1.0
    value, line = sign * figure.value, sign * limit
    good, worst = sorted((sign * figure.low, sign * figure.high))
    if value <= line and worst <= line:
        return "pass"
    if good > line or (value > line and not good <= value <= worst):
        return "fail"
    return "inconclusive"


def bad_side(name: str) -> Bad:
    """On which side of its limit a check's figure is bad."""
    return (
        "below" if name.removeprefix(EMULATED) in ("retention", "decode_tokens_per_s") else "above"
    )


def _judge_check(
    report: Report, name: str, limit: float, required: bool, reason: str | None
) -> Judged:
    bad = bad_side(name)
    figure = figure_of(report, name)
    verdict: CheckVerdict
    if figure is None:
        verdict = "not measured"
    else:
        verdict, reason = decide(figure, limit, bad), None
        plain = name.removeprefix(EMULATED)
        sampled = plain in ("retention", "kl_mean") or plain.endswith(DROP)
        items = _items_of(report, name)
        if sampled and items < FEWEST_ITEMS and verdict != "fail":
            verdict = "inconclusive"
            reason = f"{items} items are too few, {FEWEST_ITEMS} are the least that can tell"
        elif verdict == "inconclusive":
            reason = "the limit lies between the bounds: measure more"
    return Judged(name, bad, figure, limit, verdict, required, reason)


def figure_of(report: Report, name: str) -> Interval | None:
    """The figure that a check is about, from the report's sections; null when not measured."""
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return None if emulated is None else figure_of(emulated, name.removeprefix(EMULATED))
    if name.endswith(DROP):
        metric = report.task_metrics.get(name.removesuffix(DROP))
        if metric is None:
            return None
        # What the package lost: reference − candidate.
        return Interval(value=-metric.difference, low=-metric.high, high=-metric.low)
    if name not in _FIGURES:
        msg = f"the report has a check {name!r} that this version of edgetune does not know"
        raise InputRefusedError(msg, "update edgetune, or make the report again")
    return _FIGURES[name](report)


def emulated_view(report: Report) -> Report | None:
    """The report as if the emulated processor had been the host; null when nothing ran there."""
    emulated = report.emulated
    if emulated is None or emulated.fidelity is None:
        return None
    tokenizer = emulated.tokenizer or report.tokenizer
    changed = {"fidelity": emulated.fidelity, "task_metrics": emulated.task_metrics}
    return report.model_copy(update={**changed, "tokenizer": tokenizer, "emulated": None})


def _items_of(report: Report, name: str) -> int:
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return 0 if emulated is None else _items_of(emulated, name.removeprefix(EMULATED))
    metric = report.task_metrics.get(name.removesuffix(DROP))
    return metric.n if metric is not None and name.endswith(DROP) else report.fidelity.items


def _exactly(value: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value, high=value)


def _of_candidate(key: str) -> Callable[[Report], Interval | None]:
    def figure(report: Report) -> Interval | None:
        side = report.latency.candidate
        if side is None:
            return None
        value: float | None = getattr(side, key)
        bounds = side.intervals.get(key)
        if value is None or bounds is None:
            return _exactly(value)
        return Interval(value=value, low=bounds.low, high=bounds.high)

    return figure


_FIGURES: dict[str, Callable[[Report], Interval | None]] = {
    "retention": lambda report: report.fidelity.retention,
    "kl_mean": lambda report: report.fidelity.kl_mean,
    "finite_outputs": lambda report: _exactly(float(report.fidelity.non_finite_positions)),
    "tokenizer_parity": lambda report: _exactly(float(report.tokenizer.mismatches)),
    "time_to_answer_ratio": lambda report: report.latency.ratio,
    "ttft_ms": _of_candidate("ttft_ms"),
    "decode_tokens_per_s": _of_candidate("decode_tokens_per_s"),
    "peak_rss_mb": _of_candidate("peak_rss_mb"),
    "package_bytes": lambda report: _exactly(float(report.size.package_bytes)),
}
