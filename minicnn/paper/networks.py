"""The paper's CNN, and the four networks of the study: who is trained at which temperature on whose labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential
from minicnn.weights import get_weights, set_weights

TEMPERATURE = 20.0  # "Temperature (except for the standard CNN)", section 2
LAST_LAYER = "dense3"
PENALTY = {f"{LAST_LAYER}_W": 0.01}  # of sum(W^2), in the author's loss


class Trained(NamedTuple):
    """How a network is trained: in the softmax of its loss T = 1 or the study's temperature; on the hard labels, or on
    those distilled from another network, its teacher, at the same temperature."""

    at_temperature: bool
    teacher: str | None


NETWORKS = {
    "standard": Trained(at_temperature=False, teacher=None),
    "temperature": Trained(at_temperature=True, teacher=None),
    "distilled": Trained(at_temperature=True, teacher="temperature"),
    "standard-distilled": Trained(at_temperature=False, teacher="standard"),  # the cell that the paper left empty
}
PAPER_NETWORKS = ("standard", "temperature", "distilled")


def paper_cnn(seed: Any = 0, ties: str = "first", dtype: Any = np.float32) -> Sequential:
    """The table "Architecture of the CNN for MNIST" (section 2) up to the logits: (N, 1, 28, 28) -> (N, 10).

    Images lie in [0, 1]; the softmax with temperature stands on top of it, in the loss or as TemperatureSoftmax(T).
    Valid padding, Glorot uniform weights from `seed` and zero biases, as Lasagne has them. ties: MaxPool2D.
    """
    rng = np.random.default_rng(seed)
    shared: dict[str, Any] = {"rng": rng, "dtype": dtype}
    return Sequential(
        conv1=Conv2D(1, 32, 3, **shared),
        conv2=Conv2D(32, 32, 3, **shared),
        pool1=MaxPool2D(2, ties),
        conv3=Conv2D(32, 64, 3, **shared),
        conv4=Conv2D(64, 64, 3, **shared),
        pool2=MaxPool2D(2, ties),
        flatten=Flatten(),
        dropout1=Dropout(0.5),
        dense1=Dense(1024, 200, relu=True, **shared),
        dropout2=Dropout(0.5),
        dense2=Dense(200, 200, relu=True, **shared),
        dropout3=Dropout(0.5),
        dense3=Dense(200, 10, **shared),
    )


def pool_ties(network: Sequential) -> list[str]:
    """The tie rule of each max-pool of a network, in order."""
    return [layer.ties for layer in network.layers.values() if isinstance(layer, MaxPool2D)]


def rescaled(network: Sequential, scale: float = 1.0, dtype: Any = None, ties: str | None = None) -> Sequential:
    """A copy of a paper_cnn with logits `scale` times as large: the last layer's weights and biases times scale.

    dtype and tie rule are its own unless others are given.
    """
    weights = get_weights(network)
    for name in (f"{LAST_LAYER}_W", f"{LAST_LAYER}_b"):
        weights[name] = weights[name] * weights[name].dtype.type(scale)
    copy = paper_cnn(ties=ties or pool_ties(network)[0], dtype=dtype or network.dtype).to(network.device)
    return set_weights(copy, weights)
