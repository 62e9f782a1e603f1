"""Saliency maps: what they are the gradient of, in both arithmetics, for any network, on every device."""

import functools

import numpy as np
import pytest

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Dense, DropoutMasks, Flatten, MaxPool2D, Sequential
from minicnn.paper.networks import paper_cnn
from minicnn.paper.saliency import logit_gradients, saliency_maps
from minicnn.training import predict
from minicnn.weights import get_weights, set_weights
from tests.conftest import colour_cnn, dense_network, small_cnn

EPS = 1e-6  # of central differences; the images are noise, where no ReLU or pool is within the step of a kink


def padded(dtype):
    """Two channels in, "same" padding with an even kernel, and a first layer without ReLU."""
    shared = {"rng": np.random.default_rng(0), "dtype": dtype}
    return Sequential(
        conv1=Conv2D(2, 3, 4, padding="same", relu=False, **shared),
        conv2=Conv2D(3, 3, 3, padding="same", **shared),
        pool=MaxPool2D(2),
        flatten=Flatten(),
        dense=Dense(27, 4, **shared),
    )


NETWORKS = {  # name -> what makes it, shape of an image
    "small": (small_cnn, (1, 8, 8)),
    "padded": (padded, (2, 6, 6)),
    "colour": (colour_cnn, (3, 32, 32)),
    "dense": (dense_network, (12,)),
}


def samples(n, shape=(1, 8, 8), classes=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.random((n, *shape)), rng.integers(0, classes, n)


def small(scale=1.0, dtype=np.float64):
    network = small_cnn(dtype=dtype)
    for parameter in network.layers["dense2"].parameters().values():
        parameter.data *= dtype(scale)
    return network


def true_maps(found):
    """The gradient itself, a row an image."""
    return found.maps.reshape(len(found.maps), -1) * 10 ** found.log10_scale.astype(np.float64)[:, None]


@functools.cache
def differences(name):
    """Three images, their labels, and the logits a step above and below every pixel, (3, P, K) each."""
    make, shape = NETWORKS[name]
    network = make(dtype=np.float64)
    images, labels = samples(3, shape)
    steps = EPS * np.eye(images[0].size).reshape(-1, *shape)
    up, down = (np.stack([predict(network, x + sign * steps) for x in images]) for sign in (1, -1))
    return images, labels, up, down


@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_saliency_maps_are_the_gradient_of_the_loss(device, name, T):
    """-ln softmax(z / T)_label in NumPy alone; plain and scaled maps agree up to the scale."""
    images, labels, *logits = differences(name)
    up, down = (np.logaddexp.reduce(z / T, axis=2) - z[range(3), :, labels] / T for z in logits)
    expected = (up - down) / (2 * EPS)
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert largest.min() > 1e-4
    network = NETWORKS[name][0](dtype=np.float64)
    expected_logits = predict(network, images)
    network.to(device.name)
    plain, scaled = (saliency_maps(network, images, labels, T, arithmetic) for arithmetic in ("plain", "scaled"))
    for found in plain, scaled:
        assert all(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in found)
        assert found.maps.shape == images.shape and found.log10_scale.shape == (3,)
        assert (np.abs(true_maps(found) - expected) / largest).max() < 1e-6
        np.testing.assert_allclose(found.log10_size(), np.log10(largest[:, 0]), rtol=1e-6)
        np.testing.assert_allclose(found.logits, expected_logits, rtol=1e-11)
        assert found.zeros.tolist() == [np.count_nonzero(m == 0) for m in found.maps]
    assert plain.log10_scale.tolist() == [0] * 3 and (scaled.log10_scale < 0).all()
    assert (np.abs(true_maps(plain) - true_maps(scaled)) / largest).max() < 1e-12
    assert all(p.grad is None for p in network.parameters().values())


@pytest.mark.parametrize("name", NETWORKS)
def test_saliency_maps_have_the_dtype_of_the_network(device, name):
    make, shape = NETWORKS[name]
    network, (images, labels) = make(dtype=np.float32).to(device.name), samples(3, shape)
    found = saliency_maps(network, images, labels)
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in found)
    lists = saliency_maps(network, images.tolist(), labels.tolist())
    assert all(np.array_equal(a, b) for a, b in zip(lists, found, strict=True))
    nothing = saliency_maps(network, images[:0], [])
    assert nothing.maps.shape == (0, *shape) and nothing.zeros.shape == nothing.log10_size().shape == (0,)


