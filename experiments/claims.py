"""The twelve claims of the paper, a record each: what it says, what the author's logs say, what is measured here, and a
verdict in one sentence that is computed from the measured intervals. CLAIMS is the table; rows() fills it."""

import statistics
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from minicnn.paper.statistics import Rate, against, compare, factor_interval, standard_deviation

FACTOR = 10  # by which T = 20 is said to reduce success rates (abstract)
GRADIENT = 10  # log10 of the factor by which it is said to reduce the gradient (abstract)
APPENDIX_A = {"index": 2659, "mean": "-2.2915e-08", "max": "9.78318e-05", "moves": 12}
ON_THE_SAME_IMAGES = "2 on 4's images"  # Algorithm 2 over the few images that Algorithm 4 is run on

# What is measured of one seed's networks, or of the author's: name -> {"correct", "tested": images, "attacks":
# algorithm -> arithmetic -> attacks.summary, "gradient": masking.budget against "standard", which has none itself}.
Run = dict[str, dict]


class Missing(NamedTuple):
    """In place of figures: why there are none, as the rest of a sentence, "needs a file"."""

    reason: str


class Results(NamedTuple):
    """What the claims are judged by: a Run of every seed, T of the networks trained at it, a Run of the author's own
    networks, and the map of Appendix A (reproduce.appendix_a)."""

    runs: list[Run]
    T: float
    author: Run | Missing
    appendix_a: dict | Missing


class Row(NamedTuple):
    """What comes of a claim, as text; author: what the author's released networks give."""

    claim: str
    paper: str
    logs: str
    author: str
    plain: str
    scaled: str
    verdict: str


COLUMNS = ("claim", "paper", "author's logs", "author's networks", "plain, as the author computed", "scaled", "verdict")


class Claim(NamedTuple):
    """A claim and how it is judged.

    measure(Results) -> what is measured, or Missing. Of that, cells(measured) -> texts for plain and for scaled
    arithmetic, verdict(measured, trained_at) -> a sentence; trained_at is the T of the temperature network, "T = 20".
    author: what stands in the column of the author's networks; None: the same, measured on them.
    """

    claim: str
    paper: str
    logs: str
    measure: Callable[[Results], Any]
    cells: Callable[[Any], tuple[str, str]]
    verdict: Callable[[Any, str], str]
    author: str | None = None


class Success(NamedTuple):
    """An attack on a network in both arithmetics."""

    plain: Rate
    scaled: Rate


NO_SAMPLES = "Not judged: no samples."
MORE_OR_LESS_OFTEN = {
    1: "succeeds more often",
    0: "does not succeed significantly more or less often",
    -1: "succeeds less often",
}


def _lack_samples(successes):
    return not all(rate.trials for success in successes.values() for rate in success)


# Accuracy: name of a network -> Rate


def accuracies(results):
    return {
        name: Rate.of_seeds((run[name]["correct"], run[name]["tested"]) for run in results.runs)
        for name in results.runs[0]
    }


def accuracy_cells(rates):
    return "; ".join(f"{name}: {rate}" for name, rate in rates.items()), "the same decisions"


def accuracy_verdict(rates, trained_at):
    words = {1: "more accurate than", 0: "not significantly more or less accurate than", -1: "less accurate than"}
    distilled, standard = (compare(rates["temperature"], rates[name]) for name in ("distilled", "standard"))
    return f"The {trained_at} network is {words[distilled]} the distilled one and {words[standard]} the standard one."


# Attacks: name of a network -> Success


def rate(runs, network, algorithm, arithmetic):
    """The Rate of an attack over all seeds."""
    found = [run[network]["attacks"][algorithm][arithmetic] for run in runs]
    return Rate.of_seeds((figures["succeeded"], figures["counted"]) for figures in found)


def _success(runs, network, algorithm):
    return Success(rate(runs, network, algorithm, "plain"), rate(runs, network, algorithm, "scaled"))


def successes(algorithm, networks, results):
    """On those of the networks that the runs have: there is no distilled one of the author's."""
    return {name: _success(results.runs, name, algorithm) for name in networks if name in results.runs[0]}


def in_both(text, successes):
    """Cells: text(the Rate on each network) in plain and in scaled arithmetic."""
    return tuple(text(*rates) for rates in zip(*successes.values(), strict=True))


def success_verdict(claimed, successes, trained_at, at_least=False):
    """claimed: the paper's success rate; at_least: whether it says "more than"."""
    if _lack_samples(successes):
        return NO_SAMPLES
    (success,) = successes.values()
    relation = against(claimed, success.plain.interval)
    if at_least and relation == "below":
        relation = "in line with"
    truth = {
        1: "without underflow the same attack succeeds more often, so part of its failures was arithmetic",
        0: "the difference that underflow makes is not significant",
        -1: "without underflow it succeeds less often",
    }[compare(success.scaled, success.plain)]
    paper = f"{'more than ' if at_least else ''}{claimed:.0%}"
    return f"The paper's {paper} is {relation} what plain arithmetic gives here; {truth}."


