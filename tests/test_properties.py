"""Every operation on drawn shapes (0 and 1 among them), strides, dtypes and special values: value and gradient against
PyTorch in float64, where it is installed; convolution, dense layer, pool and the losses against loops everywhere.

float64 draws denormals and 1e300 too, which have the same products and quotients there as in PyTorch; float32 draws
infinity, NaN and both zeros, for what is too large or small for it may not be so in float64.
"""

import functools
import math
import operator

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from minicnn import ops  # noqa: E402
from minicnn.autograd import Tensor  # noqa: E402
from minicnn.backend import to_host  # noqa: E402
from tests import DEVICES, IN_NUMPY  # noqa: E402
from tests.conftest import opened_or_skipped  # noqa: E402
from tests.test_ops import conv2d_oracle  # noqa: E402

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch: pip install torch")
EXAMPLES = {"cpu": 200, "cuda_on_cpu": 10, "cuda": 20}

FINITE = {np.float32: [0.0, -0.0, 1.0], np.float64: [0.0, -0.0, 1.0, 5e-324, -1e-310, 2.3e-308, 1e300, -1e300]}
NOT_FINITE = [math.inf, -math.inf, math.nan]
LAYOUTS = ["C", "F", "backwards", "with gaps", "images innermost"]

sizes = st.integers(0, 4)
shapes = st.lists(sizes, min_size=0, max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=[*DEVICES, IN_NUMPY])
def device(request):
    """Every backend, and the CPU's as it is without a C compiler."""
    yield from opened_or_skipped(request.param)


class Laid:
    """An array, and the way to it from a contiguous one: the same strides on every device."""

    def __init__(self, values, layout):
        self.values, back = values, (slice(None, None, -1),) * values.ndim
        if layout == "F" and values.ndim:
            self.base, self.view = values.T.copy(), lambda a: a.T
        elif layout == "backwards" and values.ndim:
            self.base, self.view = values[back].copy(), lambda a: a[back]
        elif layout == "with gaps" and values.ndim:
            every = (slice(None, None, 2),) * values.ndim
            self.base = np.full([2 * n for n in values.shape], np.nan, values.dtype)
            self.base[every], self.view = values, lambda a: a[every]
        elif layout == "images innermost" and values.ndim == 4:
            self.base, self.view = values.transpose(2, 1, 3, 0).copy(), lambda a: a.transpose(3, 1, 0, 2)
        else:
            self.base, self.view = values, lambda a: a

    def on(self, device):
        return self.view(device.asarray(self.base))

    def __repr__(self):
        return f"{self.values!r} as a view of {self.base.shape}"


def drawn(draw, shape, dtype, special="all"):
    """N(0, 1) numbers, some of them replaced: special is "all", "finite" or "none"."""
    rng = np.random.default_rng(draw(seeds))
    values = rng.normal(size=shape).astype(dtype)
    chosen = {"all": FINITE[dtype] + NOT_FINITE, "finite": FINITE[dtype], "none": []}[special]
    share = draw(st.sampled_from([0, 0.1, 0.5])) if chosen else 0
    if share:
        values = np.where(rng.random(shape) < share, rng.choice(chosen, shape), values).astype(dtype)
    return Laid(values, draw(st.sampled_from(LAYOUTS)))


def assert_agree(found, expected, bound, dtype, roundings):
    """NaN and infinity where they are expected; elsewhere within some roundings of bound, which is of expected's shape
    or one number."""
    found, expected = to_host(found), np.asarray(expected)
    assert found.dtype == dtype and found.shape == expected.shape
    with np.errstate(all="ignore"):
        rounded = expected.astype(dtype)
        finite = np.isfinite(rounded)
        assert np.array_equal(np.where(finite, 0, found), np.where(finite, 0, rounded), equal_nan=True)
        error = np.abs(found - expected)
        allowed = roundings * np.finfo(dtype).eps * np.abs(bound) + 2 * np.finfo(dtype).tiny
        assert (error <= np.where(np.isnan(allowed), 0, allowed))[finite].all()


