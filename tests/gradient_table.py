"""The cases of the gradient checks, and `python -m tests.gradient_table`, which prints how each of them comes out.

A case builds, on a given backend, a function and its arguments, seeded noise in float64; test_gradcheck.py checks the
same cases. Kinks: single operations stay at least KINK_MARGIN away from them; for networks a pattern of forward values
tells gradcheck.check which directions to replace.
"""

import argparse
import operator
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

import tests
from minicnn import backend, cpu, gradcheck, ops
from minicnn.autograd import Tensor
from minicnn.backend import DeviceError
from minicnn.layers import Conv2D, Dense, Dropout, DropoutMasks, Flatten, MaxPool2D, Sequential, TemperatureSoftmax
from minicnn.paper.networks import paper_cnn
from tests import DEVICES, IN_NUMPY

BACKENDS = (DEVICES[0], IN_NUMPY, *DEVICES[1:])
KINK_MARGIN = 100 * gradcheck.EPS
TEMPERATURES = (1, 20, 100)


class Case(NamedTuple):
    """A function of the arguments, name -> Tensor; eps as gradcheck.check takes it."""

    function: Callable
    arguments: dict
    eps: float | dict = gradcheck.EPS


def _on(device, arrays):
    return {name: Tensor(device.asarray(array), requires_grad=True) for name, array in arrays.items()}


def _normal(function, **shapes):
    """A smooth function of N(0, 1) numbers."""

    def build(device):
        rng = np.random.default_rng(0)
        return Case(function, _on(device, {name: rng.standard_normal(shape) for name, shape in shapes.items()}))

    return build


def _constant_matmul(shape, **shapes):
    def build(device):
        constant = device.asarray(np.random.default_rng(1).standard_normal(shape))
        return _normal(lambda a: constant.astype(a.dtype) @ a, **shapes)(device)

    return build


def _positive(function, **shapes):
    """A function of numbers between 1/2 and 2."""

    def build(device):
        rng = np.random.default_rng(0)
        return Case(function, _on(device, {name: rng.uniform(0.5, 2, shape) for name, shape in shapes.items()}))

    return build


def _rectified(operation, **shapes):
    """operation with its ReLU, of N(0, 1) numbers drawn until no value before the ReLU is within KINK_MARGIN of 0."""

    def build(device):
        rng = np.random.default_rng(1)
        while True:
            arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
            if np.abs(operation(*map(Tensor, arrays.values())).data).min() > KINK_MARGIN:
                return Case(partial(operation, relu=True), _on(device, arrays))

    return build


def _relu(shape):
    def build(device):
        rng = np.random.default_rng(0)
        return Case(ops.relu, _on(device, {"x": rng.choice([-1, 1], shape) * rng.uniform(0.1, 1, shape)}))

    return build


def _distinct(function, shape):
    """A function of distinct numbers: beside a tie a maximum has no derivative. test_ops.py has the ties."""

    def build(device):
        grid = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 10
        return Case(function, _on(device, {"x": grid}))

    return build


def _max_pool2d(shape, size, ties="first"):
    return _distinct(partial(ops.max_pool2d, size=size, ties=ties), shape)


def _at_temperature(operation, T, shape=(3, 5)):
    """Logits as large as T, as training at T makes them, and steps as large."""

    def build(device):
        z = T * np.random.default_rng(0).standard_normal(shape)
        return Case(partial(operation, T=T), _on(device, {"z": z}), eps=T * gradcheck.EPS)

    return build


def _cross_entropy(T, soft, shape=(4, 5)):
    """Soft labels that do not sum to 1: the gradient holds for any."""

    def build(device):
        rng = np.random.default_rng(0)
        z = T * rng.standard_normal(shape)
        target = device.asarray(rng.uniform(0, 1, shape) if soft else rng.integers(0, shape[1], shape[0]))

        def function(z):
            return ops.cross_entropy(z, target.astype(z.dtype) if soft else target, T=T)

        return Case(function, _on(device, {"z": z}), eps=T * gradcheck.EPS)

    return build


def _masks(dropout):
    """The same masks for every pass: dropout is (seed, step), or None."""
    return dropout and DropoutMasks(*dropout)


def _with_pattern(network, x, dropout):
    """The value of a Sequential, and its pattern: signs at each ReLU and winners of each pool."""
    pattern, masks = [], _masks(dropout)
    for layer in network.layers.values():
        if isinstance(layer, MaxPool2D):
            pattern.append(backend.of(x.data).functions.max_pool2d(x.data, layer.size)[1])
        x = layer(x, masks)
        if getattr(layer, "relu", False):
            pattern.append(x.data > 0)
    return x, pattern


