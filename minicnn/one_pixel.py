"""Logits after changes of single pixels, recomputing only what a change touches.

One pixel of the paper's network touches 3x3 of conv1, 5x5 of conv2, at most 3x3 of pool1, 5x5 of conv3 and 7x7 of
conv4. All images of a batch share the windows of a pixel, so the windows are slices and keep their exact extent at the
borders. The activations of the unchanged images are computed once.
"""

from typing import NamedTuple

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import Conv2D, Flatten, MaxPool2D


class _Span(NamedTuple):
    """A half-open range of rows or columns."""

    first: int
    last: int

    def slice(self, origin=0):
        return slice(self.first - origin, self.last - origin)

    def __and__(self, other):
        return _Span(max(self.first, other.first), min(self.last, other.last))


class _Layer(NamedTuple):
    """A spatial layer, its kernel or pool size, its stride, and its output for the unchanged images."""

    layer: object
    size: int
    stride: int
    output: object

    def touched(self, span, extent):
        """Outputs that a change of the inputs in `span` reaches, of `extent` outputs."""
        first = max(0, -(-(span.first - self.size + 1) // self.stride))
        return _Span(first, min(extent, (span.last - 1) // self.stride + 1))

    def needed(self, span):
        """Inputs that the outputs in `span` are computed from."""
        return _Span(span.first * self.stride, (span.last - 1) * self.stride + self.size)


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
        self.images, self.head = images, layers[split:]
        self.spatial, x = [], Tensor(images)
        with no_grad():
            for layer in layers[:split]:
                x = layer(x)
                self.spatial.append(_Layer(layer, *_window(layer), x.data))
            self.logits = self._head(x)

    def _head(self, x):
        for layer in self.head:
            x = layer(x)
        return x.data

    def logits_with(self, row, column, chosen, values):
        """Logits (M, K) of images[chosen], each with its pixel (row, column) set to its entry of values.

        chosen (M,) integer device array, values (M,) device array. Padding aside, equal to a full forward pass up to
        the rounding of another summation order.
        """
        take = backend.of(self.images).kernels.take_images
        below, rows, columns = self.images, _Span(row, row + 1), _Span(column, column + 1)
        patch = values[:, None, None, None]
        with no_grad():
            for level in self.spatial:
                height, width = level.output.shape[2:]
                rows_out, columns_out = level.touched(rows, height), level.touched(columns, width)
                if rows_out.first >= rows_out.last or columns_out.first >= columns_out.last:
                    return self.logits[chosen]
                window_rows, window_columns = level.needed(rows_out), level.needed(columns_out)
                window = take(below[:, :, window_rows.slice(), window_columns.slice()], chosen)
                seen_rows, seen_columns = rows & window_rows, columns & window_columns
                window[:, :, seen_rows.slice(window_rows.first), seen_columns.slice(window_columns.first)] = patch[
                    :, :, seen_rows.slice(rows.first), seen_columns.slice(columns.first)
                ]
                patch = level.layer(Tensor(window)).data
                below, rows, columns = level.output, rows_out, columns_out
            full = take(below, chosen)
            full[:, :, rows.slice(), columns.slice()] = patch
            return self._head(Tensor(full))


def _window(layer):
    if isinstance(layer, Conv2D) and layer.padding == "valid":
        return layer.W.shape[2], 1
    if isinstance(layer, MaxPool2D):
        return layer.size, layer.size
    raise ValueError(f"one-pixel changes pass Conv2D with valid padding and MaxPool2D, not {type(layer).__name__}")