def compare(device, draw, ours, theirs, arguments, roundings=8, absolute=False, bound=None, cotangents="all"):
    """Value and gradients of ours(*Tensors) and theirs(*PyTorch's) for arguments of one dtype and a drawn cotangent.

    absolute: errors are relative to the sums of absolute values, which theirs, or bound instead of it, has of the
    absolute arguments; else to the entry itself.
    """
    dtype = arguments[0].values.dtype.type
    tensors = [Tensor(a.on(device), requires_grad=True) for a in arguments]
    with np.errstate(all="ignore"):
        y = ours(*tensors)
        cotangent = drawn(draw, y.shape, dtype, cotangents)
        y.backward(cotangent.on(device))

    def by_torch(of, theirs=theirs):
        leaves = [torch.tensor(of(a.values.astype(np.float64)), requires_grad=True) for a in arguments]
        value = theirs(*leaves)
        value.backward(torch.tensor(of(cotangent.values.astype(np.float64))))
        return [value.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]

    expected = by_torch(np.copy)
    bounds = by_torch(np.abs, bound or theirs) if absolute or bound else expected
    for found, value, bound in zip([y.data, *(t.grad for t in tensors)], expected, bounds, strict=True):
        assert_agree(found, value, bound, dtype, roundings)


def examples(device):
    """Run the decorated body(draw) at once, on drawn examples that are the same in every run."""

    def run(body):
        @settings(
            max_examples=EXAMPLES[device.name],
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def on_example(data):
            body(data.draw)

        on_example()

    return run


def for_each(table):
    return pytest.mark.parametrize("case", table.values(), ids=table)


dtypes = st.sampled_from([np.float32, np.float64])


# Operators of Tensor, which have no kernels of C

each_backend = pytest.mark.parametrize("device", DEVICES, indirect=True)

BROADCAST = {  # the operation, and of absolute values the one that its errors are relative to
    "add": (operator.add, operator.add),
    "sub": (operator.sub, operator.add),
    "mul": (operator.mul, operator.mul),
    "truediv": (operator.truediv, operator.truediv),
}


def broadcastable(draw):
    """Two shapes that broadcast: each drops or shrinks to 1 some dimensions of one."""
    whole = draw(shapes)

    def reduced():
        shape = tuple(1 if draw(st.booleans()) and draw(st.booleans()) else n for n in whole)
        return shape[draw(st.integers(0, len(shape))) if draw(st.booleans()) else 0 :]

    return reduced(), reduced()


@needs_torch
@each_backend
@for_each(BROADCAST)
def test_tensor_operators_that_broadcast(device, case):
    function, bound = case

    @examples(device)
    def on_example(draw):
        dtype = draw(dtypes)
        arguments = [drawn(draw, shape, dtype) for shape in broadcastable(draw)]
        compare(device, draw, function, function, arguments, bound=bound)


def power(p):
    return operator.methodcaller("__pow__", p), operator.methodcaller("__pow__", p)


UNARY = {
    "neg": (lambda a: -a, lambda a: -a),
    "2 - a": (lambda a: 2 - a, lambda a: 2 - a),
    "2 / a": (lambda a: 2 / a, lambda a: 2 / a),
    **{f"a ** {p}": power(p) for p in (0, 0.0, 1, 2, 3, -1, -2, 1.5, -1.5)},
    "exp": (Tensor.exp, lambda a: a.exp()),
    "log": (Tensor.log, lambda a: a.log()),
    "T": (lambda a: a.T, lambda a: a.permute(tuple(reversed(range(a.ndim))))),
    "reshape": (lambda a: a.reshape(-1, 1) if a.data.size else a, lambda a: a.reshape(-1, 1) if a.numel() else a),
}


@needs_torch
@each_backend
@for_each(UNARY)
def test_tensor_functions_of_every_element(device, case):
    ours, theirs = case

    @examples(device)
    def on_example(draw):
        compare(device, draw, ours, theirs, [drawn(draw, draw(shapes), draw(dtypes))])


@needs_torch
@each_backend
@pytest.mark.parametrize("p", [0.5, -0.5])
def test_tensor_roots(device, p):
    """Of what is not negative: PyTorch takes square roots, which at -0 and -infinity are not what C's pow is."""

    @examples(device)
    def on_example(draw):
        a = Laid(np.abs(drawn(draw, draw(shapes), draw(dtypes)).values), draw(st.sampled_from(LAYOUTS)))
        compare(device, draw, *power(p), [a])


@needs_torch
@each_backend
def test_tensor_power_by_an_array(device):
    """Of the exponents those that are 0 give the gradient 0."""

    @examples(device)
    def on_example(draw):
        shape, dtype = draw(shapes), draw(dtypes)
        exponents = np.random.default_rng(draw(seeds)).choice([0, 1, 2, 0.5, -1], shape).astype(dtype)
        compare(
            device,
            draw,
            lambda a: a ** device.asarray(exponents),
            lambda a: a ** torch.tensor(exponents.astype(np.float64)),
            [drawn(draw, shape, dtype)],
        )


REDUCTIONS = {
    "sum": (lambda a, axis, keep: a.sum(axis, keep), lambda a, axis, keep: a.sum(axis, keepdim=keep)),
    "mean": (lambda a, axis, keep: a.mean(axis, keep), lambda a, axis, keep: a.mean(axis, keepdim=keep)),
}


@needs_torch
@each_backend
@for_each(REDUCTIONS)
def test_tensor_reductions(device, case):
    ours, theirs = case

    @examples(device)
    def on_example(draw):
        shape, keep = draw(shapes), draw(st.booleans())
        axes = (
            st.lists(st.integers(-len(shape), len(shape) - 1), unique_by=lambda i: i % len(shape))
            if shape
            else st.none()
        )
        axis = draw(st.one_of(st.none(), axes.map(lambda a: a and tuple(a))))
        every = tuple(range(len(shape)))
        compare(
            device,
            draw,
            lambda a: ours(a, axis or None, keep),
            lambda a: theirs(a, axis or every, keep) if shape else a * 1,
            [drawn(draw, shape, draw(dtypes))],
            absolute=True,
        )


@needs_torch
@each_backend
def test_tensor_max(device):
    """Over an axis: PyTorch's max of all shares the gradient among equal maxima."""

    @examples(device)
    def on_example(draw):
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
        axis, keep = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.booleans())
        compare(
            device,
            draw,
            lambda a: a.max(axis=axis, keepdims=keep),
            lambda a: a.gather(axis, torch.tensor(np.expand_dims(a.detach().numpy().argmax(axis), axis))).sum(
                axis, keepdim=keep
            ),
            [drawn(draw, shape, draw(dtypes))],
        )


