"""Intervals and tests against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from edgetune import statistics


def test_the_normal_quantile_is_scipys() -> None:
    assert pytest.approx(stats.norm.ppf(0.95), abs=1e-15) == statistics._Z


def test_a_mean_has_the_interval_of_scipys_percentile_bootstrap() -> None:
    data = np.random.default_rng(3).exponential(size=60)
    own = statistics.mean(data)
    theirs = stats.bootstrap(
        (data,), np.mean, confidence_level=0.9, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert own.value == pytest.approx(data.mean())
    assert own.low == pytest.approx(theirs.low, abs=0.02)
    assert own.high == pytest.approx(theirs.high, abs=0.02)


def test_the_bounds_hold_the_truth_about_as_often_as_they_say() -> None:
    generator, below, above = np.random.default_rng(0), 0, 0
    for _ in range(300):
        interval = statistics.mean(generator.normal(size=80), resamples=500)
        below += interval.low > 0
        above += interval.high < 0
    assert 3 <= below <= 30
    assert 3 <= above <= 30


def test_items_are_resampled_not_positions() -> None:
    # Ten items of 50 equal positions say as much as ten values, not as much as 500.
    values = np.random.default_rng(1).normal(size=10)
    clustered = statistics.ratio_of_sums(values * 50, np.full(10, 50.0))
    single = statistics.mean(values)
    assert clustered.low == pytest.approx(single.low)
    assert clustered.high == pytest.approx(single.high)
    spread = statistics.mean(np.repeat(values, 50))
    assert spread.high - spread.low < 0.5 * (clustered.high - clustered.low)


def test_the_same_seed_gives_the_same_bounds() -> None:
    data = np.random.default_rng(5).normal(size=30)
    assert statistics.mean(data) == statistics.mean(data)
    assert statistics.mean(data) != statistics.mean(data, seed=1)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_identical_data_give_an_interval_without_width(value: float) -> None:
    found = statistics.mean(np.full(7, value))
    assert found.low == pytest.approx(value)
    assert found.high == pytest.approx(value)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_empty_or_not_finite_data_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite data"):
        statistics.mean(bad)


def test_a_ratio_of_sums_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive denominator"):
        statistics.ratio_of_sums([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="pairs"):
        statistics.ratio_of_sums([1.0, 2.0], [1.0])


def test_resamples_without_a_denominator_are_left_out() -> None:
    found = statistics.ratio_of_sums([1.0, 0.0, 0.0], [2.0, 0.0, 0.0])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_a_quantile_is_numpys_inverted_cdf_and_items_carry_their_positions() -> None:
    generator = np.random.default_rng(2)
    values, items = generator.exponential(size=400), np.repeat(np.arange(40), 10)
    found = statistics.quantile(values, items, 0.99)
    assert found.value == np.quantile(values, 0.99, method="inverted_cdf")
    assert found.low <= found.value <= found.high
    assert found.high in values
    assert statistics.quantile([1.0, 2.0], [0, 1], 0.5).value == 1.0


def test_many_items_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(4).normal(size=50)
    whole = statistics.mean(data)
    monkeypatch.setattr(statistics, "_CELLS", 5000)
    parts = statistics.mean(data)
    assert parts.value == whole.value
    assert parts.low == pytest.approx(whole.low, abs=0.05)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (9, 2), (3, 3), (40, 61)])
def test_mcnemar_is_scipys_binomial_test(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert statistics.mcnemar_exact(lost, gained) == pytest.approx(expected)


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (9, 2), (3, 3), (40, 61)])
def test_mcnemar_is_statsmodels(lost: int, gained: int) -> None:
    from statsmodels.stats import contingency_tables

    expected = contingency_tables.mcnemar([[50, lost], [gained, 20]], exact=True).pvalue
    assert statistics.mcnemar_exact(lost, gained) == pytest.approx(expected)


def test_no_changed_answer_still_leaves_room_for_a_loss() -> None:
    z = stats.norm.ppf(0.95)
    for n in (20, 133, 240):
        found = statistics.paired_proportions(0, 0, n)
        assert found.value == 0
        assert found.low == pytest.approx(-(z**2) / (n + z**2))
        assert found.high == pytest.approx(z**2 / (n + z**2))


def test_items_needed_is_where_the_margin_is_just_excluded() -> None:
    n = statistics.items_needed(0.02)
    assert statistics.paired_proportions(0, 0, n).low >= -0.02
    assert statistics.paired_proportions(0, 0, n - 1).low < -0.02


@pytest.mark.parametrize(("lost", "gained", "n"), [(9, 2, 240), (0, 5, 60), (30, 31, 4000)])
def test_the_score_is_that_of_the_constrained_likelihood(lost: int, gained: int, n: int) -> None:
    # Tango's closed form against its definition: the shares that are likeliest under the
    # hypothesis, found by scipy, give the variance.
    for difference in (-0.05, -0.01, 0.02):

        def unlikely(p: float, difference: float = difference) -> float:
            shares = np.array([p + difference, p, 1 - 2 * p - difference])
            return -float(np.sum(np.array([gained, lost, n - gained - lost]) * np.log(shares)))

        low, high = max(0.0, -difference), (1 - difference) / 2
        p = optimize.minimize_scalar(
            unlikely, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = n * (2 * p + difference * (1 - difference))
        expected = (gained - lost - n * difference) / math.sqrt(variance)
        found = statistics._tango_score(gained, lost, n, difference)
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_items_to_tell_give_the_power_when_simulated() -> None:
    margin, flips = 0.005, 0.02
    generator = np.random.default_rng(11)
    for loss, bound in ((0.0, "low"), (0.01, "high")):
        n = statistics.items_to_tell(margin, loss, flips)
        shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
        right = 0
        for lost, gained, _ in generator.multinomial(n, shares, size=400):
            found = statistics.paired_proportions(int(lost), int(gained), n)
            excluded = found.low >= -margin if bound == "low" else found.high < -margin
            right += excluded
        assert 0.86 <= right / 400 <= 0.94


def test_items_to_tell_is_statsmodels_normal_power_at_equal_variances() -> None:
    from statsmodels.stats import power

    # (loss − margin)/√flips is the effect size of a one-sided z test; the small squares aside.
    expected = power.NormalIndPower().solve_power(
        effect_size=0.005 / math.sqrt(0.02), alpha=0.05, power=0.9, ratio=0, alternative="larger"
    )
    found = statistics.items_to_tell(0.005, 0.0, 0.02)
    assert expected * 0.995 <= found <= expected * 1.1


@pytest.mark.parametrize(("margin", "loss", "flips"), [(0.01, 0.01, 0.1), (0.0, 0.1, 0.05)])
def test_what_no_number_of_items_tells_is_refused(margin: float, loss: float, flips: float) -> None:
    with pytest.raises(ValueError, match="cannot be told"):
        statistics.items_to_tell(margin, loss, flips)


def test_the_bound_of_a_difference_is_where_the_score_test_is_just_significant() -> None:
    found = statistics.paired_proportions(9, 2, 240)
    assert found.value == pytest.approx(-7 / 240)
    assert found.low < found.value < found.high
    # At a true difference of 0 the score statistic is McNemar's without correction.
    assert statistics._tango_score(2, 9, 240, 0.0) == pytest.approx((2 - 9) / math.sqrt(11))
    z = stats.norm.ppf(0.95)
    assert statistics._tango_score(2, 9, 240, found.low) == pytest.approx(z, abs=1e-9)
    assert statistics._tango_score(2, 9, 240, found.high) == pytest.approx(-z, abs=1e-9)
    mirrored = statistics.paired_proportions(2, 9, 240)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_bound_of_a_difference_covers_when_simulated() -> None:
    generator, missed, runs = np.random.default_rng(7), 0, 2000
    for _ in range(runs):
        lost, gained, _ = generator.multinomial(240, [0.03, 0.02, 0.95])
        missed += statistics.paired_proportions(int(lost), int(gained), 240).low > -0.01
    assert missed / runs < 0.07


def test_all_or_nothing_differences_have_bounds() -> None:
    assert statistics.paired_proportions(0, 30, 30).high == pytest.approx(1.0)
    assert statistics.paired_proportions(30, 0, 30).low == pytest.approx(-1.0)


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 0), (3, 3, 5), (-1, 0, 5)])
def test_counts_that_do_not_fit_are_refused(lost: int, gained: int, n: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        statistics.paired_proportions(lost, gained, n)
