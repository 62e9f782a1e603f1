"""The twelve claims of the paper, a record each: what it says, what the author's own runs gave, what is measured here,
and a verdict in one sentence that is computed from comparisons. CLAIMS is the table; judge() fills it."""

import statistics
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.report import Table
from minicnn.paper.saliency import ARITHMETICS
from minicnn.paper.statistics import (
    Comparison,
    Pairs,
    Rate,
    against,
    by_seeds,
    compare_attacks,
    compare_networks,
    holm,
)

FACTOR = 10  # by which T = 20 is said to reduce success rates (abstract)
GRADIENT = 10  # log10 of the factor by which it is said to reduce the gradient (abstract)
APPENDIX_A = {"index": 2659, "mean": "-2.2915e-08", "max": "9.78318e-05", "moves": 12}

# What is measured of one seed's networks, or of the author's: name -> {"correct", "tested": images, "by_image":
# Outcomes of its decisions, "attacks": algorithm -> arithmetic -> statistics.summary with "by_image", the Outcomes,
# "gradient": budget.budget against "standard", of those trained at temperature}.
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
    """What comes of a claim, as text, "" where there is nothing; author_runs: what the author's own runs gave; author:
    what his networks give here."""

    claim: str
    paper: str
    author_runs: str
    author: str
    plain: str
    scaled: str
    verdict: str


class Judged(NamedTuple):
    """The Row that comes of a claim, and by name the comparisons that it rests on, if anything was measured."""

    row: Row
    comparisons: dict[str, Comparison]


COLUMNS = ("claim", "paper", "author's runs", "author's networks", "plain", "scaled", "verdict")


class Measured(NamedTuple):
    """What is measured of a claim: figures to show, and comparisons, by name, for the verdict."""

    figures: Any
    comparisons: dict[str, Comparison]


class Claim(NamedTuple):
    """A claim and how it is judged.

    measure(Results) -> Measured or Missing. Of that, cells(measured) -> texts for plain and for scaled arithmetic,
    verdict(measured, trained_at) -> a sentence; trained_at is the T of the temperature network, "T = 20". author: what
    stands in the column of the author's networks; None: the same, measured on them.
    """

    claim: str
    paper: str
    author_runs: str
    measure: Callable[[Results], Any]
    cells: Callable[[Measured], tuple[str, str]]
    verdict: Callable[[Measured, str], str]
    author: str | None = None


def outcomes(runs, network, algorithm, arithmetic):
    """The Outcomes of an attack, or without one of the network's decisions, one of every seed."""
    return [(run[network]["attacks"][algorithm][arithmetic] if algorithm else run[network])["by_image"] for run in runs]


def networks_compared(runs, first, second, algorithm=None, arithmetic=None):
    """The Comparison of two networks by their name: under an attack, or by their decisions."""
    return compare_networks(*(outcomes(runs, name, algorithm, arithmetic) for name in (first, second)))


def attacks_compared(runs, first, second):
    """The Comparison of two attacks, (algorithm, arithmetic), on the standard network."""
    return compare_attacks(*(outcomes(runs, "standard", *attack) for attack in (first, second)))


# How a comparison is told


def of_networks(comparison):
    """What a comparison of networks is about, as the beginning of a sentence."""
    return f"Over {comparison.n} seeds" if comparison.unit == "seeds" else "Of these networks, one seed"


def on_networks(comparison):
    """The same of a comparison of attacks."""
    return "On this network" if len(comparison.pairs) == 1 else f"On these {len(comparison.pairs)} networks"


def grounds(comparison, digits=1):
    """The figures behind what is said, in brackets."""
    difference, low, high = comparison.in_points(digits)
    alone = [f"alone on {p.first} against {p.second} of {sum(p)} images, " for p in comparison.pairs]
    return f"({alone[0] if len(alone) == 1 else ''}{difference} points, {low} to {high}, {comparison.p_value})"


