"""python -m experiments.attack: its figures, the parts that it keeps, and what its rates are counted of."""

import numpy as np
import pytest

from experiments import common
from minicnn import correct, data
from minicnn.paper.attacks import Setting
from minicnn.weights import load_npz, save_npz
from tests.experiments.conftest import TRAINED, assert_mistake, read_json, run, succeed


def test_attack_writes_figures_that_agree(untrained, tmp_path):
    weights = untrained / "standard.npz"
    options = ("--algorithm", "3", "--arithmetic", "plain", "--images", 20, "--limit", 4)
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


def seal(part, key):
    return part | {"/key": np.array(key), "/sha256": np.array(common.Store._digest(key, part))}


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
    assert code == 0 and "first 297 test images" in out
    assert err == "note: digits has 297 test images, not 400: all of them are taken\n"
    code, out, err = run(*command, "--images", 2, "--limit", 1000)
    assert code == 0 and read_json(tmp_path / "attack_standard_1_scaled.json")["setting"]["limit"] == 784
    assert err == "note: an image has 784 pixels, each is moved once: at most 784 moves, not 1000\n"


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
    arrays = load_npz(weights)
    save_npz(other, arrays | {"dense3_b": arrays["dense3_b"] + np.eye(10, dtype=np.float32)[0]})  # prefers zeros
    digits = data.load("digits")
    right = [
        correct(common.load_network(p), digits.test_images[:60], digits.test_labels[:60]) for p in (weights, other)
    ]
    assert 0 < (right[0] & right[1]).sum() < right[0].sum() < 60
    command = ["attack", "--weights", weights, "--images", 60, "--limit", 5, "--out", tmp_path]
    for denominator, counted in ("correct", right[0]), ("all", np.ones(60)), ("common", right[0] & right[1]):
        out = succeed(*command, "--denominator", denominator, *(("--other", other) if denominator == "common" else ()))
        figures = read_json(tmp_path / f"attack_{TRAINED}_1_scaled.json")
        assert (figures["denominator"], figures["counted"]) == (denominator, counted.sum())
        assert figures["succeeded"] == (np.array(figures["succeeded_by_image"]) & (counted > 0)).sum()
        assert f"{figures['success_rate']:.1%}" in out
    (tmp_path / "temperature-T5.npz").write_bytes(other.read_bytes())
    succeed(*command, "--denominator", "common", "--other", "temperature-T5")
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
