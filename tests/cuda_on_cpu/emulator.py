"""Build .cu files for the CPU and call their kernels as those of a cupy.RawModule.

    module = load("kernels/relu.cu", ["relu<float>"])
    module.get_function("relu<float>")((blocks,), (256,), (x, y, np.int64(x.size)), shared_mem=0)

The source stays as it is: g++ compiles it behind cuda_shim.h. Launches check what CuPy and the GPU leave unchecked: the
number of arguments, the exact size of scalars and structs, dtype and contiguity of arrays. Needs g++ on Linux;
`missing()` tells.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.cuda_on_cpu.device import DeviceArray, submit

HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "g++")
BASE_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-g1", "-Wall")
SANITIZERS = {  # at -O1: what they are slow with is building
    "": (),
    "address": (
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fsanitize-sections=cuda_shared",
        "-fno-omit-frame-pointer",
    ),
    "thread": ("-O1", "-fsanitize=thread"),
}

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
DEFAULT_SHARED_BYTES = 48 << 10  # of one block, unless the kernel asks for more
MAX_SHARED_BYTES = 227 << 10

_seed = 1


@contextmanager
def seeded(value):
    """Run launches with another order of threads and blocks. The kernels' results must not depend on it."""
    global _seed
    previous, _seed = _seed, value
    try:
        yield
    finally:
        _seed = previous


