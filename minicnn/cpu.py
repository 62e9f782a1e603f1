"""The backend functions on NumPy arrays: every operation of the engine, forward and gradient together.

`cuda.py` holds the same names with the same signatures; ops.py has checked what comes in. Shapes are logical: images
are (N, C, H, W) and rows (N, D). Physically, what this module computes lies as (H, C, W, N) and (D, N), the images
innermost (rows of few images may not): kernels/conv2d.c says why; pooling and ReLU run over contiguous N, and
element-wise NumPy keeps the layout by itself. Arrays are float32 or float64; an output has the dtype of its input.

Convolutions and dense layers, which are convolutions of one pixel, are done by kernels/conv2d.c, or by NumPy where
there is no C compiler: `convolutions()` tells. On either road equal windows have equal sums to the last bit, and an
image's numbers do not depend on the images beside it.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import buffers, kernels_numpy
from minicnn.compiled import CompilerError
from minicnn.kernels_c import CKernels
from minicnn.threads import in_parallel as in_parallel
from minicnn.threads import over_rows
from minicnn.threads import set_threads as set_threads
from minicnn.threads import shares as shares
from minicnn.threads import threads as threads

Array = np.ndarray
Size = tuple[int, ...]  # rows, columns
Step = Any  # a number, or an array of one

CHUNK = 256  # images at a time: fewer cost more calls, more leave the cache


def flushes_denormals() -> bool:
    """Whether this thread counts numbers below the smallest normal float (1.2e-38 in float32) as zero. Other libraries
    can switch that on for a process; plain saliency maps then have more zeros than IEEE arithmetic gives them."""
    return bool((np.finfo(np.float32).tiny * np.full(1, 0.5, np.float32) == 0).any())


def _physical(x):
    """The contiguous (H, C, W, N) array under logical (N, C, H, W); a copy only where x lies otherwise."""
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0))


def _logical(x):
    return x.transpose(3, 1, 0, 2)


@functools.cache
def _kernels() -> tuple[Any, str]:
    """Who does the heavy operations, CKernels or kernels_numpy, and the same in words."""
    wanted = os.environ.get("MINICNN_CONV", "")
    if wanted not in ("", "numpy", "compiled"):
        raise ValueError(f"MINICNN_CONV must be numpy or compiled, got {wanted!r}")
    if wanted == "numpy":
        return kernels_numpy, "numpy: MINICNN_CONV asks for it"
    try:
        return CKernels(), "compiled"
    except CompilerError as error:
        if wanted == "compiled":
            raise
        return kernels_numpy, f"numpy: {error}"


def convolutions() -> str:
    """Who does the convolutions and what is heavy beside them: "compiled", or "numpy: " and why. MINICNN_CONV=numpy or
    compiled forces one. Raises ValueError for another value, CompilerError where `compiled` is forced in vain.
    """
    return _kernels()[1]


def _check_dtypes(x, *others):
    """C reads memory as it is told to, and a buffer of NumPy's takes any number."""
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"float32 or float64 is needed, got {x.dtype}")
    for other in others:
        if other is not None and other.dtype != x.dtype:
            raise TypeError(f"{x.dtype} meets {other.dtype}: give all arrays the same dtype")


def conv2d(x: Array, w: Array, b: Array | None, size_out: Size, offset: Size, relu: bool) -> Array:
    """y[n, o, r, c] = b[o] + sum_{k,i,j} w[o, k, i, j] x[n, k, r - top + i, c - left + j], then max(y, 0) with relu.

    x (N, C, H, W) is all that is not zero, w (O, C, kh, kw), b (O,) or None, size_out (H', W'), offset (top, left)
    -> (N, O, H', W').
    """
    _check_dtypes(x, w, b)
    y = buffers.empty((size_out[0], len(w), size_out[1], len(x)), x.dtype)
    return _logical(_kernels()[0].correlate(_physical(x), w, offset, y, b, relu))


def conv2d_input_grad(g: Array, w: Array, size: Size, offset: Size, mask: Array | None = None) -> Array:
    """Gradient of conv2d by x. g (N, O, H', W') -> gx (N, C, *size). With a mask of that shape relu_grad(gx, mask)."""
    _check_dtypes(g, w, mask)
    gx = buffers.empty((size[0], w.shape[1], size[1], len(g)), g.dtype)
    mask = None if mask is None else _physical(mask)
    return _logical(_kernels()[0].input_grad(_physical(g), w, gx, offset, mask))


def conv2d_weight_grad(x: Array, g: Array, kernel: Size, offset: Size) -> Array:
    """Gradient of conv2d by w: for each tap the shifted input times g. x (N, C, H, W), g (N, O, H', W')
    -> (O, C, *kernel)."""
    _check_dtypes(x, g)
    gw = _kernels()[0].weight_grad(_physical(x), _physical(g), kernel, offset)  # (kh, C, kw, O)
    return np.ascontiguousarray(gw.transpose(3, 1, 0, 2))


