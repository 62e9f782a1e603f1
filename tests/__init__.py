"""Every backend by name, for the fixture `device` and for the table of gradient checks."""

import contextlib
import functools
import os
from unittest import mock

# Before anything imports NumPy. The backend functions divide the work themselves; threads of BLAS beside them wait for
# each other, 30 times longer than they compute where something else runs on the machine.
for library in ("OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from minicnn import backend, cpu, kernels_numpy  # noqa: E402
from minicnn.backend import Backend, DeviceError  # noqa: E402

DEVICES = ("cpu", "cuda_on_cpu", "cuda")
IN_NUMPY = "cpu in NumPy"  # the CPU's backend as it is without a C compiler


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


@contextlib.contextmanager
def opened(name):
    """Within this context the backend of that name, one of DEVICES or IN_NUMPY. Raises DeviceError."""
    road = mock.patch.object(cpu, "_kernels", lambda: (kernels_numpy, "numpy"))
    with road if name == IN_NUMPY else contextlib.nullcontext():
        yield open_device("cpu" if name == IN_NUMPY else name)
