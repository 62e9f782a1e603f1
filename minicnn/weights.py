"""A network's weights on disk: .npz files with the names and the filter orientation of the paper's author."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from minicnn import backend
from minicnn.files import read_file, write_atomically
from minicnn.layers import Layer, Self

Path = str | os.PathLike

LIMIT = 2**28  # bytes of a file and of its arrays; a checkpoint of the paper's network has 3 MB
TRAINED_AT, TRAINED_ON = "temperature", "dataset"  # beside the weights in a file
SEAL = "/sha256"  # the name of a digest
LONGEST_NAME = 2**16 - 1  # bytes, in a zip file


class WeightsError(ValueError):
    """A weight file is missing, damaged, or of another network; the message says which and what was expected."""


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write name -> array as .npz, atomically: a reader sees the old file or the new one, after a kill as well. Raises
    WeightsError for a name or a dtype that load_npz would not give back; nothing is written then."""
    for name in arrays:
        if not _is_name(name):
            raise WeightsError(f"{path}: {name[:40]!r} cannot be the name of an array: rename a layer or an attribute")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not numpy.savez, which keeps some names to itself
        for name, array in arrays.items():
            contents = io.BytesIO()
            np.lib.format.write_array(contents, np.asarray(array), allow_pickle=False)
            contents.seek(0)
            try:
                _header(contents)
            except (KeyError, ValueError):
                what = str(np.asarray(array).dtype)[:50]
                raise WeightsError(f"{path}: {name}, an array of {what}, could not be read back") from None
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(contents.getbuffer())
    write_atomically(path, buffer.getvalue())


def _is_name(name: str) -> bool:
    try:
        return "\0" not in name and len(f"{name}.npy".encode()) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False


