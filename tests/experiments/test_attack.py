"""python -m experiments.attack: its figures, the parts that it keeps, and what its rates are counted of."""

import os
import shutil

import numpy as np
import pytest

from experiments import common
from minicnn import correct, data, predict
from minicnn.paper.attacks import Setting
from minicnn.weights import _digest, load_npz, save_npz
from tests.experiments.conftest import PNG, TRAINED, assert_mistake, read_json, run, succeed


def test_attack_writes_figures_that_agree(untrained, tmp_path):
    weights = untrained / "standard.npz"
    options = ("--algorithm", "3", "--arithmetic", "plain", "--first", 20, "--limit", 4)
    out = succeed("attack", "--weights", weights, *options, "--out", tmp_path)
    found = read_json(tmp_path / "attack_standard_3_plain.json")
    assert (found["weights"], found["ties"], found["algorithm"]) == (str(weights), "all", "3")
    assert (found["setting"]["arithmetic"], found["setting"]["limit"]) == ("plain", 4)
    attacked, succeeded = found["attacked_by_image"], found["succeeded_by_image"]
    assert found["images"] == 20 == len(attacked)
    assert found["attacked"] == sum(attacked) == 20 - found["misclassified"] > 0
    assert found["succeeded"] == sum(succeeded)
    assert found["success_rate"] == found["succeeded"] / found["attacked"]
    low, high = found["success_interval"]
    assert 0 <= low <= found["success_rate"] <= high <= 1
    assert found["moves"] == sum(found["moves_by_image"]) > 0 and found["backwards"] == found["attacked"]
    for figure in (found["misclassified"], found["attacked"], f"{found['success_rate']:.1%}", found["forwards"]):
        assert f" {figure}" in out


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_attack_writes_its_samples(trained, digits, tmp_path):
    """Those that its figures are of: the images before and after, what the network sees, which pixels are changed."""
    weights = trained[0] / f"{TRAINED}.npz"
    options = ("--algorithm", 3, "--images", 20, "--limit", 30, "--seed", 2)
    out = succeed("attack", "--weights", weights, *options, "--out", tmp_path)
    found, made = (
        read_json(tmp_path / f"attack_{TRAINED}_3_scaled.json"),
        load_npz(tmp_path / f"attack_{TRAINED}_3_scaled.npz"),
    )
    index = np.random.default_rng(2).permutation(297)[:20]
    assert made["index"].tolist() == index.tolist() == found["sample"]["indices"]
    assert (made["images"] == digits.test_images[index]).all() and (made["labels"] == digits.test_labels[index]).all()
    network = common.load_network(weights)
    assert (made["decisions"] == predict(network, made["adversarial"]).argmax(axis=1)).all()
    assert (made["succeeded"] == (made["attacked"] & (made["decisions"] != made["labels"]))).all()
    assert (made["changed"] == (made["images"] != made["adversarial"])).all()
    pixels = made["pixels_changed"]
    assert (pixels == made["changed"].sum(axis=(1, 2, 3))).all() and (pixels <= made["moves"]).all()
    assert pixels.tolist() == found["pixels_changed_by_image"]
    for name in ("attacked", "succeeded", "moves"):
        assert made[name].tolist() == found[f"{name}_by_image"]
    of_successes = pixels[made["succeeded"]]
    assert found["median_pixels_of_successes"] == np.median(of_successes)
    assert f" {np.median(of_successes):g} in the median, {of_successes.min()} to {of_successes.max()}\n" in out