def missing():
    """What keeps the emulator from working on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return "running CUDA sources on the CPU needs Linux"
    if not shutil.which(COMPILER):
        return f"running CUDA sources on the CPU needs a C++ compiler: {COMPILER} was not found, install g++"
    return None


def load(path, names, flags=("-O3",)):
    """Build the kernels `names` (name expressions such as "scale<float>") of a .cu file, or take them from the cache.

    Compiler errors raise RuntimeError and point into the .cu file; warnings are shown as Python warnings. The
    environment variable CUDA_ON_CPU_SANITIZE=address|thread instruments the kernels: tests/sanitize.py sets it.
    """
    path = Path(path).resolve()
    names = tuple(names)
    flags = (*BASE_FLAGS, *flags, *SANITIZERS[os.environ.get("CUDA_ON_CPU_SANITIZE", "")])
    source = _for_cpu(path, names)
    headers = [file.read_text() for file in (*_included(path), HERE / "cuda_shim.h", HERE / "runtime.h")]
    library = _built(source, ("-Wno-unknown-pragmas", *flags), headers, path.parent)
    return Module(library, path, names)


class Module:
    """The kernels of one .cu file, with the call shape of cupy.RawModule."""

    def __init__(self, library, path, names):
        self._path = path
        _runtime()  # the kernels' library takes its symbols from it
        handle = ctypes.PyDLL(str(library))
        shared = _static_shared(library, handle, len(names))
        self._kernels = {name: Kernel(name, handle, index, shared[index]) for index, name in enumerate(names)}

    def get_function(self, name):
        """Raises KeyError for a name that load() was not given."""
        if name not in self._kernels:
            raise KeyError(f"{self._path.name} was loaded without {name}: it has {', '.join(self._kernels)}")
        return self._kernels[name]


class Parameter(NamedTuple):
    """A kernel parameter: a NumPy dtype, by value or behind a pointer; kind V is a struct by value."""

    dtype: np.dtype
    is_pointer: bool

    def __str__(self):
        if self.dtype.kind == "V":
            return f"a struct of {self.dtype.itemsize} bytes"
        return f"{self.dtype} *" if self.is_pointer else str(self.dtype)


class Kernel:
    """One kernel, called as kernel(grid, block, args, shared_mem=0). args are device arrays, NumPy scalars and, for
    structs, NumPy arrays of one element of as many bytes."""

    def __init__(self, name, handle, index, static_shared):
        self.name = name
        self._parameters = _parameters(name, handle, index)
        self._invoke = ctypes.cast(handle[f"invoke_{index}"], ctypes.c_void_p)
        self._static_shared = static_shared
        self.max_threads_per_block = handle[f"max_threads_{index}"]()
        self.shared_size_bytes = sum(variable.bytes for variable in static_shared)
        self._max_dynamic = DEFAULT_SHARED_BYTES - self.shared_size_bytes
        if self.shared_size_bytes > DEFAULT_SHARED_BYTES:
            raise ValueError(f"{name} has {self.shared_size_bytes} bytes of static shared memory: a GPU has 48 KiB")

    @property
    def max_dynamic_shared_size_bytes(self):
        """How much dynamic shared memory a launch may ask for; more than the default has to be set, as in CuPy."""
        return self._max_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, value):
        most = MAX_SHARED_BYTES - self.shared_size_bytes
        if not 0 <= value <= most:
            raise ValueError(f"{self.name}: max_dynamic_shared_size_bytes must be 0 to {most}, got {value}")
        self._max_dynamic = value

    def __call__(self, grid, block, args, *, shared_mem=0):
        """Raises TypeError for arguments that do not fit the kernel, ValueError for a launch beyond the GPU's limits,
        RuntimeError where threads can never go on (a divergent barrier)."""
        grid, block = _extent("grid", grid, MAX_GRID), _extent("block", block, MAX_BLOCK)
        if np.prod(block) > self.max_threads_per_block:
            raise ValueError(
                f"{self.name}: a block of {np.prod(block)} threads, at most {self.max_threads_per_block} fit"
            )
        if not 0 <= shared_mem <= self._max_dynamic:
            raise ValueError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory, allowed are {self._max_dynamic}: "
                "use less or set max_dynamic_shared_size_bytes"
            )
        values = self._checked(args)
        submit(functools.partial(self._run, grid, block, values, shared_mem))

    def _checked(self, args):
        """The arguments as arrays: device memory itself, scalars and structs copied."""
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, got {len(args)}")
        values = []
        for position, (argument, parameter) in enumerate(zip(args, self._parameters, strict=True)):
            problem = _mismatch(argument, parameter)
            if problem:
                raise TypeError(f"{self.name}: argument {position} must be {parameter}, got {problem}")
            values.append(argument.values if parameter.is_pointer else np.array(argument))
        return values

    def _run(self, grid, block, values, shared_mem):
        # A pointer parameter is a value as well: the address of the array.
        holders = [
            np.array(value.ctypes.data) if parameter.is_pointer else value
            for value, parameter in zip(values, self._parameters, strict=True)
        ]
        launch = _Launch(
            self._invoke,
            (ctypes.c_void_p * len(holders))(*(holder.ctypes.data for holder in holders)),
            grid,
            block,
            shared_mem,
            self._static_shared,
            len(self._static_shared),
            _seed,
        )
        problem = _runtime().cuda_on_cpu_launch(ctypes.byref(launch))
        if problem:
            raise RuntimeError(f"{self.name}: {problem.decode()}")


def _extent(what, extent, limits):
    """(x, y, z) of a grid or block, the missing ones 1. Raises as CuPy and the driver do."""
    if not isinstance(extent, tuple) or not 1 <= len(extent) <= 3:
        raise TypeError(f"{what} must be a tuple of 1 to 3 integers, got {extent!r}")
    full = (*(int(size) for size in extent), 1, 1)[:3]
    for axis, size, limit in zip("xyz", full, limits, strict=True):
        if not 1 <= size <= limit:
            raise ValueError(f"{what}.{axis} must be 1 to {limit}, got {size}")
    return (ctypes.c_uint * 3)(*full)


def _mismatch(argument, parameter):
    """What is wrong with an argument, or None."""
    if parameter.dtype.kind == "V":
        if not isinstance(argument, np.ndarray) or argument.size != 1 or argument.dtype.kind != "V":
            return f"{type(argument).__name__} {argument!r}: pass a NumPy array of one struct"
        return None if argument.itemsize == parameter.dtype.itemsize else f"one of {argument.itemsize}"
    if not parameter.is_pointer:
        if not isinstance(argument, np.generic):
            return f"{type(argument).__name__} {argument!r}: pass a NumPy scalar, CuPy makes 8 bytes of a Python number"
        return None if argument.dtype == parameter.dtype else f"{argument.dtype} {argument!r}"
    if not isinstance(argument, DeviceArray):
        return f"{type(argument).__name__}: a GPU cannot reach host memory, pass a device array"
    if argument.dtype != parameter.dtype:
        return f"an array of {argument.dtype}"
    return None if argument.flags.c_contiguous else "an array that is not C-contiguous"


def _parameters(name, handle, index):
    function = handle[f"signature_{index}"]
    function.restype = ctypes.c_char_p
    parameters = []
    for text in function().decode().split():
        if text.startswith("?"):
            raise TypeError(f"{name}: parameter {len(parameters)} is no number, struct or pointer to numbers")
        parameters.append(Parameter(np.dtype(text[:-1]), text.endswith("*")))
    return parameters


class _MemoryRange(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class _Launch(ctypes.Structure):
    """struct Launch of runtime.h."""

    _fields_ = [
        ("invoke", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid_size", ctypes.c_uint * 3),
        ("block_size", ctypes.c_uint * 3),
        ("dynamic_shared_bytes", ctypes.c_size_t),
        ("static_shared", ctypes.POINTER(_MemoryRange)),
        ("static_shared_count", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
    ]


def _static_shared(library, handle, count):
    """For each of a library's `count` kernels, the __shared__ variables that it uses, found in the symbol table: those
    local to it, and those of functions that are no kernels, which any kernel of the file may call."""
    table = run_tool("nm", "--format=sysv", str(library)).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.count("|") == 6]
    functions = {name: int(value, 16) for name, value, _, kind, *_ in rows if kind == "FUNC" and value}
    load_bias = ctypes.cast(handle["address_0"], ctypes.c_void_p).value - functions["address_0"]

    def prefixes(index):
        """Of the mangled names of a kernel's local variables: _ZZ, the function's own mangled name, E."""
        address = handle[f"address_{index}"]
        address.restype = ctypes.c_void_p
        kernel = address() - load_bias
        return tuple(f"_ZZ{name[2:]}E" for name, value in functions.items() if value == kernel)

    owners = [prefixes(index) for index in range(count)]
    variables = [[] for _ in owners]
    for name, value, _class, _kind, size, _line, section in rows:
        if section == "cuda_shared" and size:
            memory = _MemoryRange(int(value, 16) + load_bias, int(size, 16))
            users = [index for index, owner in enumerate(owners) if name.startswith(owner)] or range(count)
            for index in users:
                variables[index].append(memory)
    return [(_MemoryRange * len(ranges))(*ranges) for ranges in variables]


def _for_cpu(path, names):
    """The .cu file as C++: two constructs that g++ does not know are respelled on their line, and each kernel gets the
    functions by which Kernel reaches it."""
    source = path.read_text()
    source = re.sub(r'extern\s+"C"\s+__global__', "__global__", source)
    source = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w:]+(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]",
        r"\1 *const \2 = static_cast<\1 *>(cuda_on_cpu::cuda_on_cpu_dynamic_shared())",
        source,
    )
    # Arguments of __launch_bounds__ by kernel; g++ evaluates them, so they may name constants of the file.
    bounds = {name: text for text, name in re.findall(r"__launch_bounds__\(([^(),]+)[^()]*\)\s*(\w+)\s*\(", source)}
    entries = "".join(
        f"CUDA_ON_CPU_ENTRY void invoke_{i}(void **arguments) {{ cuda_on_cpu::invoke({name}, arguments); }}\n"
        f"CUDA_ON_CPU_ENTRY const char *signature_{i}() {{ return cuda_on_cpu::signature({name}); }}\n"
        f"CUDA_ON_CPU_ENTRY const void *address_{i}() {{ return cuda_on_cpu::address({name}); }}\n"
        f"CUDA_ON_CPU_ENTRY int max_threads_{i}() {{ return {bounds.get(name.split('<')[0], MAX_THREADS)}; }}\n"
        for i, name in enumerate(names)
    )
    return f'#include "cuda_shim.h"\n#line 1 "{path.name}"\n{source}\n#line 1 "names asked for"\n{entries}'


def _included(path):
    """The files that a source includes by `#include "..."`, directly or through others."""
    found, queue = [], [path]
    while queue:
        file = queue.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.MULTILINE):
            header = (file.parent / name).resolve()
            if header not in found:
                found.append(header)
                queue.append(header)
    return found


@functools.cache
def _runtime():
    """The scheduler, loaded so that the kernels' libraries find its functions."""
    source, *headers = ((HERE / name).read_text() for name in ("runtime.cpp", "runtime.h", "fiber.h"))
    switch = ("-DCUDA_ON_CPU_UCONTEXT",) if os.environ.get("CUDA_ON_CPU_UCONTEXT") else ()
    library = _built(source, ("-std=c++17", "-shared", "-fPIC", "-O2", "-g1", "-Wall", *switch), headers, HERE)
    runtime = ctypes.PyDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    runtime.cuda_on_cpu_launch.restype = ctypes.c_char_p
    return runtime


