"""ONNX's public node tests, as far as the engine's operations reach: their inputs, and their outputs as the right ones.

The wheels of onnx up to 1.17 carry them. A test counts if every operator of its graph is in OPERATORS with attributes
that the engine has; how many do must not shrink.
"""

import functools
import math
import operator
from pathlib import Path

import numpy as np
import pytest

from minicnn import ops
from minicnn.autograd import Tensor
from minicnn.backend import to_host

onnx = pytest.importorskip("onnx", reason="needs onnx with its node tests: pip install 'onnx==1.17'")
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
MAPPED = 271  # tests that were mapped when this was written


class Unsupported(Exception):
    """The engine has no such operation or option."""


def only(condition):
    if not condition:
        raise Unsupported


def elementwise(function):
    return lambda inputs, attributes: function(*inputs)


def axes_of(x, axis_input, attributes):
    """The axes of a reduction, by an input or an attribute; None for all."""
    axes = attributes.get("axes") if axis_input is None else axis_input
    if axes is None or len(axes) == 0:
        only(not attributes.get("noop_with_empty_axes"))
        return None
    return tuple(int(i) % x.ndim for i in axes)


def reduction(function):
    def apply(inputs, attributes):
        x, axes, *_ = [*inputs, None]
        return function(x, axes_of(x, axes, attributes), bool(attributes.get("keepdims", 1)))

    return apply


def maximum(x, axes, keepdims):
    only(0 not in x.shape)
    for i in sorted(range(x.ndim) if axes is None else axes, reverse=True):
        x = x.max(axis=i, keepdims=keepdims)
    return x


def along_rows(function, x, axis):
    """A function of rows (N, K) along any axis."""
    order = [i for i in range(x.ndim) if i != axis % x.ndim] + [axis % x.ndim]
    moved = x.transpose(*order)
    back = np.argsort(order).tolist()
    return function(moved.reshape(-1, moved.shape[-1])).reshape(*moved.shape).transpose(*back)


