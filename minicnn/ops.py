"""Differentiable operations of a CNN. Each checks its arguments and returns its value and its pullbacks, computed by
the backend functions of its arrays.

N images, C channels, O filters, H rows, W columns, D inputs, U units, K classes, T > 0 the temperature.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import backend
from minicnn.autograd import Array, MaskedPullback, ReluGradient, ValueAndPullbacks, op

Size = tuple[int, ...]

LARGEST_POOL = 16  # its winners are numbered in a byte


def _functions(array: Any) -> Any:
    return backend.of(array).functions


def _alone(value: Any) -> Any:
    """What a NumPy array of one element holds; anything else as it is."""
    return value.reshape(())[()] if isinstance(value, np.ndarray) and value.size == 1 else value


def is_on_device(value: Any) -> bool:
    """Whether this is an array that is not NumPy's, for whose values nothing is to wait."""
    return hasattr(value, "ndim") and not isinstance(value, (np.ndarray, np.generic))


def as_number(name: str, value: Any) -> float:
    """A real number, of Python's, of NumPy's, or in an array of one, as a float. Raises ValueError for anything else,
    True and False too, and for one that is too large."""
    number = _alone(value)
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(f"{name} must be a number that fits into a float") from None


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_integer(name: str, value: Any) -> int:
    """An integer, of Python's, of NumPy's, or in an array of one, as an int. Raises ValueError for anything else,
    True and False too."""
    number = _alone(value)
    if not _is_integer(number):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return int(number)


