"""The engine: order of the backward pass, what it calls and keeps, and the operators of Tensor."""

import contextlib
import copy
import gc
import operator
import pickle
import threading
import weakref

import numpy as np
import pytest

from minicnn import ops
from minicnn.autograd import Tensor, grad, no_grad, op
from minicnn.backend import to_host
from minicnn.optim import NesterovSGD
from minicnn.weights import get_weights, set_weights
from tests.conftest import dense_network


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def counting(weights):
    """A weighted sum of its arguments as an operation, and the list of the arguments whose pullbacks were called."""
    calls = []

    @op
    def weighted_sum(*args):
        def pullback(i):
            return lambda g: calls.append(i) or g * weights[i]

        return sum(w * a for w, a in zip(weights, args, strict=True)), tuple(map(pullback, range(len(args))))

    return weighted_sum, calls


def test_backward_visits_shared_subexpressions_once_after_all_their_uses():
    calls = []

    @op
    def recorded(a, name):
        return a * 2, (lambda g: calls.append(name) or g * 2,)

    x = leaf(3.0)
    shared = recorded(x, "shared")
    early = recorded(shared, "early")
    late = recorded(recorded(shared, "late 1"), "late 2")
    (early + late * shared).backward()  # 4 x + 8 x * 2 x
    assert calls[-1] == "shared" and sorted(calls) == ["early", "late 1", "late 2", "shared"]
    assert x.grad == 4 + 32 * 3


@pytest.mark.parametrize("seed", range(5))
def test_backward_of_a_random_graph_against_forward_mode(seed):
    """Every node uses two earlier ones at random; derivatives carried forward beside the values must agree."""
    rng = np.random.default_rng(seed)
    nodes, derivatives = [leaf(v) for v in rng.normal(size=3)], list(np.eye(3))
    for _ in range(40):
        i, j = rng.integers(0, len(nodes), 2)
        a, b = nodes[i], nodes[j]
        if rng.random() < 0.5:
            nodes.append(a + b * 0.5)
            derivatives.append(derivatives[i] + derivatives[j] * 0.5)
        else:
            nodes.append(a * b * 0.3)
            derivatives.append((derivatives[i] * float(b) + derivatives[j] * float(a)) * 0.3)
    sum(nodes[1:], nodes[0]).backward()
    expected = sum(derivatives)
    assert np.abs(expected).min() > 0.1
    assert np.array([float(x.grad) for x in nodes[:3]]) == pytest.approx(expected, rel=1e-12, abs=0)


def test_backward_at_depth_10000_with_two_paths_at_every_level():
    x = y = leaf(1.0)
    for _ in range(10_000):
        y = y + y * 1e-4
    y.backward()
    assert float(x.grad) == pytest.approx((1 + 1e-4) ** 10_000, rel=1e-10)


def test_backward_accumulates_in_leaves_and_nowhere_else():
    x, constant = leaf([1.0, 2.0]), Tensor(np.ones(2))
    middle = x * 3
    (middle * constant).sum().backward()
    earlier = x.grad
    (middle * constant).sum().backward()
    assert x.grad.tolist() == [6, 6] and earlier.tolist() == [3, 3]
    assert middle.grad is None and constant.grad is None
    x.grad = None
    (x * 5).sum().backward()
    assert x.grad.tolist() == [5, 5]


def test_backward_of_a_leaf_itself():
    x = leaf(2.0)
    x.backward()
    assert x.grad == 1


def test_backward_calls_no_pullback_of_a_constant():
    weighted_sum, calls = counting([2.0, 3.0, 5.0])
    x, y = leaf(1.0), leaf(1.0)
    weighted_sum(x, Tensor(1.0), y).backward()
    assert sorted(calls) == [0, 2]
    assert (x.grad, y.grad) == (2, 5)


def test_backward_is_linear_in_its_cotangent():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    cotangent = np.array([[1.0, -1.0], [0.5, 0.0]])
    (x * x).backward(cotangent)
    assert x.grad.tolist() == (2 * x.data * cotangent).tolist()


def test_backward_of_one_element_needs_no_cotangent():
    x = leaf([[2.0]])
    (x * x).backward()
    assert x.grad.tolist() == [[4]]


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (None, r"backward on a tensor of shape \(2, 3\) needs a cotangent of that shape"),
        (np.ones((3, 2)), r"cotangent is float64\(3, 2\), the tensor is float64\(2, 3\)"),
        (np.ones(()), r"cotangent is float64\(\), the tensor is float64\(2, 3\)"),
        (np.ones((2, 3), np.float32), r"cotangent is float32\(2, 3\), the tensor is float64\(2, 3\)"),
    ],
)
def test_backward_and_grad_refuse_a_wrong_cotangent(cotangent, message):
    y = leaf(np.ones((2, 3))) * 2
    with pytest.raises(ValueError, match=message):
        y.backward(cotangent)
    with pytest.raises(ValueError, match=message):
        grad(y, [y], cotangent)