def shares(comparison, first="", second=""):
    """The two rates beside each other; first, second: what they are of, each with a blank behind it."""
    a, b = comparison.shares
    if not a.trials:
        return "no samples"
    if len(comparison.pairs) == 1:
        return f"{first}{a.share:.1%} against {second}{b.share:.1%} of {comparison.n} images"
    rates = (f"{name}{rate.mean:.1%} +- {rate.spread:.1%}" for name, rate in ((first, a), (second, b)))
    return f"{' against '.join(rates)}, {len(comparison.pairs)} seeds"


def factor(comparison):
    """The rates and their ratio."""
    text, (value, (low, high)) = shares(comparison), comparison.factor
    if not comparison.shares[0].trials:
        return text
    bounds = f"{value:.1f} ({low:.1f} to {high:.1f})" if np.isfinite(high) else f"at least {low:.1f}"
    return f"{text}: factor {bounds if low else 'unknown'}"


MORE_OR_LESS_OFTEN = {
    1: "succeeds more often",
    0: "does not succeed significantly more or less often",
    -1: "succeeds less often",
}


# Accuracy


def accuracy(results):
    """Figures: name of a network -> Rate."""
    runs = results.runs
    rates = {name: Rate.of_seeds((run[name]["correct"], run[name]["tested"]) for run in runs) for name in runs[0]}
    others = ("distilled", "standard")
    return Measured(rates, {other: networks_compared(runs, "temperature", other) for other in others})


def accuracy_cells(measured):
    return "; ".join(f"{name}: {rate.text(2)}" for name, rate in measured.figures.items()), "the same decisions"


def accuracy_verdict(measured, trained_at):
    words = {1: "more accurate than", 0: "not significantly more or less accurate than", -1: "less accurate than"}
    told = [f"{words[c.order]} the {name} one {grounds(c, 2)}" for name, c in measured.comparisons.items()]
    return f"{of_networks(measured.comparisons['standard'])}: the {trained_at} network is {' and '.join(told)}."


# Attacks


def rate(runs, network, algorithm, arithmetic):
    """The Rate of an attack over all seeds."""
    found = [run[network]["attacks"][algorithm][arithmetic] for run in runs]
    return Rate.of_seeds((figures["succeeded"], figures["counted"]) for figures in found)


def success(algorithm, results):
    """Figures: the Rates on the standard network, plain and scaled."""
    rates = [rate(results.runs, "standard", algorithm, arithmetic) for arithmetic in ARITHMETICS]
    underflow = attacks_compared(results.runs, (algorithm, "scaled"), (algorithm, "plain"))
    return Measured(rates, {"scaled against plain": underflow})


def success_cells(measured):
    return tuple(map(str, measured.figures))


def success_verdict(claimed, measured, trained_at, at_least=False):
    """claimed: the paper's success rate; at_least: whether it says "more than"."""
    (underflow,) = measured.comparisons.values()
    relation = against(claimed, measured.figures[0].interval)
    if at_least and relation == "below":
        relation = "in line with"
    truth = {
        1: "without underflow the same attack succeeds more often {}, so part of its failures was arithmetic",
        0: "the difference that underflow makes is not significant {}",
        -1: "without underflow it succeeds less often {}",
    }[underflow.order].format(grounds(underflow))
    paper = f"{'more than ' if at_least else ''}{claimed:.0%}"
    return f"{on_networks(underflow)}: the paper's {paper} is {relation} what plain arithmetic gives; {truth}."


def in_both(first, second, algorithm, results):
    """Comparisons of two networks under an attack, in plain and in scaled arithmetic."""
    return Measured(None, {a: networks_compared(results.runs, first, second, algorithm, a) for a in ARITHMETICS})


def factor_cells(measured):
    return tuple(map(factor, measured.comparisons.values()))


def robustness(plain, scaled, trained_at):
    """What the comparisons of in_both say of robustness without underflow, and, with a colon before it, of what is seen
    with it, where that is more."""
    truth, underflow = {
        1: (f"the {trained_at} network is the more robust one", ": the rest was underflow"),
        0: ("the difference between the networks is not significant", ": the robustness was underflow"),
        -1: (f"the {trained_at} network is the weaker one", ": the robustness was underflow"),
    }[scaled.order]
    masked = plain.order > 0 and scaled.factor[1][1] < plain.factor[1][0]
    return truth, underflow * masked


