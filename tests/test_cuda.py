"""minicnn/cuda.py and kernels/*.cu beyond the values of the operations, which test_ops.py has: the fast kernels against
the naive ones, structs, the launch check, capture, and what is said where a part is missing. Run by the emulator and,
where there is one, by a GPU."""

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minicnn import cuda
from minicnn.backend import DeviceError
from tests import open_device
from tests.cuda_on_cpu import emulator

REAL = pytest.mark.parametrize("dtype", [np.float32, np.float64])
needs_emulator = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture(params=["cuda_on_cpu", "cuda"])
def functions(request):
    try:
        return open_device(request.param).functions
    except DeviceError as error:
        pytest.skip(str(error))


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def noise(functions, *shapes, dtype=np.float32):
    """Different numbers on the device for each shape."""
    return [functions.xp.asarray(normal(shape, dtype, seed)) for seed, shape in enumerate(shapes)]


def assert_close(functions, values, expected):
    """Within 16 roundings of the largest entry."""
    values, expected = functions.xp.asnumpy(values), functions.xp.asnumpy(expected)
    assert values.shape == expected.shape and values.dtype == expected.dtype
    assert np.abs(values - expected).max() <= 16 * np.finfo(values.dtype).eps * np.abs(expected).max()


# The fast convolution kernels against the naive ones

CONVOLUTIONS = [  # x (N, C, H, W), filters; how the tiled kernels divide them
    ((1, 1, 5, 7), 3),  # one channel: threads share the strips of the weight gradient
    ((2, 3, 9, 8), 33),  # one filter more than a block has
    ((3, 35, 6, 7), 2),  # channels in several chunks and two blocks
    ((2, 12, 12, 12), 9),  # channels shared by three groups of threads
    ((2, 1, 41, 70), 2),  # several tiles and bands in both directions
    ((19, 3, 4, 4), 5),  # several images in a block, the last block not full
    ((1, 2, 3, 3), 1),  # a single output
]
each_convolution = pytest.mark.parametrize(("shape", "filters"), CONVOLUTIONS, ids=str)
each_offset = pytest.mark.parametrize("offset", [(0, 0), (1, 1), (2, 0)], ids=["valid", "same", "uneven"])


def size_out(shape, offset):
    return tuple(size - 2 + 2 * before for size, before in zip(shape[2:], offset, strict=True))


@pytest.fixture
def launched(functions, monkeypatch):
    """The names of the kernels that a test launches, in order."""
    names, launch = [], functions._launch
    monkeypatch.setattr(
        functions, "_launch", lambda name, *rest, **options: names.append(name) or launch(name, *rest, **options)
    )
    return names


def naive_correlation(functions, x, w, bias, shape_out, offset, flipped, epilogue):
    """What Cuda._correlate computes, by the naive kernel for any w."""
    y = functions.xp.empty(shape_out, x.dtype)
    fields = cuda._sizes(x.shape, shape_out, w.shape[2:], offset) | {"flipped": flipped, "epilogue": epilogue}
    functions._per_element("correlate", y, x, w, bias, y, fields)
    return y


@REAL
@each_offset
@each_convolution
def test_conv2d_correlate3x3_equals_the_naive_kernel(functions, launched, shape, filters, offset, dtype):
    x, w, b = noise(functions, shape, (filters, shape[1], 3, 3), (filters,), dtype=dtype)
    shape_out = (shape[0], filters, *size_out(shape, offset))
    for bias, relu in ((None, False), (None, True), (b, False), (b, True)):
        y = functions.conv2d(x, w, bias, shape_out[2:], offset, relu)
        epilogue = cuda._BIAS * (bias is not None) + cuda._RELU * relu
        naive = naive_correlation(functions, x, w, b, shape_out, offset, False, epilogue)
        assert_close(functions, y, naive)
    assert launched == ["correlate3x3", "correlate"] * 4


@REAL
@each_offset
@each_convolution
def test_conv2d_input_grad_equals_the_naive_kernel(functions, launched, shape, filters, offset, dtype):
    """By correlate3x3, or for images of one channel by the kernel for them."""
    g, w = noise(functions, (shape[0], filters, *size_out(shape, offset)), (filters, shape[1], 3, 3), dtype=dtype)
    gx = functions.conv2d_input_grad(g, w, shape[2:], offset)
    flipped_offset = [2 - before for before in offset]
    assert_close(functions, gx, naive_correlation(functions, g, w, w, shape, flipped_offset, True, cuda._PLAIN))
    assert launched == ["input_grad_one_channel" if shape[1] == 1 else "correlate3x3", "correlate"]