INDICES = [np.s_[0], np.s_[-1], np.s_[1:], np.s_[::-2], np.s_[..., None], np.s_[..., 0], np.s_[:, 1:2], np.s_[[0, 0]]]


@needs_torch
@each_backend
def test_tensor_index(device):
    @examples(device)
    def on_example(draw):
        shape, index = (
            draw(st.lists(st.integers(2, 4), min_size=2, max_size=3).map(tuple)),
            draw(st.sampled_from(INDICES)),
        )
        places = np.arange(math.prod(shape)).reshape(shape)[index]
        compare(
            device,
            draw,
            lambda a: a[index],
            lambda a: a.reshape(-1)[torch.tensor(places.copy()).reshape(-1)].reshape(places.shape),
            [drawn(draw, shape, draw(dtypes))],
            absolute=True,
        )


@needs_torch
@each_backend
def test_tensor_matmul(device):
    @examples(device)
    def on_example(draw):
        rows, inner, columns = draw(sizes), draw(sizes), draw(sizes)
        batch = [draw(st.lists(st.sampled_from([1, 2]), max_size=2)) for _ in range(2)]
        left, right = (*batch[0], rows, inner), (*batch[1], inner, columns)
        left = left[-1:] if draw(st.integers(0, 4)) == 0 else left
        right = right[-2:-1] if draw(st.integers(0, 4)) == 0 else right
        dtype = draw(dtypes)
        compare(
            device,
            draw,
            lambda a, b: a @ b,
            lambda a, b: a @ b,
            [drawn(draw, left, dtype, "finite"), drawn(draw, right, dtype, "finite")],
            absolute=True,
            cotangents="finite",
        )


# Operations of a network


@needs_torch
def test_relu(device):
    @examples(device)
    def on_example(draw):
        compare(device, draw, ops.relu, torch.relu, [drawn(draw, draw(shapes), draw(dtypes))])