def factor_verdict(measured, trained_at):
    plain, scaled = measured.comparisons.values()
    truth, underflow = robustness(plain, scaled, trained_at)
    return (
        f"{of_networks(scaled)}: the paper's factor of {FACTOR} is {against(FACTOR, plain.factor[1])} what plain "
        f"arithmetic gives {grounds(plain)}; without underflow {truth} {grounds(scaled)}{underflow}."
    )


def distillation_cells(measured):
    return tuple(shares(comparison, "distilled ", "temperature ") for comparison in measured.comparisons.values())


def distillation_verdict(attack, measured, trained_at):
    """attack: its name in the sentence."""
    plain, scaled = measured.comparisons.values()
    if scaled.order:
        conclusion = f"the {'distilled' if scaled.order < 0 else trained_at} network is the more robust one"
    elif plain.order:
        conclusion = "they differ in where float32 underflows, and not significantly in robustness"
    else:
        conclusion = "distillation makes no significant difference"
    return (
        f"{of_networks(scaled)}: against the distilled one {attack} {MORE_OR_LESS_OFTEN[plain.order]} than against "
        f"{trained_at} on hard labels in plain arithmetic {grounds(plain)}, and {MORE_OR_LESS_OFTEN[scaled.order]} in "
        f"scaled {grounds(scaled)}: {conclusion}."
    )


def refreshed(results):
    """Algorithms 4 and 2 on the same images of the standard network. Figures: arithmetic -> the mean moves of the
    successes of both, in words."""
    runs = results.runs
    if "4" not in runs[0]["standard"]["attacks"]:
        return Missing("was not run: --refreshed 10 runs it on 10 images")
    moves = {a: [_mean_moves(runs, algorithm, a) for algorithm in "42"] for a in ARITHMETICS}
    return Measured(moves, {a: attacks_compared(runs, ("4", a), ("2", a)) for a in ARITHMETICS})


def _mean_moves(runs, algorithm, arithmetic):
    """Of the successes on the standard network, on the images that Algorithm 4 is run on."""
    n = len(outcomes(runs, "standard", "4", arithmetic)[0].counted)
    found = outcomes(runs, "standard", algorithm, arithmetic)
    moves = np.concatenate([o.moves[:n][(o.succeeded & o.counted)[:n]] for o in found])
    return f"{moves.mean():.1f}" if len(moves) else "none"


def refreshed_cells(measured):
    return tuple(
        f"{shares(comparison, 'Algorithm 4 ', 'Algorithm 2 ')}; moves {' against '.join(measured.figures[arithmetic])}"
        for arithmetic, comparison in measured.comparisons.items()
    )


def refreshed_verdict(measured, trained_at):
    plain, scaled = measured.comparisons.values()
    return (
        f"{on_networks(plain)}: Algorithm 4 {MORE_OR_LESS_OFTEN[plain.order]} than Algorithm 2 on the same images in "
        f"plain arithmetic {grounds(plain)}, and {MORE_OR_LESS_OFTEN[scaled.order]} in scaled {grounds(scaled)}."
    )


# The gradient


class Gradient(NamedTuple):
    """log10 of the size of the temperature network's maps relative to the standard network's, 5 % and 95 % quantiles;
    and the share of maps that plain float32 shows as 0; means over the seeds. The median is the difference of the
    comparison."""

    quantiles: tuple[float, float]
    zero_share: float


def gradient(results):
    """By the sign test of the images, and of several seeds by their medians."""
    budgets = [run["temperature"]["gradient"] for run in results.runs]
    by_seed = [(b["quantiles"]["5"], b["quantiles"]["95"], b["plain"]["zero_share"]) for b in budgets]
    first, last, zero_share = map(statistics.fmean, zip(*by_seed, strict=True))
    by_image = []
    for budget in budgets:
        ratio = budget["by_image"]["ratio"]
        signs = Pairs(0, int((ratio > 0).sum()), int((ratio < 0).sum()), 0)
        by_image.append(Comparison("images", len(ratio), budget["median"], budget["median_interval"], signs.p, ()))
    comparison = by_seeds([budget["median"] for budget in budgets], by_image)
    return Measured(Gradient((first, last), zero_share), {"temperature against standard": comparison})


