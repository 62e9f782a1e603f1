"""The two data sets in one form: MNIST as the paper used it, and scikit-learn's embedded handwritten digits.

`load("mnist")` takes each of the four files from $MINICNN_DATA/mnist, else from the cache, else from a public mirror
(into the cache), and always checks the SHA-256 of its uncompressed bytes. `load("digits")` needs no files.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minicnn.files import cache_folder, read_file, remove_abandoned, write_atomically

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
GZIP = b"\x1f\x8b"  # what such a file begins with
TIMEOUT = 30  # seconds without a byte before a mirror counts as failed
TOTAL_TIME = 600  # seconds that a mirror has for a file

Progress = Callable[[str, int, "int | None"], None]

MNIST_FILES = {  # name: sizes in the IDX header, SHA-256 of the uncompressed bytes
    "train-images-idx3-ubyte": (
        (60000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        (60000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        (10000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        (10000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


class DataError(ValueError):
    """A data set cannot be had; the message says what is wrong and what to do."""


class Dataset(NamedTuple):
    """Images float32 (N, 1, 28, 28) with values in [0, 1], and labels int32 (N,) with values 0...9."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(name: str, validation: int | None = None, progress: Progress | None = None) -> Dataset:
    """Load a data set, the last `validation` training samples set apart for validation.

    name        "digits": 1,500 training and 297 test images; validation 0 by default.
                "mnist": pixel / 256, so at most 255/256; 60,000 and 10,000 images; validation 1,000 by default, as in
                the author's code (10000: as in the paper's text).
    progress    called as progress(file name, bytes received, bytes in all or None) while a file is downloaded.
    Raises DataError for an unknown name, a `validation` that leaves no training sample, and data that are missing,
    damaged, or out of reach.
    """
    if name == "digits":
        samples, default = _digits(), 0
    elif name == "mnist":
        samples, default = _mnist(progress), 1000
    else:
        raise DataError(f"unknown data set {name!r}: choose 'digits' or 'mnist'")
    images, labels, test_images, test_labels = samples
    validation = default if validation is None else validation
    if not 0 <= validation < len(images):
        raise DataError(f"validation = {validation} of {len(images)} training samples: choose 0 to {len(images) - 1}")
    train = len(images) - validation
    return Dataset(name, images[:train], labels[:train], images[train:], labels[train:], test_images, test_labels)


def _digits():
    """The 1,797 8x8 digits scaled to 24x24 and padded by 2: train images, train labels, test images, test labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the data set 'digits' comes with scikit-learn, which cannot be imported: pip install scikit-learn"
        ) from error
    digits = load_digits()
    scale = _bilinear(8, 24)
    images = np.pad(scale @ (digits.images / 16) @ scale.T, ((0, 0), (2, 2), (2, 2))).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int32)
    # RandomState, not Generator: its stream is frozen, so the split is the same in every NumPy release.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:1500], order[1500:]
    return images[train], labels[train], images[test], labels[test]


def _bilinear(source, target):
    """Matrix (target, source) of linear interpolation in one dimension: half-pixel centres, edges clamped."""
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(source)))


def _mnist(progress):
    """The four MNIST files as train images, train labels, test images, test labels."""
    images, labels, test_images, test_labels = (_mnist_file(name, progress) for name in MNIST_FILES)
    return _scaled(images), labels.astype(np.int32), _scaled(test_images), test_labels.astype(np.int32)


def _scaled(pixels):
    """Pixels uint8 (N, 28, 28) -> float32 (N, 1, 28, 28): pixel / 256, the author's scaling."""
    return np.divide(pixels[:, None], 256, dtype=np.float32)


def _mnist_file(name, progress):
    """One MNIST file as a uint8 array, from the first place that has it; a damaged file there is an error."""
    for folder in _folders():
        for spelling in (name, name.replace("-idx", ".idx")):  # as some archives unpack it
            for path in (folder / f"{spelling}.gz", folder / spelling):
                try:
                    return _parse(name, read_file(path, _most_bytes(name) + 1))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except (OSError, DataError) as error:
                    reason = error if isinstance(error, DataError) else f"cannot be read ({error})"
                    raise DataError(f"MNIST file {path} {reason}; replace it: {_where_to_put()}") from error
    return _download(name, progress)


def data_folder() -> Path | None:
    """The folder that MINICNN_DATA names, None where it is not set. Raises DataError for ~ without a home."""
    try:
        return Path(named).expanduser() if (named := os.environ.get("MINICNN_DATA")) else None
    except RuntimeError:
        raise DataError(f"MINICNN_DATA is {named}, and there is no such home folder: set it to a folder") from None


def _folders() -> Iterator[Path]:
    """Where the files may lie; the cache is asked for only where the data folder has not all of them."""
    if own := data_folder():
        yield own / "mnist"
    yield _cache_folder()


