"""Reverse-mode automatic differentiation: Tensor, the `op` decorator, backward.

An operation is a function on raw arrays that returns its value and one pullback for each leading differentiable
argument. A pullback maps the cotangent of the value to the cotangent of its argument; only those that are needed are
called. First order only.
"""

from __future__ import annotations

import collections
import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ParamSpec

import numpy as np

from minicnn import backend

Array = Any  # of any backend
Pullback = Callable[[Array], Array]
ValueAndPullbacks = tuple[Any, ...]  # what an operation on arrays returns, see op
Axis = int | tuple[int, ...] | None
P = ParamSpec("P")

_this_thread = threading.local()


@dataclass(frozen=True)
class ReluGradient:
    """What an operation that ends in ReLU gives as shared: mask(g), which is 0 where `value`, an array of g's shape, is
    0 or below, then rest(g). Where one pullback alone gives the cotangent g, and is a MaskedPullback, the mask is left
    to it."""

    value: Array
    mask: Pullback
    rest: Pullback | None = None

    def __call__(self, g: Array) -> Array:
        g = self.mask(g)
        return self.rest(g) if self.rest else g


@dataclass(frozen=True)
class MaskedPullback:
    """A pullback that can do the gradient of the ReLU before it, too: function(g, mask) is 0 where the mask, an array
    like the argument or None, is 0 or below."""

    function: Callable[[Array, Array | None], Array]

    def __call__(self, g: Array) -> Array:
        return self.function(g, None)


class no_grad:
    """Within this context operations of this thread keep no graph: for evaluation.

    >>> w = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     (w * 2).requires_grad
    False
    """

    def __enter__(self) -> None:
        _this_thread.without_graph = _without_graph() + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _this_thread.without_graph = _without_graph() - 1


def _without_graph() -> int:
    """How many no_grad contexts this thread is in; a count, so that they may be left in any order."""
    return getattr(_this_thread, "without_graph", 0)


def op(function: Callable[P, ValueAndPullbacks]) -> Callable[P, Tensor]:
    """Turn a function on arrays into a differentiable operation on Tensors.

    function(*arrays, **options) returns (value, pullbacks), or (value, pullbacks, shared), where shared(g) is the step
    of the backward pass that all its pullbacks begin with; it may be a ReluGradient. Arguments that are no Tensor are
    constants, which must not change before backward: only Tensors have a version that tells.

    Raises TypeError where Tensors of different dtype or backend meet, where the value has another dtype, where a
    Tensor that requires a gradient has no pullback, or None, for a Tensor by keyword, for a value that is no array, and
    for pullbacks that are no tuple. Numbers too small for a float become 0 whatever np.seterr says, in the pullbacks
    too. In type hints arrays are Any, for callers give Tensors.

    >>> @op
    ... def square(x):
    ...     return x * x, (lambda g: 2 * x * g,)
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> square(x).sum().backward()
    >>> x.grad
    array([2., 4.])
    """

    @functools.wraps(function)
    def apply(*args: P.args, **options: P.kwargs) -> Tensor:
        if named := [name for name, a in options.items() if isinstance(a, Tensor)]:
            raise TypeError(f"{function.__name__}: pass the Tensor {named[0]} by position, options are constants")
        tensors = [a for a in args if isinstance(a, Tensor)]
        kinds = [(backend.of(t.data).name, t.data.dtype) for t in tensors]
        if any(kind != kinds[0] for kind in kinds):
            found = sorted({(name, dtype.name) for name, dtype in kinds})
            raise TypeError(f"{function.__name__}: arguments differ in device or dtype: {found}")
        arrays: Any = (a.data if isinstance(a, Tensor) else a for a in args)
        with np.errstate(under="ignore"):
            result = function(*arrays, **options)
        if not isinstance(result, tuple) or len(result) < 2:
            raise TypeError(f"{function.__name__} must return (value, pullbacks)")
        value, pullbacks, *shared = result
        if not isinstance(pullbacks, tuple):
            raise TypeError(f"{function.__name__}: its pullbacks must be a tuple, (pullback,) with a comma for one")
        if isinstance(value, Tensor) or not hasattr(value, "dtype"):
            raise TypeError(f"{function.__name__}: its value must be an array, got {type(value).__name__}")
        if tensors and value.dtype != tensors[0].dtype:
            raise TypeError(
                f"{function.__name__}: a constant, or the function itself, turns {tensors[0].dtype} into "
                f"{value.dtype}: give constants the Tensors' dtype"
            )
        needed = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        for i in needed:
            if i >= len(pullbacks) or pullbacks[i] is None:
                raise TypeError(f"{function.__name__} has no gradient by argument {i}")
        edges: Any = [(args[i], pullbacks[i]) for i in needed]
        if _without_graph() or not edges:
            return Tensor(value)
        versions = [(t.shape, t.memory, t.version) for t in tensors]
        return Tensor(value, edges=edges, shared=shared[0] if shared else None, versions=versions)

    return apply