def factor_text(a, b):
    low, high = factor_interval(a, b)
    factor = f"{a.share / b.share:.1f} ({low:.1f} to {high:.1f})" if b.successes else f"at least {low:.1f}"
    return f"{a} against {b}: factor {factor}"


def factor_verdict(successes, trained_at):
    if _lack_samples(successes):
        return NO_SAMPLES
    standard, temperature = successes.values()
    plain, scaled = (factor_interval(a, b) for a, b in zip(standard, temperature, strict=True))
    truth, underflow = {
        1: (f"the {trained_at} network is the more robust one", "the rest was underflow"),
        0: ("the difference between the networks is not significant", "the robustness was underflow"),
        -1: (f"the {trained_at} network is the weaker one", "the robustness was underflow"),
    }[compare(standard.scaled, temperature.scaled)]
    masked = compare(standard.plain, temperature.plain) > 0 and scaled[1] < plain[0]
    return (
        f"The paper's factor of {FACTOR} is {against(FACTOR, plain)} what plain arithmetic gives here; without "
        f"underflow {truth}{f': {underflow}' * masked}."
    )


def distillation_cells(successes):
    return tuple("; ".join(f"{name}: {success[i]}" for name, success in successes.items()) for i in (0, 1))


def distillation_verdict(attack, successes, trained_at):
    """attack: its name in the sentence."""
    if _lack_samples(successes):
        return NO_SAMPLES
    temperature, distilled = successes.values()
    plain, scaled = compare(distilled.plain, temperature.plain), compare(distilled.scaled, temperature.scaled)
    if scaled:
        conclusion = f"the {'distilled' if scaled < 0 else trained_at} network is the more robust one"
    elif plain:
        conclusion = "they differ in where float32 underflows, and not significantly in robustness"
    else:
        conclusion = "distillation makes no significant difference"
    return (
        f"Against the distilled network {attack} {MORE_OR_LESS_OFTEN[plain]} than against {trained_at} on hard labels "
        f"in plain arithmetic, and {MORE_OR_LESS_OFTEN[scaled]} in scaled: {conclusion}."
    )


def _mean_moves(runs, network, algorithm, arithmetic):
    """ ", 12.3 moves" of the successes, the mean over the seeds that have any; "" where none has."""
    found = [run[network]["attacks"][algorithm][arithmetic] for run in runs]
    means = [figures["mean_moves_of_successes"] for figures in found if figures["succeeded"]]
    return f", {sum(means) / len(means):.1f} moves" if means else ""


def refreshed(results):
    """Algorithms 2 and 4 on the same images of the standard network: name -> Success, name -> moves in words."""
    if "4" not in results.runs[0]["standard"]["attacks"]:
        return Missing("was not run: --refreshed 10 runs it on 10 images")
    names = {"Algorithm 2": ON_THE_SAME_IMAGES, "Algorithm 4": "4"}
    successes = {name: _success(results.runs, "standard", algorithm) for name, algorithm in names.items()}
    moves = {
        name: [_mean_moves(results.runs, "standard", algorithm, arithmetic) for arithmetic in ("plain", "scaled")]
        for name, algorithm in names.items()
    }
    return successes, moves


def refreshed_cells(measured):
    successes, moves = measured
    return tuple("; ".join(f"{name}: {successes[name][i]}{moves[name][i]}" for name in successes) for i in (0, 1))


def refreshed_verdict(measured, trained_at):
    successes, _ = measured
    if _lack_samples(successes):
        return NO_SAMPLES
    two, four = successes.values()
    plain, scaled = (MORE_OR_LESS_OFTEN[compare(b, a)] for a, b in zip(two, four, strict=True))
    return f"On the same images Algorithm 4 {plain} than Algorithm 2 in plain arithmetic, and {scaled} in scaled."


# The gradient


class Gradient(NamedTuple):
    """log10 of the size of the temperature network's maps relative to the standard network's, means over the seeds:
    median, its interval (low, high), 5 % and 95 % quantiles; and the share of maps that plain float32 shows as 0."""

    median: float
    interval: tuple[float, float]
    quantiles: tuple[float, float]
    zero_share: float


def gradient(results):
    """The interval is further apart where the medians of the seeds vary more."""
    budgets = [run["temperature"]["gradient"] for run in results.runs]
    by_seed = [
        (b["median"], *b["median_interval"], b["quantiles"]["5"], b["quantiles"]["95"], b["plain"]["zero_share"])
        for b in budgets
    ]
    median, low, high, first, last, zero_share = map(statistics.fmean, zip(*by_seed, strict=True))
    spread = 2 * standard_deviation([b["median"] for b in budgets])
    return Gradient(median, (min(low, median - spread), max(high, median + spread)), (first, last), zero_share)


def gradient_cells(found):
    (low, high), (first, last) = found.interval, found.quantiles
    return (
        f"{found.zero_share:.1%} of maps exactly 0",
        f"median 10^{found.median:.1f} (10^{low:.1f} to 10^{high:.1f}) times the standard network's; 5 % to 95 % of "
        f"images: 10^{first:.0f} to 10^{last:.0f}",
    )


