"""The emulator that runs kernels/*.cu on the CPU: right kernels give right results, planted defects are found."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.cuda_on_cpu import device, emulator
from tests.cuda_on_cpu.device import CaptureError, DeviceArray, xp

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))

PLANTED = emulator.HERE / "planted.cu"
TEMPLATES = ("scale<float>", "scale<double>", "row_sums<float>", "row_sums<double>")
PLAIN = (
    "reverse shuffles uneven_history votes reverse_warp drifting_warps divergent_barrier two_barriers two_masks "
    "divergent_shuffle outside_own_mask unwritten last_block count positions static_overrun vectors fields intrinsics"
).split()
SEEDS = range(1, 6)
DTYPES = (np.float32, np.float64)
C_NAMES = {np.float32: "float", np.float64: "double"}


@pytest.fixture(scope="module")
def planted():
    return emulator.load(PLANTED, (*TEMPLATES, *PLAIN)).get_function


@pytest.fixture(scope="module")
def planted_without_barriers():
    return emulator.load(PLANTED, ("reverse", "reverse_warp"), ("-O2", "-DWITHOUT_BARRIER")).get_function


def random(shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def over_seeds(launch, y):
    """The contents of y after launch() under each seed; y is poisoned before every one."""
    results = []
    for seed in SEEDS:
        device.poison(y.values)
        with emulator.seeded(seed):
            launch()
        results.append(y.get())
    return results


# Right kernels


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_template_computes_in_its_type(planted, dtype):
    x, y = xp.asarray(random(1000, dtype)), xp.empty(1000, dtype)
    factor = dtype(1 / 3)
    planted(f"scale<{C_NAMES[dtype]}>")((4,), (256,), (x, y, factor, np.int32(1000)))
    assert np.array_equal(y.get(), x.get() * factor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reduction_has_the_same_bits_under_every_seed(planted, dtype):
    x, y = xp.asarray(random((7, 300), dtype)), xp.empty(7, dtype)
    kernel = planted(f"row_sums<{C_NAMES[dtype]}>")
    args = (x, y, np.int32(300))
    results = over_seeds(lambda: kernel((7,), (96,), args, shared_mem=3 * dtype().itemsize), y)
    assert all(np.array_equal(result, results[0]) for result in results)
    np.testing.assert_allclose(results[0], x.get().sum(axis=1), rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12)


def test_shared_memory_and_its_barrier(planted):
    x, y = xp.asarray(random(256)), xp.empty(256, np.float32)
    for result in over_seeds(lambda: planted("reverse")((1,), (256,), (x, y)), y):
        assert np.array_equal(result, x.get()[::-1])


@pytest.mark.parametrize("width", [32, 16, 8])
def test_shuffles_read_the_lanes_that_cuda_documents(planted, width):
    lanes = np.arange(32)
    x = xp.asarray(lanes.astype(np.int32) + 100)
    results = [xp.empty(32, np.int32) for _ in range(4)]
    planted("shuffles")((1,), (32,), (x, *results, np.int32(width)))
    first = lanes // width * width
    expected = (
        first + 3,
        np.where(lanes - 2 < first, lanes, lanes - 2),
        np.where(lanes + 5 < first + width, lanes + 5, lanes),
        lanes ^ 1,
    )
    for result, source in zip(results, expected, strict=True):
        assert np.array_equal(result.get(), source + 100)


def test_shuffles_between_lanes_that_have_met_before(planted):
    x = xp.asarray(random(32, np.float64))
    for extra in range(4):
        y = xp.empty(32, np.float64)
        planted("uneven_history")((1,), (32,), (x, y, np.int32(5), np.int32(extra)))
        assert np.array_equal(y.get(), x.get()[::-1])


@pytest.mark.parametrize("threads", [32, 20])
def test_votes(planted, threads):
    x = np.arange(threads, dtype=np.int32) % 3
    ballot, some, every = xp.empty(threads, np.uint32), xp.empty(threads, np.int32), xp.empty(threads, np.int32)
    planted("votes")((1,), (threads,), (xp.asarray(x), ballot, some, every))
    assert set(ballot.tolist()) == {sum(1 << lane for lane in range(threads) if x[lane])}
    assert set(some.tolist()) == {1} and set(every.tolist()) == {0}
    planted("votes")((1,), (threads,), (xp.ones(threads, np.int32), ballot, some, every))
    assert set(every.tolist()) == {1}


def test_atomics_of_integers_lose_nothing(planted):
    total, total_unsigned = xp.zeros(1, np.int32), xp.zeros(1, np.uint32)
    planted("count")((3, 2), (40,), (total, total_unsigned))
    assert total.item() == 240 and total_unsigned.item() == 480


def test_positions_of_threads_and_blocks(planted):
    grid, block = (2, 3, 2), (3, 2, 4)
    y = xp.empty((2 * 3 * 2 * 3 * 2 * 4, 12), np.uint32)
    planted("positions")(grid, block, (y,))
    places = [
        (x, y, z)
        for bz in range(2)
        for by in range(3)
        for bx in range(2)
        for z in range(4)
        for y in range(2)
        for x in range(3)
    ]
    assert np.array_equal(y.get()[:, :3], places)
    assert np.array_equal(np.unique(y.get()[:, 3:6], axis=0), sorted(np.ndindex(grid)))
    assert np.all(y.get()[:, 6:] == (*block, *grid))


def test_arguments_are_vectors_bytes_wide_integers_and_booleans(planted):
    x, y = xp.asarray(random((8, 4))), xp.empty((8, 2), np.float64)
    small = xp.asarray(np.arange(8, dtype=np.uint8))
    planted("vectors")((1,), (8,), (x, y, small, np.int64(-(2**40)), np.bool_(True)))
    assert np.array_equal(y.get()[:, 0], x.get()[:, 0] + x.get()[:, 1])
    assert np.all(y.get()[:, 1] == -(2.0**40))
    planted("vectors")((1,), (8,), (x, y, small, np.int64(0), np.bool_(False)))
    assert np.array_equal(y.get()[:, 1], np.arange(8))


FIELDS = np.dtype([("first", np.int32), ("second", np.float64), ("third", np.uint8)], align=True)


def test_struct_is_passed_by_value(planted):
    y, values = xp.empty(3, np.float64), np.array((-7, 1 / 3, 255), FIELDS)
    replay = device.capture(lambda: planted("fields")((1,), (1,), (y, values)))
    values["first"] = 0
    replay()
    assert y.tolist() == [-7, 1 / 3, 255]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.int32(1), "a struct of 24 bytes, got int32"),
        (np.zeros(24, np.uint8), "a struct of 24 bytes, got ndarray"),
        (np.zeros(2, FIELDS), "one struct"),
        (np.zeros((), [(name, FIELDS[name]) for name in FIELDS.names]), "got one of 13"),
    ],
    ids=["scalar", "bytes", "two", "packed"],
)
def test_struct_that_does_not_fit_is_named(planted, wrong, message):
    with pytest.raises(TypeError, match=f"(?s)fields: argument 1 must be .*{message}"):
        planted("fields")((1,), (1,), (xp.empty(3, np.float64), wrong))


def test_intrinsics(planted):
    x = np.array([-2, 0.25, 1 / 3, 3, np.nan, np.inf], np.float32)
    u = np.array([0, 3, 7, 1000, 2**31, 2**32 - 1], np.uint32)
    of_floats, of_integers = xp.empty((5, 6), np.float32), xp.empty((3, 6), np.uint32)
    planted("intrinsics")((1,), (6,), (xp.asarray(x), xp.asarray(u), of_floats, of_integers, np.int32(6)))
    exact = x.astype(np.float64)
    expected = [np.fmax(x, np.float32(0.5)), np.fmin(x, np.float32(0.5)), (exact * exact - 1).astype(np.float32), -x]
    assert np.array_equal(of_floats.get()[:4], expected, equal_nan=True)
    np.testing.assert_allclose(of_floats.get()[4], np.exp(x), rtol=3e-7)
    high = (u.astype(np.uint64) * 0xD2511F53 >> 32).astype(np.uint32)
    assert np.array_equal(of_integers.get(), [high, np.maximum(u, 7), np.minimum(u >> 1, 7)])


def test_fiber_switch_without_assembly_gives_the_same_bits(tmp_path):
    script = (
        "import sys, numpy as np; from tests.cuda_on_cpu import emulator; from tests.cuda_on_cpu.device import xp\n"
        "x, y = xp.asarray(np.arange(640, dtype=np.float32) / 7), xp.empty(2, np.float32)\n"
        "kernel = emulator.load(emulator.HERE / 'planted.cu', ['row_sums<float>']).get_function('row_sums<float>')\n"
        "kernel((2,), (64,), (x, y, np.int32(320)), shared_mem=8); np.save(sys.argv[1], y.get())\n"
    )
    results = []
    for name, setting in (("assembly", ""), ("ucontext", "1")):
        file = tmp_path / f"{name}.npy"
        environment = os.environ | {"CUDA_ON_CPU_UCONTEXT": setting}
        subprocess.run([sys.executable, "-c", script, file], check=True, env=environment, cwd=emulator.HERE.parents[1])
        results.append(np.load(file))
    assert np.array_equal(*results)


# Defects in kernels


def test_syncthreads_missing_gives_wrong_results(planted_without_barriers):
    x, y = xp.asarray(random(256)), xp.empty(256, np.float32)
    results = over_seeds(lambda: planted_without_barriers("reverse")((1,), (256,), (x, y)), y)
    assert not any(np.array_equal(result, x.get()[::-1]) for result in results)


def test_syncwarp_missing_gives_wrong_results(planted_without_barriers):
    x, y = xp.asarray(random(32)), xp.empty(32, np.float32)
    results = over_seeds(lambda: planted_without_barriers("reverse_warp")((1,), (32,), (x, y)), y)
    assert not any(np.array_equal(result, x.get()[::-1]) for result in results)


def test_warps_drift_apart_between_barriers(planted):
    x, y = xp.asarray(random(256)), xp.empty(256, np.float32)
    results = over_seeds(lambda: planted("drifting_warps")((1,), (256,), (x, y)), y)
    assert any(np.isnan(result).any() for result in results)


def test_blocks_run_in_an_order_drawn_from_the_seed(planted):
    winner = xp.zeros(1, np.int32)
    results = over_seeds(lambda: planted("last_block")((50,), (1,), (winner,)), winner)
    assert len({int(result[0]) for result in results}) > 1


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("divergent_barrier", r"57 have ended, 7 wait at __syncthreads \(.*planted.cu:\d+\) \[block 0,0,0\]"),
        ("two_barriers", r"7 wait at __syncthreads .*, 57 wait at __syncthreads|57 wait at .*, 7 wait at"),
        ("divergent_shuffle", r"32 wait at __(syncthreads|shfl_sync) .*, 32 wait at __"),
        ("two_masks", r"32 wait at __shfl_sync .* with mask (0000ffff|ffff0000|ffffffff)"),
        ("outside_own_mask", r"calls __shfl_sync .* with a mask that leaves it out"),
    ],
)
def test_deadlock_is_reported_with_its_lines(planted, name, report):
    y = xp.empty(64, np.float32)
    for seed in SEEDS:
        with emulator.seeded(seed), pytest.raises(RuntimeError, match=f"{name}: .*({report})"):
            planted(name)((1,), (64,), (y,))


def test_deadlock_does_not_disturb_the_next_launch(planted):
    x, y = xp.asarray(random(256)), xp.empty(256, np.float32)
    with pytest.raises(RuntimeError, match="divergent"):
        planted("divergent_barrier")((1,), (256,), (y,))
    planted("reverse")((1,), (256,), (x, y))
    assert np.array_equal(y.get(), x.get()[::-1])


def test_memory_that_a_kernel_has_not_written_is_nan(planted):
    from_static, from_dynamic, from_no_lane = (xp.empty(24, np.float32) for _ in range(3))
    planted("unwritten")((3,), (24,), (from_static, from_dynamic, from_no_lane), shared_mem=96)
    assert np.isnan(from_static.get()).all() and np.isnan(from_dynamic.get()).all()
    assert np.array_equal(np.isnan(from_no_lane.get()), np.arange(24) + 8 >= 24)


def test_shared_memory_is_poisoned_for_every_block(planted):
    x, y, other = xp.asarray(random(64)), xp.empty(64, np.float32), xp.empty(32, np.float32)
    planted("reverse")((1,), (64,), (x, y))
    for _ in range(2):
        planted("unwritten")((2,), (32,), (other, other, other), shared_mem=128)
        planted("static_overrun")((1,), (32,), (y, np.int32(32)))
        assert np.isnan(y.get()[:32]).all()


# Launches


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (2, 2.0),  # CuPy would pass the 8 bytes of a double
        (3, 10),  # and those of a 64-bit integer
        (3, np.int64(10)),
        (3, np.uint32(10)),
        (2, np.float64(2)),
        (2, np.zeros(1, np.float32)),
        (0, np.zeros(10, np.float32)),
        (0, xp.zeros(10, np.float64)),
        (1, xp.zeros(10, np.int32)),
        (1, np.float32(1)),
        (0, xp.zeros((10, 2), np.float32)[:, 0]),
    ],
    ids=str,
)
def test_argument_that_does_not_fit_is_named(planted, position, wrong):
    args = [xp.zeros(10, np.float32), xp.zeros(10, np.float32), np.float32(2), np.int32(10)]
    args[position] = wrong
    with pytest.raises(TypeError, match=f"scale<float>: argument {position} must be"):
        planted("scale<float>")((1,), (10,), tuple(args))


def test_arguments_are_counted(planted):
    with pytest.raises(TypeError, match="takes 2 arguments, got 1"):
        planted("reverse")((1,), (10,), (xp.zeros(10, np.float32),))


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1,), (1025,), r"block.x must be 1 to 1024"),
        ((1,), (64, 32), r"a block of 2048 threads"),
        ((1,), (1, 1, 65), r"block.z must be 1 to 64"),
        ((0,), (32,), r"grid.x must be 1 to"),
        ((1, 65536), (1,), r"grid.y must be 1 to 65535"),
        ((1, 1, 65536), (1,), r"grid.z must be 1 to 65535"),
    ],
)
def test_launch_limits(planted, grid, block, message):
    with pytest.raises(ValueError, match=message):
        planted("last_block")(grid, block, (xp.zeros(1, np.int32),))


def test_launch_bounds_of_a_kernel(planted):
    assert planted("reverse").max_threads_per_block == 256
    with pytest.raises(ValueError, match="a block of 257 threads, at most 256 fit"):
        planted("reverse")((1,), (257,), (xp.zeros(257, np.float32), xp.zeros(257, np.float32)))


def test_launch_extent_is_a_tuple_as_for_cupy(planted):
    with pytest.raises(TypeError, match="grid must be a tuple"):
        planted("last_block")(1, (1,), (xp.zeros(1, np.int32),))


def test_shared_memory_limits(planted):
    kernel = planted("unwritten")
    args = [xp.empty(1, np.float32) for _ in range(3)]
    assert kernel.shared_size_bytes == 128
    kernel((1,), (1,), args, shared_mem=48 * 1024 - 128)
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes"):
        kernel((1,), (1,), args, shared_mem=48 * 1024 - 127)
    with pytest.raises(ValueError, match="must be 0 to 232320"):
        kernel.max_dynamic_shared_size_bytes = 227 * 1024
    kernel.max_dynamic_shared_size_bytes = 100_000
    kernel((1,), (1,), args, shared_mem=100_000)


def test_shared_memory_beyond_a_gpu_is_refused(tmp_path):
    source = tmp_path / "large.cu"
    source.write_text(
        'extern "C" __global__ void large(float *y) { __shared__ float row[12289]; row[0] = 1; y[0] = row[0]; }'
    )
    with pytest.raises(ValueError, match="49156 bytes of static shared memory"):
        emulator.load(source, ["large"])


def test_get_function_of_a_name_that_load_was_not_given(planted):
    with pytest.raises(KeyError, match="planted.cu was loaded without nothing"):
        planted("nothing")


# Building


def test_load_has_compiler_errors_point_into_the_source(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void broken(float *y) {\n    y[0] = undeclared;\n}\n')
    with pytest.raises(RuntimeError, match=r"broken\.cu:2:.*undeclared"):
        emulator.load(source, ["broken"])


def test_load_shows_compiler_warnings(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICNN_SHIM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "careless.cu"
    source.write_text('extern "C" __global__ void careless(float *y) {\n    int unused;\n    y[0] = 1;\n}\n')
    with pytest.warns(UserWarning, match=r"careless\.cu:2:.*unused"):
        emulator.load(source, ["careless"])


def test_load_refuses_an_atomic_on_floats(tmp_path):
    source = tmp_path / "unordered.cu"
    source.write_text('extern "C" __global__ void unordered(float *y) { atomicAdd(y, 1.0f); }')
    with pytest.raises(RuntimeError, match="atomicAdd"):
        emulator.load(source, ["unordered"])


def test_load_builds_again_after_a_change_of_a_header(tmp_path):
    source, header = tmp_path / "main.cu", tmp_path / "part.cuh"
    source.write_text('#include "part.cuh"\nextern "C" __global__ void fill(int *y) { y[0] = value(); }')
    for value in (3, 4):
        header.write_text(f"#pragma once\n__device__ inline int value() {{ return {value}; }}\n")
        y = xp.empty(1, np.int32)
        emulator.load(source, ["fill"]).get_function("fill")((1,), (1,), (y,))
        assert y.item() == value


def test_load_does_not_build_twice(monkeypatch):
    emulator.load(PLANTED, TEMPLATES)
    run_tool = emulator.run_tool

    def only_the_symbol_table(tool, *arguments):
        assert tool == "nm", f"built again: {tool} {arguments}"
        return run_tool(tool, *arguments)

    monkeypatch.setattr(emulator, "run_tool", only_the_symbol_table)
    emulator.load(PLANTED, TEMPLATES)


# Device arrays


def test_device_array_does_not_mix_with_host_arrays():
    a, host = xp.ones(3, np.float32), np.ones(3, np.float32)
    mixtures = (
        lambda: a + host,
        lambda: host * a,
        lambda: np.add(host, a),
        lambda: xp.maximum(a, host),
        lambda: xp.concatenate([a, host]),
        lambda: xp.where(a > 0, a, host),
        lambda: a.__setitem__(slice(None), host),
        lambda: a.dot(host),
        lambda: np.add(a, a, out=host),
        lambda: xp.sum(host),
    )
    for mixture in mixtures:
        with pytest.raises(TypeError, match="host array"):
            mixture()


def test_device_array_comes_back_only_when_asked():
    a = xp.ones(3, np.float32)
    for conversion in (np.asarray, np.array, np.ascontiguousarray, np.testing.assert_array_equal):
        with pytest.raises(TypeError, match="does not turn into a NumPy array"):
            conversion(*[a] * (2 if conversion is np.testing.assert_array_equal else 1))
    assert not isinstance(a, np.ndarray)
    assert type(a.get()) is np.ndarray and type(xp.asnumpy(a)) is np.ndarray


def test_device_array_results_stay_on_the_device():
    a = xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    results = [
        a + 1,
        np.float32(2) * a,
        -a,
        a.sum(),
        a.max(axis=0),
        xp.argmax(a),
        np.exp(a),
        a.T,
        a[0, 0],
        a > 2,
        abs(a),
    ]
    results += [xp.stack([a, a]), xp.where(a > 1, a, 0), a.astype(np.float64), xp.take(a, xp.asarray([0, 1])), a.copy()]
    results += list(a) + [xp.any(a > 1), xp.full(3, 2.0), xp.arange(3), xp.zeros_like(a), xp.sort(a), np.sum(a)]
    assert {type(result) for result in results} == {DeviceArray}
    assert a.sum().shape == () and float(a.sum()) == 15 and int(a.max()) == 5 and bool(a[0, 1] == 1)
    assert np.array_equal((np.float32(2) * a).get(), np.arange(0, 12, 2).reshape(2, 3))


def test_device_array_views_share_memory_and_copies_do_not():
    a = xp.zeros((2, 3), np.float32)
    a[0, 1] = 1
    a[1:][...] = 2
    a.reshape(6)[5] = 3
    a += 1
    assert a.tolist() == [[1, 2, 1], [3, 3, 4]]
    host = np.zeros(3, np.float32)
    on_device = xp.asarray(host)
    on_device[0] = 1
    assert host[0] == 0
    a.get()[...] = 9
    assert a[0, 0].item() == 1
    assert xp.asarray(a) is a and xp.ascontiguousarray(a) is a
    assert xp.ascontiguousarray(a.T).flags.c_contiguous


def test_device_array_without_values_is_poisoned():
    for dtype in DTYPES:
        assert np.isnan(xp.empty((2, 3), dtype).get()).all()
        assert np.isnan(xp.empty_like(xp.ones(3, dtype)).get()).all()
    assert xp.empty(2, np.uint8).tolist() == [0xA5] * 2
    assert xp.empty(2, np.uint32).tolist() == [0xA5A5A5A5] * 2


# Capture


def test_capture_runs_when_replayed_and_on_what_its_arrays_hold_then(planted):
    x, y, z = xp.asarray(random(64)), xp.empty(64, np.float32), xp.empty(64, np.float32)

    def step():
        planted("reverse")((1,), (64,), (x, y))
        planted("scale<float>")((2,), (32,), (y, z, np.float32(3), np.int32(64)))

    replay = device.capture(step)
    assert np.isnan(y.get()).all(), "capture ran a launch"
    for seed in range(3):
        x.set(np.random.default_rng(seed).standard_normal(64).astype(np.float32))
        replay()
        assert np.array_equal(z.get(), x.get()[::-1] * np.float32(3))


def test_capture_through_a_stream_as_with_cupy(planted):
    x, y = xp.asarray(random(64)), xp.empty(64, np.float32)
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        planted("reverse")((1,), (64,), (x, y))
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()
    assert np.array_equal(y.get(), x.get()[::-1])


def test_capture_takes_only_launches():
    a = xp.ones((2, 3), np.float32)
    forbidden = (
        lambda: a + a,
        lambda: np.exp(a),
        lambda: a.sum(),
        lambda: xp.zeros(3),
        lambda: xp.asarray(np.zeros(3)),
        lambda: xp.asnumpy(a),
        lambda: float(a[0, 0]),
        lambda: a.__setitem__(0, 1),
        lambda: a.T.reshape(6),
        lambda: a[[0]],
        lambda: a.set(np.ones((2, 3), np.float32)),
        lambda: device.capture(lambda: None),
    )
    for operation in forbidden:
        with pytest.raises(CaptureError):
            device.capture(operation)
    allowed = [
        lambda: xp.empty((2, 2), np.float32),
        lambda: xp.empty_like(a),
        lambda: a.reshape(3, 2),
        lambda: a[1:],
        lambda: a.T,
    ]
    for operation in allowed:
        device.capture(operation)
    assert (a + a).tolist() == [[2] * 3] * 2, "a failed capture must end"


def test_capture_checks_arguments(planted):
    with pytest.raises(TypeError, match="argument 3"):
        device.capture(
            lambda: planted("scale<float>")(
                (1,), (3,), (xp.empty(3, np.float32), xp.empty(3, np.float32), np.float32(1), 3)
            )
        )


def test_capture_ended_without_begin():
    with pytest.raises(CaptureError, match="without begin_capture"):
        xp.cuda.Stream().end_capture()


def test_missing_says_what_the_emulator_lacks(monkeypatch):
    monkeypatch.setattr(emulator, "COMPILER", "no-such-compiler")
    assert "no-such-compiler was not found, install g++" in emulator.missing()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in emulator.missing()
