"""Rates, intervals, comparisons of pairs and medians, against their definitions and published figures."""

import math

import numpy as np
import pytest

from minicnn.paper.attacks import AttackResult
from minicnn.paper.statistics import (
    Comparison,
    Outcomes,
    Pairs,
    Rate,
    against,
    by_seeds,
    compare_attacks,
    compare_networks,
    correlation,
    holm,
    log10_mean,
    mean_test,
    median_interval,
    summary,
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


def test_wilson_interval_of_none_and_of_all_begins_and_ends_there():
    for trials in (1, 3, 7, 297, 10000):
        assert wilson_interval(0, trials)[0] == 0 and wilson_interval(trials, trials)[1] == 1


def test_rate_has_the_spread_of_a_sample():
    assert Rate(4, 10, (0.3, 0.5)).spread == pytest.approx(math.sqrt(0.02))
    assert Rate(5, 10, (0.5,)).spread == Rate(0, 0).spread == 0


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


def test_against_the_bounds_of_an_interval():
    assert against(0.72, Rate(72, 100).interval) == "in line with"
    assert against(0.72, Rate(20, 100).interval) == "above"
    assert against(0.72, Rate(95, 100).interval) == "below"
    assert against(1.0, (1.0, 2.0)) == against(2.0, (1.0, 2.0)) == "in line with"


def test_log10_mean_far_below_the_smallest_float():
    assert log10_mean(np.array([0.0, 1.0])) == pytest.approx(math.log10(5.5))
    assert log10_mean(np.array([-400.0, -401.0])) == pytest.approx(-400 + math.log10(0.55))
    assert log10_mean(np.array([-np.inf, 0.0])) == pytest.approx(math.log10(0.5))
    assert log10_mean(np.array([-np.inf])) == -math.inf


def test_median_interval_holds_the_median_19_times_of_20():
    rng = np.random.default_rng(0)
    for n in (25, 400):
        intervals = [median_interval(rng.standard_normal(n)) for _ in range(300)]
        assert 0.94 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.99
    assert np.mean([high - low for low, high in intervals]) < 0.3


def test_median_interval_of_few_values_holds_them_all():
    assert median_interval(np.array([7.0])) == (7, 7)
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (1, 3)


def test_correlation():
    a = np.array([1.0, 2.0, 3.0])
    assert correlation(a, 2 * a + 1) == pytest.approx(1) and correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, np.ones(3)) is None


def outcomes(*succeeded, counted=None):
    """The Outcomes of images, True where nothing else is said of what counts."""
    succeeded = np.array(succeeded, bool)
    return Outcomes(np.array(counted, bool) if counted else np.ones(len(succeeded), bool), succeeded, succeeded * 3)


def test_pairs_are_of_the_images_that_both_count():
    first, second = outcomes(1, 1, 0, 0, 1, counted=[1, 1, 1, 1, 0]), outcomes(1, 0, 1, 0, 0)
    assert Pairs.of(first, second) == Pairs(1, 1, 1, 1) == Pairs.of(second, first)
    assert Pairs.of(first, outcomes(0, 0)) == Pairs(0, 2, 0, 0)  # tried on the first two images alone
    assert Pairs.of(first, outcomes(0, 0)).shares == (1, 0)
    assert all(map(math.isnan, Pairs.of(outcomes(), first).shares))


@pytest.mark.parametrize(
    ("pairs", "p"),
    [
        (Pairs(9900, 47, 16, 37), 1.1706e-4),  # decisions of two networks on 10,000 images
        (Pairs(44, 6, 0, 0), 0.03125),  # two attacks on 50
        (Pairs(3, 0, 0, 4), 1),
        (Pairs(0, 0, 0, 0), 1),
    ],
)
def test_pairs_p_of_discordant_pairs(pairs, p):
    assert pairs.p == pytest.approx(p, rel=1e-3)
    both, first, second, neither = pairs
    assert Pairs(both, second, first, neither).p == Pairs(0, first, second, 0).p == pairs.p


CAVO = Pairs(59, 6, 16, 80)  # responses before and after a therapy (Cavo et al. 2012)


def test_pairs_intervals_as_published():
    """Fagerland, Lydersen and Laake (2017), Statistical Analysis of Contingency Tables, chapter 8."""
    assert [round(end, 4) for end in CAVO.difference_interval] == [-0.1186, -0.0046]
    assert [round(end, 4) for end in CAVO.factor_interval] == [0.7579, 0.9910]


