"""The pillars hold the same names with the same signatures, and what is built on them gives the same on each."""

import inspect

import numpy as np
import pytest

from minicnn import backend, cpu
from minicnn.attacks import ALGORITHMS, Setting, attack
from minicnn.backend import DeviceError
from minicnn.cuda import Cuda
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.networks import predict

CPU_ONLY = {"philox", "set_threads", "threads", "pad_before", "output_size"}


def public(holder):
    return {n: f for n, f in inspect.getmembers(holder, inspect.isfunction) if not n.startswith("_")}


def test_the_pillars_hold_the_same_names_and_signatures():
    on_cpu = {n: f for n, f in public(cpu).items() if f.__module__ == cpu.__name__ and n not in CPU_ONLY}
    on_cuda = public(Cuda)
    assert set(on_cpu) == set(on_cuda)
    for name, function in on_cpu.items():
        parameters = list(inspect.signature(on_cuda[name]).parameters)
        assert parameters[0] == "self" and parameters[1:] == list(inspect.signature(function).parameters), name


def test_unknown_device_and_no_array():
    with pytest.raises(DeviceError, match="unknown device 'tpu': choose cpu or cuda"):
        backend.get("tpu")
    with pytest.raises(TypeError, match="expected an array of one of cpu.*, got list"):
        backend.of([1.0])


def test_arrays_go_to_the_device_and_back(device):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = device.asarray(values)
    assert backend.of(there).name == device.name
    np.testing.assert_array_equal(backend.to_host(there), values)
    assert device.asarray(values, dtype=np.float64).dtype == np.float64
    assert device.asarray(there) is there


def test_take_images_copies_a_window(device):
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 7))
    chosen = np.array([4, 0, 4])
    window = device.asarray(x)[:, :, 1:4, 2:6]
    taken = device.kernels.take_images(window, device.asarray(chosen))
    np.testing.assert_array_equal(backend.to_host(taken), x[chosen, :, 1:4, 2:6])
    taken[...] = 0
    np.testing.assert_array_equal(backend.to_host(window), x[:, :, 1:4, 2:6])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_an_attack_makes_the_same_moves_on_every_device(device, algorithm):
    rng = np.random.default_rng(3)
    shared = {"rng": rng, "dtype": np.float64}
    network = Sequential(
        conv=Conv2D(1, 3, 3, **shared),
        pool=MaxPool2D(2),
        flatten=Flatten(),
        dense=Dense(12, 4, **shared),
    )
    images = rng.uniform(size=(3, 1, 6, 6))
    labels = predict(network, images).argmax(axis=1)
    here = attack(network, images, labels, algorithm, Setting(limit=4))
    there = attack(network.to(device.name), images, labels, algorithm, Setting(limit=4))
    assert here.moves.sum() > 0
    for field, values in vars(here).items():
        np.testing.assert_array_equal(getattr(there, field), values, err_msg=field)