def test_grad_calls_only_the_pullbacks_on_the_way_to_its_inputs():
    first, first_calls = counting([2.0, 3.0])
    second, second_calls = counting([5.0, 7.0])
    x, w1, w2 = leaf(1.0), leaf(1.0), leaf(1.0)
    output = second(first(x, w1), w2)
    assert [float(g) for g in grad(output, [x])] == [10]
    assert (first_calls, second_calls) == ([0], [0])
    assert x.grad is None and w1.grad is None and w2.grad is None


def test_grad_of_a_hidden_tensor_does_not_go_below_it():
    first, first_calls = counting([2.0])
    second, _ = counting([5.0, 7.0])
    w = leaf(1.0)
    hidden = first(leaf(1.0))
    assert [float(g) for g in grad(second(hidden, w), [w, hidden])] == [7, 5]
    assert first_calls == []


def test_grad_of_an_input_that_leads_to_another_input():
    x = leaf(3.0)
    y = x * x
    assert [float(g) for g in grad(y * 2 + x, [x, y])] == [13, 2]


def test_grad_without_a_path():
    x = leaf(1.0)
    with pytest.raises(ValueError, match="input 1 does not lead to the output: was it made with requires_grad=True"):
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


@pytest.mark.parametrize("same", [False, True])
def test_no_grad_left_in_another_order_than_entered(same):
    a = no_grad()
    b = a if same else no_grad()
    for act, records in ((a.__enter__, False), (b.__enter__, False), (a.__exit__, False), (b.__exit__, True)):
        act(*(None,) * 3 if act.__name__ == "__exit__" else ())
        assert (leaf(1.0) * 2).requires_grad == records


def test_no_grad_is_of_one_thread():
    """Entered in a, entered in b, left in a, left in b: each thread records when it should, and none is stuck."""
    turns, records = [threading.Event() for _ in range(5)], {}

    def run(name, enters_at, leaves_at):
        turns[enters_at].wait()
        with no_grad():
            turns[enters_at + 1].set()
            turns[leaves_at].wait()
            inside = (leaf(1.0) * 2).requires_grad
        records[name] = inside, (leaf(1.0) * 2).requires_grad
        turns[leaves_at + 1].set()

    threads = [threading.Thread(target=run, args=a) for a in (("a", 0, 2), ("b", 1, 3))]
    for thread in threads:
        thread.start()
    turns[0].set()
    turns[2].wait(10)  # both are within no_grad
    records["main"] = (leaf(1.0) * 2).requires_grad
    for thread in threads:
        thread.join(10)
    assert records == {"main": True, "a": (False, True), "b": (False, True)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g: g.sum(), r"the pullback <lambda> gave float64\(\) for an argument that is float64\(2, 3\)"),
        (lambda g: g.T, r"the pullback <lambda> gave float64\(3, 2\) for an argument that is float64\(2, 3\)"),
        (
            lambda g: g.astype(np.float32),
            r"the pullback <lambda> gave float32\(2, 3\) for an argument that is float64\(2, 3\)",
        ),
        (lambda g: None, r"the pullback <lambda> gave NoneType\(\) for an argument that is float64\(2, 3\)"),
    ],
)
def test_op_with_a_pullback_of_another_shape_or_dtype(wrong, message):
    broken = op(lambda a: (a * 1, (wrong,)))
    with pytest.raises(TypeError, match=message):
        broken(leaf(np.ones((2, 3)))).sum().backward()


def test_op_with_pullbacks_that_are_no_tuple():
    @op
    def comma_forgotten(a):
        return a * 2, (lambda g: g * 2)

    with pytest.raises(TypeError, match=r"comma_forgotten: its pullbacks must be a tuple, \(pullback,\) with a comma"):
        comma_forgotten(leaf(1.0))


def test_op_with_a_result_that_is_no_value_and_pullbacks():
    for result in (1.0, np.ones(3), (np.ones(3),)):
        broken = op(lambda a, result=result: result)
        with pytest.raises(TypeError, match=r"<lambda> must return \(value, pullbacks\)"):
            broken(leaf(1.0))
    with pytest.raises(TypeError, match="<lambda>: its value must be an array, got float"):
        op(lambda a: (1.0, ()))(1.0)


