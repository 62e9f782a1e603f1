"""Training: that it learns, that the recipe is what it does, and that a killed run goes on to the same bits.

`python -m tests.test_training CHECKPOINT [MOMENT]` is the run that test_fit_killed_resumes_to_the_same_bits kills.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minicnn import data
from minicnn.autograd import Tensor
from minicnn.backend import to_host
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential
from minicnn.ops import cross_entropy
from minicnn.paper.attacks import attack
from minicnn.paper.saliency import saliency_maps
from minicnn.training import LearningError, Recipe, TrainingError, correct, distilled_labels, evaluate, fit, predict
from minicnn.weights import WeightsError, load_npz, load_sealed, save_npz, save_sealed, save_weights
from tests import IN_NUMPY, opened
from tests.conftest import dense_network, small_cnn

RECIPE = Recipe(temperature=2, batch=8, epochs=3, seed=3, l2={"dense2_W": 0.01})


def samples(n, dtype=np.float32):
    """Noise, brighter in one of three quarters; the label says in which."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, n).astype(np.int32)
    images = rng.random((n, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[0, label // 2 * 4 : label // 2 * 4 + 4, label % 2 * 4 : label % 2 * 4 + 4] += 0.3
    return images.astype(dtype), labels


def weights(network):
    return {name: to_host(p.data) for name, p in network.parameters().items()}


def bits(network):
    return {name: w.tobytes() for name, w in weights(network).items()}


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_fit_learns_digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install scikit-learn")
    digits = data.load("digits")
    images, labels = digits.train_images[:400], digits.train_labels[:400]
    test = digits.test_images[:200], digits.test_labels[:200]
    rng = np.random.default_rng(0)
    network = Sequential(
        conv1=Conv2D(1, 8, 3, rng=rng),
        pool1=MaxPool2D(2),
        flatten=Flatten(),
        dropout1=Dropout(0.25),
        dense1=Dense(8 * 13 * 13, 10, rng=rng),
    )
    before = evaluate(network, *test)
    history = fit(network, images, labels, Recipe(batch=20, epochs=5, learning_rate=0.05), {"test": test})
    assert before[0] < 0.3 and before[1] > 2
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > 0.85
    assert (history[-1]["test_accuracy"], history[-1]["test_loss"]) == evaluate(network, *test)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5] and all(row["seconds"] > 0 for row in history)


def test_fit_takes_the_step_that_the_recipe_says(device):
    """One batch, one step: the mean loss at T, its gradient, Nesterov momentum, the penalty on the parameters named."""
    recipe = Recipe(3, learning_rate=0.2, momentum=0.6, l2={"dense2_W": 0.05, "conv1_b": 0.1}, batch=12, epochs=1)
    images, labels = samples(12, np.float64)
    witness, network = small_cnn(rate=0, dtype=np.float64), small_cnn(rate=0, dtype=np.float64)
    for net in (witness, network):
        net.layers["conv1"].b.data += 1  # a penalty on zeros would not show
    loss = cross_entropy(witness(Tensor(images)), labels, T=3).mean()
    loss.backward()
    (row,) = fit(network.to(device.name), images, labels, recipe)
    assert row["train_loss"] == pytest.approx(float(loss), rel=1e-12)
    for name, p in witness.parameters().items():
        gradient = p.grad + 2 * recipe.l2.get(name, 0) * p.data
        np.testing.assert_allclose(weights(network)[name], p.data - 0.2 * 1.6 * gradient, rtol=1e-11, atol=1e-15)


def test_fit_steps_batches_and_callbacks():
    """21 samples in batches of 8: two steps an epoch, the other five wait for another order."""
    images, labels = samples(21)
    steps, rows = [], []
    fit(small_cnn(), images, labels, RECIPE, on_step=lambda *done: steps.append(done), on_epoch=rows.append)
    assert steps == [(1, 2), (2, 2)] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_fit_has_an_order_and_masks_of_its_own_for_every_epoch():
    """Where nothing is learned, the losses of two epochs differ by their orders and masks alone."""
    images, labels = samples(21)
    still = dataclasses.replace(RECIPE, learning_rate=1e-30, l2={})

    def losses(rate, images, labels, **change):
        recipe = dataclasses.replace(still, **change)
        return [row["train_loss"] for row in fit(small_cnn(rate=rate), images, labels, recipe)]

    by_order = losses(0, images, labels)
    assert len(set(by_order)) == 3  # five of 21 are left out, each time others
    assert set(losses(0, images, labels, seed=4)).isdisjoint(by_order)
    same = np.repeat(images[:1], 8, axis=0), np.repeat(labels[:1], 8)
    assert len(set(losses(0, *same))) == 1
    assert len(set(losses(0.5, *same))) == 3


def test_fit_has_every_bit_fixed_by_the_seed(device):
    images, labels = samples(20)

    def run(**change):
        network = small_cnn().to(device.name)
        history = fit(network, images, labels, dataclasses.replace(RECIPE, **change))
        return bits(network), without_seconds(history)

    first = run()
    assert run() == first
    changes = {"seed": 4, "learning_rate": 0.11, "momentum": 0.4, "temperature": 3, "l2": {"conv1_W": 0.02}}
    for change in ({name: value} for name, value in changes.items()):
        assert run(**change)[0] != first[0]


def test_fit_with_a_captured_step_gives_the_same_bits(device):
    images, labels = samples(20)
    results = []
    for graph in (True, False):
        network = small_cnn().to(device.name)
        history = fit(network, images, labels, RECIPE, {"held": (images, labels)}, graph=graph)
        results.append((bits(network), without_seconds(history)))
    assert results[0] == results[1]


def test_fit_agrees_on_all_devices(device):
    """The same masks and order everywhere, so float64 training agrees to rounding."""
    images, labels = samples(20, np.float64)
    here, there = small_cnn(dtype=np.float64), small_cnn(dtype=np.float64).to(device.name)
    fit(here, images, labels, RECIPE)
    fit(there, images, labels, RECIPE)
    for name, w in weights(here).items():
        assert np.abs(w - weights(there)[name]).max() < 1e-11


def test_fit_does_not_depend_on_numpy_s_error_state(device):
    """What underflows is 0, and no error for one who looks for other errors."""
    images, labels = samples(20)
    recipe = dataclasses.replace(RECIPE, temperature=0.001, learning_rate=1e-5)
    results = []
    for state in ("ignore", "raise"):
        network = small_cnn().to(device.name)
        with np.errstate(all=state):
            history = fit(network, images * 1e-25, labels, recipe, graph=False)
            results.append((bits(network), without_seconds(history)))
    assert results[0] == results[1]


def test_fit_on_soft_labels():
    """One-hot rows are the classes themselves; a teacher's labels are learned from."""
    images, labels = samples(64)
    hard, soft = small_cnn(), small_cnn()
    fit(hard, images, labels, RECIPE)
    fit(soft, images, np.eye(3)[labels], RECIPE)
    for name, w in weights(hard).items():
        np.testing.assert_allclose(w, weights(soft)[name], rtol=1e-5, atol=1e-6)
    recipe = dataclasses.replace(RECIPE, epochs=20, temperature=1)
    teacher, student = small_cnn(rate=0), small_cnn(seed=1, rate=0)
    fit(teacher, images, labels, recipe)
    history = fit(student, images, distilled_labels(teacher, images, T=1), recipe)
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    assert evaluate(student, images, labels)[0] > 0.8


@pytest.mark.parametrize("T", [1, 20])
def test_distilled_labels(device, T):
    network, (images, _) = small_cnn(), samples(10)
    e = np.exp(predict(network, images).astype(np.float64) / T)
    network.to(device.name)
    plain = distilled_labels(network, images, T)
    assert plain.shape == (10, 3) and plain.dtype == np.float32
    np.testing.assert_allclose(plain, e / e.sum(axis=1, keepdims=True), rtol=1e-5)
    dropped = distilled_labels(network, images, T, dropout=1)
    for soft in (plain, dropped):
        np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(dropped, distilled_labels(network, images, T, dropout=1))
    assert not np.array_equal(dropped, distilled_labels(network, images, T, dropout=2))
    assert not np.array_equal(dropped, plain)


def test_evaluate_and_correct():
    network, (images, labels) = small_cnn(), samples(30)
    z = predict(network, images).astype(np.float64)
    for T in (1, 20):
        losses = np.logaddexp.reduce(z / T, axis=1) - z[np.arange(30), labels] / T
        accuracy, loss = evaluate(network, images, labels, T=T)
        assert accuracy == (z.argmax(axis=1) == labels).mean() and 0 < accuracy < 1
        assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert evaluate(network, images, labels, T=20, chunk=7) == (accuracy, loss)
    found = correct(network, images, labels.tolist(), chunk=7)
    assert found.dtype == bool and found.tolist() == (z.argmax(axis=1) == labels).tolist()


def test_evaluate_and_fit_take_as_many_images_at_a_time_as_they_are_told(device, monkeypatch):
    network, (images, labels), sizes = small_cnn().to(device.name), samples(10), []

    class Recorder(Flatten):
        def __call__(self, x, masks=None):
            sizes.append(x.shape[0])
            return super().__call__(x)

    network.layers["flatten"] = Recorder()
    recipe = dataclasses.replace(RECIPE, batch=8, epochs=1)
    monkeypatch.setattr(device.functions, "CHUNK", 7)
    evaluate(network, images, labels)
    evaluate(network, images, labels, chunk=4)
    fit(network, images, labels, recipe, {"test": (images, labels)}, graph=False, chunk=6)
    fit(network, images, labels, recipe, {"test": (images, labels)}, graph=False)
    assert [size for size in sizes if size not in (1, 8, 10)] == [7, 3, 4, 4, 2, 6, 4, 7, 3]
    with pytest.raises(ValueError, match="chunk must be an integer of at least 1, got 0"):
        fit(network, images, labels, recipe, graph=False, chunk=0)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize("learning_rate", [1e6, 1e30], ids=["large", "NaN"])
def test_fit_that_diverges(device, tmp_path, learning_rate):
    images, labels = samples(16)
    checkpoint = tmp_path / "checkpoint.npz"
    recipe = dataclasses.replace(RECIPE, learning_rate=learning_rate)
    found = r"^training diverged in epoch \d, step \d: mean loss (\S+); a learning rate below (\S+) may help$"
    with pytest.raises(LearningError, match=found) as error:
        fit(small_cnn().to(device.name), images, labels, recipe, checkpoint=checkpoint)
    loss, rate = (float(number) for number in re.match(found, str(error.value)).groups())
    assert rate == learning_rate and (loss > 1000 if learning_rate == 1e6 else np.isnan(loss))
    if checkpoint.exists():
        assert all(np.isfinite(a).all() for a in load_npz(checkpoint).values() if a.dtype.kind == "f")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "the temperature T must be positive, got 0"),
        ({"temperature": float("nan")}, ValueError, "the temperature T must be positive, got nan"),
        ({"learning_rate": 0}, TrainingError, "learning_rate must be positive, got 0"),
        ({"learning_rate": float("nan")}, TrainingError, "learning_rate must be positive, got nan"),
        ({"batch": 0}, TrainingError, "batch must be positive, got 0"),
        ({"epochs": -1}, TrainingError, "epochs must be positive, got -1"),
        ({"momentum": 1}, TrainingError, "momentum must be at least 0 and below 1, got 1"),
        ({"l2": {"W": -0.1}}, TrainingError, "the l2 of W must be at least 0, got -0.1"),
        ({"temperature": float("inf")}, ValueError, "the temperature T must be positive and finite, got inf, .*"),
        ({"learning_rate": float("inf")}, TrainingError, "learning_rate must be finite, got inf"),
        ({"l2": {"W": float("inf")}}, TrainingError, "the l2 of W must be finite, got inf"),
        ({"batch": 8.5}, TrainingError, "batch must be an integer, got 8.5"),
        ({"epochs": 2.0}, TrainingError, "epochs must be an integer, got 2.0"),
        ({"seed": 0.5}, TrainingError, "seed must be an integer, got 0.5"),
        ({"seed": -1}, TrainingError, r"seed must be at least 0 and below 2\^64, got -1"),
        ({"batch": True}, TrainingError, "batch must be an integer, got True"),
        ({"batch": float("inf")}, TrainingError, "batch must be an integer, got inf"),
        ({"momentum": "0.5"}, TrainingError, "momentum must be a number, got '0.5'"),
        ({"momentum": np.array([0.5, 0.6])}, TrainingError, r"momentum must be a number, got array\(\[0.5, 0.6\]\)"),
        ({"learning_rate": None}, TrainingError, "learning_rate must be a number, got None"),
        ({"learning_rate": 10**400}, TrainingError, "learning_rate must be a number that fits into a float"),
        ({"l2": {"W": None}}, TrainingError, "the l2 of W must be a number, got None"),
        ({"temperature": [1]}, ValueError, r"the temperature T must be a number, got \[1\]"),
    ],
)
def test_recipe_refuses(change, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Recipe(**change)


def test_recipe_keeps_numbers_as_python_s():
    """An array's number, not its address; and a checkpoint knows them again."""
    plain = dict(temperature=2.0, learning_rate=0.25, momentum=0.5, l2={"W": 0.125}, batch=8, epochs=3, seed=7)
    for of in (np.array, lambda value: np.array([value]), lambda value: np.asarray(value)[()]):
        given = {name: {"W": of(value["W"])} if name == "l2" else of(value) for name, value in plain.items()}
        found = dataclasses.asdict(Recipe(**given))
        assert found == plain and {type(value) for value in found.values()} == {float, int, dict}
        assert type(found["l2"]["W"]) is float


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("T", "message"),
    [
        (1e-46, r"^the temperature T must be positive and finite, got 1e-46, which is 0\.0 in float32$"),
        (1e40, r"^the temperature T must be positive and finite, got 1e\+40, which is inf in float32$"),
        (
            1e-30,
            r"^at temperature 1e-30 the untrained network's loss is \S+ already, at 1 it is \S+: nothing can .*larger",
        ),
        (
            1e-5,
            r"^at temperature 1e-05 the untrained network's loss is \S+ already, at 1 it is \S+: nothing can .*larger",
        ),
        (1e12, "^at temperature 1e.12 all classes have the same probability .* float32: nothing can .* smaller temp"),
        (1e30, "^at temperature 1e.30 all classes have the same probability .* float32: nothing can .* smaller temp"),
    ],
)
def test_fit_says_that_nothing_can_be_learnt_at_a_temperature(device, T, message):
    """And does not advise a lower learning rate, with class labels or soft ones."""
    images, labels = samples(16)
    for targets in (labels, np.eye(3, dtype=np.float32)[labels]):
        network = small_cnn().to(device.name)
        before = bits(network)
        with pytest.raises(ValueError, match=message) as error:
            fit(network, images, targets, dataclasses.replace(RECIPE, temperature=T))
        assert "learning rate" not in str(error.value) and bits(network) == before


