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
        """`values` (host or device array, sequence) as an array of this backend, copied only where needed; what is too
        small for dtype is 0. Raises TypeError for what are no real numbers: complex ones, dates, text, objects."""
        values = values if isinstance(values, self.array) and self.xp is not np else to_host(values)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"real numbers are needed, got {values.dtype}")
        with np.errstate(under="ignore"):
            return self.xp.asarray(values, dtype=dtype)


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


def plain(array: Any) -> Any:
    """An array of any backend, one of NumPy's as numpy.ndarray, whose operators are element by element. Raises
    TypeError for what is no array, and for a masked one."""
    if type(array) is np.ndarray or of(array).xp is not np:
        return array
    return to_host(array)


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the values of any backend's array, of a number or of a sequence. Raises TypeError for a masked
    array, whose mask would be lost."""
    for backend in reversed(_backends.values()):
        if isinstance(array, backend.array) and backend.xp is not np:
            return backend.xp.asnumpy(array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask: give array.filled(value)")
    return np.asarray(array)


def is_writable(array: Any) -> bool:
    """Whether an array of any backend may be written to: one of NumPy's may be a mapped file or bytes."""
    return not isinstance(array, np.ndarray) or array.flags.writeable
