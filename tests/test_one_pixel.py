"""Single-pixel changes, recomputed in part, against full forward passes; Algorithms 2 and 4 choose the same moves."""

import numpy as np
import pytest

from minicnn import attacks, backend
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.networks import paper_cnn, predict
from minicnn.one_pixel import OnePixel


def odd_network(dtype=np.float64, seed=3):
    """On 13 x 12 images both pools drop a remainder: 12 x 11 -> 4 x 3 (one with size 3), 3 x 2 -> 1 x 1."""
    shared = {"rng": np.random.default_rng(seed), "dtype": dtype}
    return Sequential(
        conv1=Conv2D(1, 4, 2, **shared),
        pool1=MaxPool2D(3),
        conv2=Conv2D(4, 5, 2, relu=False, **shared),
        pool2=MaxPool2D(2),
        flatten=Flatten(),
        dense1=Dense(5, 6, relu=True, **shared),
        dense2=Dense(6, 3, **shared),
    )


def small_network(dtype, seed=0):
    """A network on 8 x 8 images whose attacks are over soon."""
    shared = {"rng": np.random.default_rng(seed), "dtype": dtype}
    return Sequential(
        conv1=Conv2D(1, 4, 3, **shared),
        conv2=Conv2D(4, 4, 2, **shared),
        pool1=MaxPool2D(2),
        flatten=Flatten(),
        dense1=Dense(16, 3, **shared),
    )


class FullRecomputation:
    """What OnePixel does, by a full forward pass for every change."""

    def __init__(self, network, images):
        self.network, self.images = network, images
        self.logits = predict(network, images)

    def logits_with(self, row, column, chosen, values):
        changed = self.images[chosen]
        changed[:, 0, row, column] = values
        return predict(self.network, changed)


def biased(network, seed=1):
    """The network with random biases, so that nothing is 0 by accident."""
    rng = np.random.default_rng(seed)
    for name, parameter in network.parameters().items():
        if name.endswith("_b"):
            parameter.data[...] = rng.normal(0, 0.1, parameter.shape)
    return network


def worst_error(network, images, pixels, seed=2):
    """The largest relative difference of logits, and how far the changes move the logits."""
    rng = np.random.default_rng(seed)
    partial, full = OnePixel(network, images), FullRecomputation(network, images)
    assert np.array_equal(partial.logits, full.logits)
    worst = moved = 0.0
    for row, column in pixels:
        chosen = rng.integers(0, len(images), 2 * len(images))
        values = rng.random(len(chosen)).astype(images.dtype)
        expected = full.logits_with(row, column, chosen, values)
        error = np.abs(partial.logits_with(row, column, chosen, values) - expected).max() / np.abs(expected).max()
        worst, moved = max(worst, error), max(moved, np.abs(expected - full.logits[chosen]).max())
    return worst, moved


def test_paper_network_at_every_border_and_corner():
    images = np.random.default_rng(0).random((3, 1, 28, 28))
    edges = (0, 1, 2, 3, 13, 24, 25, 26, 27)
    worst, moved = worst_error(biased(paper_cnn(dtype=np.float64)), images, [(r, c) for r in edges for c in edges])
    assert worst < 1e-12 and moved > 1e-4


def test_every_pixel_where_pools_drop_a_remainder():
    images = np.random.default_rng(0).random((4, 1, 13, 12))
    network = biased(odd_network())
    worst, moved = worst_error(network, images, np.ndindex(13, 12))
    assert worst < 1e-12 and moved > 1e-2
    candidates = OnePixel(network, images)
    chosen, values = np.array([2, 0]), np.ones(2)
    assert np.array_equal(candidates.logits_with(12, 11, chosen, values), candidates.logits[chosen])


def test_moves_of_one_image_leave_the_others_alone():
    images = np.random.default_rng(0).random((3, 1, 13, 12))
    candidates, before = OnePixel(odd_network(), images), images.copy()
    first = candidates.logits_with(5, 5, np.array([1]), np.array([1.0]))
    candidates.logits_with(5, 6, np.array([0, 1, 2]), np.zeros(3))
    assert np.array_equal(candidates.logits_with(5, 5, np.array([1]), np.array([1.0])), first)
    assert np.array_equal(images, before)