@pytest.mark.parametrize(
    ("kernel", "offset"),
    [((1, 1), (0, 0)), ((2, 5), (0, 2)), ((5, 4), (0, 0)), ((3, 1), (1, 0)), ((1, 3), (0, 0))],
    ids=str,
)
def test_conv2d_input_grad_of_one_channel_with_any_kernel(functions, launched, kernel, offset):
    shape = 3, 1, 9, 8
    g_shape = 3, 4, *(size + 1 + 2 * o - k for size, o, k in zip(shape[2:], offset, kernel, strict=True))
    g, w = noise(functions, g_shape, (4, 1, *kernel))
    gx = functions.conv2d_input_grad(g, w, shape[2:], offset)
    flipped_offset = [k - 1 - before for k, before in zip(kernel, offset, strict=True)]
    assert_close(functions, gx, naive_correlation(functions, g, w, w, shape, flipped_offset, True, cuda._PLAIN))
    assert launched == ["input_grad_one_channel", "correlate"]


@REAL
@each_offset
@each_convolution
def test_conv2d_weight_grad3x3_equals_the_naive_kernel(functions, launched, shape, filters, offset, dtype):
    x, g = noise(functions, shape, (shape[0], filters, *size_out(shape, offset)), dtype=dtype)
    gw = functions.conv2d_weight_grad(x, g, (3, 3), offset)
    naive = functions.xp.empty((filters, shape[1], 3, 3), dtype)
    fields = cuda._sizes(x.shape, g.shape, (3, 3), offset)
    functions._launch("weight_grad", functions._type(x), (naive.size,), (256,), x, g, naive, fields)
    assert_close(functions, gw, naive)
    assert launched in (["weight_grad3x3", *more, "weight_grad"] for more in ([], ["sum_parts"]))


@pytest.mark.parametrize("itemsize", [4, 8])
def test_conv2d_tiles_fit_into_a_block_for_any_shape(itemsize):
    """What the launches must keep: 48 KiB of shared memory, the threads that a kernel is compiled for, every output in
    some block, and the alignment of vector reads."""
    for channels in (1, 2, 3, 4, 5, 7, 31, 32, 33, 1000):
        for rows in (*range(1, 40), 63, 64, 65, 1000):
            for columns in (*range(1, 40), 63, 64, 65, 1000):
                tiles, shared = cuda._correlate_tiles(channels, rows, columns, itemsize)
                patches = tiles["block_images"] * tiles["patch_rows"] * tiles["patch_columns"]
                split, chunk = tiles["split"], tiles["chunk"]
                assert shared <= 48 * 1024 and 1 <= split <= min(4, channels) and 4 * patches * split <= 384
                assert split <= chunk <= channels and chunk % split == 0
                tiles, shared = cuda._weight_grad_tiles(channels, rows, columns, itemsize)
                assert shared <= 48 * 1024 and tiles["block_channels"] in (1, 2, 4, 8, 16, 32)
                assert tiles["band_columns"] % 4 == 0 and tiles["g_plane"] % 8 == tiles["x_plane"] % 8 == 4
                assert tiles["g_plane"] >= tiles["band_rows"] * tiles["band_columns"]
                assert tiles["x_plane"] >= (tiles["band_rows"] + 2) * (tiles["band_columns"] + 4)


@pytest.mark.parametrize(
    "channels, size, images, rows, columns, split",
    [(32, 24, 1, 4, 12, 1), (32, 26, 1, 7, 13, 1), (32, 10, 2, 5, 5, 1), (64, 12, 1, 6, 6, 2), (64, 8, 2, 4, 4, 2)],
)
def test_conv2d_tiles_of_the_papers_network_are_those_measured(channels, size, images, rows, columns, split):
    """With them the order of every sum is fixed; experiments/results/gpu.md has the measurements."""
    tiles, _ = cuda._correlate_tiles(channels, size, size, 4)
    expected = {"block_images": images, "patch_rows": rows, "patch_columns": columns, "split": split}
    assert expected.items() <= tiles.items()


def test_conv2d_strips_are_as_long_in_the_kernel_as_in_its_launch():
    source = (cuda.kernel_folder() / "conv2d.cu").read_text()
    assert f"constexpr int STRIP = {cuda._STRIP};" in source


# Structs