CHANGES = {
    "an optimiser's step": lambda network, w: NesterovSGD(network.parameters(), 0.1).step(),
    "set_weights": lambda network, w: set_weights(network, get_weights(network)),
    "in place": lambda network, w: setattr(w, "data", operator.iadd(w.data, 1)),
    "by hand": lambda network, w: setattr(w, "version", w.version + 1),
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_backward_refuses_data_changed_since_the_forward_pass(device, change, trained):
    """Of a parameter, and of a constant on the way to what is trained; no gradient is touched, and forward mends it."""
    network, x = dense_network(dtype=np.float64).to(device.name), Tensor(device.asarray(np.ones((2, 12))), trained)
    w = network.parameters()["classes_W"]
    w.requires_grad = trained
    for parameter in network.parameters().values():
        parameter.grad = device.xp.zeros_like(parameter.data)
    before = network(x).sum()
    change(network, w)
    for backward in (before.backward, lambda: grad(before, [network.parameters()["hidden_W"]])):
        with pytest.raises(ValueError, match=r"changed between forward and backward, .* call forward again$"):
            backward()
    assert not any(to_host(p.grad).any() for p in network.parameters().values() if p.grad is not None)
    network(x).sum().backward()


def test_backward_refuses_parameters_moved_since_the_forward_pass(device):
    network = dense_network()
    y = network(Tensor(np.ones((2, 12), np.float32))).sum()
    network.to(device.name)
    if device.name == "cpu":
        y.backward()  # they have not moved
    else:
        with pytest.raises(ValueError, match=r"changed between forward and backward, .* \.to\(\)"):
            y.backward()


VIEWS = {
    "an index": lambda a: a[0],
    "a slice": lambda a: a[0:2],
    "reshape": lambda a: a.reshape(4, 16),
    "T": lambda a: a.T,
    "flatten": ops.flatten,
    "a view of a view": lambda a: a[1:].T[0],
    "a Tensor of its data": lambda a: Tensor(a.data),
    "a Tensor of a part of its data": lambda a: Tensor(a.data[1:, ::2]),
    "a copy of the Tensor": copy.copy,
}


each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@pytest.mark.parametrize("graph", [contextlib.nullcontext, no_grad], ids=["with a graph", "without"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@each_view
def test_backward_refuses_a_view_of_what_changed(device, view, change, graph):
    network = dense_network(dtype=np.float64).to(device.name)
    parameter = network.parameters()["classes_W"]
    with graph():
        used = view(parameter)
    y = (used * Tensor(device.asarray(np.ones(used.shape)), requires_grad=True)).sum()
    for other in network.parameters().values():
        other.grad = device.xp.zeros_like(other.data)
    change(network, parameter)
    with pytest.raises(ValueError, match=r"changed between forward and backward, .* call forward again$"):
        y.backward()


@each_view
def test_backward_refuses_what_changed_through_a_view(device, view):
    a, w = (Tensor(device.asarray(np.ones((16, 4))), requires_grad=True) for _ in range(2))
    y = (a * w).sum()
    view(a).data -= 5
    with pytest.raises(ValueError, match=r"changed between forward and backward, .* call forward again$"):
        y.backward()
    (a * w).sum().backward()


def test_graph_is_gone_with_its_last_tensor(device):
    """Its arrays too, by no garbage collection: they are the memory of the next step."""
    x = Tensor(device.asarray(np.ones((2, 3))), requires_grad=True)
    y = ops.relu(x * 2).sum()
    arrays = [weakref.ref(parent.data) for parent, _ in y.edges]
    gc.disable()
    try:
        y.backward()
        del y
        assert [array() for array in arrays] == [None]
    finally:
        gc.enable()


def test_backward_takes_changes_of_other_memory(device):
    a, w = (Tensor(device.asarray(np.ones((2, 3))), requires_grad=True) for _ in range(2))
    y = (a[0] * w).sum()
    for other in (Tensor(a.data.copy()), copy.deepcopy(a), Tensor(device.asarray(np.ones((2, 3))))):
        other.data -= 5
        assert other.version == 1
    y.backward()
    assert (a.data == 1).all()


def test_tensor_of_a_fresh_array_was_never_changed():
    """Also where its memory is that of an array that is gone, and was."""
    for _ in range(1000):
        t = Tensor(np.ones(3))
        assert t.version == 0
        t.data += 1
        assert t[1:].version == Tensor(t.data).version == 1


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"]
)
def test_tensor_duplicated_shares_its_version_with_its_own_views(duplicate):
    a = leaf([1.0, 2.0])
    a.data += 1
    b = duplicate(a)
    assert b.version == 1 and b.data.tolist() == [2, 3]
    y = (b[0:1] * b[1:2]).sum()
    a.data += 1
    y.backward()
    y = (Tensor(b.data) * leaf([1.0, 1.0])).sum()
    b.data += 1
    with pytest.raises(ValueError, match="changed between forward and backward"):
        y.backward()


def test_backward_refuses_a_hidden_value_changed_in_place():
    x = leaf([1.0, 2.0])
    y = x.exp()
    y.data *= 2
    with pytest.raises(ValueError, match=r"the data \(2,\) of a Tensor changed"):
        y.sum().backward()


def test_backward_takes_data_that_was_replaced():
    """The graph keeps the array that it was made with."""
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    x.data = np.array([5.0, 5.0])
    y.backward()
    assert x.grad.tolist() == [2, 4]


ALIASES = {
    "the leaf itself": lambda x: x,
    "reshape": lambda x: x.reshape(3, 2),
    "transpose": lambda x: x.T,
    "a pullback that returns its cotangent": op(lambda a: (a * 1, (lambda g: g,))),
    "a pullback that returns a part of it": op(lambda a: (np.stack([a, a]), (lambda g: g[0],))),
}


@pytest.mark.parametrize("function", ALIASES.values(), ids=ALIASES)
def test_gradients_are_no_one_else_s_arrays(function):
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    y = function(x)
    cotangent = np.ones(y.shape)
    y.backward(cotangent)
    (by_grad,) = grad(y, [x], cotangent)
    for gradient in (x.grad, by_grad):
        assert gradient.tolist() == [[1] * 3] * 2
        gradient *= 7
    assert (cotangent == 1).all() and x.data[1, 2] == 6


def kept_by(pullback_of, shared=False):
    """An operation whose pullback returns an array that it keeps, or a part of it, and that array."""
    kept = np.full((2, 2, 3), 3.0)
    if shared:
        return op(lambda a: (a * 1, (lambda g: g,), lambda g: pullback_of(kept))), kept
    return op(lambda a: (a * 1, (lambda g: pullback_of(kept),))), kept


KEPT = {
    "itself": (lambda kept: kept[0], False, lambda x: x),
    "a part": (lambda kept: kept[:, 0], False, lambda x: x),
    "before another operation": (lambda kept: kept[0], False, lambda x: x.reshape(3, 2).reshape(2, 3)),
    "for all pullbacks": (lambda kept: kept[0], True, lambda x: x.T.T),
}


@pytest.mark.parametrize(("pullback_of", "shared", "before"), KEPT.values(), ids=KEPT)
def test_gradients_are_no_arrays_that_a_pullback_keeps(pullback_of, shared, before):
    function, kept = kept_by(pullback_of, shared)
    x = leaf(np.ones((2, 3)))
    y = function(before(x)).sum()
    y.backward()
    for gradient in (x.grad, *grad(y, [x])):
        assert (gradient == 3).all()
        gradient *= 7
    assert (kept == 3).all()


def test_gradients_of_two_leaves_are_two_arrays(device):
    a, b = (Tensor(device.asarray(np.ones(3)), requires_grad=True) for _ in range(2))
    both = op(lambda a, b: (a + b, (lambda g: g, lambda g: g)))
    both(a, b).sum().backward()
    a.grad += 1
    assert to_host(a.grad).tolist() == [2] * 3 and to_host(b.grad).tolist() == [1] * 3


def test_gradients_of_hidden_tensors_are_arrays_of_their_own():
    x = leaf([1.0, 2.0])
    y = x.reshape(2, 1)
    for g in grad(y.reshape(1, 2), [x, y], np.ones((1, 2))):
        assert g.tolist() in ([1, 1], [[1], [1]])
        g += 1


def test_operations_underflow_whatever_numpy_is_told():
    """1e-30 squared is no float32: 0, and no error for one who wants errors of other things."""
    x = leaf([1e-30, 1.0], np.float32)
    with np.errstate(all="raise"):
        y = x * x * x
        y.sum().backward()
        (x.exp() @ x).backward()
        with pytest.raises(FloatingPointError):
            x / (x - x)
    assert y.data.tolist() == [0, 1]


@pytest.mark.parametrize("power", [0, 0.0, np.zeros(4)], ids=str)
def test_tensor_power_of_0_has_the_gradient_0(device, power):
    """x ** 0 is 1 for every x, as in PyTorch: also at 0, where 0 times 0 ** -1 would be NaN."""
    x = Tensor(device.asarray(np.array([0.0, 2.0, np.inf, np.nan])), requires_grad=True)
    y = x ** (device.asarray(power) if isinstance(power, np.ndarray) else power)
    y.sum().backward()
    assert to_host(y.data).tolist() == [1] * 4 and to_host(x.grad).tolist() == [0] * 4


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tensor_division_by_numbers_whose_square_is_no_float(size):
    """d(a/b)/db = -(a/b)/b, not -a/(b b)."""
    a, b = leaf(size), leaf(size)
    (a / b).backward()
    assert b.grad == -1 / size == -a.grad
    b.grad = None
    (size / b).backward()
    assert b.grad == -1 / size


@pytest.mark.parametrize(
    "call", [lambda x: x.sum(axis=0), lambda x: x.mean(axis=0), lambda x: x.max(axis=0), lambda x: x.transpose(0)]
)
def test_tensor_without_axes_has_no_axis_0(call):
    with pytest.raises(ValueError, match="axis 0 is out of bounds for array of dimension 0|axes don't match array"):
        call(leaf(1.0))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8, np.int64], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "of",
    [lambda n: n, np.array, lambda n: np.array([n, n]), lambda n: [int(n)] * 2],
    ids=["one", "without axes", "array", "list"],
)
def test_tensor_power_of_any_integer(device, kind, of):
    """1 less than the smallest integer of a type is its largest."""
    for n in (np.iinfo(kind).min, 0, 1, 3) if np.iinfo(kind).bits < 64 else (-3, 0, 2):
        x = Tensor(device.asarray(np.array([1.001, 0.999])), requires_grad=True)
        constant = of(kind(n))
        y = x ** (device.asarray(constant) if isinstance(constant, np.ndarray) else constant)
        y.sum().backward()
        np.testing.assert_allclose(to_host(y.data), to_host(x.data) ** float(n), rtol=1e-12)
        np.testing.assert_allclose(to_host(x.grad), n * to_host(x.data) ** float(n - 1) if n else 0 * to_host(x.data))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tensor_operators_take_lists(device, dtype):
    """As constants of the Tensor's dtype, on its device; with a gradient."""
    for function, lists in (
        (lambda t, c: t**c, [2.0, 3.0]),
        (lambda t, c: t @ c, [[1.0], [2.0]]),
        (lambda t, c: c @ t, [[1.0, 2.0]]),
        (lambda t, c: t @ c, (1.0, 2.0)),
    ):
        found = []
        for constant in (lists, device.asarray(np.array(lists, dtype))):
            t = Tensor(device.asarray(np.array([[1.0, 2.0], [3.0, 5.0]], dtype)), requires_grad=True)
            y = function(t, constant)
            y.sum().backward()
            found.append((to_host(y.data).tolist(), to_host(t.grad).tolist()))
            assert y.dtype == dtype
        assert found[0] == found[1]


