"""The backend functions on CUDA: those of cpu.py, as methods that launch kernels/*.cu.

The arithmetic is in kernels/, one file per operation. Here is what a launch needs: output arrays, the division of the
work into blocks, the check of every argument. `Cuda` is given an array module and a loader, so that the same launches
run on CuPy and, in the tests, on an emulator without a GPU. `KERNELS` says which parameters each kernel takes and for
which types it exists; the launch check and the compile matrix both go by it.

A training step of the paper's network at batch 128 is 7.6 GFLOP in about 70 launches, so launches cost as much as
arithmetic: nothing here waits for the device, and `capture` records a whole step as one CUDA graph. What changes from
step to step (step counter, learning rate, permutation) is read from device memory. How the work is divided, and with it
the order of every sum, follows from the shapes alone, never from the device: the same bits on every run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn.compiled import kept, kernel_folder
from minicnn.threads import chunks

Array = Any  # of xp
Size = tuple[int, int]  # rows, columns
Step = Any  # a number, or an array of one
Loader = Callable[[Path, tuple[str, ...]], Any]
Parameters = str | tuple[str, ...]

# Parameters: T, L an array of the first, second template type; U, I, B, D an array of uint32, int32, uint8, float64;
# t a scalar of the first template type; i, l, u, q a scalar of int32, int64, uint32, uint64; a name one of STRUCTS.
_REAL = ("float", "double")
_LABELLED = tuple(f"{real}, {label}" for real in _REAL for label in ("int", "long long"))
_TARGETED = _LABELLED + tuple(f"{real}, {real}" for real in _REAL)
_LAYOUTS = tuple(f"{real}, {which}" for real in _REAL for which in ("false, false", "false, true", "true, false"))
KERNELS: dict[str, dict[str, tuple[Parameters, tuple[str, ...]]]] = {
    "batch.cu": {"gather": ("TIUTlu", (*_REAL, "int")), "accumulate": ("DTl", _REAL)},
    "conv2d.cu": {
        "correlate": ((*"TTTT", "Correlation"), _REAL),
        "weight_grad": ((*"TTT", "Convolution"), _REAL),
        "input_grad_one_channel": (
            (*"TTT", "Convolution"),
            tuple(f"{real}, {size}" for real in _REAL for size in (0, 3)),
        ),
        "correlate3x3": ((*"TTTT", "TiledCorrelation"), _REAL),
        "weight_grad3x3": ((*"TTT", "TiledWeightGrad"), _REAL),
    },
    "dense.cu": {"product": ("TTTTiiiii", _LAYOUTS)},
    "dropout.cu": {"dropout": ("TTlUuuuqt", _REAL)},
    "max_pool2d.cu": {"max_pool2d": ("TTBliii", _REAL), "max_pool2d_grad": ("TTTBTliiii", _REAL)},
    "nesterov.cu": {"nesterov_step": ("TTTTltt", _REAL), "advance": ("U", ("",))},
    "reduce.cu": {"sum_parts": ("TTTliii", _REAL), "bias_grad": ("TTiii", _REAL)},
    "relu.cu": {"relu": ("TTl", _REAL), "relu_grad": ("TTTl", _REAL)},
    "softmax.cu": {
        "softmax": ("TTiit", _REAL),
        "softmax_grad": ("TTTiit", _REAL),
        "log_softmax": ("TTiit", _REAL),
        "log_softmax_grad": ("TTTiit", _REAL),
        "cross_entropy": ("TLTiit", _TARGETED),
        "cross_entropy_grad": ("TTLTiit", _TARGETED),
        "saliency_cotangent": ("TLTTiititt", _LABELLED),
    },
}

_CONVOLUTION = "N C H W O P Q kernel_height kernel_width top left"
_FIELDS = {  # of the structs in conv2d.cu, all of them int
    "Convolution": _CONVOLUTION,
    "Correlation": f"{_CONVOLUTION} flipped epilogue",
    "TiledCorrelation": f"{_CONVOLUTION} flipped epilogue block_images patch_rows patch_columns split chunk",
    "TiledWeightGrad": f"{_CONVOLUTION} block_channels band_rows band_columns g_plane x_plane",
}
STRUCTS = {struct: np.dtype([(f, np.int32) for f in _FIELDS[struct].split()], align=True) for struct in _FIELDS}
_FILE_OF = {kernel: file for file, kernels in KERNELS.items() for kernel in kernels}
_TYPES = {"float": np.float32, "double": np.float64, "int": np.int32, "long long": np.int64}
_C_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
_ARRAYS = {"U": np.uint32, "I": np.int32, "B": np.uint8, "D": np.float64}
_SCALARS = {"i": np.int32, "l": np.int64, "u": np.uint32, "q": np.uint64}

_SHARED_BYTES = 48 * 1024  # what every GPU since sm_50 gives a block
_PLAIN, _BIAS, _RELU, _MASK = 0, 1, 2, 4  # the kernels' Epilogue, to be added up
_WEIGHT_GRAD_BLOCKS = 256  # about two for each multiprocessor of a large GPU
_PRODUCT_BLOCKS = 128
_STRIP = 4  # pixels of a thread of input_grad_one_channel
_BIAS_GRAD_TERMS = 16384  # of a block


class DeviceError(RuntimeError):
    """A device was asked for that is unknown or absent; the message says what to do."""


def name_expressions(file: str) -> tuple[str, ...]:
    """Every instantiation of a file of kernels/, as C++ names."""
    return tuple(
        f"{kernel}<{arguments}>" if arguments else kernel
        for kernel, (_, instances) in KERNELS[file].items()
        for arguments in instances
    )


def nvrtc_input(path: Path) -> tuple[str, tuple[str, ...]]:
    """Source and options with which a .cu file is compiled. Compiler errors point into the file."""
    source = f'#line 1 "{path.as_posix()}"\n{path.read_text(encoding="utf-8")}'
    return source, ("--std=c++17", f"-I{path.parent.as_posix()}")


class CupyLoader:
    """Compiles .cu files by CuPy's NVRTC for the GPU at hand, and keeps them in the user's cache folder (compiled.py).

    cupy.RawModule would do that too, but always adds -ftz=true: every float32 below 1.2e-38 would be 0, and on some
    images the author's arithmetic would decide otherwise.
    """

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda

    def __call__(self, path: Path, names: tuple[str, ...]) -> _Module:
        """The kernels `names` of a file. Raises DeviceError where nothing can be kept."""
        cuda, (source, options) = self._cuda, nvrtc_input(path)

        def make(file):
            binary, symbols = cuda.compiler.compile_using_nvrtc(source, options, None, path.name, names)
            contents = json.dumps(symbols).encode() + b"\n" + binary
            file.write_bytes(hashlib.sha256(contents).digest() + contents)

        def use(file):
            whole = file.read_bytes()
            digest, contents = whole[:32], whole[32:]
            if hashlib.sha256(contents).digest() != digest:
                raise OSError(f"{file} is damaged")
            symbols, _, binary = contents.partition(b"\n")
            module = cuda.Module()
            module.load(binary)
            return _Module(module, json.loads(symbols))

        compiler = (cuda.nvrtc.getVersion(), cuda.Device().compute_capability, options, names)
        made_from = [source.encode(), path.with_name("common.cuh").read_bytes(), repr(compiler).encode()]
        try:
            return kept(path.with_suffix(".cubin").name, made_from, make, use, None)
        except OSError as error:
            raise DeviceError(
                f"the CUDA kernels cannot be kept ({error}): set MINICNN_CACHE to another folder"
            ) from error


class _Module(NamedTuple):
    """What is compiled of one file. symbols: kernel's name -> its name in there."""

    module: Any
    symbols: dict[str, str]

    def get_function(self, name):
        return self.module.get_function(self.symbols[name])