def test_fit_that_diverges_at_a_small_temperature_advises_a_larger_one():
    images, labels = samples(16)
    recipe = dataclasses.replace(RECIPE, temperature=0.05, learning_rate=1e3)
    with pytest.raises(LearningError, match="a learning rate below 1000 or a larger temperature may help$"):
        fit(small_cnn(), images, labels, recipe)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fit_refuses_numbers_that_are_not_finite(device, value):
    """They would look like a divergence, for which a lower learning rate is advised."""
    images, labels = samples(16)
    soft = np.eye(3, dtype=np.float32)[labels]
    images[15, 0, 3, 3] = soft[15, 1] = value
    network = small_cnn().to(device.name)
    with pytest.raises(TrainingError, match="^the images hold values that are no finite numbers$"):
        fit(network, images, labels, RECIPE)
    with pytest.raises(TrainingError, match="^the targets hold values that are no finite numbers$"):
        fit(network, samples(16)[0], soft, RECIPE)


LABELS_OF_ANOTHER_KIND = {  # for three images of three classes
    "a column": np.array([[0], [1], [2]]),
    "one too few": np.array([0, 1]),
    "floats": np.array([0.0, 1.0, 2.0]),
    "booleans": np.array([True, False, True]),
    "no class": np.array([0, 1, 3]),
    "negative": np.array([0, 1, -1]),
}


