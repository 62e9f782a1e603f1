"""The CUDA pillar against the NumPy pillar in float64, on shapes that divide nothing: run by the emulator and, where
there is one, by a GPU."""

import sys
import types

import numpy as np
import pytest

from minicnn import cpu, cuda
from minicnn.backend import DeviceError
from tests.conftest import open_device
from tests.cuda_on_cpu import emulator

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}
REAL = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LABELS = (np.int32, np.int64, np.uint8)


@pytest.fixture(params=["cuda_on_cpu", "cuda"])
def pillar(request):
    try:
        return open_device(request.param).kernels
    except DeviceError as error:
        pytest.skip(str(error))


def normal(shape, dtype, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def run(pillar, name, *arguments):
    """A function of the pillar on host arrays, its results back on the host."""
    result = getattr(pillar, name)(*(pillar.xp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments))
    return tuple(map(pillar.xp.asnumpy, result)) if isinstance(result, tuple) else pillar.xp.asnumpy(result)


def reference(name, *arguments):
    """The same function of the NumPy pillar, in float64."""
    real = (np.float32, np.float64)
    return getattr(cpu, name)(
        *(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype in real else a for a in arguments)
    )


def assert_close(got, want, dtype):
    assert (got.shape, got.dtype) == (want.shape, dtype)
    if want.size:
        assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()


def check(pillar, name, dtype, *arguments):
    got, want = run(pillar, name, *arguments), reference(name, *arguments)
    for g, w in zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]:
        assert_close(g, w, dtype)
    return got


# N, C, H, W, O, kernel
CONVOLUTIONS = [
    (1, 1, 5, 7, 3, (3, 3)),  # one image, one channel: threads share the strips of the weight gradient
    (2, 3, 9, 8, 33, (3, 3)),  # one filter more than a block has
    (3, 35, 6, 7, 5, (3, 3)),  # channels in several chunks and two blocks
    (2, 12, 12, 12, 40, (3, 3)),  # channels shared by three groups of threads
    (2, 1, 41, 70, 2, (3, 3)),  # several tiles and bands in both directions
    (19, 3, 4, 4, 5, (3, 3)),  # several images in a block, the last block not full
    (1, 2, 3, 3, 1, (3, 3)),  # a single output
    (2, 2, 6, 5, 3, (2, 2)),
    (1, 2, 7, 7, 2, (4, 4)),
    (2, 1, 6, 6, 2, (1, 1)),
    (1, 2, 7, 9, 3, (5, 5)),
    (1, 2, 6, 9, 3, (2, 5)),
    (0, 2, 5, 5, 3, (3, 3)),
    (0, 2, 5, 5, 3, (2, 2)),
]


@REAL
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("n", "c", "h", "w", "o", "kernel"), CONVOLUTIONS)
def test_convolution(pillar, dtype, padding, n, c, h, w, o, kernel):
    x, weights, b = normal((n, c, h, w), dtype), normal((o, c, *kernel), dtype), normal((o,), dtype)
    y = check(pillar, "conv2d", dtype, x, weights, b, padding, False)
    assert (y < 0).any() or y.size < 2
    check(pillar, "conv2d", dtype, x, weights, b, padding, True)
    g = normal(y.shape, dtype, seed=1)
    check(pillar, "conv2d_input_grad", dtype, g, weights, x.shape, padding)
    check(pillar, "conv2d_weight_grad", dtype, x, g, weights.shape, padding)
    check(pillar, "bias_grad", dtype, g)
    if c == 1 and n:
        maps, summary = run(pillar, "saliency_end", g, weights, x.shape, padding)
        assert_close(maps, reference("saliency_end", g, weights, x.shape, padding)[0], dtype)
        flat = maps.reshape(n, -1)
        assert np.array_equal(summary[:, :2], np.stack([flat.max(axis=1), flat.min(axis=1)], axis=1))
        assert np.abs(summary[:, 2] - flat.sum(axis=1, dtype=np.float64)).max() <= TOLERANCE[dtype] * np.abs(flat).max()
        assert np.array_equal(summary[:, 3], (flat == 0).sum(axis=1))