def gradient_cells(measured):
    (comparison,) = measured.comparisons.values()
    (low, high), (first, last) = comparison.interval, measured.figures.quantiles
    return (
        f"{measured.figures.zero_share:.1%} of maps exactly 0",
        f"median 10^{comparison.difference:.1f} (10^{low:.1f} to 10^{high:.1f}) times the standard network's; 5 % to "
        f"95 % of images: 10^{first:.0f} to 10^{last:.0f}",
    )


def gradient_verdict(measured, trained_at):
    (comparison,) = measured.comparisons.values()
    low, high = comparison.interval
    if comparison.order:
        size = f"10^{abs(comparison.difference):.1f} times {'smaller' if comparison.order < 0 else 'larger'}"
    else:
        size = "not significantly smaller or larger"
    agrees = against(GRADIENT, (-high, -low)) == "in line with"
    paper = "as the paper says" if agrees else f"where the paper says 10^{GRADIENT} times smaller"
    return (
        f"{of_networks(comparison)}: the median map of the {trained_at} network is {size} ({comparison.p_value}), "
        f"{paper}; float32 shows exactly 0 for {measured.figures.zero_share:.0%} of the images."
    )


# Appendix A, arithmetic -> figures of its map; and the pictures


def appendix(results):
    found = results.appendix_a
    return found if isinstance(found, Missing) else Measured(found, {})


def appendix_cells(measured):
    plain, scaled = measured.figures["plain"], measured.figures["scaled"]
    return (
        f"mean {plain['mean']:.4e}, max {plain['max']:.5e}, {plain['moves']} moves",
        f"largest gradient 10^{scaled['log10_max']:.3f}, {scaled['moves']} moves",
    )


def appendix_verdict(measured, trained_at):
    plain = measured.figures["plain"]
    off = max(units_off(plain[name], APPENDIX_A[name]) for name in ("mean", "max"))
    if not plain["succeeded"] or plain["moves"] != APPENDIX_A["moves"] or off > 1:
        return "The map that is printed does not come out here."
    exactly = "" if off == 0 else ", but for a unit of a last digit, which is rounding"
    return (
        f"Mean, maximum and moves come out as printed{exactly}: it is test image {APPENDIX_A['index']} on the author's "
        "standard network."
    )


def units_off(value, printed):
    """By how many units of its last digit a value, rounded alike, differs from a printed number, "-2.2915e-08"."""
    printed = Decimal(printed)
    difference = Decimal(value).quantize(printed) - printed
    return int(abs(difference).scaleb(-printed.as_tuple().exponent))


