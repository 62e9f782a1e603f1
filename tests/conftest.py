"""What the tests share. The fixture `device`: a test that takes it runs on every backend."""

import numpy as np
import pytest

from minicnn import layers
from minicnn.backend import DeviceError
from tests import DEVICES, opened


@pytest.fixture(params=DEVICES)
def device(request):
    """A Backend, or a skip with the reason that the machine lacks it."""
    yield from opened_or_skipped(request.param)


def opened_or_skipped(name):
    """What a fixture yields for the name of a backend, one of DEVICES or IN_NUMPY."""
    try:
        with opened(name) as device:
            yield device
    except DeviceError as error:
        pytest.skip(str(error))


def small_cnn(seed=0, ties="first", dtype=np.float32, rate=0.5):
    """The paper's network in small, (N, 1, 8, 8) -> (N, 3), for what needs no particular size."""
    rng = np.random.default_rng(seed)
    shared = {"rng": rng, "dtype": dtype}
    return layers.Sequential(
        conv1=layers.Conv2D(1, 4, 3, **shared),
        pool1=layers.MaxPool2D(2, ties),
        flatten=layers.Flatten(),
        dropout1=layers.Dropout(rate),
        dense1=layers.Dense(36, 8, relu=True, **shared),
        dropout2=layers.Dropout(rate),
        dense2=layers.Dense(8, 3, **shared),
    )


class Leaky(layers.Layer):
    """A layer of one's own: max(x, slope x), its slope a parameter of a name that the engine does not know."""

    def __init__(self, slope=0.1, dtype=np.float32):
        self.slope = layers.Tensor(np.full(1, slope, dtype), requires_grad=True)

    def __call__(self, x, masks=None):
        positive = (x.data > 0).astype(x.dtype)
        return x * positive + x * self.slope * (1 - positive)


def colour_cnn(seed=0, dtype=np.float32):
    """A network that is not the paper's, (N, 3, 32, 32) -> (N, 5): nested, padded, with a layer of its own."""
    rng = np.random.default_rng(seed)
    shared = {"rng": rng, "dtype": dtype}
    return layers.Sequential(
        features=layers.Sequential(
            conv=layers.Conv2D(3, 4, 5, padding="same", relu=False, **shared),
            leaky=Leaky(dtype=dtype),
            pool=layers.MaxPool2D(4),
        ),
        flatten=layers.Flatten(),
        classes=layers.Dense(256, 5, **shared),
    )


def dense_network(seed=0, dtype=np.float32):
    """Dense only, (N, 12) -> (N, 4)."""
    rng = np.random.default_rng(seed)
    return layers.Sequential(
        hidden=layers.Dense(12, 16, relu=True, rng=rng, dtype=dtype), classes=layers.Dense(16, 4, rng=rng, dtype=dtype)
    )
