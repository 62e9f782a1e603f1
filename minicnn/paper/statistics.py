"""What the figures are worth: success rates with their intervals, outcomes on the same images compared, medians,
correlations. Needs scipy and statsmodels (extra "experiments"), imported where they are used, since that takes a
second."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from minicnn.paper.attacks import AttackResult

Array = np.ndarray
Interval = tuple[float, float]

SIGNIFICANT = 0.05  # an adjusted p-value below it is significant, and intervals are 95 % ones


def wilson_interval(successes: float, trials: float, alpha: float = SIGNIFICANT) -> Interval:
    """The Wilson score interval of a proportion (Wilson 1927), 95 % by default: (low, high); (0, 1) for no trials."""
    from statsmodels.stats.proportion import proportion_confint

    if trials == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, trials, alpha, method="wilson")
    return float(low) if successes else 0.0, float(high) if successes < trials else 1.0  # there without rounding


class Rate(NamedTuple):
    """Successes of trials, over all seeds together; by_seed: the rate of each.

    Every seed's network meets the same images, so seeds add no samples: the interval is that of one seed's sample size,
    reduced for overdispersion, by as much as the seeds' rates vary more than rates of such samples do.
    """

    successes: int
    trials: int
    by_seed: tuple[float, ...] = ()

    @classmethod
    def of_seeds(cls, counts: Iterable[tuple[int, int]]) -> Rate:
        """From the (successes, trials) of every seed; one without trials has no rate."""
        counts = list(counts)
        successes, trials = (sum(column) for column in zip(*counts, strict=True))
        return cls(successes, trials, tuple(s / n for s, n in counts if n))

    @property
    def share(self) -> float:
        """NaN for no trials."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> Interval:
        """The Wilson 95 % interval of the share."""
        trials = self.trials / max(1, len(self.by_seed))
        binomial_variance = self.share * (1 - self.share) / trials if trials else 0
        if binomial_variance:
            trials /= max(1, self.spread**2 / binomial_variance)
        return wilson_interval(self.share * trials if trials else 0, trials)

    @property
    def mean(self) -> float:
        """Of the seeds' rates; NaN where there are none."""
        return statistics.fmean(self.by_seed) if self.by_seed else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the seeds' rates, as of a sample; 0 for less than two."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else 0.0

    def __str__(self) -> str:
        return self.text()

    def text(self, decimals: int = 1) -> str:
        """In percent: the share with its interval, and of several seeds mean and spread."""
        if not self.trials:
            return "no samples"
        low, high = self.interval
        text = f"{self.share:.{decimals}%} ({low:.{decimals}%} to {high:.{decimals}%}, n = {self.trials})"
        if len(self.by_seed) > 1:
            text += f", {len(self.by_seed)} seeds: {self.mean:.{decimals}%} +- {self.spread:.{decimals}%}"
        return text


def against(claimed: float, interval: Interval) -> str:
    """How a claimed figure stands to a measured interval (low, high): "below", "in line with" or "above" it."""
    low, high = interval
    return "above" if claimed > high else "below" if claimed < low else "in line with"


class Outcomes(NamedTuple):
    """What became of each image: counted (N,) bool, whether it is in the denominator; succeeded (N,) bool; moves (N,),
    where an attack made any."""

    counted: Array
    succeeded: Array
    moves: Array | None = None


