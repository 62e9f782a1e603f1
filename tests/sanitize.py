"""Run the tests of the kernels' sources under sanitizers: python -m tests.sanitize [address] [thread] [arguments].

The kernels, those in CUDA on the emulator and those in C, are built with AddressSanitizer + UndefinedBehaviorSanitizer,
or with ThreadSanitizer, whose library has to be loaded before the interpreter: so the tests run in a process for each,
side by side. Without a name it is both; other arguments are pytest's.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu import emulator

# The tests that launch kernels, without those that launch the same kernels again and take minutes when instrumented.
FILES = tuple(
    f"tests/{name}.py"
    for name in (
        "test_compiled",
        "test_cuda",
        "test_ops",
        "test_backend",
        "test_gradcheck",
        "test_training",
        "paper/test_saliency",
    )
)
SELECTED = (
    "cuda_on_cpu and not paper_cnn and not 5x5 and not 4x3 and not ten_thousand and not 10000 and not blocked"
    " and not float32_against_float64 and not factor_2_001_for_2 or conv2d and compiled"
)

C_FLAGS = {
    "address": ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "thread": ("-g", "-fsanitize=thread"),
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
ROOT = Path(__file__).resolve().parents[1]


def library(sanitizer):
    """The path of the compiler's sanitizer library, None where it is not installed."""
    found = emulator.run_tool(emulator.COMPILER, f"-print-file-name={LIBRARIES[sanitizer]}")
    found.check_returncode()
    path = found.stdout.strip()
    return path if os.path.isabs(path) and os.path.exists(path) else None


def missing():
    """What keeps the sanitizers from running here, or None."""
    reason = emulator.missing()
    if reason:
        return reason
    absent = [name for sanitizer, name in LIBRARIES.items() if not library(sanitizer)]
    return (
        f"{' and '.join(absent)} not found: install the sanitizer libraries of {emulator.COMPILER}" if absent else None
    )


def run(sanitizer, *arguments, **options):
    """Run the Python interpreter with these arguments and every kernel instrumented; options go to subprocess.run.

    The process ends with an error at the first report. A race is looked for in the kernels alone: the interpreter and
    NumPy are not instrumented, and what they do with their own threads is ignored.
    """
    environment = os.environ | {
        "LD_PRELOAD": library(sanitizer),
        "CUDA_ON_CPU_SANITIZE": sanitizer,
        "CC": " ".join(["env -u LD_PRELOAD", os.environ.get("CC", "gcc"), *C_FLAGS[sanitizer]]),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    fixed_addresses = ["setarch", "--addr-no-randomize"] if sanitizer == "thread" and _can_fix_addresses() else []
    return subprocess.run([*fixed_addresses, sys.executable, *arguments], env=environment, cwd=ROOT, **options)


def _can_fix_addresses():
    """ThreadSanitizer has its own plan of memory, which Linux, where it spreads addresses widely, may run across."""
    return subprocess.run("setarch --addr-no-randomize true", shell=True, capture_output=True).returncode == 0


def main():
    chosen = [argument for argument in sys.argv[1:] if argument in LIBRARIES] or list(LIBRARIES)
    others = [argument for argument in sys.argv[1:] if argument not in LIBRARIES]
    if missing():
        sys.exit(f"sanitize: {missing()}")

    def test(sanitizer):
        # Captured by pytest, a report would go down with the process that it ends.
        command = ("-m", "pytest", "-q", "--exitfirst", "--capture=sys", "-k", SELECTED, *FILES, *others)
        return run(sanitizer, *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    failed = []
    with ThreadPoolExecutor() as pool:
        for sanitizer, process in zip(chosen, pool.map(test, chosen), strict=True):
            print(f"{sanitizer}:\n{process.stdout}")
            if process.returncode:
                failed.append(f"{sanitizer} (exit status {process.returncode})")
    if failed:
        sys.exit(f"sanitize: failed under {' and '.join(failed)}")


if __name__ == "__main__":
    main()