def bias_grad(g: Array) -> Array:
    """Sum over every axis but 1. g (N, U) or (N, C, H, W) -> (U,) or (C,)."""
    if g.ndim == 2:
        return g.sum(axis=0)
    g = _physical(g)
    g = g.reshape(*g.shape[:2], g.shape[2] * g.shape[3])
    sums = np.empty(g.shape[:2], g.dtype)

    def rows(a, b):
        g[a:b].sum(axis=2, out=sums[a:b])

    over_rows(rows, g)
    return sums.sum(axis=0)


def dense(x: Array, w: Array, b: Array, relu: bool) -> Array:
    """Affine map with optional ReLU. x (N, D), w (D, U), b (U,) -> (N, U)."""
    _check_dtypes(x, w, b)
    return _kernels()[0].product(np.ascontiguousarray(x.T), w, b, relu).T


def dense_input_grad(g: Array, w: Array, mask: Array | None = None) -> Array:
    """Gradient of dense by x. g (N, U), w (D, U) -> gx (N, D). With a mask of that shape relu_grad(gx, mask)."""
    _check_dtypes(g, w, mask)
    mask = None if mask is None else np.ascontiguousarray(mask.T)
    return _kernels()[0].product(np.ascontiguousarray(g.T), w.T, mask=mask).T


def dense_weight_grad(x: Array, g: Array) -> Array:
    """Gradient of dense by w. x (N, D), g (N, U) -> (D, U)."""
    _check_dtypes(x, g)
    return _kernels()[0].product_weight_grad(np.ascontiguousarray(x.T), np.ascontiguousarray(g.T))


def relu(x: Array) -> Array:
    """max(x, 0), any shape."""
    return np.maximum(x, 0)


def relu_grad(g: Array, y: Array) -> Array:
    """Gradient of relu from its output: 0 where y <= 0, whatever g holds, else g: of NaN too. Any shape."""
    _check_dtypes(g, y)
    if g.ndim == 4:
        return _logical(_kernels()[0].relu_grad(_physical(g), _physical(y)))
    return kernels_numpy.relu_grad(g, y)


def max_pool2d(x: Array, size: int) -> tuple[Array, Array]:
    """Maximum over size x size windows, stride = size; remaining rows and columns are dropped.

    x (N, C, H, W), size 1..16 -> y (N, C, H // size, W // size), winner (same shape, uint8): the raster position of
    the first maximum in its window. NaN is larger than any number.
    """
    y, winner = _kernels()[0].max_pool2d(_physical(x), size)
    return _logical(y), _logical(winner)


def max_pool2d_grad(g: Array, winner: Array, shape: tuple[int, ...], size: int) -> Array:
    """Gradient of max_pool2d to the winner of each window. g, winner (N, C, H', W') -> gx of shape (N, C, H, W)."""
    _check_dtypes(g)
    images, channels, height, width = shape
    gx = _kernels()[0].max_pool2d_grad(_physical(g), _physical(winner), (height, channels, width, images), size)
    return _logical(gx)


def max_pool2d_grad_of_ties(g: Array, x: Array, y: Array, size: int) -> Array:
    """Gradient of max_pool2d to every element equal to the maximum (Theano), of a maximum that is NaN to every NaN.

    g, y (N, C, H', W'), x (N, C, H, W) -> (N, C, H, W).
    """
    _check_dtypes(g, x, y)
    return _logical(_kernels()[0].max_pool2d_grad_of_ties(*map(_physical, (g, x, y)), size))


def conv2d_max_pool2d(
    x: Array, w: Array, b: Array, size_out: Size, offset: Size, relu: bool, size: int
) -> tuple[Array, Array]:
    """max_pool2d(conv2d(x, w, b, size_out, offset, relu), size), to the last bit: y and winner. Here the array between
    them is not written where most of x is 0."""
    _check_dtypes(x, w, b)
    y, winner = _kernels()[0].conv2d_max_pool2d(_physical(x), w, offset, size_out, b, relu, size)
    return _logical(y), _logical(winner)


def pack_moved(w: Array) -> Array:
    """The filters w (O, C, k, k), square, as conv2d_moved takes them."""
    _check_dtypes(w)
    return _kernels()[0].pack_moved(w)


def conv2d_moved(
    y: Array, image: Array, origin: Array, d: Array, packed: Array, size: int, relu: bool, keep: bool
) -> Array:
    """How outputs y of some images change with their inputs, by d (kernels_numpy.conv2d_moved). packed: pack_moved(w)
    of filters of `size` rows and columns; keep: y is changed."""
    _check_dtypes(y, d, packed)
    return _kernels()[0].conv2d_moved(y, image, origin, d, packed, size, relu, keep)


