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
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], class_: str = "figures"
) -> Markup:
    """A table that scrolls inside itself; the first cell of a row is its header. The frame takes
    the focus, so that it scrolls without a mouse too."""
    head = tag("tr", *(tag("th", column or quiet("figure"), scope="col") for column in columns))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
        class_=class_,
    )
    return tag("div", whole, class_="scroll", role="group", aria_label=caption, tabindex="0")


def fold(summary: str, *children: str) -> Markup:
    """What is there for who asks."""
    return tag("details", tag("summary", summary), *children)


def pairs(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names with their values."""
    found = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows]
    return tag("dl", *found, class_="pairs")