TABLES = [CAVO, Pairs(1, 1, 7, 12), Pairs(0, 12, 0, 0), Pairs(7, 0, 0, 0), Pairs(0, 5, 5, 0), Pairs(2, 9, 0, 88)]


@pytest.mark.parametrize("pairs", TABLES)
def test_pairs_intervals_turn_round_with_the_order(pairs):
    both, first, second, neither = pairs
    turned = Pairs(both, second, first, neither)
    low, high = pairs.difference_interval
    assert -1 <= low <= pairs.shares[0] - pairs.shares[1] <= high <= 1
    assert turned.difference_interval == pytest.approx((-high, -low))
    (low, high), (turned_low, turned_high) = pairs.factor_interval, turned.factor_interval
    assert (turned_low, turned_high) == pytest.approx((1 / high, 1 / low if low else math.inf))


def test_pairs_intervals_without_images_say_nothing():
    assert Pairs(0, 0, 0, 0).difference_interval == (-1, 1)
    assert Pairs(0, 0, 0, 0).factor_interval == Pairs(0, 0, 0, 5).factor_interval == (0, math.inf)


def test_pairs_intervals_hold_the_truth_19_times_of_20():
    """Where two of three images succeed with both or neither."""
    shares = np.array([0.30, 0.20, 0.10, 0.40])
    drawn = [Pairs(*map(int, found)) for found in np.random.default_rng(0).multinomial(60, shares, 1000)]
    for name, truth in ("difference_interval", 0.1), ("factor_interval", 0.5 / 0.4):
        held = np.mean([low <= truth <= high for low, high in (getattr(pairs, name) for pairs in drawn)])
        assert 0.93 < held < 0.98, name


def test_mean_test():
    """Student (1908), the additional sleep of ten patients by one drug over that by another."""
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    (low, high), p = mean_test(sleep)
    assert (low, high) == pytest.approx((0.7001, 2.4599), abs=5e-5) and p == pytest.approx(0.002833, abs=1e-6)
    assert mean_test([0.0, 0.0]) == ((0, 0), 1)
    assert mean_test([0.5, 0.5]) == ((0.5, 0.5), 0)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1] and holm([]) == []


def of_counts(both, first, second, neither):
    """Outcomes of two that make these Pairs."""
    of_first = [1] * (both + first) + [0] * (second + neither)
    of_second = [1] * both + [0] * first + [1] * second + [0] * neither
    return outcomes(*of_first), outcomes(*of_second)


def test_compare_of_one_network_each_is_by_its_images():
    a, b = of_counts(59, 6, 16, 80)
    for found in compare_networks([a], [b]), compare_attacks([a], [b]):
        assert (found.unit, found.n, found.pairs) == ("images", 161, (CAVO,))
        assert (found.interval, found.p) == (CAVO.difference_interval, CAVO.p)
        assert found.difference == pytest.approx(-10 / 161)
        assert found.factor == (65 / 75, CAVO.factor_interval)


def test_compare_networks_of_several_seeds_is_by_the_seeds():
    counts = (500, 80, 20, 400), (480, 90, 20, 410), (500, 70, 30, 400)
    found = compare_networks(*zip(*(of_counts(*each) for each in counts), strict=True))
    assert (found.unit, found.n, found.pairs) == ("seeds", 3, tuple(Pairs(*each) for each in counts))
    interval, p = mean_test([0.06, 0.07, 0.04])
    assert (found.difference, found.p) == pytest.approx((0.17 / 3, p))
    by_image = compare_attacks(*zip(*(of_counts(*each) for each in counts), strict=True))
    assert by_image.p < p and interval[0] < by_image.interval[0] and by_image.interval[1] < interval[1]
    assert found.interval == pytest.approx(interval)
    factor, (low, high) = found.factor
    assert factor == pytest.approx((580.5 / 520.5 * 570.5 / 500.5 * 570.5 / 530.5) ** (1 / 3)) and low < factor < high
    assert [rate.by_seed for rate in found.shares] == [(0.58, 0.57, 0.57), (0.52, 0.50, 0.53)]


def test_compare_networks_of_seeds_is_no_surer_than_their_images():
    """Three seeds that agree to the last image, of which there are only eleven."""
    found = compare_networks(*zip(*3 * [of_counts(3, 4, 0, 4)], strict=True))
    images = compare_attacks(*zip(*3 * [of_counts(3, 4, 0, 4)], strict=True))
    assert mean_test([4 / 11] * 3) == ((4 / 11, 4 / 11), 0)
    assert found.unit == "seeds" and (found.p, found.interval) == (images.p, images.interval) and found.p == 0.125
    assert found.factor == (pytest.approx(7.5 / 3.5), pytest.approx(Pairs(3, 4, 0, 4).factor_interval))


