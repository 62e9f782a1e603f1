"""Are the pullbacks the derivatives? Finite differences in float64, float32 against float64, linearity, repeatability.

A function takes Tensors and returns a Tensor. `arguments` names them in order: Tensors that require a gradient, or
arrays, of float64. They are perturbed in place and restored, so a layer's own parameters can be arguments as well:
`check(lambda x, W, b: layer(x), {"x": x, **layer.parameters()})`.

A function whose kinks are within reach of a difference returns a Tensor and its pattern: a list of arrays that say on
which side of each kink the forward values lie, such as the signs at a ReLU or the winners of a pool.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, grad, no_grad
from minicnn.ops import check_count

Function = Callable[..., Any]  # of Tensors, to a Tensor or to (Tensor, pattern)
Arguments = Mapping[str, Any]  # name -> Tensor or array

EPS = 1e-5
TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
ENTRY_TOLERANCE = 1e-3
MOVES, ROUNDINGS = 8, 100  # see _unknown_in_float32
JACOBIAN_ENTRIES = 20_000


class VacuousCheck(ValueError):
    """The check could not have failed, or asks for a derivative where there is none; the message says why."""


class Result(NamedTuple):
    """What one argument's gradient is worth.

    error: the worst relative error. directions: how many were judged (in float32 none: whole gradients are compared).
    replaced: how many crossed a kink and gave way to the next of the seeded stream. entry_error: that of the worst
    entry by itself, of the Jacobian or, in float32, of the gradient, less what is unknown of it; 0 where a Jacobian was
    not compared.
    """

    argument: str
    dtype: str
    error: float
    directions: int = 0
    replaced: int = 0
    entry_error: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the error is within TOLERANCE, that of every entry within ENTRY_TOLERANCE; a NaN is not."""
        return self.error <= TOLERANCE[self.dtype] and self.entry_error <= ENTRY_TOLERANCE


def check(
    function: Function,
    arguments: Arguments,
    eps: float | Mapping[str, float] = EPS,
    directions: int = 3,
    cotangents: int = 2,
    seed: int = 0,
) -> list[Result]:
    """Gradients against central differences (f(x + eps v) - f(x - eps v)) / (2 eps), one argument at a time.

    Each of `directions` random v is contracted with each of `cotangents` random cotangents u, all N(0, 1) and seeded,
    and judged by |fd - a| / |a|, a = <pullback(u), v>. Of a function without pattern the whole Jacobian is compared too
    where it has at most JACOBIAN_ENTRIES entries, by max |fd - a| / max |a|, and each entry by itself, so that a wrong
    one is seen beside one that is 1e7 times as large. There (_entry_error) what a difference cannot tell from the
    entry is taken off first, the rounding of the values over eps and eps^2 times the third derivative; PyTorch's
    gradcheck takes off 1e-5 for both, whatever the function, and has the same ENTRY_TOLERANCE for the rest.
    A direction between whose two ends the pattern changes is replaced by the next of the stream. eps: one for all, or
    name -> eps where it is not EPS.

    Returns a Result for each argument. Raises TypeError unless all are float64, ValueError where eps names no argument
    and for fewer than one direction or cotangent, and VacuousCheck where a gradient is exactly zero or half of the
    directions drawn cross a kink.

    >>> results = check(lambda a, b: a.exp() @ b, {"a": np.eye(2), "b": np.eye(2)})
    >>> [(result.argument, result.passed) for result in results]
    [('a', True), ('b', True)]
    """
    if isinstance(eps, Mapping) and (unknown := sorted(set(eps) - set(arguments))):
        raise ValueError(f"eps names {unknown}, the arguments are {sorted(arguments)}")
    directions, cotangents = check_count("directions", directions), check_count("cotangents", cotangents)
    tensors = _tensors(arguments)
    output, pattern = _call(function, tensors)
    rng = np.random.default_rng(seed)
    contracted = [rng.standard_normal(output.shape) for _ in range(cotangents)]
    gradients = [_gradients(output, tensors, u) for u in contracted]
    results = []
    for i, (name, tensor) in enumerate(zip(arguments, tensors, strict=True)):
        step = eps.get(name, EPS) if isinstance(eps, Mapping) else eps
        by_argument = [g[i] for g in gradients]
        _assert_nonzero(name, by_argument)
        errors, replaced, entry_error = [], 0, 0.0
        stream = np.random.default_rng((seed, i))
        for _ in range(directions):
            v = stream.standard_normal(tensor.shape)
            while (difference := _central_difference(function, tensors, tensor, v, step)) is None:
                replaced += 1
                if replaced >= directions:
                    raise VacuousCheck(f"{replaced} directions in {name} cross a kink: choose values farther from it")
                v = stream.standard_normal(tensor.shape)
            pairs = zip(contracted, by_argument, strict=True)
            errors += [_relative(np.sum(u * difference), np.sum(g * v)) for u, g in pairs]
        if pattern is None and output.data.size * tensor.data.size <= JACOBIAN_ENTRIES:
            differences, jacobian = _jacobians(function, tensors, tensor, output, step)
            errors.append(_relative(differences, jacobian))
            entry_error = _entry_error(differences, jacobian, backend.to_host(output.data), step)
        results.append(Result(name, "float64", float(np.max(errors)), directions, replaced, entry_error))
    return results


