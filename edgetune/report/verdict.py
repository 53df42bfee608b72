"""The one function that judges. Pure: a report goes in, verdicts come out; nothing stored is
believed but values, bounds and limits.

Each check compares a figure with its limit, and knows which side is bad. `low` and `high` are
one-sided 95 % bounds, so a decision on either side is wrong at most once in twenty times.

* pass: the figure is within the limit, and so is its bound on the bad side (non-inferiority: "not
  significantly worse" is no pass).
* fail: the figure violates the limit, and so does its bound on the good side. A figure that lies
  outside its own bounds (an edited report) fails by itself.
* inconclusive: the limit lies between the bounds, or fewer than five items were measured. What
  noise hides is never passed. The reason says how many items would decide.

Figures over the given items, such as the mean KL, come out the same every time; they still have
bounds, for the items are a sample of what the model will be asked, and a claim about the model has
to hold for the next sample too. Counts and sizes (tokenizer mismatches, bytes) are compared as
they are.

A null figure is "not measured": it counts only where the check is required. The whole: any fail →
fail; else any inconclusive, or a required check not measured → inconclusive; else, when nothing was
measured → inconclusive; else pass.

Against a baseline the gate asks further questions (`baseline.py` finds their figures): they are
judged here too, by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from edgetune.errors import InputRefusedError
from edgetune.report.long_context import fewest_positions, largest_kl, non_finite

if TYPE_CHECKING:
    # A package judges itself where pydantic is not installed (`report.plain`).
    from edgetune.report.schema import Check, CheckVerdict, Report, Verdict

# With five items that all lie on one side the chance of that by accident is 1/32 < 5 %.
FEWEST_ITEMS = 5
DROP = "_drop"
# The same check over the figures from an emulated processor.
EMULATED = "emulated_"
# KL on texts longer than those of the self-test.
LONG_CONTEXT = "long_context_kl"
# With five blocks of four positions, which depend on each other, the same.
FEWEST_POSITIONS = 4 * FEWEST_ITEMS
# A check against a baseline.
REGRESSION = "_regression"
# The 95 % quantile of the standard normal distribution.
_Z = 1.6448536269514722
# More items than anyone will gather: the figure lies on its limit.
_MOST_ITEMS = 1_000_000

Bad = Literal["above", "below"]


class Figure(Protocol):
    """An estimate with its bounds: a report's own, or one that was made from its figures."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class _Made(NamedTuple):
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Question:
    """A figure to be judged. `samples`: how many `unit` it was taken from, null for a count;
    `changed`: how many of them differ between the two sides, for a difference of proportions."""

    name: str
    figure: Figure | None
    limit: float
    required: bool = False
    reason: str | None = None
    samples: int | None = None
    fewest: int = FEWEST_ITEMS
    unit: Literal["items", "rounds", "positions"] = "items"
    changed: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Judged:
    """One check, judged: the figure as found in the report, and what it means."""

    name: str
    bad: Bad
    figure: Figure | None
    limit: float
    verdict: CheckVerdict
    required: bool
    reason: str | None
    # The figure in words, where only who found it knows them.
    words: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict over a report and over each of its checks, in their order."""

    verdict: Verdict
    checks: tuple[Judged, ...]

    def of(self, name: str) -> Judged | None:
        """The check of this name, null when the report has none."""
        return next((check for check in self.checks if check.name == name), None)


def judge(report: Report, regressions: Sequence[Question] = ()) -> Judgement:
    """Judge a report, and what a comparison with a baseline asks of it. Raises InputRefusedError
    for a check that this edgetune does not know: what cannot be recomputed cannot be passed."""
    questions = [*(_question(report, check) for check in report.checks), *regressions]
    checks = tuple(_judge_question(question) for question in questions)
    verdicts = [check.verdict for check in checks]
    missed = any(c.required and c.verdict == "not measured" for c in checks)
    measured = any(verdict != "not measured" for verdict in verdicts)
    if "fail" in verdicts:
        return Judgement("fail", checks)
    if "inconclusive" in verdicts or missed or not measured:
        return Judgement("inconclusive", checks)
    return Judgement("pass", checks)


def decide(figure: Figure, limit: float, bad: Bad) -> Literal["pass", "fail", "inconclusive"]:
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


def _question(report: Report, check: Check) -> Question:
    plain = check.name.removeprefix(EMULATED)
    if plain == LONG_CONTEXT:
        return Question(
            check.name,
            figure_of(report, check.name),
            check.limit,
            check.required,
            check.reason,
            samples=fewest_positions(report.long_context),
            fewest=FEWEST_POSITIONS,
            unit="positions",
        )
    sampled = plain in ("retention", "kl_mean") or plain.endswith(DROP)
    return Question(
        check.name,
        figure_of(report, check.name),
        check.limit,
        check.required,
        check.reason,
        samples=_items_of(report, check.name) if sampled else None,
        changed=_changed_of(report, check.name) if plain.endswith(DROP) else None,
    )


def _judge_question(question: Question) -> Judged:
    name, figure, limit = question.name, question.figure, question.limit
    bad, reason = bad_side(name), question.reason
    verdict: CheckVerdict
    if figure is None:
        verdict = "not measured"
    else:
        verdict, reason = decide(figure, limit, bad), None
        samples, fewest = question.samples, question.fewest
        if samples is not None and samples < fewest and verdict != "fail":
            verdict = "inconclusive"
            reason = f"{samples} {question.unit} are too few, {fewest} are the least that can tell"
        elif verdict == "inconclusive":
            reason = f"the limit lies between the bounds: {_what_would_decide(question, figure)}"
    return Judged(name, bad, figure, limit, verdict, question.required, reason, question.words)


def _what_would_decide(question: Question, figure: Figure) -> str:
    if question.unit == "rounds":
        return "measure again on a quieter machine, both sides"
    if question.unit == "positions":
        return f"{question.samples} positions cannot tell; a finer scheme would"
    if question.samples is None:
        return "measure more"
    needed = items_needed(figure, question.limit, question.samples, question.changed)
    if needed is None:
        return f"{question.samples} items were measured, and the figure lies on the limit"
    return f"about {needed} items would decide, {question.samples} were measured"


def items_needed(figure: Figure, limit: float, items: int, changed: int | None) -> int | None:
    """How many items would bring the bound within the limit, or prove that the limit is missed,
    if they went on as these did; null for more than a million.

    A bound's distance shrinks with the square root of the number. A difference of proportions on
    the same items has besides a distance that shrinks with the number itself: where nothing
    changed it is z² / n (the rule of three's kin), so n solves gap · n − z √(share · n) − z² = 0
    with the share of items that changed.
    """
    gap = abs(limit - figure.value)
    # A wide bound on both sides of a limit: the farther one is to be drawn in.
    width = max(figure.high - figure.value, figure.value - figure.low)
    if gap <= 0:
        return None
    if changed is None:
        needed = items * (width / gap) ** 2
    else:
        spread = _Z * math.sqrt(min(1.0, changed / max(items, 1)))
        needed = ((spread + math.sqrt(spread**2 + 4 * gap * _Z**2)) / (2 * gap)) ** 2
    return math.ceil(max(needed, items + 1)) if needed <= _MOST_ITEMS else None


def figure_of(report: Report, name: str) -> Figure | None:
    """The figure that a check is about, from the report's sections; null when not measured."""
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return None if emulated is None else figure_of(emulated, name.removeprefix(EMULATED))
    if name.endswith(DROP):
        metric = report.task_metrics.get(name.removesuffix(DROP))
        if metric is None:
            return None
        # What the package lost: reference − candidate.
        lost = (0.0 - metric.difference, 0.0 - metric.high, 0.0 - metric.low)
        return _Made(*lost)
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
    # Long texts are not read there.
    without = {"emulated": None, "long_context": None}
    return report.model_copy(update={**changed, "tokenizer": tokenizer, **without})


def _items_of(report: Report, name: str) -> int:
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return 0 if emulated is None else _items_of(emulated, name.removeprefix(EMULATED))
    metric = report.task_metrics.get(name.removesuffix(DROP))
    return metric.n if metric is not None and name.endswith(DROP) else report.fidelity.items


def _changed_of(report: Report, name: str) -> int | None:
    """How many answers went from right to wrong or back; null where the metric has no such."""
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return None if emulated is None else _changed_of(emulated, name.removeprefix(EMULATED))
    metric = report.task_metrics.get(name.removesuffix(DROP))
    extra = (metric.model_extra if metric else None) or {}
    lost, gained = extra.get("lost"), extra.get("gained")
    return lost + gained if isinstance(lost, int) and isinstance(gained, int) else None


def _exactly(value: float | None) -> Figure | None:
    return None if value is None else _Made(value, value, value)


def _non_finite(report: Report) -> Figure | None:
    """How many outputs were not finite, on long texts too."""
    long = non_finite(report.long_context)
    return _exactly(float(report.fidelity.non_finite_positions + long))


def _long_context_kl(report: Report) -> Figure | None:
    largest = largest_kl(report.long_context)
    return None if largest is None else _Made(*largest)


def _of_candidate(key: str) -> Callable[[Report], Figure | None]:
    def figure(report: Report) -> Figure | None:
        side = report.latency.candidate
        if side is None:
            return None
        value: float | None = getattr(side, key)
        bounds = side.intervals.get(key)
        if value is None or bounds is None:
            return _exactly(value)
        return _Made(value, bounds.low, bounds.high)

    return figure


_FIGURES: dict[str, Callable[[Report], Figure | None]] = {
    "retention": lambda report: report.fidelity.retention,
    "kl_mean": lambda report: report.fidelity.kl_mean,
    "finite_outputs": _non_finite,
    LONG_CONTEXT: _long_context_kl,
    "tokenizer_parity": lambda report: _exactly(float(report.tokenizer.mismatches)),
    "time_to_answer_ratio": lambda report: report.latency.ratio,
    "ttft_ms": _of_candidate("ttft_ms"),
    "decode_tokens_per_s": _of_candidate("decode_tokens_per_s"),
    "peak_rss_mb": _of_candidate("peak_rss_mb"),
    "package_bytes": lambda report: _exactly(float(report.size.package_bytes)),
}