@pytest.mark.parametrize(("algorithm", "pictures"), [("3", 3), ("author", 2), ("margin", 2)])
def test_attack_shows_one_image(trained, digits, tmp_path, monkeypatch, algorithm, pictures):
    """Before and after, and the map of an algorithm that has one; also an image that is not in the sample."""
    command = ("attack", "--weights", trained[0] / f"{TRAINED}.npz", "--algorithm", algorithm, "--limit", 3)
    succeed(*command, "--first", 1, "--show", 0, "--out", tmp_path)
    ending = "margin" if algorithm == "margin" else f"{algorithm}_scaled"
    assert (tmp_path / f"attack_{TRAINED}_{ending}_0.png").read_bytes().startswith(PNG)
    figures = []
    monkeypatch.setattr(common, "save_figure", lambda path, fig: figures.append(fig))
    network = common.load_network(trained[0] / f"{TRAINED}.npz")
    shown = 1 + int(np.argmax(correct(network, digits.test_images[1:20], digits.test_labels[1:20])))
    out = succeed(*command, "--first", 20, "--show", shown, "--out", tmp_path / "twenty")
    made = load_npz(tmp_path / "twenty" / f"attack_{TRAINED}_{ending}.npz")
    axes = [axes for axes in figures[0].axes if axes.get_label() != "<colorbar>"]
    assert len(axes) == pictures and len(figures[0].axes) == pictures + (pictures == 3)
    assert axes[0].get_title() == f"test image {shown},\nlabel {digits.test_labels[shown]}"
    said = axes[-1].get_title()
    assert f"{f'test image {shown}':33}{said.replace(chr(10), ' ')}\n" in out
    one = {name: array[shown] for name, array in made.items()}
    still = "" if one["succeeded"] else "still "
    assert said == f"{one['moves']} moves, {one['pixels_changed']} pixels changed,\n{still}seen as {one['decisions']}"
    assert (axes[-1].images[0].get_array() == one["adversarial"][0]).all()
    succeed(*command, "--first", 1, "--show", shown, "--out", tmp_path)
    assert said in [axes.get_title() for axes in figures[1].axes]


@pytest.mark.parametrize("name", ["_x", "$\\frac$", os.fsdecode(b"caf\xe9")])
def test_attack_shows_an_image_under_any_name_of_the_network(untrained, tmp_path, name):
    shutil.copy(untrained / "standard.npz", tmp_path / f"{name}.npz")
    succeed("attack", "--weights", tmp_path / f"{name}.npz", "--first", 1, "--limit", 1, "--show", 0, "--out", tmp_path)
    assert (tmp_path / f"attack_{name}_1_scaled_0.png").read_bytes().startswith(PNG)


def test_attack_shows_an_image_that_it_does_not_attack(untrained, digits, tmp_path):
    network = common.load_network(untrained / "standard.npz")
    wrong = np.flatnonzero(~correct(network, digits.test_images, digits.test_labels))[0]
    command = ["attack", "--weights", untrained / "standard.npz", "--first", 1, "--limit", 1, "--out", tmp_path]
    seen = predict(network, digits.test_images[wrong][None]).argmax()
    assert f" not attacked: misclassified before, seen as {seen}\n" in succeed(*command, "--show", wrong)
    for index in (-1, 297):
        assert_mistake([*command, "--show", index], f"--show {index}: digits has test images 0 to 296")


def test_attack_by_stronger_algorithms(untrained, tmp_path):
    """Their files name no arithmetic: they have none."""
    command = ["attack", "--weights", untrained / "standard.npz", "--first", 20, "--limit", 4, "--out", tmp_path]
    for name in ("margin", "jsma"):
        succeed(*command, "--algorithm", name)
        found = read_json(tmp_path / f"attack_standard_{name}.json")
        assert (found["algorithm"], found["unchanged_moves"]) == (name, 0) and found["moves"] > 0
    for option in (("--arithmetic", "plain"), ("--attack-temperature", 2)):
        assert_mistake([*command, "--algorithm", "jsma", *option], "jsma depends on neither --arithmetic nor")


def seal(part, key):
    part = part | {"/key": np.array(key)}
    return part | {"/sha256": np.array(_digest(part))}