def conv(inputs, attributes):
    """Stride 1 and "valid" or "same", of which rows and columns are taken."""
    x, w, *b = inputs
    only(x.ndim == 4 and attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1})
    bias = b[0] if b else Tensor(np.zeros(w.shape[0], w.dtype))
    strides = attributes.get("strides", [1, 1])
    only(attributes.get("auto_pad", b"NOTSET") == b"NOTSET")
    pads = attributes.get("pads", [0, 0, 0, 0])
    if not any(pads):
        return ops.conv2d(x, w, bias)[:, :, :: strides[0], :: strides[1]]
    y = ops.conv2d(x, w, bias, padding="same")
    before = [(k - 1) // 2 for k in w.shape[2:]]
    only(all(0 <= p <= before[i % 2] for i, p in enumerate(pads)))
    spans = [
        slice(b - pads[i], y.shape[2 + i] - (w.shape[2 + i] - 1 - b - pads[2 + i]), strides[i])
        for i, b in enumerate(before)
    ]
    return y[:, :, spans[0], spans[1]]


def max_pool(inputs, attributes):
    (x,), kernel = inputs, attributes["kernel_shape"]
    only(x.ndim == 4 and kernel[0] == kernel[1] and attributes.get("strides") == kernel)
    only(not any(attributes.get("pads", [])) and not attributes.get("ceil_mode"))
    only(set(attributes.get("dilations", [1])) == {1} and "auto_pad" not in attributes)
    return ops.max_pool2d(x, size=kernel[0])


def gemm(inputs, attributes):
    a, b, *c = inputs
    a, b = (t.T if attributes.get(f"trans{name}") else t for t, name in ((a, "A"), (b, "B")))
    y = a @ b * attributes.get("alpha", 1.0)
    return y + c[0] * attributes.get("beta", 1.0) if c else y


def classes_last(x):
    """(N, C, d1, ...) -> (N d1 ..., C)."""
    return x.transpose(0, *range(2, x.ndim), 1).reshape(-1, x.shape[1])


def of_labels(losses, inputs, attributes):
    """losses(rows, labels) reduced, with the weights of classes and without the labels to be ignored."""
    x, labels, weights = [*inputs, None][:3]
    ignored = labels == attributes.get("ignore_index", math.nan)
    labels, how = np.where(ignored, 0, labels), attributes.get("reduction", b"mean")
    share = np.where(ignored, 0, 1 if weights is None else weights.data[labels]).astype(x.dtype)
    y = losses(classes_last(x), labels.reshape(-1)).reshape(*labels.shape) * share
    return y if how == b"none" else y.sum() if how == b"sum" else y.sum() / share.sum()


def cross_entropy(inputs, attributes):
    return of_labels(ops.cross_entropy, inputs, attributes), along_rows(ops.log_softmax, inputs[0], 1)


def negative_log_likelihood(inputs, attributes):
    return of_labels(lambda log_p, labels: -log_p[np.arange(len(labels)), labels], inputs, attributes)


def reshape(inputs, attributes):
    x, shape = inputs
    if not attributes.get("allowzero"):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(*map(int, shape))


def flatten(inputs, attributes):
    (x,), axis = inputs, attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def squeeze(inputs, attributes):
    x, axes = inputs
    gone = {int(i) % x.ndim for i in axes}
    return x.reshape(*(n for i, n in enumerate(x.shape) if i not in gone))


def unsqueeze(inputs, attributes):
    x, axes = inputs
    return x.reshape(*np.expand_dims(x.data, tuple(map(int, axes))).shape)


def transpose(inputs, attributes):
    (x,) = inputs
    return x.transpose(*attributes.get("perm", reversed(range(x.ndim))))


def slices(inputs, attributes):
    x, starts, ends, *rest = inputs
    axes, steps = [*rest, *[None, None][len(rest) :]]
    axes = range(len(starts)) if axes is None else axes
    index = [slice(None)] * x.ndim
    for axis, first, last, step in zip(axes, starts, ends, [1] * len(starts) if steps is None else steps, strict=True):
        last = None if step < 0 and last < -x.shape[axis] else int(last)
        index[axis] = slice(int(first), last, int(step))
    return x[tuple(index)]


def gather(inputs, attributes):
    x, indices = inputs
    return x[(slice(None),) * (attributes.get("axis", 0) % x.ndim) + (indices,)]


def gather_nd(inputs, attributes):
    x, indices = inputs
    only(not attributes.get("batch_dims"))
    return x[tuple(np.moveaxis(indices, -1, 0))]


def split(inputs, attributes):
    x, parts = [*inputs, None][:2]
    axis = attributes.get("axis", 0) % x.ndim
    if parts is None:
        only("num_outputs" in attributes)
        part = -(-x.shape[axis] // attributes["num_outputs"])
        parts = [min(part, x.shape[axis] - first) for first in range(0, x.shape[axis], part)]
    ends = np.cumsum(parts)
    return tuple(x[(slice(None),) * axis + (slice(e - n, e),)] for n, e in zip(parts, ends, strict=True))


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def by_sides(x, slope):
    """x where it is positive, slope x elsewhere."""
    return ops.relu(x) - slope * ops.relu(-x)


def power(x, exponent):
    exponent = to_host(exponent.data if isinstance(exponent, Tensor) else exponent)
    return x ** exponent.astype(x.dtype)


def softmax_axis(function):
    return lambda inputs, attributes: along_rows(function, inputs[0], attributes.get("axis", -1))


OPERATORS = {
    "Add": elementwise(operator.add),
    "Sub": elementwise(operator.sub),
    "Mul": elementwise(operator.mul),
    "Div": elementwise(operator.truediv),
    "Neg": elementwise(operator.neg),
    "Pow": elementwise(power),
    "Sqrt": elementwise(lambda x: x**0.5),
    "Reciprocal": elementwise(lambda x: 1 / x),
    "Exp": elementwise(Tensor.exp),
    "Log": elementwise(Tensor.log),
    "Relu": elementwise(ops.relu),
    "Abs": elementwise(lambda x: by_sides(x, -1)),
    "PRelu": elementwise(by_sides),
    "LeakyRelu": lambda inputs, attributes: by_sides(inputs[0], attributes.get("alpha", 0.01)),
    "Elu": lambda inputs, attributes: (
        ops.relu(inputs[0]) + attributes.get("alpha", 1.0) * ((-ops.relu(-inputs[0])).exp() - 1)
    ),
    "Sigmoid": elementwise(sigmoid),
    "Softplus": elementwise(lambda x: (x.exp() + 1).log()),
    "Tanh": elementwise(lambda x: 2 * sigmoid(2 * x) - 1),
    "Sum": elementwise(lambda *x: functools.reduce(operator.add, x)),
    "Mean": elementwise(lambda *x: functools.reduce(operator.add, x) / len(x)),
    "Expand": lambda inputs, attributes: inputs[0] * np.ones([int(n) for n in inputs[1]], np.float32),
    "MatMul": elementwise(operator.matmul),
    "Gemm": gemm,
    "Conv": conv,
    "MaxPool": max_pool,
    "GlobalAveragePool": elementwise(lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)),
    "GlobalMaxPool": elementwise(lambda x: maximum(x, range(2, x.ndim), True)),
    "ReduceSum": reduction(Tensor.sum),
    "ReduceMean": reduction(Tensor.mean),
    "ReduceMax": reduction(maximum),
    "ReduceSumSquare": reduction(lambda x, *how: (x * x).sum(*how)),
    "ReduceL1": reduction(lambda x, *how: by_sides(x, -1).sum(*how)),
    "ReduceL2": reduction(lambda x, *how: (x * x).sum(*how) ** 0.5),
    "ReduceLogSum": reduction(lambda x, *how: x.sum(*how).log()),
    "ReduceLogSumExp": reduction(lambda x, *how: x.exp().sum(*how).log()),
    "Softmax": softmax_axis(ops.softmax),
    "LogSoftmax": softmax_axis(ops.log_softmax),
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Slice": slices,
    "Gather": gather,
    "GatherND": gather_nd,
    "Split": split,
}


def arrays(folder, kind):
    found = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in found]


