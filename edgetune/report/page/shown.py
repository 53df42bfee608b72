"""What a page shows of one report: the report, its judgement, and what else must be known."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.report.schema import Report
from edgetune.report.verdict import Judgement


@dataclass(frozen=True)
class Shown:
    """One report on a page. `title` tells it from the others; `notes` decide nothing."""

    title: str
    report: Report
    judgement: Judgement
    notes: tuple[str, ...] = ()
