"""Changes of single pixels, tried or made for good, recomputed in part, against whole passes; attacks are the same by
both.

A network within a Sequential is the same function, of a form that ChangedInPart does not fit: its attacks take whole
passes.
"""

import dataclasses

import numpy as np
import pytest

from minicnn import Tensor, cpu
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential, TemperatureSoftmax
from minicnn.paper import attacks, one_pixel
from minicnn.paper.networks import paper_cnn
from minicnn.paper.one_pixel import ChangedInPart, ChangingImages, changing_images
from minicnn.training import predict
from tests.conftest import Leaky, colour_cnn, dense_network, small_cnn


def biased(network, seed=1):
    """The network with random biases, so that nothing is 0 by accident."""
    rng = np.random.default_rng(seed)
    for name, parameter in network.parameters().items():
        if name.endswith("_b"):
            parameter.data[...] = rng.normal(0, 0.1, parameter.shape)
    return network


def odd_network(channels=3, dtype=np.float64):
    """On 13 x 12 images both pools drop a remainder: 12 x 11 -> 4 x 3 (one with size 3), 3 x 2 -> 1 x 1."""
    shared = {"rng": np.random.default_rng(10), "dtype": dtype}
    network = Sequential(
        conv1=Conv2D(channels, 4, 2, **shared),
        pool1=MaxPool2D(3),
        conv2=Conv2D(4, 5, 2, relu=False, **shared),
        pool2=MaxPool2D(2),
        flatten=Flatten(),
        dense1=Dense(5, 6, relu=True, **shared),
        dense2=Dense(6, 3, **shared),
    )
    return biased(network)


def noise(*shape):
    return np.random.default_rng(0).random(shape)


def worst_error(changes, network, images, pixels, seed=2):
    """The largest relative difference to full forward passes, and how far the changes move the logits."""
    rng = np.random.default_rng(seed)
    pixels = rng.permutation(np.repeat(pixels, 2 * len(images)))
    chosen, values = rng.integers(0, len(images), len(pixels)), rng.random(len(pixels)).astype(images.dtype)
    changed = images[chosen]
    for image, pixel, value in zip(changed, pixels, values, strict=True):
        image.flat[pixel] = value
    expected, unchanged = predict(network, changed), predict(network, images)
    before = images.copy()
    found = changes.logits_with(chosen, pixels, values)
    assert np.array_equal(images, before)
    found, wanted = np.concatenate([found, changes.logits()]), np.concatenate([expected, unchanged])
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    return error.max(), np.abs(expected - unchanged[chosen]).max(axis=1)


def test_one_pixel_at_every_border_and_corner_of_the_paper_s_network():
    images, network = noise(3, 1, 28, 28), biased(paper_cnn(dtype=np.float64))
    edges = np.array([0, 1, 2, 3, 13, 24, 25, 26, 27])
    pixels = (28 * edges[:, None] + edges).ravel()
    worst, moved = worst_error(ChangedInPart(network, images), network, images, pixels)
    assert worst < 1e-12 and np.median(moved) > 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_one_pixel_everywhere_where_pools_drop_a_remainder(channels):
    images, network = noise(4, channels, 13, 12), odd_network(channels)
    worst, moved = worst_error(ChangedInPart(network, images), network, images, np.arange(channels * 13 * 12))
    assert worst < 1e-12 and (moved > 1e-3).mean() > 0.2
    last = np.array([channels * 13 * 12 - 1] * 2)
    candidates = ChangedInPart(network, images)
    unchanged = candidates.logits_with(np.array([2, 0]), last, np.ones(2))
    assert np.abs(unchanged - candidates.logits()[[2, 0]]).max() < 1e-14


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(odd_network(), (3, 13, 12)), (small_cnn(dtype=np.float64), (1, 8, 8)), (dense_network(dtype=np.float64), (12,))],
    ids=["colour", "small", "dense"],
)
def test_one_pixel_and_full_passes_hold_few_changes_at_a_time_and_lose_none(monkeypatch, network, shape, order):
    monkeypatch.setattr(cpu, "CHUNK", 5)
    images = np.array(noise(4, *shape), order=order)
    for changes in ChangedInPart, ChangingImages:
        if changes is ChangingImages or ChangedInPart.fits(network):
            worst, moved = worst_error(changes(network, images), network, images, np.arange(images[0].size))
            assert worst < 1e-12 and moved.max() > 1e-3


