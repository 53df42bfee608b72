"""What a report's checks ask: each one's figure, from the sections where it was measured, and how
much it was measured on. `verdict.py` judges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from edgetune.errors import InputRefusedError
from edgetune.report.long_context import fewest_positions, largest_kl, non_finite

if TYPE_CHECKING:
    # A package judges itself where pydantic is not installed (`report.plain`).
    from edgetune.report.schema import Check, Report

# With five items that all lie on one side the chance of that by accident is 1/32 < 5 %.
FEWEST_ITEMS = 5
DROP = "_drop"
# The same check over the figures from an emulated processor.
EMULATED = "emulated_"
# KL on texts longer than those of the self-test.
LONG_CONTEXT = "long_context_kl"
# With five blocks of four positions, which depend on each other, the same.
FEWEST_POSITIONS = 4 * FEWEST_ITEMS
# A check against a baseline.
REGRESSION = "_regression"


class Figure(Protocol):
    """An estimate with its bounds: a report's own, or one that was made from its figures."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class _Made(NamedTuple):
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Question:
    """A figure to be judged. `samples`: how many `unit` it was taken from, null for a count;
    `changed`: how many of them differ between the two sides, for a difference of proportions."""

    name: str
    figure: Figure | None
    limit: float
    required: bool = False
    reason: str | None = None
    samples: int | None = None
    fewest: int = FEWEST_ITEMS
    unit: Literal["items", "rounds", "positions"] = "items"
    changed: int | None = None
    words: str = ""


def question_of(report: Report, check: Check) -> Question:
    """What a check of the report asks. Raises InputRefusedError for one that is not known."""
    plain = check.name.removeprefix(EMULATED)
    question = Question(
        check.name, figure_of(report, check.name), check.limit, check.required, check.reason
    )
    if plain == LONG_CONTEXT:
        positions = fewest_positions(report.long_context)
        return replace(question, samples=positions, fewest=FEWEST_POSITIONS, unit="positions")
    if plain.endswith(DROP):
        question = replace(question, changed=_changed_of(report, check.name))
    elif plain not in ("retention", "kl_mean"):
        return question
    return replace(question, samples=_items_of(report, check.name))


def figure_of(report: Report, name: str) -> Figure | None:
    """The figure that a check is about, from the report's sections; null when not measured."""
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return None if emulated is None else figure_of(emulated, name.removeprefix(EMULATED))
    if name.endswith(DROP):
        metric = report.task_metrics.get(name.removesuffix(DROP))
        if metric is None:
            return None
        # What the package lost: reference − candidate.
        lost = (0.0 - metric.difference, 0.0 - metric.high, 0.0 - metric.low)
        return _Made(*lost)
    if name not in _FIGURES:
        msg = f"the report has a check {name!r} that this version of edgetune does not know"
        raise InputRefusedError(msg, "update edgetune, or make the report again")
    return _FIGURES[name](report)


def emulated_view(report: Report) -> Report | None:
    """The report as if the emulated processor had been the host; null when nothing ran there."""
    emulated = report.emulated
    if emulated is None or emulated.fidelity is None:
        return None
    tokenizer = emulated.tokenizer or report.tokenizer
    changed = {"fidelity": emulated.fidelity, "task_metrics": emulated.task_metrics}
    # Long texts are not read there.
    without = {"emulated": None, "long_context": None}
    return report.model_copy(update={**changed, "tokenizer": tokenizer, **without})


def _items_of(report: Report, name: str) -> int:
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return 0 if emulated is None else _items_of(emulated, name.removeprefix(EMULATED))
    metric = report.task_metrics.get(name.removesuffix(DROP))
    return metric.n if metric is not None and name.endswith(DROP) else report.fidelity.items


def _changed_of(report: Report, name: str) -> int | None:
    """How many answers went from right to wrong or back; null where the metric has no such."""
    if name.startswith(EMULATED):
        emulated = emulated_view(report)
        return None if emulated is None else _changed_of(emulated, name.removeprefix(EMULATED))
    metric = report.task_metrics.get(name.removesuffix(DROP))
    extra = (metric.model_extra if metric else None) or {}
    lost, gained = extra.get("lost"), extra.get("gained")
    return lost + gained if isinstance(lost, int) and isinstance(gained, int) else None


def _exactly(value: float | None) -> Figure | None:
    return None if value is None else _Made(value, value, value)


def _non_finite(report: Report) -> Figure | None:
    """How many outputs were not finite, on long texts too."""
    long = non_finite(report.long_context)
    return _exactly(float(report.fidelity.non_finite_positions + long))


def _long_context_kl(report: Report) -> Figure | None:
    largest = largest_kl(report.long_context)
    return None if largest is None else _Made(*largest)


def _of_candidate(key: str) -> Callable[[Report], Figure | None]:
    def figure(report: Report) -> Figure | None:
        side = report.latency.candidate
        if side is None:
            return None
        value: float | None = getattr(side, key)
        bounds = side.intervals.get(key)
        if value is None or bounds is None:
            return _exactly(value)
        return _Made(value, bounds.low, bounds.high)

    return figure


_FIGURES: dict[str, Callable[[Report], Figure | None]] = {
    "retention": lambda report: report.fidelity.retention,
    "kl_mean": lambda report: report.fidelity.kl_mean,
    "finite_outputs": _non_finite,
    LONG_CONTEXT: _long_context_kl,
    "tokenizer_parity": lambda report: _exactly(float(report.tokenizer.mismatches)),
    "time_to_answer_ratio": lambda report: report.latency.ratio,
    "ttft_ms": _of_candidate("ttft_ms"),
    "decode_tokens_per_s": _of_candidate("decode_tokens_per_s"),
    "peak_rss_mb": _of_candidate("peak_rss_mb"),
    "package_bytes": lambda report: _exactly(float(report.size.package_bytes)),
}
