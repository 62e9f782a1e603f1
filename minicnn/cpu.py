"""The backend functions on NumPy arrays: every operation of the engine, forward and gradient together.

`cuda.py` holds the same names with the same signatures; ops.py has checked what comes in. Shapes are logical: images
are (N, C, H, W). Physically, what this module computes lies as (H, C, W, N), so that kh input rows are one contiguous
(kh C, W N) matrix: a convolution is a few matrix products a row without an im2col copy, pooling and ReLU run over
contiguous N, and element-wise NumPy keeps the layout by itself. Arrays are float32 or float64; an output has the dtype
of its input.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Array = np.ndarray
Size = tuple[int, int]  # rows, columns
Step = Any  # a number, or an array of one

ROW_BLOCKS = 4
CACHED = 2**16  # numbers of an intermediate result that stays in a core's cache
CHANGED_IMAGES = 256  # of one_pixel.py at a time: fewer cost more calls, more leave the cache

_this_thread = threading.local()


def _available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Helpers:
    """The threads that work beside the caller's, started at first use."""

    def __init__(self, count):
        self.count, self._pool, self._starting = count, None, threading.Lock()

    def submit(self, work, count):
        """Have up to `count` helpers call work(), soon, late or, at exit or where no thread can be started, never."""
        with contextlib.suppress(RuntimeError):
            with self._starting:
                self._pool = self._pool or ThreadPoolExecutor(self.count)
            for _ in range(min(count, self.count)):
                self._pool.submit(work)


_helpers = _Helpers(min(ROW_BLOCKS, _available_cores()) - 1)


def threads() -> int:
    """How many threads work on rows or on jobs, that of the caller among them."""
    return 1 + _helpers.count


def set_threads(count: int) -> None:
    """Use `count` threads (at least 1) for the work on rows or on jobs; BLAS keeps its own setting."""
    global _helpers
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    _helpers = _Helpers(count - 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: set_threads(threads()))  # a child has none of its parent's threads


def flushes_denormals() -> bool:
    """Whether this thread counts numbers below the smallest normal float (1.2e-38 in float32) as zero. Other libraries
    can switch that on for a process; plain saliency maps then have more zeros than IEEE arithmetic gives them."""
    return bool((np.finfo(np.float32).tiny * np.full(1, 0.5, np.float32) == 0).any())


def in_parallel(job: Callable[[Any], Any], items: Sequence) -> list:
    """[job(item) for every item of a list], the items divided among the threads. What a job calls is not divided
    further, unless it is the only one: threads that wait for each other would stand still. After an error, and after
    Ctrl-C, no job begins any more."""
    if not _helpers.count or len(items) == 1 or getattr(_this_thread, "works", False):
        return [job(item) for item in items]
    results, left = [None] * len(items), collections.deque(range(len(items)))
    errors, working, change = [], set(), threading.Condition()

    def work():
        # A helper that comes when nothing is left takes nothing, whenever that is.
        _this_thread.works = True
        try:
            while True:
                with change:
                    if not left:
                        return
                    i = left.popleft()
                    working.add(i)
                try:
                    results[i] = job(items[i])
                except BaseException as error:
                    errors.append(error)
                    left.clear()
                finally:
                    with change:
                        working.remove(i)
                        change.notify_all()
        finally:
            _this_thread.works = False

    try:
        _helpers.submit(work, len(items) - 1)
        work()
        with change:
            change.wait_for(lambda: not working)
    finally:
        left.clear()
    if errors:
        raise errors[0]
    return results


@contextlib.contextmanager
def equal_sums() -> Iterator[None]:
    """Within this context conv2d, called by this thread, gives equal windows of an image equal sums to the last bit,
    wherever they lie.

    BLAS rounds the outer columns of a product in another way than the inner ones, which breaks ties of a max-pool on a
    flat background, and with them its gradient. Here every column of pixels is a product of its own, all of the same
    shape: slower, for few images several times.
    """
    before, _this_thread.equal_sums = _sums_are_equal(), True
    try:
        yield
    finally:
        _this_thread.equal_sums = before


def _sums_are_equal():
    return getattr(_this_thread, "equal_sums", False)


