"""What the merge was compared with, and what it did to each module."""

from __future__ import annotations

from edgetune.report.schema.part import Count, Interval, Part


class MergeCandidate(Part):
    """A merged checkpoint from the trained model; parity is with the unmerged model over `onto`."""

    onto: str | None
    kl_mean: Interval
    top1_agreement: Interval
    parity_max_abs: float
    parity_against: str


class Certificate(Part):
    """Every merge that was compared with the trained model, and the one that was taken."""

    chosen: str | None
    positions: Count
    candidates: list[MergeCandidate]


class MergedModule(Part):
    """‖Δ‖/‖W‖, and ‖stored − exact‖/‖Δ‖ of a module that the adapters changed."""

    name: str
    values: Count
    delta_relative: float | None
    rounding_relative: float | None


class MergedModules(Part):
    """How many there are, the spread of their figures, and those that lost most."""

    count: Count
    delta_relative: dict[str, float] | None
    rounding_relative: dict[str, float] | None
    worst: list[MergedModule]


class Merge(Part):
    """What the merge step and its parity check said."""

    parity_max_abs: float | None
    tensors_used: Count | None
    tensors_total: Count | None
    onto: str | None
    certificate: Certificate | None = None
    modules: MergedModules | None = None