def _layer(make, shape, dropout=None):
    """A layer or a Sequential, its own parameters among the arguments, with random biases."""

    def build(device):
        rng = np.random.default_rng(0)
        layer = make(rng)
        parameters = layer.parameters()
        for name, parameter in parameters.items():
            values = rng.standard_normal(parameter.shape) if name.endswith("b") else parameter.data
            parameter.data = device.asarray(values)

        def function(x, *_parameters):
            return _with_pattern(layer, x, dropout) if isinstance(layer, Sequential) else layer(x, _masks(dropout))

        return Case(function, {**_on(device, {"x": rng.standard_normal(shape)}), **parameters})

    return build


def _small_network(rng):
    shared = {"rng": rng, "dtype": np.float64}
    return Sequential(
        conv1=Conv2D(1, 5, 3, padding="same", **shared),
        pool1=MaxPool2D(3, ties="all"),
        conv2=Conv2D(5, 4, 2, **shared),
        flatten=Flatten(),
        dropout=Dropout(0.3),
        dense1=Dense(4 * 2 * 3, 7, relu=True, **shared),
        dense2=Dense(7, 3, **shared),
        softmax=TemperatureSoftmax(2),
    )


def _paper_cnn(T, dropout=None, images=2, seed=2):
    """The paper's network under the cross-entropy at T: noise images and random biases.

    Its filters are twice Glorot's, so that N(0, 1) directions move fewer units across 0; seed 2 is the first of which
    the forward values show no kink in reach of them. The last weights make the logits as large as T: a saturated loss
    drowns its own gradient in rounding.
    """

    def build(device):
        rng = np.random.default_rng(seed)
        network = paper_cnn(seed, dtype=np.float64)
        x = rng.uniform(0, 1, (images, 1, 28, 28))
        parameters = network.parameters()
        for name, parameter in parameters.items():
            if name.endswith("b"):
                parameter.data = rng.normal(0, 0.1, parameter.shape)
            elif name.startswith("conv"):
                parameter.data *= 2
        parameters["dense3_W"].data *= T / network(Tensor(x)).data.std()
        network.to(device.name)
        labels = device.asarray(rng.integers(0, 10, images))

        def loss(x, *_parameters):
            logits, pattern = _with_pattern(network, x, dropout)
            return ops.cross_entropy(logits, labels, T=T), pattern

        eps = dict.fromkeys(("images", *parameters), 1e-6)
        eps |= {"dense3_W": gradcheck.EPS, "dense3_b": T * gradcheck.EPS}  # behind the last kink
        return Case(loss, {**_on(device, {"images": x}), **parameters}, eps)

    return build


def _like(a, values):
    """A constant on the device of a Tensor and in its dtype."""
    return backend.of(a.data).asarray(values, dtype=a.dtype)


