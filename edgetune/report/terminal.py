"""The report as a table for people: rows for `console.print_table`, and lines below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgetune.report.allocation_words import allocation_lines
from edgetune.report.cost import cost_lines, token_text
from edgetune.report.long_context import positions, worst_stretch
from edgetune.report.long_context_words import at_least, long_context_lines
from edgetune.report.questions import DROP, EMULATED, LONG_CONTEXT, emulated_view
from edgetune.report.schema import Latency, LatencySide, Report, parse_report
from edgetune.report.survival_words import certificate_lines, where_it_was_lost
from edgetune.report.verdict import Judgement, judge
from edgetune.report.words import (
    bounds,
    carried_note,
    double_bos_note,
    flips_of,
    headline,
    megabytes,
    nats,
    normalization_note,
    not_measured,
    percent,
    plain,
    points,
    signed,
    times,
    what_is_unclear,
    what_was_emulated,
    what_was_lost,
)

COLUMNS = ("", "reference", "package", "difference", "limit", "verdict")
Row = tuple[str, str, str, str, str, str]

_LATENCY_ROWS = (
    # name, key, digits, check
    ("first token, ms", "ttft_ms", 1, "ttft_ms"),
    ("prefill, tokens/s", "prefill_tokens_per_s", 0, ""),
    ("decode, tokens/s", "decode_tokens_per_s", 1, "decode_tokens_per_s"),
    ("load, s", "load_s", 2, ""),
    ("load from a cold page cache, s", "load_cold_s", 2, ""),
    ("peak memory, MB", "peak_rss_mb", 0, "peak_rss_mb"),
)


def table_rows(value: Mapping[str, Any] | Report) -> list[Row]:
    """The rows under COLUMNS: reference, package, difference with its bounds, limit, verdict."""
    report = _report(value)
    judgement = judge(report)
    return [
        *_metric_rows(report, judgement),
        *_fidelity_rows(report, judgement),
        *_long_context_rows(report, judgement),
        *_emulated_rows(report, judgement),
        *_latency_rows(report.latency, judgement),
        *_size_rows(report, judgement),
    ]


def fidelity_table_rows(report: Report, judgement: Judgement) -> list[Row]:
    """The rows about the answers: task metrics, fidelity, long texts, the same on an emulated
    processor."""
    return [
        *_metric_rows(report, judgement),
        *_fidelity_rows(report, judgement),
        *_long_context_rows(report, judgement),
        *_emulated_rows(report, judgement),
    ]


def latency_table_rows(report: Report, judgement: Judgement) -> list[Row]:
    """The rows about time and memory."""
    return list(_latency_rows(report.latency, judgement))


def summary_lines(
    value: Mapping[str, Any] | Report, judgement: Judgement | None = None
) -> list[str]:
    """What stands below the table: verdict, what was lost, what was not measured, where.

    `judgement`: one that asks more than the report itself, such as a comparison with a baseline.
    """
    report = _report(value)
    judgement = judgement or judge(report)
    lines = [f"verdict  {headline(judgement)}"]
    lines += [f"lost     {text}" for text in what_was_lost(report, judgement)]
    lines += [f"lost     {text}" for text in where_it_was_lost(report, judgement)]
    lines += [f"unclear  {text}" for text in what_is_unclear(report, judgement)]
    if flips := flips_of(report):
        lines.append(f"flips    {flips}")
    lines += [f"note     {text}" for text in not_measured(judgement)]
    if text := normalization_note(report):
        lines.append(f"note     {text}")
    if text := double_bos_note(report):
        lines.append(f"note     {text}")
    if text := carried_note(report):
        lines.append(f"data     {text}")
    lines += [f"long     {text}" for text in long_context_lines(report)]
    lines += [f"merge    {text}" for text in certificate_lines(report)]
    lines += [f"widths   {text}" for text in allocation_lines(report)]
    lines += [f"cost     {text}" for text in cost_lines(report)]
    lines.append(f"measured {where_measured(report)}")
    if text := what_was_emulated(report):
        lines.append(f"emulated {text}")
    return lines


def where_measured(report: Report) -> str:
    """On what and where the figures were taken."""
    fidelity, latency = report.fidelity, report.latency
    text = (
        f"fidelity on {fidelity.items} items, {fidelity.positions} positions "
        f"({fidelity.kl_kind}), on a {fidelity.measured_on}"
    )
    if latency.candidate is None:
        return f"{text}; latency not measured: {latency.reason or 'no reason was given'}"
    text += f"; latency on the same host, {report.environment.threads} threads"
    if latency.reference is None:
        return f"{text}, without reference: {latency.reason or 'no reason was given'}"
    dtype = (latency.reference.model_extra or {}).get("dtype")
    return f"{text}, reference: torch {dtype}" if dtype else text


def _report(value: Mapping[str, Any] | Report) -> Report:
    return value if isinstance(value, Report) else parse_report(value)


def _metric_rows(report: Report, judgement: Judgement) -> Iterator[Row]:
    for name, metric in report.task_metrics.items():
        check = judgement.of(name + DROP)
        share = name != "answer_logprob"
        show = percent if share else lambda v: plain(v, 4)
        differ = points if share else lambda v: signed(v, 4)
        between = bounds(differ(metric.low), differ(metric.high))
        difference = f"{differ(metric.difference)} {between}"
        label = name.replace("_", " ")
        if metric.base is not None:
            label += f" (base {show(metric.base)})"
        limit = f"≥ {points(-check.limit)}" if check else ""
        verdict = check.verdict if check else ""
        reference, candidate = show(metric.reference), show(metric.candidate)
        yield (f"{label}, n = {metric.n}", reference, candidate, difference, limit, verdict)
    check = judgement.of("exact_match" + DROP)
    if check is not None and check.figure is None:
        yield ("exact match", "", "not measured", "", f"≥ {points(-check.limit)}", check.verdict)


def _fidelity_rows(report: Report, judgement: Judgement) -> Iterator[Row]:
    fidelity = report.fidelity
    bound = "≥ " if fidelity.kl_kind != "whole vocabulary" else ""
    kept = "≤ " if bound else ""
    base = f"base {nats(fidelity.kl_base.value)}" if fidelity.kl_base else ""
    rows = (
        ("retention", fidelity.retention, lambda v: percent(v, 2), "100 %", kept),
        ("kl_mean", fidelity.kl_mean, nats, base, bound),
        ("kl_p99", fidelity.kl_p99, nats, "", bound),
        ("perplexity_ratio", fidelity.perplexity_ratio, lambda v: f"{v:.4f}", "1", ""),
        ("top1_agreement", fidelity.top1_agreement, percent, "100 %", ""),
    )
    labels = {
        "kl_mean": "KL from trained, nats",
        "kl_p99": "KL, 99 %",
        "perplexity_ratio": "perplexity ratio",
        "top1_agreement": "top-1 agreement",
    }
    for name, figure, show, reference, mark in rows:
        check = judgement.of(name)
        limit, verdict = "", ""
        if check is not None:
            limit = f"≥ {percent(check.limit, 0)}" if name == "retention" else f"≤ {check.limit:g}"
            verdict = check.verdict
        label = labels.get(name, name)
        if figure is None:
            yield (label, "", "not measured", "", limit, verdict)
        else:
            between = bounds(show(figure.low), show(figure.high))
            yield (label, reference, mark + show(figure.value), between, limit, verdict)
    for name, label in (("tokenizer_parity", "tokenizer"), ("finite_outputs", "finite outputs")):
        check = judgement.of(name)
        if check is None or check.figure is None:
            continue
        total = report.tokenizer.cases
        if name == "finite_outputs":
            total = fidelity.positions + positions(report.long_context)
        what = "differ" if name == "tokenizer_parity" else "not finite"
        differ = f"{check.figure.value:.0f} of {total} {what}"
        yield (label, "", differ, "", f"≤ {check.limit:g}", check.verdict)


def _long_context_rows(report: Report, judgement: Judgement) -> Iterator[Row]:
    """KL of each stretch of a long text; the limit stands at the worst one."""
    section = report.long_context
    if section is None:
        return
    check, worst = judgement.of(LONG_CONTEXT), worst_stretch(section)
    for number, stretch in enumerate(section.stretches):
        label = f"KL after {stretch.first} to {stretch.last} tokens"
        judged = check is not None and (stretch is worst or (worst is None and number == 0))
        limit = f"≤ {check.limit:g}" if judged and check else ""
        verdict = check.verdict if judged and check else ""
        kl = stretch.kl_mean
        if kl is None:
            yield (label, "", "not measured", "", limit, verdict)
        else:
            figure = at_least(section.kl_kind) + nats(kl.value)
            yield (label, "", figure, bounds(nats(kl.low), nats(kl.high)), limit, verdict)


def _emulated_rows(report: Report, judgement: Judgement) -> Iterator[Row]:
    """The same rows over the emulated processor's figures, marked as such."""
    view = emulated_view(report)
    if view is None:
        return
    own = Judgement(
        judgement.verdict,
        tuple(
            replace(check, name=check.name.removeprefix(EMULATED))
            for check in judgement.checks
            if check.name.startswith(EMULATED)
        ),
    )
    for label, *cells in (*_metric_rows(view, own), *_fidelity_rows(view, own)):
        reference, package, difference, limit, verdict = cells
        yield (f"emulated: {label}", reference, package, difference, limit, verdict)


