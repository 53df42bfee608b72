"""What a report says against itself: a sign that it was edited by hand, or cut together.

Verdicts are always judged anew from the figures, so a stored verdict that differs is only told. But
figures stand more than once in a report (over all items and for each, as candidate, reference and
difference, copied into the checks). Where they disagree nobody knows which one was measured: such
a report may fail, and never passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgetune.report.schema import Interval, Report
from edgetune.report.verdict import Judgement, judge
from edgetune.report.words import EXACT_MATCH

# Sums over items in another order, and rounding on the way through text.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
# The ratio may be taken by rounds, the two times over all answers.
_RATIO_RELATIVE = 0.25
# A block's noise: the median over all answers need not be one of the rounds' own.
_ROUND_RELATIVE = 0.02


def edited_verdicts(report: Report) -> list[str]:
    """Each stored verdict that is not the one that its figures give."""
    judgement = judge(report)
    found = []
    if report.verdict != judgement.verdict:
        found.append(f"it says {report.verdict!r}, its figures say {judgement.verdict!r}")
    found += [
        f"it says {stored.verdict!r} for {stored.name}, its figures say {judged.verdict!r}"
        for stored, judged in zip(report.checks, judgement.checks, strict=True)
        if stored.verdict != judged.verdict
    ]
    return found


def contradictions(report: Report) -> list[str]:
    """Each pair of figures that should be the same and is not."""
    return [
        *_checks(report, judge(report)),
        *_metrics(report),
        *_items(report),
        *_times(report),
    ]


def _checks(report: Report, judgement: Judgement) -> Iterator[str]:
    for stored, judged in zip(report.checks, judgement.checks, strict=True):
        figure = judged.figure
        own = (
            Interval.model_construct(value=None, low=None, high=None) if figure is None else figure
        )
        for key in ("value", "low", "high"):
            said, measured = getattr(stored, key), getattr(own, key)
            if not _same(said, measured):
                yield f"{stored.name}: {key} {_show(said)} in its check, {_show(measured)} measured"


def _metrics(report: Report) -> Iterator[str]:
    for name, row in report.task_metrics.items():
        if not _same(row.difference, row.candidate - row.reference):
            yield (
                f"{name}: {row.candidate:g} and {row.reference:g} differ by "
                f"{row.candidate - row.reference:g}, not by {row.difference:g}"
            )


def _items(report: Report) -> Iterator[str]:
    """The whole against what each item gave."""
    items, fidelity = report.per_item, report.fidelity
    if items is None:
        return
    if len(items.ids) != fidelity.items or sum(items.positions) != fidelity.positions:
        yield (
            f"{len(items.ids)} items with {sum(items.positions)} positions, the fidelity is over "
            f"{fidelity.items} with {fidelity.positions}"
        )
        return
    pairs = zip(items.kl_mean, items.positions, strict=True)
    sums = [kl * count for kl, count in pairs if kl is not None]
    if fidelity.kl_mean is not None and fidelity.positions:
        mean = math.fsum(sums) / fidelity.positions
        if len(sums) < len(items.ids) or not _same(mean, fidelity.kl_mean.value):
            yield f"kl_mean: {fidelity.kl_mean.value:g} in all, {mean:g} over the items"
    right = [value for value in items.exact if value is not None]
    row = report.task_metrics.get(EXACT_MATCH)
    if row is not None and right:
        share = sum(right) / len(right)
        if len(right) != row.n or not _same(share, row.candidate):
            yield (
                f"{EXACT_MATCH}: {row.candidate:g} of {row.n} in all, "
                f"{share:g} of {len(right)} over the items"
            )


def _times(report: Report) -> Iterator[str]:
    """The two times to answer, their ratio and their rounds."""
    latency = report.latency
    sides = {"candidate": latency.candidate, "reference": latency.reference}
    for name, side in sides.items():
        if side is not None and side.rounds_ms and not _within(side.answer_ms, side.rounds_ms):
            yield f"latency.{name}: answer_ms {side.answer_ms:g} lies outside its own rounds"
    reference, candidate, ratio = latency.reference, latency.candidate, latency.ratio
    if reference is None or candidate is None or ratio is None:
        return
    below, above = reference.rounds_ms, candidate.rounds_ms
    if below and len(below) == len(above) and min(below) > 0:
        each = [a / b for a, b in zip(above, below, strict=True)]
        if not _within(ratio.value, each):
            yield f"latency.ratio: {ratio.value:.3g} lies outside its own rounds"
    elif reference.answer_ms > 0:
        own = candidate.answer_ms / reference.answer_ms
        if not math.isclose(own, ratio.value, rel_tol=_RATIO_RELATIVE):
            yield f"latency.ratio: {ratio.value:.3g}, its two times to answer give {own:.3g}"


def _within(value: float, rounds: Sequence[float]) -> bool:
    """A median over all answers lies among the medians of the rounds, or close by."""
    room = 1 + _ROUND_RELATIVE
    return min(rounds) / room <= value <= max(rounds) * room


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _show(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
