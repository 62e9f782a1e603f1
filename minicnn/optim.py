"""Nesterov momentum SGD with L2 on chosen parameters, as the paper's author trained (Lasagne)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicnn import backend
from minicnn.autograd import Tensor
from minicnn.ops import as_number, is_on_device


class NesterovSGD:
    """v <- momentum v - lr G;  w <- w + momentum v - lr G, with G = dL/dw + 2 l2 w (Lasagne; Sutskever et al., 2013).

    parameters: name -> Tensor; those that require no gradient stay as they are. l2: name -> coefficient of sum(w^2) in
    the loss, for the parameters that have one. lr: a number, or a device array of one in the parameters' dtype.
    velocity: name -> array, the optimiser's state. Raises ValueError where l2 names no parameter, where one Tensor has
    two names, and where lr, momentum or a coefficient of l2 is no number.

    >>> w = Tensor([3.0], requires_grad=True)
    >>> optimiser = NesterovSGD({"w": w}, lr=0.1)
    >>> (w * w).backward()
    >>> optimiser.step()
    >>> w.data.round(3)  # 3 - (1 + 0.5) 0.1 * 6
    array([2.1])
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: Any,
        momentum: float = 0.5,
        l2: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        names: dict[Tensor, str] = {}
        for name, parameter in self.parameters.items():
            if (first := names.setdefault(parameter, name)) != name:
                raise ValueError(f"{first} and {name} are the same Tensor: give it one name")
        self.lr, self.momentum, self.l2 = lr, momentum, dict(l2 or {})
        unknown = set(self.l2) - set(self.parameters)
        if unknown:
            raise ValueError(f"l2 names {sorted(unknown)}, the parameters are {sorted(self.parameters)}")
        self._numbers()
        self.velocity = {n: backend.of(p.data).xp.zeros_like(p.data) for n, p in self.parameters.items()}

    def _numbers(self) -> tuple[Any, float, dict[str, float]]:
        """lr, momentum and l2 as they are now, as floats but for an lr on a device."""
        lr = self.lr if is_on_device(self.lr) else as_number("lr", self.lr)
        l2 = {name: as_number(f"the l2 of {name}", coefficient) for name, coefficient in self.l2.items()}
        return lr, as_number("momentum", self.momentum), l2

    def step(self) -> None:
        """Update every parameter in place from its .grad, and clear that. Raises ValueError where one is missing or
        does not fit, and where a setting is no number; no parameter has moved then. A number that is too large for a
        float becomes infinite, whatever np.seterr says."""
        lr, momentum, l2 = self._numbers()
        for name, parameter in self.parameters.items():
            g, w = parameter.grad, parameter.data
            if g is None:
                raise ValueError(f"{name} has no gradient: call backward() on a loss that depends on it first")
            for what, array in (("gradient", g), ("velocity", self.velocity[name])):
                found, wanted = (f"{a.dtype}{a.shape} on {backend.of(a).name}" for a in (array, w))
                if found != wanted:
                    raise ValueError(f"the {what} of {name} is {found}, the parameter {wanted}")
            for what, array in ((name, w), (f"the velocity of {name}", self.velocity[name])):
                if not backend.is_writable(array):
                    raise ValueError(f"{what} is an array that cannot be written to: give it a copy")
        for name, parameter in self.parameters.items():
            backend.of(parameter.data).functions.nesterov_step(
                parameter.data, self.velocity[name], parameter.grad, lr, momentum, l2.get(name, 0.0)
            )
            parameter.version += 1
            parameter.grad = None