def test_one_pixel_gives_the_same_bits_with_any_number_of_threads():
    images = noise(3, 1, 28, 28).astype(np.float32)
    chosen, pixels = np.divmod(np.arange(3 * 28 * 28), 28 * 28)
    found, before = [], cpu.threads()
    for threads in (1, 2, 3):
        cpu.set_threads(threads)
        candidates = ChangedInPart(biased(paper_cnn()), images)
        found.append(candidates.logits_with(chosen, pixels, np.ones(len(chosen), np.float32)))
    cpu.set_threads(before)
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_one_pixel_changes_of_one_image_leave_the_others_alone():
    candidates, pixel = ChangedInPart(odd_network(), noise(3, 3, 13, 12)), np.array([5 * 12 + 5])
    first = candidates.logits_with(np.array([1]), pixel, np.array([1.0]))
    candidates.logits_with(np.array([0, 1, 2]), np.repeat(pixel + 1, 3), np.zeros(3))
    assert np.array_equal(candidates.logits_with(np.array([1]), pixel, np.array([1.0])), first)


def oblong_network():
    """With a filter of 3 x 4, which Conv2D does not make but takes."""
    network = Sequential(conv=Conv2D(1, 2, 3), pool=MaxPool2D(2), flatten=Flatten(), dense=Dense(18, 2))
    network.layers["conv"].W = Tensor(noise(2, 1, 3, 4).astype(np.float32), requires_grad=True)
    return network


@pytest.mark.parametrize(
    ("network", "shape", "fits"),
    [
        (paper_cnn(), (1, 28, 28), True),
        (odd_network(dtype=np.float32), (3, 13, 12), True),
        (Sequential(inner=odd_network(dtype=np.float32)), (3, 13, 12), False),
        (colour_cnn(), (3, 32, 32), False),
        (dense_network(), (12,), False),
        (Sequential(conv=Conv2D(1, 2, 3, padding="same"), flatten=Flatten(), dense=Dense(128, 2)), (1, 8, 8), False),
        (Sequential(conv=type("Own", (Conv2D,), {})(1, 2, 3), flatten=Flatten(), dense=Dense(72, 2)), (1, 8, 8), False),
        (Sequential(flatten=Flatten(), dense=Dense(64, 2)), (1, 8, 8), False),
        (oblong_network(), (1, 9, 9), False),
    ],
    ids=["paper", "colour", "nested", "colour_cnn", "dense", "same", "subclass", "flat", "oblong"],
)
def test_one_pixel_changes_takes_the_shortcut_where_it_fits(network, shape, fits):
    images = noise(2, *shape).astype(np.float32)
    changes = changing_images(network, images)
    assert ChangedInPart.fits(network) == fits and type(changes) is (ChangedInPart if fits else ChangingImages)
    if fits:
        np.testing.assert_allclose(changes.logits(), predict(network, images), atol=1e-6)
    else:
        assert np.array_equal(changes.logits(), predict(network, images))
    assert changes.logits_with(np.zeros(0, int), np.zeros(0, int), np.zeros(0)).shape == (0, changes.logits().shape[1])


def half_black(channels, dtype=np.float64):
    rng, shape = np.random.default_rng(5), (6, channels, 13, 12)
    return np.where(rng.random(shape) < 0.5, 0, rng.random(shape)).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
@pytest.mark.parametrize("algorithm", ["2", "4", "author"])
def test_one_pixel_attacks_choose_as_full_passes_do(algorithm, arithmetic, channels):
    network, images = odd_network(channels), half_black(channels)
    labels, setting = predict(network, images).argmax(axis=1), attacks.Setting(arithmetic, limit=12)
    partial, full = (attacks.attack(n, images, labels, algorithm, setting) for n in (network, Sequential(n=network)))
    assert partial.moves.max() > 1 and partial.succeeded.any()
    for field in ("attacked", "succeeded", "moves", "unchanged_moves", "adversarial", "forwards"):
        assert np.array_equal(getattr(partial, field), getattr(full, field)), field


