"""A simulated GPU for host code: arrays that behave as CuPy's, an array module `xp`, and the capture of launches.

`xp` answers for NumPy's functions with the rules of a device: host and device arrays do not mix, nothing comes back to
the host unasked, reductions stay on the device as arrays without axes, and memory that nobody wrote holds NaN. There is
one simulated device per process, as there is one current GPU.
"""

import types
from contextlib import nullcontext

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

POISON_BYTE = 0xA5  # of memory that holds integers; floating-point memory is poisoned with NaN
VIEWS = ("ravel", "reshape", "squeeze", "swapaxes", "transpose", "view")


class CaptureError(RuntimeError):
    """A step could not be captured; the message names what in it is no kernel launch."""


_captured = None  # the launches of the step that is being captured


class Graph:
    """The launches of a captured step, their arguments held by reference."""

    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream=None):
        _forbid_in_capture("a graph launch")
        for launch in self.launches:
            launch()


def begin_capture():
    """From now on record launches and do not run them. As on a GPU, allocations and views of arrays are still allowed;
    whatever else would touch device memory raises CaptureError."""
    global _captured
    _forbid_in_capture("a second capture")
    _captured = []


def end_capture():
    """The recorded launches as a Graph."""
    global _captured
    if _captured is None:
        raise CaptureError("end_capture without begin_capture")
    graph, _captured = Graph(_captured), None
    return graph


def capture(function):
    """Record what function() launches. Returns a callable that runs these launches, again at every call."""
    begin_capture()
    try:
        function()
    finally:
        graph = end_capture()
    return graph.launch


def submit(launch):
    """Run launch(), or record it where a step is being captured."""
    if _captured is None:
        launch()
    else:
        _captured.append(launch)


def _forbid_in_capture(what):
    if _captured is not None:
        raise CaptureError(f"{what} inside a captured step: only kernel launches can be captured")


def _opened(argument, what):
    """An argument of a device operation as NumPy takes it: device arrays opened, host arrays rejected."""
    if isinstance(argument, DeviceArray):
        return argument.values
    if isinstance(argument, np.ndarray):
        raise TypeError(f"{what} got a host array: move it to the device with xp.asarray first")
    if isinstance(argument, tuple | list):
        return type(argument)(_opened(item, what) for item in argument)
    return argument


def _placed(result):
    """What NumPy returned as a device returns it: arrays, and their scalars, as device arrays."""
    if isinstance(result, np.ndarray | np.generic):
        return DeviceArray(np.asarray(result))
    if isinstance(result, tuple | list):
        return type(result)(_placed(item) for item in result)
    return result


def _flushed(values):
    """float32 as CuPy's element-by-element operations see it: what is below 1.2e-38 is 0. Anything else as it is."""
    if getattr(values, "dtype", None) != np.float32:
        return values
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values) if tiny.any() else values


def _on_device(function, what):
    """A function of NumPy arrays as a function of device arrays."""

    def call(*args, **kwargs):
        _forbid_in_capture(what)
        return _placed(function(*_opened(args, what), **{name: _opened(value, what) for name, value in kwargs.items()}))

    return call


