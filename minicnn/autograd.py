"""Reverse-mode automatic differentiation in one screen: Tensor, the `op` decorator, backward.

An operation is a function on raw arrays that returns its value and one pullback for each leading differentiable
argument. A pullback maps the cotangent of the value to the cotangent of its argument; only those that are needed are
called. First order only.
"""

import contextlib
import functools

import numpy as np

from minicnn import backend

_recording = True


@contextlib.contextmanager
def no_grad():
    """Within this context operations keep no graph: for evaluation."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


def op(function):
    """Turn function(*arrays, **options) -> (value, pullbacks) into a differentiable operation on Tensors.

    Arguments that are no Tensor are constants. Raises TypeError where Tensors of different dtype or backend meet, where
    a constant would change the dtype, where a Tensor that requires a gradient has no pullback, and for one by keyword.
    """

    @functools.wraps(function)
    def apply(*args, **options):
        if named := [name for name, a in options.items() if isinstance(a, Tensor)]:
            raise TypeError(f"{function.__name__}: pass the Tensor {named[0]} by position, options are constants")
        tensors = [a for a in args if isinstance(a, Tensor)]
        kinds = {(backend.of(t.data).name, t.data.dtype) for t in tensors}
        if len(kinds) > 1:
            found = sorted((name, dtype.name) for name, dtype in kinds)
            raise TypeError(f"{function.__name__}: arguments differ in device or dtype: {found}")
        value, pullbacks = function(*(a.data if isinstance(a, Tensor) else a for a in args), **options)
        if tensors and value.dtype != tensors[0].dtype:
            raise TypeError(f"{function.__name__}: a constant turns {tensors[0].dtype} into {value.dtype}")
        edges = [(a, p) for a, p in zip(args, pullbacks, strict=False) if isinstance(a, Tensor) and a.requires_grad]
        if any(isinstance(a, Tensor) and a.requires_grad for a in args[len(pullbacks) :]):
            raise TypeError(f"{function.__name__} has no gradient by argument {len(pullbacks)} or later")
        return Tensor(value, edges=edges if _recording else ())

    return apply


def _unbroadcast(g, shape):
    """Sum a cotangent over the axes along which an argument of `shape` was broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1), keepdims=True)


def _shape(a):
    return getattr(a, "shape", ())


class Tensor:
    """An array of float32 or float64, with the operation that made it.

    data: the array, on any backend. requires_grad: a leaf whose gradient is wanted. grad: after backward(), on such
    leaves alone, an array like data; it adds up over calls until set to None.
    """

    __slots__ = ("data", "grad", "requires_grad", "edges")
    __array_ufunc__ = None  # lets `array * tensor` reach __rmul__

    def __init__(self, data, requires_grad=False, edges=()):
        if isinstance(data, (int, float, list, tuple, np.generic)):
            data = np.asarray(data, getattr(data, "dtype", np.float64))
        backend.of(data)
        if data.dtype not in (np.float32, np.float64):
            raise TypeError(f"a Tensor holds float32 or float64, got {data.dtype}")
        self.data, self.grad, self.edges = data, None, edges
        self.requires_grad = requires_grad or bool(edges)

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)

    def __repr__(self):
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def __float__(self):
        return float(self.data)

    @op
    def __add__(a, b):
        return a + b, (lambda g: _unbroadcast(g, a.shape), lambda g: _unbroadcast(g, _shape(b)))

    @op
    def __sub__(a, b):
        return a - b, (lambda g: _unbroadcast(g, a.shape), lambda g: _unbroadcast(-g, _shape(b)))

    @op
    def __rsub__(a, b):
        return b - a, (lambda g: _unbroadcast(-g, a.shape),)

    @op
    def __mul__(a, b):
        return a * b, (lambda g: _unbroadcast(g * b, a.shape), lambda g: _unbroadcast(g * a, _shape(b)))

    @op
    def __truediv__(a, b):
        return a / b, (lambda g: _unbroadcast(g / b, a.shape), lambda g: _unbroadcast(-g * a / (b * b), _shape(b)))

    @op
    def __rtruediv__(a, b):
        return b / a, (lambda g: _unbroadcast(-g * b / (a * a), a.shape),)

    @op
    def __neg__(a):
        return -a, (lambda g: -g,)

    @op
    def __pow__(a, exponent):
        """Power with a constant exponent."""
        return a**exponent, (lambda g: g * exponent * a ** (exponent - 1),)

    @op
    def __matmul__(a, b):
        """Matrix product of (N, D) and (D, U)."""
        return a @ b, (lambda g: g @ b.T, lambda g: a.T @ g)

    @op
    def __rmatmul__(a, b):
        return b @ a, (lambda g: b.T @ g,)

    __radd__, __rmul__ = __add__, __mul__

    @op
    def sum(a, axis=None, keepdims=False):
        """Sum over `axis` (an int, a tuple, or None for all)."""

        def spread(g):
            if axis is not None and not keepdims:
                axes = axis if isinstance(axis, tuple) else (axis,)
                for i in sorted(i % a.ndim for i in axes):
                    g = g[(slice(None),) * i + (None,)]
            return g + backend.of(a).xp.zeros_like(a)

        return a.sum(axis=axis, keepdims=keepdims), (spread,)

    def mean(self, axis=None, keepdims=False):
        """Mean over `axis` (an int, a tuple, or None for all)."""
        total = self.sum(axis=axis, keepdims=keepdims)
        return total * (total.data.size / self.data.size)

    @op
    def reshape(a, *shape):
        """The same numbers in logical (C) order in another shape; one dimension may be -1."""
        return a.reshape(*shape), (lambda g: g.reshape(a.shape),)

    def backward(self, seed=None):
        """Add the gradient to `.grad` of every leaf that requires it.

        seed: the cotangent of this tensor, an array like data; may be left out for a scalar. Raises ValueError where
        the seed is missing or has another shape or dtype.
        """
        for leaf, g in _cotangents(self, seed, None).items():
            leaf.grad = g if leaf.grad is None else leaf.grad + g


