"""The compile matrix reads what NVRTC says, and notices what it is there to notice. The matrix itself: make kernels."""

import functools

import pytest

from minicnn.cuda import KERNELS, kernel_folder
from tests import compile_matrix
from tests.compile_matrix import CompileError, Resources

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5scaleIfEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z5scaleIfEvPT_
ptxas         .     40 bytes stack frame, 24 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 40 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function '_Z5scaleIdEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z5scaleIdEvPT_
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers, 388 bytes cmem[0]
"""

# A thread that keeps 64 numbers alive, indexed by constants, with hardly any registers for them.
SPILLING = """
__global__ void __launch_bounds__(1024, 2) crowded(float *y) {
    float v[64];
#pragma unroll
    for (int i = 0; i < 64; i++) v[i] = y[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; i++) y[(63 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7) % 64];
}
"""


def test_parse_log_reads_what_ptxas_writes():
    assert compile_matrix.parse_log(LOG) == {
        "_Z5scaleIfEvPT_": Resources(registers=32, shared=1024, spilled=40),
        "_Z5scaleIdEvPT_": Resources(registers=18, shared=0, spilled=0),
    }


@pytest.mark.parametrize("file", sorted(path.name for path in kernel_folder().glob("*.cu*")))
def test_forbidden_finds_nothing_in_a_kernel_file(file):
    assert not compile_matrix.forbidden((kernel_folder() / file).read_text())


@pytest.mark.parametrize(
    "line",
    [
        "atomicAdd(total, x);",
        "y = __expf(x);",
        "y = __fdividef(a, b);",
        'asm("ex2.approx.f32 %0, %1;")',
        "--use_fast_math",
    ],
)
def test_forbidden_finds_what_makes_results_vary(line):
    assert compile_matrix.forbidden(f"int a;\n{line}  // as we should not")[0].startswith("line 2: ")
    assert not compile_matrix.forbidden(f"int a;  // not {line}")


def test_matrix_has_every_file_of_kernels():
    assert set(KERNELS) == {path.name for path in kernel_folder().glob("*.cu")}


def test_library_path_names_a_missing_wheel(monkeypatch):
    monkeypatch.setitem(compile_matrix.DISTRIBUTIONS, "12", "no-such-wheel")
    with pytest.raises(RuntimeError, match=r"NVRTC 12 is not installed: pip install 'no-such-wheel==12\.\*' 'nvidia"):
        compile_matrix.library_path("12")


@functools.cache
def installed():
    for version in compile_matrix.ARCHITECTURES:
        try:
            compile_matrix.library_path(version)
        except RuntimeError as error:
            return str(error)
    return None


needs_nvrtc = pytest.mark.skipif(installed() is not None, reason=f"{installed()} (make kernels does)")


@needs_nvrtc
def test_compile_kernels_sees_a_spill():
    assert compile_matrix.compile_kernels("13", "sm_90", SPILLING, (), ("crowded",))["crowded"].spilled > 0


@needs_nvrtc
def test_compile_kernels_has_errors_point_into_the_source():
    with pytest.raises(CompileError, match=r"broken\.cu\(3\): error"):
        compile_matrix.compile_kernels("12", "sm_61", '#line 2 "broken.cu"\n\nint a = b;', (), ())


def test_main_ends_with_the_failures(monkeypatch, capsys):
    """The table is printed all the same, and says which kernel, file and architecture."""
    results = {
        (version, arch, file): {"spilling": Resources(32, 0, 8)} if (arch, file) == ("sm_80", "relu.cu") else {}
        for version, archs in compile_matrix.ARCHITECTURES.items()
        for arch in archs
        for file in KERNELS
    }
    results["13", "sm_90", "relu.cu"] = "relu.cu(3): error"

    class Pool:
        def __init__(self, *_arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_exception):
            pass

        def map(self, _function, tasks):
            return [(task, results[task]) for task in tasks]

    monkeypatch.setattr(compile_matrix, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(compile_matrix, "library_path", lambda version: version)
    with pytest.raises(SystemExit) as exit_status:
        compile_matrix.main()
    assert "spilling in relu.cu spills 8 bytes on sm_80" in exit_status.value.code
    assert "relu.cu for sm_90 with NVRTC 13:\nrelu.cu(3): error" in exit_status.value.code
    assert "32/0/8" in capsys.readouterr().out
