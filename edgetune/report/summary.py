"""The gate's Markdown: for `$GITHUB_STEP_SUMMARY` or a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.gate import Gated, Outcome
from edgetune.report.gate_table import BASELINE_COLUMNS, baseline_rows
from edgetune.report.markdown import to_markdown
from edgetune.report.markup import MARKS, markdown_table, plain_text
from edgetune.report.words import flips_in_words, headline

# GitHub drops a step's summary of more than 1 MiB whole.
MOST_BYTES = (1 << 20) - (8 << 10)
# Reports named in the table; the details of each come after it as long as there is room.
_MOST_ROWS = 500


def to_summary(outcome: Outcome, most_bytes: int = MOST_BYTES) -> str:
    """One line, a table of the reports, then each report in full, those that do not pass first.

    Whole reports are left out where the text would be larger than `most_bytes`, and it says so.
    """
    head = "\n".join(_head(outcome)) + "\n"
    left = most_bytes - len(head.encode()) - 200
    parts: list[str] = []
    order = sorted(outcome.gated, key=lambda one: one.judgement.verdict == "pass")
    for one in order:
        text = to_markdown(one.report, one.judgement, list(_more(one)))
        size = len(text.encode()) + 1
        if size <= left:
            parts.append(text)
            left -= size
    if len(parts) < len(order):
        parts.append(f"{len(order) - len(parts)} reports left out: the text would be too large.\n")
    return "\n".join([head, *parts])


def _head(outcome: Outcome) -> Iterator[str]:
    gated = outcome.gated
    yield f"# {MARKS[outcome.verdict]}: edgetune gate"
    yield ""
    if len(gated) < 2:
        return
    rows = [
        [
            f"{plain_text(_cut(one.title))}",
            plain_text(_cut(one.report.variant)),
            MARKS[one.judgement.verdict],
            plain_text(_cut(headline(one.judgement))),
        ]
        for one in gated[:_MOST_ROWS]
    ]
    yield from markdown_table(("report", "variant", "verdict", "why"), rows)
    if len(gated) > _MOST_ROWS:
        yield ""
        yield f"and {len(gated) - _MOST_ROWS} more."
    yield ""


def _more(one: Gated) -> Iterator[str]:
    """The comparison with the baseline, and the notes."""
    if one.comparison is not None:
        baseline = one.comparison.baseline
        yield f"**Against the baseline** {plain_text(_cut(str(baseline.path)))}"
        yield ""
        rows = [
            [*map(plain_text, row[:-1]), MARKS.get(row[-1], row[-1])] for row in baseline_rows(one)
        ]
        yield from markdown_table(BASELINE_COLUMNS, rows)
        yield ""
        if one.comparison.flips is not None:
            yield f"Since the baseline: {flips_in_words(one.comparison.flips)}."
            yield ""
    for note in one.notes:
        yield f"- {plain_text(_cut(note))}"
    if one.notes:
        yield ""


def _cut(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:299]}…"