def convolution(draw):
    """Arguments of conv2d and its padding."""
    dtype, padding = draw(dtypes), draw(st.sampled_from(["valid", "same"]))
    images, channels, filters = draw(sizes), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    smallest = (1, 1) if padding == "same" else kernel
    size = [n + draw(sizes) for n in smallest]
    x = drawn(draw, (images, channels, *size), dtype, draw(st.sampled_from(["all", "none"])))
    w = drawn(draw, (filters, channels, *kernel), dtype, "none")
    return x, w, drawn(draw, (filters,), dtype, "none"), padding


def torch_convolution(padding):
    def apply(x, w, b):
        if padding == "same":  # PyTorch's own "same" has the odd zero before, ours has it behind
            (top, left), kernel = ((k - 1) // 2 for k in w.shape[2:]), w.shape[2:]
            x = F.pad(x, (left, kernel[1] - 1 - left, top, kernel[0] - 1 - top))
        windows = x.unfold(2, w.shape[2], 1).unfold(3, w.shape[3], 1)
        return torch.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]

    return apply


@needs_torch
def test_conv2d(device):
    @examples(device)
    def on_example(draw):
        x, w, b, padding = convolution(draw)
        compare(
            device,
            draw,
            functools.partial(ops.conv2d, padding=padding),
            torch_convolution(padding),
            [x, w, b],
            roundings=16,
            absolute=True,
            cotangents="none",
        )


def test_conv2d_against_loops(device):
    @examples(device)
    def on_example(draw):
        x, w, b, padding = convolution(draw)
        dtype = x.values.dtype.type
        if not np.isfinite(x.values).all() or np.abs(x.values).max(initial=0) > 1e9:
            return
        tensors = [Tensor(a.on(device), requires_grad=True) for a in (x, w, b)]
        y = ops.conv2d(*tensors, padding=padding, relu=True)
        expected = np.maximum(conv2d_oracle(x.values, w.values, b.values, padding), 0)
        scale = max(1, np.abs(expected).max(initial=0))
        assert_agree(y.data, expected, 10 * scale, dtype, 16)
        cotangent = drawn(draw, y.shape, dtype, "none")
        y.backward(cotangent.on(device))
        masked = cotangent.values * (to_host(y.data) > 0)
        for t, gradient in zip(tensors, conv2d_oracle(x.values, w.values, b.values, padding, masked), strict=True):
            assert_agree(t.grad, gradient, 10 * max(1, np.abs(gradient).max(initial=0)), dtype, 16)


def test_dense_against_loops(device):
    @examples(device)
    def on_example(draw):
        dtype, n, inputs, units = draw(dtypes), draw(sizes), draw(sizes), draw(sizes)
        x, w, b = (drawn(draw, shape, dtype, "none") for shape in ((n, inputs), (inputs, units), (units,)))
        tensors = [Tensor(a.on(device), requires_grad=True) for a in (x, w, b)]
        y = ops.dense(*tensors, relu=True)
        cotangent = drawn(draw, y.shape, dtype, "none")
        y.backward(cotangent.on(device))
        value, gx, gw, gb = (np.zeros(shape) for shape in ((n, units), (n, inputs), (inputs, units), (units,)))
        value += b.values
        for i, d, u in np.ndindex(n, inputs, units):
            value[i, u] += float(x.values[i, d]) * float(w.values[d, u])
        kept = to_host(y.data) > 0
        for i, u in np.argwhere(kept):
            g = float(cotangent.values[i, u])
            gb[u] += g
            for d in range(inputs):
                gx[i, d] += g * w.values[d, u]
                gw[d, u] += g * x.values[i, d]
        for found, expected in zip([y.data, *(t.grad for t in tensors)], [value * kept, gx, gw, gb], strict=True):
            assert_agree(found, expected, 10 * max(1, np.abs(expected).max(initial=0)), dtype, 16)


@needs_torch
def test_dense(device):
    @examples(device)
    def on_example(draw):
        dtype, n, inputs, units = draw(dtypes), draw(sizes), draw(sizes), draw(sizes)
        compare(
            device,
            draw,
            ops.dense,
            lambda x, w, b: x @ w + b,
            [
                drawn(draw, (n, inputs), dtype, draw(st.sampled_from(["all", "none"]))),
                drawn(draw, (inputs, units), dtype, "none"),
                drawn(draw, (units,), dtype, "none"),
            ],
            roundings=16,
            absolute=True,
            cotangents="none",
        )


