"""A report's JSON value, read by attribute as the schema's own classes are.

A package judges itself on its device, where pydantic is not: the same `judge` and the same words
run over this view there. It proves nothing of the value: on the machine that made it the figures
are this program's own, and whoever receives the report reads it through `report.schema`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from edgetune.report.schema import Report

SCHEMA_VERSION = 1
# Keys whose value is a mapping of parts, a mapping of anything else, a list of parts.
MAPPINGS_OF_PARTS = ("task_metrics", "intervals")
MAPPINGS = (
    *("reasons", "flips", "by_kind", "versions", "evidence", "inputs", "token_ms"),
    *("delta_relative", "rounding_relative"),
    # Of the provenance; a report's own `steps` are a list.
    *("files", "data", "seeds", "steps"),
)
LISTS_OF_PARTS = (
    "checks",
    "modules",
    "candidates",
    "worst",
    "steps",
    "kl_by_position",
    "tries",
    "adapters",
    "stretches",
)


class Plain:
    """One object of a report; a key that it has not is null, as the schema's defaults are."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._value.get(name)
        if name in LISTS_OF_PARTS and isinstance(value, list):
            return [_view(own) for own in value]
        if name in MAPPINGS or name in MAPPINGS_OF_PARTS:
            found = value or {}
            return found if name in MAPPINGS else {key: _view(own) for key, own in found.items()}
        return _view(value)

    @property
    def model_extra(self) -> Mapping[str, Any]:
        """All keys, those that the schema names too."""
        return self._value

    def model_copy(self, update: Mapping[str, Any]) -> Plain:
        """The object with other values at some keys."""
        return Plain({**self._value, **{key: _value(own) for key, own in update.items()}})


def as_report(value: Mapping[str, Any]) -> Report:
    """A freshly made report's JSON value, as `judge` and `report.words` read it."""
    return cast("Report", Plain(value))


def not_finite(value: Any, place: str) -> str | None:
    """Where in a JSON value a number is NaN or infinite (1e999 reads as infinite, and so does a
    whole number that no float holds), or null."""
    if isinstance(value, int | float):
        return None if abs(value) <= sys.float_info.max else place or "the document"
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)  # type: ignore[assignment]
    else:
        return None
    for key, child in children:
        found = not_finite(child, f"{place}.{key}" if place else str(key))
        if found is not None:
            return found
    return None


def _view(value: Any) -> Any:
    return Plain(value) if isinstance(value, Mapping) else value


def _value(view: Any) -> Any:
    if isinstance(view, Plain):
        return view._value
    if isinstance(view, Mapping):
        return {key: _value(own) for key, own in view.items()}
    return view
