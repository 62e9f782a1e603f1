"""The backends: the same names with the same signatures, arrays to the device and back, and the backend functions that
no operation wraps, which serve training and attacks."""

import inspect

import numpy as np
import pytest

from minicnn import backend, cpu
from minicnn.backend import DeviceError, to_host
from minicnn.cuda import Cuda

CPU_ONLY = {"convolutions", "flushes_denormals", "over_rows", "set_threads", "threads"}
CPU_ONLY |= {
    "pack_moved",
    "conv2d_moved",
    "max_pool2d_moved",
}  # elsewhere one_pixel.py takes whole passes
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def public(holder):
    return {n: f for n, f in inspect.getmembers(holder, inspect.isfunction) if not n.startswith("_")}


def test_backends_hold_the_same_names_and_signatures():
    on_cpu = {n: f for n, f in public(cpu).items() if n not in CPU_ONLY}
    on_cuda = public(Cuda)
    assert set(on_cpu) == set(on_cuda) and {"conv2d", "max_pool2d_grad", "saliency_cotangent"} < set(on_cpu)
    for name, function in on_cpu.items():
        parameters = list(inspect.signature(on_cuda[name]).parameters)
        assert parameters[0] == "self" and parameters[1:] == list(inspect.signature(function).parameters), name
    assert cpu.CHUNK > 0 and Cuda.CHUNK > 0


def test_backend_of_an_unknown_device_and_of_no_array():
    with pytest.raises(DeviceError, match="unknown device 'tpu': choose cpu or cuda"):
        backend.get("tpu")
    with pytest.raises(TypeError, match="expected an array of one of cpu.*, got list"):
        backend.of([1.0])


def test_backend_moves_arrays_to_the_device_and_back(device):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = device.asarray(values)
    assert backend.of(there).name == device.name
    np.testing.assert_array_equal(to_host(there), values)
    assert device.asarray(values, dtype=np.float64).dtype == np.float64
    assert device.asarray(there) is there
    assert to_host([1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize(
    "values",
    [np.ones(2, complex), [1j], np.array(["2020-01-01"], "M8[D]"), np.ones(2, "m8[s]"), ["1"], [b"1"], [None], None],
    ids=str,
)
def test_backend_refuses_what_are_no_real_numbers(device, values):
    """NumPy would drop an imaginary part, count days, read text."""
    with pytest.raises(TypeError, match="^real numbers are needed, got "):
        device.asarray(values, dtype=np.float32)


def test_backend_refuses_masked_arrays(device):
    for call in (device.asarray, to_host):
        with pytest.raises(TypeError, match=r"^a masked array would lose its mask: give array.filled\(value\)$"):
            call(np.ma.array([1.0, 2.0], mask=[False, True]))


def test_backend_makes_too_small_numbers_zero_whatever_numpy_is_told(device):
    with np.errstate(all="raise"):
        assert not to_host(device.asarray([1e-60, 1e-300], dtype=np.float32)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(11,), (11, 3), (11, 1, 5, 7)], ids=str)
def test_gather_and_advance(device, shape, dtype):
    """Batches of 4 of 11 rows: two a pass, the last three places of the permutation are never reached."""
    rng = np.random.default_rng(0)
    data, permutation = rng.integers(0, 1000, shape).astype(dtype), rng.permutation(11).astype(np.int32)
    on_device, order = device.asarray(data), device.asarray(permutation)
    counter = device.asarray(np.array([0], np.uint32))
    for step in range(5):
        first = step % 2 * 4
        for where in (step, counter):
            rows = to_host(device.functions.gather(on_device, order, where, 4))
            assert rows.dtype == dtype and np.array_equal(rows, data[permutation[first : first + 4]])
        device.functions.advance(counter)
    assert to_host(counter).tolist() == [5] and counter.dtype == np.uint32


def test_gather_of_less_than_one_batch_is_refused(device):
    data, order = device.asarray(np.ones((2, 3))), device.asarray(np.arange(2, dtype=np.int32))
    with pytest.raises(ValueError, match="2 samples are less than one batch of 3"):
        device.functions.gather(data, order, 0, 3)


@both_dtypes
@pytest.mark.parametrize("count", [0, 1, 255, 10000])
def test_accumulate_in_float64(device, dtype, count):
    """2^24 + 1 is no float32: a sum in float32 would lose the ones."""
    total = device.asarray(np.array([0.5]))
    values = device.asarray(np.array([2.0**24] + [1.0] * count, dtype)[:count])
    expected = 2.0**24 + count - 1 if count else 0
    device.functions.accumulate(total, values)
    device.functions.accumulate(total, values)
    assert to_host(total).tolist() == [2 * expected + 0.5]


@both_dtypes
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5), (1, 1, 1, 1), (0, 3), (10000, 2, 2, 3)], ids=str)
def test_bias_grad(device, shape, dtype):
    g = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = np.swapaxes(g, 0, 1).reshape(shape[1], -1).sum(1, np.float64)
    found = to_host(device.functions.bias_grad(device.asarray(g)))
    assert found.dtype == dtype and found.shape == expected.shape
    assert np.abs(found - expected).max() <= 16 * np.finfo(dtype).eps * np.abs(expected).max()


@both_dtypes
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (3, 5, 3, 3), (1000,), (0,)], ids=str)
def test_nesterov_step(device, shape, on_device, dtype):
    """Lasagne's apply_nesterov_momentum, in float64, over two steps."""
    lr, momentum, l2 = 0.1, 0.5, 0.01
    w, v, *gradients = np.random.default_rng(0).normal(size=(4, *shape)).astype(dtype)
    moved, velocity = device.asarray(w.copy()), device.asarray(v.copy())
    for g in gradients:
        rate = device.asarray(np.array([lr], dtype)) if on_device else lr
        device.functions.nesterov_step(moved, velocity, device.asarray(g), rate, momentum, l2)
        change = lr * (g.astype(np.float64) + 2 * l2 * w)
        v = momentum * v - change
        w = w + momentum * v - change
    for found, expected in ((moved, w), (velocity, v)):
        assert found.dtype == dtype
        error = np.abs(to_host(found) - expected).max(initial=0)
        assert error <= 16 * np.finfo(dtype).eps * np.abs(expected).max(initial=0)


def test_capture_repeats_the_step(device):
    counter = device.asarray(np.zeros(1, np.uint32))
    step = device.functions.capture(lambda: device.functions.advance(counter))
    for _ in range(3):
        step()
    assert to_host(counter).tolist() == [3]