@pytest.mark.parametrize("ties", ["first", "all"])
def test_max_pool2d(device, ties):
    """Against loops that take NaN for larger than any number and equal to itself, as PyTorch does (its own gradient of
    ties is "first", test_max_pool2d_against_torch)."""

    @examples(device)
    def on_example(draw):
        size, dtype = draw(st.integers(1, 3)), draw(dtypes)
        shape = (draw(sizes), draw(st.integers(1, 3)), size + draw(sizes), size + draw(sizes))
        x = drawn(draw, shape, dtype)
        tensor = Tensor(x.on(device), requires_grad=True)
        y = ops.max_pool2d(tensor, size=size, ties=ties)
        cotangent = drawn(draw, y.shape, dtype)
        y.backward(cotangent.on(device))
        value, gradient = np.empty(y.shape, dtype), np.zeros(shape, dtype)
        for n, c, r, q in np.ndindex(y.shape):
            window = np.s_[n, c, r * size : (r + 1) * size, q * size : (q + 1) * size]
            members = x.values[window]
            value[n, c, r, q] = members.max()  # NaN if there is one
            equal = (members == value[n, c, r, q]) | (np.isnan(members) & np.isnan(value[n, c, r, q]))
            if ties == "first":
                equal = np.arange(size * size).reshape(size, size) == equal.argmax()
            gradient[window] = np.where(equal, cotangent.values[n, c, r, q], 0)
        assert np.array_equal(to_host(y.data), value, equal_nan=True)
        assert np.array_equal(to_host(tensor.grad), gradient, equal_nan=True)


@needs_torch
def test_max_pool2d_against_torch(device):
    """With one NaN in a window: of several PyTorch takes the last."""

    @examples(device)
    def on_example(draw):
        size, dtype = draw(st.integers(1, 3)), draw(dtypes)
        shape = (draw(sizes), draw(st.integers(1, 3)), size + draw(sizes), size + draw(sizes))
        x = drawn(draw, shape, dtype)
        one_a_window = np.zeros(shape, bool)
        one_a_window[:, :, draw(st.integers(0, size - 1)) :: size, draw(st.integers(0, size - 1)) :: size] = True
        x = Laid(np.where(np.isnan(x.values) & ~one_a_window, dtype(2), x.values), draw(st.sampled_from(LAYOUTS)))
        compare(device, draw, functools.partial(ops.max_pool2d, size=size), lambda x: F.max_pool2d(x, size), [x])


def test_dropout(device):
    """What is dropped is 0, in value and gradient, also of an infinity; the rest is multiplied."""

    @examples(device)
    def on_example(draw):
        dtype, rate, seed, step = draw(dtypes), draw(st.sampled_from([0, 0.3, 0.9])), draw(seeds), draw(seeds)
        x = drawn(draw, draw(shapes), dtype)
        options = {"rate": rate, "seed": seed, "layer": 1, "step": step}
        kept = to_host(ops.dropout(Tensor(device.asarray(np.ones(x.values.shape, dtype))), **options).data) > 0
        tensor = Tensor(x.on(device), requires_grad=True)
        with np.errstate(all="ignore"):
            y = ops.dropout(tensor, **options)
            cotangent = drawn(draw, y.shape, dtype)
            y.backward(cotangent.on(device))
            for found, values in ((y.data, x.values), (tensor.grad, cotangent.values)):
                assert np.array_equal(to_host(found), np.where(kept, values * dtype(1 / (1 - rate)), 0), equal_nan=True)


def logits(draw, dtype):
    """Logits in which one is finite at least: what PyTorch has for others is NaN, as ours."""
    return drawn(draw, (draw(sizes), draw(st.integers(1, 5))), dtype)


SOFTMAX = {
    "softmax": (ops.softmax, lambda z, T: F.softmax(z / T, 1)),
    "log_softmax": (ops.log_softmax, lambda z, T: F.log_softmax(z / T, 1)),
}