@pytest.mark.parametrize("axis", [(0, 1), (), [0]], ids=str)
def test_tensor_max_refuses_several_axes(axis):
    with pytest.raises(TypeError, match=r"^max takes one axis, or None for all, got "):
        leaf([[1.0, 2.0]]).max(axis=axis)


def test_tensor_index_by_an_empty_list():
    x = leaf([1.0, 2.0])
    y = x[[]]
    y.sum().backward()
    assert y.shape == (0,) and x.grad.tolist() == [0, 0]


def test_tensor_max_gives_nan_to_the_first_nan(device):
    """As PyTorch: NaN is larger than any number."""
    values = np.array([[1.0, np.nan, np.nan], [np.inf, 2, np.nan]])
    x = Tensor(device.asarray(values), requires_grad=True)
    y = x.max(axis=1)
    y.sum().backward()
    assert np.isnan(to_host(y.data)).all() and to_host(x.grad).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_op_loses_no_gradient_in_silence():
    @op
    def forgetful(a, b):
        return a + b, (lambda g: g,)

    a, b = leaf([1.0]), leaf([2.0])
    with pytest.raises(TypeError, match="forgetful has no gradient by argument 1"):
        forgetful(a, b)
    with pytest.raises(TypeError, match="__pow__ has no gradient by argument 1"):
        a**b
    with pytest.raises(TypeError, match="forgetful: pass the Tensor b by position"):
        forgetful(a, b=b)
    forgetful(a, Tensor(b.data)).sum().backward()
    assert a.grad.tolist() == [1.0]


