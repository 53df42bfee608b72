"""Markdown of foreign text: a table, and text that means itself."""

from __future__ import annotations

from collections.abc import Sequence

_MARKUP = "\\`*_{}[]|~"
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;", "#": "&#35;"}
MARKS = {"pass": "✅ pass", "fail": "❌ **fail**", "inconclusive": "❔ inconclusive"}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, figures right-justified; cells are Markdown already."""
    head = [column or "figure" for column in columns]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    return lines + [_line(row) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def one_line(text: str) -> str:
    """Foreign text between backquotes, on one line."""
    return "".join(c if c.isprintable() and c != "`" else " " for c in text)


def plain_text(text: str) -> str:
    """Foreign text so that it means itself, in a table too: no markup, no HTML, no line breaks,
    no control bytes, nobody mentioned."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return "".join(_ENTITIES.get(c, f"\\{c}" if c in _MARKUP else c) for c in clean)
