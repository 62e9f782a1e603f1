"""Every operation against a slow, obvious oracle, on every backend, on shapes that divide nothing, and what it refuses.
Whether the gradients are derivatives is for test_gradcheck.py; here they have the values of an oracle of their own."""

import decimal
import functools
import inspect
import itertools
import re
from decimal import Decimal

import numpy as np
import pytest

from minicnn import backend, ops
from minicnn.autograd import Tensor, grad, op
from tests.test_cpu import philox_oracle

DTYPES = [np.float32, np.float64]
SINGLE = np.float32
both_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def host(values):
    return backend.to_host(values.data if isinstance(values, Tensor) else values)


def tensor(device, values, dtype=np.float64):
    return Tensor(device.asarray(values, dtype=dtype), requires_grad=True)


def noise(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_close(values, expected, dtype, roundings=16):
    """Within some roundings of the largest entry, and of the operation's own dtype."""
    values = host(values)
    assert values.dtype == dtype and values.shape == expected.shape
    assert np.abs(values - expected).max(initial=0) <= roundings * np.finfo(dtype).eps * np.abs(expected).max(initial=0)


def conv2d_oracle(x, w, b, padding, g=None):
    """y, or by a cotangent g of y the gradients by x, w and b: one output pixel and one tap at a time, in float64."""
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    (height, width), (kh, kw) = x.shape[2:], w.shape[2:]
    top, left = ((kh - 1) // 2, (kw - 1) // 2) if padding == "same" else (0, 0)
    rows, columns = (height, width) if padding == "same" else (height - kh + 1, width - kw + 1)
    y, gx, gw = np.zeros((len(x), len(w), rows, columns)), np.zeros(x.shape), np.zeros(w.shape)
    y += b[:, None, None]
    for r, c, i, j in itertools.product(range(rows), range(columns), range(kh), range(kw)):
        p, q = r + i - top, c + j - left
        if 0 <= p < height and 0 <= q < width:
            y[:, :, r, c] += x[:, :, p, q] @ w[:, :, i, j].T
            if g is not None:
                gx[:, :, p, q] += g[:, :, r, c] @ w[:, :, i, j]
                gw[:, :, i, j] += g[:, :, r, c].T.astype(np.float64) @ x[:, :, p, q]
    return y if g is None else (gx, gw, g.sum(axis=(0, 2, 3), dtype=np.float64))


CONVOLUTIONS = [  # shape of the images, filters, kernel
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
    ((1, 1, 5, 7), 3, (3, 3)),  # one image, one channel: threads share the strips of the weight gradient
    ((2, 3, 9, 8), 33, (3, 3)),  # one filter more than a block has
    ((3, 35, 6, 7), 5, (3, 3)),  # channels in several chunks and two blocks
    ((2, 12, 12, 12), 40, (3, 3)),  # channels shared by three groups of threads
    ((2, 1, 41, 70), 2, (3, 3)),  # several tiles and bands in both directions
    ((19, 3, 4, 4), 5, (3, 3)),  # several images in a block, the last block not full
    ((1, 2, 3, 3), 1, (3, 3)),  # a single output
    ((1, 2, 7, 7), 2, (4, 4)),
    ((2, 1, 6, 6), 2, (1, 1)),
    ((1, 2, 7, 9), 3, (5, 5)),
    ((1, 2, 6, 9), 3, (2, 5)),
    ((0, 2, 5, 5), 3, (3, 3)),
    ((0, 2, 5, 5), 3, (2, 2)),
    ((10000, 1, 4, 5), 2, (3, 3)),
]


@both_dtypes
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("shape", "filters", "kernel"), CONVOLUTIONS, ids=str)
def test_conv2d(device, shape, filters, kernel, padding, dtype):
    x, w, b = noise(shape, dtype), noise((filters, shape[1], *kernel), dtype, 1), noise(filters, dtype, 2)
    expected = conv2d_oracle(x, w, b, padding)
    assert (expected < 0).any() or expected.size < 2
    arguments = [tensor(device, a, dtype) for a in (x, w, b)]
    assert_close(ops.conv2d(*arguments, padding=padding), expected, dtype)
    y = ops.conv2d(*arguments, padding=padding, relu=True)
    assert_close(y, np.maximum(expected, 0), dtype)
    g = noise(expected.shape, dtype, 3)
    y.backward(device.asarray(g))
    for argument, gradient in zip(arguments, conv2d_oracle(x, w, b, padding, g * (host(y) > 0)), strict=True):
        assert_close(argument.grad, gradient, dtype, roundings=80)


@pytest.mark.parametrize("kernel", [(5, 5), (4, 6), (3, 3)], ids=str)
def test_conv2d_with_a_kernel_larger_than_the_image(device, kernel):
    x, w, b = noise((2, 2, 2, 3)), noise((3, 2, *kernel), seed=1), noise(3, seed=2)
    arguments = [tensor(device, a) for a in (x, w, b)]
    y = ops.conv2d(*arguments, padding="same")
    assert_close(y, conv2d_oracle(x, w, b, "same"), np.float64)
    g = noise(y.shape, seed=3)
    y.backward(device.asarray(g))
    for argument, gradient in zip(arguments, conv2d_oracle(x, w, b, "same", g), strict=True):
        assert_close(argument.grad, gradient, np.float64)


@both_dtypes
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 7])
def test_conv2d_of_a_window_without_bias(device, channels, kernel, dtype):
    """What lies outside the window is 0: the outputs that it reaches are those of the whole image."""
    w, size = noise((5, channels, *kernel), dtype, 1), (9, 10)
    for rows, columns in itertools.product(((0, 1), (0, 3), (3, 6), (7, 9)), ((0, 2), (4, 5), (9, 10), (0, 10))):
        x = np.zeros((3, channels, *size))
        window = noise((3, channels, rows[1] - rows[0], columns[1] - columns[0]), dtype)
        x[:, :, slice(*rows), slice(*columns)] = window
        whole = conv2d_oracle(x, w, np.zeros(5), "valid")
        first = [max(0, span[0] - k + 1) for span, k in zip((rows, columns), kernel, strict=True)]
        last = [min(span[1], extent) for span, extent in zip((rows, columns), whole.shape[2:], strict=True)]
        assert whole.any() and not np.delete(whole, np.s_[first[0] : last[0]], axis=2).any()
        offset = rows[0] - first[0], columns[0] - first[1]
        size_out = last[0] - first[0], last[1] - first[1]
        y = device.functions.conv2d(device.asarray(window), device.asarray(w), None, size_out, offset, False)
        assert_close(y, whole[:, :, first[0] : last[0], first[1] : last[1]], dtype)


