"""Nesterov momentum SGD with L2 on chosen parameters, as the paper's author trained (Lasagne)."""

from minicnn import backend


class NesterovSGD:
    """v <- momentum v - lr G;  w <- w + momentum v - lr G, with G = dL/dw + 2 l2 w (Lasagne; Sutskever et al., 2013).

    parameters: name -> Tensor. l2: name -> coefficient of sum(w^2) in the loss, for the parameters that have one.
    lr: a number, or a device array of one in the parameters' dtype. velocity: name -> array, the optimiser's state.
    Raises ValueError where l2 names no parameter.
    """

    def __init__(self, parameters, lr, momentum=0.5, l2=None):
        self.parameters, self.lr, self.momentum, self.l2 = parameters, lr, momentum, l2 or {}
        unknown = set(self.l2) - set(parameters)
        if unknown:
            raise ValueError(f"l2 names {sorted(unknown)}, the parameters are {sorted(parameters)}")
        self.velocity = {n: backend.of(p.data).xp.zeros_like(p.data) for n, p in parameters.items()}

    def step(self):
        """Update every parameter in place from its .grad, and clear that. Raises ValueError where one is missing."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise ValueError(f"{name} has no gradient: call backward() on a loss that depends on it first")
            backend.of(parameter.data).kernels.nesterov_step(
                parameter.data, self.velocity[name], parameter.grad, self.lr, self.momentum, self.l2.get(name, 0.0)
            )
            parameter.grad = None
