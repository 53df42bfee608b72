"""What steps hand each other: folders on disk, and the record of how each came to be."""

from __future__ import annotations

from typing import Any

from edgetune.documents import Strict


class StepRecord(Strict):
    """`step.json`, written last: its presence means that the step is done."""

    name: str
    key: str
    inputs: dict[str, Any]
    files: dict[str, str]
    facts: dict[str, Any]
    seconds: float
    peak_rss_mb: float | None


class StepResult(Strict):
    """A finished step: its folder, and whether it was found done."""

    name: str
    path: str
    seconds: float
    peak_rss_mb: float | None
    cached: bool
    facts: dict[str, Any]
