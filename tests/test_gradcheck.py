"""Every pullback is the derivative, on every backend; and a wrong one would have been caught."""

import itertools
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tests
from minicnn import cpu, gradcheck, ops
from minicnn.autograd import Tensor, grad, op
from minicnn.backend import DeviceError
from minicnn.gradcheck import VacuousCheck, check, check_float32, nonlinearity, repeats
from tests import DEVICES, IN_NUMPY, gradient_table, open_device
from tests.conftest import opened_or_skipped
from tests.gradient_table import CASES

ROOT = Path(__file__).parents[1]
each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(params=[*DEVICES, IN_NUMPY])
def device(request):
    """Every backend, and the CPU's as it is without a C compiler."""
    yield from opened_or_skipped(request.param)


def wrong(results):
    return [r.argument for r in results if not r.passed]


@each_case
def test_gradients_in_float64_against_finite_differences(device, name):
    results = check(*CASES[name](device))
    assert not wrong(results), results


@each_case
def test_gradients_in_float32_against_float64(device, name):
    case = CASES[name](device)
    results = check_float32(case.function, case.arguments)
    assert not wrong(results), results


@each_case
def test_gradients_are_linear_and_repeat_bit_for_bit(device, name):
    case = CASES[name](device)
    assert nonlinearity(case.function, case.arguments) < 1e-12
    assert repeats(case.function, case.arguments)


def test_gradient_table_has_a_case_for_every_operation():
    functions = [f for f in (*vars(ops).values(), *vars(Tensor).values()) if isinstance(f, types.FunctionType)]
    operations = {f.__wrapped__.__code__: f.__name__ for f in functions if hasattr(f, "__wrapped__")}
    assert {"conv2d", "cross_entropy", "__getitem__", "__rsub__"} < set(operations.values())
    called = set()
    for build in CASES.values():
        case = build(open_device("cpu"))
        sys.setprofile(lambda frame, event, _: called.add(frame.f_code))
        try:
            case.function(*case.arguments.values())
        finally:
            sys.setprofile(None)
    assert {name for code, name in operations.items() if code not in called} == set()


def factor_2_001_for_2(right):
    return lambda *arguments: right(*arguments) * (2.001 / 2)


def without_1_over_T(right):
    return lambda *arguments: right(*arguments) * arguments[-1]


def wrong_sign(right):
    return lambda *arguments: -right(*arguments)


def transposed_weight(right):
    return lambda g, w, *mask: right(g, w.T.copy(), *mask)


def transposed_filters(right):
    return lambda g, w, size, offset, *mask: right(g, w.transpose(0, 1, 3, 2).copy(), size, offset, *mask)


def unflipped_filters(right):
    return lambda g, w, size, offset, *mask: right(g, w[:, :, ::-1, ::-1].copy(), size, offset, *mask)


def taps_off_by_one(right):
    def shifted(x, g, kernel, offset):
        gw = right(x, g, kernel, offset)
        return gw[:, :, :, [1, 2, 0]].copy()

    return shifted


def one_sample_for_the_bias_sum(_right):
    return lambda g: g[0].copy()


def opposite_corner(right):
    return lambda g, winner, shape, size: right(g, size * size - 1 - winner, shape, size)


def no_mask(right):
    return lambda g, y: right(g, y + 1)


def cross_term_as_printed(_right):
    """Equation (5) of the paper: dp_k/dx_i = p_k (d_ik + p_k) / T."""
    return lambda g, p, T: (g * p + (g * p * p).sum(axis=1, keepdims=True)) / T


PLANTED = [
    (factor_2_001_for_2, "dense_weight_grad", "dense", "w"),
    (factor_2_001_for_2, "conv2d_input_grad", "conv2d 2x2 same", "x"),
    (without_1_over_T, "softmax_grad", "softmax T=20", "z"),
    (without_1_over_T, "log_softmax_grad", "log_softmax T=20", "z"),
    (without_1_over_T, "cross_entropy_grad", "cross_entropy T=20", "z"),
    (without_1_over_T, "cross_entropy_grad", "cross_entropy soft T=100", "z"),
    (wrong_sign, "dense_input_grad", "dense", "x"),
    (transposed_weight, "dense_input_grad", "dense square", "x"),
    (transposed_filters, "conv2d_input_grad", "conv2d 3x3", "x"),
    (unflipped_filters, "conv2d_input_grad", "conv2d 3x3 same", "x"),
    (taps_off_by_one, "conv2d_weight_grad", "conv2d 3x3", "w"),
    (one_sample_for_the_bias_sum, "bias_grad", "dense", "b"),
    (opposite_corner, "max_pool2d_grad", "max_pool2d 2", "x"),
    (no_mask, "relu_grad", "relu", "x"),
    (cross_term_as_printed, "softmax_grad", "softmax T=1", "z"),
]


