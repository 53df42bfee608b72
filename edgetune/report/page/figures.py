"""Every figure of the report as its JSON has it, for who wants to check one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.report.page.elements import Markup, foreign, pairs, table, tag
from edgetune.report.page.elements import fold as folded
from edgetune.report.page.shown import Shown
from edgetune.report.schema import PerItem

# Rows of a table; the JSON beside the page has them all.
_MOST_ROWS = 2000


def every_figure(shown: Shown, level: str) -> Markup:
    """The report's sections, folded, one after another."""
    value = shown.report.model_dump(mode="json")
    verdicts = {check.name: check.verdict for check in shown.judgement.checks}
    # What is shown is judged anew, never read back.
    value["verdict"] = shown.judgement.verdict
    for check in value["checks"]:
        check["verdict"] = verdicts[check["name"]]
    single = {key: inner for key, inner in value.items() if not isinstance(inner, dict | list)}
    parts = [tag(level, "Every figure"), pairs((k, foreign(_scalar(v))) for k, v in single.items())]
    for key, inner in value.items():
        if key in single or not inner:
            continue
        title = f"{shown.title}: {key}"
        parts.append(folded(key, *_section(title, inner, key)))
    return tag("section", *parts)


def _section(title: str, value: Any, key: str) -> Iterator[Markup]:
    if key == "per_item":
        # Its lists are about the same items, which the schema has checked.
        yield from _columns(title, {name: value[name] for name in PerItem.model_fields})
    elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
        yield from _rows(title, value)
    else:
        flat = dict(_flat(value, ""))
        lists = {k: v for k, v in flat.items() if isinstance(v, list)}
        yield pairs((k, foreign(_scalar(v))) for k, v in flat.items() if k not in lists)
        for name, rows in lists.items():
            yield from _rows(f"{title}.{name}", rows)


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Markup]:
    """A list of objects as a table; what is deeper in them is flattened."""
    flat = [dict(_flat(row, "", deep=True)) for row in rows[:_MOST_ROWS]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if not names:
        return
    cells = [[foreign(_scalar(row.get(name))) for name in names] for row in flat]
    yield table(title, names, cells, "text")
    if len(rows) > _MOST_ROWS:
        yield tag("p", f"The first {_MOST_ROWS} of {len(rows)}; the report’s JSON has them all.")


def _columns(title: str, lists: Mapping[str, Sequence[Any]]) -> Iterator[Markup]:
    names = list(lists)
    columns = [lists[name] for name in names]
    rows = zip(*columns, strict=True)
    yield from _rows(title, [dict(zip(names, row, strict=True)) for row in rows])


def _flat(value: Any, place: str, deep: bool = False) -> Iterator[tuple[str, Any]]:
    """(dotted key, scalar) of everything in a value; a list of objects stays one unless `deep`."""
    if isinstance(value, Mapping):
        if not value:
            yield place, "{}"
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key), deep)
    elif isinstance(value, list) and value and any(isinstance(v, dict | list) for v in value):
        if not deep and all(isinstance(row, dict) for row in value):
            yield place, value
        else:
            for number, inner in enumerate(value):
                yield from _flat(inner, f"{place}[{number}]", deep)
    elif isinstance(value, list):
        yield place, ", ".join(map(_scalar, value))
    else:
        yield place or "value", value


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return value
    return json.dumps(value)