@pytest.mark.parametrize("struct", cuda.STRUCTS)
def test_struct_has_the_fields_of_the_source(functions, tmp_path, struct):
    """Each number arrives in the field of its name: the source does not compile without one of them, and its
    static_assert refuses one more."""
    source = Path(shutil.copytree(cuda.kernel_folder(), tmp_path / "kernels"), "conv2d.cu")
    names = cuda.STRUCTS[struct].names
    stores = " ".join(f"out[{i}] = s.{name};" for i, name in enumerate(names))
    with source.open("a") as file:
        file.write(f'extern "C" __global__ void fields({struct} s, int *out) {{ {stores} }}\n')
    out = functions.xp.zeros(len(names), np.int32)
    values = functions._structure({name: 7 + i for i, name in enumerate(names)}, struct, "")
    functions._loader(source, ("fields",)).get_function("fields")((1,), (1,), (values, out))
    assert functions.xp.asnumpy(out).tolist() == [7 + i for i in range(len(names))]


def test_struct_is_built_by_the_names_of_its_fields(functions):
    fields = cuda._sizes((1, 2, 3, 4), (1, 5, 6, 7), (8, 9), (10, 11))
    value = functions._structure(dict(reversed(fields.items())), "Convolution", "").view(cuda.STRUCTS["Convolution"])
    assert {name: value[name].item() for name in value.dtype.names} == fields
    assert sorted(fields.values()) == [1, *range(2, 12)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"left": None},
            "weight_grad, argument 3: Convolution has the fields N, C, .* left, got N, C, .* kernel_width$",
        ),
        ({"right": 1}, "weight_grad, argument 3: Convolution has the fields .*, got .*, right$"),
        ({"top": 0.5}, "'float' object cannot be interpreted as an integer"),
        ({"top": np.zeros(2, np.int32)}, "only .* can be converted"),
    ],
    ids=["a field missing", "a field too many", "a fraction", "an array"],
)
def test_struct_with_other_fields_is_refused(functions, change, error):
    x, g, gw = noise(functions, (1, 1, 4, 4), (1, 1, 2, 2), (1, 1, 3, 3))
    fields = cuda._sizes(x.shape, g.shape, (3, 3), (0, 0)) | change
    fields = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(TypeError, match=error):
        functions._launch("weight_grad", "float", (9,), (256,), x, g, gw, fields)


# Launches


def test_launch_checks_its_arguments(functions):
    xp, x = functions.xp, normal((2, 3))
    on_device = xp.asarray(x)
    with pytest.raises(TypeError, match="on the device, got ndarray"):
        functions.relu(x)
    with pytest.raises(TypeError, match="advance, argument 0 must be an array on the device, got ndarray"):
        functions.advance(np.zeros(1, np.uint32))
    with pytest.raises(TypeError, match="no type float16"):
        functions.relu(on_device.astype(np.float16))
    with pytest.raises(TypeError, match="must be float32, got float64"):
        functions.dense(on_device, xp.ones((3, 2)), xp.ones(2, np.float32), False)
    with pytest.raises(TypeError, match="no version for"):
        functions.cross_entropy(on_device, on_device.astype(np.float64), 1.0)
    with pytest.raises(ValueError, match="C-contiguous"):
        functions.nesterov_step(on_device.T, on_device.T, on_device.T, 0.1, 0.5, 0.0)
    with pytest.raises(TypeError, match="must be uint32, got int32"):
        functions.advance(xp.zeros(1, np.int32))


def test_launch_counts_its_arguments(functions):
    x = functions.xp.ones(3, np.float32)
    with pytest.raises(ValueError, match="shorter"):
        functions._launch("relu", "float", (1,), (256,), x, x)


def test_launch_with_an_empty_grid_checks_and_does_nothing(functions):
    xp = functions.xp
    assert functions.relu(xp.zeros((0, 3), np.float32)).shape == (0, 3)
    with pytest.raises(TypeError, match="relu_grad, argument 1 must be float32, got float64"):
        functions.relu_grad(xp.zeros(0, np.float32), xp.zeros(0, np.float64))


