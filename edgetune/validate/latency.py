"""How long an answer takes: the package beside the unconverted model in torch.

Two processes are loaded, one is busy at a time. Rounds of A B B A blocks cancel a drift that is
linear in time; the ratio of medians is resampled by whole rounds. An answer is 128 prompt tokens
and 64 new ones, greedy. Blocks last at least half a second; the whole is kept under a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from edgetune import paired_times, statistics
from edgetune.errors import EdgetuneError, StepFailedError
from edgetune.validate.worker import Worker, open_worker

CANDIDATE_MODULE = "edgetune.validate.latency_worker"
REFERENCE_MODULE = "edgetune.reference.latency_worker"
PROMPT_TOKENS = 128
NEW_TOKENS = 64
ROUNDS = 6
FEWEST_ROUNDS = 3
BLOCK_S = 0.5
FEWEST_ANSWERS = 3
BUDGET_S = 30.0
# Loading a large model from a cold disk takes minutes; a worker that is silent for longer hangs.
_LOAD_TIMEOUT_S = 1800.0
_RUN_TIMEOUT_S = 1800.0
# Thread pools spin for a moment after their work is done.
_SETTLE_S = 0.05
_TIMES = ("ttft_ms", "decode_ms_per_token", "prefill_tokens_per_s", "answer_ms")

Progress = Callable[[str], None]


@dataclass
class Side:
    """One worker and what it measured: {figure: a list of times for each round}."""

    worker: Worker
    ready: Mapping[str, Any]
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    peak_rss_mb: float | None = None

    def run(self, repeats: int) -> Mapping[str, Any]:
        """One block, as the worker answers it."""
        time.sleep(_SETTLE_S)
        answer = self.worker.ask({"run": repeats}, _RUN_TIMEOUT_S)
        if any(len(answer.get(key, ())) != repeats for key in _TIMES):
            msg = f"{self.worker.module}: an answer without {repeats} times"
            raise StepFailedError(msg)
        self.peak_rss_mb = answer.get("peak_rss_mb")
        return answer

    def block(self, repeats: int, round_number: int) -> None:
        """One block, kept."""
        answer = self.run(repeats)
        for key in _TIMES:
            rounds = self.rounds.setdefault(key, [])
            if len(rounds) == round_number:
                rounds.append([])
            rounds[round_number].extend(float(value) for value in answer[key])


def not_measured(reason: str) -> dict[str, Any]:
    """The report's `latency` section where nothing was measured."""
    return {"reference": None, "candidate": None, "ratio": None, "reason": reason}