def grad(output, inputs, seed=None):
    """Gradients of `output` with respect to the Tensors `inputs`, and nothing else: no other pullback is called.

    seed as in Tensor.backward. Returns a list of arrays; no `.grad` is touched. Raises ValueError where an input has
    no path to the output.
    """
    found = _cotangents(output, seed, set(inputs))
    missing = [i for i, tensor in enumerate(inputs) if tensor not in found]
    if missing:
        raise ValueError(f"input {missing[0]} does not lead to the output: was it made with requires_grad=True?")
    return [found[tensor] for tensor in inputs]


def _topological_order(output):
    """Every tensor that the output was made from, arguments before results; iterative, for graphs of any depth."""
    order, seen, stack = [], set(), [(output, False)]
    while stack:
        tensor, finished = stack.pop()
        if finished:
            order.append(tensor)
        elif tensor not in seen:
            seen.add(tensor)
            stack.append((tensor, True))
            stack.extend((parent, False) for parent, _ in tensor.edges)
    return order


def _cotangents(output, seed, inputs):
    """Cotangents of the leaves (inputs=None) or of the given tensors. The sums stay here, beside the graph."""
    if not output.requires_grad:
        raise ValueError("backward on a tensor that no tensor with requires_grad=True leads to (or under no_grad)")
    if seed is None:
        if output.data.size != 1:
            raise ValueError(f"backward on a tensor of shape {output.shape} needs a seed of that shape")
        seed = backend.of(output.data).xp.ones_like(output.data)
    if seed.shape != output.shape or seed.dtype != output.dtype:
        raise ValueError(f"seed is {seed.dtype}{seed.shape}, the tensor is {output.dtype}{output.shape}")

    order = _topological_order(output)
    needed = set()
    for tensor in order:
        wanted = not tensor.edges if inputs is None else tensor in inputs
        if wanted or any(parent in needed for parent, _ in tensor.edges):
            needed.add(tensor)

    sums, results = {output: seed}, {}
    for tensor in reversed(order):
        if tensor not in sums:
            continue
        g = sums.pop(tensor)
        if not tensor.edges if inputs is None else tensor in inputs:
            results[tensor] = g
        for parent, pullback in tensor.edges:
            if parent not in needed:
                continue
            contribution = pullback(g)
            assert contribution.shape == parent.shape and contribution.dtype == parent.dtype, (
                f"pullback gave {contribution.dtype}{contribution.shape} for {parent.dtype}{parent.shape}"
            )
            sums[parent] = sums[parent] + contribution if parent in sums else contribution
    return results