@pytest.mark.parametrize("channels", [1, 2])
def test_conv2d_input_gradient_of_zeros_is_exactly_zero(device, channels):
    """Saliency maps are counted by their zeros."""
    g = noise((3, 4, 5, 6))
    g[1], g[2, :, :2] = 0, 0
    w = device.asarray(noise((4, channels, 3, 3)))
    gx = host(device.functions.conv2d_input_grad(device.asarray(g), w, (7, 8), (0, 0)))
    assert (gx[0] != 0).all() and (gx[1] == 0).all()
    assert (gx[2, :, :2] == 0).all() and (gx[2, :, 2:] != 0).all()


@both_dtypes
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel"),
    [
        ((20, 17, 7, 9), 33, (3, 3)),
        ((3, 2, 5, 6), 4, (3, 3)),
        ((2, 1, 6, 5), 3, (3, 3)),
        ((2, 3, 5, 4), 2, (2, 3)),
        ((40, 9, 1, 1), 7, (1, 1)),
        ((0, 2, 5, 5), 3, (3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("infinite", [False, True])
def test_conv2d_input_gradient_with_a_mask_is_that_of_relu_after_it(
    device, shape, filters, kernel, padding, infinite, dtype
):
    """To the last bit. What decides: numbers below and above 0, both zeros, infinity and NaN."""
    f, rng = device.functions, np.random.default_rng(0)
    offset = tuple((k - 1) // 2 if padding == "same" else 0 for k in kernel)
    size_out = shape[2:] if padding == "same" else tuple(s - k + 1 for s, k in zip(shape[2:], kernel, strict=True))
    g, w = noise((shape[0], filters, *size_out), dtype), noise((filters, shape[1], *kernel), dtype, 1)
    g[: shape[0] // 2] *= rng.random(g[: shape[0] // 2].shape) < 0.1
    w.flat[0] = np.inf if infinite else w.flat[0]
    mask = rng.choice(np.array([-1, -0.0, 0, 1e-40, 2, np.inf, -np.inf, np.nan], dtype), shape)
    g, w, mask = (device.asarray(a.astype(dtype)) for a in (g, w, mask))
    with np.errstate(invalid="ignore"):
        found, plain = (f.conv2d_input_grad(g, w, shape[2:], offset, *rest) for rest in ((mask,), ()))
    assert host(found).tobytes() == host(f.relu_grad(plain, mask)).tobytes()
    assert not shape[0] or not np.array_equal(host(found), host(plain), equal_nan=True)


USES_OF_H = {  # what is made of h and y = conv2d(h), and what gradients are asked for beside that by x
    "by one convolution": (lambda h, y, conv: y, False),
    "by two convolutions": (lambda h, y, conv: y + conv(h), False),
    "by another operation": (lambda h, y, conv: y.sum() + h.sum(), False),
    "twice by one operation": (lambda h, y, conv: (h * h).sum() + y.sum(), False),
    "by another operation alone": (lambda h, y, conv: (h * h).sum(), False),
    "its gradient asked for": (lambda h, y, conv: y, True),
}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("use", USES_OF_H)
def test_relu_between_convolutions(device, monkeypatch, use, pooled):
    """The convolution after a ReLU does its gradient too where it alone uses what the ReLU gave, and nowhere else; the
    bits are those of the two one after the other."""
    x, w, b, v, c = (
        tensor(device, noise(shape, np.float32, i), np.float32)
        for i, shape in enumerate([(4, 2, 8, 8), (5, 2, 3, 3), (5,), (3, 5, 3, 3), (3,)])
    )
    f, masks, (outcome, wanted) = device.functions, [], USES_OF_H[use]
    right = f.conv2d_input_grad

    def recorded(g, w, size, offset, mask=None):
        masks.append(mask is not None)
        return right(g, w, size, offset, mask)

    monkeypatch.setattr(f, "conv2d_input_grad", recorded)
    found = []
    for together in (True, False):
        if together:
            h = ops.conv2d_max_pool2d(x, w, b, relu=True) if pooled else ops.conv2d(x, w, b, relu=True)
        else:
            h = ops.relu(ops.conv2d(x, w, b))
            h = ops.max_pool2d(h) if pooled else h
        out = outcome(h, ops.conv2d(h, v, c, padding="same"), lambda h: ops.conv2d(h, v, c, padding="same"))
        gradients = grad(out, [x, w, b, *([h] if wanted else [])], device.xp.ones_like(out.data))
        found.append([host(gradient) for gradient in gradients])
        assert any(masks) == (together and use == "by one convolution"), masks
        masks.clear()
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()
    assert len(found[0]) == 3 or (found[0][3] != 0).all(), "the gradient by h is that before its ReLU"


@pytest.mark.parametrize(("images", "ordered"), [(5, "C"), (5, "F"), (70, "C"), (1, "C"), (0, "C")])
def test_relu_between_dense_layers(device, monkeypatch, images, ordered):
    """As between convolutions; w of any order, of which C has ways of its own."""
    f, masks, found = device.functions, [], []
    right = f.dense_input_grad

    def recorded(g, w, mask=None):
        masks.append(mask is not None)
        return right(g, w, mask)

    monkeypatch.setattr(f, "dense_input_grad", recorded)
    shapes = [(images, 4), (4, 30), (30,), (30, 20), (20,)]
    x, w, b, v, c = (tensor(device, noise(shape, SINGLE, i), SINGLE) for i, shape in enumerate(shapes))
    if device.xp is np:
        v.data = np.asarray(v.data, order=ordered)
    for together in (True, False):
        h = ops.dense(x, w, b, relu=True) if together else ops.relu(ops.dense(x, w, b))
        out = ops.dense(h, v, c)
        found.append([host(g) for g in grad(out, [x, w, b, v, c], device.xp.ones_like(out.data))])
        assert any(masks) == together, masks
        masks.clear()
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


def chain(x, w, b, v, c, first=ops.conv2d):
    h = first(x, w, b)
    return h, ops.conv2d(h, v, c).sum()


def small_chain(device):
    shapes = [(2, 1, 5, 5), (2, 1, 3, 3), (2,), (2, 2, 1, 1), (2,)]
    return [tensor(device, noise(shape, seed=i)) for i, shape in enumerate(shapes)]


def test_relu_between_convolutions_is_that_of_the_forward_pass(device):
    """Whatever the Tensor between them holds since."""
    tensors = small_chain(device)
    h, y = chain(*tensors, first=functools.partial(ops.conv2d, relu=True))
    before = host(grad(y, tensors[:1])[0])
    h.data = device.xp.ones_like(h.data)
    assert np.array_equal(host(grad(y, tensors[:1])[0]), before)


def test_relu_within_an_operation_of_ones_own_before_a_convolution(device):
    """Its value is not that of its ReLU, which decides."""

    @op
    def lifted(x, w, b):
        y, pullbacks, shared = inspect.unwrap(ops.conv2d)(x, w, b, relu=True)
        return y + 1, pullbacks, shared

    x, *others = small_chain(device)
    h, y = chain(x, *others, first=lifted)
    step = np.float64(1e-6)
    direction = device.asarray(noise(x.shape, seed=9))
    moved = [float(host(chain(Tensor(x.data + s * direction), *others, first=lifted)[1].data)) for s in (step, -step)]
    slope = float(host((grad(y, [x])[0] * direction).sum()))
    assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6) and slope


def test_relu_before_an_operation_whose_gradient_has_another_shape(device):
    """Such an operation is refused before its mask is read."""

    @op
    def padded(h):
        wide = np.pad(host(h), ((0, 0), (0, 0), (20, 20), (20, 20)))
        return inspect.unwrap(ops.conv2d)(device.asarray(wide), v.data, c.data)

    x, w, b, v, c = small_chain(device)
    with pytest.raises(TypeError, match=re.escape("given (2, 2, 43, 43), and the ReLU that its gradient goes to (2,")):
        grad(padded(ops.conv2d(x, w, b, relu=True)).sum(), [x])


DENSE = [(1, 1, 1), (2, 3, 5), (1, 67, 10), (65, 4, 33), (65, 70, 130), (2, 1027, 3), (1030, 3, 5), (10000, 20, 3)]


@both_dtypes
@pytest.mark.parametrize("shape", [*DENSE, (0, 4, 3), (70, 0, 1), (1, 0, 200), (70, 1, 0), (1, 200, 0)], ids=str)
def test_dense(device, shape, dtype):
    n, inputs, units = shape
    x, w, b = noise((n, inputs), dtype), noise((inputs, units), dtype, 1), noise(units, dtype, 2)
    g, double = noise((n, units), dtype, 3), np.float64
    expected = np.einsum("nd,du->nu", x.astype(double), w.astype(double)) + b
    arguments = [tensor(device, a, dtype) for a in (x, w, b)]
    assert_close(ops.dense(*arguments), expected, dtype)
    y = ops.dense(*arguments, relu=True)
    assert_close(y, np.maximum(expected, 0), dtype)
    y.backward(device.asarray(g))
    g = (g * (host(y) > 0)).astype(double)
    gradients = np.einsum("nu,du->nd", g, w), np.einsum("nd,nu->du", x, g), g.sum(axis=0)
    for argument, gradient in zip(arguments, gradients, strict=True):
        assert_close(argument.grad, gradient, dtype, roundings=80)


def test_relu_and_its_gradient_at_zero(device):
    values = np.array([[-2.0, -0.0, 0.0], [1e-300, 3.0, -1e-300]])
    x = tensor(device, values)
    y = ops.relu(x)
    y.backward(device.asarray(np.full(values.shape, 7.0)))
    assert host(y).tolist() == [[0, 0, 0], [1e-300, 3, 0]]
    assert host(x.grad).tolist() == [[0, 0, 0], [7, 7, 0]]


@both_dtypes
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 301), (2, 3, 5, 7)], ids=str)
def test_relu_keeps_nan(device, shape, dtype):
    values, g = noise(shape, dtype), noise(shape, dtype, 1)
    values.reshape(-1)[:1] = np.nan
    x = tensor(device, values, dtype)
    y = ops.relu(x)
    y.backward(device.asarray(g))
    assert np.array_equal(host(y), np.maximum(values, 0), equal_nan=True)
    assert np.array_equal(host(x.grad), np.where(values <= 0, dtype(0), g))


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 3, 1, 2), (0, 2, 3, 4), (4, 7), (2, 3, 5)], ids=str)
def test_flatten_is_in_logical_order(device, shape):
    values = noise(shape, np.float64)
    g = noise((shape[0], values[:1].size if shape[0] else np.prod(shape[1:])), np.float64, 1)
    x = tensor(device, values)
    y = ops.flatten(x)
    y.backward(device.asarray(g))
    assert np.array_equal(host(y), values.reshape(g.shape)) and np.array_equal(host(x.grad), g.reshape(shape))