def test_ten_thousand_images(pillar):
    x, w, b = normal((10000, 1, 4, 5), np.float32), normal((2, 1, 3, 3), np.float32), normal((2,), np.float32)
    y = check(pillar, "conv2d", np.float32, x, w, b, "valid", True)
    check(pillar, "conv2d_input_grad", np.float32, y, w, x.shape, "valid")
    check(pillar, "conv2d_weight_grad", np.float32, x, y, w.shape, "valid")
    check(pillar, "bias_grad", np.float32, y)
    rows = x.reshape(10000, 20)
    check(pillar, "dense", np.float32, rows, normal((20, 3), np.float32), normal((3,), np.float32), False)
    check(pillar, "softmax", np.float32, rows, 1.0)
    pooled, winner = run(pillar, "max_pool2d", x, 2)
    assert np.array_equal(pooled, cpu.max_pool2d(x, 2)[0])
    check(pillar, "max_pool2d_grad", np.float32, pooled, x, pooled, winner, 2, "first")


def test_summary_counts_exact_zeros(pillar):
    g = normal((3, 2, 4, 4), np.float32)
    g[1] = 0
    g[2, :, :2] = 0
    maps, summary = run(pillar, "saliency_end", g, normal((2, 1, 3, 3), np.float32), (3, 1, 6, 6), "valid")
    assert summary[1].tolist() == [0, 0, 0, 36]
    assert summary[2, 3] == (maps[2] == 0).sum() == 12
    assert summary[0, 3] == 0


@REAL
@pytest.mark.parametrize(("n", "d", "u"), [(1, 1, 1), (3, 5, 2), (65, 70, 130), (2, 1027, 3), (1030, 3, 5), (0, 4, 3)])
def test_dense(pillar, dtype, n, d, u):
    x, w, b, g = normal((n, d), dtype), normal((d, u), dtype), normal((u,), dtype), normal((n, u), dtype, seed=1)
    check(pillar, "dense", dtype, x, w, b, False)
    check(pillar, "dense", dtype, x, w, b, True)
    check(pillar, "dense_input_grad", dtype, g, w)
    check(pillar, "dense_weight_grad", dtype, x, g)
    check(pillar, "bias_grad", dtype, g)


@REAL
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 301)])
def test_relu_keeps_nan(pillar, dtype, shape):
    x, g = normal(shape, dtype), normal(shape, dtype, seed=1)
    x.reshape(-1)[:1] = np.nan
    y = run(pillar, "relu", x)
    assert np.array_equal(y, np.maximum(x, 0), equal_nan=True)
    assert np.array_equal(run(pillar, "relu_grad", g, y), np.where(y > 0, g, dtype(0)))


@REAL
@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 3, 8, 8), 2), ((1, 1, 7, 9), 2), ((3, 3, 11, 5), 3), ((1, 2, 33, 70), 16), ((0, 2, 4, 4), 2)],
)
def test_max_pool_with_ties(pillar, dtype, ties, shape, size):
    x = np.random.default_rng(5).integers(-1, 2, shape).astype(dtype)
    (y, winner), (want_y, want_winner) = run(pillar, "max_pool2d", x, size), cpu.max_pool2d(x, size)
    assert winner.dtype == np.uint8
    assert np.array_equal(y, want_y) and np.array_equal(winner, want_winner)
    g = normal(y.shape, dtype)
    got = run(pillar, "max_pool2d_grad", g, x, y, winner, size, ties)
    assert np.array_equal(got, cpu.max_pool2d_grad(g, x, y, winner, size, ties))


