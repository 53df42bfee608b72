"""What quantization leaves of each module's fine-tune."""

from __future__ import annotations

from pydantic import Field

from edgetune.report.schema.part import Count, Interval, Part, Share


class ModuleSurvival(Part):
    """What quantization leaves of a module's fine-tune; the last two where it was run alone."""

    name: str
    values: Count
    delta_relative: float | None
    # The median of the distances between two values that a weight can have.
    step: float
    # The share of weights that the fine-tune moved by less than half a step.
    below_step: Share
    # ‖Δ‖ / ‖quantized − merged‖; null where quantization changed nothing.
    snr: float | None
    kl_mean: Interval | None = None
    retention: Interval | None = None


class Survival(Part):
    """Modules that the fine-tune changed, worst first."""

    modules: list[ModuleSurvival]
    # Modules that were not found in the graph by name.
    not_found: list[str] = Field(default_factory=list)
    # Why there are no modules; why they were not run one by one.
    reason: str | None = None
    not_run: str | None = None
    # Over how many items each module was run.
    items: Count | None = None