def test_compare_networks_needs_seeds_that_agree():
    """Each of two seeds is beyond doubt by its images; they contradict each other."""
    counts = (0, 90, 10, 0), (0, 10, 90, 0)
    found = compare_networks(*zip(*(of_counts(*each) for each in counts), strict=True))
    assert all(pairs.p < 1e-10 for pairs in found.pairs)
    assert found.difference == pytest.approx(0) and found.p == pytest.approx(1)


def test_compare_networks_of_few_images_stays_between_minus_1_and_1():
    """Two seeds that agree on three images; two that do not agree."""
    found = compare_networks(*zip(*2 * [of_counts(0, 3, 0, 0)], strict=True))
    assert found.difference == 1 and found.interval == Pairs(0, 3, 0, 0).difference_interval and found.interval[0] < 0.5
    found = compare_networks(*zip(of_counts(0, 1, 0, 9), of_counts(0, 9, 0, 1), strict=True))
    assert mean_test([0.1, 0.9])[0][1] > 5 and found.interval == (-1, 1)


def test_compare_networks_is_sure_of_nothing_where_the_images_point_the_other_way():
    """Nine seeds on which one image counts, and one of a thousand that is beyond doubt."""
    a, b = of_counts(0, 200, 700, 100)
    one = np.arange(1000) == 0
    seeds = [*9 * [(a._replace(counted=one), b)], (a, b)]
    found = compare_networks(*zip(*seeds, strict=True))
    by_image = compare_attacks(*zip(*seeds, strict=True))
    assert mean_test([*9 * [1.0], -0.5])[1] < 0.001 and by_image.p < 1e-6
    assert by_image.difference < 0 < found.difference and found.p == 1 and found.interval[0] < 0 < found.interval[1]


def test_by_seeds_of_infinite_differences_says_nothing():
    by_image = [Comparison("images", 9, -math.inf, (-math.inf, -math.inf), 0.004, ())]
    for differences in [-math.inf, -math.inf], [-math.inf, -3.0], [math.inf, -math.inf]:
        assert by_seeds(differences, 2 * by_image).p == 1


def test_compare_attacks_on_several_networks_is_by_the_images():
    """They are the same images: three networks make no more of them."""
    seed = of_counts(44, 6, 0, 0)
    found = compare_attacks(*zip(*3 * [seed], strict=True))
    assert (found.unit, found.n, found.p) == ("images", 50, 0.03125)
    assert found.difference == pytest.approx(0.12) and found.interval == Pairs(44, 6, 0, 0).difference_interval
    other = of_counts(44, 0, 6, 0)  # the other attack, on the same images
    assert compare_attacks(*zip(seed, other, strict=True)).p == 1
    uncounted = outcomes(*[0] * 50, counted=[0] * 50)
    found = compare_attacks([seed[0], uncounted], [seed[1], uncounted])
    assert (found.difference, found.n, found.p) == (pytest.approx(0.12), 50, 0.03125)
    assert compare_attacks(2 * [uncounted], 2 * [uncounted]).n == 0
    found = compare_attacks(2 * [seed[0]], 2 * [seed[0]])  # no image differs
    assert (found.difference, found.p, found.interval) == (0, 1, Pairs(50, 0, 0, 0).difference_interval)


def of_images(first, second):
    """compare_attacks of succeeded (networks, images), where every image counts."""
    every = np.ones(np.shape(first)[1], bool)
    return compare_attacks([Outcomes(every, a) for a in first], [Outcomes(every, b) for b in second])


def test_compare_attacks_has_p_and_interval_of_one_difference():
    """On more images one attack succeeds on more networks, thirty against twelve; by the mean it is the other."""
    first, second = np.zeros((2, 3, 42), bool)
    first[np.arange(30) % 3, np.arange(30)] = second[:, 30:] = True
    found = of_images(first, second)
    assert found.difference == pytest.approx(-2 / 42) and found.interval[0] < found.difference < 0 < found.interval[1]
    assert found.p > 0.8 and found._replace(adjusted=found.p).order == 0