def test_one_pixel_attack_on_the_paper_s_network_chooses_as_full_passes_do():
    network = biased(paper_cnn(seed=2, dtype=np.float64))
    image = np.zeros((1, 1, 28, 28))
    image[:, :, 7:21, 9:19] = np.random.default_rng(3).random((14, 10))
    label = predict(network, image).argmax(axis=1)
    setting = attacks.Setting(limit=12)
    partial, full = (attacks.attack(n, image, label, "2", setting) for n in (network, Sequential(n=network)))
    assert partial.moves > 1 and np.array_equal(partial.adversarial, full.adversarial)


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_one_pixel_float32_choices_differ_only_between_scores_within_rounding(arithmetic):
    network = odd_network(1, np.float32)
    labels = predict(network, half_black(1, np.float32)).argmax(axis=1)

    def scores(network, dtype):
        scorer = attacks._Scorer(network, attacks.ALGORITHMS["2"], attacks.Setting(arithmetic), maps=None)
        return scorer(half_black(1, dtype), labels)

    partial, kinds, _ = scores(network, np.float32)
    full, full_kinds, _ = scores(Sequential(inner=network), np.float32)
    exact, _, _ = scores(Sequential(inner=odd_network(1)), np.float64)
    assert partial.dtype == np.float32
    rows = np.arange(len(full))
    choice, full_choice = partial.argmax(axis=1), full.argmax(axis=1)
    chosen, best = exact[rows, choice], exact[rows, full_choice]
    # The scores are differences of losses of order 1, or their logs; float32 rounds such a loss by 6e-8 a step.
    rounding = 2e-6 if arithmetic == "plain" else 2e-6 * np.exp(-best)
    assert np.all(np.abs(chosen - best) <= rounding)
    same = choice == full_choice
    assert np.array_equal(kinds[rows, choice][same], full_kinds[rows, full_choice][same])


# Made for good


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
    before, whole, part = images.copy(), images.copy(), changing_images(network, images, chunk=3)
    assert type(part) is ChangedInPart
    far = 0
    for chosen, pixels, values in moved_at_random(images, 60):
        tried = part.logits_with(chosen, pixels, values)
        whole.reshape(len(whole), -1)[chosen, pixels] = values
        assert np.abs(tried - predict(network, whole[chosen])).max(initial=0) < 1e-12
        expected = predict(network, whole[chosen])
        assert np.abs(part._passes(chosen, pixels, values, True)[-1] - expected).max(initial=0) < 1e-12
        far = max(far, np.abs(expected - predict(network, before[chosen])).max(initial=0))
    assert far > 1e-3 and np.array_equal(images, before) and np.array_equal(part.images, whole)


@each_network
def test_moved_in_part_at_every_pixel(network, shape):
    images = noise(1, *shape)
    part, whole = ChangedInPart(network, images), images.copy()
    for pixel in range(images.size):
        whole.reshape(-1)[pixel] = 1 - whole.reshape(-1)[pixel]
        logits = part._passes(np.array([0]), np.array([pixel]), whole.reshape(-1)[pixel : pixel + 1], True)[-1]
        if pixel % 7 == 0:
            assert np.abs(logits - predict(network, whole)).max() < 1e-11


def test_moved_images_of_any_network_and_backend(device):
    for network, shape in ((colour_cnn(), (3, 32, 32)), (dense_network(), (12,)), (small_cnn(), (1, 8, 8))):
        network, images = network.to(device.name), noise(4, *shape).astype(np.float32)
        moving, whole = changing_images(network, images), images.copy()
        assert (type(moving) is ChangedInPart) == (device.name == "cpu" and len(shape) == 3 and shape[0] == 1)
        for chosen, pixels, values in moved_at_random(images, 4):
            tried = moving.logits_with(chosen, pixels, values)
            whole.reshape(len(whole), -1)[chosen, pixels] = values
            assert isinstance(tried, np.ndarray)
            np.testing.assert_allclose(tried, predict(network, whole[chosen]), rtol=1e-5, atol=1e-5)
            assert np.array_equal(
                moving.decisions_after(chosen, pixels, values), predict(network, whole[chosen]).argmax(axis=1)
            )


def test_moved_images_that_do_not_fit_into_memory_take_whole_passes(monkeypatch):
    images = noise(3, 1, 8, 8).astype(np.float32)
    kept = 4 * (8 * 8 + 4 * (6 * 6 + 3 * 3))  # bytes of an image in small_cnn, with its conv1 and pool1
    monkeypatch.setattr(one_pixel, "MOST_BYTES", 3 * kept)
    assert type(changing_images(small_cnn(), images)) is ChangedInPart
    monkeypatch.setattr(one_pixel, "MOST_BYTES", 3 * kept - 1)
    assert type(changing_images(small_cnn(), images)) is ChangingImages
    assert type(changing_images(small_cnn(), images[:0])) is ChangingImages


