"""The gate proves itself on this machine: what is equal passes, what is worse fails, and what is no
evidence never passes.

Latency is measured for real, by the code that measures packages, on a workload whose size is known:
the same work twice, and 10 % more of it. Accuracy is judged by the same functions on counts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from pydantic import ValidationError

from edgetune import statistics
from edgetune.child import python_path
from edgetune.report import schema
from edgetune.report.verdict import decide, judge
from edgetune.validate.rounds import (
    Side,
    plan_rounds,
    ratio_of,
    run_launches,
    run_rounds,
    seconds_per_answer,
)
from edgetune.validate.worker import Worker, open_worker

MODULE = "edgetune.validate.workload_worker"
RATIO_LIMIT = 1.05
SLOWDOWN = 1.10
ANSWER_MS = 30.0
# A loss of a point against a margin of half of one, where two answers in a hundred change.
MARGIN = 0.005
LOSS = 0.01
FLIPS = 0.02
_LOAD_TIMEOUT_S = 120.0
# One thread: the workload is to be as steady as the machine lets it.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Progress = Callable[[str], None]


def self_test_gate(progress: Progress) -> dict[str, Any]:
    """{"verdict", "checks": [{"name", "expected", "verdict", "value", "low", "high", "limit",
    "as_expected"}]}, in about a minute.

    "fail": a check came out the wrong way. "inconclusive": the machine is too noisy to tell 10 %
    of latency, which is no proof of the gate. "pass" otherwise: all came out as expected. Raises
    StepFailedError when a workload does not run.
    """
    checks = [*_latency_checks(progress), *_accuracy_checks(), *_no_evidence_checks()]
    return {"verdict": overall(checks), "checks": checks}


def overall(checks: list[dict[str, Any]]) -> str:
    """What the checks come to."""
    wrong = [check for check in checks if not check["as_expected"]]
    if any(check["verdict"] != "inconclusive" for check in wrong):
        return "fail"
    return "inconclusive" if wrong else "pass"


def measure_ratio(slowdown: float, progress: Progress) -> statistics.Interval:
    """The measured ratio of times of two workloads, the second `slowdown` times the first."""
    with ExitStack() as stack:
        workers = [_open(stack) for _ in range(2)]
        first = workers[0].ask({"target_ms": ANSWER_MS}, _LOAD_TIMEOUT_S)
        units = round(first["units"] * slowdown)
        second = workers[1].ask({"units": units}, _LOAD_TIMEOUT_S)
        sides = [Side(w, ready) for w, ready in zip(workers, (first, second), strict=True)]
        rounds, repeats = plan_rounds([seconds_per_answer(side) for side in sides])
        started = time.monotonic()
        run_rounds(sides, rounds, repeats, 0, progress)
    run_launches(sides, repeats, _open_again, started, progress)
    return ratio_of(*sides)


def _open_again(stack: ExitStack, side: Side) -> Worker:
    worker = _open(stack)
    worker.ask({"units": side.ready["units"]}, _LOAD_TIMEOUT_S)
    return worker


def _latency_checks(progress: Progress) -> Iterator[dict[str, Any]]:
    for name, slowdown, expected in (
        ("latency: the same work twice", 1.0, "pass"),
        (f"latency: {SLOWDOWN - 1:.0%} more work", SLOWDOWN, "fail"),
    ):
        progress(name)
        yield _check(name, expected, measure_ratio(slowdown, progress), RATIO_LIMIT)


def _accuracy_checks() -> Iterator[dict[str, Any]]:
    n = statistics.items_to_tell(MARGIN, LOSS, FLIPS)
    lost, gained = round(n * (FLIPS + LOSS) / 2), round(n * (FLIPS - LOSS) / 2)
    for name, counts, expected in (
        (f"accuracy: identical, n = {n}", (0, 0), "pass"),
        (f"accuracy: {LOSS * 100:g} point lost, n = {n}", (lost, gained), "fail"),
    ):
        found = statistics.paired_proportions(*counts, n)
        loss = statistics.Interval(-found.value, -found.high, -found.low)
        yield _check(name, expected, loss, MARGIN)


def _no_evidence_checks() -> Iterator[dict[str, Any]]:
    nan = dict.fromkeys(("value", "low", "high"), math.nan)
    try:
        schema.Interval(**nan)
        verdict = "pass"
    except ValidationError:
        # What a report may not hold anyway must not pass by itself either.
        verdict = decide(schema.Interval.model_construct(None, **nan), RATIO_LIMIT, "above")
    yield _bare("NaN in place of a ratio", verdict)
    empty = schema.Report.model_construct(None, checks=[])
    yield _bare("a report without checks", judge(empty).verdict)
    unmeasured = schema.Check(
        name="time_to_answer_ratio", value=1.0, limit=RATIO_LIMIT, verdict="pass"
    )
    latency = schema.Latency(reference=None, candidate=None, ratio=None)
    report = schema.Report.model_construct(None, checks=[unmeasured], latency=latency)
    yield _bare("a report that says pass and measured nothing", judge(report).verdict)
    try:
        statistics.paired_proportions(0, 0, 0)
        verdict = "pass"
    except ValueError:
        verdict = "inconclusive"
    yield _bare("accuracy of no items", verdict)


def _check(name: str, expected: str, figure: statistics.Interval, limit: float) -> dict[str, Any]:
    verdict = decide(schema.Interval(**figure.as_dict()), limit, "above")
    right = verdict == expected
    figures = {**figure.as_dict(), "limit": limit}
    return {
        "name": name, "expected": expected, "verdict": verdict, **figures, "as_expected": right
    }  # fmt: skip


def _bare(name: str, verdict: str) -> dict[str, Any]:
    """A check of what must not pass; anything else is right."""
    figures: Mapping[str, Any] = dict.fromkeys(("value", "low", "high", "limit"))
    return {
        "name": name, "expected": "no pass", "verdict": verdict, **figures,
        "as_expected": verdict != "pass",
    }  # fmt: skip


def _open(stack: ExitStack) -> Worker:
    environment = {**os.environ, **python_path(), **_ONE_THREAD}
    return stack.enter_context(open_worker([MODULE], environment=environment))
