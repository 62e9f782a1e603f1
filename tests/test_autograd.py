"""The engine: order of the backward pass, what it calls and keeps, and the operators of Tensor."""

import operator

import numpy as np
import pytest

from minicnn.autograd import Tensor, grad, no_grad, op


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def counting(weights):
    """A weighted sum of its arguments as an operation, and the list of the arguments whose pullbacks were called."""
    calls = []

    @op
    def weighted_sum(*args):
        def pullback(i):
            def call(g):
                calls.append(i)
                return g * weights[i]

            return call

        return sum(w * a for w, a in zip(weights, args, strict=True)), [pullback(i) for i in range(len(args))]

    return weighted_sum, calls


def test_shared_subexpressions_are_visited_once_after_all_their_uses():
    calls = []

    @op
    def recorded(a, name):
        return a * 2, (lambda g: calls.append(name) or g * 2,)

    x = leaf(3.0)
    shared = recorded(x, "shared")
    early = recorded(shared, "early")
    late = recorded(recorded(shared, "late 1"), "late 2")
    (early + late * shared).backward()  # 4 x + 8 x * 2 x
    assert calls.count("shared") == 1 and calls[-1] == "shared"
    assert sorted(calls) == ["early", "late 1", "late 2", "shared"]
    assert x.grad == 4 + 32 * 3


