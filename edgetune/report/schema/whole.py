"""A whole report, its checks, and where its figures come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from edgetune.report.schema.allocation import ChosenWidths
from edgetune.report.schema.emulated import Emulated
from edgetune.report.schema.fidelity import Fidelity, PerItem, TaskMetric, Tokenizer
from edgetune.report.schema.long_context import LongContext
from edgetune.report.schema.merge import Merge
from edgetune.report.schema.part import Count, Part
from edgetune.report.schema.provenance import GraphWeights, Provenance
from edgetune.report.schema.speed import Cost, Latency, Providers, Size
from edgetune.report.schema.survival import Survival

VERDICTS = ("pass", "fail", "inconclusive")
Verdict = Literal["pass", "fail", "inconclusive"]
CheckVerdict = Literal["pass", "fail", "inconclusive", "not measured"]


class Check(Part):
    """One question with a limit. Its verdict is recomputed, never believed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,100}$")]
    value: float | None
    low: float | None = None
    high: float | None = None
    limit: Annotated[float, Field(ge=0)]
    verdict: CheckVerdict
    # Whether "not measured" makes the whole inconclusive.
    required: bool = False
    reason: str | None = None


class Environment(Part):
    """Where the figures were taken."""

    fingerprint: str
    threads: Annotated[int, Field(ge=1)]
    versions: dict[str, str | None]


class StepFigures(Part):
    """What a build step cost."""

    name: str
    seconds: float
    peak_rss_mb: float | None
    cached: bool


class EvaluationText(Part):
    """Evaluation items that a package carries, readable for whoever has it."""

    items: Count
    bytes: Count


class Carries(Part):
    """What the package's own self-test consists of."""

    source: str | None
    items: Count | None
    evaluation_text: EvaluationText | None


class SelfTest(Part):
    """On what the figures were taken, and what of it the package carries."""

    measured_on: str
    items: Count
    carries: Carries


class Sampling(Part):
    """What was drawn at random, so that it can be drawn again."""

    # Of the bootstrap: numpy's default generator, seeded anew for each figure.
    seed: Annotated[int, Field(ge=0)]
    resamples: Count
    # Of the text that the trained model sampled; null where evaluation data was given.
    text_seed: Annotated[int, Field(ge=0)] | None


class Report(Part):
    """A whole report."""

    schema_version: Literal[1]
    identifier: str
    device: str
    variant: str
    package_digest: str
    verdict: Verdict
    checks: list[Check]
    fidelity: Fidelity
    task_metrics: dict[str, TaskMetric]
    latency: Latency
    size: Size
    # Null in reports of packages that were built without it.
    weights: GraphWeights | None = None
    # Null in reports of versions that did not measure it.
    cost: Cost | None = None
    providers: Providers
    tokenizer: Tokenizer
    merge: Merge | None
    # Null for a package alone: its weights cannot be compared with the base's.
    survival: Survival | None = None
    # Null where the scheme says how every module is stored.
    allocation: ChosenWidths | None = None
    # Null where nothing was to be emulated: the device is here.
    emulated: Emulated | None = None
    # Null where the model's arithmetic is the same at every length, and in reports of versions, or
    # packages, without it.
    long_context: LongContext | None = None
    evidence: dict[str, bool]
    environment: Environment
    steps: list[StepFigures]
    self_test: SelfTest | None = None
    sampling: Sampling | None = None
    # Null in reports of versions that did not carry it.
    provenance: Provenance | None = None
    # What reports must share to be comparable.
    inputs: dict[str, str | None] = Field(default_factory=dict)
    # Answers that changed most: {id, prompt, expected, reference, package, lost, kl_mean}.
    examples: list[dict[str, Any]] = Field(default_factory=list)
    per_item: PerItem | None = None
