"""Are the pullbacks the derivatives? Finite differences in float64, float32 against float64, linearity, repeatability.

A function takes Tensors and returns a Tensor. `arguments` names them in order: Tensors that require a gradient, or
arrays, of float64. They are perturbed in place and restored, so a layer's own parameters can be arguments as well:
`check(lambda x, W, b: layer(x), {"x": x, **layer.parameters()})`.
"""

import contextlib
from typing import NamedTuple

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, grad, no_grad

EPS = 1e-5
TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
JACOBIAN_ENTRIES = 20_000


class VacuousCheck(ValueError):
    """The check could not have failed, or asks for a derivative where there is none; the message says why."""


class Result(NamedTuple):
    """What one argument's gradient is worth.

    error: the worst relative error. judged: how many numbers were compared. replaced: how many directions crossed a
    kink and gave way to the next of the seeded stream.
    """

    argument: str
    dtype: str
    error: float
    judged: int
    replaced: int = 0

    @property
    def passed(self):
        """Whether the error is within TOLERANCE; a NaN is not."""
        return self.error <= TOLERANCE[self.dtype]


def check(function, arguments, pattern=None, eps=EPS, directions=3, cotangents=2, seed=0):
    """Gradients against central differences (f(x + eps v) - f(x - eps v)) / (2 eps), one argument at a time.

    Each of `directions` random v is contracted with each of `cotangents` random cotangents u, all N(0, 1) and seeded,
    and judged by |fd - a| / |a|, a = <pullback(u), v>. Without a pattern the whole Jacobian is compared too where it
    has at most JACOBIAN_ENTRIES entries, by max |fd - a| / max |a|.

    pattern: for functions with kinks, called like `function` and returning arrays that say on which side of each kink
    the forward values lie (ReLU signs, pool winners). A direction between whose ends they differ is replaced by the
    next of the stream.

    Returns a Result for each argument. Raises TypeError unless all are float64, and VacuousCheck where a gradient is
    exactly zero or half of the directions drawn cross a kink.
    """
    tensors = _tensors(arguments)
    output = function(*tensors)
    rng = np.random.default_rng(seed)
    seeds = [rng.standard_normal(output.shape) for _ in range(cotangents)]
    gradients = [_gradients(output, tensors, u) for u in seeds]
    results = []
    for i, (name, tensor) in enumerate(zip(arguments, tensors, strict=True)):
        by_argument = [g[i] for g in gradients]
        if not all(g.any() for g in by_argument):
            raise VacuousCheck(f"the gradient by {name} is exactly 0, so the check proves nothing: choose other inputs")

        def central(v, tensor=tensor):
            return _central_difference(function, tensors, tensor, v, eps, pattern)

        errors, replaced = [], 0
        stream = np.random.default_rng((seed, i))
        for _ in range(directions):
            while (difference := central(v := stream.standard_normal(tensor.shape))) is None:
                replaced += 1
                if replaced >= directions:
                    raise VacuousCheck(f"{replaced} directions in {name} cross a kink: choose inputs farther from it")
            errors += [_direction_error(np.sum(u * difference), np.sum(g * v)) for u, g in zip(seeds, by_argument)]
        if pattern is None and output.data.size * tensor.data.size <= JACOBIAN_ENTRIES:
            units = np.eye(tensor.data.size).reshape(-1, *tensor.shape)
            differences = np.stack([central(unit).ravel() for unit in units], axis=1)
            units = np.eye(output.data.size).reshape(-1, *output.shape)
            rows = np.stack([_gradients(output, [tensor], unit)[0].ravel() for unit in units])
            errors.append(_tensor_error(differences, rows))
            judged = directions * cotangents + rows.size
        else:
            judged = directions * cotangents
        results.append(Result(name, "float64", float(np.max(errors)), judged, replaced))
    return results