def _cache_folder() -> Path:
    """Raises DataError where there is no home to keep a cache in."""
    try:
        return cache_folder() / "mnist"
    except RuntimeError:
        raise DataError("no home folder to keep MNIST in: set MINICNN_CACHE, or MINICNN_DATA, to a folder") from None


def _most_bytes(name):
    """More than a file of MNIST has, gzipped or not."""
    return math.prod(MNIST_FILES[name][0]) + 2**10


def _where_to_put():
    unset = "" if os.environ.get("MINICNN_DATA") else "$MINICNN_DATA/mnist (MINICNN_DATA is not set) or in "
    folders = " or in ".join(map(str, _folders()))
    return f"put {', '.join(MNIST_FILES)} (each as it is or as .gz) in {unset}{folders}"


def _gunzip(contents, size):
    """At most `size` bytes and one more, by which a file that holds too much is known, of all members."""
    plain = b""
    while contents.startswith(GZIP) and len(plain) <= size:
        decompressor = zlib.decompressobj(wbits=31)
        try:
            plain += decompressor.decompress(contents, size + 1 - len(plain))
        except zlib.error as error:
            raise DataError(f"is not a sound gzip file ({error})") from error
        if len(plain) <= size and not decompressor.eof:
            raise DataError("is truncated")
        contents = decompressor.unused_data
    return plain


def _parse(name, contents):
    """The array in an IDX file, gzipped or not, whose header, length and SHA-256 must be those of MNIST."""
    shape, sha256 = MNIST_FILES[name]
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)  # 0x08: unsigned bytes
    if contents.startswith(GZIP):
        contents = _gunzip(contents, len(header) + math.prod(shape))
    if not contents.startswith(header):
        found = contents[: len(header)].hex() or "(empty)"
        if contents and not contents.startswith(b"\0\0"):
            raise DataError(f"is not a sound gzip file, nor an IDX file: it begins with {found}")
        raise DataError(f"has the IDX header {found}, not {header.hex()}")
    if len(contents) > len(header) + math.prod(shape):
        raise DataError(f"holds more than the {len(header) + math.prod(shape)} bytes that it has uncompressed")
    if len(contents) < len(header) + math.prod(shape):
        raise DataError(f"holds {len(contents)} bytes uncompressed, not {len(header) + math.prod(shape)}")
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise DataError("is as long as MNIST's, but its contents are others (another SHA-256)")
    return np.frombuffer(contents, np.uint8, offset=len(header)).reshape(shape)


def _download(name, progress):
    """Fetch NAME.gz from the first mirror that gives a sound file, keep it in the cache, and return its array."""
    cache, failures = _cache_folder(), []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            contents = _fetch(url, name, progress)
            array = _parse(name, contents)
        except DataError as error:
            failures.append(f"{url} {error}")
            continue
        _keep(cache / f"{name}.gz", contents)
        return array
    raise DataError(f"MNIST file {name} is missing and no mirror gave it: {', '.join(failures)}; {_where_to_put()}")


def _fetch(url, name, progress):
    """The bytes at `url`; a connection cut short gives fewer of them, which the checks of the file then find.

    Raises DataError for more bytes than the file has uncompressed, after TOTAL_TIME, and for whatever a mirror does.
    """
    limit, deadline = _most_bytes(name), time.monotonic() + TOTAL_TIME
    pieces: queue.Queue = queue.Queue(maxsize=16)
    stopped = threading.Event()

    def put(piece):
        while not stopped.is_set():
            try:
                return pieces.put(piece, timeout=1)
            except queue.Full:
                continue

    def read():
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                total = response.headers.get("Content-Length", "")
                put(int(total) if total.isdigit() else None)
                while not stopped.is_set() and (piece := response.read1(1 << 16)):
                    put(piece)
            put(b"")
        except Exception as error:
            put(error)

    # A server that sends a byte now and then keeps its reader waiting without end: so the reader is not this thread.
    threading.Thread(target=read, daemon=True).start()
    received, total = bytearray(), None
    try:
        while (piece := pieces.get(timeout=max(0.0, deadline - time.monotonic()))) != b"":
            if isinstance(piece, Exception):
                raise DataError(f"cannot be read ({piece})") from piece
            if not isinstance(piece, bytes):
                total = piece
                continue
            received += piece
            if len(received) > limit:
                raise DataError(f"sends more than the {limit} bytes that {name} can have")
            if progress:
                progress(name, len(received), total)
    except queue.Empty:
        raise DataError(f"did not send {name} within {TOTAL_TIME} seconds") from None
    finally:
        stopped.set()
    return bytes(received)


def _keep(path, contents):
    remove_abandoned(path.parent)
    try:
        write_atomically(path, contents)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}): set MINICNN_CACHE to a folder that can be written") from error