def test_moved_in_part_asks_a_whole_pass_where_two_classes_are_close(monkeypatch):
    """Two classes of the same weights: which of them is first is decided by the last bit, and so by a whole pass."""
    network, images = small_cnn(), noise(20, 1, 8, 8).astype(np.float32)
    weights = network.layers["dense2"].W.data
    weights[:, 1] = weights[:, 0] * np.float32(1 + 1e-6)
    network.layers["dense2"].b.data[:] = 5, 5, 0
    part, whole, asked = ChangedInPart(network, images), images.copy(), []
    clear = ChangedInPart(small_cnn(), images)
    monkeypatch.setattr(one_pixel, "predict", lambda network, x, chunk: asked.append(len(x)) or predict(network, x))
    for chosen, pixels, values in moved_at_random(images, 10):
        whole.reshape(len(whole), -1)[chosen, pixels] = values
        found = part.decisions_after(chosen, pixels, values)
        assert np.array_equal(found, predict(network, whole[chosen]).argmax(axis=1))
    assert sum(asked) > 50
    asked.clear()
    clear.decisions_after(*next(moved_at_random(images, 1)))
    assert sum(asked) < 3


def cancelled_bias_of_conv1(conv1, conv2, dense1, dense2):
    conv1.b.data += 3e6
    conv2.b.data -= 3e6 * conv2.W.data.sum(axis=(1, 2, 3))


def cancelled_bias_of_conv2(conv1, conv2, dense1, dense2):
    conv2.b.data += 3e6
    dense1.b.data -= 3e6 * dense1.W.data.sum(axis=0)


def cancelled_bias_of_dense1(conv1, conv2, dense1, dense2):
    conv2.W.data *= 100
    dense1.b.data += 3e7
    dense2.b.data -= 3e7 * dense2.W.data.sum(axis=0)


def cancelled_weights(conv1, conv2, dense1, dense2):
    """Of a black image nothing is large: it is the moved pixels that are."""
    conv1.W.data[1] = conv1.W.data[0] = 3e6 * np.abs(conv1.W.data[0])
    conv2.W.data[:, 1] = -conv2.W.data[:, 0]


def cancelled_pixels(conv1, conv2, dense1, dense2):
    """Large weights that meet in one output."""
    conv1.W.data[:] = 3e6 * np.where(np.arange(9).reshape(3, 3) % 2, 1, -1)


CANCELLED = (
    cancelled_bias_of_conv1,
    cancelled_bias_of_conv2,
    cancelled_bias_of_dense1,
    cancelled_weights,
    cancelled_pixels,
)


def cancelling(change):
    """A network in which a change makes large numbers that later layers take away again."""
    shared = {"rng": np.random.default_rng(6)}
    layers = {
        "conv1": Conv2D(1, 4, 3, **shared),
        "conv2": Conv2D(4, 4, 3, **shared),
        "dense1": Dense(64, 8, relu=True, **shared),
        "dense2": Dense(8, 3, **shared),
    }
    change(*layers.values())
    network = Sequential(conv1=layers["conv1"], conv2=layers["conv2"], pool=MaxPool2D(1), flatten=Flatten())
    network.layers |= {"dropout": Dropout(0.5), "dense1": layers["dense1"], "dense2": layers["dense2"]}
    return network


@pytest.mark.parametrize("black", [False, True], ids=["noise", "black"])
@pytest.mark.parametrize("change", CANCELLED, ids=lambda change: change.__name__)
def test_moved_in_part_decides_as_whole_passes_where_large_numbers_cancel(change, black):
    """The logits are small, what they are made of is not, and its roundings decide."""
    network, images = cancelling(change), noise(40, 1, 8, 8).astype(np.float32) * (not black)
    part, whole = ChangedInPart(network, images), images.copy()
    for chosen, pixels, values in moved_at_random(images, 25):
        whole.reshape(len(whole), -1)[chosen, pixels] = values
        found = part.decisions_after(chosen, pixels, values)
        assert np.array_equal(found, predict(network, whole[chosen]).argmax(axis=1))


@pytest.mark.parametrize("change", CANCELLED[:3], ids=lambda change: change.__name__)
def test_moved_in_part_asks_a_whole_pass_where_a_large_bias_cancels(monkeypatch, change):
    """Of every layer: in the last ones roundings so seldom differ that decisions alone would not show it."""
    asked = []
    monkeypatch.setattr(
        one_pixel, "predict", lambda network, images, **k: asked.append(len(images)) or predict(network, images)
    )
    images = noise(40, 1, 8, 8).astype(np.float32)
    part = ChangedInPart(cancelling(change), images)
    for chosen, pixels, values in moved_at_random(images, 3):
        part.decisions_after(chosen, pixels, values)
        assert asked.pop() == len(chosen) and not asked


