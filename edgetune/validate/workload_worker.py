"""A workload of known size in place of a model: what the gate's self-test measures.

    python -m edgetune.validate.workload_worker

Speaks as edgetune.validate.latency_worker does. In: {"units": n} or {"target_ms": ms}, which finds
n. An answer is n products of small matrices in ten parts; a part stands for a token. Ready:
{"ready": true, "load_s", "units"}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from edgetune.answering import answer_requests, requests, tell

PARTS = 10
_SIDE = 96


def serve(source: TextIO, sink: TextIO) -> None:
    """Answer requests until {"stop": true} or the end of input."""
    started = time.perf_counter()
    job = json.loads(source.readline())
    work = make_work()
    work(50)
    load_s = time.perf_counter() - started
    units = int(job["units"] if "units" in job else calibrate(work, job["target_ms"]))
    tell(sink, {"ready": True, "load_s": load_s, "units": units})
    for request in requests(source):
        tell(sink, measure(work, units, request["run"]))


def make_work() -> Callable[[int], None]:
    """A function that does so many units of work."""
    matrix = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)) / _SIDE
    product = np.empty_like(matrix)

    def work(units: int) -> None:
        for _ in range(units):
            np.matmul(matrix, matrix, out=product)

    return work


def calibrate(work: Callable[[int], None], target_ms: float) -> int:
    """How many units take about so long here, ten parts of a whole number of tens: 10 % more is
    then a whole number too."""
    best = min(_time_ms(work, 100) for _ in range(20)) / 100
    return 100 * max(1, round(target_ms / best / 100))


def measure(work: Callable[[int], None], units: int, repeats: int) -> dict[str, Any]:
    """`repeats` answers, timed, in the form of the other latency workers."""
    used = time.process_time()
    answers = [[_time_ms(work, units // PARTS) for _ in range(PARTS)] for _ in range(repeats)]
    return {
        "ttft_ms": [parts[0] for parts in answers],
        "decode_ms_per_token": [statistics.median(parts[1:]) for parts in answers],
        "prefill_tokens_per_s": [1e3 / parts[0] for parts in answers],
        "answer_ms": [sum(parts) for parts in answers],
        "token_ms": [ms for parts in answers for ms in parts[1:]],
        "cpu_s": time.process_time() - used,
    }


def _time_ms(work: Callable[[int], None], units: int) -> float:
    started = time.perf_counter()
    work(units)
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(answer_requests(serve, "the self-test's workload"))