def test_compare_attacks_on_several_networks_of_few_images():
    for succeeded in [True], [False, True, True, True]:  # of the first attack, the second has none
        one, found = (of_images(np.tile(succeeded, (k, 1)), np.zeros((k, len(succeeded)), bool)) for k in (1, 3))
        assert (found.difference, found.interval, found.p) == (one.difference, one.interval, one.p)
        assert -1 <= found.interval[0] < found.difference <= found.interval[1] <= 1


def test_compare_attacks_contradicts_itself_nowhere_and_holds_the_truth():
    """On three networks that share much of what decides, with images that some do not count."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        shared, own = rng.random((2, 1, 40)), rng.random((2, 3, 40))
        first, second = np.where(rng.random((2, 3, 40)) < 0.8, shared[:, None, 0], own) < [[[0.5]], [[0.3]]]
        counted = rng.random((3, 40)) < [[0.9], [0.9], [0.4]]
        found = compare_attacks(*([Outcomes(c, s) for c, s in zip(counted, x, strict=True)] for x in (first, second)))
        low, high = found.interval
        assert -1 <= low <= found.difference <= high <= 1 and 0 < found.p <= 1
        assert found.p >= 0.05 or low > 0 or high < 0
        held += low <= 0.2 <= high
    assert held > 0.95 * 500


def test_comparison_of_a_seed_without_images_is_that_of_the_others():
    counts = (500, 80, 20, 400), (480, 90, 20, 410)
    two = compare_networks(*zip(*(of_counts(*each) for each in counts), strict=True))
    found = compare_networks(*zip(*(of_counts(*each) for each in (*counts, (0, 0, 0, 0))), strict=True))
    assert found.n == 2 and found.factor == two.factor and found.factor[0] > 1.1
    assert (found.difference, found.interval, found.p) == (two.difference, two.interval, two.p)
    none = of_counts(0, 0, 0, 0)
    factor, interval = compare_attacks(*zip(none, none, strict=True)).factor
    assert math.isnan(factor) and interval == (0, math.inf)


def test_compare_networks_of_one_seed_with_samples_judges_nothing():
    some, none = of_counts(0, 90, 10, 0), of_counts(0, 0, 0, 0)
    found = compare_networks(*zip(some, none, strict=True))
    assert (found.unit, found.n, found.p) == ("seeds", 1, 1) and found.interval == (-1, 1)


def test_comparison_order_is_of_the_adjusted_p():
    found = compare_attacks(*([each] for each in of_counts(44, 6, 0, 0)))
    assert found.order == 0  # not adjusted
    assert found._replace(adjusted=0.04).order == 1 and found._replace(adjusted=0.06).order == 0
    assert found._replace(adjusted=0.04, difference=-0.1).order == -1


FIVE_SAMPLES = AttackResult(
    attacked=np.array([True, True, True, True, False]),
    succeeded=np.array([True, False, True, False, False]),
    moves=np.array([4, 100, 7, 100, 0]),
    unchanged_moves=np.array([0, 90, 1, 20, 0]),
    zero_scores=np.array([False, True, False, False, False]),
    adversarial=np.zeros((5, 1, 2, 2)),
    forwards=321,
    backwards=4,
)


def test_summary():
    assert summary(FIVE_SAMPLES) == {
        "images": 5,
        "misclassified": 1,
        "attacked": 4,
        "counted": 4,
        "succeeded": 2,
        "success_rate": 0.5,
        "success_interval": wilson_interval(2, 4),
        "mean_moves_of_successes": 5.5,
        "unchanged_moves": 111,
        "moves": 211,
        "zero_score_share": 0.25,
        "forwards": 321,
        "backwards": 4,
    }


@pytest.mark.parametrize(
    ("counted", "successes", "mean_moves", "zero_share"),
    [
        ([1, 1, 1, 1, 1], 2, 5.5, 0.25),
        ([1, 1, 0, 0, 1], 1, 4.0, 0.5),
        ([0, 0, 0, 0, 1], 0, None, None),
        ([0, 0, 0, 0, 0], 0, None, None),
    ],
)
def test_summary_over_another_denominator(counted, successes, mean_moves, zero_share):
    """All samples; those that two networks agree on; none that was attacked; none at all."""
    trials = sum(counted)
    assert summary(FIVE_SAMPLES, np.array(counted, bool)) == summary(FIVE_SAMPLES) | {
        "counted": trials,
        "succeeded": successes,
        "success_rate": successes / trials if trials else None,
        "success_interval": wilson_interval(successes, trials),
        "mean_moves_of_successes": mean_moves,
        "zero_score_share": zero_share,
    }
