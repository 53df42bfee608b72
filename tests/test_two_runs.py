"""The ratio of two runs: its bounds hold what they say, identical runs are defined."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.statistics import Interval, exactly
from edgetune.two_runs import ratio_of_runs, run_level


def test_identical_runs_have_a_ratio_of_one_without_width() -> None:
    level = run_level([5.0] * 6)
    found = ratio_of_runs(level, level)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_ratio_turned_over_has_its_bounds_turned_over() -> None:
    one, other = Interval(2.0, 1.8, 2.5), Interval(3.0, 2.9, 3.3)
    there, back = ratio_of_runs(one, other), ratio_of_runs(other, one)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)
    assert there.high * back.low == pytest.approx(1)


def test_one_sided_width_of_one_run_is_the_ratio_s() -> None:
    found = ratio_of_runs(Interval(2.0, 1.5, 4.0), exactly(2.0))
    assert (found.low, found.high) == pytest.approx((0.75, 2.0))


def test_the_bounds_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    truth, beyond, runs = 1.1, 0, 300
    for _ in range(runs):
        new, old = np.exp(generator.normal(0, 0.03, size=(2, 12)))
        found = ratio_of_runs(run_level((truth * new).tolist()), run_level(old.tolist()))
        beyond += found.low > truth
        beyond += found.high < truth
    # 5 % on each side; a binomial of 600 stays below 8 %.
    assert beyond / (2 * runs) < 0.08


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_times_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ratio_of_runs(Interval(1.0, bad, 2.0), exactly(1.0))
    with pytest.raises(ValueError, match="positive"):
        run_level([1.0, bad, 1.0])
    with pytest.raises(ValueError, match="fewest"):
        run_level([1.0, 1.0])
