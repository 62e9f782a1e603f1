"""The verdicts on the paper's claims are computed: flip the figures and the sentence changes."""

import numpy as np
import pytest

from experiments import claims
from experiments.claims import Missing, Results
from minicnn.paper.statistics import Outcomes, Pairs

ALGORITHMS = ("1", "2", "3", "4", "author")


def attack(share, trials, rng):
    """What reproduce.attack_all has of an attack that succeeds on this share of its images, which ones is chance."""
    succeeded = rng.permutation(trials) < round(share * trials)
    by_image = Outcomes(np.ones(trials, bool), succeeded, np.where(succeeded, 20, 100))
    return {"succeeded": int(succeeded.sum()), "counted": trials, "by_image": by_image}


def success(plain, scaled, trials=200, seed=0):
    """The same in both arithmetics."""
    rng = np.random.default_rng(seed)
    return {"plain": attack(plain, trials, rng), "scaled": attack(scaled, trials, rng)}


def gradient(median, zero_share, reach=2.0, images=200):
    """budget.budget of a network whose maps are larger on a tenth of the images, if their median is 0 or less."""
    ratio = np.linspace(median - 10 * reach, median + 10 * reach, images)
    return {
        "median": median,
        "median_interval": (median - reach, median + reach),
        "quantiles": {"5": median - 40, "95": median + 40},
        "terms": {"temperature": 0.0, "jacobian": 1.2, "saturation": median - 1.2},
        "plain": {"zero_share": zero_share},
        "by_image": {"ratio": ratio},
    }


def network(plain, scaled, seed, trials=200):
    """A network's figures: every algorithm succeeds as often."""
    right = np.random.default_rng(seed).permutation(1000) < 990
    return {
        "correct": 990,
        "tested": 1000,
        "by_image": Outcomes(np.ones(1000, bool), right),
        "attacks": {name: success(plain, scaled, trials, (seed, i)) for i, name in enumerate(ALGORITHMS)},
        "gradient": gradient(-80.0, 0.95),
    }


def a_run(seed=0, **shares):
    """The figures of the three networks of a seed; shares: name -> (plain, scaled) where they are others."""
    shares = {"standard": (0.63, 0.84), "temperature": (0.04, 0.95), "distilled": (0.05, 0.94)} | shares
    return {name: network(*pair, seed=10 * seed + i) for i, (name, pair) in enumerate(shares.items())}


@pytest.fixture
def run():
    return a_run()


@pytest.fixture
def results(run):
    return Results([run], 20.0, Missing("needs a file"), Missing("needs the network"))


def rows(results):
    return [judged.row for judged in claims.judge(results).values()]


def row(results, claim):
    (found,) = (row for row in rows(results) if row.claim == claim)
    return found


def verdict(results, claim):
    return row(results, claim).verdict


def set_pairs(first, second, pairs):
    """Make two dicts' outcomes "by_image" such that they are these Pairs."""
    both, only_first, only_second, neither = pairs
    a = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    b = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    for figures, succeeded in (first, a), (second, b):
        figures["by_image"] = Outcomes(np.ones(len(a), bool), succeeded, np.full(len(a), 20))


def set_accuracies(run, first, second, pairs):
    set_pairs(run[first], run[second], pairs)
    for name, right in (first, pairs[0] + pairs[1]), (second, pairs[0] + pairs[2]):
        run[name] |= {"correct": right, "tested": sum(pairs)}


def set_attacks(run, first, second, arithmetic, pairs):
    """first, second: (network, algorithm)."""
    (a, b), (c, d) = first, second
    set_pairs(run[a]["attacks"][b][arithmetic], run[c]["attacks"][d][arithmetic], pairs)


def test_rows_are_filled_and_name_what_is_missing(results):
    table = rows(results)
    assert len({row.claim for row in table}) == len(table) == 12
    missing = [(row.claim, column) for row in table for column, cell in row._asdict().items() if not cell]
    appendix = "Appendix A: a saliency map"
    assert set(missing) == {(row.claim, "author") for row in table} | {(appendix, "plain"), (appendix, "scaled")}
    assert row(results, appendix).verdict == "Not judged: it needs the network."


