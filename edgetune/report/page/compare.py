"""Several packages side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgetune.report.page.elements import Markup, foreign, items, join, table, tag
from edgetune.report.page.plots import NEAREST_DRAWN, Dot, dot_plot, figure, short
from edgetune.report.page.shown import Shown
from edgetune.report.page.verdict import pill
from edgetune.report.schema import Interval, LatencySide, Report
from edgetune.report.words import headline, megabytes, nats, percent, plain, points, signed, times

_MISSING = "not measured"


def comparison(all_shown: Sequence[Shown], level: str) -> Markup:
    """A table with a column for each report, and size against KL as a plot."""
    columns = ["", *(join([f"{n}: ", foreign(one.title)]) for n, one in enumerate(all_shown, 1))]
    rows = [
        ["verdict", *(pill(one.judgement.verdict) for one in all_shown)],
        ["why", *(headline(one.judgement) for one in all_shown)],
        ["variant", *(foreign(one.report.variant) for one in all_shown)],
        ["device", *(foreign(one.report.device) for one in all_shown)],
    ]
    reports = [one.report for one in all_shown]
    rows += [[name, *map(show, reports)] for name, show in _rows(reports)]
    parts = [
        tag(level, "Side by side"),
        table("Figures of each package", columns, rows, "figures compare"),
    ]
    parts += _plot(all_shown)
    if notes := list(_notes(reports)):
        parts.append(items(notes, "open"))
    return tag("section", *parts)


def _rows(reports: Sequence[Report]) -> Iterator[tuple[str, Callable[[Report], str]]]:
    yield "package, MB", lambda r: megabytes(r.size.package_bytes)
    yield "× the base’s weights", _of_base
    yield "graph, MB", lambda r: megabytes(r.size.graph_bytes)
    yield "KL, nats", lambda r: _with_bounds(r.fidelity.kl_mean, nats)
    yield "KL, 99 %", lambda r: _with_bounds(r.fidelity.kl_p99, nats)
    yield "retention", lambda r: _with_bounds(r.fidelity.retention, _kept)
    yield "top-1 agreement", lambda r: _with_bounds(r.fidelity.top1_agreement, percent)
    yield "perplexity ratio", lambda r: _with_bounds(r.fidelity.perplexity_ratio, _four)
    for name in dict.fromkeys(name for report in reports for name in report.task_metrics):
        yield name.replace("_", " "), _metric(name)
        yield f"{name.replace('_', ' ')}, package − trained", _difference(name)
    yield "time to answer, ms", _side(lambda side: f"{side.answer_ms:.1f}")
    yield (
        "× the unconverted model’s",
        lambda r: times(r.latency.ratio) if r.latency.ratio else _MISSING,
    )
    yield "first token, ms", _side(lambda side: f"{side.ttft_ms:.1f}")
    yield "prefill, tokens/s", _side(lambda side: f"{side.prefill_tokens_per_s:.0f}")
    yield "decode, tokens/s", _side(lambda side: f"{side.decode_tokens_per_s:.1f}")
    yield "peak memory, MB", _side(_peak)
    yield "load, s", _side(lambda side: f"{side.load_s:.2f}")


def _of_base(report: Report) -> str:
    base = report.size.base_bytes
    return f"{report.size.package_bytes / base:.2f}" if base else _MISSING


def _kept(share: float) -> str:
    return f"{plain(100 * share, 2)} %"


def _four(value: float) -> str:
    return f"{value:.4f}"


def _peak(side: LatencySide) -> str:
    return _MISSING if side.peak_rss_mb is None else f"{side.peak_rss_mb:.0f}"


def _with_bounds(figure_: Interval | None, show: Callable[[float], str]) -> str:
    if figure_ is None:
        return _MISSING
    between = f"{show(figure_.low)} to {show(figure_.high)}"
    return join([show(figure_.value), tag("small", between)])


def _metric(name: str) -> Callable[[Report], str]:
    def show(report: Report) -> str:
        found = report.task_metrics.get(name)
        if found is None:
            return _MISSING
        return plain(found.candidate, 4) if name == "answer_logprob" else percent(found.candidate)

    return show


def _difference(name: str) -> Callable[[Report], str]:
    def show(report: Report) -> str:
        found = report.task_metrics.get(name)
        if found is None:
            return _MISSING
        differ = _signed if name == "answer_logprob" else _points
        between = f"{differ(found.low)} to {differ(found.high)}"
        return join([differ(found.difference), tag("small", between)])

    return show


def _signed(value: float) -> str:
    return signed(value, 4)


def _points(value: float) -> str:
    return f"{points(value)} points"


def _side(show: Callable[[LatencySide], str]) -> Callable[[Report], str]:
    return lambda report: show(report.latency.candidate) if report.latency.candidate else _MISSING


def _plot(all_shown: Sequence[Shown]) -> Iterator[Markup]:
    """Size against KL: the lower left is small and near."""
    known = [
        (n, one, one.report.fidelity.kl_mean, one.report.size.package_bytes / 1e6)
        for n, one in enumerate(all_shown, 1)
        if one.report.fidelity.kl_mean is not None
    ]
    if len(known) < 2:
        return
    drawn = [entry for entry in known if entry[2] and entry[2].value >= NEAREST_DRAWN]
    found = drawn if len(drawn) > 1 else known
    sizes = [size for *_, size in found]
    low, high = min(sizes), max(sizes)
    span = (high - low) or high or 1.0
    left, width = low - 0.12 * span, 1.24 * span
    dots = [
        Dot(
            (size - left) / width,
            max(kl.value, 1e-9),
            f"{n}: {one.title}, {size:.1f} MB, {nats(kl.value)} nats",
            {"pass": "package", "fail": "bad"}.get(one.judgement.verdict, "reference"),
            low=max(kl.low, 1e-9),
            high=max(kl.high, 1e-9),
            label=str(n),
        )
        for n, one, kl, size in found
        if kl is not None
    ]
    ticks = [(0.12 / 1.24, f"{low:.1f}"), (1.12 / 1.24, f"{high:.1f}")] if high > low else [
        (0.12 / 1.24, f"{low:.1f}")
    ]  # fmt: skip
    words = "; ".join(dot.name for dot in dots)
    plot = dot_plot("Size against KL", f"{words}.", dots, ticks, "package, MB", "KL, nats")
    caption = "Numbers are the table’s columns. The lower left is small and near the trained model."
    if left_out := ", ".join(str(entry[0]) for entry in known if entry not in found):
        caption += f" Not drawn, nearer than {short(NEAREST_DRAWN)} nats: {left_out}."
    yield figure(plot, caption)


def _notes(reports: Sequence[Report]) -> Iterator[str]:
    """What hinders a comparison; nothing is compared halfway in silence."""
    references = {r.provenance.steps.get("reference") if r.provenance else None for r in reports}
    if None in references:
        yield (
            "Whether all were measured against one reference is not known: a report was made by a "
            "version that does not say."
        )
    elif len(references) > 1:
        yield (
            "They were measured against different references: KL, retention and metrics are about "
            "different models or data."
        )
    kinds = {r.fidelity.kl_kind for r in reports}
    if len(kinds) > 1:
        yield "Some KL are over the whole vocabulary and some are lower bounds of it (top k)."
    timed = [r for r in reports if r.latency.candidate is not None]
    machines = {(r.environment.fingerprint, r.environment.threads) for r in timed}
    if len(machines) > 1:
        yield "Times were taken on different machines or threads and do not compare."
