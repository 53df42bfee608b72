"""Statistics of times taken in rounds of A B B A blocks (numpy only).

The noise of a machine is not independent: it drifts, and other work comes in bursts that last for
many answers. What neighbours share cancels inside a round, and rounds are what is resampled.
Measured on real traces (docs/gates.md), neighbouring rounds' levels are correlated, their ratios
are not.

Identical data give an interval of width zero, never NaN. Every `low` and `high` is a one-sided 95 %
bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetune.statistics import CONFIDENCE, Floats, Interval, finite

# A standard error needs fewer than a percentile does: 400 give it to 3.5 %.
RESAMPLES = 400
FEWEST_ROUNDS = 3
# What two processes of the same program differ by, as the standard deviation of the logarithm of
# their ratio: measured between launches (docs/gates.md), used where there are too few to tell.
PROCESS_SPREAD = 0.05
FEWEST_LAUNCHES = 4


def ratio_of_medians(
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    launches: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """median(candidate) / median(reference); rows [rounds, times] are rounds of A B B A blocks, of
    times > 0. `launches` [rounds] numbers the pair of processes that ran a round; one pair where
    null.

    Each time is first divided by its round's level, the geometric mean of both sides' medians in
    it: the machine's drift, which both sides saw, would widen the spread of each alone. The
    interval, in the logarithm, is the wider of two:

    * rounds: whole rounds are resampled, the same for both sides; the bootstrap's standard error,
      corrected for few rounds by √(R/(R−1)), times Student's t with R − 1 degrees of freedom
      (Efron & Tibshirani 1993, §12.2), because percentiles of a few rounds are far too narrow. Of
      few rounds a bootstrap of medians sees little, so that error is never taken smaller than that
      of the rounds' own ratios.
    * launches: two processes of the same program differ for as long as they live, and no number of
      rounds shows it (Kalibera & Jones 2013). Of four launches or more, Student's t on their
      ratios; of fewer, PROCESS_SPREAD is added to the rounds' error.

    Raises ValueError for fewer than three rounds.
    """
    below, above = finite(reference, 2), finite(candidate, 2)
    rounds = len(below)
    if rounds != len(above) or not (below > 0).all() or not (above > 0).all():
        msg = "a ratio of medians needs as many rounds on both sides, and positive times"
        raise ValueError(msg)
    _need_rounds(rounds)
    same = below.shape == above.shape and bool((below == above).all())
    below, above = np.log(below), np.log(above)
    lower, upper = np.median(below, axis=1), np.median(above, axis=1)
    level = ((lower + upper) / 2)[:, None]
    below, above = below - level, above - level
    picks = np.random.default_rng(seed).integers(0, rounds, size=(resamples, rounds))
    drawn = _medians(above, picks) - _medians(below, picks)
    error = max(
        float(drawn.std(ddof=1)) * math.sqrt(rounds / (rounds - 1)),
        float((upper - lower).std(ddof=1)) / math.sqrt(rounds),
    )
    value = float(np.median(above) - np.median(below))
    number = np.zeros(rounds, dtype=np.int64) if launches is None else np.asarray(launches)
    sizes = np.array([np.sum(number == k) for k in np.unique(number)])
    # Launches of unequal size count as fewer (Kish).
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    if same:
        return Interval(1.0, 1.0, 1.0)
    if len(sizes) < FEWEST_LAUNCHES:
        error = math.hypot(error, PROCESS_SPREAD / math.sqrt(effective))
        return _students_interval(value, students_t(rounds - 1) * error)
    each = np.array([np.mean((upper - lower)[number == k]) for k in np.unique(number)])
    between = float(each.std(ddof=1)) / math.sqrt(effective)
    half = max(students_t(rounds - 1) * error, students_t(len(each) - 1) * between)
    return _students_interval(value, half)


def median(times: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The median of positive times (or speeds) in rounds [rounds, times].

    A level by itself has no other side to cancel the drift with: runs of √R neighbouring rounds are
    resampled (circular block bootstrap; Politis & Romano 1992), and Student's t has as many degrees
    of freedom as there are such runs, less one. Raises ValueError for fewer than three rounds.
    """
    data = finite(times, 2)
    rounds = len(data)
    if not (data > 0).all():
        msg = "a median of times needs positive times"
        raise ValueError(msg)
    _need_rounds(rounds)
    data = np.log(data)
    length = max(1, math.isqrt(rounds))
    runs = math.ceil(rounds / length)
    starts = np.random.default_rng(seed).integers(0, rounds, size=(resamples, runs))
    picks = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :rounds] % rounds
    error = float(_medians(data, picks).std(ddof=1)) * math.sqrt(runs / max(1, runs - 1))
    return _students_interval(float(np.median(data)), students_t(max(1, runs - 1)) * error)


def students_t(freedom: int, probability: float = CONFIDENCE) -> float:
    """The quantile of Student's t distribution, by bisection of its closed form for whole degrees
    of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4); 1/2 ≤ probability < 1."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """P(T ≤ t), t ≥ 0."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2


def _students_interval(value: float, half: float) -> Interval:
    """Back from the logarithm. Rounding in the last digit is no noise."""
    half = half if half > 1e-12 else 0.0
    return Interval(math.exp(value), math.exp(value - half), math.exp(value + half))


def _need_rounds(rounds: int) -> None:
    if rounds < FEWEST_ROUNDS:
        msg = f"{rounds} rounds have no interval, {FEWEST_ROUNDS} are the fewest"
        raise ValueError(msg)


def _medians(data: Floats, picks: npt.NDArray[np.int64]) -> Floats:
    medians: Floats = np.median(data[picks].reshape(len(picks), -1), axis=1)
    return medians
