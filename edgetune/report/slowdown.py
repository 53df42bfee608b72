"""How much longer an answer takes than the baseline's: two runs that share no round.

Where both runs have the unconverted model's times as well, taken in the same rounds, the package's
time is taken relative to it: what made a whole run slower (frequency, neighbours) cancels, and the
question is about that ratio. The package's own times are then shown and not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.errors import InputRefusedError
from edgetune.report.baseline import why_no_reference, why_no_times
from edgetune.report.collect import Found
from edgetune.report.questions import REGRESSION, Question
from edgetune.report.schema import Interval
from edgetune.report.words import Row, times
from edgetune.statistics import Interval as Estimate
from edgetune.two_runs import FEWEST_ROUNDS, ratio_of_runs, run_level

NAME = f"answer_ms{REGRESSION}"
_LABEL = "time to answer, rounds, ms"
_RELATIVE = "time to answer / unconverted"


@dataclass(frozen=True)
class _Run:
    """One report's times: the package's own in ms, and relative to the unconverted model's."""

    own: Estimate | None
    relative: Estimate | None
    # How many; null where the report does not tell them.
    rounds: int | None


def answer_ms(
    found: Found, baseline: Found, slowdown: float, required: bool
) -> tuple[Question, list[Row]]:
    """The question whether an answer takes more than 1 + `slowdown` times as long, and its rows.

    Raises InputRefusedError for times that are none.
    """
    limit = 1 + slowdown
    allowed = f"≤ × {limit:.2f}"
    new, old = _run(found), _run(baseline)
    why_not = why_no_times(found.report, baseline.report)
    own = relative = None
    if why_not is None:
        own = _ratio(new.own, old.own)
        if why_no_reference(found.report, baseline.report) is None:
            relative = _ratio(new.relative, old.relative)
        if own is None and relative is None:
            why_not = "one of the reports has neither rounds nor bounds for its times"
    ratio = relative or own
    if ratio is None:
        row = Row(_LABEL, "", "not measured", "", allowed, NAME)
        return Question(NAME, None, limit, required, why_not), [row]
    rows, words = [], ""
    if own is not None and new.own and old.own:
        shown = f"{old.own.value:.1f}", f"{new.own.value:.1f}"
        judged = (allowed, NAME) if relative is None else ("", "")
        rows.append(Row(_LABEL, *shown, times(own), *judged))
        words = f"{shown[1]} ms after {shown[0]} ms"
    if relative is not None and new.relative and old.relative:
        shown = f"{old.relative.value:.3f}", f"{new.relative.value:.3f}"
        rows.append(Row(_RELATIVE, *shown, times(relative), allowed, NAME))
        words = f"{shown[1]} of the unconverted model's time after {shown[0]}"
    counts = [run.rounds for run in (new, old) if run.rounds is not None]
    question = Question(
        NAME,
        ratio,
        limit,
        required,
        samples=min(counts, default=None),
        fewest=FEWEST_ROUNDS,
        unit="rounds",
        words=(
            f"an answer takes {ratio.value:.2f} × as long as the baseline's ({words}, margin "
            f"{limit:.2f} ×)"
        ),
    )
    return question, rows


def _run(found: Found) -> _Run:
    latency, where = found.report.latency, str(found.path)
    candidate, reference = (
        side.rounds_ms if side else [] for side in (latency.candidate, latency.reference)
    )
    if min([1.0, *candidate, *reference]) <= 0:
        raise _no_time(where)
    if len(candidate) >= FEWEST_ROUNDS:
        own: Estimate | None = run_level(candidate)
    else:
        bounds = latency.candidate.intervals.get("answer_ms") if latency.candidate else None
        own = _estimate(bounds, where)
    # Its bounds know which rounds had processes of their own, the medians of the rounds do not.
    relative = _estimate(latency.ratio, where)
    return _Run(own, relative, len(candidate) or None)


def _estimate(interval: Interval | None, where: str) -> Estimate | None:
    if interval is None:
        return None
    if min(interval.value, interval.low, interval.high) <= 0:
        raise _no_time(where)
    return Estimate(interval.value, interval.low, interval.high)


def _ratio(new: Estimate | None, old: Estimate | None) -> Interval | None:
    if new is None or old is None:
        return None
    found = ratio_of_runs(new, old)
    return Interval(value=found.value, low=found.low, high=found.high)


def _no_time(where: str) -> InputRefusedError:
    msg = f"{where}: latency: a time to answer that is not above 0"
    return InputRefusedError(msg, "make the report again with `edgetune validate`")