def make_prompt(prompts: Sequence[Sequence[int]], context_length: int) -> tuple[list[int], int]:
    """(what both sides read: the self-test's prompts, one after another, 128 tokens of them; how
    many tokens they add: 64). Fewer where the model's context does not hold 192 tokens."""
    new_tokens = min(NEW_TOKENS, max(1, context_length // 2))
    wanted = min(PROMPT_TOKENS, context_length - new_tokens)
    ids = [token for prompt in prompts for token in prompt][:wanted]
    return (ids * math.ceil(wanted / len(ids)))[:wanted], new_tokens


def measure_latency(
    candidate_job: Mapping[str, Any],
    reference_job: Mapping[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
    """The report's `latency` section.

    `reference_job` null: only the package is measured, `reference` and `ratio` are null. A
    reference that cannot be measured leaves them null with the reason; a package that cannot
    raises StepFailedError.
    """
    with ExitStack() as stack:
        reference, reason = _open_reference(stack, reference_job, progress)
        progress("latency: opening the package")
        candidate = _open(stack, CANDIDATE_MODULE, candidate_job)
        sides = [side for side in (reference, candidate) if side is not None]
        seconds = {id(side): _seconds_per_answer(side) for side in sides}
        rounds, repeats = plan_rounds([seconds[id(side)] for side in sides])
        rounds = _run_rounds(sides, rounds, repeats, progress)
        return {
            "reference": _figures(reference) if reference else None,
            "candidate": _figures(candidate),
            "ratio": _ratio(reference, candidate) if reference else None,
            "reason": reason,
            "prompt_tokens": len(candidate_job["prompt_ids"]),
            "new_tokens": candidate_job["new_tokens"],
            "threads": candidate_job["threads"],
            "rounds": rounds,
            "answers": sum(len(times) for times in candidate.rounds["answer_ms"]),
        }


def _run_rounds(
    sides: Sequence[Side], rounds: int, repeats: Sequence[int], progress: Progress
) -> int:
    """Rounds of A B B A; returns how many. A machine that others made slower than planned for
    stops after the fewest."""
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > BUDGET_S:
            return number
        progress(f"latency: round {number + 1} of {rounds}")
        for index in (0, -1, -1, 0):
            sides[index].block(repeats[index], number)
    return rounds


def plan_rounds(seconds: Sequence[float]) -> tuple[int, list[int]]:
    """(rounds, answers a block for each side) from each side's seconds for one answer.

    Six rounds of blocks of half a second and three answers, when 30 s allow it; else fewer answers
    a block, down to one; else fewer rounds, down to three.
    """
    wanted = [max(FEWEST_ANSWERS, math.ceil(BLOCK_S / max(s, 1e-6))) for s in seconds]
    # A round is A B B A; a side that is alone runs all four blocks.
    blocks = 4 / len(seconds)

    def total(rounds: int, repeats: Sequence[int]) -> float:
        return rounds * blocks * sum(n * s for n, s in zip(repeats, seconds, strict=True))

    repeats = wanted
    while total(ROUNDS, repeats) > BUDGET_S and max(repeats) > 1:
        repeats = [max(1, n - 1) for n in repeats]
    rounds = ROUNDS
    while total(rounds, repeats) > BUDGET_S and rounds > FEWEST_ROUNDS:
        rounds -= 1
    return rounds, repeats


def _open_reference(
    stack: ExitStack, job: Mapping[str, Any] | None, progress: Progress
) -> tuple[Side | None, str | None]:
    """The torch side, or why there is none."""
    if job is None:
        return None, "the merged checkpoint is not here: `edgetune build` measures it"
    if find_spec("torch") is None:
        return None, "torch is not installed here"
    if job.get("dtype_candidates") == []:
        return None, "the unconverted model does not fit this machine's memory"
    progress("latency: loading the unconverted model in torch")
    try:
        return _open(stack, REFERENCE_MODULE, job), None
    except EdgetuneError as why:
        return None, f"torch cannot run the merged checkpoint here: {why.message}"


def _open(stack: ExitStack, module: str, job: Mapping[str, Any]) -> Side:
    worker = stack.enter_context(open_worker([module]))
    ready = worker.ask(job, _LOAD_TIMEOUT_S)
    return Side(worker, ready, peak_rss_mb=ready.get("peak_rss_mb"))


def _seconds_per_answer(side: Side) -> float:
    """One answer to warm up, one to plan by."""
    side.run(1)
    return float(side.run(1)["answer_ms"][0]) / 1e3


def _figures(side: Side) -> dict[str, Any]:
    """Medians over all answers, with one-sided 95 % bounds in `intervals`."""
    found = {key: paired_times.median(np.array(side.rounds[key])) for key in _TIMES}
    decode = found["decode_ms_per_token"]
    speed = statistics.Interval(1e3 / decode.value, 1e3 / decode.high, 1e3 / decode.low)
    intervals = {
        "ttft_ms": found["ttft_ms"],
        "decode_tokens_per_s": speed,
        "prefill_tokens_per_s": found["prefill_tokens_per_s"],
        "answer_ms": found["answer_ms"],
    }
    return {
        "load_s": float(side.ready["load_s"]),
        **{key: interval.value for key, interval in intervals.items()},
        "peak_rss_mb": side.peak_rss_mb,
        "dtype": side.ready.get("dtype"),
        "intervals": {key: interval.as_dict() for key, interval in intervals.items()},
    }


def _ratio(reference: Side, candidate: Side) -> dict[str, float]:
    below, above = reference.rounds["answer_ms"], candidate.rounds["answer_ms"]
    return paired_times.ratio_of_medians(np.array(below), np.array(above)).as_dict()
