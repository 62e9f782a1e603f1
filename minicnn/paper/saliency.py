"""Saliency maps: the gradient of the cross-entropy by the pixels (Algorithm 1, step 2), plain and scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, grad
from minicnn.layers import Layer, backend_and_dtype, over_images
from minicnn.ops import check_count, check_labels, check_temperature

ARITHMETICS = ("plain", "scaled")


def check_arithmetic(arithmetic: str) -> None:
    """Raises ValueError for another arithmetic than those of ARITHMETICS."""
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"arithmetic must be 'plain' or 'scaled', got {arithmetic!r}")


class SaliencyMaps(NamedTuple):
    """What a network says of N images; NumPy arrays.

    maps, of the images' shape: the gradient divided by 10^log10_scale. log10_scale (N,): 0 for plain. logits (N, K).
    """

    maps: np.ndarray
    log10_scale: np.ndarray
    logits: np.ndarray

    @property
    def zeros(self) -> np.ndarray:
        """How many entries of each map are exactly 0, (N,)."""
        return (rows_of_pixels(self.maps) == 0).sum(axis=1)

    def log10_size(self) -> np.ndarray:
        """log10 of the largest absolute true gradient, (N,); -inf for a map that is exactly zero."""
        with np.errstate(divide="ignore"):
            return np.log10(np.abs(rows_of_pixels(self.maps)).max(axis=1).astype(np.float64)) + self.log10_scale


def rows_of_pixels(images: Any) -> Any:
    """(N, C, H, W) or (N, D) -> (N, P), also for no images; a view where they are contiguous. On any backend."""
    return images.reshape(len(images), math.prod(images.shape[1:]))


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(f"the network must end in logits (N, K), got {logits.shape}: is a Flatten layer missing?")


def _maps(network: Layer, images: Any, labels: Any, T: float, arithmetic: str) -> tuple:
    """Maps, log10_scale and logits of one batch on its device. No gradient of a weight is computed."""
    functions = backend.of(images).functions
    pixels = Tensor(images, requires_grad=True)
    logits = network(pixels)
    _check_logits(logits)
    targets = backend.of(images).asarray(check_labels(labels, *logits.shape), dtype=np.int32)
    cotangent, log10_scale = functions.saliency_cotangent(logits.data, targets, T, arithmetic)
    (maps,) = grad(logits, [pixels], cotangent)
    return maps, log10_scale, logits.data


def saliency_maps(
    network: Layer, images: Any, labels: Any, T: float = 1.0, arithmetic: str = "scaled", chunk: int = 256
) -> SaliencyMaps:
    """The saliency map of every image: dL/dc[m][n] of the cross-entropy L = -ln softmax(z / T)_label.

    network: any Layer from images, (N, C, H, W) or (N, D), to logits (N, K), on any device. labels (N,) integers.
    arithmetic: "plain", the author's p - y, or "scaled", which does not underflow (cpu.saliency_cotangent). chunk: as
    for training.predict; the maps themselves stay on the device until all are there. Returns SaliencyMaps. Raises
    ValueError unless T > 0, for an unknown arithmetic, for a chunk that is no integer above 0, for labels that do not
    fit, and for a network whose output is not (N, K); TypeError for images that are no real numbers.
    """
    device, dtype = backend_and_dtype(network)
    T = check_temperature(T, dtype)
    check_arithmetic(arithmetic)
    chunk = check_count("chunk", chunk)
    labels = check_labels(labels, len(images))

    def maps_of(part):
        found = _maps(network, device.asarray(images[part], dtype=dtype), labels[part], T, arithmetic)
        return [device.xp.ascontiguousarray(a) for a in found]

    parts = over_images(network, device, maps_of, len(images), chunk)
    whole = (device.xp.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return SaliencyMaps(*map(backend.to_host, whole))  # only now: a GPU is to be kept busy


def logit_gradients(
    network: Layer, images: Any, weigh: Callable[[np.ndarray], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Gradients by the pixels of weighted sums of the logits, sum_j w_j z_j, of one batch of images.

    network, images as for saliency_maps. weigh: from the logits (N, K) to the weights (N, K) of each sum. Returns a
    NumPy array of the images' shape for each. Raises ValueError for a network whose output is not (N, K).
    """
    device, dtype = backend_and_dtype(network)
    pixels = Tensor(device.asarray(images, dtype=dtype), requires_grad=True)
    logits = network(pixels)
    _check_logits(logits)
    cotangents = [device.asarray(weights, dtype=dtype) for weights in weigh(backend.to_host(logits.data))]
    gradients = [grad(logits, [pixels], cotangent)[0] for cotangent in cotangents]
    return [np.ascontiguousarray(backend.to_host(gradient)) for gradient in gradients]
