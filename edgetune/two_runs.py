"""How much slower one run was than another, with which it shares no round (numpy only).

Each run has an estimate with bounds of its own; the ratio's bounds are recovered from theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgetune.paired_times import FEWEST_ROUNDS, median
from edgetune.statistics import Interval


def run_level(times: Sequence[float]) -> Interval:
    """A run's median over its rounds [R]. Raises ValueError for fewer than three rounds, or times
    that are not positive."""
    return median(np.asarray(times, dtype=np.float64)[:, None])


def ratio_of_runs(new: Interval, old: Interval) -> Interval:
    """new / old of two independent positive estimates: their distances to their bounds on the log
    scale, added in squares (method of variance estimates recovery; Zou & Donner 2008, Statistics in
    Medicine 27:1693-1702). Raises ValueError for an estimate or a bound that is not positive."""
    if min(new.value, new.low, new.high, old.value, old.low, old.high) <= 0:
        msg = "a ratio of runs needs positive estimates"
        raise ValueError(msg)
    value = new.value / old.value
    less = math.hypot(math.log(new.value / new.low), math.log(old.high / old.value))
    more = math.hypot(math.log(new.high / new.value), math.log(old.value / old.low))
    return Interval(value, value * math.exp(-less), value * math.exp(more))


__all__ = ["FEWEST_ROUNDS", "ratio_of_runs", "run_level"]
