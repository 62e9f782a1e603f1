"""Our own C: compiled once, kept privately, never for another machine, and done without where there is no compiler."""

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicnn import compiled, cpu, kernels_c, threads
from minicnn.files import partial_name

NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: install gcc or clang"
)
SOURCE = "int answer(void) { return ANSWER; }\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small C file, and a cache folder of its own."""
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    path = tmp_path / "small.c"
    path.write_text(SOURCE.replace("ANSWER", "42"))
    return path


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "compiled").glob("*.so"))


@NEEDS_COMPILER
def test_compiled_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "compile_seconds", None)
    assert compiled.load([source]).answer() == 42
    (library,) = kept(tmp_path)
    assert 0 < compiled.compile_seconds < compiled.TIMEOUT
    compiled.compile_seconds = None
    assert compiled.load([source]).answer() == 42 and compiled.compile_seconds is None
    assert stat.S_IMODE(library.stat().st_mode) == 0o700 and stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert [path.name for path in library.parent.iterdir()] == [library.name]


@NEEDS_COMPILER
def test_compiled_anew_for_another_source_command_or_processor(source, tmp_path, monkeypatch):
    compiled.load([source])
    source.write_text(SOURCE.replace("ANSWER", "43"))
    assert compiled.load([source]).answer() == 43 and len(kept(tmp_path)) == 2
    monkeypatch.setenv("CC", f"{next(filter(shutil.which, ('gcc', 'cc', 'clang')))} -DOTHER")
    compiled.load([source])
    assert len(kept(tmp_path)) == 3
    run = compiled._run
    monkeypatch.setattr(compiled, "_run", lambda c: run(c) + b"#define __OTHER_CPU__" if "-dM" in c else run(c))
    compiled.load([source])
    assert len(kept(tmp_path)) == 4


def built(source, monkeypatch):
    """The file that is kept of a source, not loaded: a process looks at a path that it has loaded only once."""
    with monkeypatch.context() as unloaded:
        unloaded.setattr(compiled.ctypes, "CDLL", Path)
        return compiled.load([source])


@NEEDS_COMPILER
def test_compiled_file_that_others_could_write_is_replaced(source, tmp_path, monkeypatch):
    other = tmp_path / "other.c"
    other.write_text(SOURCE.replace("ANSWER", "666"))
    library = built(source, monkeypatch)
    library.write_bytes(built(other, monkeypatch).read_bytes())
    library.chmod(0o777)
    assert compiled.load([source]).answer() == 42
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@NEEDS_COMPILER
def test_compiled_file_that_is_damaged_is_made_again(source, monkeypatch):
    built(source, monkeypatch).write_bytes(b"damaged")
    assert compiled.load([source]).answer() == 42


