"""The sanitizers see the defects that they are there for, each planted in a kernel, and nothing in right kernels.

A report ends the process, so that each launch is one: python -m tests.test_sanitizers LAUNCH.
"""

import re
import sys

import numpy as np
import pytest

from tests import sanitize
from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.device import xp

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


LAUNCHES = {
    "right kernels": launch_right_kernels,
    "after a deadlock": launch_after_a_deadlock,
    "static overrun": lambda: planted("static_overrun")((1,), (64,), (floats(64), ONE_BEYOND)),
    "static overrun by pointer": lambda: planted("static_overrun_by_pointer")((1,), (64,), (floats(64), ONE_BEYOND)),
    "dynamic overrun": lambda: planted("dynamic_overrun")((1,), (64,), (floats(64), ONE_BEYOND), shared_mem=256),
    "global overrun": lambda: planted("global_overrun")((1,), (64,), (floats(64), ONE_BEYOND)),
    "misaligned": lambda: planted("misaligned")((1,), (8,), (floats(16), floats(16), ONE_BEYOND)),
    "no syncthreads": lambda: planted("reverse", WITHOUT_BARRIER)((1,), (64,), (floats(64), floats(64))),
    "no syncwarp": lambda: planted("reverse_warp", WITHOUT_BARRIER)((1,), (32,), (floats(32), floats(32))),
    "shuffle for a barrier": lambda: planted("shuffle_is_no_barrier")((1,), (32,), (floats(32), floats(32))),
}


def launched(sanitizer, launch):
    """The finished process, its output as text."""
    return sanitize.run(sanitizer, "-m", "tests.test_sanitizers", launch, capture_output=True, text=True)


needs_sanitizers = pytest.mark.skipif(sanitize.missing() is not None, reason=str(sanitize.missing()))


@needs_sanitizers
@pytest.mark.parametrize("launch", ["right kernels", "after a deadlock"])
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
