"""Layers own parameters and call operations: convolution, pooling, dropout, dense, softmax with temperature.

A layer is called with a Tensor and `dropout`: None, or (seed, step) in training. parameters() names its Tensors W, b.
"""

import math

import numpy as np

from minicnn import backend, ops
from minicnn.autograd import Tensor


def glorot_uniform(rng, shape, fan_in, fan_out, dtype):
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010), as Lasagne initialises weights."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return Tensor(rng.uniform(-bound, bound, shape).astype(dtype), requires_grad=True)


class Layer:
    """A function of a Tensor, without parameters unless a subclass has some."""

    def parameters(self):
        """Name -> Tensor, in a fixed order."""
        return {name: getattr(self, name) for name in ("W", "b") if hasattr(self, name)}

    def __call__(self, x, dropout=None):
        raise NotImplementedError


class Conv2D(Layer):
    """`filters` kernels of size x size over `channels` channels, stride 1; W (filters, channels, size, size), b."""

    def __init__(self, channels, filters, size, padding="valid", relu=True, rng=None, dtype=np.float32):
        area = size * size
        shape = (filters, channels, size, size)
        self.W = glorot_uniform(rng or np.random.default_rng(), shape, channels * area, filters * area, dtype)
        self.b = Tensor(np.zeros(filters, dtype), requires_grad=True)
        self.padding, self.relu = padding, relu

    def __call__(self, x, dropout=None):
        return ops.conv2d(x, self.W, self.b, padding=self.padding, relu=self.relu)


class Dense(Layer):
    """Fully connected: x W + b, W (inputs, units)."""

    def __init__(self, inputs, units, relu=False, rng=None, dtype=np.float32):
        self.W = glorot_uniform(rng or np.random.default_rng(), (inputs, units), inputs, units, dtype)
        self.b = Tensor(np.zeros(units, dtype), requires_grad=True)
        self.relu = relu

    def __call__(self, x, dropout=None):
        return ops.dense(x, self.W, self.b, relu=self.relu)


class MaxPool2D(Layer):
    """Maximum over size x size windows; ties "first" or "all" says where the gradient of equal maxima goes."""

    def __init__(self, size=2, ties="first"):
        self.size, self.ties = size, ties

    def __call__(self, x, dropout=None):
        return ops.max_pool2d(x, size=self.size, ties=self.ties)


class Dropout(Layer):
    """Inverted dropout. `stream` numbers the dropout layers of a network, so that their masks are independent."""

    def __init__(self, rate=0.5, stream=0):
        self.rate, self.stream = rate, stream

    def __call__(self, x, dropout=None):
        if dropout is None:
            return x
        seed, step = dropout
        return ops.dropout(x, rate=self.rate, seed=seed, layer=self.stream, step=step)


class Flatten(Layer):
    """(N, C, H, W) -> (N, C H W)."""

    def __call__(self, x, dropout=None):
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class TemperatureSoftmax(Layer):
    """Equation (2) of the paper: softmax(z / T), T > 0. Logits (N, K) -> probabilities (N, K)."""

    def __init__(self, T):
        ops.check_temperature(T)
        self.T = T

    def __call__(self, x, dropout=None):
        return ops.softmax(x, T=self.T)


class Sequential(Layer):
    """Named layers one after the other: Sequential(conv1=Conv2D(...), pool1=MaxPool2D(), ...)."""

    def __init__(self, **layers):
        self.layers = layers

    def parameters(self):
        """ "<layer>_W", "<layer>_b" -> Tensor, in the order of the layers: the names of the weight files."""
        return {f"{name}_{key}": p for name, layer in self.layers.items() for key, p in layer.parameters().items()}

    def __call__(self, x, dropout=None):
        for layer in self.layers.values():
            x = layer(x, dropout)
        return x

    def to(self, device):
        """Move the parameters to the device "cpu" or "cuda", in place; returns self. Raises DeviceError."""
        target = backend.get(device)
        for parameter in self.parameters().values():
            parameter.data, parameter.grad = target.asarray(parameter.data), None
        return self
