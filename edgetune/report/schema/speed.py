"""How long answers take, on what, and what they cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgetune.report.schema.part import Count, Interval, Part, Share, having


class Sustained(Part):
    """A minute without a pause: new tokens per second in each window, last as a share of first."""

    window_s: float
    tokens_per_s: list[float]
    last_to_first: float | None


class LatencySide(Part):
    """One side's medians. `intervals` has the bounds of those that have some."""

    load_s: float
    ttft_ms: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    answer_ms: float
    peak_rss_mb: float | None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    # Each round's median time to answer; the two sides' rounds belong together.
    rounds_ms: list[float] = Field(default_factory=list)
    # Of every new token but an answer's first; null where there is none.
    token_ms: Annotated[dict[str, float], having("p50", "p95", "p99")] | None = None
    # With no file of the model in memory; null with a reason.
    load_cold_s: float | None = None
    sustained: Sustained | None = None
    reasons: dict[str, str] = Field(default_factory=dict)


class Latency(Part):
    """Time to answer and what it is made of; nulls where it was not measured."""

    reference: LatencySide | None
    candidate: LatencySide | None
    ratio: Interval | None
    reason: str | None = None


class SideCost(Part):
    """What 1,000 tokens, read or written, cost one side. Joules: all that the processors took."""

    cpu_s_per_1k_tokens: float
    joules_per_1k_tokens: float | None


class Cost(Part):
    """What the fine-tune trained, what ships, what tokens cost; nulls have a reason."""

    trained_parameters: Count | None
    total_parameters: Count | None
    package_bytes: Count
    reference: SideCost | None
    candidate: SideCost | None
    reasons: dict[str, str] = Field(default_factory=dict)


class Size(Part):
    """Bytes: the base's weight files, all that ships, the graph and its data."""

    base_bytes: Count | None
    package_bytes: Count
    graph_bytes: Count


class Providers(Part):
    """Execution providers in ONNX Runtime's spelling; coverage is a share of the graph's nodes."""

    requested: list[str]
    used: list[str]
    coverage: Share | None
    reason: str | None = None