@REAL
@pytest.mark.parametrize("T", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (130, 3), (0, 10)])
def test_softmax_and_cross_entropy(pillar, dtype, T, shape):
    large = (100 * normal(shape, np.float64)).astype(dtype)
    check(pillar, "softmax", dtype, large, T)
    check(pillar, "log_softmax", dtype, large, T)
    z, g = (2 * T * normal(shape, np.float64)).astype(dtype), normal(shape, dtype, seed=1)
    p, log_p = check(pillar, "softmax", dtype, z, T), check(pillar, "log_softmax", dtype, z, T)
    check(pillar, "softmax_grad", dtype, g, p, T)
    check(pillar, "log_softmax_grad", dtype, g, log_p, T)
    soft = cpu.softmax(normal(shape, dtype, seed=2), 1.0) * dtype(1.5)
    hard = np.arange(shape[0]) * 3 % shape[1]
    for target in (soft, *(hard.astype(kind) for kind in LABELS)):
        check(pillar, "cross_entropy", dtype, large, target, T)
        check(pillar, "cross_entropy_grad", dtype, g[:, 0], z, target, T)


def test_label_out_of_range_gives_nan(pillar):
    z, labels = normal((3, 4), np.float32), np.array([4, 0, -1], np.int32)
    assert np.isnan(run(pillar, "cross_entropy", z, labels, 1.0)).tolist() == [True, False, True]
    assert np.isnan(run(pillar, "cross_entropy_grad", np.ones(3, np.float32), z, labels, 1.0)[[0, 2]]).all()


@REAL
@pytest.mark.parametrize("T", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_saliency_seed_of_large_logits(pillar, dtype, T, arithmetic):
    """Logits near 300, as the T = 20 network has them: exp underflows at T = 1, the scaled seed does not."""
    z = np.random.default_rng(1).uniform(-300, 300, (200, 10)).astype(dtype)
    labels = z.argmax(axis=1)
    labels[::3] = 2
    arguments = ("saliency_seed", z, labels, T, arithmetic)
    got, want = run(pillar, *arguments), reference(*arguments)
    if arithmetic == "scaled":
        g, log10_scale = got
        # An error of the logarithms, of size 600 / T, is an absolute error of the exponent.
        assert np.abs(g - want[0]).max() <= 600 / T * np.finfo(dtype).eps * 4
        assert_close(log10_scale, want[1], dtype)
        rows = np.arange(len(z))
        assert (g[rows, labels] == -1).all()
        g[rows, labels] = 0
        assert np.abs(g.sum(axis=1) - 1).max() < 1000 / T * np.finfo(dtype).eps
    else:
        same = cpu.saliency_seed(z, labels, T, arithmetic)
        assert np.abs(got[0] - want[0]).max() <= 4 * np.finfo(dtype).eps / T
        assert np.array_equal(got[0] == 0, same[0] == 0) and not got[1].any()
        assert T > 1 or dtype is np.float64 or (got[0][1::3] == 0).all(axis=1).any()


PHILOX = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # Random123's known answer: counter 0, key 0


@pytest.mark.parametrize("element", range(4))
def test_philox_known_answer(pillar, element):
    """A word is kept below the threshold: seen from both sides, the threshold gives the word."""
    x = np.ones(4, np.float64)
    for threshold, kept in ((PHILOX[element], False), (PHILOX[element] + 1, True)):
        y = run(pillar, "dropout", x, 1 - threshold / 2**32, 0, 0, 0)
        assert (y[element] != 0) == kept


@REAL
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (5, 3, 7), (1031,), (0, 4)])
def test_dropout_has_the_bits_of_the_numpy_pillar(pillar, dtype, rate, shape):
    x = normal(shape, dtype)
    for seed, layer, step in ((0, 0, 0), (2**64 - 1, 3, 7), (123456789012345, 1, 2**32 - 1)):
        want = cpu.dropout(x, rate, seed, layer, step)
        assert np.array_equal(run(pillar, "dropout", x, rate, seed, layer, step), want)
        assert np.array_equal(run(pillar, "dropout", x, rate, seed, layer, np.array([step], np.uint32)), want)