def test_launch_for_ten_thousand_images_gives_each_the_bits_that_it_has_in_a_small_batch(functions):
    """How the work is divided depends on the size of an image, not on their number, but for dense layers of more than
    256 inputs."""
    f, few = functions, 50
    x, w, b, v, c = noise(f, (10_000, 1, 4, 5), (2, 1, 3, 3), (2,), (20, 3), (3,))
    for operation in (
        lambda x: f.conv2d(x, w, b, (2, 3), (0, 0), True),
        lambda x: f.conv2d_input_grad(f.conv2d(x, w, None, (2, 3), (0, 0), False), w, (4, 5), (0, 0)),
        lambda x: f.max_pool2d(x, 2)[0],
        lambda x: f.max_pool2d_grad(*f.max_pool2d(x, 2), x.shape, 2),
        lambda x: f.max_pool2d_grad_of_ties(f.max_pool2d(x, 2)[0], x, f.max_pool2d(x, 2)[0], 2),
        lambda x: f.conv2d_max_pool2d(x, w, b, (2, 3), (0, 0), True, 2)[0],
        lambda x: f.dense(x.reshape(-1, 20), v, c, False),
        lambda x: f.softmax(x.reshape(-1, 20), 1.0),
    ):
        assert np.array_equal(f.xp.asnumpy(operation(x)[-few:]), f.xp.asnumpy(operation(x[-few:])))


def test_cross_entropy_of_a_label_out_of_range_is_nan(functions):
    """A kernel cannot raise: training sees the loss."""
    xp = functions.xp
    (z,) = noise(functions, (3, 4))
    labels = xp.asarray(np.array([4, 0, -1], np.int32))
    assert np.isnan(xp.asnumpy(functions.cross_entropy(z, labels, 1.0))).tolist() == [True, False, True]
    gradient = xp.asnumpy(functions.cross_entropy_grad(xp.ones(3, np.float32), z, labels, 1.0))
    assert np.isnan(gradient).all(axis=1).tolist() == [True, False, True]


@REAL
def test_bias_grad_in_parts_is_the_sum(functions, launched, dtype):
    for shape, kernels in (((40, 3, 31, 30), ["bias_grad", "sum_parts"]), ((40, 3, 3, 30), ["bias_grad"])):
        (g,) = noise(functions, shape, dtype=dtype)
        found, terms = functions.xp.asnumpy(functions.bias_grad(g)), functions.xp.asnumpy(g).astype(np.float64)
        error = np.abs(found - terms.sum(axis=(0, 2, 3)))
        assert (error <= 16 * np.finfo(dtype).eps * np.abs(terms).sum(axis=(0, 2, 3))).all()
        assert launched == kernels
        launched.clear()


def test_dropout_keeps_no_mask(functions):
    (x,) = noise(functions, (5, 7))
    y, kept = functions.dropout(x, 0.5, 1, 2, 3)
    again = functions.dropout_grad(x, kept, 0.5, 1, 2, 3)
    assert kept is None and functions.xp.asnumpy(y).tobytes() == functions.xp.asnumpy(again).tobytes()


# Capture


def training_step(functions, dtype):
    """A step of a small network, every kernel of training in it. Returns the step and the arrays that it changes."""
    xp = functions.xp
    f = functions

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
        x, target = f.gather(data, order, step, 6), f.gather(labels, order, step, 6)
        y1 = f.conv2d(x, w1, b1, (10, 11), (0, 0), True)
        y2 = f.conv2d(y1, w2, b2, (10, 11), (1, 1), False)
        pooled = f.max_pool2d(y2, 2)[0]
        rectified = f.relu(pooled)
        flat, kept = f.dropout(rectified.reshape(6, -1), 0.5, 7, 0, step)
        z = f.dense(flat, w3, b3, False)
        f.accumulate(total, f.cross_entropy(z, target, 2.0))
        g = f.cross_entropy_grad(mean, z, target, 2.0)
        grads = [f.bias_grad(g), f.dense_weight_grad(flat, g)]
        g = f.dropout_grad(f.dense_input_grad(g, w3), kept, 0.5, 7, 0, step).reshape(rectified.shape)
        g = f.max_pool2d_grad_of_ties(f.relu_grad(g, rectified), y2, pooled, 2)
        grads += [f.bias_grad(g), f.conv2d_weight_grad(y1, g, (3, 3), (1, 1))]
        g = f.relu_grad(f.conv2d_input_grad(g, w2, (10, 11), (1, 1)), y1)
        grads += [f.bias_grad(g), f.conv2d_weight_grad(x, g, (3, 3), (0, 0))]
        for parameter, velocity, grad in zip(parameters, velocities, reversed(grads), strict=True):
            f.nesterov_step(parameter, velocity, grad, lr, 0.5, 0.01)
        f.advance(step)
        return z

    return take, (*parameters, *velocities, step, total)


def states(functions, step, arrays, count=4):
    """The bytes of result and state after each of some steps."""
    return [[functions.xp.asnumpy(a).tobytes() for a in (step(), *arrays)] for _ in range(count)]