def check_float32(function: Function, arguments: Arguments, cotangents: int = 2, seed: int = 0) -> list[Result]:
    """Gradients in float32 against float64 ones of the same numbers, by max |a - b| / max |b| for each argument, and
    for the first cotangent each entry by itself, |a - b| / |b|, less what rounding explains.

    The arguments and the random cotangents are first rounded to float32, so that both see the same numbers. How much an
    entry may be off by rounding alone no tolerance can say, for it may be what is left of large terms; so it is
    measured: every number that comes in is moved by about one rounding, MOVES times, in float64, and an entry is
    allowed ROUNDINGS times as much as it moves then (_unknown_in_float32). What the function holds itself is not moved:
    a constant that terms cancel against must be an argument. Returns a Result for each argument. Raises
    VacuousCheck where a gradient is exactly zero, or where the pattern differs, between the two or after such a move:
    then gradients would be compared that are derivatives on two sides of a kink.
    """
    cotangents = check_count("cotangents", cotangents)
    tensors = _tensors(arguments)
    rounded = [backend.to_host(tensor.data).astype(np.float32) for tensor in tensors]
    found, patterns = [], []
    for dtype in (np.float32, np.float64):
        with _holding(tensors, [values.astype(dtype) for values in rounded]):
            output, pattern = _call(function, tensors)
            rng = np.random.default_rng(seed)
            contracted = [rng.standard_normal(output.shape).astype(np.float32) for _ in range(cotangents)]
            found.append([_gradients(output, tensors, u) for u in contracted])
            patterns.append(pattern)
    if not _same(*patterns):
        raise VacuousCheck("float32 and float64 lie on two sides of a kink: choose values farther from it")
    single, double = found
    unknown = _unknown_in_float32(function, tensors, rounded, contracted[0], double[0], patterns[1], seed)
    results = []
    for i, name in enumerate(arguments):
        _assert_nonzero(name, [g[i] for g in double])
        errors = [_relative(a[i], b[i]) for a, b in zip(single, double, strict=True)]
        entry_error = _excess(single[0][i], double[0][i], unknown[i])
        results.append(Result(name, "float32", float(np.max(errors)), entry_error=entry_error))
    return results


def _unknown_in_float32(function, tensors, arguments, cotangent, gradients, pattern, seed):
    """How much each entry of the gradients, which are of float64 as is the pattern, may be off in float32 by rounding
    alone.

    ROUNDINGS times the root mean square of its changes in MOVES moves of all arguments and the cotangent by N(0, 1)
    roundings each, or as many roundings of the entry itself; and the smallest normal number, where precision ends.
    An algorithm that adds n terms one after the other strays by about 0.2 sqrt(n) such moves. Raises VacuousCheck where
    a move crosses a kink: the jump of the gradient there would excuse any error.
    """
    rng, single = np.random.default_rng((seed, 32)), np.finfo(np.float32)

    def moved(values):
        return values * (1 + single.eps / 2 * rng.standard_normal(values.shape))

    squares = [np.zeros(g.shape) for g in gradients]
    for _ in range(MOVES):
        with _holding(tensors, [moved(values.astype(np.float64)) for values in arguments]):
            output, moved_pattern = _call(function, tensors)
            if not _same(pattern, moved_pattern):
                raise VacuousCheck("a move by about one rounding crosses a kink: choose values farther from it")
            after = _gradients(output, tensors, moved(cotangent.astype(np.float64)))
        for total, a, b in zip(squares, after, gradients, strict=True):
            total += (a - b) ** 2
    return [
        ROUNDINGS * np.maximum(np.sqrt(total / MOVES), single.eps / 2 * np.abs(g)) + single.tiny
        for total, g in zip(squares, gradients, strict=True)
    ]


def nonlinearity(function: Function, arguments: Arguments, seed: int = 0) -> float:
    """The worst relative error, over the arguments, of pullback(a u + b v) = a pullback(u) + b pullback(v)."""
    tensors = _tensors(arguments)
    output, _ = _call(function, tensors)
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, *output.shape))
    a, b = rng.standard_normal(2)
    of_sum, of_u, of_v = (_gradients(output, tensors, g) for g in (a * u + b * v, u, v))
    return float(np.max([_relative(a * p + b * q, s) for s, p, q in zip(of_sum, of_u, of_v, strict=True)]))


