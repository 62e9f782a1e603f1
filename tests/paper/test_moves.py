"""Images moved pixel by pixel, recomputed in part, against whole passes; attacks are the same by both."""

import dataclasses

import numpy as np
import pytest

from minicnn import cpu
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.paper import attacks, moves
from minicnn.paper.moves import MovedImages, MovedInPart, moving_images
from minicnn.paper.networks import paper_cnn
from minicnn.training import predict
from tests.conftest import colour_cnn, dense_network, small_cnn
from tests.paper.test_one_pixel import biased, noise, odd_network


def other_network(dtype=np.float64):
    """A pool first, two of them in a row, filters of 5 and of 1, a convolution last."""
    shared = {"rng": np.random.default_rng(3), "dtype": dtype}
    network = Sequential(
        pool1=MaxPool2D(2),
        conv1=Conv2D(2, 3, 5, relu=False, **shared),
        pool2=MaxPool2D(2),
        pool3=MaxPool2D(2),
        conv2=Conv2D(3, 40, 1, **shared),
        flatten=Flatten(),
        dense=Dense(40 * 9, 4, **shared),
    )
    return biased(network)


NETWORKS = {
    "paper's": (biased(paper_cnn(dtype=np.float64)), (1, 28, 28)),
    "odd": (odd_network(), (3, 13, 12)),
    "other": (other_network(), (2, 33, 32)),
}
each_network = pytest.mark.parametrize(("network", "shape"), NETWORKS.values(), ids=NETWORKS)