def gradient_verdict(found, trained_at):
    low, high = found.interval
    if low <= 0 <= high:
        size = "not significantly smaller or larger"
    else:
        size = f"10^{abs(found.median):.1f} times {'smaller' if found.median < 0 else 'larger'}"
    agrees = against(GRADIENT, (-high, -low)) == "in line with"
    paper = "as the paper says" if agrees else f"where the paper says 10^{GRADIENT} times smaller"
    return (
        f"The median map of the {trained_at} network is {size}, {paper}; float32 shows exactly 0 for "
        f"{found.zero_share:.0%} of the images."
    )


# Appendix A, arithmetic -> figures of its map; and the pictures


def appendix_cells(found):
    plain, scaled = found["plain"], found["scaled"]
    return (
        f"mean {plain['mean']:.4e}, max {plain['max']:.5e}, {plain['moves']} moves",
        f"largest gradient 10^{scaled['log10_max']:.3f}, {scaled['moves']} moves",
    )


def appendix_verdict(found, trained_at):
    plain = found["plain"]
    printed = {"mean": f"{plain['mean']:.4e}", "max": f"{plain['max']:.5e}", "moves": plain["moves"]}
    if plain["succeeded"] and printed.items() <= APPENDIX_A.items():
        return "Mean, maximum and moves come out as printed: it is test image 2659 on the author's standard network."
    return "The map that is printed does not come out here."


def figures_verdict(names, trained_at):
    return "Drawn from this run: the figures below."


# fmt: off
CLAIMS = (  # the claim; what the paper and the author's logs say; what is measured, its cells, its verdict
    Claim("Accuracy: temperature beats distillation",
          "T = 20 without distillation is the more accurate", "T = 20: 99.34 %, distilled: 99.07 %",
          accuracies, accuracy_cells, accuracy_verdict),
    Claim("Algorithm 1 succeeds on the standard network",
          "72%", "14 of 28 images",
          partial(successes, "1", ["standard"]), partial(in_both, str), partial(success_verdict, 0.72)),
    Claim("Algorithm 2 succeeds on the standard network",
          "more than 95%", "not released",
          partial(successes, "2", ["standard"]), partial(in_both, str), partial(success_verdict, 0.95, at_least=True)),
    Claim("Algorithm 3 succeeds on the standard network",
          "more than 95%", "not released",
          partial(successes, "3", ["standard"]), partial(in_both, str), partial(success_verdict, 0.95, at_least=True)),
    Claim("T = 20 reduces the adversarial gradient",
          "by 10^10", "26 of 28 maps exactly 0",
          gradient, gradient_cells, gradient_verdict),
    Claim("T = 20 reduces the success rate of Algorithm 1",
          "by a factor of 10", "14 of 28 images; on the other network 26 of 28 maps exactly 0",
          partial(successes, "1", ["standard", "temperature"]), partial(in_both, factor_text), factor_verdict),
    Claim("... and of the attack behind the author's logs",
          "by a factor of 10", "39.0 % and 1.3 % (distilled); 35.7 % and 0.8 % (T = 20)",
          partial(successes, "author", ["standard", "temperature"]), partial(in_both, factor_text), factor_verdict),
    Claim("Temperature, not distillation, makes robust",
          "T = 20 alone is the more robust", "no attack with Algorithm 1 on both",
          partial(successes, "1", ["temperature", "distilled"]), distillation_cells,
          partial(distillation_verdict, "Algorithm 1")),
    Claim("... under the attack behind the author's logs",
          "T = 20 alone is the more robust", "1.3 % (distilled), 0.8 % (T = 20)",
          partial(successes, "author", ["temperature", "distilled"]), distillation_cells,
          partial(distillation_verdict, "the author's attack")),
    Claim("Algorithm 4 is more effective than 2",
          "no figure", "not released",
          refreshed, refreshed_cells, refreshed_verdict),
    Claim("Appendix A: a saliency map",
          "mean {mean}, max {max}, {moves} moves".format_map(APPENDIX_A), "none",
          attrgetter("appendix_a"), appendix_cells, appendix_verdict,
          author=f"their standard network, test image {APPENDIX_A['index']}"),
    Claim("Figures 1 and 2: samples and adversarial samples",
          "four of each", "none",
          lambda _: ("figures_1_and_2_plain.png", "figures_1_and_2_scaled.png"), tuple, figures_verdict,
          author="figures_1_and_2_author_plain.png and _scaled.png"),
)
# fmt: on


def rows(results):
    """The Row of every claim. results: Results."""
    return [_row(claim, results) for claim in CLAIMS]


def _row(claim, results):
    measured = claim.measure(results)
    if isinstance(measured, Missing):
        return Row(*claim[:3], *3 * (measured.reason,), f"Not judged: it {measured.reason}.")
    if isinstance(results.author, Missing):
        author = results.author.reason
    elif claim.author:
        author = claim.author
    else:
        author = "plain: {}; scaled: {}".format(*claim.cells(claim.measure(results._replace(runs=[results.author]))))
    return Row(*claim[:3], author, *claim.cells(measured), claim.verdict(measured, f"T = {results.T:g}"))
