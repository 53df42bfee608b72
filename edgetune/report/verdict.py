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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgetune.report.questions import EMULATED, Figure, Question, question_of

if TYPE_CHECKING:
    # A package judges itself where pydantic is not installed (`report.plain`).
    from edgetune.report.schema import CheckVerdict, Report, Verdict

# The 95 % quantile of the standard normal distribution.
_Z = 1.6448536269514722
# More items than anyone will gather: the figure lies on its limit.
_MOST_ITEMS = 1_000_000

Bad = Literal["above", "below"]


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
    questions = [*(question_of(report, check) for check in report.checks), *regressions]
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