def run(name):
    """The outputs of a node test, and those that ONNX expects. Raises Unsupported."""
    graph = onnx.load(DATA / name / "model.onnx").graph
    only(len(graph.node) == 1 and graph.node[0].op_type in OPERATORS)
    (node,), folder = graph.node, DATA / name / "test_data_set_0"
    inputs, expected = arrays(folder, "input"), arrays(folder, "output")
    only(all(a.dtype in (np.float32, np.float64) for a in [inputs[0], *expected]))
    only(len(node.input) == len(inputs) or "" in node.input)
    given = iter(inputs)
    values = [next(given) if n else None for n in node.input]
    tensors = [Tensor(v) if v is not None and v.dtype in (np.float32, np.float64) else v for v in values]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    found = OPERATORS[node.op_type](tensors, attributes)
    found = found if isinstance(found, tuple) else (found,)
    only(len(expected) <= len(found))
    return found[: len(expected)], expected


def test_onnx_node_tests_of_the_supported_operators():
    if not DATA.is_dir():
        pytest.skip("this onnx carries no node tests: pip install 'onnx==1.17'")
    mapped = []
    for name in sorted(path.name for path in DATA.iterdir()):
        try:
            with np.errstate(divide="ignore"):  # the log of an empty sum
                found, expected = run(name)
        except Unsupported:
            continue
        mapped.append(name)
        for y, value in zip(found, expected, strict=True):
            assert y.shape == value.shape, name
            np.testing.assert_allclose(y.data, value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(mapped) >= MAPPED, f"{len(mapped)} tests are mapped, {MAPPED} were"
