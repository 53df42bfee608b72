"""The task's own metrics of the package beside the reference's, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune import statistics
from edgetune.tasks import load_task
from edgetune.validate.evaluate import Evaluation, same_answer
from edgetune.validate.self_test import SelfTest

EXACT_MATCH = "exact_match"
ANSWER_LOGPROB = "answer_logprob"


@dataclass(frozen=True)
class Measured:
    """`metrics` and `flips` as the report carries them, and [N] whether an answer is right."""

    metrics: dict[str, dict[str, Any]]
    flips: dict[str, int]
    exact: list[bool | None]


def measure_task(self_test: SelfTest, evaluation: Evaluation) -> Measured:
    """Metrics {name: {base, reference, candidate, difference, low, high, n, …}}.

    `difference` is candidate − reference with its one-sided 95 % bounds. Exact match comes from the
    same items on both sides: Tango's interval and the exact McNemar test; other metrics from the
    paired bootstrap. Only metrics that the reference has are measured: text that the reference
    sampled itself has none.
    """
    task = load_task(str(self_test.facts.get("task")))
    exact: list[bool | None] = []
    logprobs: list[float] = []
    for number, item in enumerate(self_test.items):
        where = self_test.positions(number)
        values = evaluation.positions.target_logprob[where].tolist()
        measured = task.measure(item.answer, evaluation.answers[number], values)
        found = measured[EXACT_MATCH]
        exact.append(None if found is None else found == 1.0)
        logprobs.append(float(measured[ANSWER_LOGPROB] or 0.0))
    metrics = {
        EXACT_MATCH: _exact_match(self_test, exact),
        ANSWER_LOGPROB: _answer_logprob(self_test, logprobs),
    }
    return Measured(
        {
            name: row
            for name, row in metrics.items()
            if row is not None and name in (self_test.facts.get("metrics") or {})
        },
        _flips(self_test, evaluation, exact),
        exact,
    )


def _exact_match(self_test: SelfTest, exact: list[bool | None]) -> dict[str, Any] | None:
    rows = [
        (item.base_exact, item.reference_exact, found)
        for item, found in zip(self_test.items, exact, strict=True)
        if item.reference_exact is not None and found is not None
    ]
    if not rows:
        return None
    n = len(rows)
    lost = sum(bool(reference) and not found for _, reference, found in rows)
    gained = sum(not reference and bool(found) for _, reference, found in rows)
    interval = statistics.paired_proportions(lost, gained, n)
    base = [row[0] for row in rows if row[0] is not None]
    return {
        "base": sum(base) / n if len(base) == n else None,
        "reference": sum(bool(row[1]) for row in rows) / n,
        "candidate": sum(bool(row[2]) for row in rows) / n,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": n,
        "lost": lost,
        "gained": gained,
        "p_value": statistics.mcnemar_exact(lost, gained),
    }


def _answer_logprob(self_test: SelfTest, found: list[float]) -> dict[str, Any] | None:
    """Mean over items of an item's mean log-probability of its target tokens, in nats."""
    reference = np.array([item.reference_answer_logprob for item in self_test.items])
    candidate = np.array(found)
    if not np.isfinite(candidate).all():
        return None
    interval = statistics.mean(candidate - reference)
    base = [
        item.base_answer_logprob for item in self_test.items if item.base_answer_logprob is not None
    ]
    return {
        "base": float(np.mean(base)) if len(base) == len(found) else None,
        "reference": float(reference.mean()),
        "candidate": float(candidate.mean()),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": len(found),
    }


def _flips(self_test: SelfTest, evaluation: Evaluation, exact: list[bool | None]) -> dict[str, int]:
    """How many answers changed, and how many went from right to wrong and back."""
    answered = [
        (item, answer, right)
        for item, answer, right in zip(self_test.items, evaluation.answers, exact, strict=True)
        if answer is not None
    ]
    return {
        "answers": len(answered),
        "changed": sum(not same_answer(a, item.reference_answer) for item, a, _ in answered),
        "lost": sum(item.reference_exact is True and right is False for item, _, right in answered),
        "gained": sum(
            item.reference_exact is False and right is True for item, _, right in answered
        ),
    }