def max_pool2d_moved(
    z: Array, image: Array, origin: Array, d: Array, y: Array, size: int, relu: bool, keep: bool
) -> Array:
    """How maxima z of some images change with their inputs y, by d (kernels_numpy.max_pool2d_moved); keep: z is
    changed, and y has been."""
    _check_dtypes(z, d, y)
    return _kernels()[0].max_pool2d_moved(z, image, origin, d, y, size, relu, keep)


def flatten(x: Array) -> Array:
    """(N, ...) -> (N, D); of images the result lies as (C H W, N), which is what dense reads."""
    if x.ndim != 4:
        return x.reshape(len(x), math.prod(x.shape[1:]))
    return x.transpose(1, 2, 3, 0).reshape(math.prod(x.shape[1:]), len(x)).T


def unflatten(g: Array, shape: tuple[int, ...]) -> Array:
    """The reverse of flatten: (N, D) -> shape (N, ...)."""
    if len(shape) != 4:
        return g.reshape(shape)
    return g.T.reshape(*shape[1:], shape[0]).transpose(3, 0, 1, 2)


def _sum_classes(p):
    """Sum over axis 1 in class order, (N, K) -> (N, 1): the order of the author's loss, which np.sum does not keep."""
    return np.add.accumulate(p.T)[-1][:, None]


def _sum_classes_as_tree(e):
    """Sum over axis 1, (N, K) -> (N, 1): slot t of 16 takes the classes t, t + 16, t + 32, ... in order; then the upper
    half of the slots is added to the lower half until one is left: the order of the author's gradient."""
    slots = np.zeros((16, len(e)), e.dtype)
    for first in range(0, e.shape[1], 16):
        classes = e.T[first : first + 16]
        slots[: len(classes)] += classes
    while len(slots) > 1:
        half = len(slots) // 2
        slots = slots[:half] + slots[half:]
    return slots.T


def _exponents(z, T):
    """(z - max z) / T of each row, also where the difference of two finite logits is no finite number."""
    T, largest = z.dtype.type(T), z.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        difference = z - largest
        if np.isfinite(difference).all():
            return difference / T
        beyond = np.isinf(difference) & np.isfinite(z)
        return np.where(beyond, z / T - largest / T, difference / T)


# What is too small for a float is zero in these functions, also where the user has made that an error.
_underflows = np.errstate(under="ignore")


@_underflows
def softmax(z: Array, T: float) -> Array:
    """Equation (2): exp((z - max z) / T) / sum, summed in class order. z (N, K) -> (N, K)."""
    e = np.exp(_exponents(z, T))
    return e / _sum_classes(e)


@_underflows
def softmax_grad(g: Array, p: Array, T: float) -> Array:
    """Gradient of softmax from its output: (g - sum(g p)) p / T. (N, K)."""
    return (g - _sum_classes(g * p)) * p / p.dtype.type(T)


@_underflows
def log_softmax(z: Array, T: float) -> Array:
    """log of equation (2), without underflow. z (N, K) -> (N, K)."""
    u = _exponents(z, T)
    return u - np.log(_sum_classes(np.exp(u)))


@_underflows
def log_softmax_grad(g: Array, l: Array, T: float) -> Array:  # noqa: E741
    """Gradient of log_softmax from its output: (g - exp(l) sum(g)) / T. (N, K)."""
    return (g - np.exp(l) * _sum_classes(g)) / l.dtype.type(T)


def _one_hot(target, like):
    """Soft labels as they are; class labels (N,) as rows of the unit matrix."""
    if target.ndim == 2:
        return target
    return (target[:, None] == np.arange(like.shape[1])).astype(like.dtype)


@_underflows
def cross_entropy(z: Array, target: Array, T: float) -> Array:
    """-sum_k target_k log softmax(z / T)_k for each sample, a term 0 where target_k is. z (N, K), target (N,) integers
    or (N, K) -> (N,)."""
    y = _one_hot(target, z)
    log_p = np.where(y == 0, z.dtype.type(0), log_softmax(z, T))  # 0 times -infinity would be NaN
    return -_sum_classes(log_p * y)[:, 0]


@_underflows
def cross_entropy_grad(g: Array, z: Array, target: Array, T: float) -> Array:
    """Gradient of cross_entropy by z: g (p sum(target) - target) / T. g (N,) -> (N, K)."""
    y = _one_hot(target, z)
    return g[:, None] * (np.exp(log_softmax(z, T)) * _sum_classes(y) - y) / z.dtype.type(T)


