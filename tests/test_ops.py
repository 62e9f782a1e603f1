"""Every operation's forward against a slow, obvious oracle, and what it refuses; gradients have their own suite.

The pillar's functions without a Tensor around them (Philox, seeds of saliency maps, the update) are held here as well.
"""

import decimal
import itertools
from decimal import Decimal

import numpy as np
import pytest

from minicnn import backend, cpu, ops
from minicnn.autograd import Tensor
from minicnn.layers import TemperatureSoftmax
from minicnn.optim import NesterovSGD
from minicnn.saliency import saliency_maps

DTYPES = [np.float32, np.float64]
SINGLE = np.float32


def host(values):
    return backend.to_host(values.data if isinstance(values, Tensor) else values)


def tensor(device, values, dtype=np.float64):
    return Tensor(device.asarray(values, dtype=dtype), requires_grad=True)


def noise(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_close(values, expected, dtype):
    """Within 16 roundings of the largest entry, and of the operation's own dtype."""
    values = host(values)
    assert values.dtype == dtype and values.shape == expected.shape
    assert np.abs(values - expected).max(initial=0) <= 16 * np.finfo(dtype).eps * np.abs(expected).max(initial=0)


def conv2d_oracle(x, w, b, padding):
    (n, _, height, width), (filters, _, kh, kw) = x.shape, w.shape
    top, left = ((kh - 1) // 2, (kw - 1) // 2) if padding == "same" else (0, 0)
    rows, columns = (height, width) if padding == "same" else (height - kh + 1, width - kw + 1)
    y = np.empty((n, filters, rows, columns))
    for image, o, r, c in np.ndindex(y.shape):
        y[image, o, r, c] = b[o]
        for i, j in itertools.product(range(kh), range(kw)):
            p, q = r + i - top, c + j - left
            if 0 <= p < height and 0 <= q < width:
                y[image, o, r, c] += np.dot(x[image, :, p, q], w[o, :, i, j])
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("x_shape", "filters", "kernel"),
    [
        ((2, 1, 6, 7), 4, (3, 3)),
        ((1, 5, 7, 6), 2, (3, 3)),
        ((3, 7, 5, 11), 33, (3, 3)),
        ((2, 3, 5, 6), 2, (1, 1)),
        ((2, 1, 5, 6), 3, (2, 2)),
        ((2, 3, 6, 5), 2, (2, 3)),
        ((1, 2, 6, 7), 1, (4, 1)),
        ((1, 1, 7, 9), 2, (5, 4)),
        ((1, 3, 1, 1), 2, (1, 1)),
        ((2, 2, 4, 3), 3, (4, 3)),
    ],
    ids=str,
)
def test_conv2d(device, x_shape, filters, kernel, padding, dtype):
    x, w, b = noise(x_shape, dtype), noise((filters, x_shape[1], *kernel), dtype, 1), noise(filters, dtype, 2)
    expected = conv2d_oracle(*(a.astype(np.float64) for a in (x, w, b)), padding)
    arguments = [tensor(device, a, dtype) for a in (x, w, b)]
    assert_close(ops.conv2d(*arguments, padding=padding), expected, dtype)
    assert_close(ops.conv2d(*arguments, padding=padding, relu=True), np.maximum(expected, 0), dtype)


@pytest.mark.parametrize("kernel", [(5, 5), (4, 6), (3, 3)], ids=str)
def test_conv2d_with_a_kernel_larger_than_the_image(device, kernel):
    x, w, b = noise((2, 2, 2, 3)), noise((3, 2, *kernel), seed=1), noise(3, seed=2)
    y = ops.conv2d(*(tensor(device, a) for a in (x, w, b)), padding="same")
    assert_close(y, conv2d_oracle(x, w, b, "same"), np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 7])
