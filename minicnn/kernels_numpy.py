"""The heavy operations on the CPU in plain NumPy: for a machine without a C compiler, and for a first reading.

kernels_c.py has the same functions by our own C, several times as fast. Arrays lie as cpu.py says: images (H, C, W, N),
outputs (P, O, Q, N), contiguous. Equal windows have equal sums to the last bit, and an image's numbers do not depend on
the images beside it: every window is a product of its own with the filters, all of one shape.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
Size = tuple[int, ...]  # rows, columns


def columns(x: Array, size_out: Size, kernel: Size, offset: Size) -> Array:
    """What every output is a sum of (im2col): x (H, C, W, N) -> (P, Q, N, C kh kw), zero outside the image."""
    height, channels, width, images = x.shape
    padded = np.zeros((size_out[0] + kernel[0] - 1, channels, size_out[1] + kernel[1] - 1, images), x.dtype)
    inside = padded[offset[0] : offset[0] + height, :, offset[1] : offset[1] + width]
    inside[...] = x[: len(inside), :, : inside.shape[2]]
    sliding = np.lib.stride_tricks.sliding_window_view
    windows = sliding(sliding(padded, kernel[0], axis=0), kernel[1], axis=2)  # (P, C, Q, N, kh, kw)
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(*size_out, images, channels * math.prod(kernel))


_quiet = np.errstate(over="ignore", invalid="ignore")  # infinity and NaN are results like any other, as C has them


@_quiet
def correlate(x: Array, w: Array, offset: Size, y: Array, bias: Array | None = None, relu: bool = False) -> Array:
    """y[p, o, q, n] = bias[o] + sum_{i,c,j} w[o, c, i, j] x[p + i - top, c, q + j - left, n], then max(y, 0) with relu.

    w (O, C, kh, kw) of any strides, offset (top, left). Writes and returns y.
    """
    windows = columns(x, (len(y), y.shape[2]), w.shape[2:], offset)
    filters = np.ascontiguousarray(w).reshape(len(w), windows.shape[-1])
    y[...] = np.matmul(filters, windows[..., None])[..., 0].transpose(0, 3, 1, 2)
    if bias is not None:
        y += bias[:, None, None]
    return np.maximum(y, 0, out=y) if relu else y


@_quiet
def input_grad(g: Array, w: Array, gx: Array, offset: Size, mask: Array | None = None) -> Array:
    """gx[r, c, s, n] = sum_{o,i,j} w[o, c, i, j] g[r - i + top, o, s - j + left, n], the sum over those g that there
    are: g correlated with the flipped, transposed filters; then relu_grad(gx, mask) with a mask. Writes and returns
    gx."""
    if np.isfinite(w).all():
        correlate(g, *flipped(w, offset), gx)
    else:
        _input_grad_by_tap(g, w, gx, offset)
    return gx if mask is None else relu_grad(gx, mask, out=gx)


def _input_grad_by_tap(g: Array, w: Array, gx: Array, offset: Size) -> None:
    """The same for filters that are not finite, of which none is to meet a zero beside g."""
    gx[...] = 0
    for i, j in np.ndindex(*w.shape[2:]):
        top, left = offset[0] - i, offset[1] - j
        rows = slice(max(0, -top), min(len(gx), len(g) - top))
        columns = slice(max(0, -left), min(gx.shape[2], g.shape[2] - left))
        met = g[rows.start + top : max(0, rows.stop + top), :, columns.start + left : max(0, columns.stop + left)]
        for o, filters in enumerate(w[:, :, i, j]):  # one by one, for einsum's order of a sum hangs on the strides
            gx[rows, :, columns] += filters[:, None, None] * met[:, o, None]


def flipped(w: Array, offset: Size) -> tuple[Array, Size]:
    """The filters and offset by which correlate gives the input gradient of that with w and `offset`."""
    return w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), tuple(k - o - 1 for k, o in zip(w.shape[2:], offset, strict=True))


def product(x: Array, w: Array, bias: Array | None = None, relu: bool = False, mask: Array | None = None) -> Array:
    """x w + bias as a convolution of images of one pixel: x (D, N), w (D, U) of any strides -> y (U, N); relu_grad(y,
    mask) with a mask."""
    y = np.empty((1, w.shape[1], 1, x.shape[1]), x.dtype)
    y = correlate(x[None, :, None], w.T[:, :, None, None], (0, 0), y, bias, relu)[0, :, 0]
    return y if mask is None else relu_grad(y, mask, out=y)


@_quiet
def weight_grad(x: Array, g: Array, kernel: Size, offset: Size) -> Array:
    """gw[i, c, j, o] = sum_{p,q,n} g[p, o, q, n] x[p + i - top, c, q + j - left, n] -> (kh, C, kw, O)."""
    windows = columns(x, (len(g), g.shape[2]), kernel, offset)
    # Not by np.tensordot, whose np.dot of one column by one number makes 0 of infinity times 0.
    pixels = math.prod(windows.shape[:3])
    gw = windows.reshape(pixels, windows.shape[3]).T @ g.transpose(0, 2, 3, 1).reshape(pixels, g.shape[1])
    return gw.reshape(x.shape[1], *kernel, g.shape[1]).transpose(1, 0, 2, 3)


def product_weight_grad(x: Array, g: Array) -> Array:
    """x g^T: x (D, N), g (U, N) -> (D, U)."""
    return x @ g.T


def select(g: Array, chosen: Array, out: Array) -> Array:
    """out = g where chosen, else 0, whatever g holds: g's bits times 1 or 0. Of the numbers themselves infinity times 0
    would be NaN, and np.where takes ten times as long."""
    bits = np.dtype(f"i{g.itemsize}")
    np.multiply(g.view(bits), chosen, out=out.view(bits))
    return out


def relu_grad(g: Array, y: Array, out: Array | None = None) -> Array:
    """0 where y <= 0, else g: of NaN too, which is not 0 or less. Any shape. Written to `out`, or a new array."""
    return select(g, ~(y <= 0), np.empty_like(g) if out is None else out)


def _members(x: Array, size: int) -> list[Array]:
    """The size^2 members of every pooling window in raster order, each (P, C, Q, N)."""
    height, width = x.shape[0] // size * size, x.shape[2] // size * size
    return [x[i:height:size, :, j:width:size] for i in range(size) for j in range(size)]


def max_pool2d(x: Array, size: int) -> tuple[Array, Array]:
    """y (P, C, Q, N), the maximum of every window, NaN larger than any number; winner, the raster position of its first
    (uint8)."""
    y = np.maximum.reduce(_members(x, size))
    winner = np.zeros(y.shape, np.uint8)
    for position, member in reversed(list(enumerate(_members(x, size)))):
        winner[_equal(member, y)] = position
    return y, winner


def max_pool2d_grad(g: Array, winner: Array, shape: tuple[int, ...], size: int) -> Array:
    """g to the winner of each window, 0 elsewhere -> gx of that shape (H, C, W, N)."""
    gx = np.zeros(shape, g.dtype)
    for position, target in enumerate(_members(gx, size)):
        np.copyto(target, g, where=winner == position)
    return gx


def max_pool2d_grad_of_ties(g: Array, x: Array, y: Array, size: int) -> Array:
    """g to every member of a window that equals its maximum, 0 elsewhere -> x's shape."""
    gx = np.zeros(x.shape, g.dtype)
    for member, target in zip(_members(x, size), _members(gx, size), strict=True):
        np.copyto(target, g, where=_equal(member, y))
    return gx