# What the author's runs gave is in the history of his repository, github.com/songhobby/CNN, up to commit 77e07afd: logs
# of accuracy and success, and pictures of adversarial samples, in which the test images can be recognised. The networks
# that he released are there, too; what none of them gives was measured on 1,500 images, plain.
# fmt: off
CLAIMS = {  # the claim; what the paper says and the author's runs gave; what is measured, its cells, its verdict
    "accuracy": Claim("Accuracy: temperature beats distillation",
          "T = 20 without distillation is the more accurate",
          "T = 20: 99.34 %, 9,918 of 9,984; distilled: 99.07 % (that network is not released, one with 99.09 % is)",
          accuracy, accuracy_cells, accuracy_verdict),
    "algorithm_1": Claim("Algorithm 1 succeeds on the standard network",
          "72%",
          "605 of 1,000 shuffled images, 3 of them misclassified from the start; 72 % on none of the four standard "
          "networks that he released: 47.5 % to 60.2 %",
          partial(success, "1"), success_cells, partial(success_verdict, 0.72)),
    "algorithm_2": Claim("Algorithm 2 succeeds on the standard network",
          "more than 95%",
          "in no released script; his own attack by loss differences: 39.0 % and 35.7 % of 992 images",
          partial(success, "2"), success_cells, partial(success_verdict, 0.95, at_least=True)),
    "algorithm_3": Claim("Algorithm 3 succeeds on the standard network",
          "more than 95%",
          "in no released script; more than 95 % on none of the four standard networks that he released: 52 % to 65 %",
          partial(success, "3"), success_cells, partial(success_verdict, 0.95, at_least=True)),
    "gradient": Claim("T = 20 reduces the adversarial gradient",
          "by 10^10", "26 of 28 maps exactly 0",
          gradient, gradient_cells, gradient_verdict),
    "factor": Claim("T = 20 reduces the success rate of Algorithm 1",
          "by a factor of 10",
          "605 against 55 of 1,000 shuffled images on the distilled network, 8 of the 55 misclassified from the start: "
          "the likely source of the 10",
          partial(in_both, "standard", "temperature", "1"), factor_cells, factor_verdict),
    "author_factor": Claim("... and of the attack behind the author's logs",
          "by a factor of 10",
          "387 against 13 of 992 images (distilled); 354 against 8 of 992 (T = 20)",
          partial(in_both, "standard", "temperature", "author"), factor_cells, factor_verdict),
    "distillation": Claim("Temperature, not distillation, makes robust",
          "T = 20 alone is the more robust", "no run of Algorithm 1 on both",
          partial(in_both, "distilled", "temperature", "1"), distillation_cells,
          partial(distillation_verdict, "Algorithm 1")),
    "author_distillation": Claim("... under the attack behind the author's logs",
          "T = 20 alone is the more robust", "13 of 992 images (distilled); 8 of another 992 (T = 20)",
          partial(in_both, "distilled", "temperature", "author"), distillation_cells,
          partial(distillation_verdict, "the author's attack")),
    "refreshed": Claim("Algorithm 4 is more effective than 2",
          "no figure", "in no released script",
          refreshed, refreshed_cells, refreshed_verdict),
    "appendix_a": Claim("Appendix A: a saliency map",
          "mean {mean}, max {max}, {moves} moves".format_map(APPENDIX_A), "none",
          appendix, appendix_cells, appendix_verdict,
          author=f"his standard network, test image {APPENDIX_A['index']}"),
    "figures": Claim("Figures 1 and 2: samples and adversarial samples",
          "four of each", "pictures of all adversarial samples of four runs",
          lambda results: Measured(None, {}),
          lambda measured: ("figures_1_and_2_plain.png", "figures_1_and_2_scaled.png"),
          lambda measured, trained_at: "Drawn from this run.",
          author="figures_1_and_2_author_plain.png and _scaled.png"),
}
# fmt: on


def judge(results):
    """Name of a claim -> Judged; the p-values of all comparisons are adjusted together."""
    measured = {name: claim.measure(results) for name, claim in CLAIMS.items()}
    compared = {name: {} if isinstance(found, Missing) else found.comparisons for name, found in measured.items()}
    adjusted = iter(holm([c.p for comparisons in compared.values() for c in comparisons.values()]))
    for comparisons in compared.values():
        for name, comparison in comparisons.items():
            comparisons[name] = comparison._replace(adjusted=next(adjusted))
    return {name: Judged(_row(claim, results, measured[name]), compared[name]) for name, claim in CLAIMS.items()}


def comparisons(judged):
    """What judge has compared, as plain values: claim -> name of a Comparison -> its fields."""
    return {
        found.row.claim: {name: comparison._asdict() for name, comparison in found.comparisons.items()}
        for found in judged.values()
        if found.comparisons
    }


def as_table(rows):
    """Rows as a Table for a report."""
    return Table([dict(zip(COLUMNS, row, strict=True)) for row in rows], cards=True)


def _row(claim, results, measured):
    if isinstance(measured, Missing):
        return Row(*claim[:3], *3 * ("",), f"Not judged: it {measured.reason}.")
    if isinstance(results.author, Missing):
        author = ""
    elif claim.author:
        author = claim.author
    else:
        author = "plain: {}; scaled: {}".format(*claim.cells(claim.measure(results._replace(runs=[results.author]))))
    lacking = any(c.n < (2 if c.unit == "seeds" else 1) for c in measured.comparisons.values())
    verdict = "Not judged: no samples." if lacking else claim.verdict(measured, f"T = {results.T:g}")
    return Row(*claim[:3], author, *claim.cells(measured), verdict)
