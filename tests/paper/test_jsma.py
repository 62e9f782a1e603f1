"""JSMA against Algorithms 2 and 3 of Papernot et al. (2016), one image and one target at a time, in float64."""

import dataclasses
import itertools

import numpy as np
import pytest

from minicnn.layers import Conv2D, Dense, Flatten, Sequential
from minicnn.paper.attacks import AttackError, AttackResult, Setting
from minicnn.paper.jsma import best_pair, jsma
from minicnn.training import predict
from tests.conftest import dense_network
from tests.paper.test_attacks import STEP, samples, small

directions = pytest.mark.parametrize("lowers", [False, True], ids=["raises", "lowers"])


def two_channels():
    rng = np.random.default_rng(3)
    shared = {"rng": rng, "dtype": np.float64}
    return Sequential(conv=Conv2D(2, 3, 3, **shared), flatten=Flatten(), out=Dense(12, 4, **shared))


def saliency_map(jacobian, t, domain, lowers):
    """Algorithm 3: the pair of the largest -alpha beta, None where no pair has the signs; decreasing, with the signs
    reversed."""
    best, pair, second = 0.0, None, 0.0
    for p, q in itertools.combinations(domain, 2):
        alpha = jacobian[p, t] + jacobian[q, t]
        beta = sum(jacobian[p, j] + jacobian[q, j] for j in range(jacobian.shape[1]) if j != t)
        if (alpha < 0 and beta > 0) if lowers else (alpha > 0 and beta < 0):
            product = -alpha * beta
            if product > best:
                best, pair, second = product, (p, q), best
            else:
                second = max(second, product)
    if pair and second < best:
        assert second < best * (1 - 1e-9), "a comparison of choices needs products that are clearly apart"
    return pair


def towards(network, image, label, t, setting, lowers):
    """Algorithm 2 for a target: whether the decision is another than the label in the end, the pixels moved, the
    image."""
    c, moved, value = image.copy(), 0, setting.minimum if lowers else setting.maximum
    while moved + 2 <= setting.limit and predict(network, c[None]).argmax() == label:
        steps = STEP * np.eye(c.size).reshape(-1, *c.shape)
        jacobian = (predict(network, c + steps) - predict(network, c - steps)) / (2 * STEP)
        domain = [i for i in range(c.size) if c.flat[i] != value]
        pair = saliency_map(jacobian, t, domain, lowers)
        if pair is None:
            break
        for i in pair:
            c.flat[i] = value
        moved += 2
    return predict(network, c[None]).argmax() != label, moved, c


def reference(network, image, label, setting, lowers):
    """The best target: fewest pixels where one succeeds, most otherwise, the first of equals."""
    logits = predict(network, image[None])[0]
    if logits.argmax() != label:
        return False, False, 0, image
    runs = [towards(network, image, label, t, setting, lowers) for t in range(len(logits)) if t != label]
    succeeded = [run for run in runs if run[0]]
    best = min(succeeded, key=lambda run: run[1]) if succeeded else max(runs, key=lambda run: run[1])
    return True, *best


@directions
@pytest.mark.parametrize(
    ("network", "shape", "limit", "change"),
    [
        (small(), (1, 8, 8), 12, {}),
        (small(), (1, 8, 8), 9, {"maximum": 255 / 256, "minimum": 1 / 256, "T": 7.0, "arithmetic": "plain"}),
        (dense_network(dtype=np.float64), (12,), 4, {}),
        (two_channels(), (2, 4, 4), 6, {}),
    ],
    ids=["cnn", "setting", "dense", "channels"],
)
def test_jsma_against_the_paper_pair_by_pair(network, shape, limit, change, lowers):
    setting = Setting(limit=limit, **change)
    images, labels = samples(network, shape=shape, minimum=setting.minimum, maximum=setting.maximum)
    found = jsma(network, images, labels, setting, lowers=lowers)
    expected = [reference(network, x, y, setting, lowers) for x, y in zip(images, labels, strict=True)]
    attacked, succeeded, moves, adversarial = zip(*expected, strict=True)
    assert found.attacked.tolist() == list(attacked) == [True] * 8 + [False]
    assert found.succeeded.tolist() == list(succeeded)
    assert found.moves.tolist() == list(moves)
    assert np.array_equal(found.adversarial, np.stack(adversarial))
    assert any(succeeded)
    assert not found.unchanged_moves.any() and not found.zero_scores.any()


