"""What changed since a baseline: figures with bounds, as questions for the function that judges.

Regressions stand apart from budgets: a budget says what a device can bear, a regression what this
change may cost. Accuracy is a non-inferiority question, paired item by item: both packages answered
the same items, so only items that changed carry information. Exact match has Tango's interval and
the exact McNemar test, the KL (a figure of the whole corpus) the paired bootstrap over items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetune import statistics
from edgetune.errors import InputRefusedError
from edgetune.report.collect import Found
from edgetune.report.questions import REGRESSION, Question
from edgetune.report.schema import Interval, PerItem, Report
from edgetune.report.slowdown import answer_ms
from edgetune.report.words import (
    EXACT_MATCH,
    Row,
    bounds,
    divergence,
    flips_in_words,
    megabytes,
    nats,
    percent,
)
from edgetune.report.words import points as in_points


@dataclass(frozen=True)
class Margins:
    """What a change may cost: exact match as a share, KL in nats, time and bytes as shares of the
    baseline's. `require_latency`: times that cannot be compared make the verdict inconclusive."""

    drop: float = 0.02
    kl_rise: float = 0.01
    slowdown: float = 0.1
    growth: float = 0.05
    require_latency: bool = False


@dataclass(frozen=True)
class Comparison:
    """A report beside its baseline."""

    baseline: Found
    questions: tuple[Question, ...]
    rows: tuple[Row, ...]
    # {"answers", "changed", "n", "right_before", "right_now", "lost", "gained", "p_value"}; null
    # where one of the reports does not say what each item gave
    flips: dict[str, Any] | None


def compare(found: Found, baseline: Found, margins: Margins) -> Comparison:
    """Compare a report with its baseline. Raises InputRefusedError when a report's items or times
    are not what its own digests say."""
    new, old = found.report, baseline.report
    pair, why_not = _items(found, baseline)
    flips = _flips(*pair) if pair else None
    asked: list[tuple[Question, Row]] = []
    if EXACT_MATCH in new.task_metrics or EXACT_MATCH in old.task_metrics:
        asked.append(_exact_match(flips, why_not, margins.drop))
    asked.append(_kl_mean(new, old, pair, why_not, margins.kl_rise))
    question, time_rows = answer_ms(found, baseline, margins.slowdown, margins.require_latency)
    size, size_row = _package_bytes(new, old, margins.growth)
    return Comparison(
        baseline,
        (*(question for question, _ in asked), question, size),
        (*(row for _, row in asked), *time_rows, size_row),
        flips,
    )


def _items(found: Found, baseline: Found) -> tuple[tuple[PerItem, PerItem] | None, str | None]:
    """(new, old) items, or why there are none."""
    new, old = found.report.per_item, baseline.report.per_item
    if new is None or old is None:
        what = "this report" if new is None else "the baseline"
        return None, f"{what} does not say what each item gave: make it again with this edgetune"
    if new.ids != old.ids or new.positions != old.positions:
        msg = f"{found.path}: its items are not those of {baseline.path}, as both self-tests say"
        raise InputRefusedError(msg, "make both reports again with `edgetune validate`")
    if not sum(new.positions):
        return None, "no position was scored"
    return (new, old), None


def _flips(new: PerItem, old: PerItem) -> dict[str, Any]:
    right = [pair for pair in zip(old.exact, new.exact, strict=True) if None not in pair]
    answers = [pair for pair in zip(old.answers, new.answers, strict=True) if None not in pair]
    lost, gained = right.count((1, 0)), right.count((0, 1))
    return {
        "answers": len(answers),
        "changed": sum(before != after for before, after in answers),
        "n": len(right),
        "right_before": sum(before == 1 for before, _ in right),
        "right_now": sum(after == 1 for _, after in right),
        "lost": lost,
        "gained": gained,
        "p_value": statistics.mcnemar_exact(lost, gained),
    }