def as_flag(name: str, value: Any) -> bool:
    """True or False, of Python's, of NumPy's, or in an array of one, as a bool. Raises ValueError for anything
    else, numbers too."""
    flag = _alone(value)
    if not isinstance(flag, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(flag)


def check_temperature(T: Any, dtype: Any = np.float64) -> float:
    """T as a float. Raises ValueError unless it is a number above 0, which the paper's Definition 2 leaves unsaid, and
    finite, both as it is and rounded to the logits' dtype."""
    number = as_number("the temperature T", T)
    if not number > 0:
        raise ValueError(f"the temperature T must be positive, got {T}")
    with np.errstate(all="ignore"):
        rounded = np.dtype(dtype).type(number)
    if not 0 < rounded < np.inf:
        raise ValueError(
            f"the temperature T must be positive and finite, got {number}, which is {rounded} in {rounded.dtype}"
        )
    return number


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises ValueError unless it is an integer of at least `least`."""
    count = _alone(value)
    if not _is_integer(count) or count < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(count)


def check_labels(labels: Any, count: int, classes: int | None = None) -> np.ndarray:
    """Class labels (a sequence or an array of any backend) as a NumPy array of integers, shape (count,).

    Raises ValueError for another shape, for what are no integers, and for labels outside 0..classes-1; of no labels, as
    in [], the type does not matter.

    >>> check_labels([2, 0], count=2, classes=3)
    array([2, 0])
    """
    labels = backend.to_host(labels)
    if labels.shape != (count,):
        raise ValueError(f"class labels must have shape ({count},), one an image, got {labels.shape}")
    if labels.dtype.kind not in "iu" and labels.size:
        raise ValueError(f"class labels must be integers, got {labels.dtype}")
    if classes is not None and count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels if count else labels.astype(int)


def _check_shape(name: str, found: Size, wanted: tuple[int | str, ...]) -> None:
    """Compare with a shape in which a string stands for any size, N, D and U for none as well. Raises ValueError with
    both shapes."""
    if len(found) != len(wanted) or any(
        isinstance(want, int) and want != have for have, want in zip(found, wanted, strict=True)
    ):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, wanted))}), got {found}")
    for have, want in zip(found, wanted, strict=True):
        if not have and want in ("C", "H", "W", "O", "kh", "kw", "K"):
            raise ValueError(f"{name} need {want} > 0, got {found}")


def _target(z: Any, target: Any) -> Any:
    """Soft labels or class labels, or a sequence of them, as an array that fits the logits z."""
    _check_shape("logits", z.shape, ("N", "K"))
    if isinstance(target, (list, tuple)) or not hasattr(target, "ndim"):
        target = backend.of(z).asarray(target)
    if target.ndim == 2:
        _check_shape("soft labels", target.shape, z.shape)
        if target.dtype != z.dtype:
            raise ValueError(f"soft labels must have the logits' dtype {z.dtype}, got {target.dtype}")
    elif isinstance(target, np.ndarray):
        check_labels(target, *z.shape)
    else:
        # Their range is on the device, where nothing waits for it.
        _check_shape("class labels", target.shape, z.shape[:1])
        if target.dtype.kind not in "iu":
            raise ValueError(f"class labels must be integers, got {target.dtype}")
    return target


def _extent(size: int, kernel: int, padding: str) -> tuple[int, int]:
    """Rows (columns) of a convolution's output, and of zeros before its input; for an even kernel and "same" the zeros
    that are one too many lie at the bottom and right."""
    if padding == "same":
        return size, (kernel - 1) // 2
    if kernel > size:
        raise ValueError(f"a kernel of {kernel} does not fit into {size} rows or columns: use padding='same'")
    return size - kernel + 1, 0


@op
def conv2d(x: Array, w: Array, b: Array, padding: str = "valid", relu: bool = False) -> ValueAndPullbacks:
    """Cross-correlation, stride 1: y[n, o, r, c] = b[o] + sum_{k,i,j} w[o, k, i, j] x[n, k, r + i, c + j].

    x (N, C, H, W), w (O, C, kh, kw), b (O,) -> (N, O, H', W'). padding "valid": H' = H - kh + 1; "same": H' = H, for an
    even kernel the extra zeros lie at the bottom and right. relu=True gives max(y, 0). Raises ValueError for other
    shapes, for dimensions of 0 but N, for an unknown padding, for a relu that is no bool, and for a kernel larger than
    the image.

    >>> from minicnn import Tensor
    >>> conv2d(Tensor(np.arange(9.0).reshape(1, 1, 3, 3)), Tensor(np.ones((1, 1, 2, 2))), Tensor([0.5])).data
    array([[[[ 8.5, 12.5],
             [20.5, 24.5]]]])
    """
    size_out, offset, pullbacks = _convolution(x, w, b, padding)
    relu, f = as_flag("relu", relu), _functions(x)
    y = f.conv2d(x, w, b, size_out, offset, relu)
    return (y, pullbacks, ReluGradient(y, lambda g: f.relu_grad(g, y))) if relu else (y, pullbacks)


def _convolution(x: Array, w: Array, b: Array, padding: str) -> tuple[Any, Any, tuple[Any, ...]]:
    """What a convolution of images has: rows and columns of its output, zeros before its input, and pullbacks. Raises
    ValueError where there is none."""
    if padding not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}")
    size_out, offset = _sizes_of_convolution(x.shape, w.shape, b.shape, padding)
    f = _functions(x)
    pullbacks = (
        _masked_pullback("conv2d", x, lambda g, mask: f.conv2d_input_grad(g, w, x.shape[2:], offset, mask)),
        lambda g: f.conv2d_weight_grad(x, g, w.shape[2:], offset),
        lambda g: f.bias_grad(g),
    )
    return size_out, offset, pullbacks


@functools.lru_cache(maxsize=1024)
def _sizes_of_convolution(x: Size, w: Size, b: Size, padding: str) -> tuple[Size, ...]:
    """From the shapes: rows and columns of the output, and of zeros before the input. Raises ValueError where they do
    not fit."""
    _check_shape("images", x, ("N", "C", "H", "W"))
    _check_shape("filters", w, ("O", x[1], "kh", "kw"))
    _check_shape("bias", b, w[:1])
    return tuple(zip(*(_extent(size, kernel, padding) for size, kernel in zip(x[2:], w[2:], strict=True)), strict=True))


def _masked_pullback(name: str, x: Array, input_grad: Callable[[Array, Array | None], Array]) -> MaskedPullback:
    """The pullback of an operation by x, from its function of the cotangent and the mask."""

    def checked(g, mask):
        if mask is not None and mask.shape != x.shape:
            raise TypeError(f"{name} was given {x.shape}, and the ReLU that its gradient goes to {mask.shape}")
        return input_grad(g, mask)

    return MaskedPullback(checked)


@op
def dense(x: Array, w: Array, b: Array, relu: bool = False) -> ValueAndPullbacks:
    """Affine map x w + b. x (N, D), w (D, U), b (U,) -> (N, U). relu=True gives max(y, 0).

    Raises ValueError for other shapes, and for a relu that is no bool.
    """
    _check_shape("inputs", x.shape, ("N", "D"))
    _check_shape("weights", w.shape, (x.shape[1], "U"))
    _check_shape("bias", b.shape, w.shape[1:])
    relu = as_flag("relu", relu)
    f = _functions(x)
    y = f.dense(x, w, b, relu)
    pullbacks = (
        _masked_pullback("dense", x, lambda g, mask: f.dense_input_grad(g, w, mask)),
        lambda g: f.dense_weight_grad(x, g),
        lambda g: f.bias_grad(g),
    )
    return (y, pullbacks, ReluGradient(y, lambda g: f.relu_grad(g, y))) if relu else (y, pullbacks)


@op
def relu(x: Array) -> ValueAndPullbacks:
    """max(x, 0), any shape; the gradient at 0 is 0, at NaN that of a number above 0, as in PyTorch."""
    f = _functions(x)
    y = f.relu(x)
    return y, (lambda g: f.relu_grad(g, y),)


@op
def max_pool2d(x: Array, size: int = 2, ties: str = "first") -> ValueAndPullbacks:
    """Maximum over size x size windows with stride size; remaining rows and columns are dropped.

    x (N, C, H, W) -> (N, C, H // size, W // size). The gradient goes to the first maximum in raster order
    (ties="first") or to every element equal to it (ties="all", as Theano does, on which the paper ran).
    Raises ValueError for a size outside 1..16 or larger than the image, and for another tie rule.

    >>> from minicnn import Tensor
    >>> x = Tensor([[[[5.0, 5.0], [1.0, 5.0]]]], requires_grad=True)
    >>> max_pool2d(x, ties="all").backward()
    >>> x.grad
    array([[[[1., 1.],
             [0., 1.]]]])
    """
    _check_shape("images", x.shape, ("N", "C", "H", "W"))
    size, f = _pool_size(size, ties, x.shape[2:]), _functions(x)
    y, winner = f.max_pool2d(x, size)
    if ties == "all":
        return y, (lambda g: f.max_pool2d_grad_of_ties(g, x, y, size),)
    return y, (lambda g: f.max_pool2d_grad(g, winner, x.shape, size),)


def _pool_size(size: Any, ties: str, image: tuple[int, ...]) -> int:
    """The size as an int. Raises ValueError where an image of so many rows and columns has no such pool."""
    if ties not in ("first", "all"):
        raise ValueError(f"ties must be 'first' or 'all', got {ties!r}")
    size = as_integer("pool size", size)
    if not 1 <= size <= min(LARGEST_POOL, *image):
        raise ValueError(f"pool size must be 1 to {LARGEST_POOL} and at most the image's {image}, got {size}")
    return size


@op
def conv2d_max_pool2d(
    x: Array, w: Array, b: Array, padding: str = "valid", relu: bool = False, size: int = 2, ties: str = "first"
) -> ValueAndPullbacks:
    """max_pool2d(conv2d(x, w, b, padding, relu), size, ties), to the last bit, the gradients too, in two passes less.

    A maximum is 0 only where all of its window is, so the gradient of ReLU may be taken before that of the pool, where
    numbers are fewer. What is pooled is kept only where ties="all" asks for it. Raises ValueError as the two do.
    """
    size_out, offset, pullbacks = _convolution(x, w, b, padding)
    relu, size, f = as_flag("relu", relu), _pool_size(size, ties, size_out), _functions(x)
    if ties == "all":
        y = f.conv2d(x, w, b, size_out, offset, relu)
        z = f.max_pool2d(y, size)[0]

        def unpool(g):
            return f.max_pool2d_grad_of_ties(g, y, z, size)
    else:
        z, winner = f.conv2d_max_pool2d(x, w, b, size_out, offset, relu, size)

        def unpool(g):
            return f.max_pool2d_grad(g, winner, (len(x), len(w), *size_out), size)

    return z, pullbacks, ReluGradient(z, lambda g: f.relu_grad(g, z), unpool) if relu else unpool


def _counter(name: str, value: Any, bits: int) -> int:
    """The value as an int. Raises ValueError unless it is an integer of so many bits without sign."""
    number = as_integer(f"the {name} of dropout", value)
    if not 0 <= number < 2**bits:
        raise ValueError(f"the {name} of dropout must be at least 0 and below 2^{bits}, got {number}")
    return number


@op
def flatten(x: Array) -> ValueAndPullbacks:
    """Images (N, C, H, W), or anything else of N, as rows (N, D) in logical (C) order. Raises ValueError for a number,
    which has no axes."""
    if not x.ndim:
        raise ValueError("flatten needs images (N, ...), got ()")
    f = _functions(x)
    return f.flatten(x), (lambda g: f.unflatten(g, x.shape),)


@op
def dropout(x: Array, rate: float, seed: int, layer: int, step: Any) -> ValueAndPullbacks:
    """Inverted dropout: each element is 0 with probability `rate`, else multiplied by 1 / (1 - rate).

    x any shape, rate in [0, 1). The mask is that of Philox4x32-10 for (seed, layer, step), the same bits on every
    backend; seed is below 2^64, layer and step are below 2^32, step an int or an array of one, on the device uint32 and
    unchecked. Raises ValueError for another rate, and for what is no integer, negative or too large.

    >>> from minicnn import Tensor
    >>> dropout(Tensor([1.0, 2.0, 3.0, 4.0]), rate=0.5, seed=0, layer=0, step=0).data
    array([2., 0., 0., 0.])
    """
    number = as_number("the dropout rate", rate)
    if not 0 <= number < 1:
        raise ValueError(f"the dropout rate must be at least 0 and below 1, got {rate}")
    rate, seed, layer = number, _counter("seed", seed, 64), _counter("layer", layer, 32)
    step = step if is_on_device(step) else _counter("step", step, 32)
    f = _functions(x)
    y, kept = f.dropout(x, rate, seed, layer, step)
    return y, (lambda g: f.dropout_grad(g, kept, rate, seed, layer, step),)


@op
def softmax(z: Array, T: float = 1.0) -> ValueAndPullbacks:
    """Equation (2): exp(z_i / T) / sum_j exp(z_j / T). z (N, K) -> (N, K). Raises ValueError unless T > 0.

    >>> from minicnn import Tensor
    >>> softmax(Tensor([[20.0, 0.0]])).data.round(3), softmax(Tensor([[20.0, 0.0]]), T=20).data.round(3)
    (array([[1., 0.]]), array([[0.731, 0.269]]))
    """
    T = check_temperature(T, z.dtype)
    _check_shape("logits", z.shape, ("N", "K"))
    f = _functions(z)
    p = f.softmax(z, T)
    return p, (lambda g: f.softmax_grad(g, p, T),)


@op
def log_softmax(z: Array, T: float = 1.0) -> ValueAndPullbacks:
    """Logarithm of equation (2), which does not underflow. z (N, K) -> (N, K). Raises ValueError unless T > 0."""
    T = check_temperature(T, z.dtype)
    _check_shape("logits", z.shape, ("N", "K"))
    f = _functions(z)
    log_p = f.log_softmax(z, T)
    return log_p, (lambda g: f.log_softmax_grad(g, log_p, T),)


@op
def cross_entropy(z: Array, target: Any, T: float = 1.0) -> ValueAndPullbacks:
    """The loss of every sample, -sum_k target_k log softmax(z / T)_k, through log-softmax; take .mean() for the batch.

    z (N, K); target integers (N,) in 0..K-1, or soft labels (N, K) of z's dtype, as a raw array: labels are constants
    -> (N,). Raises ValueError unless T > 0, for other shapes, and (on the CPU) for labels out of range.

    >>> from minicnn import Tensor
    >>> z = Tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> cross_entropy(z, [1, 0]).mean().backward()
    >>> z.grad.round(2)  # (softmax - label) / 2
    array([[ 0.44, -0.44],
           [-0.25,  0.25]])
    """
    T = check_temperature(T, z.dtype)
    target = _target(z, target)
    f = _functions(z)
    return f.cross_entropy(z, target, T), (lambda g: f.cross_entropy_grad(g, z, target, T),)