def test_conv2d_window(device, channels, kernel, dtype):
    w, size = noise((5, channels, *kernel), dtype, 1), (9, 10)
    for rows, columns in itertools.product(((0, 1), (0, 3), (3, 6), (7, 9)), ((0, 2), (4, 5), (9, 10), (0, 10))):
        x = np.zeros((3, channels, *size))
        window = noise((3, channels, rows[1] - rows[0], columns[1] - columns[0]), dtype)
        x[:, :, slice(*rows), slice(*columns)] = window
        whole = conv2d_oracle(x, w.astype(np.float64), np.zeros(5), "valid")
        first = [max(0, span[0] - k + 1) for span, k in zip((rows, columns), kernel, strict=True)]
        last = [min(span[1], extent) for span, extent in zip((rows, columns), whole.shape[2:], strict=True)]
        assert whole.any() and not np.delete(whole, np.s_[first[0] : last[0]], axis=2).any()
        offset = rows[0] - first[0], columns[0] - first[1]
        size_out = last[0] - first[0], last[1] - first[1]
        y = device.kernels.conv2d_window(device.asarray(window), device.asarray(w), size_out, offset)
        assert_close(y, whole[:, :, first[0] : last[0], first[1] : last[1]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 67, 10), (65, 4, 33)], ids=str)
def test_dense(device, shape, dtype):
    n, inputs, units = shape
    x, w, b = noise((n, inputs), dtype), noise((inputs, units), dtype, 1), noise(units, dtype, 2)
    expected = np.empty((n, units))
    for i, u in np.ndindex(n, units):
        expected[i, u] = float(b[u]) + sum(float(x[i, d]) * float(w[d, u]) for d in range(inputs))
    arguments = [tensor(device, a, dtype) for a in (x, w, b)]
    assert_close(ops.dense(*arguments), expected, dtype)
    assert_close(ops.dense(*arguments, relu=True), np.maximum(expected, 0), dtype)


def test_relu_and_its_gradient_at_zero(device):
    values = np.array([[-2.0, -0.0, 0.0], [1e-300, 3.0, -1e-300]])
    x = tensor(device, values)
    y = ops.relu(x)
    y.backward(device.asarray(np.full(values.shape, 7.0)))
    assert host(y).tolist() == [[0, 0, 0], [1e-300, 3, 0]]
    assert host(x.grad).tolist() == [[0, 0, 0], [7, 7, 0]]


def test_nan_is_not_hidden(device):
    """Training finds a divergence by its loss, so no operation may turn NaN into a number."""
    bad = np.full((1, 1, 2, 2), np.nan)
    one, zero = np.ones((1, 1, 1, 1)), np.zeros(1)
    assert np.isnan(host(ops.relu(tensor(device, bad)))).all()
    assert np.isnan(host(ops.conv2d(*(tensor(device, a) for a in (bad, one, zero)), relu=True))).all()
    assert np.isnan(
        host(ops.dense(*(tensor(device, a) for a in (bad[0, 0], np.ones((2, 3)), zero[[0, 0, 0]])), relu=True))
    ).all()
    assert np.isnan(host(ops.max_pool2d(tensor(device, bad)))).all()
    assert np.isnan(host(ops.cross_entropy(tensor(device, bad[0, 0]), device.asarray(np.array([0, 1]))))).all()


def pool_oracle(x, size):
    n, channels, height, width = x.shape
    y = np.empty((n, channels, height // size, width // size))
    winner = np.empty(y.shape, int)
    for image, c, r, q in np.ndindex(y.shape):
        window = x[image, c, r * size : (r + 1) * size, q * size : (q + 1) * size].ravel().tolist()
        y[image, c, r, q] = max(window)
        winner[image, c, r, q] = window.index(max(window))
    return y, winner


def pool_grad_oracle(g, x, size, ties):
    gx, (y, winner) = np.zeros(x.shape), pool_oracle(x, size)
    for image, c, r, q in np.ndindex(y.shape):
        for i, j in itertools.product(range(size), range(size)):
            place = image, c, r * size + i, q * size + j
            if winner[image, c, r, q] == i * size + j if ties == "first" else x[place] == y[image, c, r, q]:
                gx[place] = g[image, c, r, q]
    return gx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 3, 7, 8), 1),
        ((2, 3, 7, 9), 2),
        ((1, 1, 8, 6), 2),
        ((3, 2, 7, 11), 3),
        ((1, 2, 9, 9), 5),
        ((1, 1, 17, 33), 16),
    ],
    ids=str,
)
def test_max_pool2d(device, shape, size, dtype):
    """On whole numbers from -2 to 1, so that most windows have ties."""
    x = np.random.default_rng(0).integers(-2, 2, shape).astype(dtype)
    y, winner = pool_oracle(x, size)
    found, found_winner = device.kernels.max_pool2d(device.asarray(x), size)
    assert np.array_equal(host(found), y) and np.array_equal(host(found_winner), winner)
    assert host(found).dtype == dtype and host(found_winner).dtype == np.uint8
    g = noise(y.shape, dtype)
    for ties in ("first", "all"):
        images = tensor(device, x, dtype)
        ops.max_pool2d(images, size=size, ties=ties).backward(device.asarray(g))
        assert np.array_equal(host(images.grad), pool_grad_oracle(g, x, size, ties))
    if size > 1:
        assert not np.array_equal(pool_grad_oracle(g, x, size, "first"), pool_grad_oracle(g, x, size, "all"))


