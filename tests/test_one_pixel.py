"""Single-pixel changes, recomputed in part, against full forward passes; Algorithms 2 and 4 choose the same moves."""

import numpy as np
import pytest

from minicnn import attacks, cpu, one_pixel
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

    def logits_with(self, chosen, pixels, values):
        changed = self.images[chosen]
        changed.reshape(len(chosen), -1)[np.arange(len(chosen)), pixels] = values
        return predict(self.network, changed)


def biased(network, seed=1):
    """The network with random biases, so that nothing is 0 by accident."""
    rng = np.random.default_rng(seed)
    for name, parameter in network.parameters().items():
        if name.endswith("_b"):
            parameter.data[...] = rng.normal(0, 0.1, parameter.shape)
    return network


@pytest.fixture(params=[0, one_pixel.FEW, 10**6], ids=["small blocks", "as it comes", "large blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(one_pixel, "FEW", request.param)


def worst_error(network, images, pixels, seed=2):
    """The largest relative difference of logits, and how far the changes move the logits."""
    rng = np.random.default_rng(seed)
    partial, full = OnePixel(network, images), FullRecomputation(network, images)
    assert np.array_equal(partial.logits, full.logits)
    changed = rng.permutation(np.repeat([row * images.shape[3] + column for row, column in pixels], 2 * len(images)))
    chosen = rng.integers(0, len(images), len(changed))
    values = rng.random(len(changed)).astype(images.dtype)
    expected = full.logits_with(chosen, changed, values)
    error = np.abs(partial.logits_with(chosen, changed, values) - expected).max(axis=1) / np.abs(expected).max(axis=1)
    return error.max(), np.abs(expected - full.logits[chosen]).max(axis=1)


def test_paper_network_at_every_border_and_corner(blocks):
    images = np.random.default_rng(0).random((3, 1, 28, 28))
    edges = (0, 1, 2, 3, 13, 24, 25, 26, 27)
    worst, moved = worst_error(biased(paper_cnn(dtype=np.float64)), images, [(r, c) for r in edges for c in edges])
    assert worst < 1e-12 and np.median(moved) > 1e-4


def test_every_pixel_where_pools_drop_a_remainder(blocks):
    images = np.random.default_rng(0).random((4, 1, 13, 12))
    network = biased(odd_network())
    worst, moved = worst_error(network, images, np.ndindex(13, 12))
    assert worst < 1e-12 and (moved > 1e-3).mean() > 0.2
    candidates, last = OnePixel(network, images), np.array([13 * 12 - 1] * 2)
    unchanged = candidates.logits_with(np.array([2, 0]), last, np.ones(2))
    assert np.abs(unchanged - candidates.logits[[2, 0]]).max() < 1e-14


def test_batches_hold_few_changes_each_and_lose_none(monkeypatch):
    monkeypatch.setattr(cpu, "CHANGED_IMAGES", 5)
    worst, _ = worst_error(biased(odd_network()), np.random.default_rng(0).random((4, 1, 13, 12)), np.ndindex(13, 12))
    assert worst < 1e-12


def test_any_number_of_threads_gives_the_same_bits():
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    chosen, pixels = np.divmod(np.arange(3 * 28 * 28), 28 * 28)
    found, before = [], cpu.threads()
    for threads in (1, 2, 3):
        cpu.set_threads(threads)
        candidates = OnePixel(biased(paper_cnn()), images)
        found.append(candidates.logits_with(chosen, pixels, np.ones(len(chosen), np.float32)))
    cpu.set_threads(before)
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_changes_of_one_image_leave_the_others_alone(blocks):
    images = np.random.default_rng(0).random((3, 1, 13, 12))
    candidates, before, pixel = OnePixel(odd_network(), images), images.copy(), np.array([5 * 12 + 5])
    first = candidates.logits_with(np.array([1]), pixel, np.array([1.0]))
    candidates.logits_with(np.array([0, 1, 2]), np.repeat(pixel + 1, 3), np.zeros(3))
    assert np.array_equal(candidates.logits_with(np.array([1]), pixel, np.array([1.0])), first)
    assert np.array_equal(images, before)
    assert candidates.logits_with(np.zeros(0, int), np.zeros(0, int), np.zeros(0)).shape == (0, 3)


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


def test_choices_on_the_papers_network_equal_full_recomputation(monkeypatch):
    network = biased(paper_cnn(seed=2, dtype=np.float64))
    image = np.zeros((1, 1, 28, 28))
    image[:, :, 7:21, 9:19] = np.random.default_rng(3).random((14, 10))
    label = predict(network, image).argmax(axis=1)
    for algorithm, limit in ("2", 12), ("4", 2):
        setting = attacks.Setting(limit=limit)
        partial = attacks.attack(network, image, label, algorithm, setting)
        monkeypatch.setattr(attacks, "OnePixel", FullRecomputation)
        full = attacks.attack(network, image, label, algorithm, setting)
        monkeypatch.undo()
        assert partial.moves > 1 and np.array_equal(partial.adversarial, full.adversarial)


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
    found = OnePixel(odd_network().to(device.name), images)
    chosen, pixels = np.divmod(np.arange(3 * 13 * 12), 13 * 12)
    values = np.random.default_rng(1).random(len(chosen))
    logits = found.logits_with(chosen, pixels, values)
    assert np.allclose(logits, expected.logits_with(chosen, pixels, values), rtol=1e-12, atol=1e-14)