@pytest.mark.parametrize(
    "mistake, backend_function, name, argument", PLANTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_check_catches_a_planted_mistake(device, monkeypatch, mistake, backend_function, name, argument):
    functions = device.functions
    monkeypatch.setattr(functions, backend_function, mistake(getattr(functions, backend_function)))
    function, arguments, eps = CASES[name](device)
    assert wrong(check(function, arguments, eps)) == [argument]
    directions_alone = check(lambda *tensors: (function(*tensors), []), arguments, eps)
    assert wrong(directions_alone) == [argument], "the Jacobian alone saw it, which large shapes do without"


def test_check_catches_a_forgotten_dropout_scale():
    @op
    def dropout(x, rate):
        value, (pullback,) = ops.dropout.__wrapped__(x, rate, seed=1, layer=2, step=3)
        return value, (lambda g: pullback(g) * (1 - rate),)

    assert wrong(check(lambda x: dropout(x, rate=0.5), {"x": np.random.default_rng(0).standard_normal((4, 9))})) == [
        "x"
    ]


def test_check_sees_what_a_cotangent_of_ones_cannot():
    T = 20

    @op
    def softmax(z):
        p = ops.softmax(Tensor(z), T=T).data
        return p, (lambda g: (g - (g * p).sum(axis=1, keepdims=True)) * p * T,)

    z = Tensor(np.random.default_rng(0).standard_normal((3, 5)), requires_grad=True)
    true_and_claimed = [grad(f(z), [z], np.ones((3, 5)))[0] for f in (lambda z: ops.softmax(z, T=T), softmax)]
    assert np.abs(true_and_claimed).max() < 1e-14, "probabilities sum to 1: both gradients of the sum are 0"
    (result,) = check(softmax, {"z": z})
    assert result.error > 0.9


@op
def squared_cotangent(x):
    return 3 * x, (lambda g: 3 * g * g,)


@op
def cancelling(x):
    """A pullback that loses four digits: too many of float32's, not of float64's."""
    return 3 * x, (lambda g: 3 * g + 1e5 - 1e5,)


def test_nonlinearity_of_a_pullback_is_caught():
    assert nonlinearity(squared_cotangent, {"x": np.ones(3)}) > 0.1


def test_repeats_catches_a_pullback_that_drifts():
    counter = itertools.count()

    @op
    def drifting(x):
        return 3 * x, (lambda g: 3 * g + 1e-15 * next(counter),)

    assert repeats(lambda x: 3 * x, {"x": np.ones(3)})
    assert not repeats(drifting, {"x": np.ones(3)})


@op
def doubling_in_place(x):
    x *= 2
    return x, (lambda g: 2 * g,)


@pytest.mark.parametrize("judge", [gradcheck.check, gradcheck.check_float32, gradcheck.repeats])
def test_checks_refuse_an_operation_that_changes_its_input(judge):
    """Its own gradient is right; that of (f(x) + x * x) is not."""
    with pytest.raises(ValueError, match="changes its argument 0 in place"):
        judge(doubling_in_place, {"x": np.ones(3)})


def test_check_float32_catches_a_loss_of_precision():
    x = np.linspace(1, 2, 5)
    assert not wrong(check(cancelling, {"x": x}))
    assert wrong(check_float32(cancelling, {"x": x})) == ["x"]


@op
def wrong_in_a_small_entry_in_float32(x):
    """(1e7 x_0, x_1), the second derivative said to be 1.1 in float32, and to be 1 in float64."""
    scale = np.array([1e7, 1]).astype(x.dtype)
    return scale * x, (lambda g: scale * g * np.array([1, 1.1 if g.dtype == np.float32 else 1]).astype(g.dtype),)


def test_check_float32_catches_a_wrong_entry_beside_one_1e7_times_as_large():
    (result,) = check_float32(wrong_in_a_small_entry_in_float32, {"x": np.array([0.3, 0.7])})
    assert result.error < 1e-6, "the norm alone does not see it"
    assert 0.09 < result.entry_error < 0.11 and not result.passed


def test_check_float32_allows_what_rounding_explains():
    """The first derivative by x is what is left of two terms a million times as large."""
    x, w = np.array([0.3, 0.7]), np.array([[1, -1 + 2e-6], [1, 1]])

    def function(x, w):
        return (x.reshape(2, 1) * w).sum(axis=1)

    assert [result.entry_error for result in check_float32(function, {"x": x, "w": w})] == [0, 0]
    u = np.array([0.1, 0.3], np.float32)  # two numbers whose products with w are rounded

    def gradient(dtype):
        tensor, constant = (Tensor(a.astype(np.float32).astype(dtype), requires_grad=True) for a in (x, w))
        return grad(function(tensor, constant), [tensor], u.astype(dtype))[0]

    assert abs(gradient(np.float32)[0] / gradient(np.float64)[0] - 1) > 5 * gradcheck.ENTRY_TOLERANCE


def test_check_passes_no_gradient_that_is_not_a_number():
    @op
    def broken(x):
        return 3 * x, (lambda g: g * np.nan,)

    assert wrong(check(broken, {"x": np.ones(3)})) == ["x"]


def relu_with_pattern(x):
    return ops.relu(x), [x.data > 0]


@op
def wrong_in_a_small_entry(x):
    """(1e7 x_0, x_1), the second derivative said to be 2."""
    scale = np.array([1e7, 1.0])
    return scale * x, (lambda g: scale * g * np.array([1, 2]),)


@op
def wrong_beside_a_large_term(x):
    """1e7 x_0 + x_1, the second derivative said to be 2."""
    return np.array([1e7 * x[0] + x[1]]), (lambda g: g * np.array([1e7, 2.0]),)


@pytest.mark.parametrize("function", [wrong_in_a_small_entry, wrong_beside_a_large_term])
def test_check_catches_a_wrong_entry_beside_one_1e7_times_as_large(function):
    """So does PyTorch's gradcheck."""
    (result,) = check(function, {"x": np.array([0.3, 0.7])})
    assert result.entry_error > 0.4 and not result.passed
    assert result.error < 1e-6, "the norm alone does not see it"
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

    class InTorch(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return torch.tensor(function(Tensor(x.detach().numpy())).data)

        @staticmethod
        def backward(context, g):
            x = Tensor(np.ones(2), requires_grad=True)
            return torch.tensor(grad(function(x), [x], g.numpy())[0])

    point = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    assert not torch.autograd.gradcheck(InTorch.apply, point, raise_exception=False)


def test_check_passes_right_entries_beside_large_ones():
    """What a difference cannot know is not held against them: rounding, and a third derivative where the first is 0."""
    scale = np.array([1e7, 1.0, 1e-3])
    (result,) = check(lambda x: (x * scale) ** 3 + scale * x, {"x": np.array([0.3, 0.7, 0.0])})
    assert result.passed and result.entry_error <= gradcheck.ENTRY_TOLERANCE
    (result,) = check(lambda x: (x * scale).sum(), {"x": np.array([0.3, 0.7, 0.1])})
    assert result.passed


@pytest.mark.parametrize(
    ("checker", "setting"), [(check, "directions"), (check, "cotangents"), (check_float32, "cotangents")]
)
def test_check_refuses_to_compare_nothing(checker, setting):
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"^{setting} must be an integer of at least 1, got {count}$"):
            checker(lambda x: x * x, {"x": np.ones(3)}, **{setting: count})


def test_check_refuses_eps_for_what_is_no_argument():
    with pytest.raises(ValueError, match=r"^eps names \['X'\], the arguments are \['x'\]$"):
        check(ops.relu, {"x": np.ones(3)}, eps={"X": 1e-6})


def test_check_and_backward_need_no_assert():
    """Under python -O: a pullback of a wrong shape, and a wrong entry."""
    program = """
import numpy as np
from minicnn import Tensor, gradcheck, op
assert False
for pullback in (lambda g: g.sum(), lambda g: np.array([1e7, 2.0]) * g):
    function = op(lambda x: (np.array([1e7, 1.0]) * x, (pullback,)))
    try:
        print([result.passed for result in gradcheck.check(function, {"x": np.array([0.3, 0.7])})])
    except TypeError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-O", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "the pullback <lambda> gave float64() for an argument that is float64(2,)",
        "[False]",
    ]


def test_check_replaces_and_counts_directions_across_a_kink():
    x = np.linspace(1, 2, 5)
    x[2] = gradcheck.EPS
    assert wrong(check(lambda x: (ops.relu(x), []), {"x": x}, directions=20)) == ["x"]
    (result,) = check(relu_with_pattern, {"x": x}, directions=20)
    assert result.passed and result.directions == 20 and 0 < result.replaced < 20


def test_check_refuses_a_point_on_a_kink():
    with pytest.raises(VacuousCheck, match="cross a kink"):
        check(relu_with_pattern, {"x": np.array([1.0, 1e-12])})
    with pytest.raises(VacuousCheck, match="two sides of a kink"):
        check_float32(lambda x: relu_with_pattern((x + 1) - 1), {"x": np.array([1.0, 1e-9])})


@op
def larger_of_two_beside_one_1e7_times_as_large(x):
    """(1e7 x_2, max(x_0, x_1)), the derivative by x_0 said to be 1.1 in float32, and to be 1 in float64."""
    first, scale = x[0] >= x[1], x.dtype.type(1e7)
    slope = x.dtype.type(1.1 if x.dtype == np.float32 else 1)
    value = np.array([scale * x[2], max(x[0], x[1])], x.dtype)
    return value, (lambda g: np.array([slope * g[1] * first, g[1] * ~first, scale * g[0]], g.dtype),)


def test_check_float32_refuses_a_point_within_a_rounding_of_a_kink():
    """There the gradient jumps as far as it is large, which would excuse any error in it."""

    def function(x):
        return larger_of_two_beside_one_1e7_times_as_large(x), [x.data[0] >= x.data[1]]

    assert wrong(check_float32(function, {"x": np.array([0.6, 0.5, 0.3])})) == ["x"]
    with pytest.raises(VacuousCheck, match="a move by about one rounding crosses a kink"):
        check_float32(function, {"x": np.array([0.5, 0.5, 0.3])})


@pytest.mark.parametrize("checker", [check, check_float32])
def test_check_refuses_a_gradient_of_zero(checker):
    with pytest.raises(VacuousCheck, match="gradient by x is exactly 0"):
        checker(ops.relu, {"x": -np.ones(3)})


def test_check_takes_float64_and_leaves_arguments_as_they_were():
    with pytest.raises(TypeError, match="x is float32"):
        check(ops.relu, {"x": np.ones(3, np.float32)})
    x = Tensor(np.linspace(1, 2, 5), requires_grad=True)
    before = x.data
    check(ops.relu, {"x": x})
    check_float32(ops.relu, {"x": x})
    assert x.data is before and np.array_equal(before, np.linspace(1, 2, 5)) and x.grad is None


@pytest.mark.parametrize("function, status", [(ops.relu, 0), (cancelling, 1), (lambda x: 0 * x, 1)])
def test_gradient_table_has_a_row_per_dtype_and_an_exit_status(monkeypatch, capsys, function, status):
    case = gradient_table.Case(function, {"x": Tensor(np.linspace(1, 2, 5), requires_grad=True)})
    monkeypatch.setattr(gradient_table, "CASES", {"the case": lambda device: case})
    assert gradient_table.main(["--backend", "cpu"]) == status
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("the case")]
    assert any("FAILED" in line for line in lines) == bool(status)
    assert status or [line.split()[2:4] for line in lines] == [["x", "float64"], ["x", "float32"]]
    assert ("1 FAILED" in out.splitlines()[-1]) == bool(status) and max(map(len, out.splitlines())) <= 80


def test_gradient_table_ends_with_counts_the_worst_and_what_replaced_means(monkeypatch, capsys):
    x = np.linspace(1, 2, 5)
    x[2] = gradcheck.EPS
    case = gradient_table.Case(relu_with_pattern, {"x": Tensor(x, requires_grad=True)})
    monkeypatch.setattr(gradient_table, "CASES", {"the case": lambda device: case})
    assert gradient_table.main(["--backend", "cpu", "--backend", IN_NUMPY]) == 0
    out = capsys.readouterr().out
    for backend, computed in (("cpu", cpu.convolutions()), (IN_NUMPY, "numpy")):
        assert f"\n{backend} ({computed})\n" in out
        assert re.search(rf"\n{backend}: 2 gradients of 1 cases, 0 FAILED, \d+ s\n", out)
    assert len(re.findall(r"\n  worst in float64 \S+e-\d\d of 1e-06 allowed: the case, x\n", out)) == 2
    assert "\n  1 of 4 directions replaced\n" in out and out.splitlines()[-4].startswith("replaced: ")
    assert out.splitlines()[-1] == "all ok"


def test_gradient_table_names_a_backend_that_is_missing(monkeypatch, capsys):
    def absent(name):
        raise DeviceError("no such machine part")

    monkeypatch.setattr(tests, "open_device", absent)
    assert gradient_table.main(["--backend", "cuda"]) == 0
    assert "cuda: skipped. no such machine part" in capsys.readouterr().out