@pytest.fixture
def forty_digits():
    with decimal.localcontext() as context:
        context.prec = 40
        yield


def log_softmax_oracle(z, T):
    """log softmax(z / T) of each row in decimals, from the floats exactly as they are."""
    rows = []
    for row in z:
        u = [Decimal(float(v)) / Decimal(T) for v in row]
        log_sum = max(u) + sum((v - max(u)).exp() for v in u).ln()
        rows.append([v - log_sum for v in u])
    return rows


LOGITS = {
    "ordinary": lambda rng: rng.normal(0, 2, (5, 10)),
    "two classes": lambda rng: rng.normal(0, 2, (5, 2)),
    "one class": lambda rng: rng.normal(0, 2, (5, 1)),
    "near 300": lambda rng: rng.normal(300, 100, (5, 10)),
    "near -300": lambda rng: rng.normal(-300, 100, (5, 10)),
    "of size 1e4": lambda rng: rng.normal(0, 1e4, (5, 10)),
}


@pytest.mark.usefixtures("forty_digits")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_softmax_and_losses(device, logits, T, dtype):
    rng = np.random.default_rng(3)
    z = logits(rng).astype(dtype)
    n, classes = z.shape
    labels = np.arange(n) % classes
    soft = rng.dirichlet(np.ones(classes), n).astype(dtype)
    exact = log_softmax_oracle(z, T)
    log_p = np.array(exact, float)
    losses = -log_p[np.arange(n), labels]
    soft_losses = np.array(
        [float(-sum(Decimal(float(t)) * v for t, v in zip(*r, strict=True))) for r in zip(soft, exact, strict=True)]
    )

    eps, logits_on_device = np.finfo(dtype).eps, tensor(device, z, dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = {
            "log": ops.log_softmax(logits_on_device, T=T),
            "losses": ops.cross_entropy(logits_on_device, device.asarray(labels), T=T),
            "soft losses": ops.cross_entropy(logits_on_device, device.asarray(soft), T=T),
        }
        p = host(ops.softmax(logits_on_device, T=T))
    for name, expected in {"log": log_p, "losses": losses, "soft losses": soft_losses}.items():
        values = host(found[name])
        assert values.dtype == dtype and values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=8 * eps, atol=8 * eps, err_msg=name)
    assert p.dtype == dtype
    expected = np.array([[float(v.exp()) for v in row] for row in exact])
    assert (np.abs(p - expected) <= 4 * eps * (2 + np.abs(log_p)) * expected + np.finfo(dtype).tiny).all()


def test_softmax_layer(device):
    z = noise((3, 10))
    p = host(TemperatureSoftmax(20)(tensor(device, z)))
    assert_close(p, np.exp(z / 20) / np.exp(z / 20).sum(axis=1, keepdims=True), np.float64)


def test_softmax_is_summed_in_class_order(device):
    """exp(-17) is less than half a unit in the last place of 1: lost one by one after the 1, kept when before it."""
    z = np.full((2, 10), -17, SINGLE)
    z[0, 0] = z[1, 9] = 0
    p = host(ops.softmax(tensor(device, z, SINGLE)))
    assert p[0, 0] == 1 and p[1, 9] == SINGLE(1) / SINGLE(1 + 3 * 2**-23)
    g, _ = device.kernels.saliency_seed(device.asarray(z), device.asarray(np.array([0, 9])), 1.0, "plain")
    assert host(g)[0, 0] == 0 and host(g)[1, 9] == SINGLE(1) / SINGLE(1 + 3 * 2**-23) - 1