@REAL
def test_capture_of_a_training_step_has_the_bits_of_the_step(functions, dtype):
    step, arrays = training_step(functions, dtype)
    uncaptured = states(functions, step, arrays)
    assert len({state[0] for state in uncaptured}) == len(uncaptured)
    step, arrays = training_step(functions, dtype)
    assert states(functions, functions.capture(step), arrays) == uncaptured


def test_capture_runs_the_function_twice_and_then_only_replays(functions):
    calls, xp = [], functions.xp
    counter = xp.asarray(np.zeros(1, np.uint32))

    def step():
        calls.append(1)
        functions.advance(counter)

    replay = functions.capture(step)
    for count in range(1, 6):
        replay()
        assert xp.asnumpy(counter) == count and len(calls) == min(count, 2)


@needs_emulator
@REAL
def test_training_step_does_not_depend_on_the_order_of_threads_and_blocks(dtype):
    functions, seen = open_device("cuda_on_cpu").functions, []
    for seed in (1, 2, 3):
        with emulator.seeded(seed):
            seen.append(states(functions, *training_step(functions, dtype), count=2))
            g, w = noise(functions, (2, 3, 8, 8), (3, 1, 3, 3), dtype=dtype)
            seen[-1].append(functions.conv2d_input_grad(g, w, (8, 8), (1, 1)).get().tobytes())
    assert seen[0] == seen[1] == seen[2]


# The table of kernels, the loader, and what may be missing


def test_kernels_table_has_every_source_file():
    assert sorted(cuda.KERNELS) == sorted(file.name for file in cuda.kernel_folder().glob("*.cu"))


@needs_emulator
@pytest.mark.parametrize("file", cuda.KERNELS)
def test_kernels_table_says_what_each_kernel_takes(file):
    """By the emulator, whose kernels know their parameters."""
    functions = open_device("cuda_on_cpu").functions
    for kernel, (parameters, instances) in cuda.KERNELS[file].items():
        for arguments in instances:
            names = dict(zip("TL", arguments.split(", "), strict=False))
            for kind, found in zip(parameters, functions._function(kernel, arguments)._parameters, strict=True):
                if kind in cuda.STRUCTS:
                    assert found == (np.dtype(f"V{cuda.STRUCTS[kind].itemsize}"), False), kernel
                else:
                    dtype = {**cuda._ARRAYS, **cuda._SCALARS}.get(kind) or cuda._TYPES[names[kind.upper()]]
                    assert found == (np.dtype(dtype), kind in "TLUIBD"), kernel