@pytest.mark.parametrize("name", NETWORKS)
def test_logit_gradients_are_those_of_the_weighted_sums(device, name):
    """Two sums, one of them of weights that depend on the logits; no graph is used up by the first."""
    images, _, up, down = differences(name)
    network = NETWORKS[name][0](dtype=np.float64).to(device.name)
    expected_logits = predict(network, images)
    fixed = np.arange(3.0 * up.shape[2]).reshape(3, -1) - 4

    def weigh(logits):
        np.testing.assert_array_equal(logits, expected_logits)
        return fixed, logits**2

    found = logit_gradients(network, images, weigh)
    for gradient, weights in zip(found, (fixed, expected_logits**2), strict=True):
        expected = ((up - down) / (2 * EPS) * weights[:, None]).sum(axis=2)
        assert gradient.shape == images.shape and gradient.dtype == np.float64
        assert np.abs(gradient.reshape(3, -1) - expected).max() < 1e-6 * np.abs(expected).max()


def test_saliency_scaled_does_not_underflow_where_plain_is_all_zero(device):
    """The same decisions at a larger logit scale: every plain map is all zero, every scaled one has its true size."""
    images, _ = samples(8)
    z = predict(small(dtype=np.float32), images)
    labels, ordered = z.argmax(axis=1), np.sort(z, axis=1)
    scale = 150 / (ordered[:, -1] - ordered[:, -2]).min()  # exp(-150) is below the smallest float32
    network = small(scale, np.float32)
    double = set_weights(small(), get_weights(network))
    network.to(device.name)
    plain, scaled = (saliency_maps(network, images, labels, arithmetic=a) for a in ("plain", "scaled"))
    assert np.array_equal(plain.logits.argmax(axis=1), labels)
    assert saliency_maps(small(dtype=np.float32), images, labels, arithmetic="plain").maps.any(axis=(1, 2, 3)).all()
    assert not plain.maps.any() and plain.zeros.tolist() == [64] * 8 and np.isneginf(plain.log10_size()).all()
    assert (scaled.log10_scale < -40).all() and (np.abs(scaled.maps).max(axis=(1, 2, 3)) > 1).all()
    truth = saliency_maps(double, images, labels, arithmetic="scaled")
    largest = np.abs(truth.maps).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(scaled.maps - truth.maps) / largest).max() < 1e-3
    np.testing.assert_allclose(scaled.log10_scale, truth.log10_scale, rtol=1e-5)
    np.testing.assert_allclose(scaled.log10_size(), truth.log10_size(), rtol=1e-5)


@pytest.mark.parametrize("ties", ["first", "all"])
def test_saliency_ties_on_a_flat_background_are_ties_in_any_batch(ties):
    """The map of an image does not depend on how many are computed with it."""
    rng = np.random.default_rng(0)
    images = np.zeros((17, 1, 28, 28), np.float32)
    images[:, :, 8:20, 10:18] = rng.random((17, 1, 12, 8))
    labels = rng.integers(0, 10, 17)
    network, other = (paper_cnn(seed=0, ties=rule) for rule in (ties, "first" if ties == "all" else "all"))
    for name, parameter in network.parameters().items():
        if name.endswith("_b"):
            parameter.data[...] = rng.normal(0, 0.1, parameter.shape)
    set_weights(other, get_weights(network))
    double = set_weights(paper_cnn(ties=ties, dtype=np.float64), get_weights(network))
    exact = saliency_maps(double, images, labels, chunk=1).maps
    largest = np.abs(exact).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(saliency_maps(other, images, labels).maps - exact) / largest).min(axis=0).max() > 0.01
    for chunk in (1, 2, 3, 8, 17):
        assert (np.abs(saliency_maps(network, images, labels, chunk=chunk).maps - exact) / largest).max() < 1e-5, chunk


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saliency_rests_on_equal_sums_of_equal_windows(device, dtype):
    """Images of one value each: every output of a filter is the same number, and so is that of its neighbours."""
    rng = np.random.default_rng(0)
    for images, channels, filters in ((1, 1, 32), (3, 1, 12), (3, 32, 32), (8, 32, 64), (5, 7, 13)):
        x = np.broadcast_to(rng.random((images, channels, 1, 1)), (images, channels, 9, 26)).astype(dtype)
        w, b = rng.standard_normal((filters, channels, 3, 3)).astype(dtype), rng.standard_normal(filters).astype(dtype)
        y = backend.to_host(device.functions.conv2d(*map(device.asarray, (x, w, b)), (7, 24), (0, 0), False))
        assert np.array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))


