"""Images whose pixels are moved one after the other, for good, and what the network decides after each move.

On the CPU only what a move touches is computed again. One pixel of the paper's network touches 3x3 of conv1, 5x5 of
conv2, 3x3 of the pool after them, 5x5 of conv3 and 7x7 of conv4, a seventh of the work of a whole pass. Every layer's
outputs before ReLU are kept for every image, and change by the convolution of the change alone. The logits are those of
a whole pass up to rounding; where the two largest are as close as rounding could bring them, a whole pass decides, so
that the decisions are always its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minicnn import backend, cpu
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Flatten, Layer, Sequential
from minicnn.paper.one_pixel import OnePixel
from minicnn.paper.saliency import rows_of_pixels
from minicnn.training import predict

MOST_BYTES = 2**30  # of the kept outputs; more images than fit are given whole passes
DOUBTFUL = 1000  # roundings of the largest logit, which a hundred moves come nowhere near


def moving_images(network: Layer, images: np.ndarray, chunk: int = 256) -> MovedInPart | MovedImages:
    """MovedInPart where the network has the form that it needs, runs on a CPU and the images fit into memory, otherwise
    MovedImages. images: a host array of the network's dtype, which stays as it is; chunk: images in a pass at a time.
    """
    if network.backend.functions.WINDOWS_PAY and OnePixel.fits(network) and len(images):
        if len(images) * _bytes_kept(network, images[:1]) <= MOST_BYTES:
            return MovedInPart(network, images, chunk)
    return MovedImages(network, images, chunk)


class MovedImages:
    """Images, on the network's device, and whole passes."""

    def __init__(self, network: Layer, images: np.ndarray, chunk: int = 256) -> None:
        self.network, self.chunk, self.device = network, chunk, network.backend
        self.images = self.device.asarray(np.array(images, order="C"))
        self.pixels = rows_of_pixels(self.images)  # a view

    def decisions(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Set one pixel of each chosen image to its entry of values. Returns the classes decided for, (M,).

        chosen (M,), each once, pixels (M,), in raster order channel by channel, values (M,): host arrays.
        """
        return self._logits(chosen, pixels, values).argmax(axis=1)

    def _logits(self, chosen, pixels, values):
        where, pixels, values = map(self.device.asarray, (chosen, pixels, values))
        self.pixels[where, pixels] = values
        return predict(self.network, self.images[where], chunk=self.chunk)


class MovedInPart(MovedImages):
    """The same, computing again what a move touches. network: one that OnePixel.fits, on the CPU."""

    def __init__(self, network: Sequential, images: np.ndarray, chunk: int = 256) -> None:
        super().__init__(network, images, chunk)
        layers: list[Any] = list(network.layers.values())
        split = next(i for i, layer in enumerate(layers) if type(layer) is Flatten)
        self.layers, self.head = layers[:split], layers[split:]
        self.packed = [cpu.pack_moved(layer.W.data) if isinstance(layer, Conv2D) else None for layer in self.layers]
        parts = [_outputs(self.layers, images[start : start + chunk]) for start in range(0, len(images), chunk)]
        self.outputs = [np.concatenate(of_layer) for of_layer in zip(*parts, strict=True)]
        self.inputs = np.ascontiguousarray(self.images.transpose(0, 2, 3, 1))

    def decisions(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """As MovedImages.decisions."""
        logits = self._logits(chosen, pixels, values)
        second, first = np.partition(logits, -2, axis=1)[:, -2:].T if logits.shape[1] > 1 else (-np.inf, logits[:, 0])
        error = DOUBTFUL * np.finfo(logits.dtype).eps * np.abs(logits).max(axis=1)
        decided, doubtful = logits.argmax(axis=1), ~(first - second > error)
        if doubtful.any():
            whole = predict(self.network, self.images[chosen[doubtful]], chunk=self.chunk)
            decided[doubtful] = whole.argmax(axis=1)
        return decided

    def _logits(self, chosen, pixels, values):
        image = np.ascontiguousarray(chosen, np.int64)
        channel, row, column = np.unravel_index(pixels, self.images.shape[1:])
        change = np.zeros((len(image), 1, 1, self.images.shape[1]), self.images.dtype)
        change[np.arange(len(image)), 0, 0, channel] = values - self.pixels[image, pixels]
        self.pixels[image, pixels] = self.inputs[image, row, column, channel] = values
        origin, below, rectified = np.stack([row, column], axis=1).astype(np.int64), self.inputs, False
        for layer, packed, y in zip(self.layers, self.packed, self.outputs, strict=True):
            if packed is not None:
                size = layer.W.shape[2]
                change = cpu.conv2d_moved(y, image, origin, change, packed, size, layer.relu)
                origin, rectified = origin - size + 1, layer.relu
            else:
                edge = change.shape[1]
                change = cpu.max_pool2d_moved(y, image, origin, edge, below, layer.size, rectified)
                origin, rectified = origin // layer.size, False
            below = y
        features = cpu.relu(below[image]) if rectified else below[image]
        with no_grad():
            x = Tensor(features.transpose(0, 3, 1, 2))
            for layer in self.head:
                x = layer(x)
        return backend.to_host(x.data)


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


def _bytes_kept(network, image):
    """By MovedInPart of one image."""
    x, kept = Tensor(image), 0
    with no_grad():
        for layer in network.layers.values():
            if type(layer) is Flatten:
                break
            x = layer(x)
            kept += math.prod(x.shape) * image.itemsize
    return kept
