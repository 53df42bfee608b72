"""The reference's half of the latency measurement: the merged checkpoint in torch.

`python -m edgetune.reference.latency_worker` speaks JSON lines. First line in: {"checkpoint",
"threads", "dtype_candidates": ["bfloat16", "float32"], "prompt_tokens": 128, "new_tokens": 64,
"prompt_ids": [...]}; it answers {"ready": true, "load_s", "dtype", "peak_rss_mb", "prompt_tokens",
"new_tokens", "note", "trials"}. Each {"run": repeats} is answered by lists of one value a run,
"token_ms" of every new token but an answer's first, "cpu_s" and "peak_rss_mb"; {"sustain":
{"windows", "window_s"}} by {"tokens": [new tokens in each window]}; {"stop": true} or the end of
input ends it. A failure is answered by {"error": {"exit_code", "message", "hint"}}. Whoever starts
it sets EDGETUNE_PARENT to its own process id: the worker ends with it.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from edgetune.answering import answer_requests, requests, tell
from edgetune.errors import UsageError
from edgetune.host import own_peak_rss_mb
from edgetune.reference.tokenizer import context_length

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRIAL_TOKENS = 8
_TRIALS = 2


@dataclass(frozen=True)
class Lengths:
    """How much is prefilled and how much is decoded; `note` says when that was cut."""

    prompt_tokens: int
    new_tokens: int
    note: str | None


@dataclass(frozen=True)
class Loaded:
    """The model in the faster data type."""

    model: Any
    dtype: str
    load_s: float
    # False when the peak resident set also covers a data type that was tried and not kept.
    peak_is_own: bool
    # {data type: estimated milliseconds to the whole answer}
    trials: dict[str, float]


def fit_lengths(prompt_tokens: int, new_tokens: int, context: int | None) -> Lengths:
    """The lengths as asked; the prompt, then the answer, shortened to what the model takes."""
    if context is None or prompt_tokens + new_tokens <= context:
        return Lengths(prompt_tokens, new_tokens, None)
    shorter_new = min(new_tokens, max(1, context // 2))
    prompt = max(1, context - shorter_new)
    note = f"the model takes {context} tokens: measured with {prompt} + {shorter_new}"
    return Lengths(prompt, shorter_new, note)


def cycle_prompt(ids: Sequence[int], length: int) -> list[int]:
    """`length` token ids: the given ones, repeated or cut."""
    if not ids:
        msg = "no prompt_ids are given"
        raise UsageError(msg, "send at least one token id")
    return [ids[n % len(ids)] for n in range(length)]


def time_run(model: Any, prompt: Sequence[int], new_tokens: int) -> tuple[float, list[float]]:
    """(milliseconds to the first token, milliseconds of each further one): greedy, with a
    key-value cache, last-token logits only, no end-of-sequence stop."""
    times: list[float] = []
    started = time.perf_counter()
    for _ in generate(model, prompt, new_tokens):
        now = time.perf_counter()
        times.append((now - started) * 1000)
        started = now
    return times[0], times[1:]


def generate(model: Any, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
    """The tokens of a greedy answer, each as soon as it can be read."""
    given, cache = torch.tensor([list(prompt)]), None
    for _ in range(new_tokens):
        # Not held over the yield: the mode would be the caller's too.
        with torch.inference_mode():
            result = model(input_ids=given, cache=cache, use_cache=True, logits_to_keep=1)
            cache = result.cache
            given = result.logits[:, -1].argmax(-1, keepdim=True)
            # Reading the token is part of its time: it is what a user waits for.
            token = int(given[0, 0])
        yield token


def run_repeats(model: Any, prompt: Sequence[int], new_tokens: int, repeats: int) -> dict[str, Any]:
    """Lists of one value a run, `token_ms` of all runs and `cpu_s` (this process's threads, user
    and system); with a single new token there is no decoding to time."""
    found: dict[str, Any] = {
        "ttft_ms": [],
        "decode_ms_per_token": [],
        "prefill_tokens_per_s": [],
        "decode_tokens_per_s": [],
        "answer_ms": [],
        "token_ms": [],
    }
    used = time.process_time()
    for _ in range(repeats):
        first, rest = time_run(model, prompt, new_tokens)
        found["ttft_ms"].append(first)
        found["prefill_tokens_per_s"].append(len(prompt) / first * 1000)
        found["answer_ms"].append(first + sum(rest))
        if rest:
            found["decode_ms_per_token"].append(statistics.median(rest))
            found["decode_tokens_per_s"].append(len(rest) / sum(rest) * 1000)
            found["token_ms"].extend(rest)
    return {**found, "cpu_s": time.process_time() - used}


def count_tokens(
    model: Any, prompt: Sequence[int], new_tokens: int, plan: Mapping[str, Any]
) -> list[int]:
    """New tokens in each of `plan`'s windows of time, answer after answer."""
    counts = [0] * int(plan["windows"])
    started = time.perf_counter()
    while True:
        for _ in generate(model, prompt, new_tokens):
            window = int((time.perf_counter() - started) / plan["window_s"])
            if window >= len(counts):
                return counts
            counts[window] += 1


