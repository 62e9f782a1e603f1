"""Nesterov momentum SGD with L2 on chosen parameters, as the paper's author trained (Lasagne)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor


class NesterovSGD:
    """v <- momentum v - lr G;  w <- w + momentum v - lr G, with G = dL/dw + 2 l2 w (Lasagne; Sutskever et al., 2013).

    parameters: name -> Tensor; those that require no gradient stay as they are. l2: name -> coefficient of sum(w^2) in
    the loss, for the parameters that have one. lr: a number, or a device array of one in the parameters' dtype.
    velocity: name -> array, the optimiser's state. Raises ValueError where l2 names no parameter, and where one Tensor
    has two names.

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
        self.velocity = {n: backend.of(p.data).xp.zeros_like(p.data) for n, p in self.parameters.items()}

    def step(self) -> None:
        """Update every parameter in place from its .grad, and clear that. Raises ValueError where one is missing or
        does not fit; no parameter has moved then."""
        for name, parameter in self.parameters.items():
            g, w = parameter.grad, parameter.data
            if g is None:
                raise ValueError(f"{name} has no gradient: call backward() on a loss that depends on it first")
            for what, array in (("gradient", g), ("velocity", self.velocity[name])):
                found, wanted = (f"{a.dtype}{a.shape} on {backend.of(a).name}" for a in (array, w))
                if found != wanted:
                    raise ValueError(f"the {what} of {name} is {found}, the parameter {wanted}")
            if isinstance(w, np.ndarray) and not w.flags.writeable:
                raise ValueError(f"{name} is an array that cannot be written to: give its Tensor a copy")
        for name, parameter in self.parameters.items():
            backend.of(parameter.data).functions.nesterov_step(
                parameter.data, self.velocity[name], parameter.grad, self.lr, self.momentum, self.l2.get(name, 0.0)
            )
            parameter.version += 1
            parameter.grad = None