def test_compiled_without_a_compiler(source, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(compiled.CompilerError, match="no C compiler found"):
        compiled.load([source])
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(compiled.CompilerError, match="/no/such/compiler does not run"):
        compiled.load([source])


@pytest.mark.parametrize("command", ['"unclosed', "a\\"])
def test_compiled_by_what_is_no_command(source, monkeypatch, command):
    monkeypatch.setenv("CC", command)
    with pytest.raises(compiled.CompilerError, match="CC is .*, which is no command"):
        compiled.load([source])
    assert who_convolves(MINICNN_CONV="", CC=command).startswith("numpy: CC is ")


@NEEDS_COMPILER
def test_compiled_without_a_name_of_a_compiler(source, monkeypatch):
    monkeypatch.setenv("CC", " ")
    assert compiled.load([source]).answer() == 42


@NEEDS_COMPILER
def test_compiled_by_a_command_that_names_the_language(source, monkeypatch):
    monkeypatch.setenv("CC", f"{next(filter(shutil.which, ('gcc', 'cc', 'clang')))} -x c")
    assert compiled.load([source]).answer() == 42


@NEEDS_COMPILER
def test_compiled_after_a_killed_process_leaves_nothing_of_its(source, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / "cache" / "compiled" / partial_name("small.so").replace(f".{os.getpid()}.", f".{gone.pid}.")
    left.mkdir(parents=True)
    (left / "small.so").write_bytes(b"half")
    assert compiled.load([source]).answer() == 42
    assert list(left.parent.iterdir()) == kept(tmp_path)


@NEEDS_COMPILER
def test_compiled_source_with_an_error(source):
    source.write_text("int answer(void) { return missing; }\n")
    with pytest.raises(compiled.CompilerError, match="small.c.*missing"):
        compiled.load([source])


def who_convolves(**environment):
    """What a fresh process says of its convolutions."""
    code = "import numpy as np; from minicnn import cpu; print(cpu.convolutions())"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


def test_convolutions_say_who_does_them(tmp_path):
    assert who_convolves(MINICNN_CONV="numpy") == "numpy: MINICNN_CONV asks for it"
    nothing = {"CC": "/no/such/compiler", "MINICNN_CACHE": str(tmp_path)}
    assert who_convolves(MINICNN_CONV="", **nothing).startswith("numpy: /no/such/compiler does not run")
    assert "CompilerError" in who_convolves(MINICNN_CONV="compiled", **nothing)
    assert "MINICNN_CONV must be numpy or compiled, got 'other'" in who_convolves(MINICNN_CONV="other")


@NEEDS_COMPILER
def test_convolutions_are_compiled_where_there_is_a_compiler():
    assert who_convolves(MINICNN_CONV="") == "compiled"


@pytest.fixture(params=["compiled", "numpy"])
def road(request, monkeypatch):
    """Both ways to do a convolution, one after the other."""
    monkeypatch.setenv("MINICNN_CONV", request.param)
    cpu._kernels.cache_clear()
    try:
        cpu.convolutions()
    except compiled.CompilerError as error:
        pytest.skip(str(error))
    yield request.param
    monkeypatch.undo()
    cpu._kernels.cache_clear()


def naive(x, w, b, size_out, offset):
    """The formula, in float64: x (N, C, H, W), w (O, C, kh, kw)."""
    padded = np.zeros((*x.shape[:2], size_out[0] + w.shape[2] + x.shape[2], size_out[1] + w.shape[3] + x.shape[3]))
    padded[:, :, offset[0] : offset[0] + x.shape[2], offset[1] : offset[1] + x.shape[3]] = x
    y = np.zeros((len(x), len(w), *size_out)) + b[:, None, None]
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            shifted = padded[:, :, i : i + size_out[0], j : j + size_out[1]]
            y += np.einsum("oc,ncrs->nors", w[:, :, i, j], shifted, dtype=np.float64)
    return y


# images, channels, rows, columns, filters, kernel, offset: vectors and blocks that are full, short and empty
SHAPES = [
    (1, 1, 5, 7, 3, (3, 3), (0, 0)),
    (128, 3, 6, 5, 9, (3, 3), (1, 1)),
    (5, 13, 9, 8, 33, (3, 3), (0, 0)),
    (17, 2, 4, 11, 4, (2, 5), (1, 4)),
    (3, 4, 6, 6, 1, (1, 1), (0, 0)),
    (2, 3, 4, 4, 2, (4, 4), (3, 3)),
    (49, 1, 3, 3, 17, (3, 3), (2, 0)),
    (0, 2, 5, 5, 3, (3, 3), (0, 0)),
    (2, 0, 5, 5, 3, (3, 3), (1, 1)),
    (2, 3, 5, 5, 0, (3, 3), (1, 1)),
    # channels for vectors of conv3x3_sparse.c, fewer and more images than it takes at once, too large for its cache
    (16, 8, 3, 3, 1, (3, 3), (0, 0)),
    (131, 12, 8, 7, 33, (3, 3), (0, 0)),
    (17, 23, 5, 10, 40, (3, 3), (1, 1)),
    (33, 64, 4, 90, 2, (3, 3), (2, 2)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d_on_both_roads(road, shape, dtype):
    images, channels, rows, columns, filters, kernel, offset = shape
    rng = np.random.default_rng(0)
    x, b = (
        rng.standard_normal((images, channels, rows, columns)).astype(dtype),
        rng.standard_normal(filters).astype(dtype),
    )
    w = rng.standard_normal((filters, channels, *kernel)).astype(dtype)
    size_out = tuple(s + 2 * o - k + 1 for s, o, k in zip((rows, columns), offset, kernel, strict=True))
    exact = naive(x, w, b, size_out, offset)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    y = cpu.conv2d(x, w, b, size_out, offset, False)
    assert y.shape == exact.shape and y.dtype == dtype
    np.testing.assert_allclose(y, exact, atol=tolerance * 10)
    np.testing.assert_allclose(cpu.conv2d(x, w, b, size_out, offset, True), np.maximum(exact, 0), atol=tolerance * 10)
    np.testing.assert_allclose(
        cpu.conv2d(x, w, None, size_out, offset, False), naive(x, w, 0 * b, size_out, offset), atol=10 * tolerance
    )

    g = (rng.standard_normal(exact.shape) * (rng.random(exact.shape) < 0.4)).astype(dtype)  # with zeros, as of a ReLU
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    back = tuple(k - 1 - o for k, o in zip(kernel, offset, strict=True))
    gx = cpu.conv2d_input_grad(g, w, (rows, columns), offset)
    np.testing.assert_allclose(gx, naive(g, flipped, np.zeros(channels), (rows, columns), back), atol=tolerance * 20)
    gw = cpu.conv2d_weight_grad(x, g, kernel, offset)
    exact_gw = naive(x.transpose(1, 0, 2, 3), g.transpose(1, 0, 2, 3), np.zeros(filters), kernel, offset)
    np.testing.assert_allclose(gw, exact_gw.transpose(1, 0, 2, 3), atol=tolerance * 100)


@pytest.mark.parametrize("compiler", ["gcc", "gcc -mno-avx512f", "gcc -mno-avx", "clang"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conv2d_has_the_same_bits_whether_zeros_are_left_out(compiler, dtype, monkeypatch):
    """So which is done may hang on how many there are, and on the images beside: for every vector unit and number of
    filters, of which some compilers treat a single one in another way."""
    if not shutil.which(compiler.split()[0]) or "avx" in compiler and platform.machine() != "x86_64":
        pytest.skip(f"no {compiler} here")
    monkeypatch.setenv("CC", compiler)
    kernels, launched = kernels_c.CKernels(), []
    monkeypatch.setattr(cpu, "_kernels", lambda: (kernels, "compiled"))
    monkeypatch.setattr(
        kernels, "_call", lambda *given: (launched.append(given[0]), type(kernels)._call(kernels, *given))[1]
    )
    monkeypatch.setattr(kernels_c, "FEWEST", 1)
    rng, numbers = np.random.default_rng(0), np.finfo(dtype)
    for case in range(40):
        images, channels, filters, rows, columns = rng.integers([1, 16, 8, 1, 1], [150, 80, 70, 10, 10]).tolist()
        if case % 3 == 0:  # one vector of one filter is left
            images, filters, columns = 3, 17, 1
        top, left, below, right = rng.integers(0, 3, 4).tolist()
        size_out = max(1, rows + top + below - 2), max(1, columns + left + right - 2)
        x = rng.standard_normal((images, channels, rows, columns)).astype(dtype)
        x[rng.random(x.shape) < rng.choice([0, 0.5, 0.9, 1])] = 0
        if case % 4 == 0:
            special = np.nan, np.inf, -0.0, numbers.smallest_subnormal, numbers.max
            x.flat[rng.integers(x.size, size=5)] = special
        w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((filters, channels, 3, 3), (filters,)))
        found, pooled, pool = [], [], min(1 + case % 3, *size_out)
        for dense, expected in ((0, "correlate"), (10, "sparse_correlate")):
            monkeypatch.setattr(kernels_c, "DENSE", dense)
            found.append(cpu.conv2d(x, w, b, size_out, (top, left), False))
            assert launched[-1] == expected
            pooled.append(cpu.conv2d_max_pool2d(x, w, b, size_out, (top, left), case % 2 == 0, pool))
            assert (launched[-1] == "max_pool2d") == (dense == 0)
        np.testing.assert_array_equal(*found)
        assert np.array_equal(*(np.signbit(y[~np.isnan(y)]) for y in found))
        for one, other in zip(*pooled, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("images", [1, 5, 16, 50, 128])
def test_conv2d_gives_equal_windows_equal_sums(road, images):
    """To the last bit, wherever they lie: the ties of a max-pool on a flat background rest on it."""
    rng = np.random.default_rng(1)
    x = np.full((images, 3, 11, 13), 0.3, np.float32)
    w, b = rng.standard_normal((9, 3, 3, 3), np.float32), rng.standard_normal(9, np.float32)
    y = cpu.conv2d(x, w, b, (9, 11), (0, 0), False)
    assert (y == y[:1, :, :1, :1]).all()


@pytest.mark.parametrize("channels", [3, 20])
def test_conv2d_input_gradient_of_equal_windows_is_equal(road, channels):
    """To the last bit, wherever they lie and whatever is zero beside them: what a saliency map ranks hangs on it."""
    rng = np.random.default_rng(1)
    g, w = np.zeros((2, 7, 20, 19), np.float32), rng.standard_normal((7, channels, 3, 3), np.float32)
    for row, column in ((0, 0), (4, 5), (9, 13), (16, 14)):
        g[0, :, row : row + 3, column : column + 3] = rng.standard_normal((7, 3, 3), np.float32)
        g[0, ::2, row, column] = 0
    g[1, :, 1:, 2:] = g[0, :, :-1, :-2]
    gx = cpu.conv2d_input_grad(g, w, (22, 21), (0, 0))
    assert np.array_equal(gx[1, :, 1:, 2:], gx[0, :, :-1, :-2]) and gx[0].any()


@pytest.mark.parametrize("channels", [3, 20])
def test_conv2d_of_an_image_does_not_depend_on_its_neighbours(road, channels):
    rng = np.random.default_rng(2)
    x, w = rng.random((70, channels, 9, 9), np.float32), rng.random((5, channels, 3, 3), np.float32)
    g, d, b = rng.random((70, 5, 7, 7), np.float32), rng.random((70, 1000), np.float32), np.zeros(5, np.float32)
    g[rng.random(g.shape) < 0.5] = 0
    u = rng.random((1000, 7), np.float32)
    functions = (
        (lambda part: cpu.conv2d(x[part], w, b, (7, 7), (0, 0), True)),
        (lambda part: cpu.conv2d_input_grad(g[part], w, (9, 9), (0, 0))),
        (lambda part: cpu.dense(d[part], u, u[0], True)),
        (lambda part: cpu.dense_input_grad(cpu.dense(d[part], u, u[0], True), u)),
    )
    for function in functions:
        whole = function(slice(None))
        for part in (slice(0, 1), slice(33, 36), slice(5, 70), slice(69, 70)):
            assert (function(part) == whole[part]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_of_few_images_has_the_bits_of_many(road, dtype):
    rng, numbers = np.random.default_rng(3), np.finfo(dtype)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((90, 70), (70, 45), (45,)))
    x[2, :3] = np.nan, np.inf, -np.inf
    x[3], x[4, :3], x[5, 1] = -0.0, numbers.smallest_subnormal, numbers.max
    w[1, 3], w[:, 4], b[4] = np.inf, 0, -0.0
    w[0, 5], b[5] = np.inf, -np.inf  # their sum is no number
    for relu in (False, True):
        whole = cpu.dense(x, w, b, relu)
        for count in (1, 2, 6, 11, 12, 40):  # one quarter of the units is 11
            part = cpu.dense(x[:count], w, b, relu)
            np.testing.assert_array_equal(part, whole[:count])
            assert np.array_equal(*(np.signbit(y[~np.isnan(y)]) for y in (part, whole[:count])))


@pytest.mark.parametrize("channels", [8, 20])  # of 16 or more what is 0 is left out
@pytest.mark.parametrize("images", [40, 135])
def test_conv2d_has_the_same_bits_for_any_number_of_threads(road, images, channels, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 2**15)  # so that there is something to divide
    rng = np.random.default_rng(3)
    x, w, b = (
        rng.random((images, channels, 20, 20), np.float32),
        rng.standard_normal((16, channels, 3, 3), np.float32),
        np.zeros(16, np.float32),
    )
    x[rng.random(x.shape) < 0.7] = 0
    before, found = cpu.threads(), []
    try:
        for count in (1, 2, 3, 4):
            cpu.set_threads(count)
            y = cpu.conv2d(x, w, b, (18, 18), (0, 0), True)
            gradients = cpu.conv2d_input_grad(y, w, (20, 20), (0, 0)), cpu.conv2d_weight_grad(x, y, (3, 3), (0, 0))
            found.append((y, *gradients, *cpu.conv2d_max_pool2d(x, w, b, (18, 18), (0, 0), True, 4)))
    finally:
        cpu.set_threads(before)
    for others in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("order", ["C", "F"])
def test_input_gradient_of_filters_that_are_not_finite_does_not_depend_on_images_beside(road, order):
    rng = np.random.default_rng(0)
    g, w = rng.standard_normal((5, 8, 3, 1), np.float32), rng.standard_normal((8, 8, 3, 3), np.float32)
    w[0, 0, 0, 0] = np.inf
    w = np.asarray(w, order=order)
    together, alone = (cpu.conv2d_input_grad(part, w, (5, 3), (0, 0)) for part in (g, g[2:3]))
    np.testing.assert_array_equal(together[2:3], alone)


@pytest.mark.parametrize("filters", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_weight_gradients_of_infinity_times_0_are_nan(road, channels, filters):
    """Also where there is one product alone, of which some libraries make 0."""
    x, g = np.ones((1, channels, 1, 1), np.float32), np.zeros((1, filters, 1, 1), np.float32)
    x[0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        found = cpu.conv2d_weight_grad(x, g, (1, 1), (0, 0))[:, :, 0, 0]
        dense = cpu.dense_weight_grad(x[:, :, 0, 0], g[:, :, 0, 0])
    for nan in (np.isnan(found).T, np.isnan(dense)):
        assert nan[0].all() and not nan[1:].any()


@pytest.mark.parametrize("channels, kernel, padding", [(8, 3, 0), (20, 3, 1), (3, 3, 1), (2, 2, 0), (1, 5, 2)])
@pytest.mark.parametrize("where", "xwg")
@pytest.mark.parametrize("value", [np.nan, np.inf, 2e307])
def test_conv2d_of_numbers_that_are_not_finite_or_hardly(road, channels, kernel, padding, where, value):
    """They reach the sums that they are terms of, and no others, whatever is left out as 0: as PyTorch has it."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((18, channels, 7, 6)), "w": rng.standard_normal((4, channels, kernel, kernel))}
    size_out = tuple(s + 2 * padding - kernel + 1 for s in (7, 6))
    arrays["g"] = rng.standard_normal((18, 4, *size_out)) * (rng.random((18, 4, *size_out)) < 0.4)
    arrays[where].flat[rng.integers(arrays[where].size, size=2)] = value
    x, w, g = arrays.values()
    images, filters = (torch.tensor(a, requires_grad=True) for a in (x, w))
    y = torch.nn.functional.conv2d(images, filters, padding=padding)
    y.backward(torch.tensor(g))
    offset = padding, padding
    for found, right in (
        (cpu.conv2d(x, w, None, size_out, offset, False), y.detach()),
        (cpu.conv2d_input_grad(g, w, (7, 6), offset), images.grad),
        (cpu.conv2d_weight_grad(x, g, (kernel, kernel), offset), filters.grad),
    ):
        np.testing.assert_allclose(found, right.numpy(), rtol=1e-9, atol=1e-9)


def test_conv2d_weight_gradient_is_as_exact_beside_a_large_pixel(road):
    """Each entry is off by roundings of its own terms, not of those of its neighbours."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((32, 16, 6, 6), np.float32), rng.standard_normal((32, 5, 4, 4), np.float32)
    x[:, :, 1, 1] = 1e6
    flipped = x.transpose(1, 0, 2, 3), g.transpose(1, 0, 2, 3), np.zeros(5), (3, 3), (0, 0)
    exact, size = naive(*flipped), naive(*map(abs, flipped[:2]), *flipped[2:])
    gw = cpu.conv2d_weight_grad(x, g, (3, 3), (0, 0)).transpose(1, 0, 2, 3)
    assert (abs(gw - exact) <= 20 * np.finfo(np.float32).eps * size).all() and size.max() > 1e4 * size.min()


# N, P, Q, C, O, kernel, edge of the change, its origin: in the middle, at corners, partly and wholly outside
MOVED = [
    (3, 6, 7, 2, 5, 3, 1, (3, 4)),
    (3, 6, 7, 1, 33, 3, 2, (0, 0)),
    (2, 4, 9, 64, 64, 3, 5, (3, 7)),
    (3, 5, 5, 3, 17, 2, 3, (-2, -1)),
    (2, 3, 4, 2, 3, 1, 2, (2, -1)),
    (2, 9, 8, 3, 40, 5, 4, (7, -3)),
    (2, 1, 1, 2, 2, 3, 3, (1, 1)),
    (2, 4, 4, 2, 2, 2, 2, (9, 9)),
]


def changed_inputs(rng, shape, edge, origin, dtype):
    """x (N, C, H, W), which of its images change, the changes as conv2d_moved takes them, and x after them."""
    x = rng.standard_normal(shape).astype(dtype)
    image = np.arange(len(x) - 1)[::-1].copy()
    origins = np.array([origin] * len(image)) + np.arange(len(image))[:, None]
    d, after = np.zeros((len(image), edge, edge, shape[1]), dtype), x.copy()
    for m, n in enumerate(image):
        for i, j in np.ndindex(edge, edge):
            row, column = origins[m] + (i, j)
            if 0 <= row < shape[2] and 0 <= column < shape[3]:
                d[m, i, j] = rng.standard_normal(shape[1])
                after[n, :, row, column] += d[m, i, j]
    return x, image, origins, d, after


def placed(e, image, origins, shape):
    """The changes (M, edge, edge, O) where they belong in arrays (N, P, Q, O); what is outside must be 0."""
    whole = np.zeros(shape)
    for m, n in enumerate(image):
        for i, j in np.ndindex(e.shape[1:3]):
            row, column = origins[m] + (i, j)
            if 0 <= row < shape[1] and 0 <= column < shape[2]:
                whole[n, row, column] += e[m, i, j]
            else:
                assert not e[m, i, j].any()
    return whole


def last(x):
    """Channels last, contiguous."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "tried"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("shape", MOVED)
def test_conv2d_moved_is_the_convolution_of_what_has_moved(road, shape, relu, dtype, keep):
    images, rows, columns, channels, filters, size, edge, origin = shape
    rng, tolerance = np.random.default_rng(5), 1e-4 if dtype == np.float32 else 1e-12
    inputs = (images, channels, rows + size - 1, columns + size - 1)
    x, image, origins, d, after = changed_inputs(rng, inputs, edge, origin, dtype)
    w, b = rng.standard_normal((filters, channels, size, size)).astype(dtype), rng.standard_normal(filters)
    y, expected = (last(naive(inputs, w, b, (rows, columns), (0, 0))) for inputs in (x, after))
    found = y.astype(dtype)
    e = cpu.conv2d_moved(found, image, origins, d, cpu.pack_moved(w), size, relu, keep)
    assert e.dtype == dtype and e.shape == (len(image), edge + size - 1, edge + size - 1, filters)
    if keep:
        np.testing.assert_allclose(found, expected, atol=tolerance)
    rest = slice(-1, None) if keep else slice(None)
    assert np.array_equal(found[rest], y[rest].astype(dtype))
    rise = np.maximum(expected, 0) - np.maximum(y, 0) if relu else expected - y
    np.testing.assert_allclose(placed(e, image, origins - size + 1, y.shape), rise, atol=2 * tolerance)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "tried"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("origin", [(0, 0), (1, 2), (4, 5), (-1, -2), (7, 8), (20, 20)], ids=str)
def test_conv2d_moved_into_a_max_pool(road, size, origin, relu, keep):
    """The pool of what a convolution gave; 8 x 10 outputs, so that windows of 3 leave some out."""
    rng = np.random.default_rng(6)
    y, image, origins, d, after = changed_inputs(rng, (4, 5, 8, 10), 3, origin, np.float32)
    before, expected = (
        last(cpu.max_pool2d(np.maximum(inputs, 0) if relu else inputs, size)[0]) for inputs in (y, after)
    )
    z, x = before.copy(), last(after if keep else y)
    if relu:  # what changes is the output of the ReLU
        d = d * 0
        for m, n in enumerate(image):
            for i, j in np.ndindex(3, 3):
                row, column = origins[m] + (i, j)
                if 0 <= row < 8 and 0 <= column < 10:
                    d[m, i, j] = np.maximum(after[n, :, row, column], 0) - np.maximum(y[n, :, row, column], 0)
    e = cpu.max_pool2d_moved(z, image, origins, d, x, size, relu, keep)
    assert e.shape[1] == (3 + size - 2) // size + 1
    assert np.array_equal(z, expected if keep else before)
    np.testing.assert_allclose(placed(e, image, origins // size, z.shape), expected - before, atol=1e-6)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "tried"])
@pytest.mark.parametrize("place", range(4))
def test_conv2d_moved_into_a_max_pool_loses_no_nan(road, place, keep):
    """Wherever it is in the window, before numbers and after them."""
    y, d, at = np.arange(8.0).reshape(1, 2, 2, 2), np.zeros((1, 2, 2, 2)), np.zeros((1, 2), np.int64)
    z = y.max(axis=(1, 2), keepdims=True)
    (y if keep else d).reshape(4, 2)[place, 1] = np.nan
    e = cpu.max_pool2d_moved(z, np.zeros(1, np.int64), at, d, y, 2, False, keep)
    assert e[0, 0, 0].tolist()[0] == 0 and np.isnan(e[0, 0, 0, 1])
    assert z[0, 0, 0, 0] == 6 and np.isnan(z[0, 0, 0, 1]) == keep


@NEEDS_COMPILER
def test_kernels_take_no_array_for_a_number():
    """An address is an integer too."""
    x, half, kernels = np.ones(3, np.float32), np.array(0.5), kernels_c.CKernels()
    kernels.nesterov(x, x.copy(), x.copy(), half, half, half)
    assert np.isfinite(x).all() and np.abs(x).max() < 10
    with pytest.raises(ctypes.ArgumentError):
        kernels._call("relu_grad", x.dtype, x, x, x, np.array([3, 4]))
    with pytest.raises(ctypes.ArgumentError):
        kernels.nesterov(x, x, x, np.ones(2), 0.5, 0.0)


def test_conv2d_refuses_mixed_dtypes(road):
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3))
    with pytest.raises(TypeError, match="float32.*float64"):
        cpu.conv2d(x, w, None, (2, 2), (0, 0), False)


@NEEDS_COMPILER
def test_sizes_are_those_of_the_source():
    """Field by field: two that were swapped would pass unseen."""
    source = (compiled.kernel_folder() / "common.h").read_text()
    declared = source.split("typedef struct {\n    long ")[1].split(";")[0].split(", ")
    assert [name for name, _ in kernels_c.Sizes._fields_] == declared
    assert all(kind is ctypes.c_long for _, kind in kernels_c.Sizes._fields_ + kernels_c.Moved._fields_)
    source = (compiled.kernel_folder() / "moved.c").read_text()
    declared = source.split("typedef struct {\n    long ")[1].split(";")[0].split(", ")
    assert [name for name, _ in kernels_c.Moved._fields_] == declared


@pytest.mark.parametrize(
    "record",
    [[("a", "i1"), ("w", "f4")], {"names": ["w"], "formats": ["f4"], "offsets": [1], "itemsize": 8}],
    ids=["one after the other", "at odd addresses"],
)
@pytest.mark.parametrize("units", [2, 16])
def test_dense_of_a_field_of_a_structured_array(road, monkeypatch, record, units):
    """C is given no number at an address that its type does not have."""
    call = kernels_c.CKernels._call

    def aligned(self, name, dtype, *arguments):
        assert all(a.flags.aligned for a in arguments if isinstance(a, np.ndarray)), name
        call(self, name, dtype, *arguments)

    monkeypatch.setattr(kernels_c.CKernels, "_call", aligned)
    rows = np.zeros((3, units), record)
    rows["w"] = np.arange(3 * units).reshape(3, units)
    sums = rows["w"].sum(axis=0).tolist()
    assert cpu.dense(np.ones((4, 3), np.float32), rows["w"], np.zeros(units, np.float32), False).tolist() == [sums] * 4