def _latency_rows(latency: Latency, judgement: Judgement) -> Iterator[Row]:
    tokens = ""
    extra = latency.model_extra or {}
    if extra.get("prompt_tokens"):
        tokens = f" ({extra['prompt_tokens']} + {extra['new_tokens']} tokens)"
    check = judgement.of("time_to_answer_ratio")
    reference, candidate = latency.reference, latency.candidate
    yield (
        f"time to answer{tokens}, ms",
        f"{reference.answer_ms:.1f}" if reference else "not measured",
        f"{candidate.answer_ms:.1f}" if candidate else "not measured",
        times(latency.ratio) if latency.ratio else "",
        f"≤ × {check.limit:.2f}" if check else "",
        check.verdict if check else "",
    )
    if candidate is None:
        return
    yield (
        "per token 50/95/99 %, ms",
        token_text(reference) if reference else "not measured",
        token_text(candidate),
        "",
        "",
        "",
    )
    for label, key, digits, name in _LATENCY_ROWS:
        own = judgement.of(name) if name else None
        limit = ""
        if own is not None:
            limit = f"{'≥' if own.bad == 'below' else '≤'} {own.limit:.{digits}f}"
        yield (
            label,
            _number(reference, key, digits),
            _number(candidate, key, digits),
            _ratio_of(reference, candidate, key),
            limit,
            own.verdict if own else "",
        )


def _size_rows(report: Report, judgement: Judgement) -> Iterator[Row]:
    size = report.size
    check = judgement.of("package_bytes")
    base = size.base_bytes
    yield (
        "size, MB",
        megabytes(base) if base is not None else "not measured",
        megabytes(size.package_bytes),
        f"× {size.package_bytes / base:.2f}" if base else "",
        f"≤ {megabytes(check.limit)}" if check else "",
        check.verdict if check else "",
    )
    ratio = f"× {size.graph_bytes / base:.2f}" if base else ""
    yield ("of it the graph, MB", "", megabytes(size.graph_bytes), ratio, "", "")


def _number(side: LatencySide | None, key: str, digits: int) -> str:
    value = None if side is None else getattr(side, key)
    return "not measured" if value is None else f"{value:.{digits}f}"


def _ratio_of(reference: LatencySide | None, candidate: LatencySide, key: str) -> str:
    below = getattr(reference, key) if reference else None
    above = getattr(candidate, key)
    return f"× {above / below:.2f}" if below and above is not None else ""