def conv2d_max_pool2d(
    x: Array, w: Array, offset: Size, size_out: Size, bias: Array, relu: bool, size: int
) -> tuple[Array, Array]:
    """max_pool2d of correlate, whose outputs have size_out rows and columns."""
    y = np.empty((size_out[0], len(w), size_out[1], x.shape[3]), x.dtype)
    return max_pool2d(correlate(x, w, offset, y, bias, relu), size)


def _equal(a: Array, b: Array) -> Array:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def philox(blocks: int, layer: int, step: int, seed: int) -> Array:
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


def _rectified(y: Array, relu: bool) -> Array:
    return np.maximum(y, 0) if relu else y


def _inside(origin: Array, edge: int, extents: Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What of a square, `edge` rows and columns from `origin` on, lies in an image: slices of both."""
    starts = [max(0, -first) for first in origin]
    stops = [max(0, -first, min(edge, extent - first)) for first, extent in zip(origin, extents, strict=True)]
    of_square = tuple(map(slice, starts, stops))
    return of_square, tuple(slice(o + s.start, o + s.stop) for o, s in zip(origin, of_square, strict=True))


def pack_moved(w: Array) -> Array:
    """Filters (O, C, k, k) as conv2d_moved takes them."""
    return np.ascontiguousarray(w)


def conv2d_moved(
    y: Array, image: Array, origin: Array, d: Array, packed: Array, size: int, relu: bool, keep: bool
) -> Array:
    """How the outputs of a convolution change with their inputs: e = f(y') - f(y) with y'[p, q, o] = y[n, p, q, o] +
    sum_{i,j,c} w[o, c, i, j] d[m, p + i, q + j, c] for n = image[m], and f(y) = max(y, 0) with relu, else y.

    y (N, P, Q, O), before ReLU; keep: it becomes y', and image names each only once. image (M,), origin (M, 2)
    integers. d (M, edge, edge, C) begins at row and column `origin`, perhaps outside the image, where it is 0. packed:
    filters (O, C, size, size). Returns e (M, edge + size - 1, edge + size - 1, O), which begins at origin - size + 1.
    """
    edge = d.shape[1] + size - 1
    padded = np.zeros((len(d), edge + size - 1, edge + size - 1, d.shape[3]), d.dtype)
    padded[:, size - 1 : edge, size - 1 : edge] = d
    taps = [(i, j) for i in range(size) for j in range(size)]
    sums = sum(padded[:, i : i + edge, j : j + edge] @ packed[:, :, i, j].T for i, j in taps)
    e = np.zeros_like(sums)
    for m, n in enumerate(image):
        square, place = _inside(origin[m] - size + 1, edge, y.shape[1:3])
        before = y[n][place]
        after = before + sums[m][square]
        e[m][square] = _rectified(after, relu) - _rectified(before, relu)
        if keep:
            y[n][place] = after
    return e


def max_pool2d_moved(
    z: Array, image: Array, origin: Array, d: Array, y: Array, size: int, relu: bool, keep: bool
) -> Array:
    """How maxima z (N, P, Q, C) change with their inputs y (N, H, W, C): e = z' - z, with z' the maxima of f(y) + d.
    keep: z becomes z', and y has changed already; the rest as for conv2d_moved. Returns e (M, edge', edge', C), which
    begins at origin // size, with edge' = (edge + size - 2) // size + 1."""
    (height, width, channels), edge = z.shape[1:], (d.shape[1] + size - 2) // size + 1
    e = np.zeros((len(image), edge, edge, channels), z.dtype)
    for m, n in enumerate(image):
        changed = _rectified(y[n], relu)
        if not keep:
            square, place = _inside(origin[m], d.shape[1], y.shape[1:3])
            changed = changed.copy()
            changed[place] += d[m][square]
        square, place = _inside(origin[m] // size, edge, z.shape[1:3])
        windows = changed[: height * size, : width * size].reshape(height, size, width, size, channels)
        after = windows[place[0], :, place[1]].max(axis=(1, 3))
        e[m][square] = after - z[n][place]
        if keep:
            z[n][place] = after
    return e


def draw_kept(kept: Array, layer: int, step: int, seed: int, threshold: int) -> None:
    """Write to each element i of kept (bool) in C order whether word i % 4 of Philox block i // 4 is below the
    threshold."""
    words = philox(-(-kept.size // 4), layer, step, seed).reshape(-1)[: kept.size]
    kept[...] = (words < threshold).reshape(kept.shape)


def dropout(x: Array, kept: Array, scale: float) -> Array:
    """x times scale where kept, else 0, whatever x holds. Any shape; both lie in memory alike, without gaps."""
    return select(x * x.dtype.type(scale), kept, np.empty_like(x))


def nesterov(w: Array, velocity: Array, g: Array, lr: float, momentum: float, l2_gradient: float) -> None:
    """G = g + l2_gradient w;  v <- momentum v - lr G;  w <- w + momentum v - lr G, in place on w and velocity."""
    lr, momentum, l2_gradient = map(w.dtype.type, (lr, momentum, l2_gradient))
    change = (g + l2_gradient * w) * lr
    velocity *= momentum
    velocity -= change
    w += momentum * velocity - change