def _unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum a cotangent over the axes along which an argument of `shape` was broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1), keepdims=True)


def _shape(a: Any) -> tuple[int, ...]:
    return getattr(a, "shape", ())


def _matrix(b: Any, like: Array) -> Array:
    """A list of lists as an array of the same backend and dtype; an array as it is."""
    return backend.of(like).asarray(b, dtype=like.dtype) if isinstance(b, (list, tuple)) else b


def _matmul(a: Array, b: Array) -> ValueAndPullbacks:
    """a @ b for every rank that NumPy takes, (..., N, D) @ (..., D, U); a vector is a row on the left, a column on the
    right."""
    rows, columns = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b

    def as_matrix(g: Array) -> Array:
        g = g[..., None] if b.ndim == 1 else g
        return g[..., None, :] if a.ndim == 1 else g

    return a @ b, (
        lambda g: _unbroadcast(as_matrix(g) @ columns.swapaxes(-1, -2), rows.shape).reshape(a.shape),
        lambda g: _unbroadcast(rows.swapaxes(-1, -2) @ as_matrix(g), columns.shape).reshape(b.shape),
    )


class _Memory:
    """What Tensors of one array and of its views share: how often it was changed. It holds an array, so that while it
    is there no other memory has its address."""

    def __init__(self, array: Array) -> None:
        self.array, self.version = array, 0

    def __reduce__(self):
        return _memory_of, (self.array,), {"version": self.version}


_memories: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()  # by the id of the owner


def _memory_of(array: Array) -> _Memory:
    owner = id(_owner(array))
    return _memories.get(owner) or _memories.setdefault(owner, _Memory(array))


def _owner(array: Array) -> Any:
    """What holds the memory that an array is a view of, or the array itself."""
    while (base := getattr(array, "base", None)) is not None:
        array = base
    return array


