"""Which array module, which backend functions, to the device and back.

A backend is a name, an array module, its array type and its functions: those of cpu.py or of cuda.py. An array tells by
its type where it lives, so no operation branches on the device. Tests register a third backend that runs the CUDA
sources on the CPU.
"""

from typing import Any, NamedTuple

import numpy as np

from minicnn import cpu
from minicnn.cuda import DeviceError, open_cuda


class Backend(NamedTuple):
    name: str
    xp: Any
    array: type
    functions: Any

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        """`values` (host or device array, sequence) as an array of this backend, copied only where needed."""
        return self.xp.asarray(to_host(values) if not isinstance(values, self.array) else values, dtype=dtype)


_backends = {"cpu": Backend("cpu", np, np.ndarray, cpu)}


def register(backend: Backend) -> Backend:
    """Make a backend known to `get` and `of`."""
    _backends[backend.name] = backend
    return backend


def get(name: str) -> Backend:
    """The backend "cpu" or "cuda". Raises DeviceError for another name, or where CuPy, a GPU or a driver is missing."""
    if name == "cuda" and name not in _backends:
        functions = open_cuda()
        return register(Backend("cuda", functions.xp, functions.xp.ndarray, functions))
    if name not in _backends:
        raise DeviceError(f"unknown device {name!r}: choose cpu or cuda")
    return _backends[name]


def of(array: Any) -> Backend:
    """The backend that an array lives on; the most specific type wins. Raises TypeError for what is no array."""
    for backend in reversed(_backends.values()):
        if isinstance(array, backend.array):
            return backend
    kind = type(array)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    raise TypeError(f"expected an array of one of {', '.join(_backends)}, got {name}")


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the values of any backend's array, of a number or of a sequence."""
    for backend in reversed(_backends.values()):
        if isinstance(array, backend.array):
            return np.asarray(array) if backend.xp is np else backend.xp.asnumpy(array)
    return np.asarray(array)