def _multiply_by_column(taps, lines, images, out):
    """out = taps @ lines, (O, K) and (rows, K, W N) -> (rows, O, W N), a product for each column of pixels."""
    by_column = (a.reshape(*a.shape[:2], a.shape[2] // images, images).transpose(0, 2, 1, 3) for a in (lines, out))
    np.matmul(taps, next(by_column), out=next(by_column))
    return out


def _over_rows(job, array):
    """Run job(first, last) over the rows of an array cut into ROW_BLOCKS blocks, or one where it is small; the cut, and
    so every sum, is the same for any number of threads. Returns the results in order."""
    if array.size <= CACHED:
        return [job(0, len(array))]
    cuts = [len(array) * block // ROW_BLOCKS for block in range(ROW_BLOCKS + 1)]
    blocks = [(first, last) for first, last in zip(cuts, cuts[1:], strict=False) if first < last]
    return in_parallel(lambda block: job(*block), blocks)


def _physical(x):
    """The contiguous (H, C, W, N) array under logical (N, C, H, W); a copy only where x lies otherwise."""
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0))


def _logical(x):
    return x.transpose(3, 1, 0, 2)


def _row_groups(x, first_row, last_row, top, kernel_height, at_once):
    """Cut output rows first_row..last_row into groups of at most `at_once`; a row that misses taps stands alone.

    Yields (rows, taps, lines): two slices, and the input of each output row of the group as a matrix, together
    (rows, taps C, W N): a view, in which neighbours share input rows.
    """
    height, channels, width, images = x.shape
    shape = max(0, height - kernel_height + 1), kernel_height * channels, width * images
    strides = channels * width * images * x.itemsize, width * images * x.itemsize, x.itemsize
    all_lines = np.lib.stride_tricks.as_strided(x, shape, strides)
    r = first_row
    while r < last_row:
        first, last = max(0, r - top), min(height, r - top + kernel_height)
        if last - first == kernel_height:
            lines = all_lines[first : first + min(at_once, last_row - r)]
        else:
            lines = x[first:last].reshape(1, -1, width * images)
        yield slice(r, r + len(lines)), slice(first - (r - top), last - (r - top)), lines
        r += len(lines)


def _with_rows_around(x, above, rows):
    """x as rows above.. of an array of `rows` rows, zeros elsewhere; x itself where nothing is to be added."""
    if len(x) == rows:
        return x
    padded = np.zeros((rows, *x.shape[1:]), x.dtype)
    padded[above : above + len(x)] = x
    return padded


def _shifts(left, kernel_width, width, width_out, images):
    """For every horizontal tap: which of the output's columns (W' N) it reaches, and which of the input's it reads."""
    for j in range(kernel_width):
        a, b = max(0, left - j), max(0, left - j, min(width_out, width + left - j))
        yield slice(a * images, b * images), slice((a + j - left) * images, (b + j - left) * images)


def _columns(lines, shifts, size):
    """What every tap reads, zero outside the image: (rows, taps C, W N) -> a matrix a row, (rows, kw taps C, size)."""
    columns = np.zeros((len(lines), len(shifts), lines.shape[1], size), lines.dtype)
    for j, (reached, read) in enumerate(shifts):
        columns[:, j, :, reached] = lines[:, :, read]
    return columns.reshape(len(lines), -1, size)


def _correlate(x, w, size_out, offset, bias=None, relu=False):
    """y[r, o, c, n] = bias[o] + sum_{i,j,k} w[j, o, i, k] x[r - top + i, k, c - left + j, n], x zero outside.

    x (H, C, W, N), w (kw, O, kh, C), size_out (rows, columns), offset (top, left) -> y (rows, O, columns, N).
    Where the taps hold fewer numbers than the outputs (the first layer) the columns are copied and one product a row
    does; otherwise each tap is a product on the rows as they lie, added to y at its shift.
    """
    _, channels, width, images = x.shape
    kernel_width, filters, kernel_height, _ = w.shape
    rows_out, width_out = size_out
    top, left = offset
    y = np.empty((rows_out, filters, width_out, images), x.dtype)
    if not images:
        return y
    if y.size <= CACHED:
        x, top = _with_rows_around(x, top, rows_out + kernel_height - 1), 0
    matrices = y.reshape(rows_out, filters, -1)
    shifts = list(_shifts(left, kernel_width, width, width_out, images))
    at_once = max(1, CACHED // matrices[0].size)
    by_column = _sums_are_equal()  # asked here: the rows below may be another thread's

    def multiply(taps, lines, out):
        return _multiply_by_column(taps, lines, images, out) if by_column else np.matmul(taps, lines, out=out)

    def rows(first_row, last_row):
        scratch = np.empty((min(at_once, last_row - first_row), *matrices.shape[1:]), x.dtype)
        for group, present, lines in _row_groups(x, first_row, last_row, top, kernel_height, at_once):
            y_rows, taps = matrices[group], w[:, :, present].reshape(kernel_width, filters, -1)
            if kernel_height * channels < filters:
                taps = taps.transpose(1, 0, 2).reshape(filters, -1)
                multiply(taps, _columns(lines, shifts, y_rows.shape[2]), y_rows)
            else:
                for j, (reached, read) in enumerate(shifts):
                    if j == 0:
                        y_rows[:, :, : reached.start] = y_rows[:, :, reached.stop :] = 0
                        multiply(taps[j], lines[:, :, read], y_rows[:, :, reached])
                    else:
                        product = scratch[: len(lines), :, reached]
                        y_rows[:, :, reached] += multiply(taps[j], lines[:, :, read], product)
            if bias is not None:
                y_rows += bias[:, None]
            if relu:
                np.maximum(y_rows, 0, out=y_rows)

    _over_rows(rows, y)
    return y


def conv2d(x: Array, w: Array, b: Array | None, size_out: Size, offset: Size, relu: bool) -> Array:
    """y[n, o, r, c] = b[o] + sum_{k,i,j} w[o, k, i, j] x[n, k, r - top + i, c - left + j], then max(y, 0) with relu.

    x (N, C, H, W) is all that is not zero, w (O, C, kh, kw), b (O,) or None, size_out (H', W'), offset (top, left)
    -> (N, O, H', W').
    """
    taps = np.ascontiguousarray(w.transpose(3, 0, 2, 1))
    return _logical(_correlate(_physical(x), taps, size_out, offset, b, relu))


def conv2d_input_grad(g: Array, w: Array, size: Size, offset: Size) -> Array:
    """Gradient of conv2d by x: g correlated with the flipped, transposed filters. g (N, O, H', W') -> (N, C, *size)."""
    flipped_offset = tuple(k - 1 - o for k, o in zip(w.shape[2:], offset, strict=True))
    taps = np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(3, 1, 2, 0))
    return _logical(_correlate(_physical(g), taps, size, flipped_offset))


def conv2d_weight_grad(x: Array, g: Array, kernel: Size, offset: Size) -> Array:
    """Gradient of conv2d by w: for each tap the shifted input times g. x (N, C, H, W), g (N, O, H', W')
    -> (O, C, *kernel)."""
    (kernel_height, kernel_width), (top, left) = kernel, offset
    filters, channels = g.shape[1], x.shape[1]
    x, g = _physical(x), _physical(g)
    rows_out, _, width_out, images = g.shape
    if not images:
        return np.zeros((filters, channels, *kernel), x.dtype)
    g = g.reshape(rows_out, filters, -1)
    shifts = list(_shifts(left, kernel_width, x.shape[2], width_out, images))
    at_once = max(1, CACHED // g[0].size)

    def rows(first_row, last_row):
        gw = np.zeros((kernel_width, kernel_height, channels, filters), x.dtype)
        for group, present, lines in _row_groups(x, first_row, last_row, top, kernel_height, at_once):
            taps, g_rows = gw[:, present], g[group].transpose(0, 2, 1)
            if kernel_height * channels < filters:
                for product in _columns(lines, shifts, g_rows.shape[1]) @ g_rows:
                    taps += product.reshape(taps.shape)
                continue
            for j, (reached, read) in enumerate(shifts):
                for product in lines[:, :, read] @ g_rows[:, reached]:
                    taps[j] += product.reshape(taps.shape[1:])
        return gw

    partial_sums = _over_rows(rows, g)
    return np.ascontiguousarray(functools.reduce(np.add, partial_sums).transpose(3, 2, 1, 0))


def bias_grad(g: Array) -> Array:
    """Sum over every axis but 1. g (N, U) or (N, C, H, W) -> (U,) or (C,)."""
    if g.ndim == 2:
        return g.sum(axis=0)
    g = _physical(g)
    g = g.reshape(*g.shape[:2], g.shape[2] * g.shape[3])
    sums = np.empty(g.shape[:2], g.dtype)

    def rows(a, b):
        g[a:b].sum(axis=2, out=sums[a:b])

    _over_rows(rows, g)
    return sums.sum(axis=0)


def dense(x: Array, w: Array, b: Array, relu: bool) -> Array:
    """Affine map with optional ReLU. x (N, D), w (D, U), b (U,) -> (N, U)."""
    y = x @ w
    y += b
    return np.maximum(y, 0, out=y) if relu else y


def dense_input_grad(g: Array, w: Array) -> Array:
    """Gradient of dense by x. g (N, U), w (D, U) -> (N, D)."""
    return g @ w.T


def dense_weight_grad(x: Array, g: Array) -> Array:
    """Gradient of dense by w. x (N, D), g (N, U) -> (D, U)."""
    return x.T @ g


def relu(x: Array) -> Array:
    """max(x, 0), any shape."""
    return np.maximum(x, 0)


def _select(g, chosen, out):
    """out = g where chosen, else 0, whatever g holds: g's bits times 1 or 0. Of the numbers themselves infinity times 0
    would be NaN, and np.where takes ten times as long."""
    bits = np.dtype(f"i{g.itemsize}")
    np.multiply(g.view(bits), chosen, out=out.view(bits))
    return out


def relu_grad(g: Array, y: Array) -> Array:
    """Gradient of relu from its output: g where y > 0, else 0. Any shape."""
    if g.ndim != 4:
        return _select(g, y > 0, np.empty(g.shape, g.dtype))
    g, y = _physical(g), _physical(y)
    gx = np.empty(g.shape, g.dtype)

    def rows(a, b):
        _select(g[a:b], y[a:b] > 0, gx[a:b])

    _over_rows(rows, g)
    return _logical(gx)


def _windows(x, size):
    """The size^2 members of every pooling window in raster order, each (H', C, W', N). x (H, C, W, N)."""
    height, width = x.shape[0] // size * size, x.shape[2] // size * size
    return [x[i:height:size, :, j:width:size] for i in range(size) for j in range(size)]


def max_pool2d(x: Array, size: int) -> tuple[Array, Array]:
    """Maximum over size x size windows, stride = size; remaining rows and columns are dropped.

    x (N, C, H, W), size 1..16 -> y (N, C, H // size, W // size), winner (same shape, uint8): the raster position of
    the first maximum in its window. NaN is larger than any number.
    """
    members = _windows(_physical(x), size)
    first, *others = members
    y = np.empty(first.shape, x.dtype)
    winner = np.zeros(y.shape, np.uint8)

    def rows(a, b):
        y[a:b] = first[a:b]
        for position, member in enumerate(others, 1):
            larger = (member[a:b] > y[a:b]).view(np.uint8)
            np.maximum(winner[a:b], larger * np.uint8(position), out=winner[a:b])
            np.maximum(y[a:b], member[a:b], out=y[a:b])
        if np.isnan(y[a:b].max(initial=-np.inf)):  # NaN is larger than nothing above
            for position, member in reversed(list(enumerate(members))):
                winner[a:b][np.isnan(member[a:b])] = position

    _over_rows(rows, y)
    return _logical(y), _logical(winner)


def max_pool2d_grad(g: Array, x: Array, y: Array, winner: Array, size: int, ties: str) -> Array:
    """Gradient of max_pool2d. ties "first": to the winner; "all": to every element equal to the maximum (Theano), of a
    maximum that is NaN to every NaN.

    g, y, winner (N, C, H', W'), x (N, C, H, W) -> (N, C, H, W).
    """
    g, x, y, winner = _physical(g), _physical(x), _physical(y), _physical(winner)
    gx = np.empty(x.shape, g.dtype)
    gx[len(y) * size :] = 0
    gx[:, :, y.shape[2] * size :] = 0

    def rows(a, b):
        nan = ties == "all" and np.isnan(y[a:b].max(initial=-np.inf))
        for position, (member, target) in enumerate(zip(_windows(x, size), _windows(gx, size), strict=True)):
            chosen = winner[a:b] == position if ties == "first" else member[a:b] == y[a:b]
            if nan:
                chosen |= np.isnan(member[a:b])
            _select(g[a:b], chosen, target[a:b])

    _over_rows(rows, y)
    return _logical(gx)


def _sum_classes(p):
    """Sum over axis 1 in class order, (N, K) -> (N, 1): the order of the author's loss."""
    return functools.reduce(np.add, p.T)[:, None]


def _exponents(z, T):
    """(z - max z) / T of each row, also where the difference of two finite logits is no finite number."""
    T, largest = z.dtype.type(T), z.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        difference = z - largest
        if (beyond := np.isinf(difference) & np.isfinite(z)).any():
            return np.where(beyond, z / T - largest / T, difference / T)
        return difference / T


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


@np.errstate(under="ignore", divide="ignore")  # log(0) is what it should be
def saliency_cotangent(z: Array, labels: Array, T: float, arithmetic: str) -> tuple[Array, Array]:
    """The cotangent of the logits, of the cross-entropy, with which a saliency map begins.

    z (N, K), labels (N,) integers -> g (N, K), log10_scale (N,), all in z's dtype.
    "plain": the author's (p - y) / T with p = exp / sum, and scale 1; in float32 it underflows to zero.
    "scaled": the same divided by (1 - p_k) / T: g_k = -1, g_j = exp(l_j - L), L = log(1 - p_k) from log-softmax;
    log10_scale = (L - ln T) / ln 10. Order and signs are kept and nothing underflows.
    """
    rows = np.arange(len(z))
    if arithmetic == "plain":
        g = softmax(z, T)
        g[rows, labels] -= 1
        return g / z.dtype.type(T), np.zeros(len(z), z.dtype)
    others = log_softmax(z, T)
    others[rows, labels] = -np.inf
    largest = others.max(axis=1, keepdims=True)
    log_rest = largest + np.log(_sum_classes(np.exp(others - largest)))
    g = np.exp(others - log_rest)
    g[rows, labels] = -1
    log10_scale = (log_rest[:, 0] - z.dtype.type(np.log(T))) / z.dtype.type(np.log(10))
    return g, log10_scale


def philox(blocks: int, layer: int, step: Step, seed: int) -> Array:
    """Philox4x32-10 (Salmon et al., SC 2011) of the counters (0..blocks-1, layer, step, 0) -> (blocks, 4) uint32."""
    low, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = [np.arange(blocks, dtype=np.uint64), *(np.full(blocks, v, np.uint64) for v in (layer, step, 0))]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        product0, product1 = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (product1 >> word) ^ counter[1] ^ np.uint64(key[0]),
            product1 & low,
            (product0 >> word) ^ counter[3] ^ np.uint64(key[1]),
            product0 & low,
        ]
        key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return np.stack(counter, axis=1).astype(np.uint32)


@_underflows
def dropout(x: Array, rate: float, seed: int, layer: int, step: Step) -> tuple[Array, Array]:
    """Inverted dropout: keep with probability 1 - rate, times 1 / (1 - rate). Returns the value and the kept (bool).

    x any shape; rate in [0, 1); seed below 2^64; layer and step (an int, or an array of one) below 2^32. Element i in
    logical order takes word i % 4 of the Philox block (i // 4, layer, step, 0): the same mask on every backend.
    """
    words = philox(-(-x.size // 4), layer, int(np.asarray(step).reshape(())), seed).reshape(-1)[: x.size]
    kept = (words < round((1 - rate) * 2**32)).reshape(x.shape)
    return dropout_grad(x, kept, rate, seed, layer, step), kept


@_underflows
def dropout_grad(g: Array, kept: Array, rate: float, seed: int, layer: int, step: Step) -> Array:
    """Gradient of dropout, which is linear: the same mask and factor. Here the mask is kept; CUDA draws it again."""
    scaled = np.multiply(g, g.dtype.type(1 / (1 - rate)))
    return _select(scaled, kept, np.empty_like(scaled))


@_underflows
def nesterov_step(w: Array, velocity: Array, g: Array, lr: Any, momentum: float, l2: float) -> None:
    """One step of Nesterov momentum as Lasagne writes it, in place on w and velocity.

    G = g + 2 l2 w;  v <- momentum v - lr G;  w <- w + momentum v - lr G. lr is a number or an array of one.
    """
    change = (g + w.dtype.type(2 * l2) * w) * w.dtype.type(np.asarray(lr).reshape(()))
    velocity *= w.dtype.type(momentum)
    velocity -= change
    w += w.dtype.type(momentum) * velocity - change


def gather(data: Array, permutation: Array, step: Step, batch: int) -> Array:
    """The rows of a training step: data[permutation[k batch : (k + 1) batch]], k = step modulo whole batches. Raises
    ValueError where there is none."""
    if len(permutation) < batch:
        raise ValueError(f"{len(permutation)} samples are less than one batch of {batch}")
    k = int(np.asarray(step).reshape(())) % (len(permutation) // batch)
    return data[permutation[k * batch : (k + 1) * batch]]


def take_images(x: Array, chosen: Array) -> Array:
    """x[chosen] for a window x (N, C, H, W) of activations, chosen (M,) integers -> (M, C, H, W), a copy."""
    return _logical(np.take(x.transpose(2, 1, 3, 0), chosen, axis=3))


def advance(step: Array) -> None:
    """step[0] += 1, step (1,) uint32."""
    step[0] += 1


def accumulate(total: Array, values: Array) -> None:
    """total[0] += sum(values), total (1,) float64."""
    total[0] += values.sum(dtype=np.float64)


def capture(function: Callable[[], Any]) -> Callable[[], Any]:
    """A callable that repeats `function`: here the function itself; on CUDA it replays a captured graph."""
    return function