def load_faster(
    checkpoint: Path, candidates: Sequence[str], prompt: Sequence[int], new_tokens: int
) -> Loaded:
    """Load the checkpoint in each data type in turn, time a short run, keep the faster one."""
    for name in candidates:
        if name not in _DTYPES:
            msg = f"unknown data type {name!r}"
            raise UsageError(msg, f"one of {', '.join(_DTYPES)}")
    trials: dict[str, float] = {}
    model, load_s, own = None, 0.0, True
    for name in candidates:
        model = None
        own = _reset_peak_rss()
        model, load_s = _load(checkpoint, name)
        trials[name] = _estimate_ms(model, prompt, new_tokens)
    fastest = min(trials, key=lambda name: trials[name])
    if fastest != candidates[-1]:
        model = None
        own = _reset_peak_rss()
        model, load_s = _load(checkpoint, fastest)
        _estimate_ms(model, prompt, new_tokens)
    return Loaded(model, fastest, load_s, own or len(candidates) == 1, trials)


def _load(checkpoint: Path, dtype: str) -> tuple[Any, float]:
    from edgetune.checkpoint.trained import load_plain

    started = time.perf_counter()
    model = load_plain(checkpoint, _DTYPES[dtype])
    return model, time.perf_counter() - started


def _estimate_ms(model: Any, prompt: Sequence[int], new_tokens: int) -> float:
    """What the whole answer takes, from short runs; the first of them warms up."""
    estimates = []
    for _ in range(_TRIALS):
        first, rest = time_run(model, prompt, min(_TRIAL_TOKENS, new_tokens))
        decode = statistics.median(rest) * (new_tokens - 1) if rest else 0.0
        estimates.append(first + decode)
    return min(estimates)


def _reset_peak_rss() -> bool:
    """Set this process's peak resident set back to what it holds now (Linux, proc(5): 5 into
    clear_refs); False where the system does not let it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        import ctypes

        # Freed memory that the allocator keeps would count as the next model's.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def serve(source: TextIO, sink: TextIO) -> None:
    """Answer requests until {"stop": true} or the end of input. Raises what goes wrong."""
    start = json.loads(source.readline())
    torch.set_num_threads(int(start["threads"]))
    checkpoint = Path(start["checkpoint"])
    lengths = fit_lengths(
        int(start["prompt_tokens"]), int(start["new_tokens"]), context_length(checkpoint)
    )
    prompt = cycle_prompt(start["prompt_ids"], lengths.prompt_tokens)
    loaded = load_faster(checkpoint, start["dtype_candidates"], prompt, lengths.new_tokens)

    def peak() -> float | None:
        return own_peak_rss_mb() if loaded.peak_is_own else None

    tell(
        sink,
        {
            "ready": True,
            "load_s": loaded.load_s,
            "dtype": loaded.dtype,
            "peak_rss_mb": peak(),
            "prompt_tokens": lengths.prompt_tokens,
            "new_tokens": lengths.new_tokens,
            "note": lengths.note,
            "trials": loaded.trials,
        },
    )
    for request in requests(source):
        if "sustain" in request:
            plan = request["sustain"]
            counts = count_tokens(loaded.model, prompt, lengths.new_tokens, plan)
            tell(sink, {"tokens": counts})
            continue
        found = run_repeats(loaded.model, prompt, lengths.new_tokens, int(request["run"]))
        tell(sink, {**found, "peak_rss_mb": peak()})


if __name__ == "__main__":
    sys.exit(answer_requests(serve, "the torch reference"))