def test_as_table_leaves_out_whose_networks_are_missing(results):
    heads, lines = claims.as_table(rows(results)).texts()
    assert heads == [column for column in claims.COLUMNS if column != "author's networks"] and len(lines) == 12
    theirs = claims.as_table(rows(results._replace(author=results.runs[0])))
    assert theirs.texts()[0] == list(claims.COLUMNS)


def test_rows_have_the_author_s_networks_in_a_column_of_their_own(results):
    theirs = a_run(standard=(0.11, 0.22), temperature=(0.33, 0.44), distilled=(0.55, 0.66))
    results = results._replace(author=theirs)
    column = row(results, "Algorithm 1 succeeds on the standard network").author
    assert column.startswith("plain: 11.0%") and "; scaled: 22.0%" in column
    column = row(results, "Temperature, not distillation, makes robust").author
    assert column.startswith("plain: distilled 55.0% against temperature 33.0% of 200 images; scaled: distilled 66.0% ")
    assert row(results, "Figures 1 and 2: samples and adversarial samples").author.startswith("figures_1_and_2_author")


def test_rows_show_rates_of_both_arithmetics(results, run):
    def cells(claim):
        found = row(results, claim)
        return found.plain, found.scaled

    plain, scaled = cells("Algorithm 1 succeeds on the standard network")
    assert plain.startswith("63.0% (") and scaled.startswith("84.0% (")
    plain, scaled = cells("T = 20 reduces the success rate of Algorithm 1")
    assert plain.startswith("63.0% against 4.0% of 200 images: factor 15.8 (")
    assert scaled.startswith("84.0% against 95.0% of 200 images: factor 0.9 (")
    assert cells("Temperature, not distillation, makes robust") == (
        "distilled 5.0% against temperature 4.0% of 200 images",
        "distilled 94.0% against temperature 95.0% of 200 images",
    )
    run["standard"]["attacks"]["4"] = success(0.9, 0.8, trials=10)
    same, moves = cells("Algorithm 4 is more effective than 2")[0].split("; ")
    assert same.startswith("Algorithm 4 90.0% against Algorithm 2 ") and same.endswith("0.0% of 10 images")
    assert moves == "moves 20.0 against 20.0"
    assert cells("T = 20 reduces the adversarial gradient") == (
        "95.0% of maps exactly 0",
        "median 10^-80.0 (10^-82.0 to 10^-78.0) times the standard network's; 5 % to 95 % of images: 10^-120 to 10^-40",
    )


def test_rows_compare_on_the_images_that_count_for_both(results, run):
    counted = np.arange(200) < 100
    for name in ("standard", "temperature"):
        found = run[name]["attacks"]["1"]["plain"]
        found["by_image"] = found["by_image"]._replace(counted=counted if name == "standard" else ~counted)
    found = row(results, "T = 20 reduces the success rate of Algorithm 1")
    assert found.plain == "no samples" and found.verdict == "Not judged: no samples."


def test_rows_tell_a_factor_without_successes_by_its_lower_bound(results, run):
    run["temperature"]["attacks"]["1"] = success(0, 0)
    claim = "T = 20 reduces the success rate of Algorithm 1"
    assert ": factor at least " in row(results, claim).plain
    run["standard"]["attacks"]["1"] = success(0, 0)
    assert row(results, claim).plain == "0.0% against 0.0% of 200 images: factor unknown"


def test_rows_without_samples_are_not_judged(results, run):
    for figures in run.values():
        figures["attacks"] = {algorithm: success(0, 0, trials=0) for algorithm in ALGORITHMS}
    table = rows(results)
    assert [row.claim for row in table if not row.verdict.startswith("Not judged")] == [
        "Accuracy: temperature beats distillation",
        "T = 20 reduces the adversarial gradient",
        "Figures 1 and 2: samples and adversarial samples",
    ]
    assert row(results, "Algorithm 1 succeeds on the standard network").plain == "no samples"


