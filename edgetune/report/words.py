"""Figures and judgements in words, shared by terminal and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgetune.report.schema import Interval, Report
from edgetune.report.verdict import DROP, EMULATED, Judged, Judgement, emulated_view

_LATENCY_WORDS = {
    "ttft_ms": ("the first token takes {value:.1f} ms", "{limit:.1f} ms"),
    "decode_tokens_per_s": ("decoding gives {value:.1f} tokens/s", "{limit:.1f}"),
    "peak_rss_mb": ("the process takes {value:.0f} MB of memory", "{limit:.0f} MB"),
}


def percent(share: float, digits: int = 1) -> str:
    """`98.7 %`."""
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed: `−0.4`."""
    return signed(100 * share, 1)


def plain(value: float, digits: int) -> str:
    """`0.12`, `−0.12`."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    """`+0.12`, `−0.12`, `0.00`."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def nats(value: float) -> str:
    """A divergence, with digits that show it."""
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def megabytes(count: float) -> str:
    """10**6 bytes."""
    return f"{count / 1e6:.1f}" if count < 1e9 else f"{count / 1e6:.0f}"


def bounds(low: str, high: str) -> str:
    """`[low, high]`."""
    return f"[{low}, {high}]"


def headline(judgement: Judgement) -> str:
    """The verdict in a sentence."""
    failed = [c.name for c in judgement.checks if c.verdict == "fail"]
    open_ = [c.name for c in judgement.checks if c.verdict == "inconclusive"]
    missed = [c.name for c in judgement.checks if c.verdict == "not measured" and c.required]
    passed = sum(c.verdict == "pass" for c in judgement.checks)
    if failed:
        return f"fail: {', '.join(failed)}"
    if open_ or missed:
        parts = [", ".join(open_)] if open_ else []
        parts += [f"{', '.join(missed)} not measured on the device"] if missed else []
        return f"inconclusive: {'; '.join(parts)}"
    if not passed:
        return "inconclusive: nothing was measured"
    return f"pass: {passed} of {len(judgement.checks)} checks measured, all pass"


def what_was_lost(report: Report, judgement: Judgement) -> Iterator[str]:
    """A sentence for every check that failed."""
    for check in judgement.checks:
        if check.verdict == "fail" and check.figure is not None:
            yield _sentence(report, check, check.figure)


def what_is_unclear(report: Report, judgement: Judgement) -> Iterator[str]:
    """A sentence for every check that could not be decided, with the reason."""
    for check in judgement.checks:
        if check.verdict == "inconclusive" and check.figure is not None:
            yield f"{_sentence(report, check, check.figure)} ({check.reason})"


def what_was_emulated(report: Report) -> str:
    """What ran on which emulated processor, or why nothing did; empty where nothing was to."""
    emulated = report.emulated
    if emulated is None:
        return ""
    if emulated.fidelity is None:
        return f"not measured: {emulated.reason or 'no reason was given'}"
    text = (
        f"{emulated.fidelity.items} of {emulated.items_total} items, "
        f"{emulated.fidelity.positions} positions ({emulated.fidelity.kl_kind}), with the "
        f"instructions of {emulated.cpu} by {emulated.emulator}: not the device, and no times"
    )
    return f"{text}; a stand-in: {emulated.differs}" if emulated.differs else text


def not_measured(judgement: Judgement) -> Iterator[str]:
    """Each check without a figure, with its reason."""
    for check in judgement.checks:
        if check.verdict == "not measured":
            yield f"{check.name}: not measured: {check.reason or 'no reason was given'}"


def _sentence(report: Report, check: Judged, figure: Interval) -> str:
    if check.name.startswith(EMULATED) and (view := emulated_view(report)) is not None:
        assert report.emulated is not None
        own = replace(check, name=check.name.removeprefix(EMULATED))
        return f"on the emulated {report.emulated.cpu} {_sentence(view, own, figure)}"
    name, value, limit = check.name, figure.value, check.limit
    if name == "retention" and value < 0:
        return (
            f"the package keeps nothing of what the fine-tune changed (limit {percent(limit, 0)}): "
            f"it is {1 - value:.1f} × as far from the trained model as the base alone is"
        )
    if name == "retention":
        return (
            f"the package keeps {percent(value)} of what the fine-tune changed "
            f"(limit {percent(limit, 0)})"
        )
    if name == "kl_mean":
        return f"KL from the trained model is {nats(value)} nats (limit {limit:g})"
    if name.endswith(DROP):
        return _drop_sentence(report, name.removesuffix(DROP), limit)
    if name == "finite_outputs":
        return f"the package's output is not finite at {value:.0f} scored positions"
    if name == "tokenizer_parity":
        return f"the tokenizer differs from the trained model's in {value:.0f} cases"
    if name == "time_to_answer_ratio":
        return (
            f"an answer takes {value:.2f} × as long as from the unconverted model "
            f"(limit {limit:.2f} ×)"
        )
    if name == "package_bytes":
        return f"the package is {megabytes(value)} MB (limit {megabytes(limit)} MB)"
    words, allowed = _LATENCY_WORDS[name]
    return f"{words.format(value=value)} (limit {allowed.format(limit=limit)})"


def _drop_sentence(report: Report, metric: str, limit: float) -> str:
    row = report.task_metrics[metric]
    flips = report.fidelity.flips
    name = metric.replace("_", " ")
    change = f"from {percent(row.reference)} to {percent(row.candidate)}"
    margin = f"{100 * limit:g} points"
    if -row.difference > limit:
        text = f"{name} fell {change} (limit {margin}, n = {row.n})"
    else:
        text = f"{name} went {change}; {row.n} items cannot exclude a loss of {margin}"
    if flips:
        text += (
            f"; {flips['changed']} of {flips['answers']} answers changed: {flips['lost']} right "
            f"ones became wrong, {flips['gained']} wrong ones right"
        )
    return text


def normalization_note(report: Report) -> str | None:
    """What a program must do that calls onnxruntime-genai itself; None where it need not."""
    forms = report.tokenizer.normalized
    if not forms:
        return None
    return (
        f"the model reads text in the normal form {', '.join(forms)}; onnxruntime-genai does not "
        "normalize it, edgetune does, and so must a program that calls onnxruntime-genai itself"
    )
