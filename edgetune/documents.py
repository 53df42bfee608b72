"""Strict YAML files read into frozen pydantic models; errors say file:line:column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from edgetune.errors import UsageError

_Model = TypeVar("_Model", bound=BaseModel)
_MOST_BYTES = 32 << 10
_MOST_VALUES = 10_000  # aliases count each time they are named
_MOST_DEPTH = 50
_MOST_SHOWN = 20  # problems


class Strict(BaseModel):
    """The settings that all documents share: frozen, unknown keys refused, no number from text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def load_document(path: Path, model: type[_Model], defaults: Mapping[str, Any]) -> _Model:
    """Read a YAML 1.2 file into `model`; `defaults` fills keys that the file may leave out.

    Raises UsageError that lists every problem with its line and column.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"{path}: larger than {_MOST_BYTES >> 10} KiB, no recipe or device profile is"
            raise UsageError(msg, "name the YAML file itself")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        msg = f"{path}: cannot be read ({why})"
        raise UsageError(msg, "check the path and that the file is UTF-8 text") from why
    if _flow_depth(text) > _MOST_DEPTH:
        # the parser takes a time that grows with the square of it
        msg = f"{path}: brackets are nested deeper than {_MOST_DEPTH}"
        raise UsageError(msg, "no recipe or device profile needs that")
    try:
        tree = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as why:
        mark = why.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        msg = f"{place}: not valid YAML: {why.problem}"
        raise UsageError(msg, "indent with spaces, quote text that holds ':' or '#'") from why
    except Exception as why:  # the parser raises all kinds for odd tags and keys
        said = str(why).splitlines() or [type(why).__name__]
        msg = f"{path}: not valid YAML: {said[0]}"
        raise UsageError(msg, "indent with spaces, quote text that holds ':' or '#'") from why
    if not isinstance(tree, Mapping):
        msg = f"{path}:1:1: expected keys and values, found {type(tree).__name__}"
        raise UsageError(msg, "see `edgetune recipes init` for a commented example")
    try:
        values = _plain(tree, count(), 0)
    except _TooMuchError as why:
        msg = f"{path}: {why}"
        raise UsageError(msg, "no recipe or device profile has that many values") from why
    try:
        return model.model_validate({**defaults, **values}, strict=True)
    except ValidationError as why:
        errors = why.errors()
        lines = [_say(path, tree, model, error) for error in errors[:_MOST_SHOWN]]
        if len(errors) > _MOST_SHOWN:
            lines.append(f"… and {len(errors) - _MOST_SHOWN} more")
        hint = "see `edgetune recipes init` or the shipped files for every key"
        raise UsageError("\n".join(lines), hint) from why


def _flow_depth(text: str) -> int:
    """The most brackets that are open at once; those in quoted text count, a few harm nobody."""
    depth = most = 0
    for match in re.finditer(r"[\[\]{}]", text):
        depth += 1 if match[0] in "[{" else -1
        most = max(most, depth)
    return most


class _TooMuchError(ValueError):
    """A document that aliases make larger than it looks."""


def _plain(node: Any, counter: Iterator[int], depth: int) -> Any:
    """ruamel's annotated values as plain ones, so that pydantic's strict mode takes them."""
    if next(counter) > _MOST_VALUES or depth > _MOST_DEPTH:
        msg = f"more than {_MOST_VALUES} values, or nested deeper than {_MOST_DEPTH}"
        raise _TooMuchError(msg)
    if isinstance(node, Mapping):
        return {str(k): _plain(v, counter, depth + 1) for k, v in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return tuple(_plain(v, counter, depth + 1) for v in node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _say(path: Path, tree: Any, model: type[BaseModel], error: Any) -> str:
    location = tuple(error["loc"])
    line, column = _position(tree, location)
    where = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        what = f"unknown key {location[-1]!r}"
        what += f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
    elif error["type"] == "missing":
        what = f"{where} is missing"
    else:
        message = str(error["msg"]).removeprefix("Value error, ")
        what = f"{where}: {message[:1].lower()}{message[1:]}"
        if isinstance(error["input"], str | int | float | bool):
            what += f", got {error['input']!r}"
    return f"{path}:{line}:{column}: {what}"


def _position(tree: Any, location: Sequence[str | int]) -> tuple[int, int]:
    """The 1-based line and column of the innermost part of `location` that stands in the file."""
    line, column = 0, 0
    node: Any = tree
    for part in location:
        try:
            key = part if isinstance(node, Mapping) else int(part)
            marks = cast(Any, node).lc  # ruamel's line and column
            line, column = marks.key(key) if isinstance(node, Mapping) else marks.item(key)
            node = node[key]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            break
    return line + 1, column + 1


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the nested model that `location` leads to."""
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(str(part))
        inner = _models_in(field.annotation) if field is not None else []
        if isinstance(part, str) and inner:
            current = inner[0]
    return sorted(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]