def test_rows_of_several_seeds_show_means_and_spreads(results):
    results = results._replace(runs=[a_run(seed, standard=(0.5 + 0.1 * seed, 0.8)) for seed in range(3)])
    cells = row(results, "Algorithm 1 succeeds on the standard network").plain
    assert cells.startswith("60.0% (") and cells.endswith(", 3 seeds: 60.0% +- 10.0%")
    cells = row(results, "T = 20 reduces the success rate of Algorithm 1").plain
    assert cells.startswith("60.0% +- 10.0% against 4.0% +- 0.0%, 3 seeds: factor 14.") and cells.endswith(")")


def test_rate_pools_the_seeds():
    runs = [a_run(), a_run(1, standard=(0.73, 0.84))]
    assert claims.rate(runs, "standard", "1", "plain") == (126 + 146, 400, (0.63, 0.73))


def test_verdicts_name_the_temperature_of_the_run(results):
    table = rows(results)
    assert sum("the T = 20 network" in row.verdict for row in table) > 1
    results = results._replace(T=5.0)
    table = rows(results)
    assert not any("T = 20" in row.verdict for row in table)
    assert sum("T = 5" in row.verdict for row in table) > 3


ABOUT_NETWORKS = [
    "Accuracy: temperature beats distillation",
    "T = 20 reduces the adversarial gradient",
    "T = 20 reduces the success rate of Algorithm 1",
    "... and of the attack behind the author's logs",
    "Temperature, not distillation, makes robust",
    "... under the attack behind the author's logs",
]
ABOUT_ATTACKS = [
    *(f"Algorithm {algorithm} succeeds on the standard network" for algorithm in "123"),
    "Algorithm 4 is more effective than 2",
]


def test_verdicts_say_what_they_are_about(results):
    assert all(verdict(results, claim).startswith("Of these networks, one seed: ") for claim in ABOUT_NETWORKS)
    assert all(verdict(results, claim).startswith("On this network: ") for claim in ABOUT_ATTACKS)
    results = results._replace(runs=[a_run(seed) for seed in range(3)])
    assert all(verdict(results, claim).startswith("Over 3 seeds: ") for claim in ABOUT_NETWORKS)
    assert all(verdict(results, claim).startswith("On these 3 networks: ") for claim in ABOUT_ATTACKS)


def test_judge_adjusts_all_p_values_together(results, run):
    found = [judged.comparisons for judged in claims.judge(results).values()]
    comparisons = [comparison for each in found for comparison in each.values()]
    assert len(comparisons) == 16
    ordered = sorted(comparisons, key=lambda comparison: comparison.p)
    least = 0
    for i, comparison in enumerate(ordered):
        least = max(least, min(1, comparison.p * (16 - i)))
        assert comparison.adjusted == pytest.approx(least)


def test_accuracy_verdict(results, run):
    """47 against 16 of 10,000 decisions, which intervals of the two rates do not tell apart."""
    claim = "Accuracy: temperature beats distillation"
    same = "not significantly more or less accurate than"
    assert f"network is {same} the distilled one (" in verdict(results, claim)
    assert f") and {same} the standard one (" in verdict(results, claim)
    set_accuracies(run, "standard", "temperature", Pairs(9897, 47, 16, 40))
    run["distilled"]["by_image"] = run["temperature"]["by_image"]
    plain = row(results, claim).plain
    assert plain.startswith("standard: 99.44% (99.27% to 99.57%, n = 10000); temperature: 99.13% (98.93% to 99.29%")
    told = verdict(results, claim)
    assert f"the T = 20 network is {same} the distilled one (alone on 0 against 0 of 10000 images, +0.00 points" in told
    assert (
        "and less accurate than the standard one (alone on 16 against 47 of 10000 images, -0.31 points, -0.48" in told
    )
    set_accuracies(run, "standard", "temperature", Pairs(9897, 16, 47, 40))
    assert "and more accurate than the standard one (" in verdict(results, claim)


