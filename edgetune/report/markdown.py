"""The report as Markdown, fit for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.report.allocation_words import allocation_lines
from edgetune.report.cost import cost_lines
from edgetune.report.long_context_words import long_context_lines
from edgetune.report.markup import MARKS, markdown_table, one_line, plain_text
from edgetune.report.schema import Report, parse_report
from edgetune.report.survival_words import (
    SURVIVAL_COLUMNS,
    certificate_lines,
    survival_rows,
    where_it_was_lost,
)
from edgetune.report.terminal import COLUMNS, table_rows, where_measured
from edgetune.report.verdict import Judgement, judge
from edgetune.report.words import (
    carried_note,
    double_bos_note,
    flips_of,
    headline,
    normalization_note,
    not_measured,
    what_is_unclear,
    what_was_emulated,
    what_was_lost,
)


def to_markdown(
    value: Mapping[str, Any] | Report,
    judgement: Judgement | None = None,
    more: Sequence[str] = (),
) -> str:
    """The report's text: verdict, what was lost in words, table, worst answers, where measured.

    `judgement`: one that asks more than the report itself, such as a comparison with a baseline;
    `more`: lines that stand below the table.
    """
    report = value if isinstance(value, Report) else parse_report(value)
    judgement = judgement or judge(report)
    lines = [f"## {MARKS[judgement.verdict]}: `{one_line(report.identifier)}`", ""]
    lines += [f"{headline(judgement)} (variant `{one_line(report.variant)}`).", ""]
    losses = [*what_was_lost(report, judgement), *where_it_was_lost(report, judgement)]
    if losses:
        lines += ["**What was lost**", "", *(f"- {plain_text(loss)}" for loss in losses), ""]
    unclear = list(what_is_unclear(report, judgement))
    if unclear:
        lines += ["**What could not be decided**", "", *(f"- {plain_text(u)}" for u in unclear), ""]
    rows = [[*row[:-1], MARKS.get(row[-1], row[-1])] for row in table_rows(report)]
    lines += markdown_table(COLUMNS, rows)
    lines += ["", *more]
    if text := flips_of(report):
        lines += [f"Flips: {text}.", ""]
    lines += [*_examples(report, bool(losses or unclear)), *_tokenizer(report)]
    lines += _survival(report)
    missing = list(not_measured(judgement))
    if missing:
        lines += ["**Not measured**", "", *(f"- {plain_text(text)}" for text in missing), ""]
    lines += [
        f"Measured: {plain_text(where_measured(report))}. Bounds are one-sided 95 % bounds.",
        "",
    ]
    if long := list(long_context_lines(report)):
        lines += ["**Long texts**", "", *(f"- {plain_text(text)}" for text in long), ""]
    if widths := list(allocation_lines(report)):
        lines += ["**Widths**", "", *(f"- {plain_text(text)}" for text in widths), ""]
    if costs := list(cost_lines(report)):
        lines += [f"Cost: {'. '.join(plain_text(text) for text in costs)}.", ""]
    if carried := carried_note(report):
        lines += [f"Data: {plain_text(carried)}.", ""]
    if emulated := what_was_emulated(report):
        lines += [f"Emulated: {plain_text(emulated)}.", ""]
    lines += [f"Package `{one_line(report.package_digest[:16])}`, {_versions(report)}."]
    return "\n".join(lines) + "\n"


def _examples(report: Report, shown: bool) -> Iterator[str]:
    """The answers that changed most; in a fold where nothing was lost."""
    if not report.examples:
        return
    title = f"Answers that changed ({report.fidelity.flips.get('changed', 0)}), the worst first"
    if shown:
        yield from (f"**{title}**", "")
    else:
        yield from (f"<details><summary>{title}</summary>", "")
    rows = [
        [_cell(row, "id"), _cell(row, "expected"), _cell(row, "reference"), _cell(row, "package")]
        for row in report.examples[:5]
    ]
    yield from markdown_table(("item", "expected", "reference", "package"), rows)
    yield ""
    if not shown:
        yield from ("</details>", "")


def _tokenizer(report: Report) -> Iterator[str]:
    rows = [
        [_cell(row, key) for key in ("kind", "given", "expected", "found")]
        for row in report.tokenizer.differences[:5]
    ]
    if rows:
        yield from ("**Where the tokenizer differs**", "")
        yield from markdown_table(("kind", "given", "expected", "found"), rows)
        yield ""
    for note in (normalization_note(report), double_bos_note(report)):
        if note:
            yield from (f"{note[0].upper()}{note[1:]}.", "")


def _survival(report: Report) -> Iterator[str]:
    """The merge's certificate, and what quantization left in each module."""
    merges = list(certificate_lines(report))
    if merges:
        yield from ("**Merge**", "", *(f"- {plain_text(text)}" for text in merges), "")
    rows = survival_rows(report)
    if rows and report.survival:
        count = len(report.survival.modules)
        title = f"What quantization leaves of the fine-tune: the worst {len(rows)} of {count}"
        yield from (f"<details><summary>{title} modules</summary>", "")
        yield from markdown_table(
            SURVIVAL_COLUMNS, [[plain_text(cell) for cell in row] for row in rows]
        )
        yield from ("", "</details>", "")


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    text = "–" if value is None else str(value)
    return plain_text(text if len(text) <= 160 else f"{text[:159]}…")


def _versions(report: Report) -> str:
    known = report.environment.versions
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)
