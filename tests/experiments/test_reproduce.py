"""The main job, in this process, on digits with the committed MNIST networks: nothing is trained that need not be."""

import json
import sys

import numpy as np
import pytest

from experiments import claims, common, figures, masking, reproduce
from experiments.claims import Missing
from minicnn import correct, data
from minicnn.paper import attacks
from minicnn.paper.attacks import ARITHMETICS, Setting
from minicnn.paper.networks import PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import saliency_maps
from tests.experiments import test_claims
from tests.experiments.conftest import PNG, assert_mistake, read_json, succeed
from tests.paper.test_facts import DATA, needs_the_author

TRAINED = common.RESULTS / "mnist"


def command(monkeypatch, *arguments):
    """Run python -m experiments.reproduce with these arguments and what is patched in the module."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
    common.run(reproduce.main, reproduce.command_line(), lambda options: "results.json")


def canned_run():
    return {name: test_claims.network(0.6, 0.8) for name in PAPER_NETWORKS}


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
    arguments = ("--images", 12, "--limit", 3, "--refreshed", 2, "--denominator", "common")
    succeed("reproduce", "--trained", TRAINED, "--out", folder, *arguments)
    return folder


@pytest.fixture(scope="module")
def results(written):
    return read_json(written / "results.json")


def test_reproduce_says_where_its_figures_come_from(results, written):
    assert set(results["versions"]) == {"python", "numpy", "minicnn"}
    assert results["versions"]["numpy"] == np.__version__
    assert results["machine"]["device"] == "cpu" and results["machine"]["cores"] >= results["machine"]["threads"] >= 1
    assert (results["seed"], results["dataset"], results["temperature"]) == (0, "digits", 20.0)
    assert results["command"].startswith(f"python -m experiments.reproduce --trained {TRAINED} --out {written} --")
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


def test_reproduce_attacks_every_network_in_both_arithmetics(results, networks, digits):
    (run,) = results["runs"]
    assert run["seed"] == 0 and run["epochs"] == dict.fromkeys(PAPER_NETWORKS, 20)
    images, labels = digits.test_images[:12], digits.test_labels[:12]
    right = {name: correct(network, digits.test_images, digits.test_labels) for name, network in networks.items()}
    counted = np.logical_and.reduce([right[name][:12] for name in PAPER_NETWORKS])
    assert 0 < counted.sum() < right["standard"][:12].sum()
    everywhere = {"1", "3", "author"}
    for name, network in networks.items():
        found = run["networks"][name]
        assert (found["correct"], found["tested"]) == (right[name].sum(), 297)
        on_standard = {"2", claims.ON_THE_SAME_IMAGES, "4"} if name == "standard" else set()
        assert set(found["attacks"]) == everywhere | on_standard
        for arithmetic in ARITHMETICS:
            result = attacks.attack(network, images, labels, "1", Setting(arithmetic, limit=3))
            expected = json.loads(json.dumps(attacks.summary(result, counted)))
            assert found["attacks"]["1"][arithmetic] == expected


def test_reproduce_compares_algorithms_2_and_4_on_the_same_images(results, networks, digits):
    found = results["runs"][0]["networks"]["standard"]["attacks"]
    result = attacks.attack(
        networks["standard"], digits.test_images[:2], digits.test_labels[:2], "2", Setting("plain", limit=3)
    )
    same = found[claims.ON_THE_SAME_IMAGES]["plain"]
    assert set(same) == set(reproduce.OF_A_RATE) and same["succeeded"] == result.succeeded.sum()
    assert same["counted"] == found["4"]["plain"]["counted"] == 2 and found["4"]["plain"]["images"] == 2
    assert found["2"]["plain"]["images"] == 12


def test_reproduce_measures_gradients_against_the_standard_network(results):
    found = results["runs"][0]["networks"]
    assert "gradient" not in found["standard"]
    for name in ("temperature", "distilled"):
        budget = found[name]["gradient"]
        assert budget["median"] < -10 and budget["T"] == budget["reference_T"] == 1
        assert budget["prediction"]["T"] == 20 and "by_image" not in budget


def test_reproduce_writes_the_table_into_both_reports(results, written):
    (run,) = results["runs"]
    missing = "needs --dataset mnist, on which the author's networks were trained"
    assert results["author"] == results["appendix_a"] == missing
    table = claims.rows(claims.Results([run["networks"]], 20.0, Missing(missing), Missing(missing)))
    assert results["table"] == [row._asdict() for row in table]
    text, page = ((written / name).read_text("utf-8") for name in ("report.md", "report.html"))
    assert all(row.verdict in text for row in table)
    assert "The denominator of success rates: the images that all networks compared classify correctly;" in text
    assert "20 epochs of training, 1 seed. " in text and "2 for Algorithm 4" in text
    assert page.count("<tr>") == 13


def test_reproduce_draws_all_figures(written):
    text, page = ((written / name).read_text("utf-8") for name in ("report.md", "report.html"))
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    expected = [
        "finding",
        "success",
        *(f"figures_1_and_2_{prefix}{a}" for prefix in ("", "temperature_") for a in ARITHMETICS),
    ]
    expected += [name for network in PAPER_NETWORKS for name in (f"saliency_{network}", network)]
    assert pictures == [f"{name}.png" for name in expected]
    assert all((written / name).read_bytes().startswith(PNG) for name in pictures)
    assert page.count("<img ") == page.count("data:image/png;base64,") == len(pictures) and "http" not in page


def test_reproduce_prints_every_verdict(results, written, monkeypatch, capsys):
    """The same command again: it finds all attacks in the folder, and comes to the same figures."""
    monkeypatch.setattr(reproduce, "draw", lambda *arguments: [])
    monkeypatch.setattr(attacks, "attack", None)
    command(monkeypatch, *results["command"].split()[3:], "--json", written / "again.json")
    again, out = read_json(written / "again.json"), capsys.readouterr().out
    assert {k: again[k] for k in again if k not in ("command", "date")} == {
        k: results[k] for k in results if k not in ("command", "date")
    }
    assert all(row["verdict"] in out for row in results["table"])
    assert f"written: {written / 'again.json'}, {written}/report.md and report.html with their figures" in out


@pytest.mark.parametrize("missing", ["distilled.npz", "temperature.csv"])
def test_reproduce_names_the_file_that_trained_lacks(tmp_path, missing):
    for file in (f"{name}.{kind}" for name in PAPER_NETWORKS for kind in ("npz", "csv")):
        if file != missing:
            (tmp_path / file).write_bytes((TRAINED / file).read_bytes())
    assert_mistake(["reproduce", "--trained", tmp_path, "--out", tmp_path / "out"], tmp_path / missing)


def test_reproduce_has_one_seed_of_trained_networks(tmp_path):
    assert_mistake(["reproduce", "--trained", TRAINED, "--seeds", "2", "--out", tmp_path], "--seeds")


def test_reproduce_trains_every_seed_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    found, drawn = [], []

    def find_networks(dataset, protocol, trained, folder, ties):
        found.append((protocol.seed, trained, folder))
        return {"standard": protocol.seed}, {"standard": 10 * protocol.seed}

    monkeypatch.setattr(reproduce, "find_networks", find_networks)
    monkeypatch.setattr(reproduce, "measure", lambda *_: canned_run())
    monkeypatch.setattr(reproduce, "draw", lambda folder, dataset, networks, *_: drawn.append(networks) or [])
    command(monkeypatch, "--seed", 5, "--seeds", 2, "--epochs", 7, "--batch", 50, "--out", tmp_path)
    assert found == [(5, None, tmp_path), (6, None, tmp_path / "seed6")] and drawn == [{"standard": 5}]
    results = read_json(tmp_path / "results.json")
    assert [(run["seed"], run["epochs"]) for run in results["runs"]] == [(5, {"standard": 50}), (6, {"standard": 60})]
    assert "50 to 60 epochs of training, 2 seeds. " in (tmp_path / "report.md").read_text("utf-8")
    assert "2 seeds: 60.0% +- 0.0%" in capsys.readouterr().out
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
    monkeypatch.setattr(reproduce, "find_networks", lambda *_: (networks, dict.fromkeys(networks, 20)))
    monkeypatch.setattr(reproduce, "measure", lambda *_: canned_run())
    monkeypatch.setattr(reproduce, "draw", lambda *_: [])
    for name in networks:
        (tmp_path / f"{name}.npz").write_bytes((TRAINED / f"{name}.npz").read_bytes())
    trained = ("--trained", TRAINED) if take_trained else ()
    command(monkeypatch, *trained, "--masking", "--images", 5, "--limit", 1, "--refreshed", 0, "--out", tmp_path)
    ((heading, found),) = read_json(tmp_path / "results.json")["masking"].items()
    assert heading == "Why temperature seemed to work" and set(found) == {"control"}
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert heading in text and "decisions that differ" in text
    assert (tmp_path / "masking_control.png").read_bytes().startswith(PNG)


def test_image_counts_of_the_defaults_and_of_what_is_asked_for(digits):
    assert reproduce.image_counts(digits, None, None) == {"1": 297, "3": 297, "2": 50, "author": 50, "4": 10}
    assert reproduce.image_counts(digits, 20, None) == {"1": 20, "3": 20, "2": 20, "author": 20, "4": 10}
    assert reproduce.image_counts(digits, 20, 30)["2"] == reproduce.image_counts(digits, 20, 30)["4"] == 30
    assert set(reproduce.image_counts(digits, 5000, 400).values()) == {297}
    assert reproduce.image_counts(digits, None, 0)["4"] == 0


def test_find_networks_trains_them(digits, tmp_path):
    """On 64 samples for an epoch: each at its temperature, the distilled one on its teacher's labels."""
    few = digits._replace(train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    protocol = common.Protocol("digits", T=20.0, epochs=1, batch=32, seed=3)
    networks, epochs = reproduce.find_networks(few, protocol, None, tmp_path, "all")
    assert epochs == dict.fromkeys(PAPER_NETWORKS, 1) and list(networks) == list(PAPER_NETWORKS)
    weights = [tuple(n.parameters()["dense3_W"].data.ravel()) for n in networks.values()]
    assert len(set(weights)) == 3
    for name in PAPER_NETWORKS:
        assert (tmp_path / f"{name}.png").exists()
        assert all((tmp_path / f"{name}-seed3.{kind}").exists() for kind in ("npz", "csv", "checkpoint.npz"))


def test_author_networks_are_missing_by_a_reason(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("MINICNN_DATA", str(tmp_path))
    missing = reproduce.author_networks(digits, "cpu", "all")
    assert missing == Missing("needs --dataset mnist, on which the author's networks were trained")
    missing = reproduce.author_networks(digits._replace(name="mnist"), "cpu", "all")
    assert missing.reason.startswith("needs the author's networks: author_networks/*.npz")


@needs_the_author
def test_appendix_a_comes_out_as_printed(monkeypatch):
    monkeypatch.setenv("MINICNN_DATA", str(DATA))
    mnist = data.load("mnist")
    found = reproduce.appendix_a(reproduce.author_networks(mnist, "cpu", "first")["standard"], mnist)
    assert claims.appendix_verdict(found, "T = 20").startswith("Mean, maximum and moves come out as printed")


def test_draw_finding_shows_the_first_correct_sample_with_a_map_of_zeros(digits, networks, monkeypatch, tmp_path):
    """On the temperature network most plain maps are zero, on a flat copy of it none: the first correct sample then."""
    drawn = []
    monkeypatch.setattr(figures, "draw_finding", lambda *arguments: drawn.append(arguments))
    plan = reproduce.Plan({"1": 40}, Setting(limit=2), "correct", 20.0)
    network = networks["temperature"]
    for scale in (1.0, 0.05):
        reproduce.draw_finding(tmp_path / "finding.png", digits, rescaled(network, scale), plan)
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