class Tensor:
    """An array of float32 or float64, with the operation that made it.

    data: the array itself, on any backend, and no copy: Tensors of one array or of its views (`t[0:2]`, reshape, T)
    share its memory and its version. Comparisons are made on it, as in `t.data > 0`. requires_grad: a leaf
    whose gradient is wanted. grad: after backward(), on such leaves alone, an array like data, and no one else's; it
    adds up over calls until set to None. version: how often data was changed in place, by an optimiser, by set_weights,
    or by `t.data -= change`; whoever does it otherwise, as in `t.data[0] = 1`, adds 1. Raises TypeError for other
    dtypes, for what is no array, and for a masked one.

    >>> a, b = Tensor([[1.0, 2.0]], requires_grad=True), Tensor([[3.0], [4.0]])
    >>> (a @ b).backward()
    >>> a.grad
    array([[3., 4.]])
    """

    __slots__ = ("_data", "memory", "grad", "requires_grad", "edges", "shared", "versions")
    __array_ufunc__ = None  # lets `array * tensor` reach __rmul__

    def __init__(
        self,
        data: Any,
        requires_grad: bool = False,
        edges: Sequence[tuple[Tensor, Pullback]] = (),
        shared: Pullback | None = None,
        versions: Sequence[tuple[tuple[int, ...], _Memory, int]] = (),
    ) -> None:
        if isinstance(data, (int, float, list, tuple, np.generic)):
            data = np.asarray(data, getattr(data, "dtype", np.float64))
        self._hold(data)
        self.edges, self.shared = edges, shared
        self.versions = [*versions, (self.shape, self.memory, self.version)] if edges else versions
        self.grad: Array = None
        self.requires_grad = requires_grad or bool(edges)

    def _hold(self, data: Array) -> None:
        data = backend.plain(data)
        if data.dtype not in (np.float32, np.float64):
            raise TypeError(f"a Tensor holds float32 or float64, got {data.dtype}")
        self._data, self.memory = data, _memory_of(data)

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, data: Array) -> None:
        if data is self._data:  # as after `t.data -= change`
            self.version += 1
        else:  # a graph keeps an array that is replaced
            self._hold(data)

    @property
    def version(self) -> int:
        return self.memory.version

    @version.setter
    def version(self, version: int) -> None:
        self.memory.version = version

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def __float__(self) -> float:
        return float(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        raise TypeError("Tensors are compared by their arrays, as in `t.data == 0`")

    __hash__ = object.__hash__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What NumPy makes of a Tensor, or of a list of them. Raises TypeError where the gradient would be lost."""
        if self.requires_grad:
            raise TypeError("as a NumPy array this Tensor would lose its gradient: take its .data if that is meant")
        return np.array(backend.to_host(self.data), dtype=dtype, copy=copy)

    @op
    def __add__(a: Array, b: Any) -> ValueAndPullbacks:
        return a + b, (lambda g: _unbroadcast(g, a.shape), lambda g: _unbroadcast(g, _shape(b)))

    @op
    def __sub__(a: Array, b: Any) -> ValueAndPullbacks:
        return a - b, (lambda g: _unbroadcast(g, a.shape), lambda g: _unbroadcast(-g, _shape(b)))

    @op
    def __rsub__(a: Array, b: Any) -> ValueAndPullbacks:
        return b - a, (lambda g: _unbroadcast(-g, a.shape),)

    @op
    def __mul__(a: Array, b: Any) -> ValueAndPullbacks:
        return a * b, (lambda g: _unbroadcast(g * b, a.shape), lambda g: _unbroadcast(g * a, _shape(b)))

    @op
    def __truediv__(a: Array, b: Any) -> ValueAndPullbacks:
        y = a / b  # b * b would overflow for b that are large, and be 0 for small ones
        return y, (lambda g: _unbroadcast(g / b, a.shape), lambda g: _unbroadcast(-g * (y / b), _shape(b)))

    @op
    def __rtruediv__(a: Array, b: Any) -> ValueAndPullbacks:
        y = b / a
        return y, (lambda g: _unbroadcast(-g * (y / a), a.shape),)

    @op
    def __neg__(a: Array) -> ValueAndPullbacks:
        return -a, (lambda g: -g,)

    @op
    def __pow__(a: Array, exponent: Any) -> ValueAndPullbacks:
        """Power with a constant exponent, a number or an array. Where that is 0 the gradient is 0, of 0 ** 0 too."""

        xp = backend.of(a).xp
        if isinstance(exponent, (list, tuple)) or getattr(exponent, "dtype", a.dtype).kind in "iub":
            # Of its own type 1 less than the smallest integer would be the largest.
            on_host = isinstance(exponent, (np.ndarray, np.generic)) and not exponent.ndim
            exponent = int(exponent) if on_host else backend.of(a).asarray(exponent, dtype=a.dtype)

        def pullback(g):
            if not _shape(exponent):
                return g * exponent * a ** (exponent - 1) if exponent else xp.zeros_like(a)
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = g * exponent * a ** (exponent - 1)
            return _unbroadcast(xp.where(exponent == 0, xp.zeros_like(terms), terms), a.shape)

        return a**exponent, (pullback,)

    @op
    def __matmul__(a: Array, b: Any) -> ValueAndPullbacks:
        """Matrix product, for every rank that NumPy's matmul takes."""
        return _matmul(a, _matrix(b, a))

    @op
    def __rmatmul__(a: Array, b: Any) -> ValueAndPullbacks:
        value, (_, by_a) = _matmul(_matrix(b, a), a)
        return value, (by_a,)

    __radd__, __rmul__ = __add__, __mul__

    @op
    def exp(a: Array) -> ValueAndPullbacks:
        """e to the power of every element."""
        y = backend.of(a).xp.exp(a)
        return y, (lambda g: g * y,)

    @op
    def log(a: Array) -> ValueAndPullbacks:
        """Natural logarithm of every element."""
        return backend.of(a).xp.log(a), (lambda g: g / a,)

    @op
    def sum(a: Array, axis: Axis = None, keepdims: bool = False) -> ValueAndPullbacks:
        """Sum over `axis` (an int, a tuple, or None for all)."""
        kept = _with_ones(a.shape, axis)
        return a.sum(axis=axis, keepdims=keepdims), (lambda g: g.reshape(kept) + backend.of(a).xp.zeros_like(a),)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Mean over `axis` (an int, a tuple, or None for all); NaN where there is nothing to average."""
        count = self.data.size // max(1, math.prod(_with_ones(self.shape, axis))) if self.data.size else 0
        return self.sum(axis=axis, keepdims=keepdims) * (1 / count if count else math.nan)

    @op
    def max(a: Array, axis: int | None = None, keepdims: bool = False) -> ValueAndPullbacks:
        """Maximum over `axis` (an int, or None for all). The gradient goes to the first of equal maxima; NaN is larger
        than any number.

        >>> x = Tensor([[1.0, 5.0], [7.0, 7.0]], requires_grad=True)
        >>> x.max(axis=1).sum().backward()
        >>> x.grad
        array([[0., 1.],
               [1., 0.]])
        """
        if isinstance(axis, (tuple, list)):
            raise TypeError(f"max takes one axis, or None for all, got {axis}")
        xp, kept = backend.of(a).xp, _with_ones(a.shape, axis)
        along, i = (a.reshape(-1), 0) if axis is None else (a, *_axes(axis, a.ndim))
        largest = along.max(axis=i, keepdims=True)
        at_largest = (along == largest) | (along != along)  # or at a NaN: CuPy's argmax gives any of several
        winner = xp.expand_dims(at_largest.argmax(axis=i), i)
        places = xp.arange(along.shape[i]).reshape(-1, *(1,) * (along.ndim - 1 - i))

        def to_winner(g):
            g = g.reshape((1,) * along.ndim if axis is None else kept)
            return xp.where(places == winner, g, xp.zeros_like(g)).reshape(a.shape)

        return a.max(axis=axis, keepdims=keepdims), (to_winner,)

    @op
    def __getitem__(a: Array, index: Any) -> ValueAndPullbacks:
        """NumPy's indexing, by slices, integers, None, and arrays of integers or booleans.

        >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
        >>> x[[0, 2, 2]].sum().backward()
        >>> x.grad
        array([1., 0., 2.])
        """

        def scatter(g):
            taken = np.zeros(a.shape, a.dtype)
            parts = tuple(map(_on_host, index)) if isinstance(index, tuple) else _on_host(index)
            np.add.at(taken, parts, backend.to_host(g))  # on the host, in order: an element may be taken twice
            return backend.of(a).asarray(taken)

        return a[index], (scatter,)

    @op
    def reshape(a: Array, *shape: int) -> ValueAndPullbacks:
        """The same numbers in logical (C) order in another shape; one dimension may be -1."""
        return a.reshape(*shape), (lambda g: g.reshape(a.shape),)

    @op
    def transpose(a: Array, *axes: int) -> ValueAndPullbacks:
        """The axes in another order."""
        value = a.transpose(*axes)
        back = np.argsort(_axes(axes, a.ndim)).tolist()
        return value, (lambda g: g.transpose(*back),)

    @property
    def T(self) -> Tensor:
        """The axes reversed: of a matrix (N, D) its transpose (D, N)."""
        return self.transpose(*reversed(range(self.ndim)))

    def backward(self, cotangent: Array = None) -> None:
        """Add the gradient to `.grad` of every leaf that requires it.

        cotangent: of this tensor, an array like data; may be left out for a scalar. Raises ValueError where it is
        missing or has another shape or dtype, TypeError where it is no array.
        """
        for leaf, g in _cotangents(self, cotangent, None).items():
            leaf.grad = g if leaf.grad is None else backend.of(g).asarray(leaf.grad + g)


def _on_host(index: Any) -> Any:
    if isinstance(index, (int, slice, type(None), type(Ellipsis))):
        return index
    index = backend.to_host(index)
    return index if index.size else index.astype(bool if index.dtype == bool else int)  # an empty list has no integers


def _axes(axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Axes counted from the front. Raises numpy.exceptions.AxisError for one that an array of `ndim` does not have."""
    return np.lib.array_utils.normalize_axis_tuple(axis, ndim)


def _with_ones(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over `axis` that keeps the reduced axes, with size 1."""
    reduced = range(len(shape)) if axis is None else _axes(axis, len(shape))
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


def grad(output: Tensor, inputs: Iterable[Tensor], cotangent: Array = None) -> list[Array]:
    """Gradients of `output` with respect to the Tensors `inputs`, and nothing else: no other pullback is called.

    cotangent as in Tensor.backward. Returns a list of arrays; no `.grad` is touched. Raises ValueError where an input
    has no path to the output, TypeError where the inputs are one Tensor instead of a list.

    >>> x = Tensor([3.0], requires_grad=True)
    >>> grad((x * x).sum(), [x])
    [array([6.])]
    """
    if isinstance(inputs, Tensor):
        raise TypeError("the inputs of grad are a list of Tensors: [x] for one")
    inputs = list(inputs)
    found = _cotangents(output, cotangent, set(inputs))
    missing = [i for i, tensor in enumerate(inputs) if tensor not in found]
    if missing:
        raise ValueError(f"input {missing[0]} does not lead to the output: was it made with requires_grad=True?")
    return [found[tensor] for tensor in inputs]


def _topological_order(output: Tensor) -> list[Tensor]:
    """Every tensor that the output was made from, arguments before results; iterative, for graphs of any depth."""
    order: list[Tensor] = []
    seen: set[Tensor] = set()
    stack = [(output, False)]
    while stack:
        tensor, finished = stack.pop()
        if finished:
            order.append(tensor)
        elif tensor not in seen:
            seen.add(tensor)
            stack.append((tensor, True))
            stack.extend((parent, False) for parent, _ in tensor.edges)
    return order


def _cotangents(output: Tensor, cotangent: Array, inputs: Iterable[Tensor] | None) -> dict[Tensor, Array]:
    """Cotangents of the leaves (inputs=None) or of the given tensors. The sums stay here, beside the graph."""
    if not output.requires_grad:
        raise ValueError("backward on a tensor that no tensor with requires_grad=True leads to (or under no_grad)")
    if cotangent is None:
        if output.data.size != 1:
            raise ValueError(f"backward on a tensor of shape {output.shape} needs a cotangent of that shape")
        cotangent = backend.of(output.data).xp.ones_like(output.data)
    backend.of(cotangent)
    if cotangent.shape != output.shape or cotangent.dtype != output.dtype:
        raise ValueError(
            f"the cotangent is {cotangent.dtype}{cotangent.shape}, the tensor is {output.dtype}{output.shape}"
        )

    def wanted(tensor: Tensor) -> bool:
        return not tensor.edges if inputs is None else tensor in inputs

    order = _topological_order(output)
    needed: set[Tensor] = set()
    uses: collections.Counter[Tensor] = collections.Counter()
    for tensor in order:
        parents = [parent for parent, _ in tensor.edges if parent in needed]
        uses.update(parents)
        if wanted(tensor) or parents:
            needed.add(tensor)

    for tensor in order:
        if tensor in needed and tensor.edges:
            _check_unchanged(tensor)

    shared = {tensor: tensor.shared for tensor in needed}
    sums: dict[Tensor, Array] = {output: cotangent}
    results: dict[Tensor, Array] = {}
    taken = {id(_owner(array)) for array in (cotangent, *(tensor.data for tensor in order))}
    for tensor in reversed(order):
        if tensor not in sums:
            continue
        g = backend.of(tensor.data).asarray(sums.pop(tensor))  # of no axes it may be one of NumPy's scalars
        if wanted(tensor):
            results[tensor] = g.copy(order="K") if id(_owner(g)) in taken else g
            taken.add(id(_owner(results[tensor])))
        edges = [(parent, pullback) for parent, pullback in tensor.edges if parent in needed]
        with np.errstate(under="ignore"):
            if edges and (step := shared[tensor]):
                g = step(g)
            for parent, pullback in edges:
                relu, alone = shared[parent], uses[parent] == 1 and not wanted(parent)
                if alone and isinstance(relu, ReluGradient) and isinstance(pullback, MaskedPullback):
                    contribution = pullback.function(g, relu.value)
                    shared[parent] = relu.rest
                else:
                    contribution = pullback(g)
                function = pullback.function if isinstance(pullback, MaskedPullback) else pullback
                shape, dtype = _shape(contribution), getattr(contribution, "dtype", type(contribution).__name__)
                if (shape, dtype) != (parent.shape, parent.dtype):
                    name = getattr(function, "__qualname__", repr(function)).replace(".<locals>", "")
                    raise TypeError(
                        f"the pullback {name} gave {dtype}{shape} for an argument that is {parent.dtype}{parent.shape}"
                    )
                if not str(getattr(function, "__module__", None)).startswith("minicnn."):
                    taken.add(id(_owner(contribution)))  # which an operation of one's own may keep
                sums[parent] = sums[parent] + contribution if parent in sums else contribution
    return results


def _check_unchanged(tensor: Tensor) -> None:
    """Raises ValueError where the pullbacks of a Tensor would see other data than the forward pass."""
    for shape, memory, version in tensor.versions:
        if memory.version != version:
            raise ValueError(
                f"the data {shape} of a Tensor changed between forward and backward, by an optimiser's step, "
                "set_weights, .to() or in place: the gradient would be wrong, call forward again"
            )