@pytest.mark.parametrize("seed", range(5))
def test_random_graph_against_forward_mode(seed):
    """Every node uses two earlier ones at random; derivatives carried forward beside the values must agree."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=3)
    nodes = [leaf(v) for v in start]
    derivatives = list(np.eye(3))
    for _ in range(40):
        i, j = rng.integers(0, len(nodes), 2)
        a, b = nodes[i], nodes[j]
        if rng.random() < 0.5:
            nodes.append(a + b * 0.5)
            derivatives.append(derivatives[i] + derivatives[j] * 0.5)
        else:
            nodes.append(a * b * 0.3)
            derivatives.append((derivatives[i] * float(b) + derivatives[j] * float(a)) * 0.3)
    total = sum(nodes[1:], nodes[0])
    total.backward()
    expected = sum(derivatives)
    assert np.abs(expected).min() > 0.1
    assert np.array([float(x.grad) for x in nodes[:3]]) == pytest.approx(expected, rel=1e-12, abs=0)


def test_depth_10000_with_two_paths_at_every_level():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + y * 1e-4
    y.backward()
    assert float(x.grad) == pytest.approx((1 + 1e-4) ** 10_000, rel=1e-10)


def test_leaves_accumulate_and_nothing_else_keeps_a_gradient():
    x, constant = leaf([1.0, 2.0]), Tensor(np.ones(2))
    middle = x * 3
    (middle * constant).sum().backward()
    (middle * constant).sum().backward()
    assert x.grad.tolist() == [6, 6]
    assert middle.grad is None and constant.grad is None
    x.grad = None
    (x * 5).sum().backward()
    assert x.grad.tolist() == [5, 5]


def test_accumulation_leaves_an_earlier_gradient_array_alone():
    x = leaf([1.0])
    (x * 2).sum().backward()
    earlier = x.grad
    (x * 2).sum().backward()
    assert earlier.tolist() == [2] and x.grad.tolist() == [4]


def test_a_leaf_is_its_own_output():
    x = leaf(2.0)
    x.backward()
    assert x.grad == 1


def test_backward_calls_no_pullback_of_a_constant():
    weighted_sum, calls = counting([2.0, 3.0, 5.0])
    x, y = leaf(1.0), leaf(1.0)
    weighted_sum(x, Tensor(1.0), y).backward()
    assert sorted(calls) == [0, 2]
    assert (x.grad, y.grad) == (2, 5)


def test_grad_calls_only_the_pullbacks_on_the_way_to_its_inputs():
    first, first_calls = counting([2.0, 3.0])
    second, second_calls = counting([5.0, 7.0])
    x, w1, w2 = leaf(1.0), leaf(1.0), leaf(1.0)
    hidden = first(x, w1)
    output = second(hidden, w2)
    assert [float(g) for g in grad(output, [x])] == [10]
    assert (first_calls, second_calls) == ([0], [0])
    assert x.grad is None and w1.grad is None and w2.grad is None


def test_grad_of_a_hidden_tensor_does_not_go_below_it():
    first, first_calls = counting([2.0])
    second, _ = counting([5.0, 7.0])
    w = leaf(1.0)
    hidden = first(leaf(1.0))
    found = grad(second(hidden, w), [w, hidden])
    assert [float(g) for g in found] == [7, 5]
    assert first_calls == []


def test_grad_of_an_input_that_leads_to_another_input():
    x = leaf(3.0)
    y = x * x
    assert [float(g) for g in grad(y * 2 + x, [x, y])] == [13, 2]


def test_grad_without_a_path():
    with pytest.raises(ValueError, match="input 1 does not lead to the output: was it made with requires_grad=True"):
        x = leaf(1.0)
        grad(x * 2, [x, leaf(1.0)])


def test_no_grad_keeps_no_graph_and_ends_with_an_error_as_well():
    x = leaf(1.0)
    with pytest.raises(KeyError), no_grad():
        with no_grad():
            pass
        y = x * 2
        assert not y.requires_grad and not y.edges
        raise KeyError
    assert (x * 2).requires_grad
    with pytest.raises(ValueError, match="backward on a tensor that no tensor with requires_grad=True leads to"):
        y.backward()


def test_backward_with_a_seed_is_linear_in_it():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    seed = np.array([[1.0, -1.0], [0.5, 0.0]])
    (x * x).backward(seed)
    assert x.grad.tolist() == (2 * x.data * seed).tolist()


def test_a_tensor_of_one_element_needs_no_seed():
    x = leaf([[2.0]])
    (x * x).backward()
    assert x.grad.tolist() == [[4]]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (None, r"backward on a tensor of shape \(2, 3\) needs a seed of that shape"),
        (np.ones((3, 2)), r"seed is float64\(3, 2\), the tensor is float64\(2, 3\)"),
        (np.ones(()), r"seed is float64\(\), the tensor is float64\(2, 3\)"),
        (np.ones((2, 3), np.float32), r"seed is float32\(2, 3\), the tensor is float64\(2, 3\)"),
    ],
)
def test_wrong_seed(seed, message):
    y = leaf(np.ones((2, 3))) * 2
    with pytest.raises(ValueError, match=message):
        y.backward(seed)
    with pytest.raises(ValueError, match=message):
        grad(y, [y], seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g: g.sum(), r"pullback gave float64\(\) for float64\(2, 3\)"),
        (lambda g: g.T, r"pullback gave float64\(3, 2\) for float64\(2, 3\)"),
        (lambda g: g.astype(np.float32), r"pullback gave float32\(2, 3\) for float64\(2, 3\)"),
    ],
)
def test_a_pullback_of_another_shape_or_dtype_is_caught(wrong, message):
    broken = op(lambda a: (a * 1, (wrong,)))
    with pytest.raises(AssertionError, match=message):
        broken(leaf(np.ones((2, 3)))).sum().backward()


def test_a_gradient_without_a_pullback_is_not_lost_in_silence():
    @op
    def forgetful(a, b):
        return a + b, (lambda g: g,)

    a, b = leaf([1.0]), leaf([2.0])
    with pytest.raises(TypeError, match="forgetful has no gradient by argument 1 or later"):
        forgetful(a, b)
    with pytest.raises(TypeError, match="__pow__ has no gradient by argument 1"):
        a**b
    with pytest.raises(TypeError, match="forgetful: pass the Tensor b by position"):
        forgetful(a, b=b)
    forgetful(a, Tensor(b.data)).sum().backward()
    assert a.grad.tolist() == [1.0]


def test_tensors_hold_floats():
    assert Tensor(3).dtype == np.float64 and Tensor([1, 2.5]).shape == (2,)
    assert Tensor(np.float32(3)).dtype == np.float32
    with pytest.raises(TypeError, match="a Tensor holds float32 or float64, got int64"):
        Tensor(np.arange(3, dtype=np.int64))
    with pytest.raises(TypeError, match="a Tensor holds float32 or float64, got float16"):
        Tensor(np.ones(3, np.float16))
    with pytest.raises(TypeError, match="expected an array of one of cpu.*, got str"):
        Tensor("text")


def test_dtypes_do_not_mix():
    single, double = leaf([1.0], np.float32), leaf([1.0])
    with pytest.raises(TypeError, match=r"__add__: arguments differ in device or dtype: .*float32.*float64"):
        single + double
    for constant in (np.ones(1), np.float64(2)):
        with pytest.raises(TypeError, match="__mul__: a constant turns float32 into float64"):
            single * constant
    y = single * 2 + 1.5 + np.ones(1, np.float32)
    y.backward()
    assert y.dtype == single.grad.dtype == np.float32


def derivative(function, arguments, which, cotangent, h=1e-30):
    """Gradient of sum(cotangent function(*arguments)) by one argument, by complex steps: exact to rounding."""
    gradient = np.zeros(arguments[which].shape)
    for index in np.ndindex(gradient.shape):
        moved = [a.astype(complex) for a in arguments]
        moved[which][index] += 1j * h
        gradient[index] = (cotangent * function(*moved).imag).sum() / h
    return gradient


SHAPES = [((2, 1, 3), (4, 1)), ((3,), (2, 3)), ((), (2, 2)), ((2, 3), (1, 1)), ((2, 3), (2, 3))]
BINARY = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting(function, shapes):
    rng = np.random.default_rng(5)
    arrays = [rng.uniform(0.5, 2, shape) for shape in shapes]
    for swapped in (arrays, arrays[::-1]):
        a, b = (leaf(v) for v in swapped)
        y = function(a, b)
        assert np.array_equal(y.data, function(*swapped))
        seed = rng.normal(size=y.shape)
        y.backward(seed)
        for which, tensor in enumerate((a, b)):
            assert tensor.grad.shape == tensor.shape
            np.testing.assert_allclose(tensor.grad, derivative(function, swapped, which, seed), rtol=1e-12)


@pytest.mark.parametrize(
    "left", [np.array([[1.5], [-2.0]]), np.float64(1.5), 1.5, 3], ids=["array", "scalar", "float", "int"]
)
@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_constants_on_either_side(function, left):
    rng = np.random.default_rng(6)
    values = rng.uniform(0.5, 2, (1, 3))
    for build in (lambda x: function(left, x), lambda x: function(x, left)):
        x = leaf(values)
        y = build(x)
        assert isinstance(y, Tensor) and np.array_equal(y.data, build(values))
        seed = rng.normal(size=y.shape)
        y.backward(seed)
        np.testing.assert_allclose(x.grad, derivative(build, [values], 0, seed), rtol=1e-12)


UNARY = {
    "negation": lambda x: -x,
    "power": lambda x: x**3,
    "root": lambda x: x**0.5,
    "sum": lambda x: x.sum(),
    "sum over one axis": lambda x: x.sum(axis=1),
    "sum over the last axis": lambda x: x.sum(axis=-1),
    "sum over two axes": lambda x: x.sum(axis=(-1, 0)),
    "sum kept": lambda x: x.sum(axis=(2, 0), keepdims=True),
    "mean": lambda x: x.mean(),
    "mean over one axis": lambda x: x.mean(axis=0),
    "mean over two axes": lambda x: x.mean(axis=(1, 2), keepdims=True),
    "reshape": lambda x: x.reshape(4, 6),
    "reshape with an inferred size": lambda x: x.reshape(-1, 2, 2),
    "power of mean": lambda x: (x.mean(axis=1) ** 2).sum(axis=0),
}


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
@pytest.mark.parametrize("order", ["C", "F"])
def test_functions_of_one_tensor(function, order):
    rng = np.random.default_rng(7)
    values = np.array(rng.uniform(0.5, 2, (2, 3, 4)), order=order)
    x = Tensor(values, requires_grad=True)
    y = function(x)
    np.testing.assert_allclose(y.data, function(values), rtol=1e-14)
    seed = rng.normal(size=y.shape)
    y.backward(seed)
    np.testing.assert_allclose(x.grad, derivative(function, [values], 0, seed), rtol=1e-12)


def test_matrix_products():
    rng = np.random.default_rng(8)
    arrays = [rng.normal(size=(4, 3)), rng.normal(size=(3, 2))]
    seed = rng.normal(size=(4, 2))
    expected = [derivative(operator.matmul, arrays, which, seed) for which in (0, 1)]
    for constants in ((), (0,), (1,)):
        args = [values if i in constants else leaf(values) for i, values in enumerate(arrays)]
        y = args[0] @ args[1]
        assert isinstance(y, Tensor) and np.array_equal(y.data, arrays[0] @ arrays[1])
        y.backward(seed)
        for i, argument in enumerate(args):
            if i not in constants:
                np.testing.assert_allclose(argument.grad, expected[i], rtol=1e-12)


def test_a_loss_of_ones_own():
    """Squared error to a constant with operators alone, as a user would write it."""
    x = leaf([[1.0, 2.0], [3.0, 4.0]], np.float32)
    target = np.array([[0.0, 2.0], [5.0, 4.0]], np.float32)
    loss = ((target - x) ** 2).mean() / 2
    loss.backward()
    assert float(loss) == pytest.approx(5 / 8)
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [[0.25, 0], [-0.5, 0]]


def test_repr():
    assert repr(leaf(1.0)) == "Tensor(array(1.), requires_grad=True)"
    assert repr(Tensor(1.0)) == "Tensor(array(1.))"
