"""The figure by which a package is judged on long texts. Loads neither numpy nor the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetune.report.schema import LongContext, LongStretch


def largest_kl(section: LongContext | None) -> tuple[float, float, float] | None:
    """(value, low, high): the largest KL of the stretches, and the largest of each of their bounds,
    so that it passes where all of them do, and fails where one does.

    Null where no stretch has a figure, and where an output was not finite: `finite_outputs` fails
    then, and what is left proves nothing.
    """
    found = [s.kl_mean for s in _stretches(section) if s.kl_mean is not None]
    if not found or non_finite(section):
        return None
    value, low, high = (max(getattr(kl, key) for kl in found) for key in ("value", "low", "high"))
    return value, low, high


def worst_stretch(section: LongContext | None) -> LongStretch | None:
    """The stretch with the largest KL."""
    found = [s for s in _stretches(section) if s.kl_mean is not None]
    return max(found, key=lambda s: s.kl_mean.value if s.kl_mean else 0.0, default=None)


def fewest_positions(section: LongContext | None) -> int | None:
    """The positions of the shortest stretch that has a figure."""
    found = [s.positions for s in _stretches(section) if s.kl_mean is not None]
    return min(found, default=None)


def non_finite(section: LongContext | None) -> int:
    """At how many positions the output was not finite."""
    return sum(stretch.non_finite_positions for stretch in _stretches(section))


def positions(section: LongContext | None) -> int:
    """How many were scored."""
    return sum(stretch.positions for stretch in _stretches(section))


def _stretches(section: LongContext | None) -> list[LongStretch]:
    return [] if section is None else section.stretches