def test_conv2d_dense_max_pool2d_cross_entropy_hide_no_nan(device):
    """Training finds a divergence by its loss, so no operation may turn NaN into a number."""
    bad, zero = tensor(device, np.full((1, 1, 2, 2), np.nan)), tensor(device, np.zeros(1))
    flat = tensor(device, np.full((2, 2), np.nan))
    for y in (
        ops.conv2d(bad, tensor(device, np.ones((1, 1, 1, 1))), zero, relu=True),
        ops.dense(flat, tensor(device, np.ones((2, 3))), tensor(device, np.zeros(3)), relu=True),
        ops.max_pool2d(bad),
        ops.cross_entropy(flat, device.asarray(np.array([0, 1]))),
    ):
        assert np.isnan(host(y)).all()


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


POOLS = [
    ((2, 3, 7, 8), 1),
    ((2, 3, 7, 9), 2),
    ((1, 1, 8, 6), 2),
    ((3, 2, 7, 11), 3),
    ((3, 3, 11, 5), 3),
    ((1, 2, 9, 9), 5),
    ((1, 1, 17, 33), 16),
    ((1, 2, 33, 70), 16),
    ((40, 2, 4, 5), 2),  # blocks of images that overlap
    ((31, 1, 3, 70), 2),  # more windows than are copied together
    ((0, 2, 4, 4), 2),
    ((10000, 1, 4, 5), 2),
]


@both_dtypes
@pytest.mark.parametrize(("shape", "size"), POOLS, ids=str)
def test_max_pool2d(device, shape, size, dtype):
    """On whole numbers from -2 to 1, so that most windows have ties."""
    x = np.random.default_rng(0).integers(-2, 2, shape).astype(dtype)
    y, winner = pool_oracle(x, size)
    found, found_winner = device.functions.max_pool2d(device.asarray(x), size)
    assert np.array_equal(host(found), y) and np.array_equal(host(found_winner), winner)
    assert host(found).dtype == dtype and host(found_winner).dtype == np.uint8
    g = noise(y.shape, dtype)
    expected = {ties: pool_grad_oracle(g, x, size, ties) for ties in ("first", "all")}
    for ties in expected:
        images = tensor(device, x, dtype)
        ops.max_pool2d(images, size=size, ties=ties).backward(device.asarray(g))
        assert np.array_equal(host(images.grad), expected[ties])
    if size > 1 and x.size:
        assert not np.array_equal(*expected.values())


