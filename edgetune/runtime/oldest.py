"""The oldest libraries that open and run a package; standard library only, so that a plan, a
device and the documentation read the same.

Found by running the demo's package with each (docs/on-device.md has the table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The oldest with which a package gives the same answers.
OLDEST = {
    "python": "3.11",
    "numpy": "1.26.4",
    "onnxruntime": "1.26.0",
    "onnxruntime-genai": "0.14.0",
}


def too_old(versions: Mapping[str, str | None]) -> list[str]:
    """A sentence's part for each version that is below OLDEST: "onnxruntime 1.20.0 (1.26.0 is
    the oldest that will do)"; a version that is not known is none."""
    return [
        f"{name} {versions[name]} ({oldest} is the oldest that will do)"
        for name, oldest in OLDEST.items()
        if (own := versions.get(name)) is not None and _numbers(own) < _numbers(oldest)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: of "1.20.0rc1" (1, 20, 0), of "1.20+cpu" (1, 20)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