@pytest.mark.usefixtures("forty_digits")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("size", [2, 300, 1e4])
def test_scaled_seed(device, size, T, dtype):
    """g_k = -1, g_j = p_j / (1 - p_k) and log10((1 - p_k) / T), in decimals; labels on the winner and off it."""
    z = np.random.default_rng(4).normal(0, size, (10, 10)).astype(dtype)
    labels = np.concatenate([z.argmax(axis=1)[:5], np.arange(5)])
    g, log10_scale = device.kernels.saliency_seed(device.asarray(z), device.asarray(labels), T, "scaled")
    g, log10_scale = host(g), host(log10_scale)
    assert g.dtype == log10_scale.dtype == dtype and g.shape == z.shape and log10_scale.shape == (10,)
    eps, tiny = float(np.finfo(dtype).eps), np.finfo(dtype).tiny
    for log_p, k, row, scale in zip(log_softmax_oracle(z, T), labels, g, log10_scale, strict=True):
        rest = sum(v.exp() for j, v in enumerate(log_p) if j != k)
        expected = [float(v.exp() / rest) for v in log_p]
        expected[k] = -1
        roundings = 4 * eps * (2 + np.abs(np.array(log_p, float)).max())
        assert (np.abs(row - expected) <= roundings * np.abs(expected) + tiny).all()
        assert scale == pytest.approx(float((rest / Decimal(T)).log10()), rel=8 * eps, abs=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 20])
def test_plain_seed(device, T, dtype):
    z, labels = noise((6, 10), dtype), np.arange(6) + 2
    g, log10_scale = device.kernels.saliency_seed(device.asarray(z), device.asarray(labels), T, "plain")
    e = np.exp(z.astype(np.float64) / T)
    expected = (e / e.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / T
    assert_close(g, expected, dtype)
    assert host(log10_scale).tolist() == [0] * 6


def philox_oracle(counter, key):
    """Philox4x32-10 of one counter in Python integers, after Salmon et al. (SC 2011), figure 2 and table 2."""
    mask = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [high >> 32 ^ c[1] ^ k[0], high & mask, low >> 32 ^ c[3] ^ k[1], low & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_oracle_gives_the_published_answers(counter, key, answer):
    assert " ".join(f"{word:08x}" for word in philox_oracle(counter, key)) == answer


def test_philox():
    assert " ".join(f"{word:08x}" for word in cpu.philox(1, 0, 0, 0)[0]) == "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
    layer, step, seed = 3, 0xFFFFFFFE, 0x299F31D0A4093822
    expected = [philox_oracle([block, layer, step, 0], [seed & 0xFFFFFFFF, seed >> 32]) for block in range(50)]
    assert cpu.philox(50, layer, step, seed).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(("seed", "layer", "step"), [(0, 0, 0), (0xFFFFFFFFFFFFFFF1, 2, 0xFFFFFFFF)])
def test_dropout_mask(device, rate, seed, layer, step, dtype):
    x = noise((3, 5, 9), dtype)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    words = np.array([philox_oracle([block, layer, step, 0], key) for block in range(34)]).ravel()[: x.size]
    kept = (words < round((1 - rate) * 2**32)).reshape(x.shape)
    expected = np.where(kept, x * dtype(1 / (1 - rate)), 0)
    for where in (step, device.asarray(np.array([step], np.uint32))):
        values = tensor(device, x, dtype)
        y = ops.dropout(values, rate=rate, seed=seed, layer=layer, step=where)
        assert host(y).dtype == dtype and np.array_equal(host(y), expected)
        y.backward(device.asarray(np.ones_like(x)))
        assert np.array_equal(host(values.grad), np.where(kept, dtype(1 / (1 - rate)), 0))


def kept(device, rate=0.5, seed=0, layer=0, step=0, count=20_000):
    return host(ops.dropout(tensor(device, np.ones(count), SINGLE), rate=rate, seed=seed, layer=layer, step=step)) != 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share(device, rate):
    mask = kept(device, rate)
    assert abs(mask.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / mask.size)


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 1 << 32}, {"layer": 1}, {"step": 1}], ids=str)
def test_dropout_masks_are_independent(device, other):
    first, second = kept(device), kept(device, **other)
    for shift in (0, 1, 4):  # a stream that another layer or step merely shifts would agree everywhere at some shift
        agree = first == np.roll(second, shift)
        assert abs(agree.mean() - 0.5) < 5 * 0.5 / np.sqrt(agree.size)
    assert np.array_equal(first, kept(device))


