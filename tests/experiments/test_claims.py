"""The verdicts on the paper's claims are computed: flip the figures and the sentence changes."""

import copy

import pytest

from experiments import claims
from experiments.claims import Missing, Results

ALGORITHMS = ("1", "2", "3", "4", "author", claims.ON_THE_SAME_IMAGES)


def success(plain, scaled, trials=200):
    """What attacks.summary says of an attack that succeeds on these shares of its trials."""
    return {
        arithmetic: {"succeeded": round(share * trials), "counted": trials, "mean_moves_of_successes": 20.0}
        for arithmetic, share in (("plain", plain), ("scaled", scaled))
    }


def gradient(median, zero_share, reach=2.0):
    return {
        "median": median,
        "median_interval": (median - reach, median + reach),
        "quantiles": {"5": median - 40, "95": median + 40},
        "plain": {"zero_share": zero_share},
    }


def network(plain, scaled):
    """A network's figures: every algorithm succeeds as often."""
    return {
        "correct": 990,
        "tested": 1000,
        "attacks": {algorithm: success(plain, scaled) for algorithm in ALGORITHMS},
        "gradient": gradient(-80.0, 0.95),
    }


@pytest.fixture
def run():
    return {"standard": network(0.63, 0.84), "temperature": network(0.04, 0.95), "distilled": network(0.05, 0.94)}


@pytest.fixture
def results(run):
    return Results([run], 20.0, Missing("needs a file"), Missing("needs the network"))


def row(results, claim):
    (found,) = (row for row in claims.rows(results) if row.claim == claim)
    return found


def verdict(results, claim):
    return row(results, claim).verdict


def test_rows_are_filled_and_name_what_is_missing(results):
    table = claims.rows(results)
    assert len({row.claim for row in table}) == len(table) == 12
    assert all(cell for row in table for cell in row)
    assert table[0].author == "needs a file"
    appendix = row(results, "Appendix A: a saliency map")
    assert appendix.author == appendix.plain == appendix.scaled == "needs the network"
    assert appendix.verdict == "Not judged: it needs the network."


def test_rows_have_the_author_s_networks_in_a_column_of_their_own(results):
    theirs = {"standard": network(0.11, 0.22), "temperature": network(0.33, 0.44)}
    results = results._replace(author=theirs)
    assert len(claims.rows(results)) == 12
    column = row(results, "Algorithm 1 succeeds on the standard network").author
    assert column.startswith("plain: 11.0%") and "; scaled: 22.0%" in column
    column = row(results, "Temperature, not distillation, makes robust").author
    assert column.startswith("plain: temperature: 33.0%") and "distilled" not in column
    assert row(results, "Figures 1 and 2: samples and adversarial samples").author.startswith("figures_1_and_2_author")


def test_rows_show_rates_of_both_arithmetics(results):
    def cells(claim):
        found = row(results, claim)
        return found.plain, found.scaled

    plain, scaled = cells("Algorithm 1 succeeds on the standard network")
    assert plain.startswith("63.0% (") and scaled.startswith("84.0% (")
    plain, scaled = cells("T = 20 reduces the success rate of Algorithm 1")
    assert plain.startswith("63.0% (") and " against 4.0% (" in plain and ": factor 15.8 (" in plain
    assert scaled.startswith("84.0% (") and ": factor 0.9 (" in scaled
    plain, scaled = cells("Temperature, not distillation, makes robust")
    assert plain.startswith("temperature: 4.0% (") and "; distilled: 5.0% (" in plain
    assert scaled.startswith("temperature: 95.0% (") and "; distilled: 94.0% (" in scaled
    for cell, rate in zip(cells("Algorithm 4 is more effective than 2"), ("63.0%", "84.0%"), strict=True):
        two, four = cell.split("; ")
        assert two.startswith(f"Algorithm 2: {rate} (") and four.startswith(f"Algorithm 4: {rate} (")
        assert two.endswith(", 20.0 moves") and four.endswith(", 20.0 moves")
    assert cells("T = 20 reduces the adversarial gradient") == (
        "95.0% of maps exactly 0",
        "median 10^-80.0 (10^-82.0 to 10^-78.0) times the standard network's; 5 % to 95 % of images: 10^-120 to 10^-40",
    )


def test_rows_tell_a_factor_without_successes_by_its_lower_bound(results, run):
    run["temperature"]["attacks"]["1"] = success(0, 0)
    assert row(results, "T = 20 reduces the success rate of Algorithm 1").plain.endswith(": factor at least 29.8")


