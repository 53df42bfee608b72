"""The package's half of the latency measurement: a process of its own, JSON lines in and out.

    python -m edgetune.validate.latency_worker

In: {"package", "variant", "device", "threads", "prompt_ids": [128 ids], "new_tokens": 64}. Out:
{"ready": true, "load_s", "dtype", "peak_rss_mb"}. Then {"run": n} → {"ttft_ms": [n],
"decode_ms_per_token": [n], "prefill_tokens_per_s": [n], "answer_ms": [n], "token_ms": [of every
new token but an answer's first], "cpu_s", "peak_rss_mb"}, and {"sustain": {"windows", "window_s"}}
→ {"tokens": [new tokens in each window]}, until {"stop": true} or the end of input;
{"error": {"exit_code", "message", "hint"}} when it fails. The torch half,
edgetune.reference.latency_worker, speaks the same.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from edgetune.answering import answer_requests, requests, tell
from edgetune.host import own_peak_rss_mb
from edgetune.runtime.decoder import start
from edgetune.runtime.session import OpenPackage, open_package


def serve(source: TextIO, sink: TextIO) -> None:
    """Open the package that the first line names, then run as the following lines say."""
    job = json.loads(source.readline())
    # The parent has checked the files.
    opened = open_package(
        Path(job["package"]), job["variant"], job.get("device"), job["threads"], verify=False
    )
    ready = {"ready": True, "load_s": opened.load_s, "dtype": opened.variant.name}
    tell(sink, {**ready, "peak_rss_mb": own_peak_rss_mb()})
    for request in requests(source):
        if "sustain" in request:
            counts = count_tokens(opened, job["prompt_ids"], job["new_tokens"], request["sustain"])
            tell(sink, {"tokens": counts})
        else:
            tell(sink, measure(opened, job["prompt_ids"], job["new_tokens"], request["run"]))


def measure(
    opened: OpenPackage, prompt_ids: Sequence[int], new_tokens: int, repeats: int
) -> dict[str, Any]:
    """`repeats` answers of `new_tokens` tokens, timed; no token ends an answer early. `cpu_s`: of
    all threads of this process, user and system."""
    used = time.process_time()
    answers = [_steps_ms(opened, prompt_ids, new_tokens) for _ in range(repeats)]
    cpu_s = time.process_time() - used
    rows = [_figures(steps, len(prompt_ids)) for steps in answers]
    return {
        **{key: [row[key] for row in rows] for key in rows[0]},
        "token_ms": [ms for steps in answers for ms in steps[1:]],
        "cpu_s": cpu_s,
        "peak_rss_mb": own_peak_rss_mb(),
    }


def count_tokens(
    opened: OpenPackage, prompt_ids: Sequence[int], new_tokens: int, plan: Mapping[str, Any]
) -> list[int]:
    """New tokens in each of `plan`'s windows of time, answer after answer."""
    counts = [0] * int(plan["windows"])
    total, started = len(prompt_ids) + new_tokens, time.perf_counter()
    while True:
        generator = start(opened, prompt_ids, total, min_length=total)
        for _ in range(new_tokens):
            generator.generate_next_token()
            window = int((time.perf_counter() - started) / plan["window_s"])
            if window >= len(counts):
                return counts
            counts[window] += 1


def _steps_ms(opened: OpenPackage, prompt_ids: Sequence[int], new_tokens: int) -> list[float]:
    """Milliseconds to each token of one answer, since the one before."""
    total = len(prompt_ids) + new_tokens
    clock = [time.perf_counter()]
    generator = start(opened, prompt_ids, total, min_length=total)
    for _ in range(new_tokens):
        generator.generate_next_token()
        clock.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in pairwise(clock)]


def _figures(steps: Sequence[float], prompt_tokens: int) -> dict[str, float]:
    """Of one answer. The first token counts as prefill, the others as decode."""
    return {
        "ttft_ms": steps[0],
        "decode_ms_per_token": statistics.median(steps[1:] or steps),
        "prefill_tokens_per_s": prompt_tokens / steps[0] * 1e3,
        "answer_ms": sum(steps),
    }


if __name__ == "__main__":
    sys.exit(answer_requests(serve, "the package's runtime"))
