"""Compile every kernel for every GPU, without a GPU: python -m tests.compile_matrix.

NVRTC, the compiler that CuPy uses, comes as a wheel: nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvrtc lie side by side.
Version 12 still knows the paper's GTX 1060 (sm_61), version 13 all GPUs since 2018. Every instantiation that
minicnn.cuda can ask for is compiled from the source and with the options that it hands to NVRTC. The table shows
registers, bytes of static shared memory and bytes spilled to local memory; a spill or a compiler error is a failure
(exit status 1).
"""

import ctypes
import functools
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import NamedTuple

from minicnn.cuda import KERNELS, kernel_folder, name_expressions, nvrtc_input

ARCHITECTURES = {"12": ("sm_61",), "13": ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")}
DISTRIBUTIONS = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}

# What would make results depend on the order of threads, or on the fast-math functions' approximations.
FORBIDDEN = {
    r"\batomic\w*\s*\(": "an atomic operation",
    r"\b__(?:exp|exp10|log|log2|log10|pow|sin|cos|sincos|tan|tanh|fdivide)f\s*\(": "a fast-math function",
    r"\b__(?:frcp|fsqrt|frsqrt)\w*\s*\(|\b\w+\.approx\b": "a fast-math function",
    r"use_fast_math": "fast-math",
    r"\bftz\b": "a flush to zero",
}


class Resources(NamedTuple):
    """What ptxas says that a kernel takes: registers a thread, static shared bytes a block, bytes spilled a thread."""

    registers: int
    shared: int
    spilled: int


class CompileError(RuntimeError):
    """NVRTC rejects a source; the message is its log, which points into the .cu file."""


def library_path(version):
    """NVRTC's library from the wheel of a major version. Raises RuntimeError where it is not installed."""
    name = DISTRIBUTIONS[version]
    try:
        distribution = metadata.distribution(name)
        library = next(file for file in distribution.files if file.name == f"libnvrtc.so.{version}")
        return distribution.locate_file(library)
    except (metadata.PackageNotFoundError, StopIteration):
        needed = " ".join(f"'{DISTRIBUTIONS[v]}=={v}.*'" for v in DISTRIBUTIONS)
        raise RuntimeError(f"NVRTC {version} is not installed: pip install {needed}") from None


@functools.cache
def _nvrtc(version):
    library = ctypes.CDLL(str(library_path(version)))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def compile_kernels(version, architecture, code, options, name_expressions):
    """Compile a source as NVRTC does for CuPy. Returns {name expression: Resources}; raises CompileError."""
    nvrtc, program = _nvrtc(version), ctypes.c_void_p()

    def call(function, *arguments):
        status = getattr(nvrtc, function)(*arguments)
        if status:
            raise CompileError(f"{function}: {nvrtc.nvrtcGetErrorString(status).decode()}\n{log()}")

    def log():
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, text)
        return text.value.decode()

    call("nvrtcCreateProgram", ctypes.byref(program), code.encode(), b"kernels", 0, None, None)
    try:
        for name in name_expressions:
            call("nvrtcAddNameExpression", program, name.encode())
        options = [f"--gpu-architecture={architecture}", "--ptxas-options=-v", *options]
        call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
        resources, by_name = parse_log(log()), {}
        for name in name_expressions:
            symbol = ctypes.c_char_p()
            call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(symbol))
            by_name[name] = resources[symbol.value.decode()]
        return by_name
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def parse_log(log):
    """{symbol: Resources} from what ptxas -v writes."""
    found = {}
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        symbol = re.match(r"'(\w+)'", entry)[1]
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry).groups()
        shared = re.search(r"(\d+) bytes smem", entry)
        registers = re.search(r"Used (\d+) registers", entry)[1]
        found[symbol] = Resources(int(registers), int(shared[1]) if shared else 0, int(stores) + int(loads))
    return found


def forbidden(text):
    """'line N: what' for everything in a source, comments aside, that FORBIDDEN names."""
    lines = [re.sub(r"//.*", "", line) for line in text.splitlines()]
    return [
        f"line {number}: {what}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        for pattern, what in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def _compile(task):
    version, architecture, file = task
    try:
        return task, compile_kernels(
            version, architecture, *nvrtc_input(kernel_folder() / file), name_expressions(file)
        )
    except CompileError as error:
        return task, str(error)


def _print_table(architectures, resources):
    names = sorted({(file, name) for file, name, _ in resources})
    width = max(len(name) for _, name in names) + 2
    print("registers / bytes of static shared memory / bytes spilled")
    print(" " * width + "".join(f"{architecture:>14}" for architecture in architectures))
    for file, name in names:
        cells = (resources.get((file, name, architecture)) for architecture in architectures)
        print(f"{name:{width}}" + "".join(f"{'/'.join(map(str, cell)) if cell else 'failed':>14}" for cell in cells))


def main():
    started = time.perf_counter()
    try:
        for version in ARCHITECTURES:
            library_path(version)
    except RuntimeError as error:
        sys.exit(f"compile_matrix: {error}")
    failures = []
    for source in sorted(kernel_folder().glob("*.cu*")):
        failures += [f"{source.name}, {problem}" for problem in forbidden(source.read_text())]
    for file in KERNELS:
        failures += [f"{file}: {option}" for option in nvrtc_input(kernel_folder() / file)[1] if forbidden(option)]

    tasks = [(version, arch, file) for version, archs in ARCHITECTURES.items() for arch in archs for file in KERNELS]
    tasks.sort(key=lambda task: -(kernel_folder() / task[2]).stat().st_size)  # the longest first
    resources = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for (version, architecture, file), result in pool.map(_compile, tasks):
            if isinstance(result, str):
                failures.append(f"{file} for {architecture} with NVRTC {version}:\n{result}")
                continue
            for name, used in result.items():
                resources[file, name, architecture] = used
                if used.spilled:
                    failures.append(f"{name} in {file} spills {used.spilled} bytes on {architecture}")
    _print_table([arch for archs in ARCHITECTURES.values() for arch in archs], resources)
    print(f"{len(resources)} kernels compiled in {time.perf_counter() - started:.0f} s")
    if failures:
        sys.exit("\n".join(["", *failures, f"compile_matrix: {len(failures)} failures"]))


if __name__ == "__main__":
    main()
