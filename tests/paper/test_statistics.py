"""Rates, intervals, medians and correlations, against their definitions and published figures."""

import math

import numpy as np
import pytest

from minicnn.paper.statistics import (
    Rate,
    against,
    compare,
    correlation,
    factor_interval,
    geometric_mean,
    log10_mean,
    median_interval,
    ranks,
    standard_deviation,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert [round(end, 4) for end in wilson_interval(successes, trials)] == [low, high]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (5, 10), (10, 10), (72, 100), (1, 1), (9999, 10000)])
def test_wilson_interval_from_its_definition(successes, trials):
    """Its ends are the proportions p that lie z standard deviations sqrt(p (1 - p) / n) from what was observed."""
    low, high = wilson_interval(successes, trials)
    share, z = successes / trials, 1.959963984540054

    def end(outside, inside):
        for _ in range(200):
            p = (outside + inside) / 2
            far = abs(share - p) > z * math.sqrt(p * (1 - p) / trials)
            outside, inside = (p, inside) if far else (outside, p)
        return inside

    assert low == pytest.approx(end(0.0, share) if successes else 0, abs=1e-12)
    assert high == pytest.approx(end(1.0, share) if successes < trials else 1, abs=1e-12)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-15)


def test_wilson_interval_of_no_trials():
    assert wilson_interval(0, 0) == (0, 1)


def test_standard_deviation_of_a_sample():
    assert standard_deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert standard_deviation([5.0]) == standard_deviation([]) == 0


def test_rate_of_one_seed():
    rate = Rate.of_seeds([(72, 100)])
    assert rate == Rate(72, 100, (0.72,))
    assert (rate.share, rate.spread, rate.interval) == (0.72, 0, wilson_interval(72, 100))
    assert str(rate) == "72.0% (62.5% to 79.9%, n = 100)"


def test_rate_of_no_samples():
    rate = Rate.of_seeds([(0, 0)])
    assert rate == Rate(0, 0) and math.isnan(rate.share)
    assert rate.interval == (0, 1) and str(rate) == "no samples"


def test_rate_pools_seeds_and_shows_their_spread():
    rate = Rate.of_seeds([(126, 200), (146, 200), (0, 0)])
    assert (rate.successes, rate.trials, rate.by_seed) == (272, 400, (0.63, 0.73))
    assert str(rate).endswith("n = 400), 2 seeds: 68.0% +- 7.1%")
    low, high = Rate(136, 200).interval
    assert rate.interval[0] < low and high < rate.interval[1]


def test_rate_of_seeds_that_agree_has_no_more_samples():
    assert Rate(136 * 3, 200 * 3, (0.68, 0.68, 0.68)).interval == pytest.approx(Rate(136, 200).interval)
    assert Rate(600, 600, (1.0, 1.0, 1.0)).interval == pytest.approx(Rate(200, 200).interval)


def test_compare_needs_intervals_apart():
    assert compare(Rate(10, 100), Rate(50, 100)) == -1
    assert compare(Rate(50, 100), Rate(10, 100)) == 1
    assert compare(Rate(50, 100), Rate(55, 100)) == 0


def test_against_the_bounds_of_an_interval():
    assert against(0.72, Rate(72, 100).interval) == "in line with"
    assert against(0.72, Rate(20, 100).interval) == "above"
    assert against(0.72, Rate(95, 100).interval) == "below"
    assert against(1.0, (1.0, 2.0)) == against(2.0, (1.0, 2.0)) == "in line with"


def test_factor_interval_from_both_bounds():
    a, b = Rate(50, 100), Rate(10, 100)
    low, high = factor_interval(a, b)
    assert low == a.interval[0] / b.interval[1] and high == a.interval[1] / b.interval[0]
    assert low < a.share / b.share < high
    assert factor_interval(a, Rate(0, 100))[1] == math.inf


def test_median_interval_holds_the_median_19_times_of_20():
    rng = np.random.default_rng(0)
    assert median_interval([7.0]) == (7.0, 7.0)
    for n in (25, 400):
        intervals = [median_interval(rng.standard_normal(n)) for _ in range(1000)]
        assert 0.94 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.99
    assert np.mean([high - low for low, high in intervals]) < 0.3


def test_log10_mean_far_below_the_smallest_float():
    assert log10_mean(np.array([0.0, 1.0])) == pytest.approx(math.log10(5.5))
    assert log10_mean(np.array([-400.0, -401.0])) == pytest.approx(-400 + math.log10(0.55))
    assert log10_mean(np.array([-np.inf, 0.0])) == pytest.approx(math.log10(0.5))
    assert log10_mean(np.array([-np.inf])) == -math.inf


def test_ranks_of_equal_values_are_shared():
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 7.0])), [1.5, 0.0, 1.5, 3.0])


def test_correlation_of_values_and_of_ranks():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([-5.0, -6.0, -100.0])
    assert correlation(a, 2 * a + 1) == pytest.approx(1)
    assert correlation(ranks(a), ranks(b)) == pytest.approx(-1) and correlation(a, b) > -0.9
    assert correlation(a, np.ones(3)) is None


def test_geometric_mean_of_powers():
    assert geometric_mean(np.array([1.0, 100.0])) == pytest.approx(10)