@pytest.mark.parametrize(
    "layers",
    [
        {"conv1": Conv2D(1, 2, 3, padding="same"), "flatten": Flatten(), "dense1": Dense(128, 2)},
        {"dense1": Dense(64, 2), "flatten": Flatten(), "dense2": Dense(2, 2)},
        {"conv1": Conv2D(1, 2, 8)},
    ],
)
def test_other_networks_are_refused(layers):
    with pytest.raises(ValueError, match="one-pixel changes"):
        OnePixel(Sequential(**layers), np.zeros((1, 1, 8, 8), np.float32))


def attack_with(method, monkeypatch, dtype, algorithm, arithmetic):
    """The attack's result and the scores of its first round."""
    rounds, scorer = [], attacks._Scorer.__call__
    monkeypatch.setattr(attacks, "OnePixel", method)
    monkeypatch.setattr(attacks._Scorer, "__call__", lambda *a: rounds.append(scorer(*a)) or rounds[-1])
    rng = np.random.default_rng(5)
    network = biased(small_network(dtype))
    images = np.where(rng.random((12, 1, 8, 8)) < 0.5, 0, rng.random((12, 1, 8, 8))).astype(dtype)
    labels = predict(network, images).argmax(axis=1)
    setting = attacks.Setting(arithmetic=arithmetic, limit=20)
    result = attacks.attack(network, images, labels, algorithm, setting)
    monkeypatch.undo()
    return result, rounds[0]


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
@pytest.mark.parametrize("algorithm", ["2", "4", "author"])
def test_choices_equal_full_recomputation(algorithm, arithmetic, monkeypatch):
    partial, _ = attack_with(OnePixel, monkeypatch, np.float64, algorithm, arithmetic)
    full, _ = attack_with(FullRecomputation, monkeypatch, np.float64, algorithm, arithmetic)
    assert partial.moves.max() > 1 and partial.succeeded.any()
    for field in ("attacked", "succeeded", "moves", "unchanged_moves", "adversarial"):
        assert np.array_equal(getattr(partial, field), getattr(full, field))
    assert partial.forwards == full.forwards


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_float32_choices_differ_only_between_scores_within_rounding(arithmetic, monkeypatch):
    _, (partial, kinds, _) = attack_with(OnePixel, monkeypatch, np.float32, "2", arithmetic)
    _, (full, full_kinds, _) = attack_with(FullRecomputation, monkeypatch, np.float32, "2", arithmetic)
    _, (exact, exact_kinds, _) = attack_with(FullRecomputation, monkeypatch, np.float64, "2", arithmetic)
    assert partial.dtype == np.float32
    rows = np.arange(len(full))
    choice, full_choice = partial.argmax(axis=1), full.argmax(axis=1)
    chosen, best = exact[rows, choice], exact[rows, full_choice]
    # The scores are differences of losses of order 1, or their logs; float32 rounds such a loss by 6e-8 a step.
    rounding = 2e-6 if arithmetic == "plain" else 2e-6 * np.exp(-best)
    assert np.all(np.abs(chosen - best) <= rounding)
    same = choice == full_choice
    assert np.array_equal(kinds[rows, choice][same], full_kinds[rows, full_choice][same])


def test_device_gives_the_numbers_of_the_cpu(device):
    images = np.random.default_rng(0).random((3, 1, 13, 12))
    expected = OnePixel(odd_network(), images)
    found = OnePixel(odd_network().to(device.name), device.asarray(images))
    chosen, values = np.array([2, 0, 2]), np.array([1.0, 0.5, 0.0])
    for row, column in ((0, 0), (6, 5), (11, 10), (12, 11)):
        logits = found.logits_with(row, column, device.asarray(chosen), device.asarray(values))
        assert np.allclose(
            backend.to_host(logits), expected.logits_with(row, column, chosen, values), rtol=1e-12, atol=1e-14
        )
