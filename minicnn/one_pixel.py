"""Logits after changes of single pixels, recomputing only what a change touches.

One pixel of the paper's network touches 3x3 of conv1, 5x5 of conv2, at most 3x3 of pool1, 5x5 of conv3 and 7x7 of
conv4. A convolution is linear, so its output before ReLU changes by the convolution of the change alone: of 5x5 inputs
instead of the 9x9 that 7x7 outputs depend on. All images of a batch share the windows of a pixel, so the windows are
slices and keep their exact extent at the borders. The activations of the unchanged images are computed once.
"""

from typing import Any, NamedTuple

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Flatten, MaxPool2D


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


class _Level(NamedTuple):
    """A spatial layer and what the unchanged images give there: input, output before ReLU (of a pool: its output), and
    output, all (N, C, H, W); for a convolution also the filters whose input gradient spreads a change: W transposed
    and flipped."""

    layer: Any
    size: int
    stride: int
    input: Any
    linear: Any
    output: Any
    spread: Any = None


class OnePixel:
    """A batch of images and its activations, ready to answer: what are the logits with one pixel changed?

    network: a Sequential of Conv2D (valid padding) and MaxPool2D, then Flatten, then layers on (N, D).
    images (N, 1, H, W), a device array of the network's dtype. logits (N, K): those of the unchanged images.
    Raises ValueError for a network of another form.
    """

    def __init__(self, network, images):
        layers = list(network.layers.values())
        split = next((i for i, layer in enumerate(layers) if isinstance(layer, Flatten)), None)
        if split is None:
            raise ValueError("one-pixel changes need a network with a Flatten layer between images and dense layers")
        self.kernels, self.xp = backend.of(images).kernels, backend.of(images).xp
        self.images, self.head, self.levels = images, layers[split:], []
        for layer in layers[:split]:
            self.levels.append(self._level(layer, self.levels[-1].output if self.levels else images))
        self.logits = self._head(self.levels[-1].output if self.levels else images)

    def _level(self, layer, x):
        if isinstance(layer, MaxPool2D):
            y, _ = self.kernels.max_pool2d(x, layer.size)
            return _Level(layer, layer.size, layer.size, x, y, y)
        if not isinstance(layer, Conv2D) or layer.padding != "valid":
            raise ValueError(
                f"one-pixel changes pass Conv2D with valid padding and MaxPool2D, not {type(layer).__name__}"
            )
        w = layer.W.data
        linear = self.kernels.conv2d(x, w, layer.b.data, "valid", False)
        output = self.kernels.relu(linear) if layer.relu else linear
        spread = self.xp.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        return _Level(layer, w.shape[2], 1, x, linear, output, spread)

    def _head(self, x):
        with no_grad():
            x = Tensor(x)
            for layer in self.head:
                x = layer(x)
        return x.data

    def logits_with(self, row, column, chosen, values):
        """Logits (M, K) of images[chosen], each with its pixel (row, column) set to its entry of values.

        chosen (M,) integer device array, values (M,) device array. Equal to a full forward pass up to the rounding of
        another summation order.
        """
        rows, columns = _Span(row, row + 1), _Span(column, column + 1)
        patch = values[:, None, None, None]
        for level in self.levels:
            rows_out, columns_out = (
                span.outputs(level.size, level.stride, extent)
                for span, extent in zip((rows, columns), level.output.shape[2:], strict=True)
            )
            if rows_out.first >= rows_out.last or columns_out.first >= columns_out.last:
                return self.logits[chosen]
            step = self._pool if level.spread is None else self._convolve
            patch = step(level, patch, chosen, rows, columns, rows_out, columns_out)
            rows, columns = rows_out, columns_out
        full = self.kernels.take_images(self.levels[-1].output, chosen)
        full[:, :, rows.slice(), columns.slice()] = patch
        return self._head(full)

    def _convolve(self, level, patch, chosen, rows, columns, rows_out, columns_out):
        """Outputs (M, O, rows_out, columns_out) of a convolution whose inputs (rows, columns) are `patch`."""
        take = self.kernels.take_images
        change = patch - take(level.input[:, :, rows.slice(), columns.slice()], chosen)
        reach = level.size - 1
        shape = len(change), level.linear.shape[1], change.shape[2] + reach, change.shape[3] + reach
        spread = self.kernels.conv2d_input_grad(change, level.spread, shape, "valid")
        y = take(level.linear[:, :, rows_out.slice(), columns_out.slice()], chosen)
        y += spread[:, :, rows_out.slice(rows.first - reach), columns_out.slice(columns.first - reach)]
        return self.kernels.relu(y) if level.layer.relu else y

    def _pool(self, level, patch, chosen, rows, columns, rows_out, columns_out):
        """Outputs (M, C, rows_out, columns_out) of a max-pool whose inputs (rows, columns) are `patch`."""
        window_rows, window_columns = (span.inputs(level.size, level.stride) for span in (rows_out, columns_out))
        window = self.kernels.take_images(level.input[:, :, window_rows.slice(), window_columns.slice()], chosen)
        seen_rows, seen_columns = rows & window_rows, columns & window_columns
        window[:, :, seen_rows.slice(window_rows.first), seen_columns.slice(window_columns.first)] = patch[
            :, :, seen_rows.slice(rows.first), seen_columns.slice(columns.first)
        ]
        return self.kernels.max_pool2d(window, level.size)[0]
