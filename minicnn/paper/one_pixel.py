"""Images of which single pixels are changed, and what the network says then: the inner loop of every attack.

On the CPU only what a change touches is computed again. One pixel of the paper's network touches 3x3 of conv1, 5x5 of
conv2, 3x3 of the pool after them, 5x5 of conv3 and 7x7 of conv4: a seventh of the work of a whole pass. Every layer's
outputs before ReLU are kept for every image, and change by the convolution of the change alone. The logits are those of
a whole pass up to rounding.

A pixel here is one entry of an image: of several channels each is a pixel of its own. Pixels are numbered in raster
order, channel by channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from minicnn import backend, cpu
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, Sequential
from minicnn.paper.saliency import rows_of_pixels
from minicnn.threads import chunks
from minicnn.training import predict

MOST_BYTES = 2**30  # of the kept outputs; more images than fit are given whole passes
DOUBTFUL = 100  # roundings of the largest of all sums (_scale); a hundred moves stray by about one, by 3.2 at most


class AttackError(ValueError):
    """An attack cannot be run; the message says why and what to do."""


def decisions(logits: np.ndarray) -> np.ndarray:
    """The class of the largest logit, the first of equals, (N, K) -> (N,). Raises AttackError where a logit is NaN."""
    if np.isnan(logits).any():
        raise AttackError("the logits are no finite numbers: choose other weights")
    return logits.argmax(axis=1)


def changing_images(network: Layer, images: np.ndarray, chunk: int = 256) -> ChangingImages:
    """ChangedInPart where the network has the form that it needs, runs on a CPU and the images fit into memory;
    otherwise ChangingImages: a large GPU takes no longer for whole passes than many small steps are called in.

    images: a host array of the network's dtype, which stays as it is; chunk: images in a pass at a time.
    """
    if network.device == "cpu" and ChangedInPart.fits(network) and len(images):
        if len(images) * _bytes_kept(network, images[:1]) <= MOST_BYTES:
            return ChangedInPart(network, images, chunk)
    return ChangingImages(network, images, chunk)


class ChangingImages:
    """Images (N, C, H, W) or (N, D) and whole passes of any network, on any device."""

    def __init__(self, network: Layer, images: np.ndarray, chunk: int = 256) -> None:
        self.network, self.chunk, self.device = network, chunk, network.backend
        self.images = self.device.asarray(np.array(images, order="C"))
        self.pixels = rows_of_pixels(self.images)  # a view

    def logits(self) -> np.ndarray:
        """Logits (N, K), NumPy, of the images as they are."""
        return predict(self.network, self.images, chunk=self.chunk)

    def logits_with(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Logits (M, K), NumPy, of images[chosen], each with one of its pixels set to its entry of values.

        chosen, pixels (M,) integers, values (M,): host arrays. functions.CHUNK are computed at a time.
        """
        logits = []
        for part in chunks(len(chosen), self.device.functions.CHUNK):
            which, pixel, value = (self.device.asarray(a[part]) for a in (chosen, pixels, values))
            changed = self.images[which]
            rows_of_pixels(changed)[self.device.asarray(np.arange(len(changed))), pixel] = value
            with no_grad():
                logits.append(self.network(Tensor(changed)).data)
        return np.concatenate([backend.to_host(of_part) for of_part in logits])  # only now: a GPU is to be kept busy

    def decisions_after(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The same changes, for good, of images that are each chosen once. Returns the classes decided for, (M,).
        Raises AttackError where a logit is NaN."""
        which, pixels, values = map(self.device.asarray, (chosen, pixels, values))
        self.pixels[which, pixels] = values
        return decisions(predict(self.network, self.images[which], chunk=self.chunk))


class ChangedInPart(ChangingImages):
    """The same on the CPU, computing again what a change touches. network: one that fits."""

    @staticmethod
    def fits(network: Layer) -> TypeGuard[Sequential]:
        """Whether it is a Sequential of Conv2D (square filters, valid padding) and MaxPool2D, then Flatten, then Dense
        and Dropout."""
        if type(network) is not Sequential:
            return False
        layers = list(network.layers.values())
        kinds = [type(layer) for layer in layers]
        spatial = layers[: kinds.index(Flatten)] if Flatten in kinds else []
        return (
            bool(spatial)
            and set(kinds[len(spatial) + 1 :]) <= {Dense, Dropout}
            and all(
                type(layer) is MaxPool2D
                or type(layer) is Conv2D
                and layer.padding == "valid"
                and layer.W.shape[2] == layer.W.shape[3]
                for layer in spatial
            )
        )

    def __init__(self, network: Sequential, images: np.ndarray, chunk: int = 256) -> None:
        super().__init__(network, images, chunk)
        self.layers, self.head = _parts(network)
        self.packed = [cpu.pack_moved(layer.W.data) if isinstance(layer, Conv2D) else None for layer in self.layers]
        parts = [_outputs(self.layers, images[part]) for part in chunks(len(images), chunk)]
        self.outputs = [np.concatenate(of_layer) for of_layer in zip(*parts, strict=True)]
        self.inputs = np.ascontiguousarray(self.images.transpose(0, 2, 3, 1))
        gains = [_gain(layer) for layer in (*self.layers, *self.head)]
        self.gains = [math.prod(gains[i:]) for i in range(len(gains) + 1)]  # of all layers from one on
        self.largest = [_largest(x) for x in (self.inputs, *self.outputs)]  # of every image, or a bound of it

    def logits(self) -> np.ndarray:
        """As ChangingImages.logits, up to the rounding of another order of summation."""
        relu = isinstance(self.layers[-1], Conv2D) and self.layers[-1].relu
        return self._after(cpu.relu(self.outputs[-1]) if relu else self.outputs[-1])[-1]

    def logits_with(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """As ChangingImages.logits_with, up to the rounding of another order of summation."""
        parts = chunks(len(chosen), cpu.CHUNK)
        found = cpu.in_parallel(lambda part: self._passes(chosen[part], pixels[part], values[part], False)[-1], parts)
        return np.concatenate(found)

    def decisions_after(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """As ChangingImages.decisions_after: where the two largest logits are as close as rounding could bring them, a
        whole pass decides."""
        after = self._passes(chosen, pixels, values, True)
        logits = after[-1]
        second, first = np.partition(logits, -2, axis=1)[:, -2:].T if logits.shape[1] > 1 else (-np.inf, logits[:, 0])
        error = DOUBTFUL * np.finfo(logits.dtype).eps * self._scale(chosen, after)
        doubtful = ~(first - second > error)
        if doubtful.any():
            logits[doubtful] = predict(self.network, self.images[chosen[doubtful]], chunk=self.chunk)
        return decisions(logits)

    @np.errstate(all="ignore")
    def _scale(self, chosen, after):
        """The largest number anywhere in the passes of the chosen images, each times what the layers above make of its
        rounding: (M,). after: the features and the outputs of the layers above them.

        Rounding is relative to what is added up, which a later layer may cancel. Independent errors of one size add up
        to the root of the sum of squares of the weights that they meet."""
        sizes = [of_layer[chosen] for of_layer in self.largest] + [_largest(x) for x in after[1:]]
        return (np.array(self.gains)[:, None] * np.array(sizes)).max(axis=0)

    def _after(self, features):
        """The features (M, P, Q, O), and after them the outputs of all layers above, the logits (M, K) last."""
        found, x = [features], Tensor(features.transpose(0, 3, 1, 2))
        with no_grad():
            for layer in self.head:
                x = layer(x)
                found.append(x.data)
        return found

    def _passes(self, chosen, pixels, values, keep):
        """What _after returns after the changes, which with keep are made for good."""
        image = np.ascontiguousarray(chosen, np.int64)
        channel, row, column = np.unravel_index(pixels, self.images.shape[1:])
        change = np.zeros((len(image), 1, 1, self.images.shape[1]), self.images.dtype)
        change[np.arange(len(image)), 0, 0, channel] = values - self.pixels[image, pixels]
        if keep:
            self.pixels[image, pixels] = self.inputs[image, row, column, channel] = values
            self.largest[0][image] = np.maximum(self.largest[0][image], np.abs(values))
        origin, below, relu = np.stack([row, column], axis=1).astype(np.int64), self.inputs, False
        for layer, packed, y, largest in zip(self.layers, self.packed, self.outputs, self.largest[1:], strict=True):
            if packed is None:
                change = cpu.max_pool2d_moved(y, image, origin, change, below, layer.size, relu, keep)
                origin, relu = origin // layer.size, False
            else:
                size = layer.W.shape[2]
                change = cpu.conv2d_moved(y, image, origin, change, packed, size, layer.relu, keep)
                origin, relu = origin - size + 1, layer.relu
            if keep:
                largest[image] += _largest(change)
            below = y
        features = cpu.relu(below[image]) if relu else below[image]
        if not keep:
            _add(features, change, origin)
        return self._after(features)


def _parts(network: Sequential) -> tuple[Sequence[Any], Sequence[Any]]:
    """The layers of a network that fits, before its Flatten and from there on."""
    layers = list(network.layers.values())
    split = next(i for i, layer in enumerate(layers) if type(layer) is Flatten)
    return layers[:split], layers[split:]


@np.errstate(all="ignore")
def _gain(layer):
    """The most that independent errors of one size grow by: the root of the sum of squares of a unit's weights."""
    if not isinstance(layer, (Conv2D, Dense)):
        return 1.0
    squares = np.square(layer.W.data, dtype=np.float64).sum(axis=(1, 2, 3) if isinstance(layer, Conv2D) else 0)
    return math.sqrt(squares.max())


def _largest(x):
    """Of each item of x (M, ...) the largest absolute value, (M,)."""
    rows = rows_of_pixels(x)
    return np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))


