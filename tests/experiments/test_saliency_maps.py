"""python -m experiments.saliency_maps: one map or several, plain or scaled, and Appendix A."""

import os
import re

import numpy as np
import pytest

from experiments import common
from experiments.saliency_maps import describe
from minicnn import data
from minicnn.paper.saliency import SaliencyMaps, saliency_maps
from tests.experiments.conftest import PNG, assert_mistake, read_json, run, succeed
from tests.paper import test_facts


def one_map(*values, log10_scale=0.0):
    return SaliencyMaps(np.array(values, np.float32).reshape(1, 1, 1, -1), np.array([log10_scale]), np.zeros((1, 10)))


def test_describe_gives_the_true_size_of_a_scaled_map():
    found = describe(one_map(-4, 0, 2, 0, log10_scale=-60.0), 0, index=7, label=3)
    figures = {"index": 7, "label": 3, "mean": -0.5, "max": 2.0, "log10_scale": -60.0, "zeros": 2}
    assert figures.items() <= found.items() and found["log10_max"] == pytest.approx(np.log10(2) - 60, rel=1e-12)
    assert found["map"].shape == (1, 4)


@pytest.mark.parametrize("values", [(0, 0), (-1, 0), (-3, -2)])
def test_describe_knows_no_logarithm_where_nothing_is_above_zero(values):
    assert describe(one_map(*values), 0, index=0, label=0)["log10_max"] is None


def test_saliency_maps_of_one_image(untrained, tmp_path):
    path, weights = tmp_path / "deep" / "down" / "map.json", untrained / "standard.npz"
    out = succeed("saliency_maps", "--weights", weights, "--index", 5, "--out", tmp_path, "--json", path)
    results, digits = read_json(path), data.load("digits")
    image, label = digits.test_images[5:6], digits.test_labels[5:6]
    expected = saliency_maps(common.load_network(weights), image, label, arithmetic="plain").maps[0, 0]
    found = np.array(results["map"])
    assert found.shape == (28, 28)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert (results["index"], results["label"], results["log10_scale"]) == (5, label[0], 0)
    assert results["max"] == found.max() and results["mean"] == pytest.approx(found.mean(), rel=1e-12)
    assert re.search(rf"\n  5 +{label[0]} ", out) and f"{weights}, plain\n" in out
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path.parent) not in line)
    for name in ("saliency_maps", "figures_1_and_2"):
        assert path.with_name(f"map_{name}_standard_plain.png").read_bytes().startswith(PNG)


def test_saliency_maps_of_a_saturated_network(untrained, tmp_path):
    """The plain map is exactly zero; the scaled one has a size that float32 cannot hold beside it."""
    weights, digits = untrained / "saturated.npz", data.load("digits")
    case = digits.test_images[:50], digits.test_labels[:50]
    zeros = saliency_maps(common.load_network(weights), *case, arithmetic="plain").zeros
    command = ("saliency_maps", "--weights", weights, "--index", np.flatnonzero(zeros == 28 * 28)[0], "--out", tmp_path)
    out = succeed(*command)
    plain = read_json(tmp_path / "saliency_maps_saturated_plain.json")
    assert not np.any(plain["map"]) and (plain["mean"], plain["max"], plain["log10_max"]) == (0, 0, None)
    assert " none " in out
    succeed(*command, "--arithmetic", "scaled")
    scaled = read_json(tmp_path / "saliency_maps_saturated_scaled.json")
    assert np.abs(scaled["map"]).max() > 1
    assert scaled["log10_scale"] < -45  # the smallest float32
    assert scaled["log10_max"] == pytest.approx(np.log10(np.max(scaled["map"])) + scaled["log10_scale"], rel=1e-12)