def test_rows_without_samples_are_not_judged(results, run):
    for figures in run.values():
        figures["attacks"] = {algorithm: success(0, 0, trials=0) for algorithm in ALGORITHMS}
    judged = [row.claim for row in claims.rows(results) if not row.verdict.startswith("Not judged")]
    assert judged == [
        "Accuracy: temperature beats distillation",
        "T = 20 reduces the adversarial gradient",
        "Figures 1 and 2: samples and adversarial samples",
    ]
    assert row(results, "Algorithm 1 succeeds on the standard network").plain == "no samples"


def test_rate_pools_the_seeds(run):
    second = copy.deepcopy(run)
    second["standard"]["attacks"]["1"] = success(0.73, 0.84)
    assert claims.rate([run, second], "standard", "1", "plain") == (126 + 146, 400, (0.63, 0.73))


def test_verdicts_name_the_temperature_of_the_run(results):
    assert sum("the T = 20 network" in row.verdict for row in claims.rows(results)) > 1
    table = claims.rows(results._replace(T=5.0))
    assert not any("T = 20" in row.verdict for row in table)
    assert sum("T = 5" in row.verdict for row in table) > 3


def test_accuracy_verdict(results, run):
    claim = "Accuracy: temperature beats distillation"
    assert verdict(results, claim) == (
        "The T = 20 network is not significantly more or less accurate than the distilled one and not significantly "
        "more or less accurate than the standard one."
    )
    run["distilled"]["correct"] = 900
    assert verdict(results, claim).startswith("The T = 20 network is more accurate than the distilled one and not ")
    run["temperature"]["correct"] = 800
    assert verdict(results, claim) == (
        "The T = 20 network is less accurate than the distilled one and less accurate than the standard one."
    )


@pytest.mark.parametrize(
    ("plain", "scaled", "relation", "truth"),
    [
        (0.63, 0.84, "above", "without underflow the same attack succeeds more often, so part of its failures was"),
        (0.72, 0.73, "in line with", "the difference that underflow makes is not significant."),
        (0.95, 0.50, "below", "without underflow it succeeds less often."),
    ],
)
def test_success_verdict_judges_the_claim_by_the_interval(results, run, plain, scaled, relation, truth):
    run["standard"]["attacks"]["1"] = success(plain, scaled)
    told = f"The paper's 72% is {relation} what plain arithmetic gives here; {truth}"
    assert verdict(results, "Algorithm 1 succeeds on the standard network").startswith(told)


@pytest.mark.parametrize("algorithm", ["2", "3"])
def test_success_verdict_on_more_than_95_percent_is_met_by_all_above(results, run, algorithm):
    claim = f"Algorithm {algorithm} succeeds on the standard network"
    assert verdict(results, claim).startswith("The paper's more than 95% is above what plain")
    run["standard"]["attacks"][algorithm] = success(1.0, 1.0)
    assert verdict(results, claim).startswith("The paper's more than 95% is in line with what plain")


FACTOR = {
    "T = 20 reduces the success rate of Algorithm 1": "1",
    "... and of the attack behind the author's logs": "author",
}
MORE, SAME, WEAKER = (
    "without underflow the T = 20 network is the more robust one",
    "without underflow the difference between the networks is not significant",
    "without underflow the T = 20 network is the weaker one",
)


@pytest.mark.parametrize("claim", FACTOR)
@pytest.mark.parametrize(
    ("plain", "scaled", "relation", "truth"),
    [
        (0.06, 0.84, "in line with", f"{SAME}: the robustness was underflow."),
        (0.06, 0.95, "in line with", f"{WEAKER}: the robustness was underflow."),
        (0.06, 0.30, "in line with", f"{MORE}: the rest was underflow."),
        (0.06, 0.08, "in line with", f"{MORE}."),
        (0.20, 0.84, "above", f"{SAME}: the robustness was underflow."),
        (0.001, 0.84, "below", f"{SAME}: the robustness was underflow."),
        (0.62, 0.30, "above", f"{MORE}."),
        (0.62, 0.84, "above", f"{SAME}."),
        (0.62, 0.95, "above", f"{WEAKER}."),
        (0.90, 0.30, "above", f"{MORE}."),
        (0.90, 0.84, "above", f"{SAME}."),
        (0.90, 0.95, "above", f"{WEAKER}."),
    ],
)
def test_factor_verdict(results, run, claim, plain, scaled, relation, truth):
    for name, shares in ("standard", (0.63, 0.84)), ("temperature", (plain, scaled)):
        run[name]["attacks"][FACTOR[claim]] = success(*shares, trials=1000)
    told = f"The paper's factor of 10 is {relation} what plain arithmetic gives here; {truth}"
    assert verdict(results, claim) == told


def test_factor_verdict_on_ten_images_does_not_blame_underflow(results, run):
    """A difference that is significant in plain and not in scaled is no difference between the two."""
    for name, shares in ("standard", (0.9, 0.9)), ("temperature", (0.1, 0.5)):
        run[name]["attacks"]["1"] = success(*shares, trials=10)
    assert verdict(results, "T = 20 reduces the success rate of Algorithm 1").endswith(f"; {SAME}.")


