"""A small autograd engine in NumPy and CUDA.

Here is its public API; the methods of the paper that it was made for are in minicnn.paper. Begin with Tensor and op.

>>> import numpy as np
>>> from minicnn import Recipe, fit, layers, predict
>>> rng = np.random.default_rng(0)
>>> points = rng.standard_normal((256, 2)).astype(np.float32)
>>> inside = (np.square(points).sum(axis=1) < 1).astype(int)
>>> network = layers.Sequential(
...     hidden=layers.Dense(2, 32, relu=True, rng=0),
...     logits=layers.Dense(32, 2, rng=1),
... )
>>> history = fit(network, points, inside, Recipe(batch=32, epochs=30))
>>> bool((predict(network, points).argmax(axis=1) == inside).mean() > 0.95)
True
"""

from minicnn import gradcheck, layers, ops
from minicnn.autograd import Tensor, grad, no_grad, op
from minicnn.backend import DeviceError
from minicnn.layers import DropoutMasks, Layer, Sequential
from minicnn.optim import NesterovSGD
from minicnn.training import Recipe, TrainingError, correct, distilled_labels, evaluate, fit, predict
from minicnn.weights import WeightsError, get_weights, load_weights, save_weights, set_weights

__version__ = "0.4.0"

__all__ = [
    "DeviceError",
    "DropoutMasks",
    "Layer",
    "NesterovSGD",
    "Recipe",
    "Sequential",
    "Tensor",
    "TrainingError",
    "WeightsError",
    "correct",
    "distilled_labels",
    "evaluate",
    "fit",
    "get_weights",
    "grad",
    "gradcheck",
    "layers",
    "load_weights",
    "no_grad",
    "op",
    "ops",
    "predict",
    "save_weights",
    "set_weights",
]