def test_accuracy_verdict_of_seeds_that_disagree(results):
    """Each pair of networks is beyond doubt; over the seeds nothing can be said."""
    claim = "Accuracy: temperature beats distillation"
    runs = [a_run(seed) for seed in range(4)]
    for run, pairs in zip(runs, (Pairs(9800, 90, 10, 100), Pairs(9800, 10, 90, 100)) * 2, strict=True):
        set_accuracies(run, "temperature", "standard", pairs)
        assert "more or less" not in verdict(results._replace(runs=[run]), claim).partition("distilled")[2]
    told = verdict(results._replace(runs=runs), claim)
    assert told.startswith("Over 4 seeds: ") and "not significantly more or less accurate than the standard" in told
    for i, run in enumerate(runs):
        set_accuracies(run, "temperature", "standard", Pairs(9800, 60 + i, 20, 120 - i))
    told = verdict(results._replace(runs=runs), claim)
    assert "and more accurate than the standard one (+0.41 points, +0.24 to +0.60, p = " in told


@pytest.mark.parametrize(
    ("plain", "scaled", "relation", "truth"),
    [
        (
            0.63,
            0.84,
            "above",
            "without underflow the same attack succeeds more often ({}), so part of its failures was",
        ),
        (0.72, 0.73, "in line with", "the difference that underflow makes is not significant ({})."),
        (0.95, 0.50, "below", "without underflow it succeeds less often ({})."),
    ],
)
def test_success_verdict_judges_the_claim_by_the_interval(results, run, plain, scaled, relation, truth):
    run["standard"]["attacks"]["1"] = success(plain, scaled)
    told = verdict(results, "Algorithm 1 succeeds on the standard network")
    assert told.startswith(f"On this network: the paper's 72% is {relation} what plain arithmetic gives; ")
    before, after = truth.split("({})")
    assert f"; {before}(alone on " in told and f"){after}" in told


@pytest.mark.parametrize("algorithm", ["2", "3"])
def test_success_verdict_on_more_than_95_percent_is_met_by_all_above(results, run, algorithm):
    claim = f"Algorithm {algorithm} succeeds on the standard network"
    assert "the paper's more than 95% is above what plain" in verdict(results, claim)
    run["standard"]["attacks"][algorithm] = success(1.0, 1.0)
    assert "the paper's more than 95% is in line with what plain" in verdict(results, claim)


FACTOR = {
    "T = 20 reduces the success rate of Algorithm 1": "1",
    "... and of the attack behind the author's logs": "author",
}
MORE, SAME, WEAKER = (
    "the T = 20 network is the more robust one",
    "the difference between the networks is not significant",
    "the T = 20 network is the weaker one",
)


@pytest.mark.parametrize("claim", FACTOR)
@pytest.mark.parametrize(
    ("plain", "scaled", "relation", "truth", "end"),
    [
        (0.06, 0.84, "in line with", SAME, ": the robustness was underflow."),
        (0.06, 0.95, "in line with", WEAKER, ": the robustness was underflow."),
        (0.06, 0.30, "in line with", MORE, ": the rest was underflow."),
        (0.06, 0.08, "in line with", MORE, "."),
        (0.20, 0.84, "above", SAME, ": the robustness was underflow."),
        (0.001, 0.84, "below", SAME, ": the robustness was underflow."),
        (0.62, 0.30, "above", MORE, "."),
        (0.62, 0.84, "above", SAME, "."),
        (0.62, 0.95, "above", WEAKER, "."),
        (0.90, 0.30, "above", MORE, "."),
        (0.90, 0.84, "above", SAME, "."),
        (0.90, 0.95, "above", WEAKER, "."),
    ],
)
def test_factor_verdict(results, run, claim, plain, scaled, relation, truth, end):
    for seed, (name, shares) in enumerate((("standard", (0.63, 0.84)), ("temperature", (plain, scaled)))):
        run[name]["attacks"][FACTOR[claim]] = success(*shares, trials=1000, seed=seed)
    told = verdict(results, claim)
    assert f"the paper's factor of 10 is {relation} what plain arithmetic gives (alone on " in told
    assert f"; without underflow {truth} (alone on " in told
    assert told.rpartition(")")[2] == end


