"""The package against the trained model: positions, answers, tokenizer, each item."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgetune.report.schema.part import Count, Interval, Part, having


class PositionKl(Part):
    """KL at the scored positions `first` to `last` of an answer, counted from 1; nats."""

    first: Annotated[int, Field(ge=1)]
    last: Annotated[int, Field(ge=1)]
    positions: Count
    kl: Interval


class Fidelity(Part):
    """The package against the trained model, at the scored positions. KL in nats."""

    perplexity_ratio: Interval | None
    kl_mean: Interval | None
    kl_p99: Interval | None
    top1_agreement: Interval | None
    retention: Interval | None
    kl_base: Interval | None
    kl_kind: Literal["whole vocabulary", "top-k lower bound"]
    items: Count
    positions: Count
    # Positions at which the package gave no finite number.
    non_finite_positions: Count
    flips: Annotated[dict[str, Count], having("answers", "changed", "lost", "gained")]
    reasons: dict[str, str] = Field(default_factory=dict)
    measured_on: str
    # By place in the answer; null where it was not measured, and in reports of earlier versions.
    kl_by_position: list[PositionKl] | None = None


class TaskMetric(Part):
    """A metric of base alone, trained model and package; difference is package − trained."""

    base: float | None
    reference: float
    candidate: float
    difference: float
    low: float
    high: float
    n: Count


class Tokenizer(Part):
    """The package's tokenizer against Hugging Face's."""

    cases: Count
    mismatches: Count
    skipped: Count = 0
    differences: list[dict[str, Any]] = Field(default_factory=list)
    # Unicode normal forms applied before onnxruntime-genai's tokenizer, which leaves them out.
    normalized: list[str] = Field(default_factory=list)
    # {kind: {"cases", "mismatches"}}, the gravest kind first.
    by_kind: dict[str, dict[str, Count]] = Field(default_factory=dict)
    # Chat template and tokenizer both write a BOS.
    double_bos: bool = False


class PerItem(Part):
    """What each evaluation item gave, in order: what pairs this report with another one."""

    ids: list[str]
    # Whether the answer is right: 1, 0, or null where none is expected.
    exact: list[Annotated[int, Field(ge=0, le=1)] | None]
    # Mean over the item's positions, nats; null where the output was not finite.
    kl_mean: list[float | None]
    positions: list[Count]
    # Digest of the answer's words; null for items that are only scored.
    answers: list[str | None]

    @model_validator(mode="after")
    def _fits(self) -> PerItem:
        lengths = {len(self.exact), len(self.kl_mean), len(self.positions), len(self.answers)}
        if lengths != {len(self.ids)} or len(set(self.ids)) != len(self.ids):
            msg = "its lists are not about the same items"
            raise ValueError(msg)
        return self
