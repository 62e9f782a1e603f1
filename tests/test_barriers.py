"""Every barrier of the shipped kernels is needed: each is deleted in turn, and the deletion must show.

It shows as other bits than the whole kernel's under some order of the threads, as a deadlock, or as a race that
ThreadSanitizer reports. Where it does not show, the barrier has to go from the kernel, or the exercise of its file here
lacks the case that it is for.
"""

import functools
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minicnn.cuda import Cuda, kernel_folder
from tests import sanitize
from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.device import xp

SEEDS = range(1, 9)


class Barrier(NamedTuple):
    """A barrier in a file of kernels/, by its place in the text."""

    file: str
    line: int
    start: int
    end: int

    def __str__(self):
        return f"{self.file}:{self.line}"


def barriers():
    found = []
    for path in sorted(kernel_folder().glob("*.cu*")):
        text = re.sub(r"//.*", lambda comment: " " * len(comment[0]), path.read_text())
        for match in re.finditer(r"\b__sync(?:threads|warp)\w*\s*\([^()]*\)", text):
            found.append(Barrier(path.name, text.count("\n", 0, match.start()) + 1, *match.span()))
    return found


BARRIERS = barriers()


def _normal(*shape):
    return xp.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def _convolution(functions):
    """Several chunks of channels, groups of threads that share them, tiles, bands and parts."""
    x, w, b, g = _normal(3, 20, 9, 9), _normal(34, 20, 3, 3), _normal(34), _normal(3, 34, 7, 7)
    yield functions.conv2d(x, w, b, (7, 7), (0, 0), True)
    yield functions.conv2d_weight_grad(x, g, (3, 3), (0, 0))
    # One channel: teams of threads share a filter.
    yield functions.conv2d_weight_grad(_normal(3, 1, 40, 9), _normal(3, 5, 38, 7), (3, 3), (0, 0))
    yield functions.conv2d_weight_grad(_normal(2, 2, 20, 20), _normal(2, 2, 18, 16), (3, 5), (0, 0))


def _dense(functions):
    x, w, b = _normal(5, 300), _normal(300, 70), _normal(70)
    yield functions.dense(x, w, b, True)


def _sums(functions):
    yield from _dense(functions)
    yield functions.bias_grad(_normal(4, 3, 11, 11))


def _batch(functions):
    total = xp.zeros(1, np.float64)
    functions.accumulate(total, _normal(1000))
    yield total


# What launches the kernels of a file, as generators of results.
EXERCISES = {
    "common.cuh": _batch,
    "conv2d.cu": _convolution,
    "dense.cu": _dense,
    "reduce.cu": _sums,
}


def _results(file, folder=None):
    """What the exercise of a file computes; the file, and every other if it is a header, is taken from `folder`."""

    def load(path, names):
        if folder is None or path.name != file and not file.endswith(".cuh"):
            return emulator.load(path, names)
        names = [name for name in names if "double" not in name]  # half the time to build
        return emulator.load(folder / path.name, names, ("-O1",))

    return [result.get() for result in EXERCISES[file](Cuda(xp, load))]


@functools.cache
def _right_results(file):
    return _results(file)


def _same_bits(results, others):
    return all(np.array_equal(a, b) for a, b in zip(results, others, strict=True))


def _under_each_seed(file, folder):
    """What is wrong in some order of the threads, or None."""
    for seed in SEEDS:
        with emulator.seeded(seed):
            try:
                if not _same_bits(_results(file, folder), _right_results(file)):
                    return f"other bits under seed {seed}"
            except RuntimeError as error:
                return str(error)
    return None


def _under_thread_sanitizer(file, folder):
    """The race that ThreadSanitizer reports, or None."""
    process = sanitize.run("thread", "-m", "tests.test_barriers", file, str(folder), capture_output=True, text=True)
    if process.returncode == 0:
        return None
    assert "ThreadSanitizer: data race" in process.stderr, process.stderr
    return process.stderr


def _copy_of_kernels(folder, without=None):
    """kernels/ in a new folder, one barrier deleted."""
    shutil.copytree(kernel_folder(), folder)
    if without:
        source = folder / without.file
        text = source.read_text()
        source.write_text(text[: without.start] + text[without.end :])
    return folder


needs_compiler = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
needs_sanitizers = pytest.mark.skipif(sanitize.missing() is not None, reason=str(sanitize.missing()))


@needs_compiler
@pytest.mark.parametrize("file", EXERCISES)
def test_kernels_have_the_same_bits_in_any_order_of_threads(file):
    assert _under_each_seed(file, None) is None
    assert all(np.isfinite(result).all() for result in _right_results(file))


@needs_sanitizers
@pytest.mark.parametrize("barrier", BARRIERS, ids=str)
def test_barrier_cannot_be_deleted(barrier, tmp_path):
    folder = _copy_of_kernels(tmp_path / "kernels", without=barrier)
    shows = _under_each_seed(barrier.file, folder) or _under_thread_sanitizer(barrier.file, folder)
    assert shows, f"the barrier at {barrier} can be deleted and nothing shows: remove it, or exercise what it is for"


@needs_sanitizers
def test_barrier_search_finds_nothing_where_nothing_is_deleted(tmp_path):
    """As it would with a barrier that nothing needs."""
    folder = _copy_of_kernels(tmp_path / "kernels")
    assert _under_each_seed("reduce.cu", folder) is None
    assert _under_thread_sanitizer("reduce.cu", folder) is None


@needs_sanitizers
def test_barrier_deleted_is_a_race_for_thread_sanitizer(tmp_path):
    barrier = next(barrier for barrier in BARRIERS if barrier.file == "reduce.cu")
    folder = _copy_of_kernels(tmp_path / "kernels", without=barrier)
    assert "reduce.cu:" in _under_thread_sanitizer("reduce.cu", folder)


def test_exercises_are_those_of_the_files_with_barriers():
    assert {barrier.file for barrier in BARRIERS} == set(EXERCISES)


if __name__ == "__main__":
    _results(sys.argv[1], Path(sys.argv[2]))
