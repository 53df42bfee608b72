"""The oldest libraries that open and run a package; standard library only, so that a plan, a
device and the documentation read the same.

Found by running the demo's package with each (docs/on-device.md has the table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The oldest with which a package gives the same answers.
OLDEST = {
    "python": "3.11",
    "numpy": "1.26.4",
    "onnxruntime": "1.26.0",
    "onnxruntime-genai": "0.14.0",
}
# With the first below, attention takes an 8-bit cache for a float one.
_INT8_CACHE = {"onnxruntime": "1.27.0"}


def oldest_for(lock: Mapping[str, Any]) -> dict[str, str]:
    """The oldest with which a package does, by its lock: some graphs ask for more than others."""
    recipe = lock.get("recipe")
    int8 = isinstance(recipe, Mapping) and recipe.get("kv_cache") == "int8"
    return {**OLDEST, **(_INT8_CACHE if int8 else {})}


def too_old(versions: Mapping[str, str | None], oldest: Mapping[str, str]) -> list[str]:
    """A sentence's part for each version that is below `oldest`: "onnxruntime 1.20.0 (1.26.0 is
    the oldest that will do)"; a version that is not known is none."""
    return [
        f"{name} {versions[name]} ({least} is the oldest that will do)"
        for name, least in oldest.items()
        if (own := versions.get(name)) is not None and _numbers(own) < _numbers(least)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: of "1.20.0rc1" (1, 20, 0), of "1.20+cpu" (1, 20)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