def open_cuda() -> Cuda:
    """The backend functions on the GPU that CuPy finds. Raises DeviceError where CuPy, a driver or a GPU is missing."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device cuda needs CuPy, which cannot be imported ({error}): pip install 'cupy-cuda13x[ctk]' for a "
            "driver from 580 on and a GPU of compute capability 7.5 or more, else 'cupy-cuda12x[ctk]'"
        ) from None
    runtime = cupy.cuda.runtime
    driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        raise DeviceError("device cuda needs an NVIDIA GPU, and no NVIDIA driver is installed here: use device cpu")
    if driver // 1000 < built_for // 1000:
        older_cupy = ", or replace CuPy: pip install 'cupy-cuda12x[ctk]'" if driver // 1000 == 12 else ""
        raise DeviceError(
            f"the NVIDIA driver knows CUDA up to {driver // 1000}.{driver % 1000 // 10} and CuPy is built for CUDA "
            f"{built_for // 1000}: update the driver{older_cupy}"
        )
    try:
        devices, reason = runtime.getDeviceCount(), ""
    except runtime.CUDARuntimeError as error:
        devices, reason = 0, f" ({error})"
    if not devices:
        raise DeviceError(f"device cuda needs an NVIDIA GPU, the driver offers none{reason}: use device cpu")
    return Cuda(cupy, CupyLoader(cupy))


class _Replay:
    """A step that is recorded once. The first call runs it as it is, which compiles every kernel and fills a memory
    pool of its own; the second records it as a CUDA graph and launches that; every later call launches it again."""

    def __init__(self, xp: Any, function: Callable[[], Any]) -> None:
        self._cuda, self._function = xp.cuda, function
        self._stream = xp.cuda.Stream(non_blocking=True)
        self._pool = xp.cuda.MemoryPool()  # the graph's buffers stay in it, out of reach of other allocations
        self._warm = False
        self._graph: Any = None
        self._result: Any = None

    def __call__(self) -> Any:
        """Take one step, in the caller's stream. Returns what the function returned; from the second call on these are
        the same arrays, overwritten by every call."""
        if self._graph is None:
            self._cuda.get_current_stream().synchronize()
            with self._cuda.using_allocator(self._pool.malloc), self._stream:
                if not self._warm:
                    self._result = self._function()
                    self._stream.synchronize()
                    self._warm = True
                    return self._result
                self._result = None
                self._stream.begin_capture()
                try:
                    self._result = self._function()
                finally:
                    graph = self._stream.end_capture()
            self._graph = graph
        self._graph.launch()
        return self._result


@functools.lru_cache(maxsize=4096)
def _by_value(struct, values):
    """The struct as CuPy takes it: a NumPy array of size one, on the host. As bytes, for CuPy would have every field
    described at every launch, which takes as long as the launch."""
    return np.array(values, STRUCTS[struct]).view(f"V{STRUCTS[struct].itemsize}")


def _ceil_div(a, b):
    return -(-a // b)


def _odd_quads(count):
    """The smallest odd multiple of 4 that is at least `count`: rows at this distance lie in different memory banks."""
    return 4 * (_ceil_div(count, 4) | 1)


def _sizes(x_shape, y_shape, kernel, offset):
    """The fields of struct Convolution, x (N, C, H, W) and y (N, O, P, Q)."""
    (n, c, h, w), (_, o, p, q), (top, left) = x_shape, y_shape, offset
    sizes = {"N": n, "C": c, "H": h, "W": w, "O": o, "P": p, "Q": q, "top": top, "left": left}
    return sizes | {"kernel_height": kernel[0], "kernel_width": kernel[1]}


@functools.cache
def _correlate_tiles(channels, rows, columns, itemsize):
    """How correlate3x3 divides its work: the fields of struct TiledCorrelation (images a block, rows and columns of 2x2
    patches a tile, groups of threads that share the channels, channels a chunk), and bytes of shared memory.

    A tile of 40 to 96 patches that leaves the fewest of its rows empty; of small images 2, 4, 8, ... while a group has
    no more than 200 threads; as many groups as a block of 300 threads has room for, or one. Measured on an H100
    (experiments/results/gpu.md)."""
    all_rows, patch_columns = _ceil_div(rows, 2), _ceil_div(columns, 2)
    patch_columns = _ceil_div(patch_columns, _ceil_div(patch_columns, 16))
    possible = range(min(all_rows, _ceil_div(40, patch_columns)), min(all_rows, 96 // patch_columns) + 1)
    patch_rows = min(possible, key=lambda r: _ceil_div(all_rows, r) * r)
    image = 4 * patch_rows * patch_columns
    images = 1 << max(0, (200 // image).bit_length() - 1)
    group = images * image
    split = max(1, min(4, 300 // group, channels))
    plane = images * (2 * patch_rows + 2) * (2 * patch_columns + 2)
    channel_bytes = 2 * itemsize * (plane + 9 * 36)
    chunk = min(8, channels, (_SHARED_BYTES - 4 * plane) // channel_bytes) // split * split
    exchange = 32 * group * itemsize if split > 1 else 0
    tiles = {"block_images": images, "patch_rows": patch_rows, "patch_columns": patch_columns}
    return tiles | {"split": split, "chunk": chunk}, max(chunk * channel_bytes + 4 * plane, exchange)


@functools.cache
def _weight_grad_tiles(channels, rows, columns, itemsize):
    """How weight_grad3x3 divides its work: the fields of struct TiledWeightGrad (channels a block, rows and columns of
    a band, distances of two planes of g and of x in shared memory), and bytes of shared memory."""
    band_columns = 4 * _ceil_div(columns, 4)
    band_columns = 4 * _ceil_div(band_columns // 4, _ceil_div(band_columns, 32))
    block_channels = min(32, 1 << (channels - 1).bit_length())

    def planes(band_rows):
        return _odd_quads(band_rows * band_columns), _odd_quads((band_rows + 2) * (band_columns + 4))

    def size(band_rows):
        g_plane, x_plane = planes(band_rows)
        return 2 * itemsize * (32 * g_plane + block_channels * x_plane)

    while size(1) > _SHARED_BYTES:
        block_channels //= 2
    band_rows = max(r for r in range(1, min(rows, 64) + 1) if size(r) <= _SHARED_BYTES)
    band_rows = _ceil_div(rows, _ceil_div(rows, band_rows))
    exchange = 36 * 128 * itemsize if block_channels < 32 else 0
    tiles = {"block_channels": block_channels, "band_rows": band_rows, "band_columns": band_columns}
    tiles["g_plane"], tiles["x_plane"] = planes(band_rows)
    return tiles, max(size(band_rows), exchange)


class Cuda:
    """The backend functions, which cpu.py documents; arrays are those of `xp`.

    xp: CuPy, or a module with its functions. loader(path, name_expressions): the kernels in a .cu file, by
    get_function(name) and called as CuPy's are. Every function raises TypeError for arrays that are not on the device
    or whose types do not belong together.
    """

    CHUNK = 4096  # images at a time: fewer would leave most of a large GPU idle

    def __init__(self, xp: Any, loader: Loader) -> None:
        self.xp, self._loader, self._folder = xp, loader, kernel_folder()
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}  # a module looks each one up anew, at every launch

    def _function(self, kernel, types):
        if (kernel, types) not in self._functions:
            file = _FILE_OF[kernel]
            if file not in self._modules:
                self._modules[file] = self._loader(self._folder / file, name_expressions(file))
            name = f"{kernel}<{types}>" if types else kernel
            self._functions[kernel, types] = self._modules[file].get_function(name)
        return self._functions[kernel, types]

    def _launch(self, kernel, types, grid, block, *arguments, shared_mem=0):
        """Launch kernel<types> after a check of every argument; with an empty grid there is nothing to do.

        Arrays must be on the device, C-contiguous and of the parameter's type. A Python number is passed as a scalar of
        the parameter's exact width, which CuPy would not do by itself, a dict of a struct's fields as that struct.
        """
        parameters, instances = KERNELS[_FILE_OF[kernel]][kernel]
        if types not in instances:
            raise TypeError(f"{kernel} has no version for ({types}), only for ({'), ('.join(instances)})")
        names = dict(zip("TL", types.split(", "), strict=False))
        passed = []
        for position, (kind, argument) in enumerate(zip(parameters, arguments, strict=True)):
            what = f"{kernel}, argument {position}"
            if kind in STRUCTS:
                passed.append(self._structure(argument, kind, what))
            elif kind == "t":
                passed.append(_TYPES[names["T"]](argument))
            elif kind in _SCALARS:
                passed.append(_SCALARS[kind](argument))
            else:
                self._check_array(argument, np.dtype(_ARRAYS.get(kind) or _TYPES[names[kind]]), what)
                passed.append(argument)
        if 0 not in grid:
            self._function(kernel, types)(grid, block, tuple(passed), shared_mem=shared_mem)

    def _structure(self, values, struct, what):
        fields = STRUCTS[struct].names or ()
        if set(values) != set(fields):
            raise TypeError(f"{what}: {struct} has the fields {', '.join(fields)}, got {', '.join(values)}")
        return _by_value(struct, tuple(operator.index(values[field]) for field in fields))

    def _check_array(self, array, dtype, what):
        if not isinstance(array, self.xp.ndarray):
            raise TypeError(f"{what} must be an array on the device, got {type(array).__name__}: use xp.asarray")
        if array.dtype != dtype:
            raise TypeError(f"{what} must be {dtype}, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{what} must be C-contiguous: use xp.ascontiguousarray")

    def _inputs(self, *arrays):
        """The arrays in C order, copied where they lie otherwise."""
        for array in arrays:
            if not isinstance(array, self.xp.ndarray):
                raise TypeError(f"expected an array on the device, got {type(array).__name__}: use xp.asarray")
        ordered = [a if a.flags.c_contiguous else self.xp.ascontiguousarray(a) for a in arrays]
        return ordered if len(ordered) > 1 else ordered[0]

    def _type(self, array):
        """The C++ name of an array's type. Raises TypeError where no kernel has it."""
        if array.dtype not in _C_NAMES:
            raise TypeError(f"the CUDA kernels have no type {array.dtype}: use float32 or float64, int32 for labels")
        return _C_NAMES[array.dtype]

    def _labels(self, target):
        """Class labels of any integer type as one that the kernels have."""
        target = self._inputs(target)
        return target if target.dtype in _C_NAMES else target.astype(np.int64)

    def _scalar(self, value, dtype):
        """A number as an array of one on the device; an array as it is."""
        return value if isinstance(value, self.xp.ndarray) else self.xp.full(1, value, dtype)

    def _per_element(self, kernel, like, *arguments, each=1):
        """A kernel with a thread for every `each` elements of `like`."""
        self._launch(kernel, self._type(like), (_ceil_div(like.size, 256 * each),), (256,), *arguments)

    def _per_row(self, kernel, types, rows, *arguments):
        self._launch(kernel, types, (_ceil_div(rows, 128),), (128,), *arguments)

    def _correlate(self, x, w, beside, shape_out, offset, flipped, epilogue):
        """sum over channels and taps of x, shifted, times w: both ways through a convolution (conv2d.cu). beside: what
        the epilogue reads, a bias or a mask; an array there must be, though none may be read."""
        y, kernel = self.xp.empty(shape_out, x.dtype), w.shape[2:]
        fields = _sizes(x.shape, shape_out, kernel, offset) | {"flipped": flipped, "epilogue": epilogue}
        if kernel != (3, 3):
            self._launch("correlate", self._type(x), (_ceil_div(y.size, 256),), (256,), x, w, beside, y, fields)
        elif y.size:
            (n, c), (_, o, p, q) = x.shape[:2], shape_out
            tiles, shared = _correlate_tiles(c, p, q, x.dtype.itemsize)
            images, rows, columns = tiles["block_images"], tiles["patch_rows"], tiles["patch_columns"]
            blocks = _ceil_div(n, images) * _ceil_div(p, 2 * rows) * _ceil_div(q, 2 * columns)
            grid, block = (blocks, _ceil_div(o, 32)), (4 * images * rows * columns * tiles["split"],)
            self._launch("correlate3x3", self._type(x), grid, block, x, w, beside, y, fields | tiles, shared_mem=shared)
        return y

    def conv2d(self, x: Array, w: Array, b: Array | None, size_out: Size, offset: Size, relu: bool) -> Array:
        x, w = self._inputs(x, w)
        epilogue = (_PLAIN if b is None else _BIAS) | (_RELU if relu else _PLAIN)
        b = w if b is None else self._inputs(b)
        return self._correlate(x, w, b, (len(x), len(w), *size_out), offset, False, epilogue)

    def conv2d_input_grad(self, g: Array, w: Array, size: Size, offset: Size, mask: Array | None = None) -> Array:
        g, w = self._inputs(g, w)
        shape, kernel = (len(g), w.shape[1], *size), w.shape[2:]
        if w.shape[1] > 1:
            flipped_offset = [k - 1 - before for k, before in zip(kernel, offset, strict=True)]
            beside, epilogue = (w, _PLAIN) if mask is None else (self._inputs(mask), _MASK)
            return self._correlate(g, w, beside, shape, flipped_offset, True, epilogue)
        gx = self.xp.empty(shape, g.dtype)
        fields, strips = _sizes(shape, g.shape, kernel, offset), len(g) * _ceil_div(size[0], _STRIP) * size[1]
        types = f"{self._type(gx)}, {3 if kernel == (3, 3) else 0}"
        self._launch("input_grad_one_channel", types, (_ceil_div(strips, 256),), (256,), g, w, gx, fields)
        return gx if mask is None else self.relu_grad(gx, mask)

    def conv2d_weight_grad(self, x: Array, g: Array, kernel: Size, offset: Size) -> Array:
        x, g = self._inputs(x, g)
        (n, c), (_, o, p, q) = x.shape[:2], g.shape
        shape, fields, t = (o, c, *kernel), _sizes(x.shape, g.shape, kernel, offset), self._type(x)
        if not g.size:
            return self.xp.zeros(shape, x.dtype)
        if tuple(kernel) != (3, 3):
            gw = self.xp.empty(shape, x.dtype)
            self._launch("weight_grad", t, (gw.size,), (256,), x, g, gw, fields)
            return gw
        tiles, shared = _weight_grad_tiles(c, p, q, x.dtype.itemsize)
        blocks = _ceil_div(o, 32) * _ceil_div(c, tiles["block_channels"])
        units = n * _ceil_div(p, tiles["band_rows"]) * _ceil_div(q, tiles["band_columns"])
        count = min(units, max(1, _WEIGHT_GRAD_BLOCKS // blocks))
        parts = self.xp.empty((count, *shape) if count > 1 else shape, x.dtype)
        self._launch("weight_grad3x3", t, (blocks, count), (256,), x, g, parts, fields | tiles, shared_mem=shared)
        return self._sum_parts(parts) if count > 1 else parts

    def _sum_parts(self, parts, bias=None, epilogue=_PLAIN):
        """Sum over the first axis, in order; with a bias and ReLU at the end."""
        out = self.xp.empty(parts.shape[1:], parts.dtype)
        sizes = (out.size, len(parts), out.shape[-1], epilogue)
        grid, bias = (_ceil_div(out.size, 32),), parts if bias is None else bias
        self._launch("sum_parts", self._type(parts), grid, (32, 8), parts, bias, out, *sizes)
        return out

    def bias_grad(self, g: Array) -> Array:
        g = self._inputs(g)
        n, units = g.shape[:2]
        if not g.size:
            return self.xp.zeros(units, g.dtype)
        pixels = math.prod(g.shape[2:])
        count = max(1, min(n, n * pixels // _BIAS_GRAD_TERMS))
        parts = self.xp.empty((count, units) if count > 1 else units, g.dtype)
        threads = min(1024, max(32, 1 << (n * pixels // (8 * count)).bit_length()))
        self._launch("bias_grad", self._type(g), (units, count), (threads,), g, parts, n, units, pixels)
        return self._sum_parts(parts) if count > 1 else parts

    def _product(self, a, b, m, n, k, layout, bias=None, epilogue=_PLAIN):
        """A (m, k) times B (k, n); layout tells which of them lies transposed (dense.cu)."""
        tiles = _ceil_div(m, 64) * _ceil_div(n, 64)
        # Adding up parts is one more launch, which pays only where a block would have many terms to go through.
        parts = max(1, min(_ceil_div(k, 128), _PRODUCT_BLOCKS // max(1, tiles))) if k > 256 else 1
        depth = 16 * max(1, _ceil_div(_ceil_div(k, parts), 16))
        parts = max(1, _ceil_div(k, depth))  # of no terms one, of zeros
        out = self.xp.empty((parts, m, n) if parts > 1 else (m, n), a.dtype)
        grid = (_ceil_div(m, 64), _ceil_div(n, 64), parts)
        arguments = (a, b, b if bias is None else bias, out, m, n, k, depth, epilogue if parts == 1 else _PLAIN)
        self._launch("product", f"{self._type(a)}, {layout}", grid, (256,), *arguments)
        return out if parts == 1 else self._sum_parts(out, bias, epilogue)

    def dense(self, x: Array, w: Array, b: Array, relu: bool) -> Array:
        x, w, b = self._inputs(x, w, b)
        epilogue = _BIAS | _RELU if relu else _BIAS
        return self._product(x, w, len(x), w.shape[1], len(w), "false, false", b, epilogue)

    def dense_input_grad(self, g: Array, w: Array, mask: Array | None = None) -> Array:
        g, w = self._inputs(g, w)
        gx = self._product(g, w, len(g), len(w), w.shape[1], "false, true")
        return gx if mask is None else self.relu_grad(gx, mask)

    def dense_weight_grad(self, x: Array, g: Array) -> Array:
        x, g = self._inputs(x, g)
        return self._product(x, g, x.shape[1], g.shape[1], len(x), "true, false")

    def relu(self, x: Array) -> Array:
        x = self._inputs(x)
        y = self.xp.empty(x.shape, x.dtype)
        self._per_element("relu", x, x, y, x.size, each=4)
        return y

    def relu_grad(self, g: Array, y: Array) -> Array:
        g, y = self._inputs(g, y)
        gx = self.xp.empty(g.shape, g.dtype)
        self._per_element("relu_grad", g, g, y, gx, g.size, each=4)
        return gx

    def max_pool2d(self, x: Array, size: int) -> tuple[Array, Array]:
        x = self._inputs(x)
        n, c, h, w = x.shape
        shape = (n, c, h // size, w // size)
        y, winner = self.xp.empty(shape, x.dtype), self.xp.empty(shape, np.uint8)
        self._launch("max_pool2d", self._type(x), (_ceil_div(n * c, 8),), (32, 8), x, y, winner, n * c, h, w, size)
        return y, winner

    def max_pool2d_grad(self, g: Array, winner: Array, shape: tuple[int, ...], size: int) -> Array:
        g, winner = self._inputs(g, winner)
        return self._max_pool2d_grad(g, g, g, winner, shape, size, False)

    def max_pool2d_grad_of_ties(self, g: Array, x: Array, y: Array, size: int) -> Array:
        g, x, y = self._inputs(g, x, y)
        return self._max_pool2d_grad(g, x, y, self.xp.empty(1, np.uint8), x.shape, size, True)

    def _max_pool2d_grad(self, g, x, y, winner, shape, size, all_ties):
        """The kernel reads x and y, or the winner."""
        (n, c, h, w), gx = shape, self.xp.empty(shape, g.dtype)
        arguments = (g, x, y, winner, gx, n * c, h, w, size, all_ties)
        self._launch("max_pool2d_grad", self._type(g), (_ceil_div(n * c, 8),), (32, 8), *arguments)
        return gx

    def conv2d_max_pool2d(
        self, x: Array, w: Array, b: Array, size_out: Size, offset: Size, relu: bool, size: int
    ) -> tuple[Array, Array]:
        return self.max_pool2d(self.conv2d(x, w, b, size_out, offset, relu), size)

    def _rowwise(self, kernel, T, *inputs):
        """A kernel of softmax.cu with inputs and output (N, K)."""
        ordered = [self._inputs(a) for a in inputs]
        out = self.xp.empty(ordered[0].shape, ordered[0].dtype)
        self._per_row(kernel, self._type(out), len(out), *ordered, out, *out.shape, T)
        return out

    def softmax(self, z: Array, T: float) -> Array:
        return self._rowwise("softmax", T, z)

    def softmax_grad(self, g: Array, p: Array, T: float) -> Array:
        return self._rowwise("softmax_grad", T, g, p)

    def log_softmax(self, z: Array, T: float) -> Array:
        return self._rowwise("log_softmax", T, z)

    def log_softmax_grad(self, g: Array, l: Array, T: float) -> Array:  # noqa: E741
        return self._rowwise("log_softmax_grad", T, g, l)

    def cross_entropy(self, z: Array, target: Array, T: float) -> Array:
        z, target = self._inputs(z), self._labels(target)
        losses = self.xp.empty(len(z), z.dtype)
        types = f"{self._type(z)}, {self._type(target)}"
        self._per_row("cross_entropy", types, len(z), z, target, losses, *z.shape, T)
        return losses

    def cross_entropy_grad(self, g: Array, z: Array, target: Array, T: float) -> Array:
        (g, z), target = self._inputs(g, z), self._labels(target)
        gz = self.xp.empty(z.shape, z.dtype)
        types = f"{self._type(z)}, {self._type(target)}"
        self._per_row("cross_entropy_grad", types, len(z), g, z, target, gz, *z.shape, T)
        return gz

    def saliency_cotangent(self, z: Array, labels: Array, T: float, arithmetic: str) -> tuple[Array, Array]:
        z, labels = self._inputs(z), self._labels(labels)
        g, log10_scale = self.xp.empty(z.shape, z.dtype), self.xp.empty(len(z), z.dtype)
        types = f"{self._type(z)}, {self._type(labels)}"
        scalars = (*z.shape, T, arithmetic == "scaled", math.log(T), math.log(10))
        self._per_row("saliency_cotangent", types, len(z), z, labels, g, log10_scale, *scalars)
        return g, log10_scale

    def dropout(self, x: Array, rate: float, seed: int, layer: int, step: Step) -> tuple[Array, Any]:
        x = self._inputs(x)
        y, step = self.xp.empty(x.shape, x.dtype), self._scalar(step, np.uint32)
        key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        arguments = (x, y, x.size, step, layer, *key, round((1 - rate) * 2**32), 1 / (1 - rate))
        self._per_element("dropout", x, *arguments, each=4)
        return y, None  # the gradient recomputes the mask

    def dropout_grad(self, g: Array, kept: Array, rate: float, seed: int, layer: int, step: Step) -> Array:
        return self.dropout(g, rate, seed, layer, step)[0]

    def nesterov_step(self, w: Array, velocity: Array, g: Array, lr: Any, momentum: float, l2: float) -> None:
        g, lr = self._inputs(g), self._scalar(lr, w.dtype)
        self._per_element("nesterov_step", w, w, velocity, g, lr, w.size, momentum, 2 * l2)

    def gather(self, data: Array, permutation: Array, step: Step, batch: int) -> Array:
        batches = len(permutation) // batch
        if not batches:
            raise ValueError(f"{len(permutation)} samples are less than one batch of {batch}")
        data, permutation = self._inputs(data, permutation)
        rows, row_size = self.xp.empty((batch, *data.shape[1:]), data.dtype), math.prod(data.shape[1:])
        arguments = (data, permutation, self._scalar(step, np.uint32), rows, row_size, batches)
        self._launch("gather", self._type(data), (batch,), (256 if row_size > 32 else 32,), *arguments)
        return rows

    def flatten(self, x: Array) -> Array:
        return self._inputs(x).reshape(len(x), math.prod(x.shape[1:]))

    def unflatten(self, g: Array, shape: tuple[int, ...]) -> Array:
        return self._inputs(g).reshape(shape)

    def advance(self, step: Array) -> None:
        self._launch("advance", "", (1,), (1,), step)

    def accumulate(self, total: Array, values: Array) -> None:
        values = self._inputs(values)
        self._launch("accumulate", self._type(values), (1,), (256,), total, values, values.size)

    def shares(self, count: int, chunk: int) -> list[slice]:
        """As threads.shares, where a GPU is one thread."""
        return chunks(count, chunk)

    def in_parallel(self, job: Callable[[Any], Any], items: Sequence) -> list:
        """[job(item) for every item], one after the other: a single job is to fill the device."""
        return [job(item) for item in items]

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """A callable that takes the step `function()` once a call, as a CUDA graph with the same bits (see _Replay)."""
        return _Replay(self.xp, function)
