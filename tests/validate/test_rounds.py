"""Rounds: planned for the time there is, run A B B A, stopped by precision or by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetune.errors import StepFailedError
from edgetune.statistics import Interval
from edgetune.validate import rounds
from edgetune.validate.latency_figures import cost_of, figures_of
from edgetune.validate.rounds import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    ROUNDS,
    Side,
    is_precise,
    plan_rounds,
    ratio_of,
    run_rounds,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)


@pytest.mark.parametrize(
    ("seconds", "expected", "repeats"),
    [
        ([0.1, 0.02], 20, [3, 8]),
        # Three answers of 0.2 s and of 0.1 s a block would take 36 s.
        ([0.2, 0.1], 20, [1, 1]),
        # Too slow for twenty rounds.
        ([1.0, 0.25], 8, [1, 1]),
        ([60.0, 60.0], 3, [1, 1]),
        ([0.1], 20, [3]),
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
        keys = ("ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "answer_ms")
        more = {"token_ms": [0.5, 0.7] * message["run"], "cpu_s": 0.25, "peak_rss_mb": 1.0}
        return {**dict.fromkeys(keys, times), **more}


def _sides(log: list[str], *times: Sequence[float]) -> list[Side]:
    workers = [FakeWorker(name, log, t) for name, t in zip("AB", times, strict=False)]
    return [Side(worker, {"load_s": 1.0}) for worker in workers]  # type: ignore[arg-type]


def test_blocks_go_a_b_b_a() -> None:
    log: list[str] = []
    sides = _sides(log, (20.0,), (10.0,))
    assert run_rounds(sides, 3, [1, 2], lambda _: None) == 3
    assert "".join(log) == "ABBA" * 3
    assert sides[1].rounds["answer_ms"] == [[10.0] * 4] * 3
    assert ratio_of(*sides).as_dict() == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})


def test_a_side_alone_runs_its_two_blocks() -> None:
    log: list[str] = []
    assert run_rounds(_sides(log, (20.0,)), 4, [1], lambda _: None) == 4
    assert len(log) == 8


def test_noise_gets_more_rounds_and_never_more_than_the_most() -> None:
    log: list[str] = []
    first, second = np.random.default_rng(0).lognormal(3.0, 0.5, size=(2, 500)).tolist()
    noisy = _sides(log, first, second)
    assert run_rounds(noisy, ROUNDS, [1, 1], lambda _: None) == MOST_ROUNDS
    # The same noise about a ratio that is far from 1 needs no more than planned.
    clear = _sides([], first, [ms / 20 for ms in second])
    assert run_rounds(clear, ROUNDS, [1, 1], lambda _: None) == ROUNDS


def test_what_is_precise_looks_at_width_and_at_one() -> None:
    assert is_precise(Interval(1.0, 1.0, 1.0))
    assert is_precise(Interval(1.0, 0.985, 1.015))
    assert not is_precise(Interval(1.0, 0.95, 1.05))
    assert is_precise(Interval(0.2, 0.19, 0.21))
    assert not is_precise(Interval(0.9, 0.85, 0.95))


def test_a_machine_that_got_slower_stops_after_the_fewest_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "LIMIT_S", -1.0)
    assert run_rounds(_sides([], (1.0,)), ROUNDS, [1], lambda _: None) == FEWEST_ROUNDS


def test_an_answer_with_too_few_times_is_an_error() -> None:
    worker = SimpleNamespace(module="fake", ask=lambda message, timeout: {"answer_ms": [1.0]})
    with pytest.raises(StepFailedError, match="an answer without 2 times"):
        Side(worker, {}).run(2)  # type: ignore[arg-type]


def test_figures_and_cost_of_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "read_energy", lambda: {})
    monkeypatch.setattr(rounds, "joules_since", lambda before: 3.0)
    (side,) = _sides([], (20.0,))
    run_rounds([side], 3, [2], lambda _: None)
    found = figures_of(side)
    assert found["rounds_ms"] == [20.0] * 3
    assert found["token_ms"] == {"p50": 0.5, "p95": 0.7, "p99": 0.7}
    # Six blocks of 0.25 CPU seconds and 3 J; twelve answers of 250 tokens.
    cost = cost_of(side, 250)
    assert cost == {"cpu_s_per_1k_tokens": 0.5, "joules_per_1k_tokens": 6.0, "reason": None}
    monkeypatch.setattr(rounds, "joules_since", lambda before: None)
    side.block(2, 3)
    cost = cost_of(side, 250)
    assert cost["joules_per_1k_tokens"] is None
    assert "energy counter" in cost["reason"]