TIED = [[2, 2, 1, 0, 9], [2, 1, 3, 3, 9], [5, 5, 0, 7, 9], [5, 5, 7, 0, 9], [9, 9, 9, 9, 9]]


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [2, 17])
@pytest.mark.parametrize(("size", "images", "present"), [(2, 20, 1), (2, 70, 0.3), (3, 5, 0.3)])
def test_conv2d_max_pool2d_is_the_two_one_after_the_other(device, ties, relu, channels, size, images, present):
    """To the last bit, with ties, numbers below 0 and NaN, and where much is 0."""
    rng, found = np.random.default_rng(0), []
    shapes = (images, channels, 7, 8), (9, channels, 3, 3), (images, 9, 5 // size, 6 // size)
    x, w, g = (rng.standard_normal(shape).round(1) for shape in shapes)
    x *= rng.random(x.shape) < present
    x[0], x[1, 0, 2, 2] = 0.5, np.nan
    for together in (True, False):
        tensors = [tensor(device, a, SINGLE) for a in (x, w, w[:, 0, 0, 0])]
        if together:
            y = ops.conv2d_max_pool2d(*tensors, relu=relu, size=size, ties=ties)
        else:
            y = ops.max_pool2d(ops.conv2d(*tensors, relu=relu), size, ties)
        y.backward(device.asarray(g, dtype=SINGLE))
        found.append([host(a) for a in (y, *(t.grad for t in tensors))])
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("ties", "expected"),
    [
        ("first", [[1, 0, 0, 0, 0], [0, 0, 2, 0, 0], [3, 0, 0, 4, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
        ("all", [[1, 1, 0, 0, 0], [1, 0, 2, 2, 0], [3, 3, 0, 4, 0], [3, 3, 4, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_max_pool2d_gradient_of_tied_maxima(device, ties, expected):
    x = tensor(device, np.array([[TIED]]), SINGLE)
    ops.max_pool2d(x, size=2, ties=ties).backward(device.asarray(np.array([[[[1, 2], [3, 4]]]]), dtype=SINGLE))
    assert host(x.grad)[0, 0].tolist() == expected


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
@both_dtypes
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_softmax_log_softmax_cross_entropy(device, logits, T, dtype):
    rng = np.random.default_rng(3)
    z = logits(rng).astype(dtype)
    n, classes = z.shape
    labels = np.arange(n) % classes
    soft = rng.dirichlet(np.ones(classes), n).astype(dtype)
    exact = log_softmax_oracle(z, T)
    log_p = np.array(exact, float)
    soft_losses = np.array(
        [float(-sum(Decimal(float(t)) * v for t, v in zip(*r, strict=True))) for r in zip(soft, exact, strict=True)]
    )
    eps, logits_on_device = np.finfo(dtype).eps, tensor(device, z, dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = [
            (ops.log_softmax(logits_on_device, T=T), log_p),
            (ops.cross_entropy(logits_on_device, device.asarray(labels), T=T), -log_p[np.arange(n), labels]),
            (ops.cross_entropy(logits_on_device, device.asarray(soft), T=T), soft_losses),
        ]
        p = host(ops.softmax(logits_on_device, T=T))
    for values, expected in found:
        assert values.dtype == dtype and values.shape == expected.shape
        np.testing.assert_allclose(host(values), expected, rtol=8 * eps, atol=8 * eps)
    assert p.dtype == dtype
    expected = np.array([[float(v.exp()) for v in row] for row in exact])
    assert (np.abs(p - expected) <= 4 * eps * (2 + np.abs(log_p)) * expected + np.finfo(dtype).tiny).all()


@both_dtypes
@pytest.mark.parametrize("T", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (130, 3), (0, 10), (10000, 20)], ids=str)
def test_softmax_log_softmax_cross_entropy_gradients(device, shape, T, dtype):
    """Logits as large as T, soft labels that do not sum to 1, class labels of any integer type."""
    z, g = (2 * T * noise(shape)).astype(dtype), noise(shape, dtype, 1)
    u, rows = z.astype(np.float64) / T, np.arange(len(z))
    p = np.exp(u - u.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    soft = np.random.default_rng(2).uniform(0, 1, shape).astype(dtype)
    labels = rows * 3 % shape[1]
    hard = np.zeros(shape)
    hard[rows, labels] = 1

    def gradient(operation, cotangent, *target):
        logits = tensor(device, z, dtype)
        operation(logits, *map(device.asarray, target), T=T).backward(device.asarray(cotangent))
        return logits.grad

    expected = (g - (g * p).sum(axis=1, keepdims=True)) * p / T
    assert_close(gradient(ops.softmax, g), expected, dtype, roundings=80)
    expected = (g - p * g.sum(axis=1, keepdims=True)) / T
    assert_close(gradient(ops.log_softmax, g), expected, dtype, roundings=80)
    for target, y in ((soft, soft), *((labels.astype(kind), hard) for kind in (np.int32, np.int64, np.uint8))):
        expected = g[:, :1] * (p * y.sum(axis=1, keepdims=True) - y) / T
        assert_close(gradient(ops.cross_entropy, g[:, 0], target), expected, dtype, roundings=80)


def test_softmax_is_summed_in_class_order(device):
    """exp(-17) is less than half a unit in the last place of 1: lost one by one after the 1, kept when before it."""
    z = np.full((2, 10), -17, SINGLE)
    z[0, 0] = z[1, 9] = 0
    p = host(ops.softmax(tensor(device, z, SINGLE)))
    assert p[0, 0] == 1 and p[1, 9] == SINGLE(1) / SINGLE(1 + 3 * 2**-23)


def test_saliency_cotangent_plain_is_summed_as_a_tree(device):
    """exp(-17) is a third of a unit in the last place of 1: the 1 of class 0 meets one, which is lost, then two,
    four and eight at once, which are not. Class order loses all fifteen."""
    z = np.full((1, 16), -17, SINGLE)
    z[0, 0] = 0
    label = device.asarray(np.array([0]))
    g, _ = device.functions.saliency_cotangent(device.asarray(z), label, 1.0, "plain")
    small, total = np.exp(np.float64(-17)), SINGLE(1)
    for together in (1, 2, 4, 8):
        total = SINGLE(total + SINGLE(together * small))
    assert total > 1 and host(g)[0, 0] == SINGLE(1) / total - 1
    assert host(ops.softmax(tensor(device, z, SINGLE)))[0, 0] == 1


def exponentials(device, u):
    """The device's own exp of each number, to the last bit: of two classes with gradients 0 and -1 the first has
    0 - exp(l) (-1)."""
    u = u.ravel()
    g, l = (np.stack(columns, axis=1) for columns in ([0 * u, 0 * u - 1], [u, 0 * u]))  # noqa: E741
    return host(device.functions.log_softmax_grad(device.asarray(g), device.asarray(l), 1.0))[:, 0]


def plain_cotangent_oracle(e, label, T):
    """(p - y) / T of one sample from its exponentials, an addition at a time: slot t of 16 takes the classes t, t + 16,
    t + 32, ... in order; then slot t takes t + 8, t + 4, t + 2, t + 1."""
    real = e.dtype.type
    slots = [real(0)] * 16
    for k, value in enumerate(e):
        slots[k % 16] = real(slots[k % 16] + value)
    for half in (8, 4, 2, 1):
        for t in range(half):
            slots[t] = real(slots[t] + slots[t + half])
    return [real(real(real(value / slots[0]) - real(k == label)) / real(T)) for k, value in enumerate(e)]


@both_dtypes
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("K", [1, 2, 9, 10, 16, 17, 40])
def test_saliency_cotangent_plain_has_the_bits_of_the_author(device, K, T, dtype):
    """T divides before the exponential. Class order gives other bits, where there are enough classes to tell."""
    z = np.random.default_rng(K).normal(0, 3 * T, (100, K)).astype(dtype)
    labels = z.argmax(axis=1)
    g, log10_scale = device.functions.saliency_cotangent(device.asarray(z), device.asarray(labels), T, "plain")
    e = exponentials(device, (z - z.max(axis=1, keepdims=True)) / dtype(T)).reshape(z.shape)
    expected = np.array([plain_cotangent_oracle(*sample, T) for sample in zip(e, labels, strict=True)])
    assert expected.dtype == dtype and np.array_equal(host(g), expected) and not host(log10_scale).any()
    in_class_order = host(device.functions.softmax(device.asarray(z), T))
    in_class_order[np.arange(100), labels] -= 1
    assert (in_class_order / dtype(T) != expected).any() == (K > 2)


@both_dtypes
@pytest.mark.parametrize("K", [1, 2, 9, 10, 16, 17, 40])
def test_saliency_cotangent_plain_has_the_same_bits_on_every_backend(device, K, dtype):
    """Of numbers whose exponentials are the same there: exp itself may round otherwise in the last bit."""
    cpu, rng = backend.get("cpu"), np.random.default_rng(K)
    u = np.unique(-rng.exponential(3, 4000).astype(dtype))
    alike = u[exponentials(cpu, u) == exponentials(device, u)]
    assert len(alike) > len(u) / 2
    z = rng.choice(alike, (100, K))
    z[:, K // 2] = 0
    labels = np.arange(100) % K
    g, on_cpu = (
        host(d.functions.saliency_cotangent(d.asarray(z), d.asarray(labels), 1.0, "plain")[0]) for d in (device, cpu)
    )
    assert np.array_equal(g, on_cpu)


@pytest.mark.usefixtures("forty_digits")
@both_dtypes
@pytest.mark.parametrize("T", [1, 20, 100])
@pytest.mark.parametrize("size", [2, 300, 1e4])
def test_saliency_cotangent_scaled(device, size, T, dtype):
    """g_k = -1, g_j = p_j / (1 - p_k) and log10((1 - p_k) / T), in decimals; labels on the winner and off it."""
    z = np.random.default_rng(4).normal(0, size, (10, 10)).astype(dtype)
    labels = np.concatenate([z.argmax(axis=1)[:5], np.arange(5)])
    g, log10_scale = device.functions.saliency_cotangent(device.asarray(z), device.asarray(labels), T, "scaled")
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


@both_dtypes
def test_saliency_cotangent_scaled_where_no_other_class_is_left(device, dtype):
    """1 - p_k = 0: the scale is 10^-infinity. Of one class there is no other; of several that have -infinity no share
    can be told."""
    for z, expected in (([3.0], [-1]), ([3.0, -np.inf], [-1, np.nan]), ([3.0, -np.inf, 3.0], [-1, 0, 1])):
        logits = device.asarray(np.array([z], dtype))
        g, scale = device.functions.saliency_cotangent(logits, device.asarray(np.array([0])), 1.0, "scaled")
        np.testing.assert_allclose(host(g), [expected], rtol=1e-6)
        assert host(scale)[0] == pytest.approx(-np.inf if z[-1] != 3 or len(z) == 1 else np.log10(0.5), rel=1e-6)


@both_dtypes
@pytest.mark.parametrize("T", [1, 20, 100])
@pytest.mark.parametrize("size", [1, 300])
def test_saliency_cotangent_plain(device, size, T, dtype):
    """(p - y) / T; at T = 1 logits near 300, as a network trained at T = 20 has them, leave float32 all zeros."""
    z = np.random.default_rng(1).uniform(-size, size, (200, 10)).astype(dtype)
    labels = z.argmax(axis=1)
    labels[::3] = 2
    g, log10_scale = device.functions.saliency_cotangent(device.asarray(z), device.asarray(labels), T, "plain")
    u = z.astype(np.float64) / T
    e = np.exp(u - u.max(axis=1, keepdims=True))
    expected = (e / e.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / T
    g = host(g)
    assert g.dtype == dtype and np.abs(g - expected).max() <= 4 * np.finfo(dtype).eps / T
    assert not host(log10_scale).any() and log10_scale.dtype == dtype
    z, labels = Tensor(z), labels.astype(np.int32)
    on_cpu, _ = backend.get("cpu").functions.saliency_cotangent(z.data, labels, T, "plain")
    assert np.array_equal(g == 0, on_cpu == 0)
    all_zero = (g == 0).all(axis=1)
    assert all_zero.any() if (dtype, size, T) == (SINGLE, 300, 1) else not all_zero.all()


@both_dtypes
@pytest.mark.parametrize("rate", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(3, 5, 9), (1,), (1031,), (0, 4)], ids=str)
@pytest.mark.parametrize(("seed", "layer", "step"), [(0, 0, 0), (0xFFFFFFFFFFFFFFF1, 2, 0xFFFFFFFF)])
def test_dropout_has_the_bits_of_philox(device, rate, shape, seed, layer, step, dtype):
    x = noise(shape, dtype)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    words = np.array([philox_oracle([block, layer, step, 0], key) for block in range(-(-x.size // 4))])
    kept = (words.ravel()[: x.size] < round((1 - rate) * 2**32)).reshape(shape)
    expected = np.where(kept, x * dtype(1 / (1 - rate)), 0)
    for where in (step, device.asarray(np.array([step], np.uint32))):
        values = tensor(device, x, dtype)
        y = ops.dropout(values, rate=rate, seed=seed, layer=layer, step=where)
        assert host(y).dtype == dtype and np.array_equal(host(y), expected)
        y.backward(device.asarray(np.ones_like(x)))
        assert np.array_equal(host(values.grad), np.where(kept, dtype(1 / (1 - rate)), 0))


@pytest.mark.parametrize("element", range(4))
def test_dropout_keeps_a_word_below_the_threshold(device, element):
    """Seen from both sides, the threshold gives the word: that of counter 0 and key 0."""
    word = philox_oracle([0] * 4, [0] * 2)[element]
    for threshold, kept in ((word, False), (word + 1, True)):
        y = ops.dropout(tensor(device, np.ones(4)), rate=1 - threshold / 2**32, seed=0, layer=0, step=0)
        assert (host(y)[element] != 0) == kept


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
        cotangent = device.asarray(noise(y.shape, seed=9))
        y.backward(cotangent if arrays is plain else view(device.xp, cotangent))
        results.append([host(y), *(host(t.grad) for t in tensors)])
    for expected, values in zip(*results, strict=True):
        assert np.abs(expected).max() > 0
        assert_close(values, expected, np.float64)


def test_cross_entropy_of_labels_in_any_memory_order_and_of_lists(device):
    z, soft = noise((4, 3)), np.random.default_rng(1).dirichlet(np.ones(3), 4)
    labels = np.array([0, 2, 1, 2])
    expected = [host(ops.cross_entropy(tensor(device, z), device.asarray(t))) for t in (labels, soft)]
    strided = device.asarray(np.repeat(labels, 2))[::2], device.asarray(np.asfortranarray(soft).T).T
    for target, losses in zip(strided, expected, strict=True):
        assert not target.flags.c_contiguous
        assert np.array_equal(host(ops.cross_entropy(tensor(device, z), target)), losses)
    for target, losses in zip((labels, soft), expected, strict=True):
        assert np.array_equal(host(ops.cross_entropy(tensor(device, z), target.tolist())), losses)


@both_dtypes
def test_operations_on_an_empty_batch(device, dtype):
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
    g, log10_scale = device.functions.saliency_cotangent(z.data, device.asarray(np.zeros(0, np.int32)), 1.0, "scaled")
    assert g.shape == (0, 4) and log10_scale.shape == (0,)


def conv2d_of(x_shape, w_shape, b_shape, **options):
    return lambda: ops.conv2d(*(Tensor(np.ones(s)) for s in (x_shape, w_shape, b_shape)), **options)


def dense_of(*shapes, **options):
    return lambda: ops.dense(*(Tensor(np.ones(s)) for s in shapes), **options)


def loss_of(z_shape, target):
    return lambda: ops.cross_entropy(Tensor(np.ones(z_shape)), target)


def pool_of(shape, **options):
    return lambda: ops.max_pool2d(Tensor(np.ones(shape)), **options)


def dropout_of(rate, **counters):
    return lambda: ops.dropout(Tensor(np.ones(4)), rate=rate, **{"seed": 0, "layer": 0, "step": 0} | counters)


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
    (dropout_of(0.5, seed=-1), r"the seed of dropout must be at least 0 and below 2\^64, got -1"),
    (dropout_of(0.5, seed=2**64), r"the seed of dropout must be at least 0 and below 2\^64, got 18446744073709551616"),
    (dropout_of(0.5, layer=-1), r"the layer of dropout must be at least 0 and below 2\^32, got -1"),
    (dropout_of(0.5, step=np.int64(-2)), r"the step of dropout must be at least 0 and below 2\^32, got -2"),
    (conv2d_of((2, 0, 5, 5), (3, 0, 3, 3), (3,)), r"images need C > 0, got \(2, 0, 5, 5\)"),
    (conv2d_of((2, 1, 0, 5), (3, 1, 1, 1), (3,)), r"images need H > 0, got \(2, 1, 0, 5\)"),
    (conv2d_of((2, 1, 5, 0), (3, 1, 1, 1), (3,), padding="same"), r"images need W > 0, got \(2, 1, 5, 0\)"),
    (conv2d_of((2, 1, 5, 5), (0, 1, 3, 3), (0,)), r"filters need O > 0, got \(0, 1, 3, 3\)"),
    (conv2d_of((2, 1, 5, 5), (3, 1, 0, 3), (3,)), r"filters need kh > 0, got \(3, 1, 0, 3\)"),
    (conv2d_of((2, 1, 5, 5), (3, 1, 3, 0), (3,)), r"filters need kw > 0, got \(3, 1, 3, 0\)"),
    (pool_of((2, 0, 4, 4)), r"images need C > 0, got \(2, 0, 4, 4\)"),
    (lambda: ops.softmax(Tensor(np.ones((2, 0)))), r"logits need K > 0, got \(2, 0\)"),
    (lambda: ops.log_softmax(Tensor(np.ones((2, 0)))), r"logits need K > 0, got \(2, 0\)"),
    (loss_of((2, 0), np.ones((2, 0))), r"logits need K > 0, got \(2, 0\)"),
    (lambda: ops.softmax(Tensor(np.ones(3))), r"logits must have shape \(N, K\), got \(3,\)"),
    (lambda: ops.log_softmax(Tensor(np.ones((2, 3, 4)))), r"logits must have shape \(N, K\), got \(2, 3, 4\)"),
    (loss_of((3,), np.zeros(3, int)), r"logits must have shape \(N, K\), got \(3,\)"),
    (loss_of((2, 3), np.zeros((2, 1), int)), r"soft labels must have shape \(2, 3\), got \(2, 1\)"),
    (loss_of((2, 3), np.ones((2, 4))), r"soft labels must have shape \(2, 3\), got \(2, 4\)"),
    (loss_of((2, 3), np.ones((2, 3), SINGLE)), "soft labels must have the logits' dtype float64, got float32"),
    (loss_of((2, 3), 1), r"class labels must have shape \(2,\), one an image, got \(\)"),
    (conv2d_of((1, 2, 5, 5), (3, 2, 3, 3), (3,), relu=2**32), "relu must be True or False, got 4294967296"),
    (dense_of((2, 3), (3, 5), (5,), relu=None), "relu must be True or False, got None"),
    (dense_of((2, 3), (3, 5), (5,), relu=np.array([True, False])), r"relu must be True or False, got array\(.*"),
    (pool_of((1, 2, 4, 4), size=2.0), "pool size must be an integer, got 2.0"),
    (pool_of((1, 2, 4, 4), size=np.array([2, 2])), r"pool size must be an integer, got array\(\[2, 2\]\)"),
    (dropout_of("0.5"), "the dropout rate must be a number, got '0.5'"),
    (dropout_of(0.5, seed=None), "the seed of dropout must be an integer, got None"),
    (dropout_of(0.5, layer="a"), "the layer of dropout must be an integer, got 'a'"),
    (
        dropout_of(0.5, step=np.array([2**40])),
        r"the step of dropout must be at least 0 and below 2\^32, got 1099511627776",
    ),
    (dropout_of(0.5, step=np.array([-1])), r"the step of dropout must be at least 0 and below 2\^32, got -1"),
    (dropout_of(0.5, step=np.array([1.7])), "the step of dropout must be an integer, got .*1.7.*"),
    (dropout_of(0.5, step=np.array([1, 2])), r"the step of dropout must be an integer, got array\(\[1, 2\]\)"),
    (lambda: ops.flatten(Tensor(1.0)), r"flatten needs images \(N, ...\), got \(\)"),
    (
        lambda: ops.softmax(Tensor(np.ones((2, 3))), T=10**400),
        "the temperature T must be a number that fits into a float",
    ),
    (lambda: ops.softmax(Tensor(np.ones((2, 3))), T=[20.0]), r"the temperature T must be a number, got \[20.0\]"),
    (lambda: ops.check_temperature(True), "the temperature T must be a number, got True"),
    (lambda: ops.check_count("chunk", True), "chunk must be an integer of at least 1, got True"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_operations_refuse(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()


LABELS_REFUSED = [
    (np.zeros(3, int), r"class labels must have shape \(2,?\), .*got \(3,\)"),
    (np.zeros(2), "class labels must be integers, got float64"),
    (np.ones(2, bool), "class labels must be integers, got bool"),
    ([0.0, 1.0], "class labels must be integers, got float64"),
]


@pytest.mark.parametrize(("labels", "message"), LABELS_REFUSED, ids=str)
def test_cross_entropy_and_check_labels_refuse_labels(device, labels, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ops.check_labels(labels, 2, 3)
    with pytest.raises(ValueError, match=f"^{message.replace('.*', '(one an image, )?')}$"):
        ops.cross_entropy(
            tensor(device, np.ones((2, 3))), labels if isinstance(labels, list) else device.asarray(labels)
        )


@pytest.mark.parametrize("label", [-1, 3])
def test_cross_entropy_and_check_labels_refuse_labels_out_of_range(label):
    labels = np.array([1, label])
    for call in (
        lambda: ops.check_labels(labels, 2, 3),
        lambda: ops.check_labels(labels.tolist(), 2, 3),
        lambda: ops.cross_entropy(Tensor(np.ones((2, 3))), labels),
    ):
        with pytest.raises(ValueError, match=f"^labels must be 0 to 2, got {min(1, label)} to {max(1, label)}$"):
            call()


def test_check_labels_gives_integers_on_the_host(device):
    for labels in ([0, 2, 1], (0, 2, 1), device.asarray(np.array([0, 2, 1], np.int64)), np.array([0, 2, 1], np.uint8)):
        found = ops.check_labels(labels, 3, 3)
        assert isinstance(found, np.ndarray) and found.tolist() == [0, 2, 1]
    assert ops.check_labels([], 0, 3).shape == (0,)
    assert ops.check_labels([7, -1], 2).tolist() == [7, -1]


@pytest.mark.parametrize("T", [0, -1, float("nan"), float("-inf")])
@pytest.mark.parametrize(
    "call",
    [
        lambda T: ops.check_temperature(T),
        lambda T: ops.softmax(Tensor(np.ones((1, 3))), T=T),
        lambda T: ops.log_softmax(Tensor(np.ones((1, 3))), T=T),
        lambda T: ops.cross_entropy(Tensor(np.ones((1, 3))), np.array([0]), T=T),
    ],
    ids=["check_temperature", "softmax", "log_softmax", "cross_entropy"],
)
def test_operations_refuse_a_temperature_that_is_not_positive(call, T):
    with pytest.raises(ValueError, match=f"^the temperature T must be positive, got {T}$"):
        call(T)


@pytest.mark.parametrize(
    ("T", "dtype", "rounded"),
    [
        (float("inf"), np.float64, "inf in float64"),
        (1e-46, SINGLE, "0.0 in float32"),
        (1e40, SINGLE, "inf in float32"),
    ],
)
def test_operations_refuse_a_temperature_that_the_logits_cannot_hold(device, T, dtype, rounded):
    z, labels = tensor(device, np.ones((1, 3)), dtype), device.asarray(np.array([0]))
    message = re.escape(f"the temperature T must be positive and finite, got {T}, which is {rounded}")
    for call in (
        lambda: ops.check_temperature(T, dtype),
        lambda: ops.softmax(z, T=T),
        lambda: ops.log_softmax(z, T=T),
        lambda: ops.cross_entropy(z, labels, T=T),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()
    if dtype is SINGLE:
        ops.check_temperature(T)
        assert np.isfinite(host(ops.softmax(tensor(device, np.ones((1, 3))), T=T))).all()


@pytest.mark.parametrize("target", [None, "a", ["a", "b"], [1j, 2j]], ids=str)
def test_cross_entropy_refuses_labels_that_are_no_numbers(device, target):
    with pytest.raises(TypeError, match="^real numbers are needed, got "):
        ops.cross_entropy(tensor(device, np.ones((2, 3))), target)


@pytest.mark.parametrize("of_one", [np.array, lambda value: np.array([value])], ids=["no axes", "one axis"])
def test_operations_take_numbers_and_flags_of_any_type(device, of_one):
    """An array where a number or a flag is meant is that number: not its address, and not true because it is there."""
    x, w, b = (tensor(device, noise(s, SINGLE), SINGLE) for s in ((2, 1, 4, 4), (3, 1, 2, 2), (3,)))
    rows = tensor(device, noise((2, 3)), SINGLE)
    for numpy_s in (of_one, lambda value: np.asarray(value)[()]):
        for flag in (False, True):
            conv, dense = (
                [host(function(relu)) for relu in (flag, numpy_s(flag))]
                for function in (
                    lambda relu: ops.conv2d(x, w, b, relu=relu),
                    lambda relu: ops.dense(rows, tensor(device, np.eye(3), SINGLE), b, relu=relu),
                )
            )
            assert np.array_equal(*conv) and np.array_equal(*dense)
            assert (conv[0].min() >= 0) == (dense[0].min() >= 0) == flag
        assert np.array_equal(host(ops.max_pool2d(x, numpy_s(2))), host(ops.max_pool2d(x, 2)))
        assert np.array_equal(host(ops.softmax(rows, numpy_s(20.0))), host(ops.softmax(rows, 20.0)))
        for rate, seed in ((0.5, np.int32(0)), (np.float16(0.5), np.uint8(7))):
            dropped = (ops.dropout(x, r, s, 1, 2) for r, s in ((0.5, int(seed)), (numpy_s(rate), numpy_s(seed))))
            assert np.array_equal(*map(host, dropped))


@pytest.mark.parametrize(
    "function",
    [ops.relu, lambda x: ops.dropout(x, rate=0.5, seed=0, layer=0, step=0)],
    ids=["relu", "dropout"],
)
def test_relu_and_dropout_of_a_number(device, function):
    """Of no axes NumPy makes scalars, which are no arrays."""
    x = tensor(device, 3.0)
    (function(x * 1) * 2).backward()
    assert host(x.grad).shape == () and host(x.grad) == 2 * host(function(x)) / 3


def test_dense_of_no_inputs_and_of_no_units(device):
    """The bias alone, as in PyTorch, and nothing."""
    for inputs, units in ((0, 3), (3, 0), (0, 0)):
        x, w, b = (tensor(device, np.full(s, 2.0)) for s in ((4, inputs), (inputs, units), (units,)))
        y = ops.dense(x, w, b)
        y.backward(device.asarray(np.ones(y.shape)))
        assert host(y).tolist() == [[6.0 if inputs == 3 else 2.0] * units] * 4
        assert [a.grad.shape for a in (x, w, b)] == [(4, inputs), (inputs, units), (units,)]
        assert not host(x.grad).any() and host(b.grad).tolist() == [4.0] * units


def test_conv2d_and_dense_with_relu_have_gradient_0_where_they_are_0(device):
    """Of any cotangent there, infinity and NaN too, which a mask of numbers would turn into NaN."""
    g = np.array([np.inf, -np.inf, np.nan, 3.0])
    x, w, b = (tensor(device, np.ones(s)) for s in ((1, 1, 1, 1), (4, 1, 1, 1), (4,)))
    b.data = device.asarray(np.array([-2.0, -2, -2, 1]))
    ops.conv2d(x, w, b, relu=True).backward(device.asarray(g.reshape(1, 4, 1, 1)))
    assert [host(a.grad).ravel().tolist() for a in (x, w, b)] == [[3], [0, 0, 0, 3], [0, 0, 0, 3]]
    x, w, b.grad = tensor(device, np.ones((1, 1))), tensor(device, np.ones((1, 4))), None
    ops.dense(x, w, b, relu=True).backward(device.asarray(g.reshape(1, 4)))
    assert [host(a.grad).ravel().tolist() for a in (x, w, b)] == [[3], [0, 0, 0, 3], [0, 0, 0, 3]]


def test_conv2d_and_dense_with_relu_and_dropout_pass_the_gradient_where_they_are_nan(device):
    """As in PyTorch: what a NaN came from is not left as it is."""
    g, bias = np.array([5.0, 7.0, 11.0]), np.array([np.nan, -2.0, 1.0])
    x, w, b = (tensor(device, np.ones(s)) for s in ((1, 1, 1, 1), (3, 1, 1, 1), (3,)))
    b.data = device.asarray(bias)
    ops.conv2d(x, w, b, relu=True).backward(device.asarray(g.reshape(1, 3, 1, 1)))
    assert [host(a.grad).ravel().tolist() for a in (x, w, b)] == [[16], [5, 0, 11], [5, 0, 11]]
    x, w, b.grad = tensor(device, np.ones((1, 1))), tensor(device, np.ones((1, 3))), None
    ops.dense(x, w, b, relu=True).backward(device.asarray(g.reshape(1, 3)))
    assert [host(a.grad).ravel().tolist() for a in (x, w, b)] == [[16], [5, 0, 11], [5, 0, 11]]
    x = tensor(device, np.full(64, np.nan))
    y = ops.dropout(x, rate=0.5, seed=0, layer=0, step=0)
    y.backward(device.asarray(np.ones(64)))
    kept = np.isnan(host(y))
    assert 16 < kept.sum() < 48 and np.array_equal(host(x.grad), 2.0 * kept)


@pytest.mark.parametrize("place", [(1, 2), (0, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("ties", ["first", "all"])
def test_max_pool2d_gives_nan_to_the_nan(device, ties, place):
    """NaN is larger than any number: the gradient goes to the first, or to all, as of any maximum."""
    values = np.array([np.inf, 1.0, 2.0, 3.0])
    values[list(place)] = np.nan
    x = tensor(device, np.tile(values.reshape(2, 2), (3, 2, 2, 2)))
    y = ops.max_pool2d(x, ties=ties)
    y.backward(device.asarray(np.full(y.shape, 5.0)))
    expected = np.zeros(4)
    expected[list(place[:1] if ties == "first" else place)] = 5
    assert np.isnan(host(y)).all() and np.array_equal(host(x.grad), np.tile(expected.reshape(2, 2), (3, 2, 2, 2)))


HUGE = 3e38
EXTREME_LOGITS = [  # logits, label, T, loss and gradient: PyTorch's in float64, rounded to float32
    ([0.0, -np.inf], 0, 1, 0, [0, 0]),
    ([0.0, -np.inf], 1, 1, np.inf, [1, -1]),
    ([0.0, -np.inf, 0.0], 0, 20, np.log(2), [-0.5 / 20, 0, 0.5 / 20]),
    ([HUGE, -HUGE], 0, 1, 0, [0, 0]),
    ([HUGE, -HUGE], 1, 1, np.inf, [1, -1]),
    ([HUGE, -HUGE], 1, 20, 3e37, [1 / 20, -1 / 20]),
    ([-HUGE, HUGE, HUGE], 1, 20, np.log(2), [0, -0.5 / 20, 0.5 / 20]),
    ([-1e38, -HUGE], 0, 1e-10, 0, [0, 0]),
]


@both_dtypes
@pytest.mark.parametrize(("z", "label", "T", "loss", "gradient"), EXTREME_LOGITS, ids=str)
def test_cross_entropy_of_extreme_logits(device, z, label, T, loss, gradient, dtype):
    if dtype is np.float64 and np.isinf(loss) and HUGE in z:
        loss = 6e38 / T  # is a float64
    one_hot = np.eye(len(z), dtype=dtype)[[label]]
    for target in (np.array([label]), one_hot):
        logits = tensor(device, np.array([z]), dtype)
        y = ops.cross_entropy(logits, device.asarray(target), T=T)
        y.backward(device.asarray(np.ones(1, dtype)))
        np.testing.assert_allclose(host(y), [loss], rtol=1e-6)
        np.testing.assert_allclose(host(logits.grad), [gradient], rtol=1e-6)
    log_p = host(ops.log_softmax(tensor(device, np.array([z]), dtype), T=T))
    np.testing.assert_allclose(-log_p[0, label], loss, rtol=1e-6)


def test_operations_mix_no_dtypes(device):
    x, w, b = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)
    with pytest.raises(TypeError, match="dense: arguments differ in device or dtype: .*float32.*float64"):
        ops.dense(tensor(device, x, SINGLE), tensor(device, w), tensor(device, b))
    with pytest.raises(TypeError, match="float32.*float64|float64.*float32"):
        ops.dense(tensor(device, x, SINGLE), device.asarray(w), device.asarray(b))


def test_operations_mix_no_devices(device):
    if device.name == "cpu":
        pytest.skip("the other devices mix with it")
    with pytest.raises(TypeError, match=f"dense: arguments differ in device or dtype: .*cpu.*{device.name}"):
        ops.dense(Tensor(np.ones((2, 3))), tensor(device, np.ones((3, 4))), tensor(device, np.ones(4)))
