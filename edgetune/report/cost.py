"""The `cost` section and the figures per token in words."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.schema import LatencySide, Report, SideCost
from edgetune.report.words import megabytes, percent


def cost_lines(report: Report) -> Iterator[str]:
    """What was trained and ships; what 1,000 tokens cost; a sustained minute, where measured."""
    cost = report.cost
    if cost is None:
        return
    reasons = cost.reasons
    trained, total = cost.trained_parameters, cost.total_parameters
    if trained is None or total is None:
        unknown = reasons.get("trained_parameters") or reasons.get("total_parameters", "")
        parameters = f"parameters not measured: {unknown}"
    else:
        share = f" ({percent(trained / total, 2)})" if total else ""
        parameters = f"{trained:,} of {total:,} parameters trained{share}"
    yield f"{parameters}; {megabytes(cost.package_bytes)} MB shipped"
    if cost.candidate is not None:
        text = f"1,000 tokens: {_side(cost.candidate)}"
        if cost.reference is not None:
            text += f" (reference {_side(cost.reference)})"
        if why := reasons.get("joules_per_1k_tokens"):
            text += f"; energy not measured: {why}"
        yield text
    if (side := report.latency.candidate) is not None and side.sustained is not None:
        yield f"a minute without a pause: {_minute(side)}"


def token_text(side: LatencySide) -> str:
    """`0.52 / 0.60 / 0.71`: the 50 %, 95 % and 99 % of milliseconds per token."""
    found = side.token_ms
    if found is None:
        return "not measured"
    return " / ".join(f"{found[key]:.2f}" for key in ("p50", "p95", "p99"))


def _side(side: SideCost) -> str:
    text = f"{side.cpu_s_per_1k_tokens:.2f} CPU seconds"
    joules = side.joules_per_1k_tokens
    return text if joules is None else f"{text}, {joules:.1f} J"


def _minute(side: LatencySide) -> str:
    assert side.sustained is not None
    speeds = " ".join(f"{speed:.1f}" for speed in side.sustained.tokens_per_s)
    share = side.sustained.last_to_first
    last = "" if share is None else f", the last {percent(share, 0)} of the first"
    return f"{speeds} tokens/s over each {side.sustained.window_s:.0f} s{last}"
