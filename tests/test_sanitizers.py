"""The sanitizers see the defects that they are there for, each planted in a kernel, and nothing in right kernels.

A report ends the process, so that each launch is one: python -m tests.test_sanitizers LAUNCH.
"""

import functools
import os
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minicnn import compiled, cpu, kernels_c
from tests import sanitize
from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.device import xp

pytestmark = pytest.mark.slow  # each builds kernels of its own
WITHOUT_BARRIER = ("-O1", "-DWITHOUT_BARRIER")
ONE_BEYOND = np.int32(1)


KERNELS = (
    "scale<float> row_sums<float> reverse reverse_warp uneven_history count divergent_barrier shuffle_is_no_barrier "
    "static_overrun static_overrun_by_pointer dynamic_overrun global_overrun misaligned"
).split()


def planted(name, flags=("-O1",)):
    return emulator.load(emulator.HERE / "planted.cu", KERNELS, flags).get_function(name)


def floats(count):
    return xp.asarray(np.arange(count, dtype=np.float32))


def launch_right_kernels():
    for seed in range(3):
        with emulator.seeded(seed):
            planted("reverse")((2,), (64,), (floats(64), xp.empty(64, np.float32)))
            planted("reverse_warp")((2,), (32,), (floats(32), xp.empty(32, np.float32)))
            planted("scale<float>")((2,), (32,), (floats(50), xp.empty(50, np.float32), np.float32(2), np.int32(50)))
            sums = (floats(900), xp.empty(3, np.float32), np.int32(300))
            planted("row_sums<float>")((3,), (96,), sums, shared_mem=12)
            history = (xp.ones(32, np.float64), xp.empty(32, np.float64), np.int32(5), np.int32(3))
            planted("uneven_history")((1,), (32,), history)
            planted("count")((3,), (40,), (xp.zeros(1, np.int32), xp.zeros(1, np.uint32)))


def launch_after_a_deadlock():
    """Threads left in the midst of a kernel must not confuse the sanitizers afterwards."""
    for _ in range(3):
        with pytest.raises(RuntimeError, match="divergent"):
            planted("divergent_barrier")((1,), (64,), (floats(64),))
        launch_right_kernels()


def in_threads_of_their_own(job, array, work=None, added_up=False):
    """Two blocks of rows, a thread each whatever the machine has, as threads.over_rows where there is much work."""
    middle, results, ready = len(array) // 2, [None, None], threading.Barrier(2)

    def run(block, first, last):
        ready.wait()
        results[block] = job(first, last)

    blocks = [
        threading.Thread(target=run, args=(0, 0, middle)),
        threading.Thread(target=run, args=(1, middle, len(array))),
    ]
    for block in blocks:
        block.start()
    for block in blocks:
        block.join()
    return results