def test_jsma_takes_the_target_that_needs_the_fewest_pixels():
    """Class 1 is reached by three of the pixels 0 to 3, class 2 by 4 and 5."""
    network = Sequential(out=Dense(6, 3, dtype=np.float64))
    network.layers["out"].W.data[...] = np.array([[-3, -3], [1, 0], [0, 2.0]])[:, [0, 0, 0, 0, 1, 1]].T
    network.layers["out"].b.data[...] = 9.5, 0, 0
    found = jsma(network, np.zeros((1, 6)), [0])
    assert found.moves.item() == 2 and found.adversarial.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_jsma_changes_as_many_pixels_as_it_says_to_the_value_that_it_says():
    images, labels = samples(small())
    for lowers, value in ((False, 1.0), (True, 0.0)):
        found = jsma(small(), images, labels, Setting(limit=11), lowers=lowers)
        differ = found.adversarial != images
        assert np.array_equal(differ.reshape(9, -1).sum(axis=1), found.moves)
        assert found.moves.max() <= 10 and (found.adversarial[differ] == value).all()
        decided = predict(small(), found.adversarial).argmax(axis=1) != labels
        assert np.array_equal(decided & found.attacked, found.succeeded)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_best_pair_is_the_best_of_all_pairs_the_first_of_equals(levels):
    """Whole numbers, so that equal products are equal: many with few levels."""
    rng = np.random.default_rng(levels)
    outcomes = set()
    for case in range(400):
        count = case % 13
        t, a = rng.integers(-levels, levels // 2 + 1, (2, count)).astype(float)
        best, expected = 0.0, None
        for p, q in itertools.combinations(range(count), 2):
            if t[p] + t[q] > 0 and a[p] + a[q] > 0 and (t[p] + t[q]) * (a[p] + a[q]) > best:
                best, expected = (t[p] + t[q]) * (a[p] + a[q]), (p, q)
        assert best_pair(t, a) == expected
        outcomes.add(expected is None)
    assert outcomes == {True, False}


def test_best_pair_of_784_pixels_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(5):
        t, a = rng.normal(0, 1, (2, 784))
        p, q = np.triu_indices(784, 1)
        x, y = t[p] + t[q], a[p] + a[q]
        best = np.where((x > 0) & (y > 0), x * y, 0).argmax()
        assert best_pair(t, a) == (p[best], q[best])


def linear(w, threshold):
    """Two classes, logits threshold - w c and w c."""
    network = Sequential(out=Dense(len(w), 2, dtype=np.float64))
    network.layers["out"].W.data[...] = np.stack([-w, w], axis=1)
    network.layers["out"].b.data[...] = threshold, 0
    return network


@directions
def test_jsma_needs_the_fewest_pixels_on_a_linear_network(lowers):
    """From black (white) each pixel raised (lowered) adds its own weight: the largest first, two at a time."""
    w = np.random.default_rng(5).permutation(np.arange(1.0, 13)) * (-1 if lowers else 1)
    gains = np.cumsum(np.sort(np.abs(w))[::-1])
    image = np.full((1, 12), float(lowers))
    for fewest in range(1, 13):
        network = linear(w, 2 * (w @ image[0] + gains[fewest - 1]) - 0.5)
        found = jsma(network, image, [0], lowers=lowers)
        assert found.succeeded.item() and found.moves.item() == 2 * -(-fewest // 2)
        stopped = jsma(network, image, [0], Setting(limit=found.moves.item() - 1), lowers=lowers)
        assert not stopped.succeeded.item() and stopped.moves.item() == found.moves.item() - 2


def test_jsma_ends_where_no_pair_leads_to_the_target():
    """Weights below 0 lead away; one pixel alone is no pair; black and white pixels are not moved again."""
    for w, moves in (-np.ones(4), 0), (np.array([1.0, 1, 1, -5]), 2), (np.zeros(4), 0), (np.ones(1), 0):
        found = jsma(linear(w, 1e6), np.zeros((1, len(w))), [0])
        assert (found.moves.item(), found.zero_scores.item()) == (moves, moves == 0)
        assert not found.succeeded.item() and found.adversarial.sum() == moves
    assert jsma(linear(np.ones(4), 1e6), np.ones((1, 4)), [0]).moves.item() == 0


def test_jsma_does_not_depend_on_batch_or_chunk():
    network, setting = small(), Setting(limit=8)
    images, labels = samples(network)
    whole = jsma(network, images, labels, setting)
    for other in (
        jsma(network, images, labels, dataclasses.replace(setting, chunk=3)),
        jsma(network, images.tolist(), labels.tolist(), setting),
    ):
        for field in dataclasses.fields(AttackResult):
            assert np.array_equal(getattr(other, field.name), getattr(whole, field.name)), field.name
    for i in range(len(images)):
        alone = jsma(network, images[i : i + 1], labels[i : i + 1], setting)
        assert alone.moves == whole.moves[i] and np.array_equal(alone.adversarial[0], whole.adversarial[i])


def test_jsma_makes_the_same_moves_on_every_backend(device):
    images, labels = samples(small())
    here, there = (jsma(small().to(d), images, labels, Setting(limit=4)) for d in ("cpu", device.name))
    for field in dataclasses.fields(AttackResult):
        assert np.array_equal(getattr(there, field.name), getattr(here, field.name)), field.name


def test_jsma_counts_passes_and_tells_its_progress():
    """Of each of two targets: a forward and two backward passes for a pair, a forward pass for the decision after."""
    told = []
    found = jsma(linear(np.ones(8), 1e6), np.zeros((3, 8)), [0, 0, 0], Setting(limit=6), lambda *a: told.append(a))
    assert told == [(1, 3, 3), (2, 3, 3), (3, 3, 3)]
    assert (found.forwards, found.backwards) == (3 + 3 * 3 * 2, 3 * 3 * 2)


def test_jsma_on_no_samples():
    for count, labels in ((0, []), (2, [1, 1])):
        found = jsma(linear(np.ones(4), 1.0), np.zeros((count, 4)), labels)
        assert found.adversarial.shape == (count, 4) and not found.attacked.any()
        assert (found.forwards, found.backwards) == (count, 0)


def test_jsma_refuses():
    network, images = linear(np.ones(4), 1.0), np.zeros((2, 4))
    with pytest.raises(AttackError, match=r"numbers in \[0.0, 1.0\], these are from nan to nan"):
        jsma(network, images * np.nan, [0, 0])
    with pytest.raises(ValueError, match="labels must be 0 to 1, got 0 to 2"):
        jsma(network, images, [0, 2])
    network.layers["out"].W.data[0] = np.nan
    network.layers["out"].b.data[...] = np.inf, 0
    with np.errstate(all="ignore"), pytest.raises(AttackError, match="no finite numbers: choose other weights"):
        jsma(network, images, predict(network, images).argmax(axis=1))
