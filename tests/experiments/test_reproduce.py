"""The main job, in this process, on digits with the committed MNIST networks: nothing is trained that need not be."""

import json
import sys

import numpy as np
import pytest

from experiments import claims, common, figures, masking, report, reproduce
from experiments.author_networks import author_networks
from experiments.train import Protocol
from minicnn import correct, data
from minicnn.paper import attacks
from minicnn.paper.attacks import ARITHMETICS, Setting
from minicnn.paper.networks import NETWORKS, PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import summary
from tests.experiments import test_claims
from tests.experiments.conftest import PNG, assert_mistake, read_json, run, succeed
from tests.paper.test_facts import DATA, needs_the_author

TRAINED = common.RESULTS / "mnist"


def run_command(monkeypatch, *arguments):
    """Run python -m experiments.reproduce with these arguments and what is patched in the module."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
    common.run(reproduce.main, reproduce.command_line(), lambda options: "results.json")


def canned_run():
    return {name: test_claims.network(0.6, 0.8, seed) for seed, name in enumerate(PAPER_NETWORKS)}


def trained_folder(folder, names=PAPER_NETWORKS, ending="", without=None):
    """Copies of the committed networks and their curves, NAME + ending, but for one file."""
    for name in names:
        for kind in ("npz", "csv"):
            if f"{name}.{kind}" != without:
                (folder / f"{name}{ending}.{kind}").write_bytes((TRAINED / f"{name}.{kind}").read_bytes())
    return folder


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def networks():
    return {name: common.load_network(TRAINED / f"{name}.npz") for name in PAPER_NETWORKS}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a whole run: 12 images, attacks of at most 3 moves, Algorithm 4 on 2 images."""
    folder = tmp_path_factory.mktemp("reproduce")
    trained = trained_folder(tmp_path_factory.mktemp("networks"))
    arguments = ("--images", 12, "--limit", 3, "--refreshed", 2, "--denominator", "common")
    succeed("reproduce", "--trained", trained, "--out", folder, *arguments)
    return folder


@pytest.fixture(scope="module")
def results(written):
    return read_json(written / "results.json")


def test_reproduce_says_where_its_figures_come_from(results, written):
    assert set(results["versions"]) == {"python", "numpy", "minicnn"}
    assert results["versions"]["numpy"] == np.__version__
    assert results["machine"]["device"] == "cpu" and results["machine"]["cores"] >= results["machine"]["threads"] >= 1
    assert (results["seed"], results["dataset"], results["temperature"]) == (0, "digits", 20.0)
    assert results["command"].startswith("python -m experiments.reproduce --trained ")
    assert results["setting"] == {
        "T": 1.0,
        "limit": 3,
        "maximum": 1.0,
        "minimum": 0.0,
        "skip_unchanged": False,
        "prefer": "raise",
        "chunk": 256,
        "ties": "all",
        "images": {"1": 12, "2": 12, "3": 12, "4": 2, "author": 12},
    }
    assert results["denominator"] == "common" and "recipes" not in results
    assert results["sample"] == {"seed": 0, "count": 12, "indices": results["sample"]["indices"]}


def test_reproduce_attacks_every_network_in_both_arithmetics(results, networks, digits):
    (run,) = results["runs"]
    assert run["seed"] == 0 and run["epochs"] == dict.fromkeys(PAPER_NETWORKS, 50)
    taken = results["sample"]["indices"]
    images, labels = digits.test_images[taken], digits.test_labels[taken]
    right = {name: correct(network, digits.test_images, digits.test_labels) for name, network in networks.items()}
    counted = np.logical_and.reduce([right[name][taken] for name in PAPER_NETWORKS])
    assert 0 < counted.sum() < right["standard"][taken].sum()
    everywhere = {"1", "3", "author"}
    for name, network in networks.items():
        found = run["networks"][name]
        assert (found["correct"], found["tested"]) == (right[name].sum(), 297)
        on_standard = {"2", "4"} if name == "standard" else set()
        assert set(found["attacks"]) == everywhere | on_standard
        for arithmetic in ARITHMETICS:
            result = attacks.attack(network, images, labels, "1", Setting(arithmetic, limit=3))
            expected = json.loads(json.dumps(summary(result, counted)))
            assert found["attacks"]["1"][arithmetic] == expected