def test_op_names_itself_where_it_is_written_wrongly():
    without = op(lambda a, b: (a + b, (None, lambda g: g)))
    with pytest.raises(TypeError, match="<lambda> has no gradient by argument 0"):
        without(leaf([1.0]), leaf([2.0]))
    without(Tensor([1.0]), leaf([2.0])).sum().backward()
    of_tensors = op(lambda a: (Tensor(a), (lambda g: g,)))
    with pytest.raises(TypeError, match="<lambda>: its value must be an array, got Tensor"):
        of_tensors(leaf([1.0]))


def test_tensor_meets_plain_python_rightly_or_not_at_all():
    """Nothing that Python or NumPy does by itself with an object may give another answer than with the array."""
    x = leaf([2.0, 3.0])
    for compare in (
        lambda: x == x.data,
        lambda: x.data == x,
        lambda: x != 0.0,
        lambda: 2.0 in x,
        lambda: [2.0, 3.0].index(x),
    ):
        with pytest.raises(TypeError, match="compared by their arrays"):
            compare()
    assert len({x, x, leaf([2.0, 3.0])}) == 2
    assert not leaf(0.0) and leaf([1.0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)
    sum(x).backward()
    assert x.grad.tolist() == [1, 1]
    with pytest.raises(TypeError, match="unsized"):
        sum(leaf(5.0))


@pytest.mark.parametrize(
    "convert",
    [Tensor, np.asarray, lambda values: Tensor([values]), lambda values: np.array([values, values])],
)
def test_tensor_in_a_list_or_an_array_loses_no_gradient_in_silence(convert):
    w = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match="would lose its gradient: take its .data"):
        convert([(w * w).sum(), 3.0])
    with no_grad():
        assert np.asarray(convert([(w * w).sum(), 3.0]).data).reshape(-1)[:2].tolist() == [5, 3]


