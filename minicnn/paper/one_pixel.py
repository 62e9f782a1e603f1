"""Logits after changes of single pixels, recomputing only what a change touches.

One pixel of the paper's network touches 3x3 of conv1, 5x5 of conv2, 3x3 of pool1, 5x5 of conv3 and at most 7x7 of
conv4, less near a border. A convolution is linear, so its output before ReLU changes by the convolution of the change
alone. The activations of the unchanged images are computed once.

Changes are computed many at a time, in batches that share their windows, so that windows are slices and keep their
exact extent at the borders. The pixels of a block as large as a pooling window touch the same windows from that pool
on, and nearly the same before it: what is recomputed is a block with one pixel replaced.

A pixel here is one entry of an image: of several channels each is a pixel of its own. Pixels are numbered in raster
order, channel by channel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Flatten, Layer, MaxPool2D, Sequential
from minicnn.paper.saliency import rows_of_pixels
from minicnn.training import predict

FEW = 64  # changes a block: with fewer a call costs more than the wider windows of larger blocks


def one_pixel_changes(network: Layer, images: np.ndarray) -> OnePixel | FullPasses:
    """What answers for these images: OnePixel where the network has the form that it needs and runs on a CPU, otherwise
    FullPasses: a large GPU takes no longer for these than the many small steps of the other are called in."""
    if network.backend.functions.WINDOWS_PAY and OnePixel.fits(network):
        return OnePixel(network, images)
    return FullPasses(network, images)


class FullPasses:
    """As OnePixel, for any network on (N, C, H, W) or (N, D): a forward pass for every changed image."""

    def __init__(self, network: Layer, images: np.ndarray) -> None:
        self.network, self.on_device = network, network.backend.asarray(np.ascontiguousarray(images))
        self.logits = predict(network, self.on_device)

    def logits_with(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Logits (M, K), NumPy, of images[chosen], each with one of its pixels set to its entry of values."""
        device, parts = self.network.backend, [self.logits[:0]]
        at_once = device.functions.CHANGED_IMAGES
        for start in range(0, len(chosen), at_once):
            which, pixel, value = (device.asarray(a[start : start + at_once]) for a in (chosen, pixels, values))
            changed = self.on_device[which]
            rows_of_pixels(changed)[device.asarray(np.arange(len(changed))), pixel] = value
            with no_grad():
                parts.append(self.network(Tensor(changed)).data)
        return np.concatenate([backend.to_host(part) for part in parts])  # only now: a GPU is to be kept busy


