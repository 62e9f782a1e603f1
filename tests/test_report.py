"""The verdicts of the report are computed: flip the data and the sentence changes."""

import copy
from html.parser import HTMLParser

import pytest

from experiments import report
from experiments.report import Rate, against, compare


def figures(plain, scaled, trials=200):
    return {
        arithmetic: {"succeeded": round(share * trials), "counted": trials, "mean_moves_of_successes": 20.0}
        for arithmetic, share in (("plain", plain), ("scaled", scaled))
    }


def network(success, correct=990):
    """success: (plain, scaled) of every algorithm."""
    names = ("1", "2", "3", "4", "author", "2 on 4's images")
    return {
        "correct": correct,
        "tested": 1000,
        "attacks": {name: figures(*success) for name in names},
        "gradient": gradient(-80.0, 0.95),
    }


def gradient(median, zero_share, reach=2.0):
    return {
        "median": median,
        "median_interval": (median - reach, median + reach),
        "quantiles": {"5": median - 40, "95": median + 40},
        "plain": {"zero_share": zero_share},
    }


@pytest.fixture
def results():
    networks = {
        "standard": network((0.63, 0.84)),
        "temperature": network((0.04, 0.95)),
        "distilled": network((0.05, 0.94)),
    }
    return {
        "runs": [{"networks": networks}],
        "temperature": 20.0,
        "author": "needs a file",
        "appendix_a": "needs the network",
    }


def verdicts(results):
    return {row.claim: row.verdict for row in report.rows(results)}


def set_success(results, name, algorithm, plain, scaled):
    results["runs"][0]["networks"][name]["attacks"][algorithm] = figures(plain, scaled)


def test_every_row_is_filled_and_a_missing_file_is_named(results):
    table = report.rows(results)
    assert len({row.claim for row in table}) == len(table) == 12
    assert all(cell for row in table for cell in row)
    assert verdicts(results)["Appendix A: a saliency map"] == "Not judged: it needs the network."
    assert table[0].author == "needs a file"


def test_the_author_s_networks_have_a_column_of_their_own(results):
    theirs = {"standard": network((0.11, 0.22)), "temperature": network((0.33, 0.44))}
    results["author"] = {"networks": theirs}
    cells = {row.claim: row.author for row in report.rows(results)}
    assert cells["Algorithm 1 succeeds on the standard network"].startswith("plain: 11.0%")
    assert "; scaled: 22.0%" in cells["Algorithm 1 succeeds on the standard network"]
    assert "temperature: 33.0%" in cells["Temperature, not distillation, makes robust"]


