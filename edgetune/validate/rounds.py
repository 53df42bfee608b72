"""Rounds of A B B A blocks in several launches of both processes, until the ratio is known.

Two processes are loaded, one is busy at a time. A round cancels a drift that is linear in time, and
many short rounds follow a machine better than a few long ones: a burst of other work spoils one of
many. Fresh processes average out what two processes of the same program differ by; where the first
launch already says enough, there is no other (docs/gates.md has what was measured).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgetune import paired_times
from edgetune.errors import StepFailedError
from edgetune.statistics import Interval
from edgetune.validate.energy import joules_since, read_energy
from edgetune.validate.worker import Worker

# Rounds of the first launch and of each further one.
ROUNDS = 8
LAUNCH_ROUNDS = 3
MOST_LAUNCHES = 25
FEWEST_ROUNDS = paired_times.FEWEST_ROUNDS
BLOCK_S = 0.15
FEWEST_ANSWERS = 3
# What the first launch's rounds are planned for; and after how long no further round or launch
# begins.
BUDGET_S = 12.0
LIMIT_S = 60.0
# The same where minutes may be taken; then only the bounds' width ends the launches, for a later
# report is compared with this one more finely than either with torch.
THOROUGH_LIMIT_S = 150.0
# Further launches are made until the bounds are this near (as a share of the ratio) …
PRECISE = 0.02
# … or the ratio is this many times further from 1 than its bounds are from it.
CLEAR = 4.0
RUN_TIMEOUT_S = 1800.0
# Thread pools spin for a moment after their work is done.
_SETTLE_S = 0.05
TIMES = ("ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "answer_ms")

Progress = Callable[[str], None]


@dataclass
class Side:
    """One side's worker, and what its workers measured: {figure: a list of times a round}."""

    worker: Worker
    ready: Mapping[str, Any]
    rounds: dict[str, list[list[float]]] = field(default_factory=lambda: {key: [] for key in TIMES})
    # The launch of each round, from 0.
    launches: list[int] = field(default_factory=list)
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

    def begin_round(self, launch: int) -> None:
        """What `block` keeps from now on belongs to a new round."""
        self.launches.append(launch)
        for rounds in self.rounds.values():
            rounds.append([])

    def block(self, repeats: int) -> None:
        """One block, kept."""
        before = read_energy()
        answer = self.run(repeats)
        used = joules_since(before)
        self.joules = None if used is None or self.joules is None else self.joules + used
        for key, rounds in self.rounds.items():
            rounds[-1].extend(float(value) for value in answer[key])
        self.token_ms.extend(float(value) for value in answer["token_ms"])
        self.cpu_s += float(answer["cpu_s"])
        self.answers += repeats


def seconds_per_answer(side: Side) -> float:
    """One answer to warm up, one to plan by."""
    side.run(1)
    return float(side.run(1)["answer_ms"][0]) / 1e3


def plan_rounds(seconds: Sequence[float]) -> tuple[int, list[int]]:
    """(rounds, answers a block for each side) from each side's seconds for one answer.

    Eight rounds of blocks of 0.15 s and three answers, when 12 s allow it; else fewer answers a
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
    sides: Sequence[Side], rounds: int, repeats: Sequence[int], launch: int, progress: Progress
) -> None:
    """Run so many rounds of A B B A (of A A where a side is alone). A machine that others made
    slower than planned for stops after LIMIT_S, and the fewest rounds."""
    started = time.monotonic()
    order = (0, 1, 1, 0) if len(sides) == 2 else (0, 0)
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > LIMIT_S:
            return
        progress(f"latency: launch {launch + 1}, round {number + 1} of {rounds}")
        for side in sides:
            side.begin_round(launch)
        for index in order:
            sides[index].block(repeats[index])


def run_launches(
    sides: Sequence[Side],
    repeats: Sequence[int],
    open_again: Callable[[ExitStack, Side], Worker],
    started: float,
    progress: Progress,
    thorough: bool = False,
) -> None:
    """Fresh processes for both sides and a few rounds, as often as `another_launch` says. The first
    launch's workers have ended; its rounds began at `started` (time.monotonic())."""
    took, launches = 0.0, 1
    while another_launch(
        launches, time.monotonic() - started, took, lambda: ratio_of(*sides), thorough
    ):
        began = time.monotonic()
        with ExitStack() as stack:
            for side in sides:
                side.worker = open_again(stack, side)
                side.run(1)
            run_rounds(sides, LAUNCH_ROUNDS, repeats, launches, progress)
        launches, took = launches + 1, time.monotonic() - began


def another_launch(
    launches: int,
    elapsed_s: float,
    last_s: float,
    ratio: Callable[[], Interval],
    thorough: bool = False,
) -> bool:
    """Whether to launch once more: the ratio is not precise, and another launch as long as the last
    one ends within LIMIT_S (`thorough`: within minutes).

    The rule looks at the bounds' width and at 1, never at a limit that is judged by. How little it
    changes the bounds' errors is simulated by tools/bench_gate.py.
    """
    limit_s = THOROUGH_LIMIT_S if thorough else LIMIT_S
    if launches >= MOST_LAUNCHES or elapsed_s + last_s > limit_s:
        return False
    return not is_precise(ratio(), thorough)


def is_precise(ratio: Interval, thorough: bool = False) -> bool:
    """Whether more rounds would say little: near bounds, or (not `thorough`) a ratio that is far
    from 1."""
    half = math.log(ratio.high / ratio.low) / 2
    if half <= PRECISE:
        return True
    return not thorough and half * CLEAR <= abs(math.log(ratio.value))


def ratio_of(reference: Side, candidate: Side) -> Interval:
    """candidate / reference of the time to answer."""
    below, above = reference.rounds["answer_ms"], candidate.rounds["answer_ms"]
    return paired_times.ratio_of_medians(np.array(below), np.array(above), candidate.launches)
