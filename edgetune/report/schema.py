"""The form of `reports/<device>.json`. Loads neither numpy nor torch.

Keys are stable; others may be added, and a reader keeps those that it does not know. A thing that
was not measured is null, with a reason beside it. Every `low` and `high` is a one-sided 95 % bound.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgetune.errors import InputRefusedError
from edgetune.files import is_file, is_folder

SCHEMA_VERSION = 1
_MOST_BYTES = 64 << 20
VERDICTS = ("pass", "fail", "inconclusive")
Verdict = Literal["pass", "fail", "inconclusive"]
CheckVerdict = Literal["pass", "fail", "inconclusive", "not measured"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def _having(*names: str) -> AfterValidator:
    """The keys that a mapping must have unless it is empty."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in names if value and name not in value]
        if missing:
            msg = f"{', '.join(missing)} missing"
            raise ValueError(msg)
        return value

    return AfterValidator(check)


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

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,100}$")]
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
    flips: Annotated[dict[str, Count], _having("answers", "changed", "lost", "gained")]
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
    token_ms: Annotated[dict[str, float], _having("p50", "p95", "p99")] | None = None
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


class Merge(Part):
    """What the merge step and its parity check said."""

    parity_max_abs: float | None
    tensors_used: Count | None
    tensors_total: Count | None
    onto: str | None
    certificate: Certificate | None = None
    modules: MergedModules | None = None


class Environment(Part):
    """Where the figures were taken."""

    fingerprint: str
    threads: Annotated[int, Field(ge=1)]
    versions: dict[str, str | None]


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
    # Null in reports of versions that did not measure it.
    cost: Cost | None = None
    providers: Providers
    tokenizer: Tokenizer
    merge: Merge | None
    # Null for a package alone: its weights cannot be compared with the base's.
    survival: Survival | None = None
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
    per_item: PerItem | None = None


def parse_report(value: Mapping[str, Any], where: str = "report") -> Report:
    """A report from its JSON value. Raises InputRefusedError naming what is unfit."""
    if (place := _not_finite(value, "")) is not None:
        msg = f"{where}: {place} is not a finite number"
        raise InputRefusedError(msg, "measure again: no figure of a report may be NaN or infinite")
    version = value.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        msg = f"{where}: schema_version is {version!r}, this edgetune reads {SCHEMA_VERSION}"
        hint = "use the edgetune that made the report, or make it again with this one"
        raise InputRefusedError(msg, hint)
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
    """Read a report file. Raises InputRefusedError: missing, no regular file, not JSON, keys
    missing or listed twice, wrong types, a number that is not finite."""
    if not is_file(path):
        what = "a folder, not a report" if is_folder(path) else "no such file"
        msg = f"{path}: {what}"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json")
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"more than {_MOST_BYTES >> 20} MiB, no report is that large"
            raise ValueError(msg)
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\ud" in text.lower():
            # half of a surrogate pair is legal in JSON and in no place that a report is shown in
            json.dumps(value, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as why:
        msg = f"{path}: not a JSON document ({why})"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why
    if not isinstance(value, dict):
        msg = f"{path}: not a report, the document is no object"
        raise InputRefusedError(msg, "name a report, such as out/demo/reports/…json")
    try:
        return parse_report(value, str(path))
    except RecursionError as why:
        msg = f"{path}: nested too deep, no report is"
        raise InputRefusedError(msg, "make the report again with `edgetune validate`") from why


def _not_finite(value: Any, place: str) -> str | None:
    """Where in a JSON value a number is NaN or infinite (1e999 reads as infinite, and so does a
    whole number that no float holds), or null."""
    if isinstance(value, int | float):
        return None if abs(value) <= sys.float_info.max else place or "the document"
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
