"""Saliency maps: what they are the gradient of, in both arithmetics, on every device."""

import numpy as np
import pytest

from minicnn import backend
from minicnn.autograd import Tensor
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential
from minicnn.networks import get_weights, paper_cnn, predict, set_weights
from minicnn.saliency import saliency_maps


def small(ties="first", padding="valid", relu=True, dtype=np.float64, seed=0):
    """Conv, pool, dropout, dense, dense on 8x8 images; logits of a few nats."""
    rng = np.random.default_rng(seed)
    shared = {"rng": rng, "dtype": dtype}
    size = 4 if padding == "same" else 3
    network = Sequential(
        conv1=Conv2D(1, 4, 3, padding=padding, relu=relu, **shared),
        pool1=MaxPool2D(2, ties),
        flatten=Flatten(),
        dropout1=Dropout(0.5),
        dense1=Dense(4 * size * size, 6, relu=True, **shared),
        dense2=Dense(6, 5, **shared),
    )
    for name, p in network.parameters().items():
        p.data += (rng.normal(0, 0.1, p.shape) if name.endswith("_b") else p.data).astype(dtype)
    return network


def samples(n, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return rng.random((n, 1, 8, 8)).astype(dtype), rng.integers(0, 5, n)


def losses(network, images, labels, T):
    """-ln softmax(z / T)_label in NumPy alone, given the logits."""
    u = predict(network, images) / T
    return np.logaddexp.reduce(u, axis=1) - u[np.arange(len(u)), labels]


def true_maps(found):
    return found.maps.astype(np.float64) * 10 ** found.log10_scale.astype(np.float64)[:, None, None]


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("first", [{}, {"padding": "same"}, {"relu": False}], ids=str)
def test_maps_are_the_gradient_of_the_loss(device, arithmetic, T, first):
    """Central differences by every pixel of noise images, where no ReLU or pool is within the step of a kink."""
    network, (images, labels) = small(**first), samples(3)
    eps = 1e-6
    expected = np.empty((3, 8, 8))
    for r, c in np.ndindex(8, 8):
        step = np.zeros_like(images)
        step[:, 0, r, c] = eps
        up, down = (losses(network, images + sign * step, labels, T) for sign in (1, -1))
        expected[:, r, c] = (up - down) / (2 * eps)
    found = saliency_maps(network.to(device.name), images, labels, T=T, arithmetic=arithmetic)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert scale.min() > 1e-4
    assert (np.abs(true_maps(found) - expected) / scale).max() < 1e-6
    np.testing.assert_allclose(found.logits, predict(network, images), rtol=1e-12)


@pytest.mark.parametrize("T", [1, 20])
def test_plain_is_scaled_times_its_scale(device, T):
    network, (images, labels) = small().to(device.name), samples(6)
    plain = saliency_maps(network, images, labels, T=T, arithmetic="plain")
    scaled = saliency_maps(network, images, labels, T=T, arithmetic="scaled")
    assert plain.log10_scale.tolist() == [0] * 6 and (scaled.log10_scale < 0).all()
    largest = np.abs(plain.maps).max(axis=(1, 2), keepdims=True)
    assert (np.abs(plain.maps - true_maps(scaled)) / largest).max() < 1e-12
    np.testing.assert_allclose(plain.log10_size(), np.log10(largest[:, 0, 0]), rtol=1e-12)
    np.testing.assert_allclose(scaled.log10_size(), plain.log10_size(), rtol=1e-12)


def confident(factor, dtype=np.float32):
    """The small network with the last layer multiplied, and images with its own decisions as labels."""
    network, (images, _) = small(dtype=dtype), samples(8, dtype)
    for p in network.layers["dense2"].parameters().values():
        p.data *= factor
    return network, images, predict(network, images).argmax(axis=1)


def test_scaled_does_not_underflow_where_plain_is_all_zero(device):
    network, images, labels = confident(2000)
    double = set_weights(small(), get_weights(network))
    network.to(device.name)
    plain = saliency_maps(network, images, labels, arithmetic="plain")
    scaled = saliency_maps(network, images, labels, arithmetic="scaled")
    silent = plain.zeros == 64
    assert silent.sum() >= 4 and not plain.maps[silent].any()
    assert np.isneginf(plain.log10_size()[silent]).all()
    assert (scaled.log10_scale[silent] < -40).all() and np.isfinite(scaled.log10_scale).all()
    assert (np.abs(scaled.maps).max(axis=(1, 2)) > 1).all() and np.isfinite(scaled.maps).all()
    truth = saliency_maps(double, images, labels, arithmetic="scaled")
    largest = np.abs(truth.maps).max(axis=(1, 2), keepdims=True)
    assert (np.abs(scaled.maps - truth.maps) / largest).max() < 1e-3
    np.testing.assert_allclose(scaled.log10_scale, truth.log10_scale, rtol=1e-5)


def test_the_paper_s_network_with_a_larger_last_layer():
    """The same decisions at a larger logit scale: every plain map is all zero, every scaled one has its true size."""
    network = paper_cnn(seed=0)
    images = np.random.default_rng(2).random((4, 1, 28, 28), dtype=np.float32)
    z = predict(network, images)
    labels = z.argmax(axis=1)
    margin = np.sort(z, axis=1)[:, -1] - np.sort(z, axis=1)[:, -2]
    before = saliency_maps(network, images, labels, arithmetic="plain")
    for p in network.layers["dense3"].parameters().values():
        p.data *= np.float32(150 / margin.min())  # exp(-150) is below the smallest float32
    after = {a: saliency_maps(network, images, labels, arithmetic=a) for a in ("plain", "scaled")}
    assert np.array_equal(after["plain"].logits.argmax(axis=1), labels)
    assert before.maps.any(axis=(1, 2)).all() and not after["plain"].maps.any()
    assert after["scaled"].maps.any(axis=(1, 2)).all()
    double = set_weights(paper_cnn(dtype=np.float64), get_weights(network))
    truth = saliency_maps(double, images, labels, arithmetic="scaled")
    np.testing.assert_allclose(after["scaled"].log10_size(), truth.log10_size(), rtol=1e-5)


@pytest.mark.parametrize("ties", ["first", "all"])
def test_ties_on_a_flat_background_are_ties_in_any_batch(ties):
    """The map of an image does not depend on how many are computed with it, though BLAS rounds by the position."""
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
    largest = np.abs(exact).max(axis=(1, 2), keepdims=True)
    assert (np.abs(saliency_maps(other, images, labels).maps - exact) / largest).min(axis=0).max() > 0.01
    for chunk in (1, 2, 3, 8, 17):
        assert (np.abs(saliency_maps(network, images, labels, chunk=chunk).maps - exact) / largest).max() < 1e-5, chunk


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_windows_have_equal_sums(device, dtype):
    """Images of one value each: every output of a filter is the same number, and so is that of its neighbours."""
    rng = np.random.default_rng(0)
    for images, channels, filters in ((1, 1, 32), (3, 1, 12), (3, 32, 32), (8, 32, 64), (5, 7, 13)):
        x = np.broadcast_to(rng.random((images, channels, 1, 1)), (images, channels, 9, 26)).astype(dtype)
        w, b = rng.standard_normal((filters, channels, 3, 3)).astype(dtype), rng.standard_normal(filters).astype(dtype)
        with device.kernels.equal_sums():
            y = backend.to_host(device.kernels.conv2d(*map(device.asarray, (x, w, b)), "valid", False))
        assert np.array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_chunk_size_does_not_matter(device, arithmetic):
    network, (images, labels) = small().to(device.name), samples(7)
    sizes = []

    class Recorder(Flatten):
        def __call__(self, x, dropout=None):
            sizes.append(x.shape[0])
            return super().__call__(x)

    network.layers["flatten"] = Recorder()
    whole = saliency_maps(network, images, labels, arithmetic=arithmetic)
    for chunk in (1, 3, 7):
        parts = saliency_maps(network, images, labels, arithmetic=arithmetic, chunk=chunk)
        for a, b in zip(parts, whole, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)
    assert sizes == [7] + [1] * 7 + [3, 3, 1] + [7]


def test_temperature_divides_the_logits():
    """T = 20 on a network is T = 1 on that network with its last layer divided by 20."""
    network, (images, labels) = small(), samples(5)
    warm = saliency_maps(network, images, labels, T=20)
    for p in network.layers["dense2"].parameters().values():
        p.data /= 20
    divided = saliency_maps(network, images, labels, T=1)
    np.testing.assert_allclose(true_maps(warm), true_maps(divided), rtol=1e-10, atol=1e-16)
    # The scaled adjoint is divided by (1 - p_k) / T, so the map itself has the factor 20 that the scale lacks.
    np.testing.assert_allclose(warm.maps, 20 * divided.maps, rtol=1e-10, atol=1e-14)
    cold = saliency_maps(small(), images, labels, T=1)
    assert not np.allclose(true_maps(cold), true_maps(warm), rtol=0.5)


def test_ties(device):
    """One filter of one pixel on a flat image: every pixel of a pool's window ties."""
    maps = {}
    for ties in ("first", "all"):
        network = Sequential(conv1=Conv2D(1, 1, 1), pool1=MaxPool2D(2, ties), flatten=Flatten(), dense1=Dense(4, 2))
        network.layers["conv1"].W.data[...] = 3
        network.layers["dense1"].W.data[...] = [[0, 1], [0, 2], [0, 3], [0, 4]]
        flat = np.full((1, 1, 5, 4), 0.5, np.float32)
        # z = (0, 15), label 0: the adjoint is (-1, 1) (1 - p_0), so the scaled map is 3 (1, 2, 3, 4) by window.
        maps[ties] = saliency_maps(network.to(device.name), flat, np.array([0])).maps[0]
    assert maps["all"].tolist() == [[3, 3, 6, 6], [3, 3, 6, 6], [9, 9, 12, 12], [9, 9, 12, 12], [0, 0, 0, 0]]
    assert maps["first"].tolist() == [[3, 0, 6, 0], [0, 0, 0, 0], [9, 0, 12, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_zeros_are_counted(device):
    network, (images, labels) = small(dtype=np.float32).to(device.name), samples(4, np.float32)
    images[:, :, :4] = 0  # windows of equal pixels: all but the first get no gradient
    found = saliency_maps(network, images, labels)
    assert found.zeros.tolist() == (found.maps == 0).sum(axis=(1, 2)).tolist()
    assert found.zeros.min() > 0 and found.zeros.max() < 64


def test_results_are_numpy_arrays_of_the_network_s_dtype(device):
    for dtype in (np.float32, np.float64):
        network, (images, labels) = small(dtype=dtype).to(device.name), samples(3)
        found = saliency_maps(network, images, labels)
        assert all(isinstance(a, np.ndarray) and a.dtype == dtype for a in found)
        assert [a.shape for a in found] == [(3, 8, 8), (3,), (3, 5), (3,)]
        assert saliency_maps(network, images[:0], labels[:0]).maps.shape == (0, 8, 8)
        assert all(p.grad is None for p in network.parameters().values())


def test_dropout_is_off():
    network, (images, labels) = small(), samples(3)
    found = saliency_maps(network, images, labels)
    del network.layers["dropout1"]
    assert np.array_equal(found.maps, saliency_maps(network, images, labels).maps)
    assert not np.array_equal(found.logits, small()(Tensor(images), (0, 0)).data)


def test_refused():
    network, (images, labels) = small(), samples(3)
    with pytest.raises(ValueError, match="3 images and 2 labels: each image needs one label"):
        saliency_maps(network, images, labels[:2])
    with pytest.raises(ValueError, match="arithmetic must be 'plain' or 'scaled', got 'exact'"):
        saliency_maps(network, images, labels, arithmetic="exact")
    with pytest.raises(ValueError, match="labels must be 0 to 4, got 0 to 5"):
        saliency_maps(network, images, np.array([0, 1, 5]))
    with pytest.raises(ValueError, match=r"images must have shape \(N, C, H, W\), got \(3, 8, 8\)"):
        saliency_maps(network, images[:, 0], labels)
    coloured = Sequential(
        conv1=Conv2D(2, 3, 3, dtype=np.float64), flatten=Flatten(), dense1=Dense(108, 5, dtype=np.float64)
    )
    with pytest.raises(ValueError, match="a saliency map has one channel, the images have 2"):
        saliency_maps(coloured, np.ones((1, 2, 8, 8)), np.array([0]))
