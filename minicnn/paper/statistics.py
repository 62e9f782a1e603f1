"""What the figures are worth: success rates with their intervals, how two of them compare, medians, correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # of a 95 % interval
Interval = tuple[float, float]


def wilson_interval(successes: float, trials: float, z: float = Z) -> Interval:
    """The Wilson score interval of a proportion (Wilson 1927), 95 % by default: (low, high); (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = centre - half if successes else 0.0
    high = centre + half if successes < trials else 1.0
    return low, high


def standard_deviation(values: Sequence[float]) -> float:
    """Of a sample, 0 for less than two values."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


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
    def spread(self) -> float:
        """Standard deviation of the seeds' rates; 0 for one seed."""
        return standard_deviation(self.by_seed)

    def __str__(self) -> str:
        if not self.trials:
            return "no samples"
        low, high = self.interval
        text = f"{self.share:.1%} ({low:.1%} to {high:.1%}, n = {self.trials})"
        if len(self.by_seed) > 1:
            mean = sum(self.by_seed) / len(self.by_seed)
            text += f", {len(self.by_seed)} seeds: {mean:.1%} +- {self.spread:.1%}"
        return text


def compare(a: Rate, b: Rate) -> int:
    """-1, 0 or 1: whether Rate a lies below, within the uncertainty of, or above Rate b (95 % intervals apart)."""
    if a.interval[1] < b.interval[0]:
        return -1
    return int(a.interval[0] > b.interval[1])


def against(claimed: float, interval: Interval) -> str:
    """How a claimed figure stands to a measured interval (low, high): "below", "in line with" or "above" it."""
    low, high = interval
    return "above" if claimed > high else "below" if claimed < low else "in line with"


def factor_interval(a: Rate, b: Rate) -> Interval:
    """Bounds of the ratio of two Rates, from the bounds of both; the upper one is infinite where b's lower is 0."""
    (a_low, a_high), (b_low, b_high) = a.interval, b.interval
    return a_low / b_high, a_high / b_low if b_low else math.inf


def median_interval(values: np.ndarray) -> Interval:
    """A 95 % interval of the median, from the order of the values alone (Conover 1999, section 3.2): (low, high)."""
    ordered, n = np.sort(values), len(values)
    reach = Z * math.sqrt(n) / 2
    return float(ordered[max(0, math.floor(n / 2 - reach))]), float(ordered[min(n - 1, math.ceil(n / 2 + reach))])


def log10_mean(exponents: np.ndarray) -> float:
    """log10 of the mean of 10^exponents, which may be far below the smallest float; -inf where all are."""
    largest = np.max(exponents)
    return float(largest + np.log10(np.mean(10.0 ** (exponents - largest)))) if np.isfinite(largest) else -math.inf


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, or None where one of the two does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank. (N,) -> (N,)."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[where]


def geometric_mean(values: np.ndarray) -> float:
    """Of positive values."""
    return float(np.exp(np.log(values).mean()))
