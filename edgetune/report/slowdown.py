"""How much longer an answer takes than the baseline's: two runs that share no round.

Where both runs have the unconverted model's times as well, taken in the same rounds, the package's
time is taken relative to it: what made a whole run slower (frequency, neighbours) cancels, and the
question is about that ratio. The package's own times are then shown and not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune import statistics
from edgetune.errors import InputRefusedError
from edgetune.report.baseline import why_no_reference, why_no_times
from edgetune.report.collect import Found
from edgetune.report.schema import Interval, LatencySide
from edgetune.report.verdict import REGRESSION, Question
from edgetune.report.words import Row, times

NAME = f"answer_ms{REGRESSION}"
_LABEL = "time to answer, ms"
_AGAIN = "make the report again with `edgetune validate`"


@dataclass(frozen=True)
class _Times:
    """One side's time to answer in ms: the median, its bounds, the median of each round."""

    value: float
    bounds: statistics.Interval | None
    rounds: tuple[float, ...]


def answer_ms(
    found: Found, baseline: Found, slowdown: float, required: bool
) -> tuple[Question, list[Row]]:
    """The question whether an answer takes more than 1 + `slowdown` times as long, and its rows.

    Raises InputRefusedError for times that are none.
    """
    limit, new, old = 1 + slowdown, found.report, baseline.report
    allowed = f"≤ × {limit:.2f}"
    runs = [_sides(found), _sides(baseline)]
    why_not = why_no_times(new, old)
    relative = why_not is None and why_no_reference(new, old) is None
    ratio = None
    if why_not is None:
        ratio = _ratio(runs[0], runs[1]) if relative else _ratio(runs[0][:1], runs[1][:1])
        if ratio is None:
            why_not = "one of the reports has neither rounds nor bounds for its times"
    if ratio is None:
        row = Row(_LABEL, "", "not measured", "", allowed, NAME)
        return Question(NAME, None, limit, required, why_not), [row]
    now, before = (run[0].value for run in runs)
    shown, rows = (f"{before:.1f}", f"{now:.1f}"), []
    words = f"{shown[1]} ms after {shown[0]} ms"
    if relative:
        own = _ratio(runs[0][:1], runs[1][:1])
        rows.append(Row(_LABEL, *shown, times(own) if own else "", "", ""))
        shown = f"{before / runs[1][1].value:.3f}", f"{now / runs[0][1].value:.3f}"
        words = f"{shown[1]} of the unconverted model's time after {shown[0]}"
    label = "time to answer / unconverted" if relative else _LABEL
    rows.append(Row(label, *shown, times(ratio), allowed, NAME))
    words = f"an answer takes {ratio.value:.2f} × as long as the baseline's ({words}"
    judged = [side for run in runs for side in (run if relative else run[:1])]
    question = Question(
        NAME,
        ratio,
        limit,
        required,
        samples=min(len(side.rounds) for side in judged) or None,
        unit="rounds",
        words=f"{words}, margin {limit:.2f} ×)",
    )
    return question, rows


def _sides(found: Found) -> list[_Times]:
    """The package's times, and the unconverted model's where they were taken."""
    latency = found.report.latency
    both = (latency.candidate, latency.reference)
    return [_times_of(found, side) for side in both if side is not None]


def _times_of(found: Found, side: LatencySide) -> _Times:
    rounds = getattr(side, "rounds_ms", None) or []
    known = side.intervals.get("answer_ms")
    bounds = statistics.Interval(known.value, known.low, known.high) if known else None
    numbers = [side.answer_ms, *([known.low, known.high] if known else [])]
    if not isinstance(rounds, list) or not all(_is_time(value) for value in [*numbers, *rounds]):
        msg = f"{found.path}: latency: a time to answer that is not a number above 0"
        raise InputRefusedError(msg, _AGAIN)
    return _Times(side.answer_ms, bounds, tuple(float(value) for value in rounds))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _ratio(new: list[_Times], old: list[_Times]) -> Interval | None:
    """new / old, each relative to its second side where it has one; null without rounds and
    bounds."""
    value = new[0].value / old[0].value
    if len(new) > 1:
        value *= old[1].value / new[1].value
    sides = [*new, *old]
    paired = all(len({len(side.rounds) for side in run}) == 1 for run in (new, old))
    if paired and all(side.rounds for side in sides):
        new_reference, old_reference = (r[1].rounds if len(r) > 1 else None for r in (new, old))
        found = statistics.ratio_of_runs(new[0].rounds, old[0].rounds, new_reference, old_reference)
        low, high = found.low, found.high
        if all(min(side.rounds) <= side.value <= max(side.rounds) for side in sides):
            # The median over all answers may lie beside the median of the rounds' medians.
            low, high = min(low, value), max(high, value)
        return Interval(value=value, low=low, high=high)
    bounds = [side.bounds for side in (new[0], *old[1:]) if side.bounds is not None]
    below = [side.bounds for side in (old[0], *new[1:]) if side.bounds is not None]
    if len(bounds) + len(below) < len(sides):
        return None
    found = statistics.ratio_of_estimates(bounds, below)
    return Interval(value=value, low=found.low, high=found.high)
