"""Sparse-RS: a random search for few pixels that asks for logits and no gradient, so that none can mislead it (Croce,
Andriushchenko, Singh, Flammarion and Hein, "Sparse-RS", AAAI 2022: the L0-bounded, untargeted version).

A set of k pixels, each at the minimum or the maximum, is kept. A query gives some of them back the values of the image
and sets as many others, each to a random one of the two; it is kept where the margin grows, the largest other logit
minus the label's. How many it exchanges, alpha k, falls with the number of queries. Two things differ from the paper,
whose images are in colour:

- A pixel that is at the minimum goes to the maximum, and the reverse. Of a digit, which is black and white, half of the
  random values would change nothing; a random corner of the colour cube is hardly ever the pixel's own.
- A pixel is one entry of an image, as in attacks: of several channels each is a pixel of its own, where Croce et al.
  move all of a place together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.layers import Layer
from minicnn.ops import as_number, check_count
from minicnn.paper.attacks import AttackResult, Setting, margin, unmoved
from minicnn.paper.saliency import rows_of_pixels
from minicnn.training import predict

# Query of 10,000 -> what alpha is divided by after it.
SCHEDULE = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))


def swapped(query: int, queries: int, k: int, alpha: float) -> int:
    """How many of the k pixels a query exchanges, at least 1. query: from 0, which draws all, to queries - 1."""
    of_10000 = query * 10_000 // queries
    divisor = max((divisor for after, divisor in SCHEDULE if of_10000 > after), default=1)
    return max(1, int(alpha / divisor * k))


def generator(seed: int, image: np.ndarray) -> np.random.Generator:
    """The random numbers of an image: of the seed and its values, so that it has the same in any batch."""
    digest = hashlib.sha256(image.astype(np.float64).tobytes()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def sparse_rs(
    network: Layer,
    images: np.ndarray,
    labels: Any,
    setting: Setting | None = None,
    on_move: Callable[[int, int, int], None] | None = None,
    queries: int = 1000,
    seed: int = 0,
    alpha: float = 0.3,
) -> AttackResult:
    """Search for every correctly classified sample, all at once, until the decision is another than the label.

    network, images, labels and errors as for attacks.attack. Of the setting count limit, the k pixels that may change
    (at most all but one), maximum, minimum and chunk. queries: at least 1, of every image. seed: at least 0. alpha in
    (0, 1]: alpha_init, 0.3 as Croce et al. have it for untargeted attacks. on_move(query, queries, images left) is
    called after each query. Returns an AttackResult: moves is k, all of which change a pixel; of an image that did not
    fall the adversarial sample is the one of the largest margin. Raises ValueError for another alpha, seed or number of
    queries.
    """
    setting = setting or Setting()
    queries, seed, alpha = check_count("queries", queries), check_count("seed", seed, 0), as_number("alpha", alpha)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha:g}")
    result, labels = unmoved(network, images, labels, setting)
    best = rows_of_pixels(result.adversarial)  # a view: what is kept is written there
    original, values = best.copy(), setting.extremes(best.dtype)[::-1]
    count = best.shape[1]
    k = min(setting.limit, count - 1)
    if k < 1:
        return result
    active = np.flatnonzero(result.attacked)
    result.moves[active] = k
    draws = {i: generator(seed, original[i]) for i in active}
    order = np.zeros(best.shape, int)  # of each image's pixels, the chosen k before the others
    for i in active:
        order[i] = draws[i].permutation(count)
    margins = np.full(len(best), -np.inf)
    for query in range(queries):
        if len(active) == 0:
            break
        trials, orders = best[active], order[active]
        exchanged = min(swapped(query, queries, k, alpha), count - k)
        for row, i in enumerate(active):
            new = orders[row, :k]
            if query > 0:
                given = draws[i].choice(k, exchanged, replace=False)
                taken = k + draws[i].choice(count - k, exchanged, replace=False)
                orders[row, given], orders[row, taken] = orders[row, taken], orders[row, given]
                trials[row, orders[row, taken]] = original[i, orders[row, taken]]
                new = orders[row, given]
            which = draws[i].integers(2, size=len(new))
            trials[row, new] = np.where(values[which] == original[i, new], values[1 - which], values[which])
        logits = predict(network, trials.reshape(-1, *result.adversarial.shape[1:]), chunk=setting.chunk)
        result.forwards += len(active)
        found, _ = margin(logits, labels[active])
        wrong = logits.argmax(axis=1) != labels[active]
        better = wrong | (found > margins[active])
        kept = active[better]
        best[kept], order[kept], margins[kept] = trials[better], orders[better], found[better]
        result.succeeded[active] = wrong
        active = active[~result.succeeded[active]]
        if on_move:
            on_move(query + 1, queries, len(active))
    return result