def test_reproduce_compares_algorithms_2_and_4_on_the_same_images(results):
    found = results["runs"][0]["networks"]["standard"]["attacks"]
    assert (found["2"]["plain"]["images"], found["4"]["plain"]["images"]) == (12, 2)
    compared = results["comparisons"]["Algorithm 4 is more effective than 2"]
    for arithmetic in ARITHMETICS:
        (pairs,) = compared[arithmetic]["pairs"]
        assert sum(pairs) == found["4"][arithmetic]["counted"] == compared[arithmetic]["n"]
        assert pairs[0] + pairs[1] == found["4"][arithmetic]["succeeded"]


def test_reproduce_compares_outcomes_in_pairs(results, networks, digits):
    """The table of a comparison: on how many images the decisions of both networks are right, of one, of none."""
    right = {name: correct(network, digits.test_images, digits.test_labels) for name, network in networks.items()}
    for other in ("distilled", "standard"):
        a, b = right["temperature"], right[other]
        found = results["comparisons"]["Accuracy: temperature beats distillation"][other]
        assert found["pairs"] == [[(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]]
        assert found["difference"] == pytest.approx((a.sum() - b.sum()) / 297)
        assert (found["unit"], found["n"]) == ("images", 297) and found["p"] <= found["adjusted"]


def test_reproduce_measures_gradients_against_the_standard_network(results):
    found = results["runs"][0]["networks"]
    assert "gradient" not in found["standard"]
    for name in ("temperature", "distilled"):
        budget = found[name]["gradient"]
        assert budget["median"] < -10 and budget["T"] == budget["reference_T"] == 1
        assert budget["prediction"]["T"] == 20 and "by_image" not in budget


def test_reproduce_writes_the_table_into_both_reports(results, written):
    missing = "needs --dataset mnist, on which the author's networks were trained"
    assert results["author"] == results["appendix_a"] == missing
    text, page = ((written / name).read_text("utf-8") for name in ("report.md", "report.html"))
    assert [row["claim"] for row in results["table"]] == [claim.claim for claim in claims.CLAIMS.values()]
    assert all(report.typeset(row["verdict"]) in text for row in results["table"])
    assert "The denominator of success rates: the images that all networks compared classify correctly." in text
    assert "50 epochs on digits, 1 seed, and attacked on up to 12 test images, drawn by seed 0." in text
    assert "2 for Algorithm 4" in text and "for the 16 comparisons of the table of claims (Holm)" in text
    assert page.count("<tr>") == 1 + 12 + 1 + len(PAPER_NETWORKS)
    assert text.count(missing) == page.count(missing) == 2  # where it is looked for, and in its row


def test_reproduce_draws_all_figures(written):
    text, page = ((written / name).read_text("utf-8") for name in ("report.md", "report.html"))
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    expected = ["finding", "success", *PAPER_NETWORKS]
    expected += [f"figures_1_and_2_{prefix}{a}" for prefix in ("", "temperature_") for a in ARITHMETICS]
    expected += [f"saliency_{network}" for network in PAPER_NETWORKS]
    assert pictures == [f"{name}.png" for name in expected]
    assert all((written / name).read_bytes().startswith(PNG) for name in pictures)
    assert page.count("<img ") == page.count("data:image/png;base64,") == len(pictures) and "http" not in page


def test_reproduce_prints_every_verdict(results, written, monkeypatch, capsys):
    """The same command again: it finds all attacks in the folder, and comes to the same figures."""
    monkeypatch.setattr(reproduce, "draw", lambda *arguments: {})
    monkeypatch.setattr(attacks, "attack", None)
    run_command(monkeypatch, *results["command"].split()[3:], "--json", written / "again.json")
    again, out = read_json(written / "again.json"), " ".join(capsys.readouterr().out.split())
    assert {k: again[k] for k in again if k not in ("command", "date")} == {
        k: results[k] for k in results if k not in ("command", "date")
    }
    assert all(row["verdict"] in out for row in results["table"])
    assert (
        f"written: {written / 'again.json'}, {written}/explore.html, report.md and report.html with their figures"
        in out
    )


@pytest.mark.parametrize("missing", ["distilled.npz", "temperature.csv"])
def test_reproduce_names_the_file_that_trained_lacks(tmp_path, missing):
    trained_folder(tmp_path, without=missing)
    assert_mistake(["reproduce", "--trained", tmp_path, "--out", tmp_path / "out"], tmp_path / missing)
    command = ("reproduce", "--trained", tmp_path, "--out", tmp_path / "out")
    assert_mistake([*command, "--seed", 3], "standard-seed3.csv is missing")


def test_reproduce_names_the_file_of_a_seed_before_it_attacks_another(tmp_path):
    trained_folder(trained_folder(tmp_path), ending="-seed1", without="temperature.csv")
    code, out, err = run("reproduce", "--trained", tmp_path, "--seeds", 2, "--out", tmp_path / "out")
    assert (code, out, err) == (2, "", f"error: {tmp_path}/temperature-seed1.csv is missing\n")


@pytest.mark.parametrize(
    "option", [("--epochs", 3), ("--batch", 10), ("--validation", 10), ("--teacher-dropout", "off"), ("--no-graph",)]
)
def test_reproduce_trains_no_trained_networks(tmp_path, option):
    assert_mistake(
        ["reproduce", "--trained", TRAINED, *option, "--out", tmp_path], "--trained", f"leave out {option[0]},"
    )


def test_reproduce_takes_trained_networks_of_several_seeds(tmp_path, monkeypatch, digits):
    """As train names them, on the same images; the network that the paper has not where it is there of every seed."""
    trained_folder(tmp_path, NETWORKS)
    measured = []
    monkeypatch.setattr(
        reproduce, "measure", lambda networks, sample, *_: measured.append((networks, sample)) or canned_run()
    )
    monkeypatch.setattr(reproduce, "draw", lambda *_: {})
    command = ("--trained", tmp_path, "--seeds", 2, "--out", tmp_path / "out")
    for names in PAPER_NETWORKS, NETWORKS:
        trained_folder(tmp_path, names, "-seed1")
        measured.clear()
        run_command(monkeypatch, *command)
        (first, sample), (second, same) = measured
        assert list(first) == list(second) == list(names)
        np.testing.assert_array_equal(sample.indices, same.indices)
        assert sorted(sample.indices) == list(range(297)) != list(sample.indices)
        runs = read_json(tmp_path / "out" / "results.json")["runs"]
        assert [(run["seed"], run["epochs"]) for run in runs] == [(s, dict.fromkeys(names, 50)) for s in (0, 1)]


def test_reproduce_trains_every_seed(tmp_path, monkeypatch, capsys):
    found, drawn = [], []

    def find_networks(names, dataset, protocol, trained, folder, ties):
        found.append((protocol.seed, trained, folder))
        return {"standard": protocol.seed}, {name: [0] * 10 * protocol.seed for name in names}

    def draw(folder, sample, networks, histories, *_):
        assert (tmp_path / "results.json").exists()
        drawn.append((networks, [{name: len(epochs) for name, epochs in history.items()} for history in histories]))
        return {}

    monkeypatch.setattr(reproduce, "find_networks", find_networks)
    monkeypatch.setattr(reproduce, "measure", lambda *_: canned_run())
    monkeypatch.setattr(reproduce, "draw", draw)
    run_command(monkeypatch, "--seed", 5, "--seeds", 2, "--epochs", 7, "--batch", 50, "--out", tmp_path)
    assert found == [(5, None, tmp_path), (6, None, tmp_path)]
    assert drawn == [({"standard": 5}, [dict.fromkeys(PAPER_NETWORKS, epochs) for epochs in (50, 60)])]
    results = read_json(tmp_path / "results.json")
    assert [(run["seed"], run["epochs"]) for run in results["runs"]] == [
        (5, dict.fromkeys(PAPER_NETWORKS, 50)),
        (6, dict.fromkeys(PAPER_NETWORKS, 60)),
    ]
    assert results["seeds"]["temperature"]["Algorithm 1, plain"] == [0.6, 0.6]
    assert results["seeds"]["distilled"]["accuracy"] == [0.99, 0.99]
    text, out = (tmp_path / "report.md").read_text("utf-8"), capsys.readouterr().out
    assert "50 to 60 epochs on digits, 2 seeds, and attacked" in text
    assert "2 seeds: 60.0% +- 0.0%" in out
    for cell in "99.00% +- 0.00%", "60.00% +- 0.00%", "80.00% +- 0.00%":
        assert cell in out and report.typeset(cell) in text
    recipes = results["recipes"]
    assert {name: recipe["temperature"] for name, recipe in recipes.items()} == {
        "standard": 1.0,
        "temperature": 20.0,
        "distilled": 20.0,
    }
    for recipe in recipes.values():
        assert (recipe["epochs"], recipe["batch"], recipe["seed"]) == (7, 50, 5)
        assert recipe["l2"] == {"dense3_W": 0.01}


@pytest.mark.parametrize("take_trained", [True, False], ids=["--trained", "found in the folder"])
def test_reproduce_with_the_masking_study(tmp_path, monkeypatch, networks, take_trained):
    """One part of it: what it finds is in the results and in both reports."""
    monkeypatch.setattr(masking, "PARTS", {"control": masking.PARTS["control"]})
    monkeypatch.setattr(reproduce, "find_networks", lambda names, *_: (networks, dict.fromkeys(names, [{}] * 20)))
    monkeypatch.setattr(reproduce, "measure", lambda *_: canned_run())
    monkeypatch.setattr(reproduce, "draw", lambda *_: {})
    for name in networks:
        (tmp_path / f"{name}.npz").write_bytes((TRAINED / f"{name}.npz").read_bytes())
    trained = ("--trained", TRAINED) if take_trained else ()
    run_command(monkeypatch, *trained, "--masking", "--images", 5, "--limit", 1, "--refreshed", 0, "--out", tmp_path)
    ((heading, found),) = read_json(tmp_path / "results.json")["masking"].items()
    assert heading == "Why temperature seemed to work" and set(found) == {"control"}
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert heading in text and "s = 50" in text and "times 1 to 50 change none of 297 decisions" in text
    assert (tmp_path / "masking_control.png").read_bytes().startswith(PNG)


def test_image_counts_of_the_defaults_and_of_what_is_asked_for(digits):
    counts, none = reproduce.image_counts, {"images": None, "expensive": None, "refreshed": None}
    assert counts(digits, **none) == {"1": 297, "2": 50, "3": 297, "4": 10, "author": 50}
    assert counts(digits, 20, None, None) == {"1": 20, "2": 20, "3": 20, "4": 10, "author": 20}
    assert counts(digits, 20, 100, None) == {"1": 20, "2": 100, "3": 20, "4": 10, "author": 100}
    assert counts(digits, 20, None, 30) == {"1": 20, "2": 30, "3": 20, "4": 30, "author": 20}
    assert set(counts(digits, 5000, 6000, 400).values()) == {297}
    assert counts(digits, None, None, 0)["4"] == 0


def test_find_networks_trains_them(digits, tmp_path):
    """On 64 samples for an epoch: each at its temperature, the distilled one on its teacher's labels. No picture: that
    is for when the results are written."""
    few = digits._replace(train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    protocol = Protocol("digits", T=20.0, epochs=1, batch=32, seed=3)
    networks, histories = reproduce.find_networks(PAPER_NETWORKS, few, protocol, None, tmp_path, "all")
    assert [len(history) for history in histories.values()] == [1, 1, 1]
    assert list(networks) == list(histories) == list(PAPER_NETWORKS)
    weights = [tuple(n.parameters()["dense3_W"].data.ravel()) for n in networks.values()]
    assert len(set(weights)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}-seed3.{kind}" for name in PAPER_NETWORKS for kind in ("npz", "csv", "checkpoint.npz")
    }


@needs_the_author
def test_appendix_a_comes_out_as_printed(monkeypatch):
    monkeypatch.setenv("MINICNN_DATA", str(DATA))
    mnist = data.load("mnist")
    found = reproduce.appendix_a(author_networks("cpu", "first")["standard"], mnist)
    verdict = claims.appendix_verdict(claims.Measured(found, {}), "T = 20")
    assert verdict.startswith("Mean, maximum and moves come out as printed")


def test_draw_finding_shows_the_first_correct_sample_with_a_map_of_zeros(digits, networks, monkeypatch, tmp_path):
    """On the temperature network most plain maps are zero, on a flat copy of it none: the first correct sample then."""
    drawn = []
    monkeypatch.setattr(figures, "draw_finding", lambda *arguments: drawn.append(arguments))
    plan = reproduce.Plan({"1": 40}, Setting(limit=2), "correct", 20.0)
    network, sample = networks["temperature"], common.sample(digits, 297, 0, first=True)
    for scale in (1.0, 0.05):
        reproduce.draw_finding(tmp_path / "finding.png", sample, rescaled(network, scale), plan)
    right = np.flatnonzero(correct(network, digits.test_images[:40], digits.test_labels[:40]))
    (_, image, title, (plain, scaled)), (_, other, _, (flat, _)) = drawn
    (shown,) = np.flatnonzero((digits.test_images[:40] == image).all(axis=(1, 2, 3)))
    assert shown in right and title == f"T = 20 network sees {digits.test_labels[shown]}"
    assert (plain[0], scaled[0]) == ARITHMETICS
    assert not plain[1].maps.any() and scaled[1].maps.any() and flat[1].maps.any()
    assert plain[2].moves == 2
    np.testing.assert_array_equal(other, digits.test_images[right[0]])
    before = right[right < shown]
    found = saliency_maps(network, digits.test_images[before], digits.test_labels[before], arithmetic="plain")
    assert not (found.zeros == 28 * 28).any()
