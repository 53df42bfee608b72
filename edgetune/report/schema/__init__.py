"""The form of `reports/<device>.json`. Loads neither numpy nor torch.

Keys are stable; others may be added, and a reader keeps those that it does not know. A thing that
was not measured is null, with a reason beside it. Every `low` and `high` is a one-sided 95 % bound.
"""

from __future__ import annotations

from edgetune.report.schema.fidelity import PerItem, PositionKl
from edgetune.report.schema.long_context import LongContext, LongStretch
from edgetune.report.schema.merge import MergeCandidate
from edgetune.report.schema.part import Interval
from edgetune.report.schema.provenance import (
    GraphModule,
    GraphWeights,
    License,
    Provenance,
    SourceModel,
)
from edgetune.report.schema.read import load_report, parse_report
from edgetune.report.schema.speed import Latency, LatencySide, SideCost
from edgetune.report.schema.survival import ModuleSurvival
from edgetune.report.schema.whole import Check, CheckVerdict, Report, Verdict

__all__ = [
    "Check",
    "CheckVerdict",
    "GraphModule",
    "GraphWeights",
    "Interval",
    "Latency",
    "LatencySide",
    "License",
    "LongContext",
    "LongStretch",
    "MergeCandidate",
    "ModuleSurvival",
    "PerItem",
    "PositionKl",
    "Provenance",
    "Report",
    "SideCost",
    "SourceModel",
    "Verdict",
    "load_report",
    "parse_report",
]