SOFT_LABELS_OF_ANOTHER_KIND = {
    "a column": (np.ones((3, 1), np.float32), r"soft labels must have shape \(3, 3\), got \(3, 1\)"),
    "a class too many": (np.ones((3, 4), np.float32), r"soft labels must have shape \(3, 3\), got \(3, 4\)"),
    "integers": (np.eye(3, dtype=int), "soft labels must have the logits' dtype float32, got int64"),
    "three axes": (np.ones((3, 3, 1), np.float32), r"class labels must have shape \(3,\), .*got \(3, 3, 1\)"),
}


@pytest.mark.parametrize(("labels", "message"), SOFT_LABELS_OF_ANOTHER_KIND.values(), ids=SOFT_LABELS_OF_ANOTHER_KIND)
def test_fit_refuses_soft_labels_of_another_kind(labels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(small_cnn(), samples(3)[0], labels, dataclasses.replace(RECIPE, batch=3))


@pytest.mark.parametrize("labels", LABELS_OF_ANOTHER_KIND.values(), ids=LABELS_OF_ANOTHER_KIND)
def test_evaluate_correct_fit_refuse_labels_of_another_kind(labels):
    """As arrays and as lists; none of them is broadcast or rounded."""
    images, network = samples(3)[0], small_cnn()
    recipe = dataclasses.replace(RECIPE, batch=3)
    for given in (labels, labels.tolist()):
        for call in (
            lambda given=given: evaluate(network, images, given),
            lambda given=given: correct(network, images, given),
            lambda given=given: fit(network, images, given, recipe),
        ):
            with pytest.raises(ValueError, match="labels must|labels of|each image needs one|soft labels"):
                call()


@pytest.mark.parametrize("targets", [1, 1.5, np.array(1)], ids=repr)
def test_fit_refuses_targets_that_are_one_number(targets):
    with pytest.raises(TrainingError, match=f"^targets are one an image, got {targets}$"):
        fit(small_cnn(), samples(16)[0], targets, RECIPE)


@pytest.mark.parametrize("targets", [None, "a", ["a"] * 16, np.ones(16, complex), [None] * 16], ids=str)
def test_fit_refuses_targets_that_are_no_numbers(targets):
    with pytest.raises(TypeError, match="^real numbers are needed, got "):
        fit(small_cnn(), samples(16)[0], targets, RECIPE)


IMAGES_OF_ANOTHER_KIND = {
    "complex": lambda x: x + 1j,
    "dates": lambda x: x.astype("M8[s]"),
    "text": lambda x: x.astype(str),
    "objects": lambda x: x.astype(object),
    "masked": np.ma.array,
}


@pytest.mark.parametrize("change", IMAGES_OF_ANOTHER_KIND.values(), ids=IMAGES_OF_ANOTHER_KIND)
@pytest.mark.parametrize(
    "call",
    [
        lambda x, labels: predict(small_cnn(), x),
        lambda x, labels: evaluate(small_cnn(), x, labels),
        lambda x, labels: fit(small_cnn(), x, labels, RECIPE),
        lambda x, labels: saliency_maps(small_cnn(), x, labels),
        lambda x, labels: attack(small_cnn(), x, labels, "1"),
    ],
    ids=["predict", "evaluate", "fit", "saliency_maps", "attack"],
)
def test_images_that_are_no_real_numbers_are_refused(call, change):
    """NumPy would take the real part, with a warning."""
    images, labels = samples(16)
    with pytest.raises(TypeError, match="^(real numbers are needed, got |a masked array would lose its mask)"):
        call(change(images), labels)


@pytest.mark.parametrize("held_out", [["train"], [1, "1"]], ids=str)
def test_fit_refuses_held_out_sets_whose_columns_the_history_has(held_out):
    images, labels = samples(16)
    network = small_cnn()
    before = bits(network)
    with pytest.raises(TrainingError, match="^the history would have two columns .*: rename a set of held_out$"):
        fit(network, images, labels, RECIPE, {name: (images, labels) for name in held_out})
    assert bits(network) == before


def test_fit_with_a_learning_rate_that_is_0_in_float32_whatever_numpy_is_told():
    network = small_cnn()
    before = bits(network)
    with np.errstate(all="raise"):
        fit(network, *samples(16), dataclasses.replace(RECIPE, learning_rate=1e-60, momentum=0.0))
    assert bits(network) == before


def test_fit_refuses_data():
    images, labels = samples(16)
    with pytest.raises(TrainingError, match="^16 images and 15 targets: each image needs one$"):
        fit(small_cnn(), images, labels[:15], RECIPE)
    with pytest.raises(TrainingError, match="^7 samples are less than one batch of 8$"):
        fit(small_cnn(), images[:7], labels[:7], RECIPE)
    with pytest.raises(ValueError, match=r"^l2 names \['dense3_W'\], the parameters are \['conv1_W', "):
        fit(small_cnn(), images, labels, dataclasses.replace(RECIPE, l2={"dense3_W": 0.01}))
    message = r"^the loss must be one number a sample, \(8,\), got \(\)$"
    with pytest.raises(TrainingError, match=message):
        fit(small_cnn(), images, labels, RECIPE, loss=lambda z, target: cross_entropy(z, target).mean())


@pytest.mark.parametrize("offset", [2**31, 2**32, -(2**33)])
def test_fit_refuses_integer_targets_that_would_wrap(offset):
    """The engine's integers have 32 bits: with a loss of one's own these would train as if they were others."""
    images, labels = samples(20)
    with pytest.raises(TrainingError, match=r"integer targets must be below 2\^31"):
        fit(
            small_cnn(),
            images,
            labels.astype(np.int64) + offset,
            RECIPE,
            loss=lambda z, target: cross_entropy(z, target),
        )


LABELS_REFUSED = {
    "a column": (lambda labels: labels[:, None], r"labels must have shape \((16,|8, 3)\).*, got \(\d+, 1\)$"),
    "floats": (lambda labels: labels.astype(float), "must be integers, got float64"),
    "a class that the network has not": (lambda labels: labels + 1, "labels must be 0 to 2, got 1 to 3"),
    "a negative class": (lambda labels: labels - 1, "labels must be 0 to 2, got -1 to 1"),
}


@pytest.mark.parametrize(("change", "message"), LABELS_REFUSED.values(), ids=LABELS_REFUSED)
@pytest.mark.parametrize(
    "function", [evaluate, correct, partial(fit, recipe=RECIPE)], ids=["evaluate", "correct", "fit"]
)
def test_evaluate_correct_fit_refuse_labels(function, change, message):
    network, (images, labels) = small_cnn(), samples(16)
    assert set(labels) == {0, 1, 2}
    before = bits(network)
    with pytest.raises(ValueError, match=message):
        function(network, images, change(labels))
    assert bits(network) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_in_chunks(dtype):
    network, x = small_cnn(dtype=dtype), samples(7)[0]
    whole = predict(network, x)
    assert whole.shape == (7, 3) and whole.dtype == dtype
    assert np.array_equal(whole, network(Tensor(x.astype(dtype))).data)
    np.testing.assert_allclose(predict(network, x, chunk=3), whole, rtol=1e-5)
    assert predict(network, x[:0]).shape == (0, 3)
    assert all(p.grad is None for p in network.parameters().values())


@pytest.mark.parametrize("function", [predict, partial(correct, labels=samples(3)[1])], ids=["predict", "correct"])
@pytest.mark.parametrize("chunk", [0, -1, 1.5])
def test_predict_refuses_a_chunk_of_no_images(function, chunk):
    with pytest.raises(ValueError, match=f"^chunk must be an integer of at least 1, got {chunk}$"):
        function(small_cnn(), samples(3)[0], chunk=chunk)


def test_predict_with_dropout_takes_another_mask_for_every_chunk():
    network = Sequential(flatten=Flatten(), dropout1=Dropout(0.5), dense1=Dense(64, 3, rng=0))
    x = np.repeat(samples(1)[0], 4, axis=0)
    first = predict(network, x, dropout=1, chunk=2)
    assert np.array_equal(first, predict(network, x, dropout=1, chunk=2))
    assert not np.allclose(first[:2], first[2:]) and not np.allclose(first[0], first[1])
    assert not np.array_equal(first, predict(network, x, dropout=2, chunk=2))


@pytest.mark.parametrize("name", ["cpu", IN_NUMPY])
def test_predict_takes_a_seed_and_a_chunk_of_any_integer_type(name):
    network, images = small_cnn(), samples(20)[0]
    with opened(name):
        expected = predict(network, images, dropout=7, chunk=16)
        for kind in (np.uint8, np.int32, np.array):
            assert np.array_equal(predict(network, images, dropout=kind(7), chunk=kind(16)), expected)


def test_predict_on_every_device(device):
    network, x = small_cnn(dtype=np.float64), samples(3)[0]
    expected = predict(network, x)
    found = predict(network.to(device.name), x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_fit_with_a_loss_of_ones_own(device):
    """Squared error to real targets, with the engine's operators alone, on (N, D)."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(64, 12)), rng.normal(size=(64, 4))

    def squared_error(y, target):
        return ((y - target) ** 2).sum(axis=1)

    witness, network = dense_network(dtype=np.float64), dense_network(dtype=np.float64).to(device.name)
    before = float(squared_error(witness(Tensor(x)), targets).mean())
    recipe = Recipe(learning_rate=0.02, batch=64, epochs=30)
    on_cpu = device.name == "cpu"  # the simulated GPU cannot capture the operators of its arrays
    history = fit(network, x, targets, recipe, loss=squared_error, graph=on_cpu)
    assert history[0]["train_loss"] == pytest.approx(before, rel=1e-12)
    assert history[-1]["train_loss"] < 0.7 * before


def test_fit_resumed_has_the_bits_of_an_uninterrupted_run(device, tmp_path):
    """Two epochs, then two more from their checkpoint by a network that starts anew."""
    images, labels = samples(20)
    held = {"held": (images, labels)}
    short, long = dataclasses.replace(RECIPE, epochs=2), dataclasses.replace(RECIPE, epochs=4)
    whole = small_cnn().to(device.name)
    expected = fit(whole, images, labels, long, held)

    checkpoint = tmp_path / "checkpoint.npz"
    first = fit(small_cnn().to(device.name), images, labels, short, held, checkpoint=checkpoint)
    resumed, steps = small_cnn().to(device.name), []
    history = fit(resumed, images, labels, long, held, checkpoint=checkpoint, on_step=lambda *s: steps.append(s))
    assert len(steps) == 4
    assert history[:2] == first and without_seconds(history) == without_seconds(expected)
    assert bits(resumed) == bits(whole)


def test_fit_of_a_finished_run_trains_nothing(tmp_path):
    images, labels = samples(20)
    checkpoint = tmp_path / "checkpoint.npz"
    network, again = small_cnn(), small_cnn()
    history = fit(network, images, labels, RECIPE, checkpoint=checkpoint)
    before = checkpoint.read_bytes()

    def unexpected(*_):
        raise AssertionError("a finished run goes on")

    assert fit(again, images, labels, RECIPE, checkpoint=checkpoint, on_step=unexpected, on_epoch=unexpected) == history
    assert bits(again) == bits(network) != bits(small_cnn())
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"learning_rate": 0.2}, "learning_rate: 0.1 there, 0.2 now"),
        ({"temperature": 1}, "temperature: 2.0 there, 1.0 now"),
        ({"seed": 4, "batch": 4}, "batch: 8 there, 4 now, seed: 3 there, 4 now"),
        ({"network": small_cnn(seed=1)}, "other data or initial weights"),
        ({"images": samples(20)[0] * 2}, "other data or initial weights"),
        ({"labels": samples(20)[1] % 2}, "other data or initial weights"),
        ({"network": small_cnn(rate=0.4)}, "another network"),
        ({"network": small_cnn(ties="all")}, "another network"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_fit_refuses_the_checkpoint_of_another_run(tmp_path, change, difference):
    images, labels = samples(20)
    checkpoint = tmp_path / "checkpoint.npz"
    fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)
    run = {"network": small_cnn(), "images": images, "labels": labels} | change
    network, images, labels = (run.pop(name) for name in ("network", "images", "labels"))
    recipe = dataclasses.replace(RECIPE, **run)
    before, saved = bits(network), checkpoint.read_bytes()
    message = rf"^{checkpoint} is the checkpoint of another run \({difference}\): remove it or choose another folder$"
    with pytest.raises(TrainingError, match=message):
        fit(network, images, labels, recipe, checkpoint=checkpoint)
    assert bits(network) == before and checkpoint.read_bytes() == saved


def test_fit_refuses_damaged_checkpoints(tmp_path):
    images, labels = samples(20)
    checkpoint = tmp_path / "checkpoint.npz"
    fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    for contents in (whole[:-100], b"", whole[:500] + bytes(100) + whole[600:]):
        checkpoint.write_bytes(contents)
        with pytest.raises(WeightsError, match=f"^{checkpoint}: not a readable .npz file"):
            fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)
        assert checkpoint.read_bytes() == contents
    checkpoint.write_bytes(whole)
    arrays = load_sealed(checkpoint)
    assert {"fingerprint", "history", "weights/dense2_b", "velocity/dense2_b"} < set(arrays)
    save_sealed(checkpoint, {name: array for name, array in arrays.items() if name != "velocity/dense2_b"})
    with pytest.raises(TrainingError, match=f"^{checkpoint} lacks velocity/dense2_b: remove it"):
        fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)
    save_weights(small_cnn(), checkpoint)
    with pytest.raises(WeightsError, match=f"^{checkpoint}: has no digest of its contents, .*: remove it$"):
        fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)


CHANGED = {
    "a history cut short": {"history": np.array("[]")},
    "a row less": {"history": lambda text: np.array(json.dumps(json.loads(str(text))[:1]))},
    "another loss": {"history": lambda text: np.array(str(text).replace('"train_loss": ', '"train_loss": 1'))},
    "a history without an end": {"history": np.array("[" * 100_000)},
    "another weight": {"weights/dense1_b": lambda array: array + 1},
    "no digest, as an older version has it": {"/sha256": None},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_fit_refuses_checkpoints_that_are_not_as_they_were_written(tmp_path, changes):
    """Where all that is in them would fit."""
    images, labels = samples(20)
    checkpoint, network = tmp_path / "checkpoint.npz", small_cnn()
    fit(small_cnn(), images, labels, dataclasses.replace(RECIPE, epochs=2), checkpoint=checkpoint)
    arrays, before = load_npz(checkpoint), bits(network)
    for name, change in changes.items():
        arrays[name] = change(arrays[name]) if callable(change) else change
    save_npz(checkpoint, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(WeightsError, match=f"^{checkpoint}: .* digest .*: remove it$"):
        fit(network, images, labels, RECIPE, checkpoint=checkpoint)
    assert bits(network) == before


def text(change):
    """An array of a checkpoint that holds JSON, changed."""
    return lambda array: np.array(json.dumps(change(json.loads(str(array)))))


def row(**change):
    return text(lambda history: [*history[:-1], history[-1] | change])


FOREIGN = {  # an array of a checkpoint, what it becomes (None: it goes), and what is said of it
    "no fingerprint": ("fingerprint", None, "is no checkpoint of this program"),
    "a fingerprint that is no JSON": ("fingerprint", lambda a: np.array("{"), "is no checkpoint of this program"),
    "a fingerprint that is a number": ("fingerprint", lambda a: np.array("7"), "is no checkpoint of this program"),
    "numbers for a fingerprint": ("fingerprint", lambda a: np.ones((2, 2)), "is no checkpoint of this program"),
    "one setting less": (
        "fingerprint",
        text(lambda f: {k: v for k, v in f.items() if k != "momentum"}),
        r"is the checkpoint of another run \(momentum: None there, 0.5 now\)",
    ),
    "no history": ("history", None, "is no checkpoint of this program"),
    "a history that is no JSON": ("history", lambda a: np.array("[{"), "is no checkpoint of this program"),
    "a history without an end": ("history", lambda a: np.array("[" * 100_000), "is no checkpoint of this program"),
    "no rows": ("history", text(lambda h: []), "has no history of epochs with "),
    "a loss beyond floats": ("history", row(train_loss=-(10**400)), "has no history of epochs with "),
    "a history that is a number": ("history", text(lambda h: 3), "has no history of epochs with epoch, held_accuracy"),
    "a row short": ("history", text(lambda h: h[1:]), "has no history of epochs with "),
    "a row twice": ("history", text(lambda h: [h[0], *h]), "has no history of epochs with "),
    "a row that is a number": ("history", text(lambda h: [*h[:-1], 2]), "has no history of epochs with "),
    "a field more": ("history", row(extra=1), "has no history of epochs with "),
    "a field that is text": ("history", row(held_loss="1"), "has no history of epochs with "),
    "a loss that is NaN": ("history", row(train_loss=float("nan")), "has no history of epochs with "),
    "seconds below 0": ("history", row(seconds=-1), "has no history of epochs with "),
    "no velocity": ("velocity/dense1_W", None, "lacks velocity/dense1_W"),
    "no weight": ("weights/dense1_W", None, "lacks weights/dense1_W"),
    "an array more": ("weights/other", lambda a: np.ones(1), "has an unknown weights/other"),
    "a velocity of another shape": (
        "velocity/dense1_W",
        lambda a: a[:1],
        r"has velocity/dense1_W as float32\(1, 8\), this run as float32\(36, 8\)",
    ),
    "a velocity of one number": (
        "velocity/dense1_b",
        lambda a: a[0],
        r"has velocity/dense1_b as float32\(\), this run as",
    ),
    "a velocity in float64": ("velocity/dense1_W", lambda a: a.astype(np.float64), "has velocity/dense1_W as float64"),
    "a velocity that is NaN": (
        "velocity/dense1_W",
        lambda a: np.full_like(a, np.nan),
        "has values in velocity/dense1_W that are no fin",
    ),
    "weights of another shape": ("weights/dense1_W", lambda a: a.T, r"has weights/dense1_W as float32\(8, 36\)"),
    "weights that are NaN": (
        "weights/conv1_W",
        lambda a: np.full_like(a, np.nan),
        "has values in weights/conv1_W that are no finite",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_fit_refuses_whatever_in_a_checkpoint_does_not_fit(tmp_path, name, change, message):
    """In one line, and neither network nor file is changed."""
    images, labels = samples(20)
    checkpoint, held = tmp_path / "checkpoint.npz", {"held": (images[:5], labels[:5])}
    fit(small_cnn(), images, labels, dataclasses.replace(RECIPE, epochs=2), held, checkpoint=checkpoint)
    arrays = load_sealed(checkpoint)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays.get(name))
    save_sealed(checkpoint, arrays)
    saved, network = checkpoint.read_bytes(), small_cnn()
    before = bits(network)
    with pytest.raises(TrainingError, match=f"^{checkpoint} {message}") as error:
        fit(network, images, labels, RECIPE, held, checkpoint=checkpoint)
    assert str(error.value).endswith(": remove it or choose another folder") and "\n" not in str(error.value)
    assert bits(network) == before and checkpoint.read_bytes() == saved


def test_fit_refuses_a_checkpoint_of_other_held_out_sets_and_of_more_epochs(tmp_path):
    images, labels = samples(20)
    checkpoint = tmp_path / "checkpoint.npz"
    fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint)
    with pytest.raises(
        TrainingError, match=f"^{checkpoint} has no history of epochs with epoch, seconds, test_accuracy, "
    ):
        fit(small_cnn(), images, labels, RECIPE, {"test": (images, labels)}, checkpoint=checkpoint)
    with pytest.raises(
        TrainingError, match=f"^{checkpoint} holds 3 epochs, 1 are asked for: ask for as many or remove"
    ):
        fit(small_cnn(), images, labels, dataclasses.replace(RECIPE, epochs=1), checkpoint=checkpoint)


def half(z, target):
    return cross_entropy(z, target) * 0.5


def test_fit_refuses_the_checkpoint_of_another_loss(tmp_path):
    """By name, and by code or arguments where two have the same name, as lambdas and partial functions have."""
    images, labels = samples(20)
    checkpoint = tmp_path / "checkpoint.npz"
    losses = [
        half,
        None,
        lambda z, target: cross_entropy(z, target) * 0.5,
        lambda z, target: cross_entropy(z, target) * 2,
        partial(cross_entropy, T=3),
        partial(cross_entropy, T=5),
    ]
    for loss in losses:
        fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint, loss=loss)
        assert fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint, loss=loss)
        for other in losses:
            if other is not loss:
                message = (
                    r"of another run \((another code of the loss|(another .*, )?loss: .* there, .* now)\): remove it"
                )
                with pytest.raises(TrainingError, match=message):
                    fit(small_cnn(), images, labels, RECIPE, checkpoint=checkpoint, loss=other)
        checkpoint.unlink()


EPOCHS, STEPS = 9, 6
KILLED_IN = {"fsync": "fsync", "before the rename": "replace", "after the rename": "replace"}


def stepwise_run(checkpoint, moment=None):
    """Train, saying "epoch step" on stdout after every step and going on at a line on stdin; with a moment, end by
    SIGKILL at that moment of the first checkpoint instead."""

    def kill(*arguments):
        if moment == "after the rename":
            rename(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    if moment:
        rename = os.replace
        setattr(os, KILLED_IN[moment], kill)
    images, labels = samples(8 * STEPS + 5)
    epochs = []

    def on_step(done, steps):
        print(len(epochs), done, flush=True)
        sys.stdin.readline()

    recipe = dataclasses.replace(RECIPE, epochs=EPOCHS)
    network = small_cnn()
    held = {"held": (images[:10], labels[:10])}
    print(json.dumps(without_seconds(fit(network, images, labels, recipe, held, checkpoint, on_step, epochs.append))))


def start(checkpoint, *moment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_training", str(checkpoint), *moment],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(checkpoint):
    """Let a run come to its end. Returns the steps that it took, its history, and the arrays of its checkpoint."""
    process = start(checkpoint)
    output, _ = process.communicate("\n" * EPOCHS * STEPS, timeout=60)
    *steps, history = output.splitlines()
    assert process.returncode == 0
    arrays = load_sealed(checkpoint)
    del arrays["history"]  # it holds seconds
    return len(steps), json.loads(history), {name: a.tobytes() for name, a in arrays.items()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL, which this system lacks")
def test_fit_killed_resumes_to_the_same_bits(tmp_path):
    """Killed in the middle of an epoch, around its end at random moments, and at the worst moments of a write."""
    steps, history, expected = finish(tmp_path / "whole.npz")
    assert steps == EPOCHS * STEPS and len(history) == EPOCHS
    checkpoint = tmp_path / "killed.npz"
    rng = np.random.default_rng()
    for after in [3, STEPS, STEPS + 2, STEPS, *rng.integers(1, 2 * STEPS, 2)]:
        process = start(checkpoint)
        for _ in range(after):
            assert process.stdout.readline(), "the run ended before it was killed"
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(rng.uniform(0, 0.01))  # the run goes on to its next step, by way of a checkpoint at an epoch's end
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for moment in KILLED_IN:
        before = checkpoint.read_bytes()
        process = start(checkpoint, moment)
        process.communicate("\n" * STEPS, timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert (checkpoint.read_bytes() != before) == (moment == "after the rename")
    steps, resumed_history, resumed = finish(checkpoint)
    assert 0 < steps <= (EPOCHS - 2) * STEPS
    assert resumed == expected and resumed_history == history


if __name__ == "__main__":
    stepwise_run(*sys.argv[1:])
