"""HTML out of untrusted text: whatever is not markup by type is escaped.

Reports carry prompts, answers, names of modules and recipes that anybody may have written. The
result is well-formed XML too, which is what the tests read it with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = ("meta", "br", "hr", "line", "rect", "circle", "path")
# Invisible characters that turn the direction of the text around them: shown, not obeyed.
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"


_ROLES = {
    "table": "table",
    "group": "rowgroup",
    "row": "row",
    "column": "columnheader",
    "header": "rowheader",
    "cell": "cell",
}


class Markup(str):
    """Text that is markup already. Everything else is escaped where it is put into an element."""

    __slots__ = ()


def readable(text: str) -> str:
    """Text that a page can hold: control characters and such as turn the direction are escaped,
    halves of surrogate pairs and non-characters too; line breaks and tabs stay."""
    return "".join(c if _fits(c) else f"\\u{ord(c):04x}" for c in text.replace("\r\n", "\n"))


def _fits(c: str) -> bool:
    code = ord(c)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return c in "\n\t"
    return c not in _DIRECTIONS and not 0xD800 <= code < 0xE000 and code & 0xFFFE != 0xFFFE


def markup(child: str) -> Markup:
    """A child as markup: escaped unless it is."""
    return child if isinstance(child, Markup) else Markup(escape(readable(child)))


def join(children: Iterable[str], between: str = "") -> Markup:
    """Several children, one after another."""
    return Markup(markup(between).join(markup(child) for child in children))


def tag(name: str, /, *children: str, **attributes: str | None) -> Markup:
    """An element. `class_` is class, `aria_label` is aria-label; null attributes are left out."""
    pairs = "".join(
        f' {_attribute(key)}="{escape(readable(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{pairs}/>")
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def quiet(text: str) -> Markup:
    """Words for a screen reader alone."""
    return tag("span", text, class_="quiet")


def foreign(text: str) -> Markup:
    """Somebody else's text on one line, whichever way it is written."""
    return tag("bdi", text)


def items(lines: Iterable[str], class_: str | None = None) -> Markup:
    """A list; nothing where there are no lines."""
    found = [tag("li", line) for line in lines]
    return tag("ul", *found, class_=class_) if found else Markup("")


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    class_: str = "figures",
    *,
    cards: bool = False,
) -> Markup:
    """A table that scrolls inside itself; the first cell of a row is its header. The frame takes
    the focus, so that it scrolls without a mouse too.

    `cards`: on a phone each row is a card, its cells with their columns' names. Such a layout takes
    a table's meaning from it for a screen reader, so its roles are said.
    """
    role = _ROLES if cards else dict.fromkeys(_ROLES)
    head = [tag("th", c or quiet("figure"), scope="col", role=role["column"]) for c in columns]
    body = []
    for first, *others in rows:
        cells = [
            tag("td", cell, role=role["cell"], data_label=column if cards else None)
            for column, cell in zip(columns[1:], others, strict=True)
        ]
        header = tag("th", first, scope="row", role=role["header"])
        body.append(tag("tr", header, *cells, role=role["row"]))
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *head, role=role["row"]), role=role["group"]),
        tag("tbody", *body, role=role["group"]),
        class_=class_,
        role=role["table"],
    )
    return tag("div", whole, class_="scroll", role="group", aria_label=caption, tabindex="0")


def fold(summary: str, *children: str) -> Markup:
    """What is there for who asks."""
    return tag("details", tag("summary", summary), *children)


def pairs(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names with their values."""
    found = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows]
    return tag("dl", *found, class_="pairs")
