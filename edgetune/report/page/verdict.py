"""The top of the page: the verdict, the figures that matter most, and why it is so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgetune.report.page.elements import Markup, foreign, items, join, quiet, table, tag
from edgetune.report.page.plots import allowance_bar
from edgetune.report.page.shown import Shown
from edgetune.report.questions import DROP, EMULATED
from edgetune.report.schema import Report
from edgetune.report.survival_words import where_it_was_lost
from edgetune.report.terminal import where_measured
from edgetune.report.verdict import Judged
from edgetune.report.words import (
    megabytes,
    nats,
    percent,
    plain,
    sentence_of,
    what_is_unclear,
    what_was_lost,
)

_MISSING = "not measured"
WORDS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive"}
_CLASSES = {"pass": "pass", "fail": "fail", "inconclusive": "unclear"}
# Check mark, cross, question mark in a square of 24.
_ICONS = {
    "pass": "M5 12.5l4.5 4.5L19 7.5",
    "fail": "M6.5 6.5l11 11M17.5 6.5l-11 11",
    "inconclusive": "M8.5 9a3.5 3.5 0 1 1 5.4 2.9c-1.2.8-1.9 1.5-1.9 2.8M12 18v.2",
}
_QUESTIONS = {
    "retention": "The fine-tune is kept",
    "kl_mean": "Close to the trained model",
    "long_context_kl": "As close on long texts",
    "tokenizer_parity": "The tokenizer is the trained model’s",
    "finite_outputs": "Every output is finite",
    "time_to_answer_ratio": "Answers as fast as unconverted",
    "ttft_ms": "The first token comes in time",
    "decode_tokens_per_s": "Decodes fast enough",
    "peak_rss_mb": "Fits the memory",
    "package_bytes": "Fits the disk",
}


def pill(verdict: str) -> Markup:
    """A verdict in a word, with its colour and sign."""
    if verdict not in _ICONS:
        return tag("span", verdict, class_="pill none")
    return tag("span", icon(verdict), verdict, class_=f"pill {_CLASSES[verdict]}")


def with_pills(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table's rows with the verdicts in their last cells as pills."""
    return [[*row[:-1], pill(row[-1]) if row[-1] else ""] for row in rows]


def icon(verdict: str) -> Markup:
    """The verdict's sign; the word stands beside it."""
    path = tag("path", d=_ICONS[verdict])
    square = {"viewBox": "0 0 24 24", "width": "24", "height": "24"}
    return tag("svg", path, class_="icon", aria_hidden="true", focusable="false", **square)


def banner(shown: Shown, level: str) -> Markup:
    """The verdict over one report in the largest type, and in a sentence what it means."""
    report, judgement = shown.report, shown.judgement
    verdict = judgement.verdict
    head = tag(
        level, icon(verdict), tag("span", WORDS[verdict], quiet(": "), class_="verdict"),
        tag("span", foreign(shown.title), class_="of"),
    )  # fmt: skip
    about = [
        ("variant ", foreign(report.variant)),
        ("device ", foreign(report.device)),
        ("package ", tag("code", report.package_digest[:16])),
    ]
    told = tag("p", *(tag("span", name, value) for name, value in about), class_="about")
    return tag(
        "div", head, tag("p", in_a_sentence(shown), class_="lead"), told,
        class_=f"banner {_CLASSES[verdict]}",
    )  # fmt: skip


def in_a_sentence(shown: Shown) -> str:
    """How many checks there are, and how they ended."""
    verdicts = [check.verdict for check in shown.judgement.checks]
    if not verdicts:
        return "Nothing was asked of this package."
    count = "1 check" if len(verdicts) == 1 else f"{len(verdicts)} checks"
    if verdicts.count("pass") == len(verdicts):
        return "The check passes." if len(verdicts) == 1 else f"All {count} pass."
    ended = [
        f"{verdicts.count(word)} {words}"
        for word, words in (
            ("fail", "failed"),
            ("inconclusive", "could not be decided"),
            ("not measured", "not measured"),
            ("pass", "passed"),
        )
        if word in verdicts
    ]
    return f"Of {count} {', '.join(ended)}."


def tiles(report: Report) -> Markup:
    """The figures that matter most; "not measured" where one was not."""
    found = [
        tag("div", tag("dt", name), tag("dd", _large(value), tag("span", _together(more))))
        for name, value, more in _tiles(report)
    ]
    return tag("dl", *found, class_="tiles")


def _large(value: str) -> Markup:
    return tag("b", value, class_="none" if value == _MISSING else None)


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    fidelity, latency, size = report.fidelity, report.latency, report.size
    kept = fidelity.retention
    yield (
        "Fine-tune kept",
        f"{_kept(kept.value)} %" if kept else _MISSING,
        f"at least {_kept(kept.low)} %" if kept else fidelity.reasons.get("retention", ""),
    )
    kl = fidelity.kl_mean
    yield (
        "KL from trained",
        nats(kl.value) if kl else _MISSING,
        f"nats; base alone {nats(fidelity.kl_base.value)}" if kl and fidelity.kl_base else "nats",
    )
    metric = report.task_metrics.get("exact_match")
    yield (
        "Exact match",
        percent(metric.candidate) if metric else _MISSING,
        f"trained model {percent(metric.reference)}" if metric else "",
    )
    ratio, side = latency.ratio, latency.candidate
    yield (
        "Time to answer",
        f"{side.answer_ms:.1f} ms" if side else _MISSING,
        f"{ratio.value:.2f} × the unconverted model’s" if ratio else latency.reason or "",
    )
    base = size.base_bytes
    yield (
        "Package",
        f"{megabytes(size.package_bytes)} MB",
        f"{size.package_bytes / base:.2f} × the base’s weights" if base else "",
    )