def check_float32(function, arguments, pattern=None, cotangents=2, seed=0):
    """Gradients in float32 against float64 ones of the same numbers, by max |a - b| / max |b| for each argument.

    The arguments and the random cotangents are first rounded to float32, so that both see the same numbers. Returns a
    Result for each argument. Raises VacuousCheck where a gradient is exactly zero, or where `pattern` (as in check)
    differs between the two: then they are derivatives on two sides of a kink.
    """
    tensors = _tensors(arguments)
    single = [backend.to_host(tensor.data).astype(np.float32) for tensor in tensors]
    found, patterns = {}, []
    for dtype in (np.float32, np.float64):
        with _holding(tensors, [values.astype(dtype) for values in single]):
            output = function(*tensors)
            rng = np.random.default_rng(seed)
            seeds = [rng.standard_normal(output.shape).astype(np.float32) for _ in range(cotangents)]
            found[dtype] = [_gradients(output, tensors, u) for u in seeds]
            patterns.append(pattern and _read(pattern, tensors))
    if not _same(*patterns):
        raise VacuousCheck("float32 and float64 lie on two sides of a kink: choose inputs farther from it")
    results = []
    for i, name in enumerate(arguments):
        pairs = [(a[i].astype(np.float64), b[i]) for a, b in zip(found[np.float32], found[np.float64], strict=True)]
        if not all(b.any() for _, b in pairs):
            raise VacuousCheck(f"the gradient by {name} is exactly 0, so the check proves nothing: choose other inputs")
        errors = [_tensor_error(a, b) for a, b in pairs]
        results.append(Result(name, "float32", float(np.max(errors)), sum(b.size for _, b in pairs)))
    return results


def nonlinearity(function, arguments, seed=0):
    """The worst relative error, over the arguments, of pullback(a u + b v) = a pullback(u) + b pullback(v)."""
    tensors = _tensors(arguments)
    output = function(*tensors)
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, *output.shape))
    a, b = rng.standard_normal(2)
    of_sum, of_u, of_v = (_gradients(output, tensors, g) for g in (a * u + b * v, u, v))
    errors = [_tensor_error(s, a * p + b * q) for s, p, q in zip(of_sum, of_u, of_v, strict=True)]
    return float(np.max(errors))


def repeats(function, arguments, seed=0):
    """Whether forward and backward, run again, and backward by each argument alone, give the same bits."""
    tensors = _tensors(arguments)
    output, again = function(*tensors), function(*tensors)
    u = np.random.default_rng(seed).standard_normal(output.shape)
    first = _gradients(output, tensors, u)
    runs = [_gradients(output, tensors, u), _gradients(again, tensors, u)]
    runs.append([_gradients(output, [tensor], u)[0] for tensor in tensors])
    values = backend.to_host(output.data), backend.to_host(again.data)
    return _same_bits(*values) and all(_same_bits(a, b) for run in runs for a, b in zip(first, run, strict=True))


def _tensors(arguments):
    tensors = [a if isinstance(a, Tensor) else Tensor(a, requires_grad=True) for a in arguments.values()]
    for name, tensor in zip(arguments, tensors, strict=True):
        if tensor.dtype != np.float64:
            raise TypeError(f"gradients are checked in float64, {name} is {tensor.dtype}")
    return tensors


def _gradients(output, tensors, cotangent):
    """Gradients by all tensors, on the host; the cotangent is cast to the output's dtype."""
    seed = backend.of(output.data).asarray(cotangent, dtype=output.dtype)
    return [backend.to_host(g) for g in grad(output, tensors, seed)]


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


def _central_difference(function, tensors, tensor, v, eps, pattern):
    """The derivative of function along v in one of its tensors, or None where a kink lies between the two ends."""
    x = backend.to_host(tensor.data)
    values, patterns = [], []
    for end in (x + eps * v, x - eps * v):
        with _holding([tensor], [end]), no_grad():
            values.append(backend.to_host(function(*tensors).data))
            patterns.append(pattern and _read(pattern, tensors))
    return (values[0] - values[1]) / (2 * eps) if _same(*patterns) else None


def _read(pattern, tensors):
    with no_grad():
        return [backend.to_host(a) for a in pattern(*tensors)]


def _same(pattern, other):
    return pattern is None or all(np.array_equal(a, b) for a, b in zip(pattern, other, strict=True))


def _same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _direction_error(difference, derivative):
    with np.errstate(divide="ignore", invalid="ignore"):
        return abs(difference - derivative) / abs(derivative)


def _tensor_error(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.max(np.abs(a - b)) / np.max(np.abs(b))
