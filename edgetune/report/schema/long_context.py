"""The package on texts longer than those of the self-test."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgetune.report.schema.part import Count, Interval, Part

Length = Annotated[int, Field(ge=1)]


class LongStretch(Part):
    """Neighbouring positions, predicted after `first` to `last` tokens; KL in nats."""

    # What it is about, such as "sliding window", and its length in tokens.
    what: str
    at: Length
    first: Length
    last: Length
    # Scored, and those of them at which the package gave no finite number.
    positions: Count
    non_finite_positions: Count
    # Null with a reason.
    kl_mean: Interval | None
    top1_agreement: Interval | None
    reason: str | None = None


class LongContext(Part):
    """Where the model's arithmetic changes with the length of the text, and at its window."""

    # The most tokens that the model takes, as its config says.
    window: Length
    kl_kind: Literal["whole vocabulary", "top-k lower bound"]
    stretches: list[LongStretch]
    # Sentences: at which lengths nothing was measured, and why.
    not_measured: list[str] = Field(default_factory=list)
