"""The optimiser: which parameters it moves, and that a step is all or nothing. Its arithmetic: test_nesterov_step."""

import numpy as np
import pytest

from minicnn import NesterovSGD, Tensor
from tests import IN_NUMPY, opened


def parameters(device, **trained):
    return {n: Tensor(device.asarray(np.ones(3)), requires_grad=t) for n, t in trained.items()}


def test_optimiser_moves_what_requires_a_gradient(device):
    both = parameters(device, W=True, fixed=False)
    optimiser = NesterovSGD(both, 0.1, momentum=0, l2={"W": 0.5})
    (both["W"] * both["fixed"] * 2).sum().backward()
    optimiser.step()
    assert device.xp.abs(both["W"].data - 0.7).max() < 1e-15  # 1 - 0.1 (2 + 2 * 0.5 * 1)
    assert both["W"].grad is None and (both["fixed"].data == 1).all() and set(optimiser.velocity) == {"W"}


@pytest.mark.parametrize("name", ["w", "fixed"])
def test_optimiser_refuses_l2_of_what_is_no_parameter(device, name):
    message = rf"l2 names \['{name}'\], the parameters are \['W', 'b'\]"
    with pytest.raises(ValueError, match=message):
        NesterovSGD(parameters(device, W=True, b=True, fixed=False), 0.1, l2={name: 0.01})


def test_optimiser_step_without_a_gradient_moves_nothing(device):
    both = parameters(device, W=True, b=True)
    optimiser = NesterovSGD(both, 0.1)
    both["W"].sum().backward()
    with pytest.raises(ValueError, match=r"b has no gradient: call backward\(\) on a loss that depends on it first"):
        optimiser.step()
    assert (both["W"].data == 1).all() and both["W"].grad is not None


def test_optimiser_step_with_a_gradient_that_does_not_fit_moves_nothing(device):
    both = parameters(device, W=True, b=True)
    optimiser = NesterovSGD(both, 0.1)
    (both["W"] * both["b"]).sum().backward()
    for wrong in (np.ones(2), np.ones(3, np.float32)):
        both["b"].grad = device.asarray(wrong)
        with pytest.raises(ValueError, match=rf"gradient of b is {wrong.dtype}\({len(wrong)},\) on {device.name}, "):
            optimiser.step()
    both["b"].grad, optimiser.velocity["b"] = device.asarray(np.ones(3)), device.asarray(np.ones(4))
    with pytest.raises(ValueError, match=r"the velocity of b is float64\(4,\)"):
        optimiser.step()
    assert all((p.data == 1).all() for p in both.values())


def test_optimiser_refuses_a_tensor_under_two_names():
    w = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match="^a and b are the same Tensor: give it one name$"):
        NesterovSGD({"a": w, "b": w}, 0.1)


def test_step_refuses_a_parameter_that_cannot_be_written_to():
    """C would write all the same: into a file that is mapped for reading, or into bytes."""
    w = Tensor(np.frombuffer(np.ones(8, np.float32).tobytes(), np.float32), requires_grad=True)
    (w * w).sum().backward()
    with pytest.raises(ValueError, match="w is an array that cannot be written to"):
        NesterovSGD({"w": w}, lr=0.1).step()


def test_step_of_a_parameter_without_axes():
    a = Tensor(np.float32(2), requires_grad=True)
    for _ in range(2):
        (a * a).backward()
    assert isinstance(a.grad, np.ndarray) and a.grad == 8
    NesterovSGD({"a": a}, lr=0.1, momentum=0.0).step()
    assert abs(float(a) - 1.2) < 1e-6


def untouched(device, **settings):
    """An optimiser of a and b, both with gradients, and the two."""
    both = parameters(device, a=True, b=True)
    optimiser = NesterovSGD(both, **{"lr": 0.1, "l2": {"b": 0.1}} | settings)
    (both["a"] * both["b"]).sum().backward()
    return optimiser, both


@pytest.mark.parametrize("value", [None, "0.5", [0.5], np.array([0.5, 0.5]), 1j, True], ids=str)
@pytest.mark.parametrize("setting", ["lr", "momentum", "the l2 of b"])
def test_optimiser_refuses_settings_that_are_no_numbers(device, setting, value):
    """At once, and where they are set later; then no parameter has moved."""
    settings = {setting: value} if setting != "the l2 of b" else {"l2": {"b": value}}
    with pytest.raises(ValueError, match=f"^{setting} must be a number, got "):
        NesterovSGD(parameters(device, a=True, b=True), **{"lr": 0.1} | settings)
    optimiser, both = untouched(device)
    vars(optimiser).update(settings)
    with pytest.raises(ValueError, match=f"^{setting} must be a number, got "):
        optimiser.step()
    assert all((p.data == 1).all() and p.grad is not None for p in both.values())


@pytest.mark.parametrize(
    "of", [np.array, np.float64, lambda value: np.array([value])], ids=["array", "scalar", "of one"]
)
def test_optimiser_takes_numbers_of_any_type(device, of):
    """An array's number, not its address."""
    plain, plain_both = untouched(device, lr=0.25, momentum=0.5, l2={"b": 0.125})
    other, other_both = untouched(device, lr=of(0.25), momentum=of(0.5), l2={"b": of(0.125)})
    plain.step(), other.step()
    for name in "ab":
        assert (plain_both[name].data == other_both[name].data).all()


@pytest.mark.parametrize("array", ["parameter", "velocity"])
def test_step_with_an_array_that_cannot_be_written_to_moves_nothing(array):
    both = {name: Tensor(np.ones(3), requires_grad=True) for name in "ab"}
    optimiser = NesterovSGD(both, lr=0.1)
    (both["a"] * both["b"]).sum().backward()
    (both["b"].data if array == "parameter" else optimiser.velocity["b"]).flags.writeable = False
    with pytest.raises(ValueError, match=f"^{'the velocity of ' * (array == 'velocity')}b is an array that cannot be"):
        optimiser.step()
    assert all((p.data == 1).all() and p.grad is not None for p in both.values())


@pytest.mark.parametrize("name", ["cpu", IN_NUMPY])
def test_step_that_overflows_is_a_whole_step_whatever_numpy_is_told(name):
    """In C it would be anyway; an error in the second parameter would come after the first has moved."""
    with opened(name), np.errstate(all="raise"):
        both = {n: Tensor(np.ones(3, np.float32), requires_grad=True) for n in "ab"}
        both["a"].grad, both["b"].grad = np.full(3, 1, np.float32), np.full(3, 3e38, np.float32)
        NesterovSGD(both, lr=10.0).step()
    assert (both["a"].data == -14).all() and (both["b"].data == -np.inf).all()
    assert all(p.grad is None and p.version == 1 for p in both.values())
