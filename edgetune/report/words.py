"""Figures and judgements in words, shared by terminal and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgetune.report.long_context import worst_stretch
from edgetune.report.questions import DROP, EMULATED, LONG_CONTEXT, Figure, emulated_view
from edgetune.report.verdict import Judged, Judgement

if TYPE_CHECKING:
    from edgetune.report.schema import Report

EXACT_MATCH = "exact_match"
_MOST_FLIPS = 10_000

_LATENCY_WORDS = {
    "ttft_ms": ("the first token takes {value:.1f} ms", "{limit:.1f} ms"),
    "decode_tokens_per_s": ("decoding gives {value:.1f} tokens/s", "{limit:.1f}"),
    "peak_rss_mb": ("the process takes {value:.0f} MB of memory", "{limit:.0f} MB"),
}


@dataclass(frozen=True)
class Row:
    """A line of a comparison's table; `check` names its question, empty where there is none."""

    label: str
    baseline: str
    package: str
    difference: str
    limit: str
    check: str


_KINDS = {
    "template": "chat template",
    "chat_tokens": "tokens of a rendered chat",
    "prompt": "tokens of the evaluation prompts",
    "special_token": "special tokens",
    "eos_token_ids": "tokens that end an answer",
    "stream": "decode token by token",
    "generation": "generation settings",
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


def divergence(change: float) -> str:
    """A difference of divergences, signed, with digits that show it."""
    if change == 0:
        return "0.0000"
    text = f"{change:+.4f}" if abs(change) >= 0.001 else f"{change:+.1e}"
    return text.replace("-", "−")


def times(ratio: Figure) -> str:
    """`× 0.25 [0.23, 0.27]`."""
    return f"× {ratio.value:.2f} {bounds(f'{ratio.low:.2f}', f'{ratio.high:.2f}')}"


def flips_in_words(flips: Mapping[str, float | None]) -> str:
    """Answers that changed, right ones that became wrong and back, and the exact McNemar test."""
    p = flips.get("p_value")
    return (
        f"{flips['changed']} of {flips['answers']} answers changed: {flips['lost']} right ones "
        f"became wrong, {flips['gained']} wrong ones right"
    ) + ("" if p is None else f"; McNemar p = {p:.3g}")


def flips_of(report: Report) -> str:
    """The flips of the package's answers against the trained model's; empty without answers."""
    flips = report.fidelity.flips
    if not flips.get("answers"):
        return ""
    from edgetune.statistics import mcnemar_exact  # a build judges without numpy

    lost, gained = flips.get("lost", 0), flips.get("gained", 0)
    counts = {key: flips.get(key, 0) for key in ("answers", "changed")}
    # Computed anew like every figure that decides; an edited count may be any number.
    tellable = EXACT_MATCH in report.task_metrics and lost + gained <= _MOST_FLIPS
    p = mcnemar_exact(lost, gained) if tellable else None
    return flips_in_words({**counts, "lost": lost, "gained": gained, "p_value": p})


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


def sentence_of(report: Report, check: Judged) -> str:
    """A check in words whatever its verdict, with the reason where it has one."""
    if check.figure is None:
        return f"{check.name}: not measured: {check.reason or 'no reason was given'}"
    text = _sentence(report, check, check.figure)
    return f"{text} ({check.reason})" if check.reason else text


def _sentence(report: Report, check: Judged, figure: Figure) -> str:
    if check.name.startswith(EMULATED) and (view := emulated_view(report)) is not None:
        assert report.emulated is not None
        own = replace(check, name=check.name.removeprefix(EMULATED))
        return f"on the emulated {report.emulated.cpu} {_sentence(view, own, figure)}"
    name, value, limit = check.name, figure.value, check.limit
    if check.words:
        return check.words
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
    if name == LONG_CONTEXT and (worst := worst_stretch(report.long_context)) is not None:
        where = f"after {worst.first} to {worst.last} tokens ({worst.what} {worst.at})"
        return f"KL from the trained model is {nats(value)} nats {where} (limit {limit:g})"
    if name.endswith(DROP):
        return _drop_sentence(report, name.removesuffix(DROP), limit)
    if name == "finite_outputs":
        return f"the package's output is not finite at {value:.0f} scored positions"
    if name == "tokenizer_parity":
        return f"the tokenizer differs from the trained model's in {value:.0f} cases: " + "; ".join(
            tokenizer_differences(report)
        )
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
    elif -row.low > limit:
        text = f"{name} went {change}; {row.n} items cannot exclude a loss of {margin}"
    else:
        text = f"{name} went {change} (limit {margin}, n = {row.n})"
    return f"{text}; {flips_in_words(flips)}" if flips else text


def tokenizer_differences(report: Report) -> Iterator[str]:
    """A sentence for each kind that differs, the gravest first."""
    section = report.tokenizer
    first = {row.get("kind"): row for row in reversed(section.differences)}
    for kind, counts in section.by_kind.items():
        if not counts.get("mismatches"):
            continue
        words = _KINDS.get(kind, kind)
        text = f"{words}: {counts['mismatches']} of {counts['cases']} differ"
        row = first.get(kind)
        if row is None:
            yield text
            continue
        place = (
            f"first difference at {row['unit']} {row['at']}"
            if row.get("at") is not None
            else (f"of {row.get('given')!r}")
        )
        yield f"{text}, {place}: expected {row.get('expected')!r}, found {row.get('found')!r}"


def double_bos_note(report: Report) -> str | None:
    """What a program must not do with a rendered chat; None where it may."""
    if not report.tokenizer.double_bos:
        return None
    return (
        "the chat template writes the BOS token, and so does the tokenizer: encode a rendered chat "
        "without special tokens added, as edgetune and onnxruntime-genai do, or it begins with two"
    )


def normalization_note(report: Report) -> str | None:
    """What a program must do that calls onnxruntime-genai itself; None where it need not."""
    forms = report.tokenizer.normalized
    if not forms:
        return None
    return (
        f"the model reads text in the normal form {', '.join(forms)}; onnxruntime-genai does not "
        "normalize it, edgetune does, and so must a program that calls onnxruntime-genai itself"
    )


def carried_note(report: Report) -> str | None:
    """What of the evaluation data ships; None where nothing does."""
    if report.self_test is None:
        return None
    carries = report.self_test.carries
    text = carries.evaluation_text
    if text is not None:
        return (
            f"the package carries {text.items} evaluation items ({text.bytes / 1e3:.1f} kB), which "
            "whoever has it can read; for private data build with --self-test-data builtin"
        )
    if report.self_test.measured_on == carries.source:
        return None
    return (
        f"measured on {report.self_test.items} items of the {report.self_test.measured_on}; the "
        f"package carries none of them, its self-test is {carries.items} items of {carries.source}"
    )