def test_saliency_ties(device):
    """One filter of one pixel on a flat image: every pixel of a pool's window ties."""
    maps = {}
    for ties in ("first", "all"):
        network = Sequential(conv1=Conv2D(1, 1, 1), pool1=MaxPool2D(2, ties), flatten=Flatten(), dense1=Dense(4, 2))
        network.layers["conv1"].W.data[...] = 3
        network.layers["dense1"].W.data[...] = [[0, 1], [0, 2], [0, 3], [0, 4]]
        found = saliency_maps(network.to(device.name), np.full((1, 1, 5, 4), 0.5, np.float32), [0])
        # z = (0, 15), label 0: the cotangent is (-1, 1) (1 - p_0), so the scaled map is 3 (1, 2, 3, 4) by window.
        maps[ties] = found.maps[0, 0].tolist()
        assert found.zeros == {"all": 4, "first": 16}[ties]
    assert maps["all"] == [[3, 3, 6, 6], [3, 3, 6, 6], [9, 9, 12, 12], [9, 9, 12, 12], [0, 0, 0, 0]]
    assert maps["first"] == [[3, 0, 6, 0], [0, 0, 0, 0], [9, 0, 12, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_saliency_chunk_size_does_not_matter(device, arithmetic):
    network, (images, labels) = small().to(device.name), samples(7)
    sizes = []

    class Recorder(Flatten):
        def __call__(self, x, masks=None):
            sizes.append(x.shape[0])
            return super().__call__(x)

    network.layers["flatten"] = Recorder()
    whole = saliency_maps(network, images, labels, arithmetic=arithmetic)
    for chunk in (1, 3, 7):
        parts = saliency_maps(network, images, labels, arithmetic=arithmetic, chunk=chunk)
        for a, b in zip(parts, whole, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and a.flags.c_contiguous
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)
    assert sizes == [7] + [1] * 7 + [3, 3, 1] + [7]


def test_saliency_temperature_divides_the_logits():
    """T = 20 on a network is T = 1 on that network with its last layer divided by 20."""
    images, labels = samples(5)
    warm = saliency_maps(small(), images, labels, T=20)
    divided = saliency_maps(small(1 / 20), images, labels, T=1)
    np.testing.assert_allclose(true_maps(warm), true_maps(divided), rtol=1e-10, atol=1e-16)
    # The scaled cotangent is divided by (1 - p_k) / T, so the map itself has the factor 20 that the scale lacks.
    np.testing.assert_allclose(warm.maps, 20 * divided.maps, rtol=1e-10, atol=1e-14)
    cold = saliency_maps(small(), images, labels, T=1)
    assert not np.allclose(true_maps(cold), true_maps(warm), rtol=0.5)


def test_saliency_is_without_dropout():
    network, (images, labels) = small(), samples(3)
    found = saliency_maps(network, images, labels)
    assert not np.array_equal(found.logits, network(Tensor(images), DropoutMasks(0)).data)
    del network.layers["dropout1"], network.layers["dropout2"]
    assert np.array_equal(found.maps, saliency_maps(network, images, labels).maps)


IMAGES, LABELS = samples(3)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (IMAGES, LABELS[:2], {}, r"class labels must have shape \(3,\), one an image, got \(2,\)"),
        (IMAGES, [0, 1, 2, 0], {"chunk": 3}, r"class labels must have shape \(3,\), one an image, got \(4,\)"),
        (IMAGES, [0, 1, 3], {}, "labels must be 0 to 2, got 0 to 3"),
        (IMAGES, [0, -1, 2], {"chunk": 1}, "labels must be 0 to 2, got -1 to -1"),
        (IMAGES, [0.0, 1.0, 2.0], {}, "class labels must be integers, got float64"),
        (IMAGES, LABELS, {"arithmetic": "exact"}, "arithmetic must be 'plain' or 'scaled', got 'exact'"),
        (IMAGES, LABELS, {"T": 0}, "T must be positive, got 0"),
        *((IMAGES, LABELS, {"chunk": n}, f"^chunk must be an integer of at least 1, got {n}$") for n in (0, -1, 1.5)),
        (IMAGES[:, 0], LABELS, {}, r"images must have shape \(N, C, H, W\), got \(3, 8, 8\)"),
    ],
)
def test_saliency_refuses(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        saliency_maps(small(), images, labels, **options)


def test_saliency_of_a_network_without_logits_is_refused():
    with pytest.raises(ValueError, match=r"must end in logits \(N, K\), got \(3, 2, 6, 6\): is a Flatten layer"):
        saliency_maps(Sequential(conv=Conv2D(1, 2, 3)), IMAGES, LABELS)


def test_saliency_under_no_grad_is_refused():
    with no_grad(), pytest.raises(ValueError, match="under no_grad"):
        saliency_maps(small(), IMAGES, LABELS)
