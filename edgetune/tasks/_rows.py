"""Rows of a JSON lines file, each with the place that a message about it names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgetune.errors import UsageError

Row = Mapping[str, Any]
_T = TypeVar("_T")
_MOST_SHOWN = 5
_FORM_HINT = 'one JSON object a line, for example {"prompt": "…", "completion": "…"}'


def read_items(path: Path, parse: Callable[[Row, str, int], Sequence[_T]], hint: str) -> list[_T]:
    """All items of a file: `parse(row, "file:line", line)` gives those of one row.

    Blank lines are skipped, a byte order mark is too. Raises UsageError: no such file, not text,
    no row in it, or every row (the first five) that is not JSON or that `parse` refuses.
    """
    items: list[_T] = []
    problems: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            items.extend(parse(_row(line, place), place, number))
        except UsageError as why:
            problems.append(why.message)
    if problems:
        shown = problems[:_MOST_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"… and {len(problems) - len(shown)} more lines like these")
        raise UsageError("\n".join(shown), hint)
    if not items:
        msg = f"{path}: the file is empty, there is nothing to score"
        raise UsageError(msg, _FORM_HINT)
    return items


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        msg = f"{path}: no such file"
    except UnicodeDecodeError as why:
        msg = f"{path}: not UTF-8 text (byte {why.start})"
    except OSError as why:
        msg = f"{path}: cannot be read ({why.strerror})"
    except ValueError:  # a NUL byte
        msg = f"{path}: no such file"
    raise UsageError(msg, "name a JSON lines file: one JSON object a line, UTF-8")


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
        # A lone surrogate is legal in JSON and in no other place that text goes to.
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        msg = f"{place}: half of a surrogate pair, which is not text"
    except (ValueError, RecursionError) as why:
        msg = f"{place}: not JSON ({str(why).split(':')[0]})"
    else:
        if isinstance(row, dict):
            return row
        msg = f"{place}: expected a JSON object, found {kind_of(row)}"
    raise UsageError(msg, _FORM_HINT)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def did_you_mean(
    field: str, row: Row, known: Sequence[str], others: Mapping[str, Sequence[str]]
) -> str:
    """`; did you mean field for …?` when the row has a misspelt or differently named `field`.

    `known` are the field names of the task, which are not misspelt ones; `others` are names that
    other tools give a field.
    """
    keys = [key for key in row if key not in known]
    close = difflib.get_close_matches(field, keys, n=1, cutoff=0.7)
    close += [key for key in keys if key.lower() in others.get(field, ())]
    return f"; did you mean {field!r} for {close[0]!r}?" if close else ""