def why(shown: Shown, level: str) -> Markup:
    """Each check with its figure, bounds, limit and verdict, and in words what was lost."""
    report, judgement = shown.report, shown.judgement
    losses = [*what_was_lost(report, judgement), *where_it_was_lost(report, judgement)]
    unclear = list(what_is_unclear(report, judgement))
    parts = [tag(level, "Why")]
    if losses:
        parts += [tag("p", "What was lost:"), items(map(_sentence, losses), "lost")]
    if unclear:
        parts += [tag("p", "What could not be decided:"), items(map(_sentence, unclear), "open")]
    columns = ("check", "verdict", "measured", "limit", "bounds", "use of the limit")
    rows = [_row(report, check) for check in judgement.checks]
    parts.append(table(f"Checks of {shown.title}", columns, rows, "figures cards", cards=True))
    if shown.notes:
        parts += [tag("p", "To be known of this report:"), items(shown.notes, "open")]
    parts.append(
        tag(
            "p",
            f"Measured: {where_measured(report)}. Bounds are one-sided 95 % bounds; a check passes "
            "when its figure and its bound on the bad side are within the limit. In the last "
            "column the line in the middle is the limit.",
            class_="note",
        )
    )
    return tag("section", *parts)


def _sentence(text: str) -> str:
    return _together(f"{text[:1].upper()}{text[1:].rstrip(':; ')}.")


def _together(text: str) -> str:
    """Numbers kept on one line with their units."""
    return text.replace(" %", "\u00a0%").replace(" ×", "\u00a0×")


def _row(report: Report, check: Judged) -> list[str]:
    show, unit = figure_words(check.name)
    figure = check.figure
    name = tag("span", _question(check.name), class_="question")
    told = join([name, tag("code", check.name), *_in_words(report, check)])
    limit = f"{'≥' if check.bad == 'below' else '≤'} {show(check.limit)}{unit}"
    if figure is None:
        return [told, pill(check.verdict), "not measured", limit, "–", "–"]
    exact = figure.low == figure.value == figure.high
    bounds = "exact" if exact else f"{show(figure.low)} to {show(figure.high)}"
    value = f"{show(figure.value)}{unit}"
    return [told, pill(check.verdict), value, limit, bounds, _allowance(check) or "–"]


def _in_words(report: Report, check: Judged) -> Iterator[Markup]:
    """What the lists above the table do not say already."""
    if check.figure is None:
        yield tag("small", f"Not measured: {check.reason or 'no reason was given'}.")
    elif check.verdict == "pass":
        yield tag("small", _sentence(sentence_of(report, check)))


def _question(name: str) -> str:
    plain_name = name.removeprefix(EMULATED)
    if plain_name.endswith(DROP):
        text = f"{plain_name.removesuffix(DROP).replace('_', ' ').capitalize()} is not worse"
    else:
        text = _QUESTIONS.get(plain_name, plain_name.replace("_", " "))
    return f"{text}, emulated" if name != plain_name else text


def figure_words(name: str) -> tuple[Callable[[float], str], str]:
    """How a check's figure is written, and its unit with the space before it."""
    name = name.removeprefix(EMULATED)
    if name.endswith(DROP):
        share = name.removesuffix(DROP) != "answer_logprob"
        return (_hundredths, " points lost") if share else (_four_digits, " nats lost")
    return _FIGURES.get(name, (_short, ""))


def _hundredths(value: float) -> str:
    return plain(100 * value + 0.0, 1)


def _four_digits(value: float) -> str:
    return plain(value, 4)


def _short(value: float) -> str:
    return f"{value:g}"


def _tenths(value: float) -> str:
    return plain(value, 1)


def _thousandths(value: float) -> str:
    return f"{value:.3f}"


def _kept(value: float) -> str:
    return plain(100 * value, 2)


_FIGURES: dict[str, tuple[Callable[[float], str], str]] = {
    "retention": (_kept, " %"),
    "kl_mean": (nats, " nats"),
    "long_context_kl": (nats, " nats"),
    "time_to_answer_ratio": (_thousandths, " ×"),
    "package_bytes": (megabytes, " MB"),
    "peak_rss_mb": (_tenths, " MB"),
    "ttft_ms": (_tenths, " ms"),
    "decode_tokens_per_s": (_tenths, " tokens/s"),
}


def _allowance(check: Judged) -> Markup:
    """The figure and its bounds as shares of what the limit allows; nothing where it allows none.

    Of a figure that must not fall (retention, a speed) the allowance is what is missing from 1, or
    the inverse.
    """
    figure, limit = check.figure, check.limit
    if figure is None or limit <= 0:
        return Markup("")

    def used(value: float) -> float:
        if check.bad == "above":
            return value / limit
        if check.name.removeprefix(EMULATED) == "retention":
            return (1 - value) / (1 - limit) if limit < 1 else 2.0
        return limit / value if value > 0 else 2.0

    return allowance_bar(used(figure.value), used(figure.low), used(figure.high))