def _all():
    conv2d, same, dense = ops.conv2d, partial(ops.conv2d, padding="same"), ops.dense
    shapes = {"x": (2, 2, 4, 5), "w": (3, 2, 3, 3), "b": (3,)}
    a = (3, 1, 4)
    ab = {"a": a, "b": (2, 1)}

    def filters(kh, kw):
        return {**shapes, "w": (3, 2, kh, kw)}

    one_channel = {"x": (2, 1, 6, 5), "w": (5, 1, 3, 3), "b": (5,)}
    uneven = {"x": (3, 5, 17, 19), "w": (9, 5, 3, 3), "b": (9,)}
    cases = {
        "a + b": _normal(operator.add, **ab),
        "a - b": _normal(operator.sub, **ab),
        "a * b": _normal(operator.mul, **ab),
        "a / b": _positive(operator.truediv, **ab),
        "a @ b": _normal(operator.matmul, a=(3, 4), b=(4, 2)),
        "a @ b of batches": _normal(operator.matmul, a=(2, 1, 3, 4), b=(5, 4, 2)),
        "a @ b, b a vector": _normal(operator.matmul, a=(2, 3, 4), b=(4,)),
        "a @ b, a a vector": _normal(operator.matmul, a=(3,), b=(2, 3, 4)),
        "a @ b, both vectors": _normal(operator.matmul, a=(5,), b=(5,)),
        "constant @ a": _constant_matmul((2, 3, 4), a=(4, 2)),
        "-a": _normal(operator.neg, a=a),
        "a ** 3": _normal(lambda a: a**3, a=a),
        "a ** -1.5": _positive(lambda a: a**-1.5, a=a),
        "a ** array": _positive(lambda a: a ** _like(a, [3, 0.5, 0, 2]), a=a),
        "2 + a": _normal(lambda a: 2 + a, a=a),
        "2 - a": _normal(lambda a: 2 - a, a=a),
        "2 * a": _normal(lambda a: 2 * a, a=a),
        "2 / a": _positive(lambda a: 2 / a, a=a),
        "exp": _normal(Tensor.exp, a=a),
        "log": _positive(Tensor.log, a=a),
        "log of sum of exp": _normal(lambda a: a.exp().sum(axis=-1).log(), a=a),
        "max": _distinct(Tensor.max, (3, 2, 4)),
        "max axis": _distinct(lambda a: a.max(axis=1), (3, 2, 4)),
        "max keepdims": _distinct(lambda a: a.max(axis=-1, keepdims=True), (3, 2, 4)),
        "slices": _normal(lambda a: a[1:, ..., ::-2], a=(3, 2, 4)),
        "integers and a new axis": _normal(lambda a: a[-1, :, None, 2], a=(3, 2, 4)),
        "list with repeats": _normal(lambda a: a[[1, 0, 1]], a=(3, 2, 4)),
        "transpose": _normal(lambda a: a.transpose(1, -1, 0), a=(3, 2, 4)),
        "T": _normal(lambda a: a.T, a=(3, 2, 4)),
        "a * a + a": _normal(lambda a: a * a + a, a=a),
        "sum": _normal(Tensor.sum, a=a),
        "sum axis": _normal(lambda a: a.sum(axis=-1), a=(3, 2, 4)),
        "sum axes": _normal(lambda a: a.sum(axis=(2, 0)), a=(3, 2, 4)),
        "sum keepdims": _normal(lambda a: a.sum(axis=1, keepdims=True), a=(3, 2, 4)),
        "mean": _normal(Tensor.mean, a=a),
        "mean axes": _normal(lambda a: a.mean(axis=(0, 1), keepdims=True), a=(3, 2, 4)),
        "reshape": _normal(lambda a: a.reshape(4, -1), a=(3, 2, 4)),
        "conv2d 3x3": _normal(conv2d, **shapes),
        "conv2d 3x3 same": _normal(same, **shapes),
        "conv2d 3x3 relu": _rectified(conv2d, **shapes),
        "conv2d 3x3 same relu": _rectified(same, **shapes),
        "conv2d 1x1": _normal(conv2d, **filters(1, 1)),
        "conv2d 2x2": _normal(conv2d, **filters(2, 2)),
        "conv2d 2x2 same": _normal(same, **filters(2, 2)),
        "conv2d 4x3 same relu": _rectified(same, **filters(4, 3)),
        "conv2d 5x5 same": _normal(same, **filters(5, 5)),
        "conv2d 1 channel": _normal(conv2d, **one_channel),
        "conv2d 1 channel same relu": _rectified(same, **one_channel),
        "conv2d uneven sizes": _normal(conv2d, **uneven),
        "conv2d uneven sizes same relu": _rectified(same, **uneven),
        "conv2d blocked": _normal(
            same, x=(40, 2, 4, 5), w=(3, 2, 3, 3), b=(3,)
        ),  # images enough for a second block of the C
        "dense blocked": _normal(dense, x=(150, 4), w=(4, 3), b=(3,)),
        "dense": _normal(dense, x=(4, 6), w=(6, 3), b=(3,)),
        "dense square": _normal(dense, x=(3, 4), w=(4, 4), b=(4,)),
        "dense relu": _rectified(dense, x=(4, 6), w=(6, 3), b=(3,)),
        "dense uneven sizes relu": _rectified(dense, x=(37, 131), w=(131, 43), b=(43,)),
        "relu": _relu((5, 7)),
        "relu of images": _relu((2, 3, 4, 3)),
        "max_pool2d 2": _max_pool2d((2, 3, 4, 6), 2),
        "max_pool2d 2 blocked": _max_pool2d((40, 2, 4, 5), 2),
        "max_pool2d 2 blocked ties=all": _max_pool2d((40, 2, 4, 5), 2, ties="all"),
        "max_pool2d 2 ties=all": _max_pool2d((2, 3, 4, 6), 2, ties="all"),
        "max_pool2d 2 with remainder": _max_pool2d((2, 3, 5, 7), 2),
        "max_pool2d 3 with remainder ties=all": _max_pool2d((2, 2, 7, 5), 3, ties="all"),
        "conv2d_max_pool2d 2": _normal(ops.conv2d_max_pool2d, **shapes),
        "conv2d_max_pool2d 2 same relu": _rectified(partial(ops.conv2d_max_pool2d, padding="same"), **shapes),
        "conv2d_max_pool2d 2 relu ties=all": _rectified(partial(ops.conv2d_max_pool2d, ties="all"), **shapes),
        "dropout": _normal(partial(ops.dropout, rate=0.5, seed=1, layer=2, step=3), x=(4, 9)),
        "dropout of images": _normal(partial(ops.dropout, rate=0.2, seed=2**40, layer=0, step=0), x=(2, 3, 3, 5)),
    }
    for T in TEMPERATURES:
        cases[f"softmax T={T}"] = _at_temperature(ops.softmax, T)
        cases[f"log_softmax T={T}"] = _at_temperature(ops.log_softmax, T)
        cases[f"cross_entropy T={T}"] = _cross_entropy(T, soft=False)
        cases[f"cross_entropy soft T={T}"] = _cross_entropy(T, soft=True)
    shared = {"dtype": np.float64}
    cases |= {
        "Conv2D": _layer(lambda rng: Conv2D(2, 3, 3, relu=False, rng=rng, **shared), (2, 2, 4, 5)),
        "Dense": _layer(lambda rng: Dense(6, 3, rng=rng, **shared), (4, 6)),
        "Dropout": _layer(lambda rng: Dropout(0.5), (4, 9), dropout=(3, 4)),
        "Flatten": _layer(lambda rng: Flatten(), (2, 3, 2, 4)),
        "TemperatureSoftmax": _layer(lambda rng: TemperatureSoftmax(20), (3, 5)),
        "Sequential": _layer(_small_network, (4, 1, 11, 13), dropout=(5, 6)),
    }
    for T in TEMPERATURES:
        cases[f"paper_cnn T={T}"] = _paper_cnn(T)
    cases["paper_cnn T=20 with dropout"] = _paper_cnn(20, dropout=(7, 8))
    return cases


