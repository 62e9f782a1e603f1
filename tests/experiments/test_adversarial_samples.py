"""python -m experiments.adversarial_samples: controls, the independent classifier, figures, pictures."""

import os
import shutil
import sys

import numpy as np
import pytest

from experiments import adversarial_samples, common
from experiments.adversarial_samples import Classifier, Samples, Seen, change_at_random, describe, measure, section
from minicnn import correct, data
from minicnn.weights import load_npz
from tests.experiments.conftest import PNG, TRAINED, assert_mistake, read_json, succeed


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def made(algorithm="3", arithmetic="scaled"):
    """Five Samples of labels 0 to 4: the network sees 9 in each; the classifier sees labels 0 and 1, 9 in the third,
    others in the rest; in the controls the network sees all labels, the classifier all but one."""
    images, labels = np.zeros((5, 1, 4, 4), np.float32), np.arange(5)
    before = Seen(images, labels, labels)
    adversarial = Seen(images + 0.5, np.full(5, 9), np.array([0, 1, 9, 7, 8]))
    control = Seen(images + 1, labels, np.array([0, 1, 2, 3, 9]))
    pixels = np.array([1, 2, 3, 10, 30])
    return Samples("standard", algorithm, arithmetic, 8, labels + 10, labels, pixels, before, adversarial, control)


def none():
    """Samples of an attack that never succeeded."""
    empty = np.zeros(0, int)
    seen = Seen(np.zeros((0, 1, 4, 4), np.float32), empty, empty)
    return Samples("temperature", "3", "scaled", 8, empty, empty, empty, seen, seen, seen)


def test_change_at_random_changes_as_many_pixels_as_asked(digits):
    """To 0 or the maximum, also of pixels that have one of these values already."""
    images = digits.test_images[:6]
    counts = np.array([0, 1, 30, 200, 783, 784])
    changed = change_at_random(images, counts, 1.0, np.random.default_rng(0))
    assert changed.dtype == np.float32 and changed.shape == images.shape
    assert ((changed != images).sum(axis=(1, 2, 3)) == counts).all()
    assert np.isin(changed[changed != images], (0, 1)).all()


def test_change_at_random_prefers_no_place_and_no_value():
    images = np.full((8000, 1, 2, 2), 0.5, np.float32)
    changed = change_at_random(images, np.ones(8000, int), 1.0, np.random.default_rng(0))
    places = (changed != images).reshape(-1, 4).mean(axis=0)
    assert np.abs(places - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 8000)
    assert abs((changed == 1).sum() / 8000 - 0.5) < 5 * np.sqrt(0.25 / 8000)


def test_change_at_random_has_the_same_places_for_more_pixels(digits):
    images = digits.test_images[:4]
    few, many = (change_at_random(images, np.full(4, n), 1.0, np.random.default_rng(0)) for n in (20, 50))
    assert (many[few != images] == few[few != images]).all()


def test_classifier_sees_the_labels_of_what_it_has_learnt_and_keeps_its_answers(digits, tmp_path, monkeypatch):
    classify = Classifier(digits, common.Store(tmp_path))
    images, labels = digits.train_images[:50], digits.train_labels[:50]
    assert (classify(images, "") == labels).all()
    assert (classify(digits.test_images, "") == digits.test_labels).mean() > 0.97
    monkeypatch.setattr(classify.model, "predict", None)
    assert (classify(images, "") == labels).all()
    with pytest.raises(TypeError):
        classify(images[1:], "")


def test_classifier_takes_no_answers_of_another_training_set(digits, tmp_path):
    image, label = digits.train_images[:1], digits.train_labels[0]
    assert Classifier(digits, common.Store(tmp_path))(image, "") == label
    other = digits._replace(train_labels=(digits.train_labels + 1) % 10)
    assert Classifier(other, common.Store(tmp_path))(image, "") == (label + 1) % 10


def test_classifier_without_scikit_learn_is_a_mistake(untrained, tmp_path, monkeypatch):
    digits = data.load("digits")
    monkeypatch.setattr(common, "load_data", lambda *_: digits)
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    command = ["adversarial_samples", "--networks", untrained / "standard.npz", "--out", tmp_path]
    assert_mistake(command, "sklearn.neighbors", "pip install -e '.[experiments]'")