# Name -> a view with the values of an array that lies otherwise in memory.
VIEWS = {
    "transposed": lambda xp, a: xp.ascontiguousarray(a.T).T,
    "sliced": lambda xp, a: xp.stack([a, a * 0 - 7], axis=-1)[..., 0],
    "reversed": lambda xp, a: xp.ascontiguousarray(a[::-1])[::-1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (lambda x, w, b: ops.conv2d(x, w, b, padding="same", relu=True), [(3, 2, 5, 6), (4, 2, 3, 3), (4,)]),
        (lambda x, w, b: ops.conv2d(x, w, b), [(3, 1, 5, 6), (4, 1, 2, 3), (4,)]),
        (lambda x, w, b: ops.dense(x, w, b, relu=True), [(3, 4), (4, 5), (5,)]),
        (ops.relu, [(3, 4, 5)]),
        (lambda x: ops.max_pool2d(x, ties="all"), [(3, 2, 5, 6)]),
        (ops.max_pool2d, [(3, 2, 5, 6)]),
        (lambda x: ops.dropout(x, rate=0.5, seed=1, layer=0, step=0), [(3, 2, 5, 6)]),
        (lambda z: ops.softmax(z, T=2), [(3, 4)]),
        (lambda z: ops.log_softmax(z, T=2), [(3, 4)]),
    ],
    ids=["conv2d same", "conv2d", "dense", "relu", "max_pool2d all", "max_pool2d", "dropout", "softmax", "log_softmax"],
)
def test_memory_order_does_not_matter(device, operation, shapes, view):
    plain = [device.asarray(noise(shape, seed=i)) for i, shape in enumerate(shapes)]
    viewed = [view(device.xp, a) for a in plain]
    assert all(np.array_equal(host(a), host(b)) for a, b in zip(plain, viewed, strict=True))
    assert any(not a.flags.c_contiguous for a in viewed)
    results = []
    for arrays in (plain, viewed):
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        y = operation(*tensors)
        seed = device.asarray(noise(y.shape, seed=9))
        y.backward(seed if arrays is plain else view(device.xp, seed))
        results.append([host(y), *(host(t.grad) for t in tensors)])
    for expected, values in zip(*results, strict=True):
        assert np.abs(expected).max() > 0
        assert_close(values, expected, np.float64)


