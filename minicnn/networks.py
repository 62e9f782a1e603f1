"""The paper's CNN, and weights on disk."""

import io

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.files import write_atomically
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential


class WeightsError(ValueError):
    """A weight file is missing, damaged, or of another network; the message says which and what was expected."""


def paper_cnn(seed=0, ties="first", dtype=np.float32):
    """The table "Architecture of the CNN for MNIST" (section 2) up to the logits: (N, 1, 28, 28) -> (N, 10).

    Images lie in [0, 1]; the softmax with temperature stands on top of it, in the loss or as TemperatureSoftmax(T).
    Valid padding, Glorot uniform weights from `seed` and zero biases, as Lasagne has them. ties: MaxPool2D.
    """
    rng = np.random.default_rng(seed)
    shared = {"rng": rng, "dtype": dtype}
    return Sequential(
        conv1=Conv2D(1, 32, 3, **shared),
        conv2=Conv2D(32, 32, 3, **shared),
        pool1=MaxPool2D(2, ties),
        conv3=Conv2D(32, 64, 3, **shared),
        conv4=Conv2D(64, 64, 3, **shared),
        pool2=MaxPool2D(2, ties),
        flatten=Flatten(),
        dropout1=Dropout(0.5, stream=0),
        dense1=Dense(1024, 200, relu=True, **shared),
        dropout2=Dropout(0.5, stream=1),
        dense2=Dense(200, 200, relu=True, **shared),
        dropout3=Dropout(0.5, stream=2),
        dense3=Dense(200, 10, **shared),
    )


def save_npz(path, arrays):
    """Write name -> array as .npz, atomically: a reader sees the old file or the new one, after a kill as well."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_npz(path):
    """Read what save_npz wrote: name -> array. Raises WeightsError for a missing or damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file") from None
    except Exception as error:  # damaged bytes raise whatever NumPy, zipfile, zlib or tokenize stumble over
        reason = type(error).__name__  # NumPy's text recommends unpickling what it cannot read
        raise WeightsError(f"{path}: not a readable .npz file of arrays ({reason}): replace it") from None


def _orientation(weights):
    """Flip the filters: files hold them for true convolution (Lasagne, Theano), the engine cross-correlates."""
    return {n: w[:, :, ::-1, ::-1] if w.ndim == 4 else w for n, w in weights.items()}


def get_weights(network):
    """Name -> NumPy array as files hold them: the author's names ("conv1_W", ...) and filter orientation."""
    return _orientation({name: backend.to_host(p.data) for name, p in network.parameters().items()})


def set_weights(network, weights, source="weights"):
    """Set every parameter, on the device and in the dtype that it has. Returns the network.

    Raises WeightsError where names or shapes differ or a value is not finite; the network is then unchanged.
    """
    parameters = network.parameters()
    if set(weights) != set(parameters):
        missing, extra = sorted(set(parameters) - set(weights)), sorted(set(weights) - set(parameters))
        raise WeightsError(f"{source}: not the weights of this network (missing {missing}, unknown {extra})")
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise WeightsError(f"{source}: {name} has shape {weights[name].shape}, the network's is {parameter.shape}")
        if weights[name].dtype.kind != "f" or not np.isfinite(weights[name]).all():
            raise WeightsError(f"{source}: {name} holds values that are no finite numbers")
    for name, values in _orientation(weights).items():
        parameter = parameters[name]
        values = np.ascontiguousarray(values, dtype=parameter.dtype)
        parameter.data[...] = backend.of(parameter.data).asarray(values)
    return network


def save_weights(network, path):
    """Write the network's weights as .npz (atomically)."""
    save_npz(path, get_weights(network))


def load_weights(network, path):
    """Set the network's parameters from an .npz file; returns the network. Raises WeightsError."""
    return set_weights(network, load_npz(path), source=path)


def predict(network, images, dropout=None, chunk=256):
    """Logits (N, K) as a NumPy array, `chunk` images at a time, without a graph.

    images (N, C, H, W). dropout: None, or the seed of masks to draw (chunk i takes step i).
    """
    weights = next(iter(network.parameters().values())).data
    device = backend.of(weights)
    logits = []
    with no_grad():
        for step, start in enumerate(range(0, max(len(images), 1), chunk)):
            batch = Tensor(device.asarray(images[start : start + chunk], dtype=weights.dtype))
            masks = None if dropout is None else (dropout, step)
            logits.append(backend.to_host(network(batch, masks).data))
    return np.concatenate(logits)