class Pairs(NamedTuple):
    """Two outcomes of each of some images: how often both succeeded, only the first, only the second, neither; as means
    over several networks these need not be whole."""

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: Outcomes, second: Outcomes) -> Pairs:
        """Of the images that both count; where one was tried on fewer images, which are the same ones, of these."""
        n = min(len(first.counted), len(second.counted))
        counted = first.counted[:n] & second.counted[:n]
        a, b = first.succeeded[:n][counted], second.succeeded[:n][counted]
        return cls(*(int(found.sum()) for found in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def shares(self) -> tuple[float, float]:
        """The two success rates; NaN for no images."""
        n = sum(self)
        return ((self.both + self.first) / n, (self.both + self.second) / n) if n else (math.nan, math.nan)

    @property
    def p(self) -> float:
        """McNemar's exact test (McNemar 1947), two-sided: the first is as likely to succeed alone as the second. The
        binomial tail is the incomplete beta function, which mean counts have as well; 1 where they are the same."""
        from scipy.special import betainc

        less, more = sorted((self.first, self.second))
        return min(1.0, 2 * float(betainc(more, less + 1, 0.5))) if less < more else 1.0

    @property
    def difference_interval(self) -> Interval:
        """95 % interval of the first share less the second, from the Wilson intervals of both and their correlation
        (Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10); (-1, 1) for no images."""
        a, b, c, d = self
        n, (p, q) = sum(self), self.shares
        if n == 0:
            return -1.0, 1.0
        (p_low, p_high), (q_low, q_high) = (wilson_interval(x, n) for x in (a + b, a + c))
        product = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        excess = a * d - b * c
        phi = (max(excess - n / 2, 0) if excess > 0 else excess) / product if product else 0.0

        def reach(x: float, y: float) -> float:
            return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

        return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)

    @property
    def factor_interval(self) -> Interval:
        """95 % interval of the first share over the second, from Wilson intervals of both at a level for which that is
        what the logarithm of the ratio has (Bonett and Price 2006, Statistics in Medicine 25, 3039-3047, hybrid Wilson
        score); the upper bound is infinite where the second never succeeds."""
        from scipy.stats import norm

        x, y = self.both + self.first, self.both + self.second
        n = x + self.second  # images of which neither outcome is a success say nothing of the ratio
        if n == 0:
            return 0.0, math.inf
        joint = math.sqrt((self.first + self.second + 2) / ((x + 1) * (y + 1)))
        each = (math.sqrt((1 - (z + 1) / (n + 2)) / (z + 1)) for z in (x, y))
        alpha = 2 * norm.sf(norm.isf(SIGNIFICANT / 2) * joint / sum(each))
        (x_low, x_high), (y_low, y_high) = (wilson_interval(z, n, alpha) for z in (x, y))
        return x_low / y_high, x_high / y_low if y else math.inf


def mean_test(values: Sequence[float] | Array) -> tuple[Interval, float]:
    """Student's t of at least two values: the 95 % interval of their mean, and p of a mean of 0, two-sided."""
    from scipy.stats import ttest_1samp

    if np.ptp(values) == 0:
        value = float(values[0])
        return (value, value), float(value == 0)
    found = ttest_1samp(values, 0)
    low, high = found.confidence_interval(1 - SIGNIFICANT)
    return (float(low), float(high)), float(found.pvalue)


class Comparison(NamedTuple):
    """By how much one thing exceeds another: difference, its 95 % interval, p of no difference, and the same adjusted
    for the other comparisons it is reported with (holm).

    unit: what n counts: "images", of given networks, or "seeds", networks trained in the same way. pairs: of every
    seed, on the images that both were tried on.
    """

    unit: str
    n: int
    difference: float
    interval: Interval
    p: float
    pairs: tuple[Pairs, ...]
    adjusted: float = math.nan

    @property
    def order(self) -> int:
        """1 or -1: significantly more or less; 0: neither."""
        return int(math.copysign(1, self.difference)) if self.adjusted < SIGNIFICANT else 0

    @property
    def p_value(self) -> str:
        """The adjusted p, as text."""
        return f"p = {self.adjusted:.2g}" if self.adjusted >= 1e-6 else "p < 1e-6"

    def in_points(self, digits: int = 1) -> tuple[str, str, str]:
        """The difference and the bounds of its interval as text, in percentage points."""
        difference, low, high = (f"{100 * x:+.{digits}f}" for x in (self.difference, *self.interval))
        return difference, low, high

    @property
    def shares(self) -> tuple[Rate, Rate]:
        """The success rates of both."""
        return (
            Rate.of_seeds((p.both + p.first, sum(p)) for p in self.pairs),
            Rate.of_seeds((p.both + p.second, sum(p)) for p in self.pairs),
        )

    @property
    def factor(self) -> tuple[float, Interval]:
        """The first share over the second, and its 95 % interval: of one seed that of its pairs; of several the
        geometric mean of theirs, with half a success more for each (Walter 1975), which may have none, and no surer
        than the pairs of one of them on average. A seed without images says nothing of it."""
        pairs, average = [p for p in self.pairs if sum(p)], _average(self.pairs)
        if len(pairs) < 2:
            first, second = average.shares
            return first / second if second else math.inf, average.factor_interval
        logs = [math.log((p.both + p.first + 0.5) / (p.both + p.second + 0.5)) for p in pairs]
        (low, high), _ = mean_test(logs)
        least, most = average.factor_interval
        return math.exp(statistics.fmean(logs)), (min(math.exp(low), least), max(math.exp(high), most))


def compare_networks(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> Comparison:
    """Two ways of training compared, by the outcomes on a network of each and every seed.

    The seeds are the unit, by Student's t of their differences; but their images are the same, so that it is no surer
    than compare_attacks. One seed says nothing of the training: what is compared then are its two networks, and the
    images are the unit, by McNemar's test.
    """
    by_image = compare_attacks(first, second)
    found = by_seeds([p - q for p, q in (pair.shares for pair in by_image.pairs)], [by_image])
    low, high = found.interval
    return found._replace(interval=(max(low, -1.0), min(high, 1.0)))


def compare_attacks(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> Comparison:
    """Two attacks on the same networks compared, by their outcomes on the network of every seed.

    The images are the unit: the networks are given. Several of them make no more images, so that difference, interval
    and McNemar's p are those of their mean counts; a network on which no image counts has none. That is cautious: the
    variance is that of networks which agree on every image, an upper bound by Cauchy-Schwarz.
    """
    pairs = tuple(Pairs.of(a, b) for a, b in zip(first, second, strict=True))
    average = _average(pairs)
    n = min(len(outcomes.counted) for outcomes in (*first, *second))
    images = np.any([a.counted[:n] & b.counted[:n] for a, b in zip(first, second, strict=True)], axis=0).sum()
    p, q = average.shares
    return Comparison("images", int(images), p - q, average.difference_interval, average.p, pairs)


def _average(pairs: Sequence[Pairs]) -> Pairs:
    """As of one network: several make no more images, and one without images makes no fewer."""
    return Pairs(*np.mean([p for p in pairs if sum(p)] or [Pairs(0, 0, 0, 0)], axis=0).tolist())


def by_seeds(differences: Sequence[float], by_image: Sequence[Comparison]) -> Comparison:
    """The Comparison that the differences of several seeds make, no surer than any of by_image, those of the images,
    and sure of nothing where one of these points the other way; of one seed the one of its images. Seeds whose
    difference is NaN do not count; fewer than two that do, or an infinite one, say nothing."""
    if len(differences) == 1:
        return by_image[0]
    pairs, found = by_image[0].pairs, [difference for difference in differences if not math.isnan(difference)]
    if len(found) < 2 or not np.isfinite(found).all():
        return Comparison("seeds", len(found), math.nan, (-math.inf, math.inf), 1.0, pairs)
    mean, (interval, p) = statistics.fmean(found), mean_test(found)
    lows, highs = zip(interval, *(comparison.interval for comparison in by_image), strict=True)
    p = max(p, *(c.p if c.difference * mean > 0 else 1.0 for c in by_image))
    return Comparison("seeds", len(found), mean, (min(lows), max(highs)), p, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being that many (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def median_interval(values: Array) -> Interval:
    """A 95 % interval of the median, from the order of the values alone (Conover 1999, section 3.2): (low, high). It is
    that of all values where they are too few for one."""
    from scipy.stats import quantile_test

    low, high = quantile_test(values).confidence_interval(1 - SIGNIFICANT)
    return float(np.min(values) if np.isnan(low) else low), float(np.max(values) if np.isnan(high) else high)


def log10_mean(exponents: Array) -> float:
    """log10 of the mean of 10^exponents, which may be far below the smallest float; -inf where all are."""
    largest = np.max(exponents)
    return float(largest + np.log10(np.mean(10.0 ** (exponents - largest)))) if np.isfinite(largest) else -math.inf


def correlation(a: Array, b: Array) -> float | None:
    """Pearson's, or None where one of the two does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None


def summary(result: AttackResult, counted: Array | None = None) -> dict:
    """The figures of an attack as a dict: intervals are Wilson 95 %.

    counted (N,) bool: the samples that the success rate is a share of, by default those that were attacked. One that
    was misclassified from the start is no success whatever is counted.
    """
    counted = result.attacked if counted is None else counted
    succeeded, tried = result.succeeded & counted, result.attacked & counted
    trials, successes = int(counted.sum()), int(succeeded.sum())
    return {
        "images": len(result.attacked),
        "misclassified": int((~result.attacked).sum()),
        "attacked": int(result.attacked.sum()),
        "counted": trials,
        "succeeded": successes,
        "success_rate": successes / trials if trials else None,
        "success_interval": wilson_interval(successes, trials),
        "mean_moves_of_successes": float(result.moves[succeeded].mean()) if successes else None,
        "unchanged_moves": int(result.unchanged_moves.sum()),
        "moves": int(result.moves.sum()),
        "zero_score_share": float(result.zero_scores[tried].mean()) if tried.any() else None,
        "forwards": result.forwards,
        "backwards": result.backwards,
    }