def test_saliency_maps_of_drawn_images_and_of_the_first(untrained, tmp_path):
    command = ("saliency_maps", "--weights", untrained / "standard.npz", "--limit", 1, "--seed", 3, "--out", tmp_path)
    drawn = common.sample(data.load("digits"), 2, 3).indices.tolist()
    for option, indices in ("--first", [0, 1]), ("--images", drawn):
        out = succeed(*command, option, 2)
        results = read_json(tmp_path / "saliency_maps_standard_plain.json")
        assert [entry["index"] for entry in results["maps"]] == indices
        assert all(f"\n  {index} " in out for index in indices)


def test_saliency_maps_of_each_network_and_arithmetic_have_files_of_their_own(untrained, tmp_path):
    folder = tmp_path / os.fsdecode(b"formulas $x^$ and ${, caf\xe9")  # neither mathematics nor UTF-8
    weights = [untrained / f"{name}.npz" for name in ("standard", "saturated")]
    expected = set()
    for path in weights:
        for arithmetic in ("plain", "scaled"):
            copy = folder / path.name
            folder.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
            command = ("--weights", copy, "--images", 2, "--limit", 1, "--arithmetic", arithmetic)
            succeed("saliency_maps", *command, "--out", tmp_path)
            name = f"{path.stem}_{arithmetic}"
            expected |= {f"saliency_maps_{name}.json", f"saliency_maps_{name}.png", f"figures_1_and_2_{name}.png"}
    assert {path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".png")} == expected


@pytest.mark.slow
def test_saliency_maps_of_many_images_draw_the_first(untrained, tmp_path):
    """The JSON holds them all; a picture as wide as all is none that matplotlib makes."""
    command = ("saliency_maps", "--weights", untrained / "standard.npz", "--images", 42, "--limit", 1)
    code, _, err = run(*command, "--out", tmp_path)
    assert (code, err) == (0, "note: the pictures show the first 10 of the 42 images\n")
    assert len(read_json(tmp_path / "saliency_maps_standard_plain.json")["maps"]) == 42
    assert (tmp_path / "saliency_maps_standard_plain.png").read_bytes().startswith(PNG)


def test_saliency_maps_keep_their_attack(untrained, tmp_path, monkeypatch):
    command = ("saliency_maps", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    first = succeed(*command)
    monkeypatch.setattr("minicnn.paper.attacks.attack", None)
    assert succeed(*command) == first


@pytest.mark.parametrize("index", [-1, 297])
def test_saliency_maps_of_an_image_that_is_not_there(untrained, tmp_path, index):
    arguments = ["saliency_maps", "--weights", untrained / "standard.npz", "--index", index, "--out", tmp_path]
    assert_mistake(arguments, f"--index {index}", "0 to 296")


@pytest.mark.parametrize("option", ["--images", "--first"])
def test_saliency_maps_of_one_image_and_of_several(untrained, tmp_path, option):
    arguments = ["saliency_maps", "--weights", untrained / "standard.npz", "--index", 1, option, 2]
    assert_mistake([*arguments, "--out", tmp_path], "--index", option)


@test_facts.needs_the_author
def test_saliency_maps_make_appendix_a(tmp_path, monkeypatch):
    """Mean, maximum and the number of moves as the paper prints them."""
    monkeypatch.setenv("MINICNN_DATA", str(test_facts.DATA))
    weights = test_facts.AUTHOR / "standard.npz"
    arguments = ("--weights", weights, "--index", 2659, "--ties", "all", "--arithmetic", "plain", "--out", tmp_path)
    out = succeed("saliency_maps", "--dataset", "mnist", *arguments)
    results = read_json(tmp_path / "saliency_maps_standard_plain.json")
    assert results["trained_at"] is None  # the author's file does not say
    assert (results["index"], results["label"]) == (2659, 4)
    assert (f"{results['mean']:.4e}", f"{results['max']:.5e}") == ("-2.2915e-08", "9.78318e-05")
    assert results["algorithm_1"] == {"succeeded": True, "moves": 12}
    assert "succeeds at 12" in out