@np.errstate(under="ignore", divide="ignore", invalid="ignore")  # the log of no probability is -infinity
def saliency_cotangent(z: Array, labels: Array, T: float, arithmetic: str) -> tuple[Array, Array]:
    """The cotangent of the logits, of the cross-entropy, with which a saliency map begins.

    z (N, K), labels (N,) integers -> g (N, K), log10_scale (N,), all in z's dtype.
    "plain": the author's (p - y) / T with p = exp / sum, summed as his gradient does (_sum_classes_as_tree), not in
    class order as softmax and his loss; scale 1. In float32 it underflows to zero.
    "scaled": the same divided by (1 - p_k) / T: g_k = -1, g_j = exp(l_j - L), L = log(1 - p_k) from log-softmax;
    log10_scale = (L - ln T) / ln 10. Order and signs are kept. The other classes' entries add up to 1, so
    that no map vanishes; a class is 0 only where it has less than 1e-45 (float32) of the others' probability.
    """
    rows = np.arange(len(z))
    if arithmetic == "plain":
        e = np.exp(_exponents(z, T))
        g = e / _sum_classes_as_tree(e)
        g[rows, labels] -= 1
        return g / z.dtype.type(T), np.zeros(len(z), z.dtype)
    others = log_softmax(z, T)
    others[rows, labels] = -np.inf
    largest = others.max(axis=1, keepdims=True)
    log_rest = largest + np.log(_sum_classes(np.exp(others - np.where(largest == -np.inf, 0, largest))))
    g = np.exp(others - log_rest)
    g[rows, labels] = -1
    log10_scale = (log_rest[:, 0] - z.dtype.type(np.log(T))) / z.dtype.type(np.log(10))
    return g, log10_scale


@_underflows
def dropout(x: Array, rate: float, seed: int, layer: int, step: Step) -> tuple[Array, Array]:
    """Inverted dropout: keep with probability 1 - rate, times 1 / (1 - rate). Returns the value and the kept (bool).

    x any shape; rate in [0, 1); seed below 2^64; layer and step (an int, or an array of one) below 2^32. Element i in
    logical order takes word i % 4 of the Philox block (i // 4, layer, step, 0): the same mask on every backend.
    """
    key = layer, int(np.asarray(step).reshape(())), seed
    kept = np.empty_like(x, bool)  # which lies as x does
    _kernels()[0].draw_kept(kept, *key, round((1 - rate) * 2**32))
    return dropout_grad(x, kept, rate, seed, layer, step), kept


@_underflows
def dropout_grad(g: Array, kept: Array, rate: float, seed: int, layer: int, step: Step) -> Array:
    """Gradient of dropout, which is linear: the same mask and factor. Here the mask is kept; CUDA draws it again."""
    g = _without_gaps(g, g)
    return _kernels()[0].dropout(g, _without_gaps(kept, g), 1 / (1 - rate))


def _without_gaps(x, like):
    """x in memory as numpy.empty_like(like) lies, copied only where it does not."""
    alike = np.empty_like(like, x.dtype)
    if alike.strides == x.strides:
        return x
    alike[...] = x
    return alike


@np.errstate(all="ignore")  # as C does, and half a step is none
def nesterov_step(w: Array, velocity: Array, g: Array, lr: Any, momentum: float, l2: float) -> None:
    """One step of Nesterov momentum as Lasagne writes it, in place on w and velocity.

    G = g + 2 l2 w;  v <- momentum v - lr G;  w <- w + momentum v - lr G. lr is a number or an array of one.
    """
    _check_dtypes(w, velocity, g)
    in_order = all(array.flags.c_contiguous for array in (w, velocity, g))
    kernels = _kernels()[0] if in_order else kernels_numpy
    kernels.nesterov(w, velocity, g, float(np.asarray(lr).reshape(())), momentum, 2 * l2)


def gather(data: Array, permutation: Array, step: Step, batch: int) -> Array:
    """The rows of a training step: data[permutation[k batch : (k + 1) batch]], k = step modulo whole batches. Raises
    ValueError where there is none."""
    if len(permutation) < batch:
        raise ValueError(f"{len(permutation)} samples are less than one batch of {batch}")
    k = int(np.asarray(step).reshape(())) % (len(permutation) // batch)
    return data[permutation[k * batch : (k + 1) * batch]]


def advance(step: Array) -> None:
    """step[0] += 1, step (1,) uint32."""
    step[0] += 1


def accumulate(total: Array, values: Array) -> None:
    """total[0] += sum(values), total (1,) float64."""
    total[0] += values.sum(dtype=np.float64)


def capture(function: Callable[[], Any]) -> Callable[[], Any]:
    """A callable that repeats `function`: here the function itself; on CUDA it replays a captured graph."""
    return function