@needs_torch
@for_each(SOFTMAX)
def test_softmax_and_log_softmax(device, case):
    ours, theirs = case

    @examples(device)
    def on_example(draw):
        T, dtype = draw(st.sampled_from([0.5, 1.0, 20.0])), draw(dtypes)
        z = drawn(draw, (draw(sizes), draw(st.integers(1, 5))), dtype, draw(st.sampled_from(["all", "finite", "none"])))
        compare_to_norm(device, draw, lambda z: ours(z, T=T), lambda z: theirs(z, T), z, "none")


def compare_to_norm(device, draw, ours, theirs, z, cotangents):
    """As compare, errors relative to the largest entry, as logits of any size and T have it."""
    dtype = z.values.dtype.type
    tensor, leaf = Tensor(z.on(device), requires_grad=True), torch.tensor(z.values.astype(float), requires_grad=True)
    with np.errstate(all="ignore"):
        y, expected = ours(tensor), theirs(leaf)
        cotangent = drawn(draw, y.shape, dtype, cotangents)
        y.backward(cotangent.on(device))
    expected.backward(torch.tensor(cotangent.values.astype(float)))
    for found, value in ((y.data, expected.detach().numpy()), (tensor.grad, leaf.grad.numpy())):
        largest = np.abs(value[np.isfinite(value)]).max(initial=1)
        assert_agree(found, value, largest, dtype, 40)


def test_softmax_log_softmax_cross_entropy_against_loops(device):
    @examples(device)
    def on_example(draw):
        T, dtype, n, classes = (
            draw(st.sampled_from([0.5, 1.0, 20.0])),
            draw(dtypes),
            draw(sizes),
            draw(st.integers(1, 5)),
        )
        z = drawn(draw, (n, classes), dtype, "none")
        labels = np.random.default_rng(draw(seeds)).integers(0, classes, n)
        p, gradient = np.empty((n, classes)), np.zeros((n, classes))
        for i, k in np.ndindex(n, classes):
            p[i, k] = 1 / sum(math.exp((float(z.values[i, j]) - float(z.values[i, k])) / T) for j in range(classes))
            gradient[i, k] = (p[i, k] - (k == labels[i])) / T
        tensor = Tensor(z.on(device), requires_grad=True)
        losses = ops.cross_entropy(tensor, device.asarray(labels), T=T)
        losses.sum().backward()
        found = [ops.softmax(tensor, T=T), ops.log_softmax(tensor, T=T), losses]
        for y, expected in zip(found, [p, np.log(p), -np.log(p[np.arange(n), labels])], strict=True):
            assert_agree(y.data, expected, np.abs(np.log(p)).max(initial=1), dtype, 16)
        assert_agree(tensor.grad, gradient, 1 / T, dtype, 40)


@needs_torch
def test_cross_entropy_of_class_labels(device):
    @examples(device)
    def on_example(draw):
        T, dtype = draw(st.sampled_from([0.5, 1.0, 20.0])), draw(dtypes)
        z = drawn(draw, (draw(sizes), draw(st.integers(1, 5))), dtype, draw(st.sampled_from(["all", "finite", "none"])))
        n, classes = z.values.shape
        labels = np.random.default_rng(draw(seeds)).integers(0, classes, n)
        compare_to_norm(
            device,
            draw,
            lambda z: ops.cross_entropy(z, device.asarray(labels), T=T),
            lambda z: F.cross_entropy(z / T, torch.tensor(labels), reduction="none"),
            z,
            "none",
        )


@needs_torch
def test_cross_entropy_of_soft_labels(device):
    """Labels of 0 among them, whose term is 0 also where the log of the probability is -infinity."""

    @examples(device)
    def on_example(draw):
        T, dtype = draw(st.sampled_from([0.5, 1.0, 20.0])), draw(dtypes)
        z = drawn(draw, (draw(sizes), draw(st.integers(1, 5))), dtype, draw(st.sampled_from(["all", "finite", "none"])))
        rng = np.random.default_rng(draw(seeds))
        soft = (rng.random(z.values.shape) * rng.integers(0, 2, z.values.shape)).astype(dtype)
        target = torch.tensor(soft.astype(float))

        def theirs(z):
            log_p = F.log_softmax(z / T, 1)
            return -torch.where((target == 0) & ~log_p.isnan(), 0, target * log_p).sum(1)

        compare_to_norm(device, draw, lambda z: ops.cross_entropy(z, device.asarray(soft), T=T), theirs, z, "none")