def test_factor_verdict_on_few_images_does_not_blame_underflow(results, run):
    """A difference that is significant in plain and not in scaled is no difference between the two."""
    set_attacks(run, ("standard", "1"), ("temperature", "1"), "plain", Pairs(2, 18, 0, 5))
    set_attacks(run, ("standard", "1"), ("temperature", "1"), "scaled", Pairs(2, 5, 0, 18))
    told = verdict(results, "T = 20 reduces the success rate of Algorithm 1")
    assert f"; without underflow {SAME} (" in told and told.endswith(").")


def test_factor_verdict_of_seeds_is_by_the_spread_of_their_factors(results):
    claim = "T = 20 reduces the success rate of Algorithm 1"
    agree = [a_run(seed, temperature=(0.06 + 0.005 * seed, 0.5 + 0.01 * seed)) for seed in range(3)]
    told = verdict(results._replace(runs=agree), claim)
    assert "factor of 10 is in line with" in told and told.endswith("): the rest was underflow.")
    assert f"; without underflow {MORE} (+33.0 points, +24.2 to +41.1, p = 0.0" in told
    differ = [a_run(seed, temperature=(0.06, share)) for seed, share in enumerate((0.5, 0.84, 1.0))]
    assert f"; without underflow {SAME} (+6.0 points, -57.4 to +69.4, p = 1)" in verdict(
        results._replace(runs=differ), claim
    )


@pytest.mark.parametrize(
    ("claim", "algorithm", "attack"),
    [
        ("Temperature, not distillation, makes robust", "1", "Algorithm 1"),
        ("... under the attack behind the author's logs", "author", "the author's attack"),
    ],
)
def test_distillation_verdict(results, run, claim, algorithm, attack):
    same = "does not succeed significantly more or less often"
    told = verdict(results, claim)
    assert (
        f": against the distilled one {attack} {same} than against T = 20 on hard labels in plain arithmetic (" in told
    )
    assert f"), and {same} in scaled (" in told and told.endswith(": distillation makes no significant difference.")
    run["distilled"]["attacks"][algorithm] = success(0.50, 0.94, seed=1)
    told = verdict(results, claim)
    assert f"{attack} succeeds more often than against T = 20" in told
    assert told.endswith(": they differ in where float32 underflows, and not significantly in robustness.")
    run["distilled"]["attacks"][algorithm] = success(0.50, 0.50, seed=1)
    told = verdict(results, claim)
    assert "succeeds less often in scaled (" in told and told.endswith(
        ": the distilled network is the more robust one."
    )
    run["temperature"]["attacks"][algorithm] = success(0.04, 0.60, seed=2)
    run["distilled"]["attacks"][algorithm] = success(0.50, 1.0, seed=1)
    told = verdict(results, claim)
    assert "succeeds more often in scaled (" in told and told.endswith(": the T = 20 network is the more robust one.")


