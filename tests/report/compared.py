"""Reports whose every figure agrees with every other, down to the items: what the gate compares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.report.collect import Found, find_reports
from edgetune.report.make import finish_report
from edgetune.statistics import paired_proportions
from tests.report.sample import interval, sections

ITEMS, POSITIONS = 240, 15
# The trained model answers all but these.
REFERENCE_WRONG = 12
CHECKS = [
    {"name": "kl_mean", "limit": 0.05},
    {"name": "exact_match_drop", "limit": 0.02},
    {"name": "time_to_answer_ratio", "limit": 1.0},
]


def whole(
    wrong: Sequence[int] = range(REFERENCE_WRONG),
    kl: float = 0.004,
    items: int = ITEMS,
    answer_ms: float = 200.0,
    reference_ms: float = 800.0,
    rounds: int = 6,
    noise: float = 0.01,
    checks: Sequence[Mapping[str, Any]] = CHECKS,
    **changes: Any,
) -> dict[str, Any]:
    """A finished report of `items` items of which the package gets `wrong` wrong; `noise`: how far
    a round's median lies from the whole's."""
    exact = [int(number not in set(wrong)) for number in range(items)]
    reference = [int(number >= REFERENCE_WRONG) for number in range(items)]
    pairs = list(zip(reference, exact, strict=True))
    lost, gained = pairs.count((1, 0)), pairs.count((0, 1))
    drop = paired_proportions(lost, gained, items)
    metric = {
        "base": 0.1, "reference": sum(reference) / items, "candidate": sum(exact) / items,
        "difference": drop.value, "low": drop.low, "high": drop.high, "n": items, "lost": lost,
        "gained": gained,
    }  # fmt: skip
    value = sections(
        task_metrics={"exact_match": metric},
        fidelity__kl_mean=interval(kl, kl / 10),
        fidelity__items=items,
        fidelity__positions=items * POSITIONS,
        fidelity__flips={"answers": items, "changed": lost + gained, "lost": lost,
                         "gained": gained},
        latency__ratio=interval(answer_ms / reference_ms, noise * answer_ms / reference_ms),
        environment__versions={"edgetune": "0.1.0", "torch": "2.10"},
        checks=[{"required": False, "reason": None, **check} for check in checks],
        examples=[],
    )  # fmt: skip
    for side, median, share in (
        ("candidate", answer_ms, noise),
        ("reference", reference_ms, noise / 4),
    ):
        times = [median * (1 + share * sign) for sign in (-1, 1, 0, 0, 1, -1, 0, 1, -1)[:rounds]]
        value["latency"][side].update(answer_ms=median, rounds_ms=times)
        value["latency"][side]["intervals"]["answer_ms"] = interval(median, median * noise)
    value["per_item"] = {
        "ids": [str(number) for number in range(items)],
        "exact": exact,
        "kl_mean": [kl] * items,
        "positions": [POSITIONS] * items,
        "answers": [f"{number}-{right}" for number, right in enumerate(exact)],
    }
    for path, new in changes.items():
        *parents, last = path.split("__")
        place = value
        for key in parents:
            place = place[key]
        place[last] = new
    return finish_report(value)


def put(path: Path, value: Mapping[str, Any] | str) -> Path:
    """Write a report, or any text, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def found(path: Path, value: Mapping[str, Any]) -> Found:
    """A report as the gate finds it."""
    return find_reports([put(path, value)])[0]