def test_labels_in_any_memory_order_and_integer_type(device):
    z, soft = noise((4, 3)), np.random.default_rng(1).dirichlet(np.ones(3), 4)
    labels = np.array([0, 2, 1, 2])
    expected = [host(ops.cross_entropy(tensor(device, z), device.asarray(t))) for t in (labels, soft)]
    strided = device.asarray(np.repeat(labels, 2))[::2], device.asarray(np.asfortranarray(soft).T).T
    for target, losses in zip(strided, expected, strict=True):
        assert not target.flags.c_contiguous
        assert np.array_equal(host(ops.cross_entropy(tensor(device, z), target)), losses)
    for dtype in (np.int32, np.uint8, np.int64):
        target = device.asarray(labels, dtype=dtype)
        assert np.array_equal(host(ops.cross_entropy(tensor(device, z), target)), expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch(device, dtype):
    x, w, b = (tensor(device, a, dtype) for a in (np.ones((0, 2, 6, 7)), noise((3, 2, 3, 3)), noise(3)))
    y = ops.max_pool2d(ops.conv2d(x, w, b, relu=True))
    z = ops.dense(
        ops.dropout(y, rate=0.5, seed=0, layer=0, step=0).reshape(0, 12),
        *(tensor(device, a, dtype) for a in (noise((12, 4)), noise(4))),
    )
    losses = ops.cross_entropy(ops.log_softmax(z) + ops.softmax(z), device.asarray(np.zeros(0, np.int32)))
    assert y.shape == (0, 3, 2, 2) and z.shape == (0, 4) and losses.shape == (0,)
    losses.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape and not host(w.grad).any() and not host(b.grad).any()
    g, log10_scale = device.kernels.saliency_seed(z.data, device.asarray(np.zeros(0, np.int32)), 1.0, "scaled")
    assert g.shape == (0, 4) and log10_scale.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("on_device", [False, True])
def test_nesterov_step(device, on_device, dtype):
    """Lasagne's apply_nesterov_momentum, element by element, over two steps."""
    lr, momentum, l2 = 0.1, 0.5, 0.01
    w, v, gradients = noise((3, 5), dtype), noise((3, 5), dtype, 1), [noise((3, 5), dtype, seed) for seed in (2, 3)]
    moved, velocity = device.asarray(w.copy()), device.asarray(v.copy())
    w, v = w.astype(np.float64), v.astype(np.float64)
    for g in gradients:
        rate = device.asarray(np.array([lr], dtype)) if on_device else lr
        device.kernels.nesterov_step(moved, velocity, device.asarray(g), rate, momentum, l2)
        for i in np.ndindex(w.shape):
            change = lr * (g[i] + 2 * l2 * w[i])
            v[i] = momentum * v[i] - change
            w[i] += momentum * v[i] - change
    assert_close(moved, w, dtype)
    assert_close(velocity, v, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(11,), (11, 3), (11, 1, 5, 7)], ids=str)
def test_gather_and_advance(device, shape, dtype):
    """Batches of 4 of 11 rows: two a pass, the last three places of the permutation are never reached."""
    rng = np.random.default_rng(0)
    data, permutation = rng.integers(0, 1000, shape).astype(dtype), rng.permutation(11).astype(np.int32)
    on_device, order = device.asarray(data), device.asarray(permutation)
    counter = device.asarray(np.array([0], np.uint32))
    for step in range(5):
        first = step % 2 * 4
        expected = data[permutation[first : first + 4]]
        for where in (step, counter):
            rows = host(device.kernels.gather(on_device, order, where, 4))
            assert rows.dtype == dtype and np.array_equal(rows, expected)
        device.kernels.advance(counter)
    assert host(counter).tolist() == [5] and host(counter).dtype == np.uint32


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_in_float64(device, dtype):
    """2^24 + 1 is no float32: a sum in float32 would lose the ones."""
    total = device.asarray(np.array([0.5]))
    values = device.asarray(np.array([2.0**24] + [1.0] * 1000, dtype))
    device.kernels.accumulate(total, values)
    device.kernels.accumulate(total, values)
    assert host(total).tolist() == [2 * (2**24 + 1000) + 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5), (1, 1, 1, 1)], ids=str)
def test_bias_grad(device, shape, dtype):
    g = noise(shape, dtype)
    assert_close(
        device.kernels.bias_grad(device.asarray(g)),
        np.swapaxes(g, 0, 1).reshape(shape[1], -1).sum(1, np.float64),
        dtype,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)], ids=str)
def test_saliency_end(device, padding, kernel):
    """The pillar's own input gradient, which the gradient suite proves, and what each map holds."""
    shape, w = (3, 1, 6, 7), noise((4, 1, *kernel))
    g = noise(conv2d_oracle(np.zeros(shape), w, np.zeros(4), padding).shape, seed=1)
    g[1] = 0
    g[2, :, :, :2] = 0
    g, w = device.asarray(g), device.asarray(w)
    maps, summary = (host(a) for a in device.kernels.saliency_end(g, w, shape, padding))
    expected = host(device.kernels.conv2d_input_grad(g, w, shape, padding))[:, 0]
    assert_close(maps, expected, np.float64)
    assert maps.any(axis=(1, 2)).tolist() == [True, False, True]
    for row, one in zip(summary, maps, strict=True):
        assert row[:2].tolist() == [one.max(), one.min()] and row[3] == (one == 0).sum()
        assert row[2] == pytest.approx(one.sum(), rel=1e-12, abs=1e-12)
    assert 0 < summary[2, 3] < summary[1, 3] == 42