def moved_at_random(images, rounds, seed=4):
    """chosen, pixels, values of each round; some images rest."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        chosen = np.flatnonzero(rng.random(len(images)) < 0.7)
        yield chosen, rng.integers(0, images[0].size, len(chosen)), rng.random(len(chosen)).astype(images.dtype)


@each_network
def test_moved_in_part_has_the_logits_of_a_whole_pass_after_many_moves(network, shape):
    images = noise(7, *shape)
    before, whole, part = images.copy(), images.copy(), moving_images(network, images, chunk=3)
    assert type(part) is MovedInPart
    far = 0
    for chosen, pixels, values in moved_at_random(images, 60):
        whole.reshape(len(whole), -1)[chosen, pixels] = values
        expected = predict(network, whole[chosen])
        assert np.abs(part._logits(chosen, pixels, values) - expected).max(initial=0) < 1e-12
        far = max(far, np.abs(expected - predict(network, before[chosen])).max(initial=0))
    assert far > 1e-3 and np.array_equal(images, before) and np.array_equal(part.images, whole)


@each_network
def test_moved_in_part_at_every_pixel(network, shape):
    images = noise(1, *shape)
    part, whole = MovedInPart(network, images), images.copy()
    for pixel in range(images.size):
        whole.reshape(-1)[pixel] = 1 - whole.reshape(-1)[pixel]
        logits = part._logits(np.array([0]), np.array([pixel]), whole.reshape(-1)[pixel : pixel + 1])
        if pixel % 7 == 0:
            assert np.abs(logits - predict(network, whole)).max() < 1e-11


def test_moved_images_of_any_network_and_backend(device):
    for network, shape in ((colour_cnn(), (3, 32, 32)), (dense_network(), (12,)), (small_cnn(), (1, 8, 8))):
        network, images = network.to(device.name), noise(4, *shape).astype(np.float32)
        moving, whole = moving_images(network, images), images.copy()
        assert (type(moving) is MovedInPart) == (device.name == "cpu" and len(shape) == 3 and shape[0] == 1)
        for chosen, pixels, values in moved_at_random(images, 4):
            whole.reshape(len(whole), -1)[chosen, pixels] = values
            assert np.array_equal(
                moving.decisions(chosen, pixels, values), predict(network, whole[chosen]).argmax(axis=1)
            )


def test_moved_images_that_do_not_fit_into_memory_take_whole_passes(monkeypatch):
    images = noise(3, 1, 8, 8).astype(np.float32)
    kept = 4 * 4 * (6 * 6 + 3 * 3)  # bytes of an image in small_cnn: conv1 and pool1
    monkeypatch.setattr(moves, "MOST_BYTES", 3 * kept)
    assert type(moving_images(small_cnn(), images)) is MovedInPart
    monkeypatch.setattr(moves, "MOST_BYTES", 3 * kept - 1)
    assert type(moving_images(small_cnn(), images)) is MovedImages
    assert type(moving_images(small_cnn(), images[:0])) is MovedImages


def test_moved_in_part_asks_a_whole_pass_where_two_classes_are_close(monkeypatch):
    """Two classes of the same weights: which of them is first is decided by the last bit, and so by a whole pass."""
    network, images = small_cnn(), noise(20, 1, 8, 8).astype(np.float32)
    weights = network.layers["dense2"].W.data
    weights[:, 1] = weights[:, 0] * np.float32(1 + 1e-6)
    network.layers["dense2"].b.data[:] = 5, 5, 0
    asked = []
    monkeypatch.setattr(moves, "predict", lambda network, x, chunk: asked.append(len(x)) or predict(network, x))
    part, whole = MovedInPart(network, images), images.copy()
    for chosen, pixels, values in moved_at_random(images, 10):
        whole.reshape(len(whole), -1)[chosen, pixels] = values
        assert np.array_equal(part.decisions(chosen, pixels, values), predict(network, whole[chosen]).argmax(axis=1))
    assert sum(asked) > 50
    asked.clear()
    part = MovedInPart(small_cnn(), images)
    part.decisions(*next(moved_at_random(images, 1)))
    assert sum(asked) < 3


def test_moved_in_part_leaves_a_logit_that_is_no_number_to_a_whole_pass():
    network, images = small_cnn(), noise(2, 1, 8, 8).astype(np.float32)
    part = MovedInPart(network, images)
    found = part.decisions(np.array([0, 1]), np.array([9, 9]), np.array([np.inf, 1], np.float32))
    images.reshape(2, -1)[:, 9] = np.inf, 1
    with np.errstate(invalid="ignore"):
        assert np.array_equal(found, predict(network, images).argmax(axis=1))


def test_moved_in_part_has_the_same_bits_with_any_number_of_threads_and_any_neighbours():
    network, images, found = biased(paper_cnn()), noise(9, 1, 28, 28).astype(np.float32), []
    changes, before = list(moved_at_random(images, 5)), cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            part = MovedInPart(network, images)
            found.append([part._logits(*change) for change in changes])
    finally:
        cpu.set_threads(before)
    assert all(np.array_equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))
    for image in range(len(images)):
        alone = MovedInPart(network, images[image : image + 1])
        for (chosen, pixels, values), logits in zip(changes, found[0], strict=True):
            for i in np.flatnonzero(chosen == image):
                assert np.array_equal(alone._logits(np.array([0]), pixels[i : i + 1], values[i : i + 1])[0], logits[i])


@pytest.mark.parametrize("algorithm", [*attacks.ALGORITHMS, *attacks.STRONGER])
@pytest.mark.parametrize("network", ["small", "odd"])
def test_attack_is_the_same_by_whole_passes(monkeypatch, algorithm, network):
    network, shape = {"small": (small_cnn(), (1, 8, 8)), "odd": (odd_network(dtype=np.float32), (3, 13, 12))}[network]
    images = noise(12, *shape).astype(np.float32)
    labels, setting = predict(network, images).argmax(axis=1), attacks.Setting(limit=15)
    in_part = attacks.attack(network, images, labels, algorithm, setting)
    monkeypatch.setattr(moves, "MOST_BYTES", 0)
    whole = attacks.attack(network, images, labels, algorithm, setting)
    for name, values in dataclasses.asdict(in_part).items():
        assert np.array_equal(values, getattr(whole, name)), name
    assert in_part.succeeded.any()
