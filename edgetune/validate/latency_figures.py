"""What a side's rounds come to: medians with bounds, percentiles per token, a minute's speed, and
what a thousand tokens cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetune import paired_times, statistics
from edgetune.validate.energy import why_no_energy
from edgetune.validate.rounds import RUN_TIMEOUT_S, TIMES, Progress, Side

# A sustained minute: a processor that heats up is slower at its end.
WINDOWS = 6
WINDOW_S = 10.0
_PERCENTILES = (5, 25, 50, 75, 95, 99)


def figures_of(side: Side) -> dict[str, Any]:
    """Medians over all answers, with one-sided 95 % bounds in `intervals`; `rounds_ms`: each
    round's median time to answer; `token_ms`: percentiles over all new tokens but the first."""
    found = {key: paired_times.median(np.array(side.rounds[key])) for key in TIMES}
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
        "rounds_ms": [float(np.median(times)) for times in side.rounds["answer_ms"]],
        "token_ms": _percentiles(side.token_ms),
    }


def cost_of(side: Side, tokens: int) -> dict[str, Any]:
    """CPU seconds and joules per 1,000 tokens, prompt and new ones counted alike; `tokens`: of one
    answer."""
    thousands = side.answers * tokens / 1e3
    joules = None if side.joules is None else side.joules / thousands
    return {
        "cpu_s_per_1k_tokens": side.cpu_s / thousands,
        "joules_per_1k_tokens": joules,
        "reason": why_no_energy() if joules is None else None,
    }


def sustained(side: Side, progress: Progress) -> dict[str, Any]:
    """A minute of answers without a pause: new tokens per second over each 10 s, and the last of
    them as a share of the first."""
    progress("latency: a sustained minute")
    request = {"sustain": {"windows": WINDOWS, "window_s": WINDOW_S}}
    counts = side.worker.ask(request, WINDOWS * WINDOW_S + RUN_TIMEOUT_S)["tokens"]
    speeds = [count / WINDOW_S for count in counts]
    share = speeds[-1] / speeds[0] if speeds[0] else None
    return {"window_s": WINDOW_S, "tokens_per_s": speeds, "last_to_first": share}


def _percentiles(token_ms: list[float]) -> dict[str, float] | None:
    """Values that were seen; null where answers have one token only."""
    if not token_ms:
        return None
    found = np.percentile(token_ms, _PERCENTILES, method="inverted_cdf")
    return {f"p{share}": float(ms) for share, ms in zip(_PERCENTILES, found, strict=True)}