def halved(arrays):
    return {name: array[: len(array) // 2] if array.ndim else array for name, array in arrays.items()}


DAMAGE = {
    "another number": lambda arrays: arrays | {"moves": arrays["moves"] + 1000},
    "half of the rows": halved,
    "another dtype": lambda arrays: arrays | {"moves": arrays["moves"].astype(np.int32)},
    "another shape": lambda arrays: arrays | {"adversarial": arrays["adversarial"][:, 0]},
    "fewer arrays": lambda arrays: {name: array for name, array in arrays.items() if name != "zero_scores"},
    "more arrays": lambda arrays: arrays | {"more": np.zeros(1)},
    "no arrays": lambda arrays: {},
    "foreign": lambda arrays: {"moves": np.array(["a", "b"]), "attacked": np.zeros((2, 3))},
    "another key": lambda arrays: seal({k: v for k, v in arrays.items() if k[0] != "/"}, "{}"),
    "no digest": lambda arrays: {name: array for name, array in arrays.items() if name != "/sha256"},
}


@pytest.fixture(scope="module")
def attacked(untrained, tmp_path_factory):
    """An attack's command, its folder, what it said, its results and its part."""
    folder = tmp_path_factory.mktemp("attacked")
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 20, "--limit", 4, "--out", folder)
    said = succeed(*command)
    (part,) = (folder / "parts").iterdir()
    return command, folder, said, part


def results(folder):
    found = read_json(folder / "attack_standard_1_scaled.json")
    return {k: v for k, v in found.items() if k != "date"}


def test_attack_keeps_its_parts(attacked, monkeypatch):
    command, folder, said, _ = attacked
    before = results(folder)
    monkeypatch.setattr("minicnn.paper.attacks.attack", None)
    assert succeed(*command) == said and results(folder) == before


@pytest.mark.parametrize("damage", [*DAMAGE, "truncated", "empty", "flipped", "of another attack", "a zip bomb"])
def test_attack_computes_a_part_again_that_does_not_fit(attacked, untrained, tmp_path, damage):
    command, folder, said, part = attacked
    before, sound = results(folder), part.read_bytes()
    if damage == "of another attack":
        succeed(*command[:-1], tmp_path, "--limit", 3)
        (other,) = (tmp_path / "parts").iterdir()
        part.write_bytes(other.read_bytes())
    elif damage == "flipped":
        part.write_bytes(sound[:-700] + bytes([sound[-700] ^ 1]) + sound[-699:])
    elif damage in ("truncated", "empty"):
        part.write_bytes(sound[: len(sound) // 2 if damage == "truncated" else 0])
    elif damage == "a zip bomb":
        np.savez_compressed(part, moves=np.zeros(2**26))
    else:
        save_npz(part, DAMAGE[damage](load_npz(part)))
    code, out, err = run(*command)
    assert (code, out) == (0, said)
    assert err == f"note: {part} is damaged, or not the part of that name: computed again\n"
    assert results(folder) == before and part.read_bytes() == sound


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(24, "Too many open files", "part")])
def test_attack_takes_no_trouble_of_the_machine_for_damage(attacked, monkeypatch, error):
    command, _, _, part = attacked
    sound = part.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr("minicnn.weights.load_npz", fail)
    assert_mistake(command, "out of memory: no room" if isinstance(error, MemoryError) else "part: Too many open files")
    assert part.read_bytes() == sound


def test_attack_says_what_it_does_of_more_than_there_is(untrained, tmp_path):
    command = ("attack", "--weights", untrained / "standard.npz", "--out", tmp_path)
    code, out, err = run(*command, "--images", 400, "--limit", 1)
    assert code == 0 and "297 test images drawn by seed 0" in out
    assert err == "note: digits has 297 test images, not 400: all of them are taken\n"
    code, out, err = run(*command, "--images", 2, "--limit", 1000)
    path = tmp_path / "attack_standard_1_scaled.json"
    assert code == 0 and read_json(path)["setting"]["limit"] == 784
    replaced = f"note: {path} differs in sample and setting: it is replaced\n"
    assert err == "note: an image has 784 pixels, each is moved once: at most 784 moves, not 1000\n" + replaced


def test_attack_says_which_results_it_replaces(untrained, tmp_path):
    """Those of other images, moves or weights; none of its own, nor what is no JSON."""
    (tmp_path / "standard.npz").write_bytes((untrained / "standard.npz").read_bytes())
    path, command = tmp_path / "attack_standard_1_scaled.json", ("attack", "--first", 2, "--limit", 1)
    ours, theirs = (("--weights", folder / "standard.npz", "--out", tmp_path) for folder in (tmp_path, untrained))
    path.write_text("no JSON")
    for _ in range(2):
        succeed(*command, *ours)
    code, _, err = run(*command, *theirs, "--seed", 1)
    assert (code, err) == (0, f"note: {path} differs in seed and weights: it is replaced\n")
    code, _, err = run("attack", "--first", 3, "--limit", 1, *theirs, "--seed", 1)
    assert (code, err) == (0, f"note: {path} differs in sample: it is replaced\n")
    own = tmp_path / "elsewhere" / "three.json"
    code, _, err = run("attack", "--first", 4, "--limit", 1, *theirs, "--out", tmp_path, "--json", own)
    made = load_npz(own.with_name(f"three_{path.stem}.npz"))
    assert (code, err) == (0, "") and len(made["labels"]) == 4
    assert len(load_npz(path.with_suffix(".npz"))["labels"]) == 3
    code, _, err = run("saliency_maps", "--images", 2, "--limit", 1, *ours)
    assert (code, err) == (0, "")
    code, _, err = run("saliency_maps", "--images", 2, "--limit", 1, *theirs)
    path = tmp_path / "saliency_maps_standard_plain.json"
    assert (code, err) == (0, f"note: {path} differs in weights: it is replaced\n")
    for experiment in ("attack", "saliency_maps"):
        *_, err = run(experiment, "--first", 3, "--limit", 1, *theirs, "--seed", 1, "--ties", "first")
        assert "differs in " in err and "ties" in err


@pytest.mark.parametrize("experiment", ["attack", "saliency_maps"])
def test_attack_that_fails_replaces_nothing_and_says_nothing_of_it(untrained, tmp_path, monkeypatch, experiment):
    command = (experiment, "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    succeed(*command)

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(common, "attack", fail)
    assert_mistake([*command, "--seed", 1, "--ties", "first"], "out of memory: no room")


def test_attack_with_a_seed_is_on_the_network_of_that_seed(untrained, tmp_path):
    (tmp_path / "standard-seed3.npz").write_bytes((untrained / "standard.npz").read_bytes())
    command = ("attack", "--images", 2, "--limit", 1, "--out", tmp_path)
    succeed(*command, "--seed", 3)
    found = read_json(tmp_path / "attack_standard-seed3_1_scaled.json")
    assert found["weights"] == str(tmp_path / "standard-seed3.npz")
    assert_mistake([*command, "--seed", 4], "standard-seed4")


def test_attack_counts_what_it_is_asked_to(trained, tmp_path):
    """Of all images, of those that one network gets right, and of those that both do."""
    weights, other = trained[0] / f"{TRAINED}.npz", tmp_path / "other.npz"
    arrays, digits = load_npz(weights), data.load("digits")
    logits = predict(common.load_network(weights), digits.test_images[:60])
    bias = np.median(logits.max(axis=1) - logits[:, 0])  # which half of them prefer zero for
    save_npz(other, arrays | {"dense3_b": arrays["dense3_b"] + bias * np.eye(10, dtype=np.float32)[0]})
    right = [
        correct(common.load_network(p), digits.test_images[:60], digits.test_labels[:60]) for p in (weights, other)
    ]
    assert 0 < (right[0] & right[1]).sum() < right[0].sum() < 60
    command = ["attack", "--weights", weights, "--first", 60, "--limit", 5, "--out", tmp_path]
    for denominator, counted in ("correct", right[0]), ("all", np.ones(60)), ("common", right[0] & right[1]):
        others = ("--other", other) if denominator == "common" else ()
        code, out, err = run(*command, "--denominator", denominator, *others)
        assert code == 0 and ("differs in denominator: it is replaced" in err) == (denominator != "correct")
        figures = read_json(tmp_path / f"attack_{TRAINED}_1_scaled.json")
        assert (figures["denominator"], figures["counted"]) == (denominator, counted.sum())
        assert figures["succeeded"] == (np.array(figures["succeeded_by_image"]) & (counted > 0)).sum()
        assert f"{figures['success_rate']:.1%}" in out
    (tmp_path / "temperature-T5.npz").write_bytes(other.read_bytes())
    replaced = f"note: {tmp_path / f'attack_{TRAINED}_1_scaled.json'} differs in other: it is replaced\n"
    assert run(*command, "--denominator", "common", "--other", "temperature-T5")[::2] == (0, replaced)
    assert read_json(tmp_path / f"attack_{TRAINED}_1_scaled.json")["other"] == str(tmp_path / "temperature-T5.npz")
    assert read_json(tmp_path / f"attack_{TRAINED}_1_scaled.json")["counted"] == figures["counted"]
    assert_mistake([*command, "--denominator", "common", "--other", "student"], "--other: must be standard or")
    assert_mistake([*command, "--denominator", "common", "--other", "temperature-T6"], "no trained network", "-T6")
    assert_mistake([*command, "--denominator", "common"], "--other")
    for denominator in ("correct", "all"):
        assert_mistake([*command, "--denominator", denominator, "--other", other], "--other", "--denominator common")


def test_attack_has_the_setting_of_the_command(untrained, tmp_path):
    chosen = ("--limit", 2, "--maximum", 1.5, "--attack-temperature", 2, "--skip-unchanged", "--prefer", "lower")
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 4, *chosen, "--ties", "first")
    succeed(*command, "--out", tmp_path)
    found = read_json(tmp_path / "attack_standard_1_scaled.json")
    changed = {"limit": 2, "maximum": 1.5, "T": 2, "skip_unchanged": True, "prefer": "lower"}
    assert found["setting"] == vars(Setting()) | changed and found["ties"] == "first"