@REAL
@pytest.mark.parametrize("shape", [(1,), (3, 5, 3, 3), (1000,), (0,)])
def test_nesterov_step_in_place(pillar, dtype, shape):
    xp, w, v, g = pillar.xp, normal(shape, dtype, 1), normal(shape, dtype, 2), normal(shape, dtype, 3)
    for lr in (0.1, np.array([0.1], dtype)):
        on_device = xp.asarray(w), xp.asarray(v)
        pillar.nesterov_step(*on_device, xp.asarray(g), xp.asarray(lr) if isinstance(lr, np.ndarray) else lr, 0.5, 0.01)
        want = w.astype(np.float64), v.astype(np.float64)
        cpu.nesterov_step(*want, g.astype(np.float64), 0.1, 0.5, 0.01)
        for got, expected in zip(on_device, want, strict=True):
            assert_close(xp.asnumpy(got), expected, dtype)


def test_batches_of_a_data_set_on_the_device(pillar):
    xp, order = pillar.xp, np.random.default_rng(0).permutation(11).astype(np.int32)
    step = xp.asarray(np.array([4], np.uint32))
    pillar.advance(step)
    assert xp.asnumpy(step) == 5
    for data in (normal((11, 1, 7, 9), np.float32), normal((11, 10), np.float64), np.arange(11, dtype=np.int32)):
        for at in (0, 2, 5):
            want = cpu.gather(data, order, at, 3)
            assert np.array_equal(run(pillar, "gather", data, order, at, 3), want)
        assert np.array_equal(xp.asnumpy(pillar.gather(xp.asarray(data), xp.asarray(order), step, 3)), want)


@REAL
@pytest.mark.parametrize("n", [0, 1, 255, 10000])
def test_accumulate_in_double_precision(pillar, dtype, n):
    xp, values = pillar.xp, normal((n,), dtype)
    total = xp.asarray(np.array([1e3]))
    pillar.accumulate(total, xp.asarray(values))
    assert abs(xp.asnumpy(total)[0] - 1e3 - values.sum(dtype=np.float64)) < 1e-10


def test_input_that_is_not_contiguous(pillar):
    xp = pillar.xp
    x, w, b = normal((8, 7, 2, 3), np.float32), normal((3, 3, 3, 4), np.float32), normal((4, 2), np.float32)
    moved = xp.asarray(x).transpose(3, 2, 0, 1), xp.asarray(w).transpose(3, 2, 0, 1)[:, :2], xp.asarray(b)[:, 1]
    want = cpu.conv2d(x.transpose(3, 2, 0, 1), w.transpose(3, 2, 0, 1)[:, :2], b[:, 1], "same", True)
    assert_close(xp.asnumpy(pillar.conv2d(*moved, "same", True)), want, np.float32)


def training_step(pillar, dtype):
    """A step of a small network, every kernel of training in it. Returns the step and the arrays that it changes."""
    xp = pillar.xp

    def on_device(*shape):
        return xp.asarray(normal(shape, dtype))

    data, labels = on_device(20, 1, 12, 13), xp.asarray(np.arange(20, dtype=np.int32) % 5)
    order = xp.asarray(np.random.default_rng(0).permutation(20).astype(np.int32))
    shapes = (4, 1, 3, 3), (4,), (36, 4, 3, 3), (36,), (900, 5), (5,)
    parameters = [on_device(*shape) for shape in shapes]
    velocities = [xp.asarray(np.zeros(p.shape, dtype)) for p in parameters]
    step, total = xp.asarray(np.zeros(1, np.uint32)), xp.asarray(np.zeros(1))
    lr, mean = xp.asarray(np.full(1, 0.01, dtype)), xp.asarray(np.full(6, 1 / 6, dtype))

    def take():
        w1, b1, w2, b2, w3, b3 = parameters
        x, target = pillar.gather(data, order, step, 6), pillar.gather(labels, order, step, 6)
        y1 = pillar.conv2d(x, w1, b1, "valid", True)
        y2 = pillar.conv2d(y1, w2, b2, "same", False)
        pooled, winner = pillar.max_pool2d(y2, 2)
        rectified = pillar.relu(pooled)
        flat = pillar.dropout(rectified.reshape(6, -1), 0.5, 7, 0, step)
        z = pillar.dense(flat, w3, b3, False)
        pillar.accumulate(total, pillar.cross_entropy(z, target, 2.0))
        g = pillar.cross_entropy_grad(mean, z, target, 2.0)
        grads = [pillar.bias_grad(g), pillar.dense_weight_grad(flat, g)]
        g = pillar.dropout(pillar.dense_input_grad(g, w3), 0.5, 7, 0, step).reshape(rectified.shape)
        g = pillar.max_pool2d_grad(pillar.relu_grad(g, rectified), y2, pooled, winner, 2, "all")
        grads += [pillar.bias_grad(g), pillar.conv2d_weight_grad(y1, g, w2.shape, "same")]
        g = pillar.relu_grad(pillar.conv2d_input_grad(g, w2, y1.shape, "same"), y1)
        grads += [pillar.bias_grad(g), pillar.conv2d_weight_grad(x, g, w1.shape, "valid")]
        for parameter, velocity, grad in zip(parameters, velocities, reversed(grads), strict=True):
            pillar.nesterov_step(parameter, velocity, grad, lr, 0.5, 0.01)
        pillar.advance(step)
        return z

    return take, (*parameters, *velocities, step, total)