def launch_c_kernels(defect=None):
    """Every function of the C files, in float and double, from a copy of the sources with one defect or none. A race is
    given more than one chance: the interpreter's lock hides it where one thread is done before the other begins."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "kernels"
        shutil.copytree(compiled.kernel_folder(), folder)
        if defect:
            source = folder / defect.file
            assert defect.right in source.read_text()
            source.write_text(source.read_text().replace(defect.right, defect.wrong))
            os.environ["CC"] = os.environ["CC"].replace(",undefined", "")  # compiled in half the time without it
        run = compiled._run
        compiled._run = lambda command: run(["-O1" if part == "-O3" else part for part in command])  # and again
        compiled.kernel_folder, kernels_c.over_rows = lambda: folder, in_threads_of_their_own
        os.environ |= {"MINICNN_CACHE": temporary, "MINICNN_CONV": "compiled"}
        cpu._kernels.cache_clear()
        cpu.set_threads(2)
        kernels_c.FEWEST = 1
        launched, call = set(), kernels_c.CKernels._call
        kernels_c.CKernels._call = lambda *given: (launched.add(given[1]), call(*given))
        for dtype in (np.float32, np.float64) * (10 if defect and defect.sanitizer == "thread" else 1):
            for channels, kernels_c.DENSE in (
                (1, 0),
                (2, 0),
                (17, 0),
                (17, 10),
            ):  # of what is 0 all or nothing is left out
                _convolve_and_pool(dtype, 3, channels, 9, (7, 6), (1, 1))
                _convolve_and_pool(dtype, 137, channels, 9, (7, 5), (0, 0))
            x, w, b = np.ones((5, 9), dtype), np.ones((9, 11), dtype), np.ones(11, dtype)
            y = cpu.dense(x, w, b, True)
            cpu.dense_input_grad(y, w), cpu.dense_weight_grad(x, y), cpu.dropout(x, 0.5, 1, 2, 3)
            cpu.nesterov_step(w, w.copy(), w.copy(), 0.1, 0.5, 0.01)
            _move(dtype, keep=False), _move(dtype, keep=True)
        assert launched == set(kernels_c.FUNCTIONS)


def _convolve_and_pool(dtype, images, channels, filters, size, offset):
    x, w = np.ones((images, channels, *size), dtype), np.ones((filters, channels, 3, 3), dtype)
    size_out = tuple(s + 2 * o - 2 for s, o in zip(size, offset, strict=True))
    y = cpu.conv2d(x, w, np.ones(filters, dtype), size_out, offset, True)
    cpu.conv2d_input_grad(y, w, size, offset), cpu.conv2d_input_grad(y, w, size, offset, x)
    cpu.conv2d_weight_grad(x, y, (3, 3), offset), cpu.relu_grad(y, y)
    pooled, winner = cpu.max_pool2d(y, 2)
    cpu.max_pool2d_grad(pooled, winner, y.shape, 2), cpu.max_pool2d_grad_of_ties(pooled, y, pooled, 2)
    cpu.conv2d_max_pool2d(x, w, np.ones(filters, dtype), size_out, offset, True, 2)


def _move(dtype, keep):
    """Changes at each corner and in the middle, the last image at the last pixel."""
    image, origin = np.arange(300), np.array([(0, 0), (0, 7), (8, 0), (4, 3), (8, 7)] * 60)
    y, d, w = np.ones((300, 7, 6, 33), dtype), np.ones((300, 1, 1, 2), dtype), np.ones((33, 2, 3, 3), dtype)
    e = cpu.conv2d_moved(y, image, origin, d, cpu.pack_moved(w), 3, True, keep)
    cpu.max_pool2d_moved(np.ones((300, 3, 3, 33), dtype), image, origin - 2, e, y, 2, True, keep)


class Defect(NamedTuple):
    """What is replaced in a C file; which sanitizer reports it, and how."""

    file: str
    right: str
    wrong: str
    sanitizer: str
    report: str


# A vector across the end of what is allocated is an unknown crash.
OVERFLOW, RACE = "AddressSanitizer: (heap-buffer-overflow|unknown-crash)", "ThreadSanitizer: data race"
C_DEFECTS = {
    "a vector read beyond the copied rows": Defect(
        "conv2d.c", "rows->pitch + WIDE * LANES", "rows->pitch", "address", OVERFLOW
    ),
    "a row read below the image": Defect(
        "conv2d.c", "s->H + s->top - p)", "s->H + s->top - p + 1)", "address", OVERFLOW
    ),
    "whole vectors written to a short row": Defect(
        "conv2d.c", "k < smaller(step, length)", "k < step", "address", OVERFLOW
    ),
    "too few zeros": Defect(
        "conv2d.c", "zeros[CHUNK]", "zeros[CHUNK / 4]", "address", "AddressSanitizer: global-buffer-overflow"
    ),
    "lists for fewer entries": Defect(
        "conv3x3_sparse.c", "most * longest * sizeof(Entry)", "most * longest * sizeof(REAL)", "address", OVERFLOW
    ),
    "a row of x below the image": Defect("conv3x3_sparse.c", "r >= s->H", "r > s->H", "address", OVERFLOW),
    "lists of a row below the image": Defect("conv3x3_sparse.c", "r >= 0 && r < s->H", "r >= 0", "address", OVERFLOW),
    "images of the next thread": Defect("conv3x3_sparse.c", "smaller(most, last_image - n)", "most", "thread", RACE),
    "a block beyond the windows": Defect(
        "max_pool2d.c", "at = smaller(n, (count) - BLOCK)", "at = n", "address", OVERFLOW
    ),
    "a change below the outputs": Defect(
        "moved.c", "r < smaller(to, s->P - top); ++r) {", "r < to; ++r) {", "address", OVERFLOW
    ),
    "an image of the next thread": Defect("moved.c", "m < last;", "m < last + (first == 0);", "thread", RACE),
    "sums that all threads share": Defect(
        "moved.c",
        "REAL *const padded = calloc(s->edge * pitch, sizeof(REAL)), sums[COLUMNS * PAIR];",
        "REAL *const padded = calloc(s->edge * pitch, sizeof(REAL)); static REAL sums[COLUMNS * PAIR];",
        "thread",
        RACE,
    ),
    "a row of the next thread": Defect("conv2d.c", "p < last;", "p <= last && p < s->P;", "thread", RACE),
    "scratch that all threads share": Defect(
        "conv2d.c", "const REAL *lines[s->kh + 1]", "static const REAL *lines[16]", "thread", RACE
    ),
    "a row of windows of the next thread": Defect(
        "max_pool2d.c", "p < last;", "p < last + (first == 0);", "thread", RACE
    ),
}


LAUNCHES = {
    "right kernels": launch_right_kernels,
    "right C kernels": launch_c_kernels,
    "after a deadlock": launch_after_a_deadlock,
    "static overrun": lambda: planted("static_overrun")((1,), (64,), (floats(64), ONE_BEYOND)),
    "static overrun by pointer": lambda: planted("static_overrun_by_pointer")((1,), (64,), (floats(64), ONE_BEYOND)),
    "dynamic overrun": lambda: planted("dynamic_overrun")((1,), (64,), (floats(64), ONE_BEYOND), shared_mem=256),
    "global overrun": lambda: planted("global_overrun")((1,), (64,), (floats(64), ONE_BEYOND)),
    "misaligned": lambda: planted("misaligned")((1,), (8,), (floats(16), floats(16), ONE_BEYOND)),
    "no syncthreads": lambda: planted("reverse", WITHOUT_BARRIER)((1,), (64,), (floats(64), floats(64))),
    "no syncwarp": lambda: planted("reverse_warp", WITHOUT_BARRIER)((1,), (32,), (floats(32), floats(32))),
    "shuffle for a barrier": lambda: planted("shuffle_is_no_barrier")((1,), (32,), (floats(32), floats(32))),
} | {name: functools.partial(launch_c_kernels, defect) for name, defect in C_DEFECTS.items()}


def launched(sanitizer, launch):
    """The finished process, its output as text."""
    return sanitize.run(sanitizer, "-m", "tests.test_sanitizers", launch, capture_output=True, text=True)


needs_sanitizers = pytest.mark.skipif(sanitize.missing() is not None, reason=str(sanitize.missing()))


@needs_sanitizers
@pytest.mark.parametrize("launch", ["right kernels", "after a deadlock", "right C kernels"])
@pytest.mark.parametrize("sanitizer", sanitize.LIBRARIES)
def test_sanitizer_finds_nothing_in_right_kernels(sanitizer, launch):
    process = launched(sanitizer, launch)
    assert process.returncode == 0, process.stderr
    assert "Sanitizer" not in process.stderr and "runtime error" not in process.stderr


@needs_sanitizers
@pytest.mark.parametrize(
    ("sanitizer", "launch", "report"),
    [
        ("address", "static overrun", "index 64 out of bounds for type 'float [64]'"),
        ("address", "static overrun by pointer", "AddressSanitizer: global-buffer-overflow"),
        ("address", "dynamic overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "global overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "misaligned", "misaligned address"),
        ("thread", "no syncthreads", "ThreadSanitizer: data race"),
        ("thread", "no syncwarp", "ThreadSanitizer: data race"),
        ("thread", "shuffle for a barrier", "ThreadSanitizer: data race"),
    ],
)
def test_sanitizer_reports_a_planted_defect_with_its_file(sanitizer, launch, report):
    process = launched(sanitizer, launch)
    assert process.returncode != 0
    assert report in process.stderr, process.stderr
    assert re.search(r"[\s']planted\.cu:\d+", process.stderr)


@needs_sanitizers
@pytest.mark.parametrize("name", C_DEFECTS)
def test_sanitizer_reports_a_defect_planted_in_the_c_files(name):
    defect = C_DEFECTS[name]
    process = launched(defect.sanitizer, name)
    assert process.returncode != 0
    assert re.search(defect.report, process.stderr), process.stderr
    assert re.search(rf"[\s/]{re.escape(defect.file)}:\d+", process.stderr), process.stderr


def test_sanitize_files_exist():
    assert all((sanitize.ROOT / file).is_file() for file in sanitize.FILES)


@needs_sanitizers
def test_sanitize_main_fails_with_the_report_of_a_test(tmp_path, monkeypatch, capsys):
    file = tmp_path / "test_launches.py"
    file.write_text(
        "from tests.test_sanitizers import LAUNCHES\n"
        "def test_right(): LAUNCHES['right kernels']()\n"
        "def test_wrong(): LAUNCHES['no syncthreads']()\n"
    )
    monkeypatch.setattr(sanitize, "FILES", (str(file),))
    monkeypatch.setattr(sys, "argv", ["sanitize", "thread"])
    monkeypatch.setattr(sanitize, "SELECTED", "test_right")
    sanitize.main()
    assert "1 passed" in capsys.readouterr().out
    monkeypatch.setattr(sanitize, "SELECTED", "test_wrong")
    with pytest.raises(SystemExit, match="failed under thread"):
        sanitize.main()
    assert "ThreadSanitizer: data race planted.cu:" in capsys.readouterr().out


if __name__ == "__main__":
    LAUNCHES[sys.argv[1]]()