def test_grad_and_backward_refuse_what_is_no_list_and_no_array():
    x = leaf([1.0, 2.0])
    for tensor in (x, leaf(1.0)):
        with pytest.raises(TypeError, match=r"a list of Tensors: \[x\] for one"):
            grad((x * tensor).sum(), tensor)
    for cotangent in ([1.0, 1.0], 1.0, Tensor([1.0, 1.0])):
        with pytest.raises(TypeError, match="expected an array"):
            (x * x).backward(cotangent)


def test_grad_takes_its_inputs_from_whatever_gives_them_once():
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = (x * w).sum()
    for inputs in (iter([x, w]), {"x": x, "w": w}.values(), (t for t in (x, w)), (x, w)):
        assert [g.tolist() for g in grad(y, inputs)] == [[3, 4], [1, 2]]


@pytest.mark.parametrize("wanted", ["ab", "a", "b", ""])
def test_op_shares_a_step_of_its_backward_among_its_pullbacks(wanted):
    """max(a b, 0): the mask is applied once, before either pullback, and not at all where none is called."""
    calls = []

    @op
    def rectified(a, b):
        y = np.maximum(a * b, 0)
        return y, (lambda g: g * b, lambda g: g * a), lambda g: calls.append("shared") or g * (y > 0)

    tensors = {name: Tensor(np.array(v), name in wanted) for name, v in {"a": [2.0, 3.0], "b": [5.0, -7.0]}.items()}
    y = rectified(*tensors.values())
    if wanted:
        y.backward(np.array([1.0, 10.0]))
    else:
        assert not y.requires_grad
    assert calls == ["shared"] * bool(wanted)
    expected = {"a": [5.0, 0.0], "b": [2.0, 0.0]}
    for name, tensor in tensors.items():
        assert (tensor.grad.tolist() == expected[name]) if name in wanted else tensor.grad is None


def test_tensor_holds_floats():
    assert Tensor(3).dtype == np.float64 and Tensor([1, 2.5]).shape == (2,)
    assert Tensor(np.float32(3)).dtype == np.float32
    with pytest.raises(TypeError, match="a Tensor holds float32 or float64, got int64"):
        Tensor(np.arange(3, dtype=np.int64))
    with pytest.raises(TypeError, match="a Tensor holds float32 or float64, got float16"):
        Tensor(np.ones(3, np.float16))
    with pytest.raises(TypeError, match="expected an array of one of cpu.*, got str"):
        Tensor("text")


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_tensor_takes_arrays_of_numpy_s_other_classes_as_plain_ones():
    """A matrix would multiply as one; a mask would be lost."""
    values, t = np.array([[1.0, 2.0], [3.0, 4.0]]), leaf(np.ones((2, 2)))
    t.data = np.matrix(values)
    for made in (Tensor(np.matrix(values)), Tensor(values.view(np.recarray)), t):
        assert type(made.data) is np.ndarray and (made * made).data.tolist() == [[1, 4], [9, 16]]
    with pytest.raises(TypeError, match="^a masked array would lose its mask"):
        Tensor(np.ma.array(values))
    with pytest.raises(TypeError, match="^a masked array would lose its mask"):
        t.data = np.ma.array(values)
    with pytest.raises(TypeError, match="a Tensor holds float32 or float64, got int64"):
        t.data = np.ones((2, 2), np.int64)