def conv2d_of(x_shape, w_shape, b_shape, **options):
    return lambda d: ops.conv2d(*(tensor(d, np.ones(s)) for s in (x_shape, w_shape, b_shape)), **options)


def dense_of(*shapes):
    return lambda d: ops.dense(*(tensor(d, np.ones(s)) for s in shapes))


def loss_of(z_shape, target, T=1.0):
    return lambda d: ops.cross_entropy(tensor(d, np.ones(z_shape)), d.asarray(target), T=T)


def pool_of(shape, **options):
    return lambda d: ops.max_pool2d(tensor(d, np.ones(shape)), **options)


def dropout_of(rate):
    return lambda d: ops.dropout(tensor(d, np.ones(4)), rate=rate, seed=0, layer=0, step=0)


REFUSED = [
    (conv2d_of((2, 5, 5), (3, 2, 3, 3), (3,)), r"images must have shape \(N, C, H, W\), got \(2, 5, 5\)"),
    (conv2d_of((1, 2, 5, 5), (3, 4, 3, 3), (3,)), r"filters must have shape \(O, 2, kh, kw\), got \(3, 4, 3, 3\)"),
    (conv2d_of((1, 2, 5, 5), (3, 2, 3, 3), (4,)), r"bias must have shape \(3\), got \(4,\)"),
    (conv2d_of((1, 2, 5, 5), (3, 2, 3, 3), (3,), padding="full"), "padding must be 'valid' or 'same', got 'full'"),
    (
        conv2d_of((1, 2, 5, 5), (3, 2, 3, 6), (3,)),
        "a kernel of 6 does not fit into 5 rows or columns: use padding='same'",
    ),
    (dense_of((2, 3, 4), (3, 4), (4,)), r"inputs must have shape \(N, D\), got \(2, 3, 4\)"),
    (dense_of((2, 3), (4, 5), (5,)), r"weights must have shape \(3, U\), got \(4, 5\)"),
    (dense_of((2, 3), (3, 5), (3,)), r"bias must have shape \(5\), got \(3,\)"),
    (pool_of((2, 4, 4)), r"images must have shape \(N, C, H, W\), got \(2, 4, 4\)"),
    (pool_of((1, 2, 4, 4), ties="last"), "ties must be 'first' or 'all', got 'last'"),
    (pool_of((1, 2, 4, 4), size=0), r"pool size must be 1 to 16 and at most the image's \(4, 4\), got 0"),
    (pool_of((1, 2, 4, 6), size=5), r"pool size must be 1 to 16 and at most the image's \(4, 6\), got 5"),
    (pool_of((1, 1, 20, 20), size=17), r"pool size must be 1 to 16 and at most the image's \(20, 20\), got 17"),
    (dropout_of(1), "the dropout rate must be at least 0 and below 1, got 1"),
    (dropout_of(-0.1), "the dropout rate must be at least 0 and below 1, got -0.1"),
    (dropout_of(float("nan")), "the dropout rate must be at least 0 and below 1, got nan"),
    (lambda d: ops.softmax(tensor(d, np.ones(3))), r"logits must have shape \(N, K\), got \(3,\)"),
    (lambda d: ops.log_softmax(tensor(d, np.ones((2, 3, 4)))), r"logits must have shape \(N, K\), got \(2, 3, 4\)"),
    (loss_of((3,), np.zeros(3, int)), r"logits must have shape \(N, K\), got \(3,\)"),
    (loss_of((2, 3), np.zeros(3, int)), r"class labels must have shape \(2\), got \(3,\)"),
    (loss_of((2, 3), np.zeros(2)), "class labels must be integers, got float64"),
    (loss_of((2, 3), np.ones(2, bool)), "class labels must be integers, got bool"),
    (loss_of((2, 3), np.ones((2, 4))), r"soft labels must have shape \(2, 3\), got \(2, 4\)"),
    (loss_of((2, 3), np.ones((2, 3), SINGLE)), "soft labels must have the logits' dtype float64, got float32"),
    (
        lambda d: d.kernels.saliency_seed(d.asarray(np.ones((1, 3))), d.asarray(np.array([0])), 1.0, "exact"),
        "arithmetic must be 'plain' or 'scaled', got 'exact'",
    ),
    (
        lambda d: d.kernels.saliency_end(
            d.asarray(np.ones((1, 2, 3, 3))), d.asarray(np.ones((2, 2, 1, 1))), (1, 2, 3, 3), "valid"
        ),
        "a saliency map has one channel, the images have 2",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(device, call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(device)


@pytest.mark.parametrize("T", [0, -1, float("nan"), float("-inf")])
@pytest.mark.parametrize(
    "call",
    [
        lambda T: ops.softmax(Tensor(np.ones((1, 3))), T=T),
        lambda T: ops.log_softmax(Tensor(np.ones((1, 3))), T=T),
        lambda T: ops.cross_entropy(Tensor(np.ones((1, 3))), np.array([0]), T=T),
        lambda T: TemperatureSoftmax(T),
        lambda T: saliency_maps(None, (), (), T=T),
    ],
    ids=["softmax", "log_softmax", "cross_entropy", "TemperatureSoftmax", "saliency_maps"],
)
def test_temperature_that_is_not_positive(call, T):
    with pytest.raises(ValueError, match=f"^the temperature T must be positive, got {T}$"):
        call(T)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(label):
    """On the CPU alone: a kernel cannot raise."""
    z, labels = np.ones((2, 3)), np.array([1, label])
    message = f"labels must be 0 to 2, got {min(1, label)} to {max(1, label)}"
    for call in (
        lambda: ops.cross_entropy(Tensor(z), labels),
        lambda: cpu.cross_entropy_grad(np.ones(2), z, labels, 1.0),
        lambda: cpu.saliency_seed(z, labels, 1.0, "plain"),
        lambda: cpu.saliency_seed(z, labels, 1.0, "scaled"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_dtypes_do_not_mix(device):
    x, w, b = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)
    with pytest.raises(TypeError, match="dense: arguments differ in device or dtype: .*float32.*float64"):
        ops.dense(tensor(device, x, SINGLE), tensor(device, w), tensor(device, b))
    with pytest.raises(TypeError, match="float32.*float64|float64.*float32"):
        ops.dense(tensor(device, x, SINGLE), device.asarray(w), device.asarray(b))


def test_devices_do_not_mix(device):
    if device.name == "cpu":
        pytest.skip("the other devices mix with it")
    with pytest.raises(TypeError, match=f"dense: arguments differ in device or dtype: .*cpu.*{device.name}"):
        ops.dense(Tensor(np.ones((2, 3))), tensor(device, np.ones((3, 4))), tensor(device, np.ones(4)))


def test_optimiser_refuses(device):
    parameters = {"W": tensor(device, np.ones(3)), "b": tensor(device, np.ones(1))}
    with pytest.raises(ValueError, match=r"l2 names \['w'\], the parameters are \['W', 'b'\]"):
        NesterovSGD(parameters, 0.1, l2={"w": 0.01})
    optimiser = NesterovSGD(parameters, 0.1)
    parameters["W"].sum().backward()
    with pytest.raises(ValueError, match=r"b has no gradient: call backward\(\) on a loss that depends on it first"):
        optimiser.step()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_thread_count_does_not_change_a_bit(size):
    x, w, b = noise((5, 3, 9, 11), SINGLE), noise((4, 3, size, size), SINGLE, 1), noise(4, SINGLE, 2)
    g = noise(cpu.conv2d(x, w, b, "valid", True).shape, SINGLE, 3)

    def results():
        y = cpu.conv2d(x, w, b, "valid", True)
        pooled, winner = cpu.max_pool2d(y, 2)
        return [
            y,
            cpu.conv2d_input_grad(g, w, x.shape, "valid"),
            cpu.conv2d_weight_grad(x, g, w.shape, "valid"),
            cpu.relu_grad(g, y),
            pooled,
            winner,
            cpu.max_pool2d_grad(pooled, y, pooled, winner, 2, "all"),
        ]

    try:
        by_threads = []
        for threads in (1, 2, 5):
            cpu.set_threads(threads)
            by_threads.append([a.tobytes() for a in results()])
    finally:
        cpu.set_threads(min(cpu.ROW_BLOCKS, cpu._available_cores()))
    assert by_threads[0] == by_threads[1] == by_threads[2]
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        cpu.set_threads(0)