def test_measure_counts_what_was_seen():
    found = measure(made())
    assert (found["attacked"], found["samples"]) == (8, 5)
    counts = {name: share["count"] for name, share in found["classifier"].items() if "count" in share}
    expected = {"before_as_label": 5, "as_label": 2, "as_network": 1, "as_another": 2, "control_as_label": 4}
    assert counts == expected and found["network"]["control_as_label"]["count"] == 5
    share = found["classifier"]["as_label"]
    assert share["share"] == 0.4 and 0 < share["interval"][0] < 0.4 < share["interval"][1] < 1
    assert found["pixels_changed"]["quantile_0.5"] == 3 and found["pixels_changed"]["median_interval"] == (1, 30)
    difference = found["classifier"]["control_less_adversarial"]
    assert difference["difference"] == pytest.approx(0.4) and difference["p"] == 0.5  # 2 images against none
    assert difference["interval"][0] < 0.4 < difference["interval"][1]
    assert found["by_image"]["index"].tolist() == [10, 11, 12, 13, 14]


def test_measure_of_no_samples():
    found = measure(none())
    assert found["samples"] == 0 and found["pixels_changed"] is None
    assert found["classifier"]["as_label"] == {"count": 0, "share": None, "interval": (0.0, 1.0)}


def test_describe_fits_a_terminal():
    found = {"clean_test_images": {"share": 0.9715}}
    found["attacks"] = {samples.name: measure(samples) for samples in (made(), none())}
    text = str(describe(found))
    assert max(map(len, text.splitlines())) <= 80
    for shown in ("97.15%", "3 (1 to 30)", "1 to 26", "40 (12 to 77)", "20 (4 to 62)", "80 (38 to 96)", "none"):
        assert f" {shown}" in text, shown


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(common, "save_figure", lambda path, fig: saved.append(fig))
    return saved


def test_draw_has_random_samples_above_their_controls(drawn, monkeypatch, tmp_path):
    """Of scaled arithmetic, and of attacks that have any."""
    monkeypatch.setattr(adversarial_samples, "DRAWN", 3)
    adversarial_samples.draw(tmp_path, [made(), made("1", "plain"), none()], seed=0)
    above, below = np.reshape(drawn[0].axes, (2, 4))
    assert [axes.texts[0].get_text() for axes in (above[0], below[0])] == [
        "standard\nAlgorithm 3",
        "as many pixels\nat random",
    ]
    pixels, seen = dict(enumerate((1, 2, 3, 10, 30))), dict(enumerate((0, 1, 9, 7, 8)))
    order = np.random.default_rng(0).permutation(5)[:3]
    for i, top, bottom in zip(order, above[1:], below[1:], strict=True):
        assert top.get_title() == f"label {i}, {pixels[i]} pixels\nseen as 9, k-NN {seen[i]}"
        assert bottom.get_title() == f"seen as {i}, k-NN {i if i < 4 else 9}"
        assert (top.images[0].get_array() == 0.5).all() and (bottom.images[0].get_array() == 1).all()


def test_draw_pixels_has_the_share_of_attacked_images_that_fall(drawn, tmp_path):
    adversarial_samples.draw_pixels(tmp_path, [made(), made("1"), none()])
    first, third = drawn[0].axes
    assert [line.get_label() for line in first.lines] == ["standard, scaled"]
    fallen, never = third.lines
    assert fallen.get_xdata().tolist() == [0, 1, 2, 3, 10, 30, 30]
    assert fallen.get_ydata().tolist() == [0, 12.5, 25, 37.5, 50, 62.5, 62.5]
    assert never.get_ydata().tolist() == [0, 0]


