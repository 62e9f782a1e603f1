"""Logits after changes of single pixels, recomputing only what a change touches.

One pixel of the paper's network touches 3x3 of conv1, 5x5 of conv2, 3x3 of pool1, 5x5 of conv3 and at most 7x7 of
conv4, less near a border. A convolution is linear, so its output before ReLU changes by the convolution of the change
alone. The activations of the unchanged images are computed once.

Changes are computed many at a time, in batches that share their windows, so that windows are slices and keep their
exact extent at the borders. The pixels of a block as large as a pooling window touch the same windows from that pool
on, and nearly the same before it: a change is therefore that of a block of pixels, of which one is another.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Flatten, MaxPool2D

FEW = 64  # changes a block: with fewer a call costs more than the wider windows of larger blocks


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

    network: a Sequential of Conv2D (valid padding) and MaxPool2D, then Flatten, then layers on (N, D).
    images (N, 1, H, W), a host array of the network's dtype. logits (N, K): those of the unchanged images, NumPy.
    Raises ValueError for a network of another form.
    """

    def __init__(self, network, images):
        layers = list(network.layers.values())
        split = next((i for i, layer in enumerate(layers) if isinstance(layer, Flatten)), None)
        if split is None:
            raise ValueError("one-pixel changes need a network with a Flatten layer between images and dense layers")
        self.images, self.device = images, backend.of(next(iter(network.parameters().values())).data)
        self.kernels, self.head, self.levels = self.device.kernels, layers[split:], []
        x = self.device.asarray(images)
        for layer in layers[:split]:
            self.levels.append(self._level(layer, x))
            x = self.levels[-1].output
        with no_grad():
            self.logits = self._head(x)

    def _level(self, layer, x):
        if isinstance(layer, MaxPool2D):
            y, _ = self.kernels.max_pool2d(x, layer.size)
            return _Level(layer, layer.size, layer.size, x, y, y)
        if not isinstance(layer, Conv2D) or layer.padding != "valid":
            raise ValueError(
                f"one-pixel changes pass Conv2D with valid padding and MaxPool2D, not {type(layer).__name__}"
            )
        linear = self.kernels.conv2d(x, layer.W.data, layer.b.data, "valid", False)
        return _Level(layer, layer.W.shape[2], 1, x, linear, self.kernels.relu(linear) if layer.relu else linear)

    def _head(self, x):
        x = Tensor(x)
        for layer in self.head:
            x = layer(x)
        return backend.to_host(x.data)

    def logits_with(self, chosen, pixels, values):
        """Logits (M, K), NumPy, of images[chosen], each with one of its pixels set to its entry of values.

        chosen, pixels (M,) integers, pixels in raster numbers, values (M,): host arrays. Equal to a full forward pass
        up to the rounding of another summation order. kernels.CHANGED_IMAGES are computed at a time.
        """
        logits = np.empty((len(chosen), self.logits.shape[1]), self.logits.dtype)
        rows, columns = np.divmod(pixels, self.images.shape[3])

        def compute(batch):
            block, members = batch
            logits[members] = self._block(*block, chosen[members], rows[members], columns[members], values[members])

        with no_grad():
            self.kernels.in_parallel(compute, self._batches(rows, columns))
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
                parts = -(-len(members) // self.kernels.CHANGED_IMAGES)
                batches += [(spans, part) for part in np.array_split(members, parts)]
        return batches

    def _block_size(self, changes):
        """The smallest pooling window, of all pools so far together, whose blocks have more than FEW changes each."""
        size = 1
        for level in self.levels:
            if level.stride > 1 and (size == 1 or changes * size**2 < FEW * math.prod(self.images.shape[2:])):
                size *= level.stride
        return size

    def _block(self, rows, columns, chosen, changed_rows, changed_columns, values):
        """Logits (M, K) of images[chosen], of whose block (rows, columns) one pixel is another."""
        patch = self.images[chosen, :, rows.slice(), columns.slice()]
        patch[np.arange(len(chosen)), 0, changed_rows - rows.first, changed_columns - columns.first] = values
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
        full = self.kernels.take_images(self.levels[-1].output, images)
        full[:, :, rows.slice(), columns.slice()] = patch
        return self._head(full)

    def _convolve(self, level, patch, images, rows, columns, rows_out, columns_out):
        """Outputs (M, O, rows_out, columns_out) of a convolution whose inputs (rows, columns) are `patch`."""
        take, layer = self.kernels.take_images, level.layer
        change = patch - take(level.input[:, :, rows.slice(), columns.slice()], images)
        offset = rows.first - rows_out.first, columns.first - columns_out.first
        y = self.kernels.conv2d_window(change, layer.W.data, (rows_out.length, columns_out.length), offset)
        y += take(level.linear[:, :, rows_out.slice(), columns_out.slice()], images)
        return self.kernels.relu(y) if layer.relu else y

    def _pool(self, level, patch, images, rows, columns, rows_out, columns_out):
        """Outputs (M, C, rows_out, columns_out) of a max-pool whose inputs (rows, columns) are `patch`."""
        window_rows, window_columns = (span.inputs(level.size, level.stride) for span in (rows_out, columns_out))
        window = self.kernels.take_images(level.input[:, :, window_rows.slice(), window_columns.slice()], images)
        seen_rows, seen_columns = rows & window_rows, columns & window_columns
        window[:, :, seen_rows.slice(window_rows.first), seen_columns.slice(window_columns.first)] = patch[
            :, :, seen_rows.slice(rows.first), seen_columns.slice(columns.first)
        ]
        return self.kernels.max_pool2d(window, level.size)[0]
