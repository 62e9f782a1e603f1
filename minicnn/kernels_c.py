"""The heavy operations on the CPU by our own C (kernels/*.c): those of kernels_numpy.py, which says what each does, the
rows divided among the threads. The bits are the same for any number of threads."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from minicnn import buffers, compiled
from minicnn.threads import MULTIPLY_ADDS, over_rows

Array = np.ndarray
Size = tuple[int, ...]  # rows, columns

SOURCES = ("conv2d.c", "relu.c", "max_pool2d.c", "moved.c", "dropout.c", "nesterov.c")

# The functions and what they take. "sizes", "moved": a struct Sizes, Moved; "array": a pointer; "real": a number of the
# REAL in use. They return nothing; those with "status" in front return whether they had no memory.
FUNCTIONS = {
    "pack": "sizes array array array",
    "correlate": "status sizes array array array int array long long",
    "weight_grad": "status sizes array array array long long",
    "relu_grad": "array array array long",
    "max_pool2d": "array array array long long long long long long",
    "max_pool2d_grad": "array array array array array long long long long int long long",
    "pack_moved": "moved array array",
    "conv2d_moved": "status moved array array array array int int array array long long",
    "max_pool2d_moved": "moved array array array array long long int int array array long long",
    "dropout": "array array real array long",
    "nesterov": "array array array long real real real",
}


def sources() -> list[Path]:
    """The C files."""
    return [compiled.kernel_folder() / source for source in SOURCES]


class Sizes(ctypes.Structure):
    """The struct of the same name in conv2d.c."""

    _fields_ = [(name, ctypes.c_long) for name in ("H", "C", "W", "N", "O", "P", "Q", "kh", "kw", "top", "left")]


class Moved(ctypes.Structure):
    """The struct of the same name in moved.c."""

    _fields_ = [(name, ctypes.c_long) for name in ("C", "P", "Q", "O", "k", "edge")]


class CKernels:
    """The functions of kernels_numpy.py. Raises CompilerError where the sources cannot be compiled."""

    def __init__(self) -> None:
        library = compiled.load(sources())
        self._functions = {}
        for real in (ctypes.c_float, ctypes.c_double):
            types: dict[str, Any] = {"sizes": ctypes.POINTER(Sizes), "moved": ctypes.POINTER(Moved)}
            types |= {"array": ctypes.c_void_p, "real": real, "int": ctypes.c_int, "long": ctypes.c_long}
            for name, parameters in FUNCTIONS.items():
                function = library[f"{name}_{'float' if real is ctypes.c_float else 'double'}"]
                function.argtypes = [types[kind] for kind in parameters.removeprefix("status ").split()]
                function.restype = ctypes.c_int if parameters.startswith("status") else None
                self._functions[name, np.dtype(real)] = function
        self._kept = library["dropout_kept"]
        self._kept.argtypes = [ctypes.c_void_p, ctypes.c_long, *2 * [ctypes.c_uint32], *2 * [ctypes.c_uint64]]
        self._kept.restype = None
        self._padded_filters = library["padded_filters"]
        self._padded_filters.argtypes, self._padded_filters.restype = [ctypes.c_long], ctypes.c_long
        self._padded_moved = library["padded_moved"]
        self._padded_moved.argtypes, self._padded_moved.restype = 2 * [ctypes.c_long], ctypes.c_long

    def _call(self, name: str, dtype: np.dtype, *arguments: Any) -> None:
        """A C function in the version for dtype; arrays are passed as pointers to their first element."""
        passed = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        if self._functions[name, dtype](*passed):
            raise MemoryError(f"no memory for the rows that {name} works on")

    def correlate(
        self, x: Array, w: Array, y: Array, offset: Size, bias: Array | None = None, relu: bool = False
    ) -> Array:
        filters, channels, *kernel = w.shape
        sizes = Sizes(*x.shape, *_output(y), *kernel, *offset)
        bias = None if bias is None else np.ascontiguousarray(bias)
        packed = buffers.empty((self._padded_filters(filters) * channels * math.prod(kernel),), x.dtype)
        if any(stride % w.itemsize for stride in w.strides):  # a field of a structured array
            w = np.ascontiguousarray(w)
        strides = (ctypes.c_long * 4)(*(stride // w.itemsize for stride in w.strides))
        self._call("pack", x.dtype, sizes, w, strides, packed)

        def rows(first, last):
            self._call("correlate", x.dtype, sizes, x, packed, bias, relu, y, first, last)

        over_rows(rows, y, y.size * channels * math.prod(kernel) // MULTIPLY_ADDS)
        return y

    def product(self, x: Array, w: Array, bias: Array | None = None, relu: bool = False) -> Array:
        y = np.empty((w.shape[1], x.shape[1]), x.dtype)

        def units(first, last):
            filters, part = w[:, first:last].T[:, :, None, None], y[None, first:last, None]
            self.correlate(x[None, :, None], filters, part, (0, 0), None if bias is None else bias[first:last], relu)

        over_rows(units, y, y.size * len(x) // MULTIPLY_ADDS)
        return y

    def weight_grad(self, x: Array, g: Array, kernel: Size, offset: Size) -> Array:
        sizes = Sizes(*x.shape, *_output(g), *kernel, *offset)

        def row_pairs(first, last):  # C takes two rows at a time
            part = np.empty((kernel[0], x.shape[1], kernel[1], g.shape[1]), x.dtype)
            self._call("weight_grad", x.dtype, sizes, x, g, part, 2 * first, min(2 * last, len(g)))
            return part

        work = g.size * x.shape[1] * math.prod(kernel) // MULTIPLY_ADDS
        return functools.reduce(np.add, over_rows(row_pairs, g[::2], work))

    def product_weight_grad(self, x: Array, g: Array) -> Array:
        gw = np.empty((len(x), len(g)), x.dtype)

        def inputs(first, last):
            sizes = Sizes(1, last - first, 1, x.shape[1], len(g), 1, 1, 1, 1, 0, 0)
            self._call("weight_grad", x.dtype, sizes, x[first:last], g, gw[first:last], 0, 1)

        over_rows(inputs, x, g.size * len(x) // MULTIPLY_ADDS)
        return gw

    def relu_grad(self, g: Array, y: Array) -> Array:
        gx = buffers.empty(g.shape, g.dtype)

        def rows(first, last):
            self._call("relu_grad", g.dtype, g[first:last], y[first:last], gx[first:last], gx[first:last].size)

        over_rows(rows, gx)
        return gx

    def max_pool2d(self, x: Array, size: int) -> tuple[Array, Array]:
        _, channels, width, images = x.shape
        y = buffers.empty((len(x) // size, channels, width // size, images), x.dtype)
        winner = np.empty(y.shape, np.uint8)

        def rows(first, last):
            self._call("max_pool2d", x.dtype, x, y, winner, channels, width, images, size, first, last)

        over_rows(rows, y)
        return y, winner

    def max_pool2d_grad(self, g: Array, x: Array, y: Array, winner: Array, size: int, ties: str) -> Array:
        gx = buffers.empty(x.shape, g.dtype)
        gx[len(y) * size :] = 0

        def rows(first, last):
            self._call("max_pool2d_grad", g.dtype, g, x, y, winner, gx, *x.shape[1:], size, ties == "all", first, last)

        over_rows(rows, y)
        return gx

    def pack_moved(self, w: Array) -> Array:
        filters, channels, size, _ = w.shape
        packed = np.empty((self._padded_moved(filters, w.itemsize), channels, size, size), w.dtype)
        self._call("pack_moved", w.dtype, Moved(channels, 0, 0, filters, size, 0), np.ascontiguousarray(w), packed)
        return packed

    def conv2d_moved(
        self, y: Array, image: Array, origin: Array, d: Array, packed: Array, size: int, relu: bool, keep: bool
    ) -> Array:
        edge = d.shape[1] + size - 1
        e = buffers.empty((len(image), edge, edge, y.shape[3]), y.dtype)
        sizes = Moved(d.shape[3], *y.shape[1:], size, d.shape[1])

        def images(first, last):
            self._call("conv2d_moved", y.dtype, sizes, image, origin, d, packed, relu, keep, y, e, first, last)

        over_rows(images, e, e.size * d.shape[3] * size**2 // MULTIPLY_ADDS)
        return e

    def max_pool2d_moved(
        self, z: Array, image: Array, origin: Array, d: Array, y: Array, size: int, relu: bool, keep: bool
    ) -> Array:
        edge = (d.shape[1] + size - 2) // size + 1
        e = buffers.empty((len(image), edge, edge, z.shape[3]), z.dtype)
        sizes, (height, width) = Moved(z.shape[3], *z.shape[1:], size, d.shape[1]), y.shape[1:3]

        def images(first, last):
            arguments = (image, origin, d, y, height, width, relu, keep, z, e, first, last)
            self._call("max_pool2d_moved", z.dtype, sizes, *arguments)

        over_rows(images, e, e.size * size**2)
        return e

    def kept_by_dropout(self, count: int, layer: int, step: int, seed: int, threshold: int) -> Array:
        kept = np.empty(count, bool)
        self._kept(kept.ctypes.data, count, layer, step, seed, threshold)
        return kept

    def dropout(self, x: Array, kept: Array, scale: float) -> Array:
        y = np.empty_like(x)
        self._call("dropout", x.dtype, x, kept, scale, y, x.size)
        return y

    def nesterov(self, w: Array, velocity: Array, g: Array, lr: float, momentum: float, l2_gradient: float) -> None:
        self._call("nesterov", w.dtype, w, velocity, g, w.size, lr, momentum, l2_gradient)


def _output(y: Array) -> tuple[int, int, int]:
    """O, P, Q of Sizes."""
    return y.shape[1], y.shape[0], y.shape[2]