def test_adversarial_samples_command(trained, untrained, digits, tmp_path, monkeypatch):
    """Figures agree with the attacks that they are of; what is computed once is kept."""
    weights = trained[0] / f"{TRAINED}.npz"
    command = ("adversarial_samples", "--networks", weights, untrained / "standard.npz")
    command += ("--first", 20, "--limit", 40, "--seed", 5, "--out", tmp_path)
    out = succeed(*command)
    found = read_json(tmp_path / "adversarial_samples.json")
    names = [f"{n}, {a}, {m}" for n in (TRAINED, "standard") for a in "13" for m in ("plain", "scaled")]
    assert list(found["attacks"]) == names and all(name in out for name in names)
    assert found["sample"]["indices"] == list(range(20)) and found["classifier"] == "3 nearest neighbours"
    assert f"{found['clean_test_images']['share']:.2%}" in out
    right = correct(common.load_network(weights), digits.test_images[:20], digits.test_labels[:20]).sum()
    of_3 = found["attacks"][f"{TRAINED}, 3, scaled"]
    assert of_3["attacked"] == right and 0 < of_3["samples"] <= right
    assert 0 < of_3["pixels_changed"]["quantile_0.5"] <= 40
    seen = [of_3["classifier"][f"as_{name}"]["count"] for name in ("label", "network", "another")]
    assert sum(seen) == of_3["samples"] == len(of_3["by_image"]["classifier"])
    answer, first, second, *described = section(found, tmp_path).whole()
    assert " of the adversarial samples of a network" in answer
    for picture in first, second:
        assert picture.path.read_bytes().startswith(PNG)
    assert all(str(part) in out for part in described if not isinstance(part, str))
    with monkeypatch.context() as patch:
        patch.setattr("minicnn.paper.attacks.attack", None)
        patch.setattr("sklearn.neighbors.KNeighborsClassifier.predict", None)
        assert succeed(*command) == out
    succeed("attack", "--weights", weights, "--algorithm", 3, "--first", 20, "--limit", 40, "--out", tmp_path / "alone")
    alone = load_npz(tmp_path / "alone" / f"attack_{TRAINED}_3_scaled.npz")
    assert alone["pixels_changed"][alone["succeeded"]].tolist() == of_3["by_image"]["pixels_changed"]
    assert alone["decisions"][alone["succeeded"]].tolist() == of_3["by_image"]["network"]


def test_adversarial_samples_show_the_names_of_files(trained, tmp_path, monkeypatch):
    """Whatever they are: no formulas, nothing left out, signs for bytes that are no text."""
    names = {"_x": " _x", "$\\frac$": "$\\frac$", "$a": "$a", os.fsdecode(b"caf\xe9"): "caf?"}
    for name in names:
        shutil.copy(trained[0] / f"{TRAINED}.npz", tmp_path / f"{name}.npz")
    figures, save = [], common.save_figure
    monkeypatch.setattr(common, "save_figure", lambda path, fig: figures.append(fig) or save(path, fig))
    paths = [tmp_path / f"{name}.npz" for name in names]
    succeed("adversarial_samples", "--networks", *paths, "--first", 20, "--limit", 20, "--out", tmp_path)
    (legend,) = figures[1].legends
    expected = [f"{name}, {arithmetic}" for name in names.values() for arithmetic in ("plain", "scaled")]
    assert [shown(text) for text in legend.get_texts()] == expected
    heads = [shown(text) for axes in figures[0].axes for text in axes.texts if "Algorithm" in text.get_text()]
    assert {head.partition("\n")[0] for head in heads} == set(names.values())


def shown(text):
    """What a matplotlib Text draws where no formula is in it."""
    found, math = text._preprocess_math(text.get_text())
    assert math is False
    return found


def test_adversarial_samples_beyond_distances(trained, tmp_path):
    command = ["adversarial_samples", "--networks", trained[0] / f"{TRAINED}.npz", "--first", 20, "--out", tmp_path]
    assert_mistake([*command, "--maximum", "1e20"], "--maximum 1e+20: 3 nearest neighbours measure distances up to")
    succeed(*command, "--limit", 784, "--maximum", "1e17")


def test_adversarial_samples_of_two_networks_of_one_name(untrained, tmp_path):
    path = untrained / "standard.npz"
    command = ["adversarial_samples", "--networks", path, path, "--out", tmp_path]
    assert_mistake(command, "--networks: two are called standard")
