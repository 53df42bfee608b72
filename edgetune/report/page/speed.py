"""How long answers take, as distributions, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.cost import cost_lines
from edgetune.report.page.elements import Markup, items, table, tag
from edgetune.report.page.plots import Lane, figure, lane_plot
from edgetune.report.page.shown import Shown
from edgetune.report.page.verdict import with_pills
from edgetune.report.schema import Latency, LatencySide
from edgetune.report.terminal import COLUMNS, latency_table_rows

_QUANTILES = ("p5", "p25", "p50", "p75", "p95")


def speed(shown: Shown, level: str, below: str) -> Markup:
    """Latency against the unconverted model, and cost."""
    report = shown.report
    latency = report.latency
    parts = [tag(level, "Speed and cost")]
    if latency.candidate is None:
        parts.append(tag("p", f"Not measured: {latency.reason or 'no reason was given'}."))
    else:
        if latency.reference is None:
            why = latency.reason or "no reason was given"
            parts.append(tag("p", f"The unconverted model’s times: not measured ({why})."))
        rows = with_pills(latency_table_rows(report, shown.judgement))
        parts.append(table(f"{shown.title}: speed and memory", COLUMNS, rows))
        parts += _distributions(latency, below)
    if costs := list(cost_lines(report)):
        parts.append(items((f"{text[:1].upper()}{text[1:]}." for text in costs), "plain"))
    return tag("section", *parts)


def _distributions(latency: Latency, below: str) -> Iterator[Markup]:
    sides = [
        (name, class_, side)
        for name, class_, side in (
            ("unconverted model", "reference", latency.reference),
            ("package", "package", latency.candidate),
        )
        if side is not None
    ]
    rounds = [_rounds(*entry) for entry in sides if entry[2].rounds_ms]
    yield tag(below, "Time to answer, round by round")
    if rounds:
        yield figure(
            lane_plot("Time to answer", _in_words(rounds), rounds, "ms"),
            "Each dot is the median of a round, the tall tick the median of all answers. Rounds of "
            "both sides were taken in turn.",
        )
    else:
        yield tag("p", "Not measured: the report has no rounds.")
    yield tag(below, "Milliseconds per token")
    tokens = [_tokens(*entry) for entry in sides if _has_quantiles(entry[2])]
    if tokens:
        yield figure(
            lane_plot("Milliseconds per token", _in_words(tokens), tokens, "ms"),
            "New tokens but an answer’s first. Thick: the middle half; thin: 5 to 95 %; the tick "
            "is the median, the dot 99 %.",
        )
    else:
        yield tag("p", "Not measured: the report has no quantiles of the times per token.")


def _has_quantiles(side: LatencySide) -> bool:
    return side.token_ms is not None and all(key in side.token_ms for key in _QUANTILES)


def _rounds(name: str, class_: str, side: LatencySide) -> Lane:
    told = f"{name}: {side.answer_ms:.1f} ms, {len(side.rounds_ms)} rounds"
    return Lane(told, class_, side.rounds_ms, side.answer_ms)


def _tokens(name: str, class_: str, side: LatencySide) -> Lane:
    token_ms = side.token_ms or {}
    told = f"{name}: {token_ms['p50']:.2f} ms, 99 % {token_ms['p99']:.2f} ms"
    quantiles = [token_ms[key] for key in _QUANTILES]
    return Lane(told, class_, [token_ms["p99"]], token_ms["p50"], quantiles)


def _in_words(lanes: list[Lane]) -> str:
    parts = []
    for lane in lanes:
        shown = [*lane.dots, *lane.quantiles]
        parts.append(f"{lane.name}, from {min(shown):.2f} to {max(shown):.2f} ms")
    return "; ".join(parts)
