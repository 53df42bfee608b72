"""How long an answer takes: the package beside the unconverted model in torch.

An answer is 128 prompt tokens and 64 new ones, greedy; `rounds.py` runs the two sides in turn, in
about half a minute. Then both are loaded once more with a cold page cache and, where the build is
to be thorough, answer for a whole minute, each alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetune.errors import EdgetuneError
from edgetune.validate.cold_load import load_cold
from edgetune.validate.latency_figures import cost_of, figures_of, sustained
from edgetune.validate.rounds import (
    Progress,
    Side,
    plan_rounds,
    ratio_of,
    run_launches,
    run_rounds,
    seconds_per_answer,
)
from edgetune.validate.worker import Worker, open_worker

CANDIDATE_MODULE = "edgetune.validate.latency_worker"
REFERENCE_MODULE = "edgetune.reference.latency_worker"
PROMPT_TOKENS = 128
NEW_TOKENS = 64
# Loading a large model from a cold disk takes minutes; a worker that is silent for longer hangs.
_LOAD_TIMEOUT_S = 1800.0


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
    thorough: bool = False,
) -> dict[str, Any]:
    """The report's `latency` section, with both sides' `cost` in it.

    `reference_job` null: only the package is measured, `reference` and `ratio` are null. A
    reference that cannot be measured leaves them null with the reason; a package that cannot
    raises StepFailedError.
    """
    with ExitStack() as stack:
        reference, reason = _open_reference(stack, reference_job, progress)
        progress("latency: opening the package")
        candidate = _open(stack, CANDIDATE_MODULE, candidate_job)
        sides = [side for side in (reference, candidate) if side is not None]
        jobs = {id(candidate): candidate_job}
        if reference is not None:
            # Only the data type that was found faster.
            types = {"dtype_candidates": [reference.ready["dtype"]]}
            jobs[id(reference)] = {**(reference_job or {}), **types}
        rounds, repeats = plan_rounds([seconds_per_answer(side) for side in sides])
        started = time.monotonic()
        run_rounds(sides, rounds, repeats, 0, progress)
        measured_s = time.monotonic() - started
        lasting = [sustained(side, progress) if thorough else None for side in sides]
    if reference is not None:
        started = time.monotonic() - measured_s
        run_launches(sides, repeats, partial(_open_again, jobs), started, progress, thorough)
    # The workers have ended, and with them their hold on the files.
    found = []
    for side, minute in zip(sides, lasting, strict=True):
        cold_s, why = _load_cold(side, jobs[id(side)], progress)
        tokens = _tokens_of(side, candidate_job)
        found.append({**figures_of(side), "load_cold_s": cold_s, "sustained": minute})
        found[-1]["reasons"] = {} if why is None else {"load_cold_s": why}
        found[-1]["cost"] = cost_of(side, tokens)
    return {
        "reference": found[0] if reference else None,
        "candidate": found[-1],
        "ratio": ratio_of(reference, candidate).as_dict() if reference else None,
        "reason": reason,
        "prompt_tokens": len(candidate_job["prompt_ids"]),
        "new_tokens": candidate_job["new_tokens"],
        "threads": candidate_job["threads"],
        "rounds": len(candidate.launches),
        "launches": candidate.launches[-1] + 1,
        "answers": candidate.answers,
    }


def _load_cold(
    side: Side, job: Mapping[str, Any], progress: Progress
) -> tuple[float | None, str | None]:
    progress("latency: loading with a cold page cache")
    folder = Path(job["checkpoint"] if "checkpoint" in job else job["package"])
    if "checkpoint" not in job:
        folder = folder / job["variant"]
    return load_cold(side.worker.module, job, folder, float(side.ready["load_s"]))


def _open_again(jobs: Mapping[int, Mapping[str, Any]], stack: ExitStack, side: Side) -> Worker:
    worker = stack.enter_context(open_worker([side.worker.module]))
    worker.ask(jobs[id(side)], _LOAD_TIMEOUT_S)
    return worker


def _tokens_of(side: Side, job: Mapping[str, Any]) -> int:
    """Tokens of one answer, read and written; a side that had to shorten them says so."""
    prompt = side.ready.get("prompt_tokens") or len(job["prompt_ids"])
    return int(prompt + (side.ready.get("new_tokens") or job["new_tokens"]))


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
