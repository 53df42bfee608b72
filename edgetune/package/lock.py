"""`edgetune.lock`: what a package was made of. The same wherever a build runs, so without paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgetune.errors import StepFailedError

_ABSOLUTE = re.compile(r"(file://|/|~/|[A-Za-z]:[\\/]|\\\\)")


def make_lock(
    lock: Mapping[str, Any], name: str, variants: Mapping[str, Any], self_test: str
) -> dict[str, Any]:
    """The lock that a plan gives, completed with what is packed; keys sorted at every depth.

    `variants`: {name: {"provider", "device_kind", "digest" of its files}}; `self_test`: digest of
    its files. Raises StepFailedError for an absolute path anywhere in it.
    """
    package = {"name": name, "variants": dict(variants), "self_test": self_test}
    whole = _sorted({**lock, "package": package})
    for where, text in _texts(whole):
        if _ABSOLUTE.match(text):
            msg = f"edgetune.lock would carry the absolute path {text!r} ({where})"
            raise StepFailedError(msg, "report it: a package must not depend on where it is built")
    assert isinstance(whole, dict)
    return whole


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(inner) for inner in value]
    return value


def _texts(value: Any, where: str = "lock") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{number}]")