def test_tensor_dtypes_do_not_mix():
    single, double = leaf([1.0], np.float32), leaf([1.0])
    with pytest.raises(TypeError, match=r"__add__: arguments differ in device or dtype: .*float32.*float64"):
        single + double
    for constant in (np.ones(1), np.float64(2)):
        with pytest.raises(TypeError, match="__mul__: a constant, or the function itself, turns float32 into float64"):
            single * constant
    y = single * 2 + 1.5 + np.ones(1, np.float32)
    y.backward()
    assert y.dtype == single.grad.dtype == np.float32


def test_tensor_repr():
    assert repr(leaf(1.0)) == "Tensor(array(1.), requires_grad=True)"
    assert repr(Tensor(1.0)) == "Tensor(array(1.))"


def test_tensor_length_and_iteration():
    x = leaf([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert len(x) == 3
    first, *_, last = x
    (first * last).sum().backward()
    assert x.grad.tolist() == [[5, 6], [0, 0], [1, 2]]


def derivative(function, arguments, which, cotangent, h=1e-30):
    """Gradient of sum(cotangent function(*arguments)) by one argument, by complex steps: exact to rounding."""
    gradient = np.zeros(arguments[which].shape)
    for index in np.ndindex(gradient.shape):
        moved = [a.astype(complex) for a in arguments]
        moved[which][index] += 1j * h
        gradient[index] = (cotangent * function(*moved).imag).sum() / h
    return gradient


def assert_differentiates(function, *arrays, constants=()):
    """function on Tensors has the value and the derivatives of function on these arrays."""
    args = [array if i in constants else Tensor(array, requires_grad=True) for i, array in enumerate(arrays)]
    y = function(*args)
    assert isinstance(y, Tensor)
    np.testing.assert_allclose(y.data, function(*arrays), rtol=1e-14)
    cotangent = np.random.default_rng(9).normal(size=y.shape)
    y.backward(cotangent)
    for i, argument in enumerate(args):
        if i not in constants:
            assert argument.grad.shape == argument.shape
            np.testing.assert_allclose(
                argument.grad, derivative(function, arrays, i, cotangent), rtol=1e-12, atol=1e-14
            )


SHAPES = [((2, 1, 3), (4, 1)), ((3,), (2, 3)), ((), (2, 2)), ((2, 3), (1, 1)), ((2, 3), (2, 3))]
BINARY = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_tensor_operators_broadcast(function, shapes):
    rng = np.random.default_rng(5)
    arrays = [rng.uniform(0.5, 2, shape) for shape in shapes]
    assert_differentiates(function, *arrays)
    assert_differentiates(function, *arrays[::-1])


@pytest.mark.parametrize(
    "constant", [np.array([[1.5], [-2.0]]), np.float64(1.5), 1.5, 3], ids=["array", "scalar", "float", "int"]
)
@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_tensor_operators_take_constants_on_either_side(function, constant):
    values = np.random.default_rng(6).uniform(0.5, 2, (1, 3))
    assert_differentiates(lambda x: function(constant, x), values)
    assert_differentiates(lambda x: function(x, constant), values)


def of_tensor(name):
    """Tensor's method on Tensors, NumPy's function of that name on arrays."""
    return lambda x, **k: getattr(x, name)(**k) if isinstance(x, Tensor) else getattr(np, name)(x, **k)


exp, log = of_tensor("exp"), of_tensor("log")
EVERY_OTHER = np.arange(24).reshape(2, 3, 4) % 2 == 0
UNARY = {
    "negation": lambda x: -x,
    "power": lambda x: x**3,
    "root": lambda x: x**0.5,
    "exp": exp,
    "log": log,
    "log of sum of exp": lambda x: log(exp(x).sum(axis=-1)),
    "sum": lambda x: x.sum(),
    "sum over one axis": lambda x: x.sum(axis=1),
    "sum over the last axis": lambda x: x.sum(axis=-1),
    "sum over two axes": lambda x: x.sum(axis=(-1, 0)),
    "sum kept": lambda x: x.sum(axis=(2, 0), keepdims=True),
    "mean": lambda x: x.mean(),
    "mean over one axis": lambda x: x.mean(axis=0),
    "mean over two axes": lambda x: x.mean(axis=(1, 2), keepdims=True),
    "max": lambda x: x.max(),
    "max over one axis": lambda x: x.max(axis=1),
    "max over the last axis": lambda x: x.max(axis=-1),
    "max kept": lambda x: x.max(axis=0, keepdims=True),
    "max of all kept": lambda x: x.max(keepdims=True),
    "reshape": lambda x: x.reshape(4, 6),
    "reshape with an inferred size": lambda x: x.reshape(-1, 2, 2),
    "transpose": lambda x: x.transpose(1, 2, 0),
    "transpose by negative axes": lambda x: x.transpose(-1, 0, 1),
    "T": lambda x: x.T,
    "power of mean": lambda x: (x.mean(axis=1) ** 2).sum(axis=0),
    "index": lambda x: x[1],
    "index from the end": lambda x: x[-1, -2],
    "one element": lambda x: x[1, 2, 3],
    "slice": lambda x: x[:, 1:],
    "slice with a step": lambda x: x[..., ::-2],
    "new axis": lambda x: x[:, None, 1],
    "ellipsis": lambda x: x[..., 1],
    "list with repeats": lambda x: x[[1, 0, 1, 1]],
    "arrays with repeats": lambda x: x[np.array([0, 1, 0]), :, np.array([3, 3, 3])],
    "array beside a slice": lambda x: x[:, np.array([2, 2, 0]), 1:3],
    "booleans": lambda x: x[EVERY_OTHER],
    "empty slice": lambda x: x[:, 2:2],
}


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
@pytest.mark.parametrize("order", ["C", "F"])
def test_tensor_functions(function, order):
    assert_differentiates(function, np.array(np.random.default_rng(7).uniform(0.5, 2, (2, 3, 4)), order=order))


def test_tensor_max_gives_ties_to_the_first(device):
    x = Tensor(device.asarray(np.array([[1.0, 3, 3], [3, 2, 3]])), requires_grad=True)
    for options, expected in (
        ({}, [[0, 1, 0], [0, 0, 0]]),
        ({"axis": 1}, [[0, 1, 0], [1, 0, 0]]),
        ({"axis": 0}, [[0, 1, 1], [1, 0, 0]]),
    ):
        (found,) = grad(x.max(**options).sum(), [x])
        assert to_host(found).tolist() == expected


def test_tensor_mean_of_nothing_is_nan():
    x = Tensor(np.ones((0, 3)))
    assert x.mean(axis=1).shape == (0,)
    assert np.isnan(x.mean(axis=0).data).all() and x.mean(axis=0).shape == (3,)
    assert np.isnan(float(x.mean()))


MATRIX_PRODUCTS = [
    ((4, 3), (3, 2)),
    ((2, 2, 2), (2, 2, 2)),
    ((3, 3), (3,)),
    ((3,), (3, 3)),
    ((3,), (3,)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((1, 5, 2, 3), (4, 1, 3, 2)),
    ((4, 1, 1, 1), (5, 1, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 2)),
]


@pytest.mark.parametrize("shapes", MATRIX_PRODUCTS, ids=str)
def test_matmul_of_every_rank(shapes):
    rng = np.random.default_rng(8)
    arrays = [rng.normal(size=shape) for shape in shapes]
    for constants in ((), (0,), (1,)):  # a constant on the left is __rmatmul__
        assert_differentiates(operator.matmul, *arrays, constants=constants)


@pytest.mark.parametrize("shapes", MATRIX_PRODUCTS, ids=str)
def test_matmul_against_torch(shapes):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    rng = np.random.default_rng(8)
    arrays = [rng.normal(size=shape) for shape in shapes]
    ours, theirs = [leaf(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours[0] @ ours[1], theirs[0] @ theirs[1]
    cotangent = rng.normal(size=y.shape)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    for a, b in [(y.data, expected.detach())] + [(t.grad, u.grad) for t, u in zip(ours, theirs, strict=True)]:
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((), (3,)), ((2, 2, 3), (3, 3, 2))], ids=str)
def test_matmul_refuses_what_numpy_refuses(shapes):
    with pytest.raises(ValueError, match="matmul|broadcast"):
        leaf(np.ones(shapes[0])) @ leaf(np.ones(shapes[1]))


def test_tensor_loss_of_ones_own():
    """Squared error to a constant with operators alone, as a user would write it."""
    x = leaf([[1.0, 2.0], [3.0, 4.0]], np.float32)
    target = np.array([[0.0, 2.0], [5.0, 4.0]], np.float32)
    loss = ((target - x) ** 2).mean() / 2
    loss.backward()
    assert float(loss) == pytest.approx(5 / 8)
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [[0.25, 0], [-0.5, 0]]


@pytest.mark.parametrize("threads", [4])
def test_tensor_in_threads_of_ones_own(threads):
    """Graphs of several threads, with and without gradients, do not meet."""
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for i in range(200):
            values = rng.normal(size=(3, 4))
            x = leaf(values)
            with no_grad() if i % 2 else contextlib.nullcontext():
                y = (x * x).sum()
            if i % 2:
                ok = not y.requires_grad
            else:
                y.backward()
                ok = np.array_equal(x.grad, 2 * values)
            if not ok:
                failures.append((seed, i))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