def simulated_cupy(driver=13000, built_for=12090, devices=1):
    class CUDARuntimeError(RuntimeError):
        pass

    def device_count():
        if devices is None:
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
        (simulated_cupy(devices=0), "the driver offers none: use device cpu"),
        (simulated_cupy(devices=None), r"the driver offers none \(cudaErrorNoDevice\): use device cpu"),
    ],
    ids=["no CuPy", "no driver", "old driver", "older CuPy would do", "no GPU", "no GPU that may be seen"],
)
def test_open_cuda_says_what_is_missing(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(DeviceError, match=message):
        cuda.open_cuda()


def test_nvrtc_gets_a_source_whose_errors_point_into_the_file():
    for file in sorted(cuda.kernel_folder().glob("*.cu")):
        source, options = cuda.nvrtc_input(file)
        assert source == f'#line 1 "{file.as_posix()}"\n{file.read_text()}' and f"-I{file.parent.as_posix()}" in options


def test_name_expressions_are_all_instances_of_a_file():
    assert cuda.name_expressions("relu.cu") == ("relu<float>", "relu<double>", "relu_grad<float>", "relu_grad<double>")
    assert all(cuda.name_expressions(file) for file in cuda.KERNELS)


def simulated_compiler(compiled, capability="90", version=(13, 0)):
    """CuPy as far as CupyLoader needs it. What is to be compiled is put down in a list, and so is what is loaded."""

    def compile_using_nvrtc(source, options, arch, filename, names):
        compiled.append((source, names))
        return b"binary\nof " + filename.encode(), {name: f"symbol of {name}" for name in names}

    class Module:
        def load(self, binary):
            self.binary = binary

        def get_function(self, symbol):
            return self.binary, symbol

    return types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            compiler=types.SimpleNamespace(compile_using_nvrtc=compile_using_nvrtc),
            nvrtc=types.SimpleNamespace(getVersion=lambda: version),
            Device=lambda: types.SimpleNamespace(compute_capability=capability),
            Module=Module,
        )
    )


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder of kernels that a test may change, and a cache of its own."""
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(cuda.kernel_folder(), tmp_path / "kernels"))


def test_loader_compiles_a_file_once(kernels):
    done = []
    for _ in range(2):
        module = cuda.CupyLoader(simulated_compiler(done))(kernels / "relu.cu", ("relu<float>", "relu<double>"))
        assert module.get_function("relu<double>") == (b"binary\nof relu.cu", "symbol of relu<double>")
    assert done == [(cuda.nvrtc_input(kernels / "relu.cu")[0], ("relu<float>", "relu<double>"))]


def test_loader_compiles_anew_what_is_not_the_same(kernels):
    """Another source, included file, GPU, compiler or kernel."""
    done, file = [], kernels / "relu.cu"

    def compiled_by(count, names=("relu<float>",), **machine):
        cuda.CupyLoader(simulated_compiler(done, **machine))(file, names)
        assert len(done) == count

    compiled_by(1)
    compiled_by(2, names=("relu<double>",))
    compiled_by(3, capability="75")
    compiled_by(4, version=(12, 9))
    for source in (file, kernels / "common.cuh"):
        source.write_text(source.read_text() + "// changed\n")
        compiled_by(5 if source == file else 6)
    compiled_by(6)


@pytest.mark.parametrize("damage", [b"", b"damaged", None], ids=["empty", "other", "cut"])
def test_loader_compiles_anew_what_is_damaged(kernels, tmp_path, damage):
    done = []
    for _ in range(2):
        module = cuda.CupyLoader(simulated_compiler(done))(kernels / "relu.cu", ("relu<float>",))
        assert module.get_function("relu<float>")[0] == b"binary\nof relu.cu"
        (kept,) = (tmp_path / "cache" / "compiled").glob("*.cubin")
        kept.write_bytes(kept.read_bytes()[:-1] if damage is None else damage)
    assert len(done) == 2


def test_loader_says_where_nothing_can_be_kept(kernels, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DeviceError, match="cannot be kept .* set MINICNN_CACHE to another folder"):
        cuda.CupyLoader(simulated_compiler([]))(kernels / "relu.cu", ("relu<float>",))


# Numbers below the smallest normal one


@REAL
def test_kernels_keep_denormal_numbers(functions, dtype):
    """The author's small gradients are such. Every kernel that multiplies, on numbers a thousandth of the smallest
    normal one."""
    tiny = np.finfo(dtype).tiny / 1024
    x, one = functions.xp.asarray(np.full((1, 1, 3, 3), tiny, dtype)), functions.xp.ones((1, 1, 3, 3), dtype)
    rows, ones = x.reshape(3, 3), one.reshape(3, 3)
    no_bias = functions.xp.zeros(3, dtype)
    results = {
        "correlate3x3": functions.conv2d(x, one, None, (1, 1), (0, 0), False),
        "correlate": functions.conv2d(x, one[:, :, :1, :1], None, (3, 3), (0, 0), True),
        "input_grad_one_channel": functions.conv2d_input_grad(x, one[:, :, :1, :1], (3, 3), (0, 0)),
        "weight_grad3x3": functions.conv2d_weight_grad(x, one[:, :, :1, :1], (3, 3), (0, 0)),
        "weight_grad": functions.conv2d_weight_grad(x, one, (1, 1), (0, 0)),
        "dense": functions.dense(rows, ones, no_bias, True),
        "relu": functions.relu(x),
        "relu_grad": functions.relu_grad(x, one),
        "max_pool2d": functions.max_pool2d(x, 3)[0],
        "bias_grad": functions.bias_grad(x),
        "dropout": functions.dropout(x, 0, 1, 2, 3)[0],
    }
    for kernel, values in results.items():
        found, terms = functions.xp.asnumpy(values), 9 // values.size if kernel != "dense" else 3
        assert found.ravel().tolist() == pytest.approx([float(terms * tiny)] * found.size, rel=1e-2), kernel


@REAL
def test_kernels_of_softmax_keep_denormal_numbers(functions, dtype):
    lead = -np.log(np.finfo(dtype).tiny) + 3
    z = functions.xp.asarray(np.array([[lead, 0]], dtype))
    p = functions.xp.asnumpy(functions.softmax(z, 1.0))[0, 1]
    assert 0 < p < np.finfo(dtype).tiny
    g, _ = functions.saliency_cotangent(z, functions.xp.asarray(np.array([0])), 1.0, "plain")
    assert functions.xp.asnumpy(g)[0, 1] == p