def test_moved_in_part_decides_as_whole_passes_where_numbers_have_grown():
    """White pixels add up, by positive weights, to what a black image does not show; the last filters cancel it."""
    rng = np.random.default_rng(0)
    growing = [Conv2D(1, 64, 3), Conv2D(64, 64, 3), Conv2D(64, 64, 3), Conv2D(64, 64, 1), Conv2D(64, 64, 1)]
    cancelling, last = Conv2D(64, 3, 1, relu=False, rng=rng), Dense(3, 3)
    for layer in growing:
        layer.W.data[...] = rng.uniform(0.9, 1.1, layer.W.shape)
    growing[-1].W.data[1:] = growing[-1].W.data[0]
    cancelling.W.data -= cancelling.W.data.mean(axis=1, keepdims=True)
    last.W.data[...] = np.eye(3)
    network = Sequential(**dict(zip("abcdefgh", [*growing, cancelling, Flatten(), last], strict=True)))
    images = np.zeros((30, 1, 7, 7), np.float32)
    part, whole = ChangedInPart(network, images), images.copy()
    for pixel in rng.permutation(49):
        values = rng.uniform(0.5, 1, 30).astype(np.float32)
        whole.reshape(30, 49)[:, pixel] = values
        found = part.decisions_after(np.arange(30), np.full(30, pixel), values)
        assert np.array_equal(found, predict(network, whole).argmax(axis=1))


@pytest.mark.parametrize(
    "last", [TemperatureSoftmax(0.01), Leaky(), Sequential(dense=Dense(3, 3))], ids=lambda x: type(x).__name__
)
def test_moved_in_part_takes_no_layer_whose_roundings_it_does_not_know(last):
    network = small_cnn()
    assert ChangedInPart.fits(network)
    network.layers["last"] = last
    assert not ChangedInPart.fits(network)


def test_moved_in_part_of_no_images():
    part, none = ChangedInPart(small_cnn(), np.zeros((0, 1, 8, 8), np.float32)), np.zeros(0, int)
    assert part.logits().shape == part.logits_with(none, none, none).shape == (0, 3)
    assert part.decisions_after(none, none, np.zeros(0, np.float32)).shape == (0,)


def test_moved_images_decide_nothing_by_a_logit_that_is_no_number():
    network, images = small_cnn(), noise(2, 1, 8, 8).astype(np.float32)
    for changes in (ChangedInPart(network, images), ChangingImages(network, images)):
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(attacks.AttackError, match="the logits are no finite numbers"),
        ):
            changes.decisions_after(np.array([0, 1]), np.array([9, 9]), np.array([np.inf, 1], np.float32))


def test_moved_in_part_has_the_same_bits_with_any_number_of_threads_and_any_neighbours():
    network, images, found = biased(paper_cnn()), noise(9, 1, 28, 28).astype(np.float32), []
    changes, before = list(moved_at_random(images, 5)), cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            part = ChangedInPart(network, images)
            found.append([part._passes(*change, True)[-1] for change in changes])
    finally:
        cpu.set_threads(before)
    assert all(np.array_equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))
    for image in range(len(images)):
        alone = ChangedInPart(network, images[image : image + 1])
        for (chosen, pixels, values), logits in zip(changes, found[0], strict=True):
            for i in np.flatnonzero(chosen == image):
                change = np.array([0]), pixels[i : i + 1], values[i : i + 1]
                assert np.array_equal(alone._passes(*change, True)[-1][0], logits[i])


@pytest.mark.parametrize("algorithm", [*attacks.ALGORITHMS, *attacks.STRONGER])
@pytest.mark.parametrize("network", ["small", "odd"])
def test_attack_is_the_same_by_whole_passes(monkeypatch, algorithm, network):
    network, shape = {"small": (small_cnn(), (1, 8, 8)), "odd": (odd_network(dtype=np.float32), (3, 13, 12))}[network]
    images = noise(12, *shape).astype(np.float32)
    labels, setting = predict(network, images).argmax(axis=1), attacks.Setting(limit=15)
    in_part = attacks.attack(network, images, labels, algorithm, setting)
    monkeypatch.setattr(one_pixel, "MOST_BYTES", 0)
    whole = attacks.attack(network, images, labels, algorithm, setting)
    for name, values in dataclasses.asdict(in_part).items():
        assert np.array_equal(values, getattr(whole, name)), name
    assert in_part.succeeded.any()