FACTOR = {
    "T = 20 reduces the success rate of Algorithm 1": "1",
    "... and of the attack behind the author's logs": "author",
}
MORE, SAME, WEAKER = (
    "without underflow the T = 20 network is the more robust one",
    "without underflow no difference between the networks is measurable",
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
def test_the_factor_verdict_follows_the_data(results, claim, plain, scaled, relation, truth):
    for name, rates in ("standard", (0.63, 0.84)), ("temperature", (plain, scaled)):
        results["runs"][0]["networks"][name]["attacks"][FACTOR[claim]] = figures(*rates, trials=1000)
    told = f"The paper's factor of 10 is {relation} what plain arithmetic gives here; {truth}"
    assert verdicts(results)[claim] == told


def test_ten_images_do_not_blame_underflow(results):
    """A difference that is measured in plain and not in scaled is no difference between the two."""
    for name, rates in ("standard", (0.9, 0.9)), ("temperature", (0.1, 0.5)):
        results["runs"][0]["networks"][name]["attacks"]["1"] = figures(*rates, trials=10)
    assert verdicts(results)["T = 20 reduces the success rate of Algorithm 1"].endswith(f"; {SAME}.")


def test_nothing_is_judged_without_samples(results):
    for network in results["runs"][0]["networks"].values():
        network["attacks"] = {name: figures(0, 0, trials=0) for name in network["attacks"]}
    judged = [claim for claim, verdict in verdicts(results).items() if not verdict.startswith("Not judged")]
    assert judged == [
        "Accuracy: temperature beats distillation",
        "T = 20 reduces the adversarial gradient",
        "Figures 1 and 2: samples and adversarial samples",
    ]


def test_the_claimed_success_rate_is_judged_by_the_interval(results):
    claim = "Algorithm 1 succeeds on the standard network"
    assert "72% is above what plain" in verdicts(results)[claim]
    assert "succeeds more often, so part of its failures was arithmetic" in verdicts(results)[claim]
    set_success(results, "standard", "1", 0.72, 0.73)
    assert "72% is in line with what plain" in verdicts(results)[claim]
    assert "no other rate is measurable" in verdicts(results)[claim]
    set_success(results, "standard", "1", 0.95, 0.50)
    assert "72% is below what plain" in verdicts(results)[claim]
    assert "it succeeds less often" in verdicts(results)[claim]


def test_more_than_95_percent_is_met_by_any_rate_that_reaches_it(results):
    claim = "Algorithm 2 succeeds on the standard network"
    assert "95% is above" in verdicts(results)[claim]
    set_success(results, "standard", "2", 1.0, 1.0)
    assert "95% is in line with" in verdicts(results)[claim]


@pytest.mark.parametrize(
    ("claim", "algorithm"),
    [("Temperature, not distillation, makes robust", "1"), ("... under the attack behind the author's logs", "author")],
)
def test_distillation_verdict(results, claim, algorithm):
    assert "distillation changes nothing measurable" in verdicts(results)[claim]
    set_success(results, "distilled", algorithm, 0.50, 0.94)
    assert "succeeds more often than against T = 20" in verdicts(results)[claim]
    assert "differ in where float32 ends, and not measurably in robustness" in verdicts(results)[claim]
    set_success(results, "distilled", algorithm, 0.50, 0.50)
    assert "the distilled network is the more robust one" in verdicts(results)[claim]
    set_success(results, "distilled", algorithm, 0.50, 1.0)
    assert "the T = 20 network is the more robust one" in verdicts(results)[claim]


def test_accuracy_verdict(results):
    claim = "Accuracy: temperature beats distillation"
    assert verdicts(results)[claim].startswith("The T = 20 network is not measurably more or less accurate than the d")
    results["runs"][0]["networks"]["distilled"]["correct"] = 900
    assert verdicts(results)[claim].startswith("The T = 20 network is more accurate than the distilled one")
    results["runs"][0]["networks"]["temperature"]["correct"] = 800
    assert verdicts(results)[claim].startswith("The T = 20 network is less accurate than the distilled one")


@pytest.mark.parametrize(
    ("median", "told"),
    [
        (-80.0, "is 10^80.0 times smaller, where the paper says 10^10 times smaller; "),
        (-10.3, "is 10^10.3 times smaller, as the paper says; "),
        (-12.3, "is 10^12.3 times smaller, where the paper says 10^10 times smaller; "),
        (-1.0, "is not measurably smaller or larger, where the paper says 10^10 times smaller; "),
        (2.3, "is 10^2.3 times larger, where the paper says 10^10 times smaller; "),
    ],
)
def test_gradient_verdict(results, median, told):
    results["runs"][0]["networks"]["temperature"]["gradient"] = gradient(median, 0.1)
    assert verdicts(results)["T = 20 reduces the adversarial gradient"] == (
        f"The median map of the T = 20 network {told}float32 shows exactly 0 for 10% of the images."
    )


def test_the_median_of_seeds_that_differ_is_less_certain(results):
    second = copy.deepcopy(results["runs"][0])
    for run, median in zip((results["runs"][0], second), (-13.5, -7.5), strict=True):
        run["networks"]["temperature"]["gradient"] = gradient(median, 0.1, reach=0.1)
    results["runs"].append(second)
    assert "10^10.5 times smaller, as the paper says" in verdicts(results)["T = 20 reduces the adversarial gradient"]


def test_appendix_verdict(results):
    found = {"mean": -2.29149e-08, "max": 9.783183e-05, "log10_max": -4.0, "moves": 12, "succeeded": True}
    results["appendix_a"] = {"plain": found, "scaled": found}
    claim = "Appendix A: a saliency map"
    assert "Mean, maximum and moves come out as printed" in verdicts(results)[claim]
    for wrong in ({"mean": -5.95e-08}, {"max": 9.7836e-05}, {"moves": 13}, {"succeeded": False}):
        results["appendix_a"] = {"plain": found | wrong, "scaled": found}
        assert "does not come out" in verdicts(results)[claim]


def test_algorithm_4_is_compared_on_the_same_images(results):
    claim = "Algorithm 4 is more effective than 2"
    assert verdicts(results)[claim].count("no more and no less often, measurably,") == 2
    set_success(results, "standard", "4", 0.95, 0.84)
    assert "Algorithm 4 succeeds more often than Algorithm 2 in plain" in verdicts(results)[claim]
    set_success(results, "standard", "4", 0.63, 0.1)
    assert verdicts(results)[claim].endswith("less often in scaled.")


def test_algorithm_4_that_was_not_run_is_not_judged(results):
    del results["runs"][0]["networks"]["standard"]["attacks"]["4"]
    assert verdicts(results)["Algorithm 4 is more effective than 2"].startswith("Not judged: not run")


def test_seeds_are_pooled_and_their_spread_is_shown(results):
    second = copy.deepcopy(results["runs"][0])
    second["networks"]["standard"]["attacks"]["1"] = figures(0.73, 0.84)
    results["runs"].append(second)
    pooled = report.rate(results["runs"], "standard", "1", "plain")
    assert (pooled.successes, pooled.trials) == (126 + 146, 400)
    assert "2 seeds: 68.0% +- 7.1%" in str(pooled)
    low, high = Rate(136, 200).interval
    assert pooled.interval[0] < low and high < pooled.interval[1]


def test_seeds_that_agree_are_no_more_samples():
    assert Rate(136 * 3, 200 * 3, (0.68, 0.68, 0.68)).interval == pytest.approx(Rate(136, 200).interval)
    assert Rate(600, 600, (1.0, 1.0, 1.0)).interval == pytest.approx(Rate(200, 200).interval)


def test_verdicts_name_the_temperature_of_the_run(results):
    assert sum("the T = 20 network" in v for v in verdicts(results).values()) > 1
    results["temperature"] = 5.0
    assert not any("T = 20" in verdict for verdict in verdicts(results).values())
    assert sum("T = 5" in verdict for verdict in verdicts(results).values()) > 3


def test_compare_and_against():
    assert compare(Rate(10, 100), Rate(50, 100)) == -1
    assert compare(Rate(50, 100), Rate(10, 100)) == 1
    assert compare(Rate(50, 100), Rate(55, 100)) == 0
    assert against(0.72, Rate(72, 100).interval) == "in line with"
    assert against(0.72, Rate(20, 100).interval) == "above"
    assert against(0.72, Rate(95, 100).interval) == "below"


def test_markdown_and_html_hold_every_row_text_and_picture(results, tmp_path):
    table = report.rows(results)
    picture = tmp_path / "author" / "one.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG")
    text = report.Text("a < b", "introduction", "end")
    sections = [report.Section("Figures", "", []), report.Section("Why", "p < q", [("one & two", picture)])]

    lines = report.markdown(text, table, sections, tmp_path).splitlines()
    assert sum(line.startswith("| ") and line.count(" | ") == 6 for line in lines) == len(table) + 2
    (row,) = (line for line in lines if line.startswith("| Temperature, not distillation"))
    assert row.count("<br>") == 2 and "<br>distilled: 5.0%" in row
    assert {"# a < b", "## Figures", "## Why", "p < q", "![one & two](author/one.png)", "end"} <= set(lines)

    class Page(HTMLParser):
        cells, sources, text = 0, [], []

        def handle_starttag(self, tag, attributes):
            self.cells += tag == "td"
            self.sources += [v for k, v in attributes if k in ("src", "href")]

        def handle_data(self, data):
            self.text.append(data)

    page = Page()
    page.feed(report.page(text, table, sections))
    assert page.cells == 7 * len(table)
    assert page.sources == ["data:image/png;base64,iVBORw=="]
    assert {"a < b", "introduction", "Figures", "Why", "p < q", "one & two", "end"} <= set(page.text)
