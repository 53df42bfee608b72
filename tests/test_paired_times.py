"""The interval of a ratio of times, against scipy, statsmodels and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from edgetune import paired_times


def test_students_quantiles_are_scipys() -> None:
    for freedom in (1, 2, 3, 4, 5, 7, 10, 19, 30, 59, 200):
        for share in (0.9, 0.95, 0.99):
            expected = stats.t.ppf(share, freedom)
            assert paired_times.students_t(freedom, share) == pytest.approx(expected, rel=1e-12)


def test_a_ratio_of_medians_sees_a_slowdown_through_drift() -> None:
    generator = np.random.default_rng(6)
    drift = np.linspace(1.0, 1.5, 8)[:, None]
    reference = drift * generator.normal(1.0, 0.01, size=(8, 8))
    candidate = 1.1 * drift * generator.normal(1.0, 0.01, size=(8, 6))
    found = paired_times.ratio_of_medians(reference, candidate)
    assert found.value == pytest.approx(1.1, abs=0.01)
    # Of one launch it is not known what other processes would have given.
    assert 0.95 < found.low < 1.05 < 1.15 < found.high
    launches = np.repeat(np.arange(4), 2)
    told = paired_times.ratio_of_medians(reference, candidate, launches)
    assert 1.05 < told.low < told.value < told.high < 1.15
    with pytest.raises(ValueError, match="as many rounds"):
        paired_times.ratio_of_medians(reference, candidate[:3])
    with pytest.raises(ValueError, match="positive times"):
        paired_times.ratio_of_medians(reference, candidate * 0)
    with pytest.raises(ValueError, match="2 rounds have no interval"):
        paired_times.ratio_of_medians(reference[:2], candidate[:2])
    with pytest.raises(ValueError, match="finite data"):
        paired_times.ratio_of_medians(reference, candidate * math.nan)


def test_without_drift_it_is_the_plain_ratio_of_medians() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(20, 0.1, size=(2, 40, 6))
    expected = np.median(b) / np.median(a)
    assert paired_times.ratio_of_medians(a, b).value == pytest.approx(expected, rel=2e-3)


def test_with_one_time_a_round_it_is_near_scipys_and_statsmodels_paired_t_interval() -> None:
    # Of one time a side and round, medians of logarithms of normal data: wider than the mean's
    # interval by √(π/2) or so, never narrower.
    from statsmodels.stats import weightstats

    generator = np.random.default_rng(4)
    a = np.exp(generator.normal(0, 0.05, size=(40, 1)))
    b = np.exp(generator.normal(0.1, 0.05, size=(40, 1)))
    found = paired_times.ratio_of_medians(a, b, np.arange(40))
    logs = (np.log(b) - np.log(a))[:, 0]
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.9)
    assert weightstats.DescrStatsW(logs).tconfint_mean(0.1) == pytest.approx((low, high))
    width = math.log(found.high / found.low)
    assert high - low <= width * 1.0001 < 1.8 * (high - low)


@pytest.mark.parametrize("launches", [1, 4, 7])
def test_the_bounds_hold_the_truth_about_as_often_as_they_say(launches: int) -> None:
    # Levels that jump, heavy tails, and processes that differ by what is assumed of one launch.
    generator, above, below, runs = np.random.default_rng(launches), 0, 0, 200
    rounds = 10 + 5 * (launches - 1)
    number = np.array([0] * 10 + [k for k in range(1, launches) for _ in range(5)])
    for _ in range(runs):
        level = np.exp(generator.normal(0, 0.3, size=(rounds, 1)))
        a, b = level * np.exp(generator.standard_t(3, size=(2, rounds, 6)) * 0.05)
        b *= np.exp(generator.normal(0, paired_times.PROCESS_SPREAD, size=launches))[number, None]
        found = paired_times.ratio_of_medians(a, b, number, resamples=100)
        above += found.low > 1
        below += found.high < 1
    # 5 % each; 9.5 % is three standard errors above.
    assert above / runs < 0.095
    assert below / runs < 0.095
    assert above + below > 0


def test_a_level_that_drifts_has_a_wide_interval() -> None:
    # An autoregressive level, correlation 0.6 from round to round, true median 1.
    generator, outside, runs = np.random.default_rng(2), 0, 200
    for _ in range(runs):
        level = np.zeros(24)
        for k in range(1, 24):
            level[k] = 0.6 * level[k - 1] + generator.normal(0, 0.1)
        times = np.exp(level[:, None] + generator.normal(0, 0.02, size=(24, 4)))
        found = paired_times.median(times, resamples=200)
        outside += not found.low <= 1 <= found.high
    assert 0 < outside / runs < 0.17


def test_identical_data_give_an_interval_without_width() -> None:
    for found in (
        paired_times.ratio_of_medians(np.full((4, 3), 2.0), np.full((4, 3), 2.0)),
        paired_times.ratio_of_medians(*[np.random.default_rng(0).uniform(1, 2, (5, 2))] * 2),
        paired_times.median(np.full((4, 3), 1.0)),
    ):
        assert found.as_dict() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_same_seed_gives_the_same_bounds() -> None:
    a, b = np.random.default_rng(5).uniform(1, 2, size=(2, 6, 4))
    assert paired_times.ratio_of_medians(a, b) == paired_times.ratio_of_medians(a, b)
    assert paired_times.median(a) == paired_times.median(a)
    assert paired_times.median(a) != paired_times.median(a, seed=1)
