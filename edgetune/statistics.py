"""Intervals and exact tests (numpy only: a device has no scipy).

Every `low` and `high` is a one-sided 95 % bound, so that the two together hold 90 %: that is what
a non-inferiority decision needs ("the package loses at most the margin, with 95 % confidence").

Bootstrap: percentile, seeded, resampling *items*. Positions of one answer depend on each other, so
an item is drawn with all its positions (cluster bootstrap; Davison & Hinkley 1997, §2.4 and §3.8).
Identical data give an interval of width zero, never NaN; empty or non-finite data raise ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 2000
# The 95 % quantile of the standard normal distribution.
_Z = 1.6448536269514722
# How many resampled counts are held at once (8 bytes each).
_CELLS = 4_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its one-sided 95 % bounds."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The form that reports carry."""
        return {"value": self.value, "low": self.low, "high": self.high}


def exactly(value: float) -> Interval:
    """A value that has no sampling error: a count, a size."""
    return Interval(float(value), float(value), float(value))


def ratio_of_sums(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """sum(numerator) / sum(denominator) over items, both [n], items resampled as pairs.

    With an item's sum over its positions and its number of positions this is the mean over
    positions under the cluster bootstrap. Resamples whose denominator is zero say nothing and are
    left out. Raises ValueError when the whole denominator is not positive.
    """
    top, bottom = finite(numerator), finite(denominator)
    if top.shape != bottom.shape or not bottom.sum() > 0:
        msg = "a ratio of sums needs pairs, and a positive denominator"
        raise ValueError(msg)
    drawn: list[Floats] = []
    for counts in _resampled_counts(len(top), seed, resamples):
        tops, bottoms = counts @ top, counts @ bottom
        usable = bottoms > 0
        drawn.append(tops[usable] / bottoms[usable])
    return _percentile_interval(float(top.sum() / bottom.sum()), np.concatenate(drawn))


def stratified_ratio(
    strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """As `ratio_of_sums`, of (numerator, denominator) pairs, both [n], of several strata: items are
    resampled within each, so that strata of sizes fixed by design add no spread (Davison & Hinkley
    1997, §3.2). Denominators must be positive."""
    pairs = [(finite(top), finite(bottom)) for top, bottom in strata]
    if not pairs or any(t.shape != b.shape or not (b > 0).all() for t, b in pairs):
        msg = "a stratified ratio needs pairs, and positive denominators"
        raise ValueError(msg)
    tops, bottoms = np.zeros(resamples), np.zeros(resamples)
    for number, (top, bottom) in enumerate(pairs):
        drawn = np.concatenate(list(_resampled_counts(len(top), seed + number, resamples)))
        tops += drawn @ top
        bottoms += drawn @ bottom
    value = sum(float(t.sum()) for t, _ in pairs) / sum(float(b.sum()) for _, b in pairs)
    return _percentile_interval(value, tops / bottoms)


def mean(values: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean over items [n]; for paired data, of the differences."""
    data = finite(values)
    return ratio_of_sums(data, np.ones_like(data), seed, resamples)


def mapped(interval: Interval, function: np.ufunc) -> Interval:
    """The interval of an increasing function of the estimate, for example numpy.exp."""
    return Interval(
        float(function(interval.value)),
        float(function(interval.low)),
        float(function(interval.high)),
    )


def quantile(
    values: npt.ArrayLike,
    item_of: npt.ArrayLike,
    share: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The `share` quantile over positions [P]; `item_of` [P] names each position's item (0…n-1).

    The smallest value below or at which at least `share` of the positions lie (numpy's
    "inverted_cdf"): always a value that was seen.
    """
    data, items = finite(values), np.asarray(item_of, dtype=np.int64)
    order = np.argsort(data, kind="stable")
    data, items = data[order], items[order]

    def pick(weights: Floats) -> Floats:
        total = np.cumsum(weights, axis=-1)
        # A hair below the exact share, so that rounding does not skip the value that meets it.
        reached = total >= share * total[..., -1:] - 1e-9
        picked: Floats = data[np.argmax(reached, axis=-1)]
        return picked

    value = float(pick(np.ones((1, len(data))))[0])
    count = int(items.max()) + 1
    drawn = [
        pick(counts[:, items])
        for counts in _resampled_counts(count, seed, resamples, cells_each=max(count, len(data)))
    ]
    return _percentile_interval(value, np.concatenate(drawn))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p value of the exact McNemar test: binomial(lost + gained, 1/2).

    `lost`: right with the reference and wrong with the candidate; `gained` the other way round.
    """
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**n))


def paired_proportions(lost: int, gained: int, n: int) -> Interval:
    """candidate − reference of two proportions measured on the same n items: Tango's score
    interval (Tango 1998, Statistics in Medicine 17:891-908, equations 7 to 10).

    Unlike a bootstrap it does not collapse where no answer changed: 0 of 240 changed still leaves
    room for a loss of z²/(n + z²) = 1.1 %, and 0 of 20 for 12 %.
    """
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        msg = f"{lost} lost and {gained} gained do not fit {n} items"
        raise ValueError(msg)
    value = (gained - lost) / n
    low = _solve(lambda d: _tango_score(gained, lost, n, d) - _Z, -1.0, value)
    high = _solve(lambda d: _tango_score(gained, lost, n, d) + _Z, value, 1.0)
    return Interval(value, low, high)


def items_needed(margin: float) -> int:
    """How many items it takes to exclude a loss of `margin` when no answer changes."""
    return math.ceil(_Z**2 * (1 - margin) / margin) if margin > 0 else 0


@cache
def items_to_tell(margin: float, loss: float, flips: float, power: float = 0.9) -> int:
    """How many paired items it takes to judge a true loss of `loss` against `margin` rightly with
    probability `power`: to exclude a loss of the margin when the true one is smaller, to prove it
    when it is larger. `flips` is the share of items whose answer changes, either way; all are
    shares in [0, 1]. Raises ValueError when loss and margin are equal, or the loss needs more
    flips than there are.

    From the normal approximation (Connor 1987, Biometrics 43:207-211) upwards, in steps of 2 %,
    until the score interval itself has the power: where few answers change it needs more.
    """
    if loss == margin or abs(loss) > flips:
        msg = f"a loss of {loss:g} with {flips:g} flips cannot be told from a margin of {margin:g}"
        raise ValueError(msg)
    # The normal quantile of the power, by bisection of its distribution function.
    z = _solve(lambda x: power - (1 + math.erf(x / math.sqrt(2))) / 2, 0.0, 10.0)
    null, true = flips - margin**2, flips - loss**2
    items = ((_Z * math.sqrt(max(null, 0.0)) + z * math.sqrt(true)) / (margin - loss)) ** 2
    n = max(math.ceil(items), items_needed(margin) if loss < margin else 1)
    while _power(n, margin, loss, flips) < power:
        n = math.ceil(1.02 * n)
    return n


def _power(n: int, margin: float, loss: float, flips: float) -> float:
    """With which probability n items judge a true loss rightly, summed over how many answers change
    (all that have a probability worth the name) and how many of them are gained."""
    if flips == 0:
        return float(_tango_score(0, 0, n, -margin) >= _Z)
    spread = 6 * math.sqrt(n * flips) + 6
    share, total = (flips - loss) / (2 * flips), 0.0
    for changed in range(max(0, math.floor(n * flips - spread)), math.ceil(n * flips + spread)):
        if changed > n:
            break
        some = _binomial(changed, n, flips)
        for gained in range(changed + 1):
            score = _tango_score(gained, changed - gained, n, -margin)
            if score >= _Z if loss < margin else score < -_Z:
                total += some * _binomial(gained, changed, share)
    return total


def _binomial(k: int, n: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(k == n * share)
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(choose + k * math.log(share) + (n - k) * math.log1p(-share))


def _tango_score(gained: int, lost: int, n: int, difference: float) -> float:
    """The score statistic of the hypothesis that the true difference is `difference`."""
    a = 2.0 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    fewer = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * fewer + difference * (1 - difference))
    distance = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _solve(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a decreasing function by bisection; an end of the range when it has none."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def finite(values: npt.ArrayLike, dimensions: int = 1) -> Floats:
    """The values as an array of this many dimensions. Raises ValueError: empty, NaN, infinite."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != dimensions or data.size == 0 or not np.isfinite(data).all():
        msg = f"expected {dimensions}-dimensional finite data, got shape {data.shape}"
        raise ValueError(msg)
    return data


def _resampled_counts(
    n: int, seed: int, resamples: int, cells_each: int | None = None
) -> Iterator[Floats]:
    """How often each of n items is drawn, [some, n] at a time, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // (cells_each or n))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n)
        yield counts.reshape(size, n).astype(np.float64)


def _percentile_interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [1 - CONFIDENCE, CONFIDENCE])
    return Interval(value, float(low), float(high))
