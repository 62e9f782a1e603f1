"""A network's weights on disk: .npz files with the names and the filter orientation of the paper's author."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from minicnn import backend
from minicnn.files import write_atomically
from minicnn.layers import Layer, Self

Path = str | os.PathLike


class WeightsError(ValueError):
    """A weight file is missing, damaged, or of another network; the message says which and what was expected."""


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write name -> array as .npz, atomically: a reader sees the old file or the new one, after a kill as well."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not numpy.savez, which keeps some names to itself
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Read what save_npz wrote: name -> array. Raises WeightsError for a missing or damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.namelist():
                with archive.open(member) as file:
                    arrays[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise whatever NumPy, zipfile, zlib or tokenize stumble over
        reason = type(error).__name__  # NumPy's text recommends unpickling what it cannot read
        raise WeightsError(f"{path}: not a readable .npz file of arrays ({reason}): replace it") from None


def _orientation(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flip the filters: files hold them for true convolution (Lasagne, Theano), the engine cross-correlates."""
    return {n: w[:, :, ::-1, ::-1] if w.ndim == 4 else w for n, w in weights.items()}


def get_weights(network: Layer) -> dict[str, np.ndarray]:
    """Name -> NumPy array as files hold them: the author's names ("conv1_W", ...) and filter orientation.

    >>> from minicnn.layers import Dense, Sequential
    >>> {name: w.shape for name, w in get_weights(Sequential(dense1=Dense(3, 2))).items()}
    {'dense1_W': (3, 2), 'dense1_b': (2,)}
    """
    return _orientation({name: backend.to_host(p.data) for name, p in network.parameters().items()})


def set_weights(network: Self, weights: Mapping[str, np.ndarray], source: Path = "weights") -> Self:
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
        values = np.ascontiguousarray(values, dtype=parameter.dtype).reshape(parameter.shape)
        parameter.data[...] = backend.of(parameter.data).asarray(values)
    return network


def save_weights(network: Layer, path: Path) -> None:
    """Write the network's weights as .npz (atomically)."""
    save_npz(path, get_weights(network))


def load_weights(network: Self, path: Path) -> Self:
    """Set the network's parameters from an .npz file; returns the network. Raises WeightsError."""
    return set_weights(network, load_npz(path), source=path)