def states(pillar, step, arrays, count=4):
    """The bytes of result and state after each of some steps."""
    return [[pillar.xp.asnumpy(a).tobytes() for a in (step(), *arrays)] for _ in range(count)]


@REAL
def test_captured_step_has_the_bits_of_the_eager_one(pillar, dtype):
    step, arrays = training_step(pillar, dtype)
    eager = states(pillar, step, arrays)
    assert len({state[0] for state in eager}) == len(eager)
    step, arrays = training_step(pillar, dtype)
    assert states(pillar, pillar.capture(step), arrays) == eager


@REAL
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(dtype):
    try:
        pillar = open_device("cuda_on_cpu").kernels
    except DeviceError as error:
        pytest.skip(str(error))
    seen = []
    for seed in (1, 2, 3):
        with emulator.seeded(seed):
            seen.append(states(pillar, *training_step(pillar, dtype), count=2))
            w, g = normal((3, 1, 3, 3), dtype), normal((2, 3, 8, 8), dtype)
            seen[-1] += [a.tobytes() for a in run(pillar, "saliency_end", g, w, (2, 1, 8, 8), "same")]
    assert seen[0] == seen[1] == seen[2]


# What the NumPy pillar refuses, the CUDA pillar refuses in the same words.
REFUSED = {
    "padding": ("conv2d", (np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1), "full", False)),
    "kernel too large": ("conv2d", (np.ones((1, 1, 2, 4)), np.ones((1, 1, 3, 3)), np.ones(1), "valid", False)),
    "pool size": ("max_pool2d", (np.ones((1, 1, 4, 4)), 17)),
    "pool larger than the image": ("max_pool2d", (np.ones((1, 1, 4, 4)), 5)),
    "ties": ("max_pool2d_grad", (np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)), None, 2, "last")),
    "arithmetic": ("saliency_seed", (np.ones((1, 2)), np.zeros(1, int), 1.0, "exact")),
    "two channels": ("saliency_end", (np.ones((1, 1, 1, 1)), np.ones((1, 2, 3, 3)), (1, 2, 3, 3), "valid")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_the_same_words(pillar, case):
    name, arguments = REFUSED[case]
    with pytest.raises(ValueError) as on_cpu:
        getattr(cpu, name)(*arguments)
    with pytest.raises(ValueError) as on_device:
        run(pillar, name, *arguments)
    assert str(on_device.value) == str(on_cpu.value)


def test_launches_check_their_arguments(pillar):
    xp, x = pillar.xp, normal((2, 3), np.float32)
    with pytest.raises(TypeError, match="on the device, got ndarray"):
        pillar.relu(x)
    with pytest.raises(TypeError, match="no type float16"):
        run(pillar, "relu", x.astype(np.float16))
    with pytest.raises(TypeError, match="must be float32, got float64"):
        run(pillar, "dense", x, np.ones((3, 2)), np.ones(2, np.float32), False)
    with pytest.raises(TypeError, match="no version for"):
        run(pillar, "cross_entropy", x, x.astype(np.float64), 1.0)
    with pytest.raises(ValueError, match="C-contiguous"):
        pillar.nesterov_step(xp.asarray(x).T, xp.asarray(x).T, xp.asarray(x).T, 0.1, 0.5, 0.0)
    with pytest.raises(TypeError, match="must be uint32, got int32"):
        pillar.advance(xp.asarray(np.zeros(1, np.int32)))
    with pytest.raises(ValueError, match="less than one batch"):
        run(pillar, "gather", x, np.arange(2, dtype=np.int32), 0, 3)


def simulated_cupy(driver=13000, built_for=12090, devices=1):
    class CUDARuntimeError(RuntimeError):
        pass

    def device_count():
        if not devices:
            raise CUDARuntimeError("cudaErrorNoDevice")
        return devices

    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: built_for,
        getDeviceCount=device_count,
        CUDARuntimeError=CUDARuntimeError,
    )
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    cupy.RawModule = lambda **arguments: arguments
    return cupy


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"needs CuPy.*pip install 'cupy-cuda13x\[ctk\]'"),
        (simulated_cupy(driver=0), "no NVIDIA driver is installed here: use device cpu"),
        (simulated_cupy(driver=11080), "knows CUDA up to 11.8 and CuPy is built for CUDA 12: update the driver$"),
        (simulated_cupy(driver=12040, built_for=13000), r"update the driver, or replace CuPy: .*'cupy-cuda12x\[ctk\]'"),
        (simulated_cupy(devices=0), "the driver offers none.*use device cpu"),
    ],
)
def test_what_is_missing_is_said(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(DeviceError, match=message):
        cuda.cupy_pillar()


def test_compiler_errors_point_into_the_source(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", simulated_cupy())
    pillar, folder = cuda.cupy_pillar(), cuda.kernel_folder()
    module = pillar._loader(folder / "relu.cu", cuda.name_expressions("relu.cu"))
    before, source = module["code"].split(f'#line 1 "{(folder / "relu.cu").as_posix()}"\n')
    assert source == (folder / "relu.cu").read_text() and before.startswith("// common.cuh ")
    assert module["name_expressions"] == ("relu<float>", "relu<double>", "relu_grad<float>", "relu_grad<double>")
    assert f"-I{folder.as_posix()}" in module["options"]


@pytest.mark.parametrize("itemsize", [4, 8])
def test_work_fits_into_a_block_for_any_shape(itemsize):
    """What the launches must keep: 48 KiB of shared memory, the threads that a kernel is compiled for, every output in
    some block, and the alignment of vector reads."""
    for channels in (1, 2, 3, 4, 5, 7, 31, 32, 33, 1000):
        for rows in (*range(1, 40), 63, 64, 65, 1000):
            for columns in (*range(1, 40), 63, 64, 65, 1000):
                images, tile_rows, tile_columns, split, chunk, shared = cuda._correlate_tiles(
                    channels, rows, columns, itemsize
                )
                patches = images * tile_rows * tile_columns
                assert shared <= 48 * 1024 and 1 <= split <= min(4, channels) and 4 * patches * split <= 384
                assert split <= chunk <= channels and chunk % split == 0
                block_channels, band_rows, band_columns, g_plane, x_plane, shared = cuda._weight_grad_tiles(
                    channels, rows, columns, itemsize
                )
                assert shared <= 48 * 1024 and block_channels in (1, 2, 4, 8, 16, 32)
                assert band_columns % 4 == 0 and g_plane % 8 == x_plane % 8 == 4
                assert g_plane >= band_rows * band_columns and x_plane >= (band_rows + 2) * (band_columns + 4)


def test_every_source_file_is_in_the_table():
    assert sorted(cuda.KERNELS) == sorted(file.name for file in cuda.kernel_folder().glob("*.cu"))