def repeats(function: Function, arguments: Arguments, seed: int = 0) -> bool:
    """Whether forward and backward, run again, and backward by each argument alone, give the same bits."""
    tensors = _tensors(arguments)
    (output, _), (again, _) = _call(function, tensors), _call(function, tensors)
    u = np.random.default_rng(seed).standard_normal(output.shape)
    first = _gradients(output, tensors, u)
    runs = [_gradients(output, tensors, u), _gradients(again, tensors, u)]
    runs.append([_gradients(output, [tensor], u)[0] for tensor in tensors])
    pairs = [(backend.to_host(output.data), backend.to_host(again.data))]
    pairs += [(g, h) for run in runs for g, h in zip(first, run, strict=True)]
    return all(g.dtype == h.dtype and g.shape == h.shape and g.tobytes() == h.tobytes() for g, h in pairs)


def _tensors(arguments):
    tensors = [a if isinstance(a, Tensor) else Tensor(a, requires_grad=True) for a in arguments.values()]
    for name, tensor in zip(arguments, tensors, strict=True):
        if tensor.dtype != np.float64:
            raise TypeError(f"gradients are checked in float64, {name} is {tensor.dtype}")
    return tensors


def _call(function, tensors):
    """Value and pattern, which is None for a function that returns none. Raises ValueError where the function changes
    an argument in place: for whoever else uses that one, the gradient would be wrong."""
    before = [backend.to_host(tensor.data).copy() for tensor in tensors]
    result = function(*tensors)
    for i, (tensor, array) in enumerate(zip(tensors, before, strict=True)):
        if not np.array_equal(backend.to_host(tensor.data), array, equal_nan=True):
            raise ValueError(f"the function changes its argument {i} in place: compute on a copy")
    if isinstance(result, Tensor):
        return result, None
    value, pattern = result
    return value, [backend.to_host(a) for a in pattern]


def _gradients(output, tensors, cotangent):
    """Gradients by the tensors, on the host."""
    cotangent = backend.of(output.data).asarray(cotangent, dtype=output.dtype)
    return [backend.to_host(g) for g in grad(output, tensors, cotangent)]


def _assert_nonzero(name, gradients):
    if not all(g.any() for g in gradients):
        raise VacuousCheck(f"the gradient by {name} is exactly 0, so the check proves nothing: choose other values")


@contextlib.contextmanager
def _holding(tensors, arrays):
    """Within this context the tensors hold these host arrays instead of their own."""
    own = [tensor.data for tensor in tensors]
    try:
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.data = backend.of(tensor.data).asarray(array)
        yield
    finally:
        for tensor, array in zip(tensors, own, strict=True):
            tensor.data = array


def _central_difference(function, tensors, tensor, v, eps):
    """The derivative of function along v in one of its tensors, or None where a kink lies between the two ends."""
    x = backend.to_host(tensor.data)
    values, patterns = [], []
    for end in (x + eps * v, x - eps * v):
        with _holding([tensor], [end]), no_grad():
            value, pattern = _call(function, tensors)
        values.append(backend.to_host(value.data))
        patterns.append(pattern)
    return (values[0] - values[1]) / (2 * eps) if _same(*patterns) else None


def _jacobians(function, tensors, tensor, output, eps):
    """The Jacobian twice: every column by differences, every row by the pullback of a unit cotangent."""
    units = np.eye(tensor.data.size).reshape(-1, *tensor.shape)
    columns = [_central_difference(function, tensors, tensor, unit, eps).ravel() for unit in units]
    units = np.eye(output.data.size).reshape(-1, *output.shape)
    rows = [_gradients(output, [tensor], unit)[0].ravel() for unit in units]
    return np.stack(columns, axis=1), np.stack(rows)


def _entry_error(differences, jacobian, values, eps):
    """The worst of |fd - a| / |a| over the entries of a Jacobian, less what a difference cannot know.

    A value is wrong by some roundings (100 of its own size, or of 1, the size of arguments), and the difference by as
    much over eps; its formula leaves out eps^2 / 6 times the third derivative, here at most 6 times the largest first.
    """
    rounding = 100 * np.finfo(np.float64).eps * np.maximum(1, np.abs(values.reshape(-1, 1))) / eps
    return _excess(differences, jacobian, rounding + eps**2 * np.abs(jacobian).max())


def _excess(a, b, unknown):
    """The worst of |a - b| / |b| over the entries, less what is unknown of each; infinity or NaN, which pass nowhere,
    where there is none."""
    excess = np.abs(a - b) - unknown
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(excess <= 0, 0, excess / np.abs(b))))


def _same(pattern, other):
    return pattern is None or all(np.array_equal(a, b) for a, b in zip(pattern, other, strict=True))


def _relative(a, b):
    """max |a - b| / max |b|, of arrays or numbers; NaN or infinity, which pass nowhere, where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.max(np.abs(a - b)) / np.max(np.abs(b))