class _Span(NamedTuple):
    """A half-open range of rows or columns."""

    first: int
    last: int

    def slice(self, origin=0):
        return slice(self.first - origin, self.last - origin)

    def outputs(self, size, stride, extent):
        """The outputs, of `extent`, that a window of `size` over these inputs reaches."""
        first = max(0, -(-(self.first - size + 1) // stride))
        return _Span(first, min(extent, (self.last - 1) // stride + 1))

    def inputs(self, size, stride):
        """The inputs that these outputs are computed from."""
        return _Span(self.first * stride, (self.last - 1) * stride + size)

    def __and__(self, other):
        return _Span(max(self.first, other.first), min(self.last, other.last))

    @property
    def length(self):
        return max(0, self.last - self.first)


class _Level(NamedTuple):
    """A spatial layer and what the unchanged images give there: input, output before ReLU (of a pool: its output), and
    output, all (N, C, H, W)."""

    layer: Any
    size: int
    stride: int
    input: Any
    linear: Any
    output: Any


class OnePixel:
    """A batch of images and its activations, ready to answer: what are the logits with one pixel changed?

    network: one that fits. images (N, C, H, W), a host array of the network's dtype. logits (N, K): those of the
    unchanged images, NumPy.
    """

    @staticmethod
    def fits(network: Layer) -> TypeGuard[Sequential]:
        """Whether it is a Sequential of Conv2D (square filters, valid padding) and MaxPool2D, then Flatten, then layers
        on (N, D)."""
        if type(network) is not Sequential:
            return False
        kinds = [type(layer) for layer in network.layers.values()]
        spatial = list(network.layers.values())[: kinds.index(Flatten)] if Flatten in kinds else []
        return bool(spatial) and all(
            type(layer) is MaxPool2D
            or type(layer) is Conv2D
            and layer.padding == "valid"
            and layer.W.shape[2] == layer.W.shape[3]
            for layer in spatial
        )

    def __init__(self, network: Sequential, images: np.ndarray) -> None:
        layers = list(network.layers.values())
        split = next(i for i, layer in enumerate(layers) if type(layer) is Flatten)
        self.images, self.device = images, network.backend
        self.functions, self.head, self.levels = self.device.functions, layers[split:], []
        x = self.device.asarray(images)
        for layer in layers[:split]:
            self.levels.append(self._level(layer, x))
            x = self.levels[-1].output
        self.logits = self._head(x)

    def _level(self, layer, x):
        if isinstance(layer, MaxPool2D):
            y, _ = self.functions.max_pool2d(x, layer.size)
            return _Level(layer, layer.size, layer.size, x, y, y)
        size = layer.W.shape[2]
        size_out = tuple(extent - size + 1 for extent in x.shape[2:])
        linear = self.functions.conv2d(x, layer.W.data, layer.b.data, size_out, (0, 0), False)
        return _Level(layer, size, 1, x, linear, self.functions.relu(linear) if layer.relu else linear)

    def _head(self, x):
        with no_grad():
            x = Tensor(x)
            for layer in self.head:
                x = layer(x)
        return backend.to_host(x.data)

    def logits_with(self, chosen: np.ndarray, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Logits (M, K), NumPy, of images[chosen], each with one of its pixels set to its entry of values.

        chosen, pixels (M,) integers, values (M,): host arrays. Equal to a full forward pass up to the rounding of
        another summation order. functions.CHANGED_IMAGES are computed at a time.
        """
        logits = np.empty((len(chosen), self.logits.shape[1]), self.logits.dtype)
        places = np.unravel_index(pixels, self.images.shape[1:])

        def compute(batch):
            block, members = batch
            changed = [axis[members] for axis in places]
            logits[members] = self._block(*block, chosen[members], *changed, values[members])

        self.functions.in_parallel(compute, self._batches(*places[1:]))
        return logits

    def _batches(self, rows, columns):
        """Cut the changes into batches of one block each: [((row span, column span), indices of the changes)]."""
        size = self._block_size(len(rows))
        height, width = self.images.shape[2:]
        across = -(-width // size)
        blocks = rows // size * across + columns // size
        order = np.argsort(blocks, kind="stable")
        batches = []
        for members in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            if len(members):
                row, column = divmod(int(blocks[members[0]]), across)
                spans = (
                    _Span(row * size, min(height, (row + 1) * size)),
                    _Span(column * size, min(width, (column + 1) * size)),
                )
                parts = -(-len(members) // self.functions.CHANGED_IMAGES)
                batches += [(spans, part) for part in np.array_split(members, parts)]
        return batches

    def _block_size(self, changes):
        """The smallest pooling window, of all pools so far together, whose blocks have more than FEW changes each."""
        size = 1
        for level in self.levels:
            if level.stride > 1 and (size == 1 or changes * size**2 < FEW * math.prod(self.images.shape[2:])):
                size *= level.stride
        return size

    def _block(self, rows, columns, chosen, channels, changed_rows, changed_columns, values):
        """Logits (M, K) of images[chosen], whose block (rows, columns) has one pixel replaced."""
        patch = self.images[chosen, :, rows.slice(), columns.slice()]
        patch[np.arange(len(chosen)), channels, changed_rows - rows.first, changed_columns - columns.first] = values
        patch, images = self.device.asarray(patch), self.device.asarray(chosen)
        for level in self.levels:
            rows_out, columns_out = (
                span.outputs(level.size, level.stride, extent)
                for span, extent in zip((rows, columns), level.output.shape[2:], strict=True)
            )
            if not rows_out.length or not columns_out.length:
                return self.logits[chosen]
            step = self._pool if isinstance(level.layer, MaxPool2D) else self._convolve
            patch = step(level, patch, images, rows, columns, rows_out, columns_out)
            rows, columns = rows_out, columns_out
        full = self.functions.take_images(self.levels[-1].output, images)
        full[:, :, rows.slice(), columns.slice()] = patch
        return self._head(full)

    def _convolve(self, level, patch, images, rows, columns, rows_out, columns_out):
        """Outputs (M, O, rows_out, columns_out) of a convolution whose inputs (rows, columns) are `patch`."""
        take, layer = self.functions.take_images, level.layer
        change = patch - take(level.input[:, :, rows.slice(), columns.slice()], images)
        offset = rows.first - rows_out.first, columns.first - columns_out.first
        size_out = rows_out.length, columns_out.length
        y = self.functions.conv2d(change, layer.W.data, None, size_out, offset, False)
        y += take(level.linear[:, :, rows_out.slice(), columns_out.slice()], images)
        return self.functions.relu(y) if layer.relu else y

    def _pool(self, level, patch, images, rows, columns, rows_out, columns_out):
        """Outputs (M, C, rows_out, columns_out) of a max-pool whose inputs (rows, columns) are `patch`."""
        window_rows, window_columns = (span.inputs(level.size, level.stride) for span in (rows_out, columns_out))
        window = self.functions.take_images(level.input[:, :, window_rows.slice(), window_columns.slice()], images)
        seen_rows, seen_columns = rows & window_rows, columns & window_columns
        window[:, :, seen_rows.slice(window_rows.first), seen_columns.slice(window_columns.first)] = patch[
            :, :, seen_rows.slice(rows.first), seen_columns.slice(columns.first)
        ]
        return self.functions.max_pool2d(window, level.size)[0]