def _outputs(layers, images):
    """Of every layer the outputs before ReLU, (N, P, Q, O)."""
    x, found = images, []
    for layer in layers:
        if isinstance(layer, Conv2D):
            size_out = tuple(extent - layer.W.shape[2] + 1 for extent in x.shape[2:])
            y = cpu.conv2d(x, layer.W.data, layer.b.data, size_out, (0, 0), False)
            x = cpu.relu(y) if layer.relu else y
        else:
            x = y = cpu.max_pool2d(x, layer.size)[0]
        found.append(np.ascontiguousarray(y.transpose(0, 2, 3, 1)))
    return found


def _add(x, change, origin):
    """x (M, P, Q, O) += change (M, edge, edge, O), which begins at origin (M, 2), where that is inside."""
    places = origin[:, :, None] + np.arange(change.shape[1])  # rows and columns, (M, 2, edge)
    inside = (places >= 0) & (places < np.array(x.shape[1:3])[:, None])
    m, i, j = np.nonzero(inside[:, 0, :, None] & inside[:, 1, None, :])
    x[m, places[m, 0, i], places[m, 1, j]] += change[m, i, j]


def _bytes_kept(network, image):
    """By ChangedInPart of one image."""
    x, kept = Tensor(image), image.nbytes
    with no_grad():
        for layer in _parts(network)[0]:
            x = layer(x)
            kept += math.prod(x.shape) * image.itemsize
    return kept
