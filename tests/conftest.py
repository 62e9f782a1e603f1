"""The fixture `device`: a test that takes it runs on every backend, under an id that holds the backend's name."""

import functools

import pytest

from minicnn import backend
from minicnn.backend import Backend, DeviceError

DEVICES = ("cpu", "cuda_on_cpu", "cuda")


@functools.cache
def open_device(name):
    """The backend of that name; "cuda_on_cpu" runs the CUDA sources without a GPU. Raises DeviceError with the reason
    why this machine has none."""
    if name != "cuda_on_cpu":
        return backend.get(name)
    from minicnn.cuda import Cuda
    from tests.cuda_on_cpu import emulator
    from tests.cuda_on_cpu.device import xp

    reason = emulator.missing()
    if reason:
        raise DeviceError(reason)
    return backend.register(Backend(name, xp, xp.ndarray, Cuda(xp, emulator.load)))


@pytest.fixture(params=DEVICES)
def device(request):
    """A Backend, or a skip with the reason that the machine lacks it."""
    try:
        return open_device(request.param)
    except DeviceError as error:
        pytest.skip(str(error))