def _built(source, flags, headers, folder):
    """The shared library of a C++ source that includes files of `folder`, from the cache if nothing but the place of
    that folder has changed. Processes may build side by side."""
    key = hashlib.sha256(repr((COMPILER, flags, source, headers)).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("MINICNN_SHIM_CACHE") or f"{tempfile.gettempdir()}/minicnn-cuda-on-cpu-{os.getuid()}")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = cache / f"{key}.so"
    if not library.exists():
        # Reports call a file by its name alone, wherever it lay when it was built.
        names = (f"-ffile-prefix-map={folder}/=", f"-ffile-prefix-map={Path.cwd()}=.")
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            text, result = Path(temporary, "source.cpp"), Path(temporary, "result.so")
            text.write_text(source)
            places = ("-iquote", str(folder), "-I", str(HERE), str(text), "-o", str(result))
            build = run_tool(COMPILER, *flags, *names, *places)
            if build.returncode:
                raise RuntimeError(f"the compiler rejects a CUDA source:\n{build.stderr}")
            if build.stderr:
                warnings.warn(f"the compiler warns about a CUDA source:\n{build.stderr}", stacklevel=3)
            os.replace(result, library)
    return library


def run_tool(*command):
    """Run a build tool; a sanitizer that is preloaded here is not meant for it."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
