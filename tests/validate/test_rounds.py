"""Rounds: planned for the time there is, run A B B A, stopped by precision or by the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetune import paired_times
from edgetune.errors import StepFailedError
from edgetune.statistics import Interval
from edgetune.validate import rounds
from edgetune.validate.latency_figures import cost_of, figures_of
from edgetune.validate.rounds import (
    FEWEST_ROUNDS,
    LAUNCH_ROUNDS,
    LIMIT_S,
    MOST_LAUNCHES,
    ROUNDS,
    THOROUGH_LIMIT_S,
    TIMES,
    Side,
    another_launch,
    is_precise,
    plan_rounds,
    ratio_of,
    run_launches,
    run_rounds,
)
from edgetune.validate.worker import Worker


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


@pytest.mark.parametrize(
    ("seconds", "expected", "repeats"),
    [
        ([0.1, 0.02], 8, [3, 8]),
        # Three answers of 0.4 s and of 0.3 s a block would take 35 s.
        ([0.4, 0.3], 8, [1, 1]),
        # Too slow for eight rounds.
        ([1.0, 0.25], 4, [1, 1]),
        ([60.0, 60.0], 3, [1, 1]),
        ([0.1], 8, [3]),
    ],
)
def test_rounds_fit_the_time_there_is(
    seconds: list[float], expected: int, repeats: list[int]
) -> None:
    assert plan_rounds(seconds) == (expected, repeats)


class FakeWorker:
    """A side whose answers take the times given, again and again; the log tells the order."""

    module = "fake"

    def __init__(self, name: str, log: list[str], milliseconds: Sequence[float]) -> None:
        self.name, self.log, self.milliseconds = name, log, milliseconds

    def ask(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        self.log.append(self.name)
        calls = self.log.count(self.name)
        times = [self.milliseconds[calls % len(self.milliseconds)]] * message["run"]
        more = {"token_ms": [0.5, 0.7] * message["run"], "cpu_s": 0.25, "peak_rss_mb": 1.0}
        return {**dict.fromkeys(TIMES, times), **more}


def _sides(log: list[str], *times: Sequence[float]) -> list[Side]:
    workers = [FakeWorker(name, log, t) for name, t in zip("AB", times, strict=False)]
    return [Side(worker, {"load_s": 1.0}) for worker in workers]  # type: ignore[arg-type]


def test_blocks_go_a_b_b_a() -> None:
    log: list[str] = []
    sides = _sides(log, (20.0,), (10.0,))
    run_rounds(sides, 3, [1, 2], 0, lambda _: None)
    assert "".join(log) == "ABBA" * 3
    assert sides[1].rounds["answer_ms"] == [[10.0] * 4] * 3
    assert sides[1].launches == [0, 0, 0]
    assert ratio_of(*sides).value == pytest.approx(0.5)


def test_a_side_alone_runs_its_two_blocks() -> None:
    log: list[str] = []
    run_rounds(_sides(log, (20.0,)), 4, [1], 0, lambda _: None)
    assert len(log) == 8


def _run(first: Sequence[float], second: Sequence[float]) -> tuple[list[Side], int]:
    """Both sides after all their launches, and how often a process was started again."""
    opened = []

    def open_again(stack: ExitStack, side: Side) -> Worker:
        opened.append(side)
        return side.worker

    sides = _sides([], first, second)
    run_rounds(sides, ROUNDS, [1, 1], 0, lambda _: None)
    run_launches(sides, [1, 1], open_again, time.monotonic(), lambda _: None)
    return sides, len(opened)


def test_noise_gets_more_launches_and_never_more_than_the_most() -> None:
    first, second = np.random.default_rng(0).lognormal(3.0, 0.5, size=(2, 500)).tolist()
    sides, opened = _run(first, second)
    assert opened == 2 * (MOST_LAUNCHES - 1)
    own = [0] * ROUNDS + [k for k in range(1, MOST_LAUNCHES) for _ in range(LAUNCH_ROUNDS)]
    assert sides[0].launches == sides[1].launches == own
    # The same noise about a ratio that is far from 1 needs the first launch only.
    assert _run(first, [ms / 20 for ms in second])[1] == 0


def test_equal_times_need_fresh_processes_until_they_can_tell() -> None:
    # One pair of processes says nothing of others; four that agree do.
    generator = np.random.default_rng(1)
    first, second = generator.lognormal(3.0, 0.005, size=(2, 500)).tolist()
    sides, opened = _run(first, second)
    assert opened == 2 * (paired_times.FEWEST_LAUNCHES - 1)
    assert is_precise(ratio_of(*sides))


def test_no_launch_begins_that_would_end_too_late() -> None:
    noisy = Interval(1.0, 0.9, 1.1)
    assert another_launch(1, 10.0, 5.0, lambda: noisy)
    assert not another_launch(1, LIMIT_S - 4.0, 5.0, lambda: noisy)
    assert another_launch(1, LIMIT_S, 5.0, lambda: noisy, thorough=True)
    assert not another_launch(1, THOROUGH_LIMIT_S, 5.0, lambda: noisy, thorough=True)
    assert not another_launch(MOST_LAUNCHES, 0.0, 0.0, lambda: noisy)


def test_what_is_precise_looks_at_width_and_at_one() -> None:
    assert is_precise(Interval(1.0, 1.0, 1.0))
    assert is_precise(Interval(1.0, 0.985, 1.015))
    assert not is_precise(Interval(1.0, 0.95, 1.05))
    assert is_precise(Interval(0.2, 0.19, 0.21))
    assert not is_precise(Interval(0.9, 0.85, 0.95))
    # A baseline of times asks for near bounds, wherever the ratio is.
    assert not is_precise(Interval(0.2, 0.19, 0.21), thorough=True)
    assert is_precise(Interval(0.2, 0.199, 0.201), thorough=True)


def test_a_machine_that_got_slower_stops_after_the_fewest_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "LIMIT_S", -1.0)
    (side,) = _sides([], (1.0,))
    run_rounds([side], ROUNDS, [1], 0, lambda _: None)
    assert len(side.launches) == FEWEST_ROUNDS


def test_an_answer_with_too_few_times_is_an_error() -> None:
    worker = SimpleNamespace(module="fake", ask=lambda message, timeout: {"answer_ms": [1.0]})
    with pytest.raises(StepFailedError, match="an answer without 2 times"):
        Side(worker, {}).run(2)  # type: ignore[arg-type]


def test_figures_and_cost_of_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "read_energy", lambda: {})
    monkeypatch.setattr(rounds, "joules_since", lambda before: 3.0)
    (side,) = _sides([], (20.0,))
    run_rounds([side], 3, [2], 0, lambda _: None)
    found = figures_of(side)
    assert found["rounds_ms"] == [20.0] * 3
    assert found["token_ms"] == {
        "p5": 0.5, "p25": 0.5, "p50": 0.5, "p75": 0.7, "p95": 0.7, "p99": 0.7
    }  # fmt: skip
    # Six blocks of 0.25 CPU seconds and 3 J; twelve answers of 250 tokens.
    cost = cost_of(side, 250)
    assert cost == {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": 6.0, "reason": None}
    monkeypatch.setattr(rounds, "joules_since", lambda before: None)
    side.block(2)
    cost = cost_of(side, 250)
    assert cost["joules_per_1k_tokens"] is None
    assert "energy counter" in cost["reason"]