def save_sealed(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """save_npz with a digest of all, by which load_sealed knows whether anything is not as it was written."""
    save_npz(path, {**arrays, SEAL: np.array(_digest(arrays))})


def load_sealed(path: Path, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """load_npz of what save_sealed wrote. Raises WeightsError also where the digest is missing or another's."""
    arrays = load_npz(path, limit)
    if SEAL not in arrays:
        raise WeightsError(f"{path}: has no digest of its contents, as files of older versions: remove it")
    if str(arrays.pop(SEAL)) != _digest(arrays):
        raise WeightsError(f"{path}: is not as it was written, its digest is another: remove it")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name, array in arrays.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def load_npz(path: Path, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """Read what save_npz wrote: name -> array.

    Raises WeightsError for a file that is missing, damaged, or larger than `limit` bytes, on disk or inflated; OSError,
    which names the file, where it is not the file's fault that it cannot be read.
    """
    try:
        contents = read_file(path, limit + 1)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: not a readable .npz file of arrays (a folder): replace it") from None
    try:
        if len(contents) > limit:
            raise WeightsError(f"{path}: larger than {limit} bytes, more than it can have: replace it")
        with zipfile.ZipFile(io.BytesIO(contents)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise WeightsError(f"{path}: inflates to more than {limit} bytes, more than it can have: replace it")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # damaged bytes raise whatever NumPy, zipfile, zlib or tokenize stumble over
        reason = type(error).__name__  # NumPy's text recommends unpickling what it cannot read
        raise WeightsError(f"{path}: not a readable .npz file of arrays ({reason}): replace it") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array in an .npy file of an archive. Neither the header's word is taken for the memory that it needs, as
    numpy.load does, nor the directory's, as ZipFile.read does."""
    with archive.open(member) as compressed:
        contents = compressed.read(member.file_size)
    file = io.BytesIO(contents)
    shape, columns_first, dtype = _header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(contents) - file.tell():
        raise ValueError("no array of plain numbers or text that fits its header")
    return np.ndarray(shape, dtype, contents, file.tell(), order="F" if columns_first else "C").copy()


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of an .npy file, read up to the contents of the array."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return readers[np.lib.format.read_magic(file)](file)


def _flipped(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files hold filters for true convolution (Lasagne, Theano), the engine cross-correlates: turn them by 180 degrees,
    which are the arrays of four axes."""
    return {n: w[:, :, ::-1, ::-1] if w.ndim == 4 else w for n, w in weights.items()}


def get_weights(network: Layer) -> dict[str, np.ndarray]:
    """Name -> NumPy array, a copy of the parameter: the author's names, "conv1_W", .... (Files hold filters turned by
    180 degrees, see save_weights.)

    >>> from minicnn.layers import Dense, Sequential
    >>> {name: w.shape for name, w in get_weights(Sequential(dense1=Dense(3, 2))).items()}
    {'dense1_W': (3, 2), 'dense1_b': (2,)}
    """
    return {name: backend.to_host(p.data).copy() for name, p in network.parameters().items()}


def set_weights(network: Self, weights: Mapping[str, np.ndarray], source: Path = "weights") -> Self:
    """Set every parameter to its array, on the device and in the dtype that it has. Returns the network.

    weights: name -> array, of any backend or library that NumPy understands; they may be the parameters' own arrays, as
    where two layers change places. Raises WeightsError where names or shapes differ, where an array holds no
    floating-point numbers, or one that is not finite in the parameter's dtype, and where a parameter cannot be written
    to; the network is then unchanged.
    """
    weights = {name: backend.to_host(array) for name, array in weights.items()}
    parameters = network.parameters()
    if set(weights) != set(parameters):
        missing, extra = sorted(set(parameters) - set(weights)), sorted(set(weights) - set(parameters))
        raise WeightsError(f"{source}: not the weights of this network (missing {missing}, unknown {extra})")
    values = {}
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise WeightsError(f"{source}: {name} has shape {weights[name].shape}, the network's is {parameter.shape}")
        if weights[name].dtype.kind != "f":
            raise WeightsError(f"{source}: {name} holds {weights[name].dtype}, not floating-point numbers")
        with np.errstate(over="ignore", under="ignore"):  # 1e300 is infinite in float32, 1e-300 is 0
            values[name] = np.array(weights[name], dtype=parameter.dtype, order="C")
        if not np.isfinite(values[name]).all():
            raise WeightsError(f"{source}: {name} holds values that are no finite numbers")
        if not backend.is_writable(parameter.data):
            raise WeightsError(f"{source}: {name} is an array that cannot be written to: give its Tensor a copy")
    for name, parameter in parameters.items():
        parameter.data[...] = backend.of(parameter.data).asarray(values[name])
        parameter.version += 1
    return network


def save_weights(network: Layer, path: Path, temperature: float | None = None, dataset: str | None = None) -> None:
    """Write the network's weights as .npz (atomically), and the temperature and the data set that it was trained at and
    on, if these are known.

    As in the author's files, filters (arrays of four axes) stand there turned by 180 degrees, for true convolution.

    Raises WeightsError where a parameter has the name under which one of these stands.
    """
    weights = _flipped(get_weights(network))
    for name, told in (TRAINED_AT, temperature), (TRAINED_ON, dataset):
        if name in weights:
            raise WeightsError(f"{path}: {name!r} stands for how a network was trained, not for a parameter")
        if told is not None:
            weights[name] = np.array(told if isinstance(told, str) else float(told))
    save_npz(path, weights)


def load_weights(network: Self, path: Path) -> Self:
    """Set the network's parameters from an .npz file as save_weights writes it; returns the network. Raises
    WeightsError."""
    weights = load_npz(path, weights_limit(network))
    for name in (TRAINED_AT, TRAINED_ON):
        weights.pop(name, None)
    return set_weights(network, _flipped(weights), source=path)


def trained_at(path: Path, limit: int = LIMIT) -> float | None:
    """The temperature that the network in a weight file was trained at; None where the file does not say. limit: as for
    load_npz. Raises WeightsError."""
    temperature = load_npz(path, limit).get(TRAINED_AT)
    if temperature is None:
        return None
    if temperature.shape != () or temperature.dtype.kind != "f" or not 0 < temperature < math.inf:
        raise WeightsError(f"{path}: {TRAINED_AT} is no temperature: replace it")
    return float(temperature)


def trained_on(path: Path, limit: int = LIMIT) -> str | None:
    """The name of the data set that the network in a weight file was trained on; None where the file does not say.
    limit: as for load_npz. Raises WeightsError."""
    dataset = load_npz(path, limit).get(TRAINED_ON)
    if dataset is None:
        return None
    if dataset.shape != () or dataset.dtype.kind != "U":
        raise WeightsError(f"{path}: {TRAINED_ON} is no name of a data set: replace it")
    return str(dataset)


def weights_limit(network: Layer) -> int:
    """More bytes than a weight file of the network can have, in float64 and with all names; not so tight that the file
    of another network were refused without telling what is wrong."""
    return 8 * sum(p.data.size for p in network.parameters().values()) + 2**24
