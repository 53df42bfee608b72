"""The report as Markdown, fit for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.report.cost import cost_lines
from edgetune.report.schema import Report, parse_report
from edgetune.report.survival_words import (
    SURVIVAL_COLUMNS,
    certificate_lines,
    survival_rows,
    where_it_was_lost,
)
from edgetune.report.terminal import COLUMNS, table_rows, where_measured
from edgetune.report.verdict import judge
from edgetune.report.words import (
    headline,
    normalization_note,
    not_measured,
    what_is_unclear,
    what_was_emulated,
    what_was_lost,
)

_MARKUP = "\\`*_{}[]|~"
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;", "#": "&#35;"}
_MARKS = {"pass": "✅ pass", "fail": "❌ **fail**", "inconclusive": "❔ inconclusive"}


def to_markdown(value: Mapping[str, Any] | Report) -> str:
    """The report's text: verdict, what was lost in words, table, worst answers, where measured."""
    report = value if isinstance(value, Report) else parse_report(value)
    judgement = judge(report)
    lines = [f"## {_MARKS[judgement.verdict]}: `{report.identifier}`", ""]
    lines += [f"{headline(judgement)} (variant `{report.variant}`).", ""]
    losses = [*what_was_lost(report, judgement), *where_it_was_lost(report, judgement)]
    if losses:
        lines += ["**What was lost**", "", *(f"- {_text(loss)}" for loss in losses), ""]
    unclear = list(what_is_unclear(report, judgement))
    if unclear:
        lines += ["**What could not be decided**", "", *(f"- {_text(u)}" for u in unclear), ""]
    rows = [[*row[:-1], _MARKS.get(row[-1], row[-1])] for row in table_rows(report)]
    lines += _table(COLUMNS, rows)
    lines += ["", *_examples(report, bool(losses or unclear)), *_tokenizer(report)]
    lines += _survival(report)
    missing = list(not_measured(judgement))
    if missing:
        lines += ["**Not measured**", "", *(f"- {_text(text)}" for text in missing), ""]
    lines += [f"Measured: {_text(where_measured(report))}. Bounds are one-sided 95 % bounds.", ""]
    if costs := list(cost_lines(report)):
        lines += [f"Cost: {'. '.join(_text(text) for text in costs)}.", ""]
    if emulated := what_was_emulated(report):
        lines += [f"Emulated: {_text(emulated)}.", ""]
    lines += [f"Package `{report.package_digest[:16]}`, {_versions(report)}."]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [column or "figure" for column in columns]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    return lines + [_line(row) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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
    yield from _table(("item", "expected", "reference", "package"), rows)
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
        yield from _table(("kind", "given", "expected", "found"), rows)
        yield ""
    if note := normalization_note(report):
        yield from (f"{note[0].upper()}{note[1:]}.", "")


def _survival(report: Report) -> Iterator[str]:
    """The merge's certificate, and what quantization left in each module."""
    merges = list(certificate_lines(report))
    if merges:
        yield from ("**Merge**", "", *(f"- {_text(text)}" for text in merges), "")
    rows = survival_rows(report)
    if rows and report.survival:
        count = len(report.survival.modules)
        title = f"What quantization leaves of the fine-tune: the worst {len(rows)} of {count}"
        yield from (f"<details><summary>{title} modules</summary>", "")
        yield from _table(SURVIVAL_COLUMNS, [[_text(cell) for cell in row] for row in rows])
        yield from ("", "</details>", "")


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    text = "–" if value is None else str(value)
    return _text(text if len(text) <= 160 else f"{text[:159]}…")


def _versions(report: Report) -> str:
    known = report.environment.versions
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _text(text: str) -> str:
    """Foreign text so that it means itself, in a table too: no markup, no HTML, no line breaks,
    no control bytes, nobody mentioned."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return "".join(_ENTITIES.get(c, f"\\{c}" if c in _MARKUP else c) for c in clean)