class DeviceArray(NDArrayOperatorsMixin):
    """An array in simulated device memory, with NumPy's attributes and methods. Like CuPy's it is no numpy.ndarray:
    numpy.asarray(x) raises TypeError, x.get() copies to the host."""

    __hash__ = None

    def __init__(self, values, base=None):
        self.values, self.base = values, base

    def __getattr__(self, name):
        if name.startswith("__"):  # through __array_interface__ NumPy would read device memory unasked
            raise AttributeError(name)
        attribute = getattr(self.values, name)
        if name in VIEWS:
            return lambda *args, **kwargs: self._view(attribute(*args, **kwargs), name)
        if callable(attribute):
            return _on_device(attribute, name)
        return _placed(attribute) if isinstance(attribute, np.ndarray) else attribute

    def _view(self, values, what):
        if values.size and not np.may_share_memory(values, self.values):
            _forbid_in_capture(f"a copy by {what}")
            return DeviceArray(values)
        return DeviceArray(values, self if self.base is None else self.base)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        function = getattr(ufunc, method)
        flushed = _on_device(lambda *given, **how: _flushed(function(*map(_flushed, given), **how)), ufunc.__name__)
        result, out = flushed(*inputs, **kwargs), kwargs.get("out")
        return result if out is None else out[0]

    def __array_function__(self, function, _types, args, kwargs):
        return _on_device(function, function.__name__)(*args, **kwargs)

    def __array__(self, *_args, **_kwargs):
        raise TypeError("a device array does not turn into a NumPy array by itself: use x.get() or xp.asnumpy(x)")

    def get(self):
        """A copy on the host."""
        _forbid_in_capture("a copy to the host")
        return self.values.copy()

    def set(self, values):
        """Overwrite with a host array of the same shape and dtype."""
        _forbid_in_capture("a copy from the host")
        if (values.shape, values.dtype) != (self.shape, self.dtype):
            raise ValueError(f"set needs {self.dtype} {self.shape}, got {values.dtype} {values.shape}")
        self.values[...] = values

    def __getitem__(self, index):
        index = _opened_index(index)
        if not any(part is Ellipsis for part in index):
            index += (Ellipsis,)  # one element is a view without axes, too
        return self._view(self.values[index], "indexing")

    def __setitem__(self, index, value):
        _forbid_in_capture("an assignment")
        self.values[_opened_index(index)] = _opened(value, "an assignment")

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def item(self, *index):
        return self.get().item(*index)

    def tolist(self):
        return self.get().tolist()

    def __repr__(self):
        return f"DeviceArray({self.values!r})"


def _opened_index(index):
    """Index arrays may be on the host, as in CuPy, which copies them."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(part.values if isinstance(part, DeviceArray) else part for part in parts)


def poison(values):
    """Fill a host array as memory that nobody has written: NaN, or bytes of 0xA5. Returns it."""
    if values.dtype.kind in "fc":
        values.fill(np.nan)
    elif values.size:
        values.fill(np.frombuffer(bytes([POISON_BYTE]) * values.itemsize, values.dtype)[0])
    return values


class _Stream:
    """cupy.cuda.Stream: work is done when it is submitted, so there is nothing to wait for."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def begin_capture(self, mode=None):
        begin_capture()

    def end_capture(self):
        return end_capture()

    def synchronize(self):
        _forbid_in_capture("a synchronisation")


class _MemoryPool:
    """cupy.cuda.MemoryPool, as far as it is passed around: memory here is NumPy's."""

    malloc = None


class _ArrayModule:
    """The module `cupy`, as far as an engine needs it: NumPy's functions under the rules of a device."""

    ndarray = DeviceArray
    cuda = types.SimpleNamespace(
        Stream=_Stream,
        MemoryPool=_MemoryPool,
        get_current_stream=_Stream,
        using_allocator=lambda allocator=None: nullcontext(),
    )

    def __getattr__(self, name):
        attribute = getattr(np, name)
        if isinstance(attribute, types.ModuleType):
            raise AttributeError(f"xp.{name} is not simulated")
        if isinstance(attribute, type) or not callable(attribute):
            return attribute
        return _on_device(attribute, f"xp.{name}")

    @staticmethod
    def array(values, dtype=None):
        """A new device array with the values of a host array, a device array or a sequence."""
        _forbid_in_capture("xp.array")
        return DeviceArray(np.array(values.values if isinstance(values, DeviceArray) else values, dtype, order="C"))

    def asarray(self, values, dtype=None):
        """`values` on the device, the same array if it is there with that dtype already."""
        if isinstance(values, DeviceArray) and (dtype is None or values.dtype == dtype):
            return values
        return self.array(values, dtype)

    def ascontiguousarray(self, values, dtype=None):
        values = self.asarray(values, dtype)
        return values if values.flags.c_contiguous else self.array(values)

    @staticmethod
    def asnumpy(values):
        """A copy on the host."""
        return values.get() if isinstance(values, DeviceArray) else np.asarray(values)

    @staticmethod
    def empty(shape, dtype=float):
        return DeviceArray(poison(np.empty(shape, dtype)))

    @staticmethod
    def empty_like(array, dtype=None, shape=None):
        return DeviceArray(poison(np.empty_like(_opened(array, "xp.empty_like"), dtype, shape=shape)))


xp = _ArrayModule()