def _exact_match(
    flips: dict[str, Any] | None, why_not: str | None, limit: float
) -> tuple[Question, Row]:
    name, allowed = EXACT_MATCH + REGRESSION, f"≥ {in_points(-limit)}"
    if flips is None or not flips["n"]:
        reason = why_not or "no item has an expected answer in both reports"
        return _unknown(name, limit, "exact match", allowed, reason)
    n = flips["n"]
    found = statistics.paired_proportions(flips["lost"], flips["gained"], n)
    # What was lost since: baseline − package.
    figure = Interval(value=0.0 - found.value, low=0.0 - found.high, high=0.0 - found.low)
    before, now = (percent(flips[key] / n) for key in ("right_before", "right_now"))
    words = (
        f"exact match went from the baseline's {before} to {now} (margin {100 * limit:g} points, "
        f"n = {n}); {flips_in_words(flips)}"
    )
    changed = flips["lost"] + flips["gained"]
    question = Question(name, figure, limit, True, samples=n, changed=changed, words=words)
    between = bounds(in_points(found.low), in_points(found.high))
    difference = f"{in_points(found.value)} {between}"
    return question, Row(f"exact match, n = {n}", before, now, difference, allowed, name)


def _kl_mean(
    new: Report,
    old: Report,
    pair: tuple[PerItem, PerItem] | None,
    why_not: str | None,
    limit: float,
) -> tuple[Question, Row]:
    name, label, allowed = f"kl_mean{REGRESSION}", "KL from trained, nats", f"≤ +{limit:g}"
    if new.fidelity.kl_kind != old.fidelity.kl_kind:
        why_not = (
            f"the baseline's KL is a {old.fidelity.kl_kind} figure, this report's a "
            f"{new.fidelity.kl_kind} one: make both by build, or both by validate"
        )
    if pair is None or why_not is not None:
        return _unknown(name, limit, label, allowed, why_not)
    counts = pair[0].positions
    sums = [_sums(side) for side in pair]
    if None in sums[0] or None in sums[1]:
        return _unknown(name, limit, label, allowed, "an item's output is not finite")
    rises = [float(a or 0) - float(b or 0) for a, b in zip(*sums, strict=True)]
    found = statistics.ratio_of_sums(rises, counts)
    now, before = (sum(float(s or 0) for s in side) / sum(counts) for side in sums)
    words = (
        f"KL from the trained model went from the baseline's {nats(before)} to {nats(now)} nats "
        f"(margin {limit:g})"
    )
    figure = Interval(value=found.value, low=found.low, high=found.high)
    question = Question(name, figure, limit, True, samples=len(counts), words=words)
    between = bounds(divergence(found.low), divergence(found.high))
    difference = f"{divergence(found.value)} {between}"
    return question, Row(label, nats(before), nats(now), difference, allowed, name)


def _sums(side: PerItem) -> list[float | None]:
    """Each item's KL summed over its positions; null where it was not finite."""
    pairs = zip(side.kl_mean, side.positions, strict=True)
    return [None if kl is None else kl * count for kl, count in pairs]


def _package_bytes(new: Report, old: Report, growth: float) -> tuple[Question, Row]:
    name, limit = f"package_bytes{REGRESSION}", 1 + growth
    before, now = old.size.package_bytes, new.size.package_bytes
    allowed = f"≤ × {limit:.2f}"
    if before <= 0:
        return _unknown(name, limit, "size, MB", allowed, "the baseline has no bytes")
    ratio = now / before
    words = (
        f"the package is {megabytes(now)} MB, {ratio:.2f} × the baseline's {megabytes(before)} MB "
        f"(margin {limit:.2f} ×)"
    )
    figure = Interval(value=ratio, low=ratio, high=ratio)
    row = Row("size, MB", megabytes(before), megabytes(now), f"× {ratio:.2f}", allowed, name)
    return Question(name, figure, limit, words=words), row


def _unknown(
    name: str, limit: float, label: str, allowed: str, reason: str | None
) -> tuple[Question, Row]:
    """What the baseline was given for and cannot be told: never passed."""
    question = Question(name, None, limit, required=True, reason=reason)
    return question, Row(label, "", "not measured", "", allowed, name)
