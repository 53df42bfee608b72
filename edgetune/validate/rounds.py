"""Rounds of A B B A blocks: planned, run, and stopped when the ratio is known well enough.

Two processes are loaded, one is busy at a time. A round cancels a drift that is linear in time, and
many short rounds follow a machine better than a few long ones: a burst of other work spoils one of
twenty rounds, not one of six (docs/gates.md has the measured comparison).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgetune import paired_times
from edgetune.errors import StepFailedError
from edgetune.statistics import Interval
from edgetune.validate.energy import joules_since, read_energy
from edgetune.validate.worker import Worker

ROUNDS = 20
MOST_ROUNDS = 60
FEWEST_ROUNDS = paired_times.FEWEST_ROUNDS
BLOCK_S = 0.15
FEWEST_ANSWERS = 3
# What the rounds are planned for, and after how long no further one begins.
BUDGET_S = 20.0
LIMIT_S = 32.0
# More rounds than planned are run until the bounds are this near (as a share of the ratio) …
PRECISE = 0.02
# … or the ratio is this many times further from 1 than its bounds are from it.
CLEAR = 4.0
_LOOK_EVERY = 5
RUN_TIMEOUT_S = 1800.0
# Thread pools spin for a moment after their work is done.
_SETTLE_S = 0.05
TIMES = ("ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "answer_ms")

Progress = Callable[[str], None]


@dataclass
class Side:
    """One worker and what it measured: {figure: a list of times for each round}."""

    worker: Worker
    ready: Mapping[str, Any]
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    # Milliseconds of each new token but the first, of all answers.
    token_ms: list[float] = field(default_factory=list)
    answers: int = 0
    cpu_s: float = 0.0
    # Null as soon as a block's energy could not be read.
    joules: float | None = 0.0
    peak_rss_mb: float | None = None

    def run(self, repeats: int) -> Mapping[str, Any]:
        """One block, as the worker answers it."""
        time.sleep(_SETTLE_S)
        answer = self.worker.ask({"run": repeats}, RUN_TIMEOUT_S)
        if any(len(answer.get(key, ())) != repeats for key in TIMES):
            msg = f"{self.worker.module}: an answer without {repeats} times"
            raise StepFailedError(msg)
        self.peak_rss_mb = answer.get("peak_rss_mb")
        return answer

    def block(self, repeats: int, round_number: int) -> None:
        """One block, kept."""
        before = read_energy()
        answer = self.run(repeats)
        used = joules_since(before)
        self.joules = None if used is None or self.joules is None else self.joules + used
        for key in TIMES:
            rounds = self.rounds.setdefault(key, [])
            if len(rounds) == round_number:
                rounds.append([])
            rounds[round_number].extend(float(value) for value in answer[key])
        self.token_ms.extend(float(value) for value in answer["token_ms"])
        self.cpu_s += float(answer["cpu_s"])
        self.answers += repeats


def seconds_per_answer(side: Side) -> float:
    """One answer to warm up, one to plan by."""
    side.run(1)
    return float(side.run(1)["answer_ms"][0]) / 1e3


def plan_rounds(seconds: Sequence[float]) -> tuple[int, list[int]]:
    """(rounds, answers a block for each side) from each side's seconds for one answer.

    Twenty rounds of blocks of 0.15 s and three answers, when 20 s allow it; else fewer answers a
    block, down to one; else fewer rounds, down to three.
    """
    wanted = [max(FEWEST_ANSWERS, math.ceil(BLOCK_S / max(s, 1e-6))) for s in seconds]

    def total(rounds: int, repeats: Sequence[int]) -> float:
        # Each side runs two blocks of a round.
        return rounds * 2 * sum(n * s + _SETTLE_S for n, s in zip(repeats, seconds, strict=True))

    repeats = wanted
    while total(ROUNDS, repeats) > BUDGET_S and max(repeats) > 1:
        repeats = [max(1, n - 1) for n in repeats]
    rounds = ROUNDS
    while total(rounds, repeats) > BUDGET_S and rounds > FEWEST_ROUNDS:
        rounds -= 1
    return rounds, repeats


def run_rounds(
    sides: Sequence[Side], rounds: int, repeats: Sequence[int], progress: Progress
) -> int:
    """Run rounds of A B B A (of A A where a side is alone) as long as `goes_on` says; returns how
    many. `rounds`: how many were planned."""
    started, done = time.monotonic(), 0
    order = (0, 1, 1, 0) if len(sides) == 2 else (0, 0)
    ratio = (lambda: ratio_of(*sides)) if len(sides) == 2 else None
    while goes_on(done, rounds, time.monotonic() - started, ratio):
        progress(f"latency: round {done + 1}")
        for index in order:
            sides[index].block(repeats[index], done)
        done += 1
    return done


def goes_on(
    done: int, planned: int, elapsed_s: float, ratio: Callable[[], Interval] | None
) -> bool:
    """Whether another round is run: those planned, and where there is a ratio more of them until
    it is precise. A machine that others made slower than planned for stops at LIMIT_S, after the
    fewest rounds.

    The rule looks at the bounds' width and at 1, never at a limit that is judged by. How little it
    changes the bounds' errors is simulated by tools/bench_gate.py.
    """
    if done >= FEWEST_ROUNDS and elapsed_s > LIMIT_S:
        return False
    if done < planned:
        return True
    if ratio is None or done >= MOST_ROUNDS:
        return False
    return (done - planned) % _LOOK_EVERY != 0 or not is_precise(ratio())


def is_precise(ratio: Interval) -> bool:
    """Whether more rounds would say little: near bounds, or a ratio that is far from 1."""
    half = math.log(ratio.high / ratio.low) / 2
    return half <= PRECISE or half * CLEAR <= abs(math.log(ratio.value))


def ratio_of(reference: Side, candidate: Side) -> Interval:
    """candidate / reference of the time to answer."""
    below, above = reference.rounds["answer_ms"], candidate.rounds["answer_ms"]
    return paired_times.ratio_of_medians(np.array(below), np.array(above))