def test_refreshed_verdict_compares_on_the_same_images(results, run):
    """6 against 0 of 50 images is p = 0.031 by itself, and too little for one of 16 comparisons."""
    claim, same = "Algorithm 4 is more effective than 2", "does not succeed significantly more or less often"
    set_attacks(run, ("standard", "4"), ("standard", "2"), "plain", Pairs(44, 6, 0, 0))
    set_attacks(run, ("standard", "4"), ("standard", "2"), "scaled", Pairs(30, 0, 20, 0))
    (name,) = (name for name, c in claims.CLAIMS.items() if c.claim == claim)
    found = claims.judge(results)[name].comparisons["plain"]
    assert found.p == pytest.approx(0.03125) and found.adjusted > 0.05
    told = verdict(results, claim)
    assert (
        f"Algorithm 4 {same} than Algorithm 2 on the same images in plain arithmetic (alone on 6 against 0 of" in told
    )
    assert "), and succeeds less often in scaled (alone on 0 against 20 of 50 images, -40.0 points, " in told
    set_attacks(run, ("standard", "4"), ("standard", "2"), "plain", Pairs(264, 36, 0, 0))
    assert "Algorithm 4 succeeds more often than Algorithm 2" in verdict(results, claim)


def test_refreshed_verdict_of_an_attack_that_was_not_run(results, run):
    del run["standard"]["attacks"]["4"]
    claim = "Algorithm 4 is more effective than 2"
    assert verdict(results, claim) == "Not judged: it was not run: --refreshed 10 runs it on 10 images."
    assert row(results, claim).plain == ""


@pytest.mark.parametrize(
    ("median", "told"),
    [
        (-80.0, "is 10^80.0 times smaller (p < 1e-6), where the paper says 10^10 times smaller; "),
        (-10.3, "is 10^10.3 times smaller (p < 1e-6), as the paper says; "),
        (-12.3, "is 10^12.3 times smaller (p < 1e-6), where the paper says 10^10 times smaller; "),
        (-1.0, "is not significantly smaller or larger (p = 1), where the paper says 10^10 times smaller; "),
        (12.3, "is 10^12.3 times larger (p < 1e-6), where the paper says 10^10 times smaller; "),
    ],
)
def test_gradient_verdict(results, run, median, told):
    run["temperature"]["gradient"] = gradient(median, 0.1)
    assert verdict(results, "T = 20 reduces the adversarial gradient") == (
        f"Of these networks, one seed: the median map of the T = 20 network {told}float32 shows exactly 0 for 10% of "
        "the images."
    )


def test_gradient_verdict_is_less_certain_where_seeds_differ(results):
    runs, claim = [a_run(seed) for seed in range(3)], "T = 20 reduces the adversarial gradient"
    for medians, size, paper in (
        ((-12.1, -12.0, -12.2), "is 10^12.1 times smaller (p = 0.0002", "where the paper says"),
        ((-11.0, -12.0, -13.0), "is 10^12.0 times smaller (p = 0.0", "as the paper says"),
        ((-1.0, -12.0, -23.0), "is not significantly smaller or larger (p = 1)", "as the paper says"),
    ):
        for run, median in zip(runs, medians, strict=True):
            run["temperature"]["gradient"] = gradient(median, 0.1, reach=0.1)
        told = verdict(results._replace(runs=runs), claim)
        assert f"the median map of the T = 20 network {size}" in told and f"), {paper}" in told


def test_appendix_verdict(results):
    found = {"mean": -2.29149e-08, "max": 9.783183e-05, "log10_max": -4.0, "moves": 12, "succeeded": True}
    claim = "Appendix A: a saliency map"
    printed = row(results._replace(appendix_a={"plain": found, "scaled": found}), claim)
    assert printed.plain == "mean -2.2915e-08, max 9.78318e-05, 12 moves"
    assert printed.scaled == "largest gradient 10^-4.000, 12 moves"
    assert printed.verdict.startswith("Mean, maximum and moves come out as printed")
    rounded = results._replace(appendix_a={"plain": found | {"max": 9.7831857e-05}, "scaled": found})
    assert "as printed, but for a unit of a last digit, which is rounding: it is" in verdict(rounded, claim)
    for wrong in ({"mean": -5.95e-08}, {"max": 9.78316e-05}, {"moves": 13}, {"succeeded": False}):
        other = results._replace(appendix_a={"plain": found | wrong, "scaled": found})
        assert verdict(other, claim) == "The map that is printed does not come out here."