@pytest.mark.parametrize(
    ("claim", "algorithm", "attack"),
    [
        ("Temperature, not distillation, makes robust", "1", "Algorithm 1"),
        ("... under the attack behind the author's logs", "author", "the author's attack"),
    ],
)
def test_distillation_verdict(results, run, claim, algorithm, attack):
    assert verdict(results, claim) == (
        f"Against the distilled network {attack} does not succeed significantly more or less often than against T = 20 "
        "on hard labels in plain arithmetic, and does not succeed significantly more or less often in scaled: "
        "distillation makes no significant difference."
    )
    run["distilled"]["attacks"][algorithm] = success(0.50, 0.94)
    assert f"{attack} succeeds more often than against T = 20" in verdict(results, claim)
    assert "differ in where float32 underflows, and not significantly in robustness" in verdict(results, claim)
    run["distilled"]["attacks"][algorithm] = success(0.50, 0.50)
    assert verdict(results, claim).endswith(
        "succeeds less often in scaled: the distilled network is the more robust one."
    )
    run["distilled"]["attacks"][algorithm] = success(0.50, 1.0)
    assert verdict(results, claim).endswith("succeeds more often in scaled: the T = 20 network is the more robust one.")


def test_refreshed_verdict_compares_on_the_same_images(results, run):
    claim, same = "Algorithm 4 is more effective than 2", "does not succeed significantly more or less often"
    told = "On the same images Algorithm 4 {} than Algorithm 2 in plain arithmetic, and {} in scaled."
    assert verdict(results, claim) == told.format(same, same)
    run["standard"]["attacks"]["4"] = success(0.95, 0.84)
    assert verdict(results, claim) == told.format("succeeds more often", same)
    run["standard"]["attacks"]["4"] = success(0.63, 0.1)
    assert verdict(results, claim) == told.format(same, "succeeds less often")
    run["standard"]["attacks"]["2"] = success(0.0, 0.0)  # over all of its own images
    assert verdict(results, claim) == told.format(same, "succeeds less often")


def test_refreshed_verdict_of_an_attack_that_was_not_run(results, run):
    del run["standard"]["attacks"]["4"]
    claim = "Algorithm 4 is more effective than 2"
    assert verdict(results, claim) == "Not judged: it was not run: --refreshed 10 runs it on 10 images."
    assert row(results, claim).plain == "was not run: --refreshed 10 runs it on 10 images"


@pytest.mark.parametrize(
    ("median", "told"),
    [
        (-80.0, "is 10^80.0 times smaller, where the paper says 10^10 times smaller; "),
        (-10.3, "is 10^10.3 times smaller, as the paper says; "),
        (-12.3, "is 10^12.3 times smaller, where the paper says 10^10 times smaller; "),
        (-1.0, "is not significantly smaller or larger, where the paper says 10^10 times smaller; "),
        (2.3, "is 10^2.3 times larger, where the paper says 10^10 times smaller; "),
    ],
)
def test_gradient_verdict(results, run, median, told):
    run["temperature"]["gradient"] = gradient(median, 0.1)
    assert verdict(results, "T = 20 reduces the adversarial gradient") == (
        f"The median map of the T = 20 network {told}float32 shows exactly 0 for 10% of the images."
    )


def test_gradient_verdict_is_less_certain_where_seeds_differ(results, run):
    second = copy.deepcopy(run)
    for figures, median in ((run, -13.5), (second, -7.5)):
        figures["temperature"]["gradient"] = gradient(median, 0.1, reach=0.1)
    results = results._replace(runs=[run, second])
    assert "10^10.5 times smaller, as the paper says" in verdict(results, "T = 20 reduces the adversarial gradient")


def test_appendix_verdict(results):
    found = {"mean": -2.29149e-08, "max": 9.783183e-05, "log10_max": -4.0, "moves": 12, "succeeded": True}
    claim = "Appendix A: a saliency map"
    printed = row(results._replace(appendix_a={"plain": found, "scaled": found}), claim)
    assert printed.plain == "mean -2.2915e-08, max 9.78318e-05, 12 moves"
    assert printed.scaled == "largest gradient 10^-4.000, 12 moves"
    assert printed.verdict.startswith("Mean, maximum and moves come out as printed")
    for wrong in ({"mean": -5.95e-08}, {"max": 9.7836e-05}, {"moves": 13}, {"succeeded": False}):
        other = results._replace(appendix_a={"plain": found | wrong, "scaled": found})
        assert verdict(other, claim) == "The map that is printed does not come out here."
