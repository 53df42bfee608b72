"""The package on a processor that is emulated."""

from __future__ import annotations

from pydantic import Field

from edgetune.report.schema.fidelity import Fidelity, TaskMetric, Tokenizer
from edgetune.report.schema.part import Count, Part


class Emulated(Part):
    """The package on an emulated processor: figures over some of the items, no times."""

    # QEMU's name of the processor, and which way it is not the device's; null: not emulated.
    cpu: str | None
    emulator: str | None
    differs: str | None = None
    # How many items the self-test has; those that ran are counted in `fidelity`.
    items_total: Count
    fidelity: Fidelity | None
    task_metrics: dict[str, TaskMetric] = Field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    instruction_sets: list[str] | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    reason: str | None = None