CASES = _all()


def rows(case):
    """Every Result of a case: float64 against finite differences, then float32 against float64."""
    yield from gradcheck.check(*case)
    yield from gradcheck.check_float32(case.function, case.arguments)


LINE = "{:36} {:8} {:7} {:>8} {:>8} {}"
REPLACED = """replaced: random directions between whose two ends a ReLU or a pool changed
sides. A difference across such a kink is no derivative: the next direction of
the stream was judged instead. float32, compared with float64, needs none."""


def print_backend(name):
    """Print a row for each argument and dtype of every case on one backend, and what they come to; returns how many
    failed."""
    try:
        with tests.opened(name) as device:
            print(f"\n{name} ({cpu.convolutions()})" if device.name == "cpu" else f"\n{name}")
            return _print_cases(name, device)
    except DeviceError as error:
        print(f"\n{name}: skipped. {error}")
        return 0


def _print_cases(name, device):
    print(LINE.format("operation", "argument", "dtype", "error", "replaced", "verdict"))
    failed, start, found = 0, time.perf_counter(), []
    for operation, build in CASES.items():
        try:
            for r in rows(build(device)):
                found.append((r.error, operation, r))
                failed += not r.passed
                replaced = f"{r.replaced} of {r.replaced + r.directions}" if r.directions else ""
                verdict = "ok" if r.passed else "FAILED"
                print(LINE.format(operation, r.argument, r.dtype, f"{r.error:.1e}", replaced, verdict))
                if r.entry_error > gradcheck.ENTRY_TOLERANCE:
                    print(f"  its worst entry by {r.entry_error:.1e}, {gradcheck.ENTRY_TOLERANCE:.0e} is allowed")
        except gradcheck.VacuousCheck as error:
            failed += 1
            print(LINE.format(operation, "", "", "", "", "FAILED"))
            print(textwrap.fill(str(error), 78, initial_indent="  ", subsequent_indent="  "))
    seconds = time.perf_counter() - start
    print(f"{name}: {len(found)} gradients of {len(CASES)} cases, {failed} FAILED, {seconds:.0f} s")
    for dtype, allowed in gradcheck.TOLERANCE.items():
        worst = max((of for of in found if of[2].dtype == dtype), default=None, key=lambda of: of[0])
        if worst:
            error, operation, r = worst
            print(f"  worst in {dtype} {error:.1e} of {allowed:.0e} allowed: {operation}, {r.argument}")
    replaced, judged = (sum(getattr(r, name) for _, _, r in found) for name in ("replaced", "directions"))
    print(f"  {replaced} of {replaced + judged} directions replaced")
    return failed


def main(arguments=None):
    """The exit status: 1 if any gradient is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable; default: all of them")
    names = parser.parse_args(arguments).backend or BACKENDS
    failed = sum([print_backend(name) for name in names])
    print(f"\n{REPLACED}\n{f'{failed} FAILED' if failed else 'all ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
