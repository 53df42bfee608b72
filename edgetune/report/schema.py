"""The form of `reports/<device>.json`. Loads neither numpy nor torch.

Keys are stable; others may be added, and a reader keeps those that it does not know. A thing that
was not measured is null, with a reason beside it. Every `low` and `high` is a one-sided 95 % bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgetune.errors import InputRefusedError

SCHEMA_VERSION = 1
VERDICTS = ("pass", "fail", "inconclusive")
Verdict = Literal["pass", "fail", "inconclusive"]
CheckVerdict = Literal["pass", "fail", "inconclusive", "not measured"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """The settings that all parts share: frozen, strict types, finite numbers, more keys."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class Interval(Part):
    """An estimate with its bounds."""

    value: float
    low: float
    high: float


class Check(Part):
    """One question with a limit. Its verdict is recomputed, never believed."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    limit: Annotated[float, Field(ge=0)]
    verdict: CheckVerdict
    # Whether "not measured" makes the whole inconclusive.
    required: bool = False
    reason: str | None = None


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
    # {"answers", "changed", "lost", "gained"}
    flips: dict[str, Count]
    reasons: dict[str, str] = Field(default_factory=dict)
    measured_on: str


class TaskMetric(Part):
    """A metric of base alone, trained model and package; difference is package − trained."""

    base: float | None
    reference: float
    candidate: float
    difference: float
    low: float
    high: float
    n: Count


class LatencySide(Part):
    """One side's medians. `intervals` has the bounds of those that have some."""

    load_s: float
    ttft_ms: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    answer_ms: float
    peak_rss_mb: float | None
    intervals: dict[str, Interval] = Field(default_factory=dict)


class Latency(Part):
    """Time to answer and what it is made of; nulls where it was not measured."""

    reference: LatencySide | None
    candidate: LatencySide | None
    ratio: Interval | None
    reason: str | None = None


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


class Merge(Part):
    """What the merge step and its parity check said."""

    parity_max_abs: float | None
    tensors_used: Count | None
    tensors_total: Count | None
    onto: str | None


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
    providers: Providers
    tokenizer: Tokenizer
    merge: Merge | None
    # Null where nothing was to be emulated: the device is here.
    emulated: Emulated | None = None
    evidence: dict[str, bool]
    environment: Environment
    steps: list[StepFigures]
    self_test: SelfTest | None = None
    sampling: Sampling | None = None
    # What reports must share to be comparable.
    inputs: dict[str, str | None] = Field(default_factory=dict)
    # Answers that changed most: {id, prompt, expected, reference, package, lost, kl_mean}.
    examples: list[dict[str, Any]] = Field(default_factory=list)


def parse_report(value: Mapping[str, Any], where: str = "report") -> Report:
    """A report from its JSON value. Raises InputRefusedError naming what is unfit."""
    if (place := _not_finite(value, "")) is not None:
        msg = f"{where}: {place} is not a finite number"
        raise InputRefusedError(msg, "measure again: no figure of a report may be NaN or infinite")
    try:
        report = Report.model_validate(value)
    except ValidationError as why:
        error = why.errors()[0]
        place = ".".join(str(part) for part in error["loc"])
        msg = f"{where}: {place}: {error['msg'][:1].lower()}{error['msg'][1:]}"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why
    names = [check.name for check in report.checks]
    if len(set(names)) < len(names):
        msg = f"{where}: a check is listed twice"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`")
    return report


def load_report(path: Path) -> Report:
    """Read a report file. Raises InputRefusedError: missing, not JSON, keys missing or listed
    twice, wrong types, a number that is not finite."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
    except FileNotFoundError as why:
        msg = f"{path}: no such file"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json") from why
    except (OSError, ValueError, RecursionError) as why:
        msg = f"{path}: not a JSON document ({why})"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why
    if not isinstance(value, dict):
        msg = f"{path}: not a report, the document is no object"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json")
    return parse_report(value, str(path))


def _not_finite(value: Any, place: str) -> str | None:
    """Where in a JSON value a number is NaN or infinite (1e999 reads as infinite), or null."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place or "the document"
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)  # type: ignore[assignment]
    else:
        return None
    for key, child in children:
        found = _not_finite(child, f"{place}.{key}" if place else str(key))
        if found is not None:
            return found
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        msg = "a key is listed twice"
        raise ValueError(msg)
    return value
