"""The answers that changed most, side by side, with the place where they part marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgetune.report.page.elements import Markup, foreign, join, quiet, table, tag
from edgetune.report.page.shown import Shown
from edgetune.report.schema import PerItem
from edgetune.report.words import nats

_LEFT_OUT = "left out: private data"
_FURTHEST = 5


def examples(shown: Shown, level: str, below: str) -> Markup:
    """Reference text against package text."""
    return tag("section", tag(level, "Answers side by side"), *_parts(shown, below))


def _parts(shown: Shown, below: str) -> Iterator[Markup]:
    report = shown.report
    answers, changed = (report.fidelity.flips.get(key, 0) for key in ("answers", "changed"))
    if not answers:
        yield tag("p", "Not measured: the items are scored, no answer is generated for them.")
    elif not changed and not report.examples:
        yield tag("p", f"All {answers} answers are word for word those of the trained model.")
    elif report.examples:
        yield tag(
            "p",
            f"{changed} of {answers} answers changed; the worst {len(report.examples)} first. "
            "The first word that differs is marked.",
        )
    for row in report.examples:
        yield _example(row, below)
    if report.per_item is not None and any(kl is not None for kl in report.per_item.kl_mean):
        yield _furthest(shown.title, report.per_item)


def _example(row: Mapping[str, Any], below: str) -> Markup:
    kl = row.get("kl_mean")
    far = f", KL {nats(kl)} nats" if isinstance(kl, int | float) else ""
    lost = "the right answer was lost" if row.get("lost") is True else "the answer changed"
    parts = [tag(below, "Item ", foreign(_text(row, "id")), f": {lost}{far}")]
    for key, name in (("prompt", "Prompt (its end)"), ("expected", "Expected")):
        if row.get(key) is not None:
            parts += [tag("p", name, class_="label"), _block(_text(row, key))]
    reference, package = row.get("reference"), row.get("package")
    if not isinstance(reference, str) or not isinstance(package, str):
        parts.append(tag("p", f"The answers are {_LEFT_OUT}."))
        return tag("article", *parts, class_="example")
    word, one, other = parted(reference, package)
    where = f"They part at word {word}." if word else "They differ in white space alone."
    parts += [
        tag("p", where),
        tag(
            "div",
            tag("div", tag("p", "Trained model", class_="label"), _block(one)),
            tag("div", tag("p", "Package", class_="label"), _block(other)),
            class_="sides",
        ),
    ]
    return tag("article", *parts, class_="example")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "–" if value is None else str(value)


def _block(text: str) -> Markup:
    return tag("blockquote", text, dir="auto")


def parted(reference: str, package: str) -> tuple[int | None, Markup, Markup]:
    """(number of the first word that differs, from 1; null where only white space does; both
    texts with that word marked)."""
    ones, others = (list(re.finditer(r"\S+", text)) for text in (reference, package))
    word = next(
        (n for n, (a, b) in enumerate(zip(ones, others, strict=False)) if a[0] != b[0]),
        min(len(ones), len(others)),
    )
    if word == len(ones) == len(others):
        return None, join([reference]), join([package])
    return word + 1, _marked(reference, ones, word), _marked(package, others, word)


def _marked(text: str, words: list[re.Match[str]], word: int) -> Markup:
    if word >= len(words):
        end = tag("mark", quiet("first difference: "), "(ends here)")
        return join([text, " ", end])
    start, stop = words[word].span()
    mark = tag("mark", quiet("first difference: "), text[start:stop], quiet(" "))
    return join([text[:start], mark, text[stop:]])


def _furthest(title: str, per_item: PerItem) -> Markup:
    rows = zip(per_item.ids, per_item.kl_mean, per_item.positions, per_item.exact, strict=True)
    measured = [(kl, name, places, right) for name, kl, places, right in rows if kl is not None]
    measured.sort(key=lambda row: -row[0])
    words = {1: "right", 0: "wrong", None: "not asked"}
    cells = [
        (foreign(name), nats(kl), str(places), words[right])
        for kl, name, places, right in measured[:_FURTHEST]
    ]
    columns = ("item", "mean KL, nats", "positions", "answer")
    return table(f"{title}: the items furthest from the trained model", columns, cells)
