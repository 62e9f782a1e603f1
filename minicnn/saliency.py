"""Saliency maps: the gradient of the cross-entropy by the pixels (Algorithm 1, step 2), plain and scaled."""

from typing import NamedTuple

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, grad, no_grad
from minicnn.ops import check_temperature


class SaliencyMaps(NamedTuple):
    """What a network says of N images; NumPy arrays.

    maps (N, H, W): the gradient divided by 10^log10_scale. log10_scale (N,): 0 for plain. logits (N, K).
    zeros (N,): how many entries of each map are exactly 0.
    """

    maps: np.ndarray
    log10_scale: np.ndarray
    logits: np.ndarray
    zeros: np.ndarray

    def log10_size(self):
        """log10 of the largest absolute true gradient, (N,); -inf for a map that is exactly zero."""
        with np.errstate(divide="ignore"):
            return np.log10(np.abs(self.maps).max(axis=(1, 2)).astype(np.float64)) + self.log10_scale


def _chunk_maps(network, images, labels, T, arithmetic):
    """One batch through the network and back: no weight gradients, conv1's pullback written straight to the maps."""
    (_, first), *rest = network.layers.items()
    kernels = backend.of(images).kernels
    with kernels.equal_sums():
        with no_grad():
            hidden = first(Tensor(images))
        hidden.requires_grad = True
        logits = hidden
        for _, layer in rest:
            logits = layer(logits)
    seed, log10_scale = kernels.saliency_seed(logits.data, labels, T, arithmetic)
    (g,) = grad(logits, [hidden], seed)
    if first.relu:
        g = kernels.relu_grad(g, hidden.data)
    maps, summary = kernels.saliency_end(g, first.W.data, images.shape, first.padding)
    return maps, log10_scale, logits.data, summary[:, 3]


def saliency_maps(network, images, labels, T=1.0, arithmetic="scaled", chunk=256):
    """The saliency map of every image: dL/dc[m][n] of the cross-entropy L = -ln softmax(z / T)_label.

    network: a Sequential that begins with a Conv2D of one channel, on any device. images (N, 1, H, W) of its dtype,
    labels (N,) integers. arithmetic: "plain", the author's p - y, or "scaled", which does not underflow
    (cpu.saliency_seed). At most `chunk` images are in memory at a time. Returns SaliencyMaps.
    Raises ValueError unless T > 0, and for shapes or labels that do not fit.
    """
    check_temperature(T)
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: each image needs one label")
    weights = next(iter(network.parameters().values())).data
    device = backend.of(weights)
    parts = []
    for start in range(0, max(len(images), 1), chunk):
        batch = device.asarray(images[start : start + chunk], dtype=weights.dtype)
        targets = device.asarray(labels[start : start + chunk], dtype=np.int32)
        parts.append([backend.to_host(a) for a in _chunk_maps(network, batch, targets, T, arithmetic)])
    return SaliencyMaps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
