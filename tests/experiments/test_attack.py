"""python -m experiments.attack: its figures, the parts that it keeps, and what its rates are counted of."""

import numpy as np

from experiments import common
from minicnn import correct, data
from minicnn.paper.attacks import Setting
from minicnn.weights import load_npz, save_npz
from tests.experiments.conftest import assert_mistake, read_json, succeed


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


def test_attack_keeps_its_parts(untrained, tmp_path):
    """A part on disk is not computed again, which a changed part shows; a damaged one is."""
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 20, "--limit", 4, "--out", tmp_path)

    def figures():
        said, found = succeed(*command), read_json(tmp_path / "attack_standard_1_scaled.json")
        return said, {k: v for k, v in found.items() if k != "date"}

    first = figures()
    (part,) = (tmp_path / "parts").iterdir()
    arrays = load_npz(part)
    save_npz(part, arrays | {"moves": arrays["moves"] + 1000})
    assert figures()[1]["moves_by_image"] == [moves + 1000 for moves in first[1]["moves_by_image"]]
    part.write_bytes(part.read_bytes()[:100])
    assert figures() == first


def test_attack_counts_what_it_is_asked_to(untrained, trained, tmp_path):
    """Of all images, of those that one network gets right, and of those that both do."""
    weights, other = trained[0] / "standard.npz", untrained / "standard.npz"
    digits = data.load("digits")
    right = [
        correct(common.load_network(p), digits.test_images[:60], digits.test_labels[:60]) for p in (weights, other)
    ]
    assert 0 < (right[0] & right[1]).sum() < right[0].sum() < 60
    command = ["attack", "--weights", weights, "--images", 60, "--limit", 5, "--out", tmp_path]
    for denominator, counted in ("correct", right[0]), ("all", np.ones(60)), ("common", right[0] & right[1]):
        out = succeed(*command, "--other", other, "--denominator", denominator)
        figures = read_json(tmp_path / "attack_standard_1_scaled.json")
        assert (figures["denominator"], figures["counted"]) == (denominator, counted.sum())
        assert figures["succeeded"] == (np.array(figures["succeeded_by_image"]) & (counted > 0)).sum()
        assert f"{figures['success_rate']:.1%}" in out
    assert_mistake([*command, "--denominator", "common"], "--other")


def test_attack_has_the_setting_of_the_command(untrained, tmp_path):
    chosen = ("--limit", 2, "--maximum", 1.5, "--attack-temperature", 2, "--skip-unchanged", "--prefer", "lower")
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 4, *chosen, "--ties", "first")
    succeed(*command, "--out", tmp_path)
    found = read_json(tmp_path / "attack_standard_1_scaled.json")
    changed = {"limit": 2, "maximum": 1.5, "T": 2, "skip_unchanged": True, "prefer": "lower"}
    assert found["setting"] == vars(Setting()) | changed and found["ties"] == "first"
