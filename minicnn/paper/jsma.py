"""The Jacobian-based saliency map attack (JSMA) of Papernot, McDaniel, Jha, Fredrikson, Celik and Swami, "The
Limitations of Deep Learning in Adversarial Settings" (EuroS&P 2016, Algorithms 2 and 3): the paper's reference [5].

Towards a target class t, with the Jacobian of the network's outputs F computed again every time, it moves the pair of
pixels p, q of the largest

    (dF_t/dp + dF_t/dq) |sum_{j != t} dF_j/dp + dF_j/dq|,   the first factor positive, the sum negative

of all pairs that are not at the maximum yet (theta = 1), until no pair is left or the limit is reached. F are the
logits, as in the authors' own experiments and in Carlini and Wagner's JSMA-Z (2017): probabilities saturate. Every
class but the label is a target, all are tried side by side, a pair each in turn, and the image falls with the first
that changes the decision. Papernot et al. go on until the decision is the target; here any other class is a success,
as it is for the other attacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.layers import Layer
from minicnn.paper.attacks import LOWER, RAISE, AttackError, AttackResult, Setting, unmoved
from minicnn.paper.one_pixel import decisions
from minicnn.paper.saliency import logit_gradients, rows_of_pixels
from minicnn.training import predict


def best_pair(towards: np.ndarray, away: np.ndarray) -> tuple[int, int] | None:
    """The pair p < q of the largest product (t_p + t_q)(a_p + a_q) of two positive sums; None where no pair has them.

    towards, away (P,): how the target's logit grows and how the sum of the others falls with each pixel. Of equal
    products the first in raster order. All pairs count, but a pixel whose two numbers are both reached by each of two
    others is in no better pair than one of these, so that the two outermost layers of undominated pixels are enough.
    """
    layers, rest = [], np.arange(len(towards))
    for _ in range(2):
        outermost = _undominated(towards[rest], away[rest])
        layers.append(rest[outermost])
        rest = rest[~outermost]
    pixels = np.sort(np.concatenate(layers))
    first, second = pixels[np.array(np.triu_indices(len(pixels), 1))]
    t, a = towards[first] + towards[second], away[first] + away[second]
    scores = np.where((t > 0) & (a > 0), t * a, -np.inf)
    if not (scores > -np.inf).any():
        return None
    best = scores.argmax()
    return int(first[best]), int(second[best])


def _undominated(x, y):
    """Which points (x, y) no other point reaches in both coordinates, (P,) bool; of equal points the first."""
    order = np.lexsort((-y, -x))
    highest_before = np.maximum.accumulate(np.concatenate([[-np.inf], y[order]]))[:-1]
    found = np.empty(len(x), bool)
    found[order] = y[order] > highest_before
    return found


def _jacobian(network, images, targets, chunk):
    """Gradients (R, P) in float64 of the target's logit, and of the sum of the others, for R images."""
    parts = []
    for start in range(0, len(images), chunk):
        columns = targets[start : start + chunk, None]

        def weigh(logits, columns=columns):
            of_target = (np.arange(logits.shape[1]) == columns).astype(logits.dtype)
            return of_target, 1 - of_target

        parts.append([rows_of_pixels(g) for g in logit_gradients(network, images[start : start + chunk], weigh)])
    of_target, of_others = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts, strict=True))
    if np.isnan(of_target).any() or np.isnan(of_others).any():
        raise AttackError("the gradients of the logits are no finite numbers: choose other weights")
    return of_target, of_others


def jsma(
    network: Layer,
    images: np.ndarray,
    labels: Any,
    setting: Setting | None = None,
    on_move: Callable[[int, int, int], None] | None = None,
    lowers: bool = False,
) -> AttackResult:
    """Run JSMA on every correctly classified sample, all at once; K - 1 copies of it are in memory.

    network, images, labels and errors as for attacks.attack. Of the setting count limit, whose half is the number of
    pairs, maximum, minimum and chunk: no T, and no move that changes nothing. lowers: move pixels to the minimum
    (theta = -1), with both signs reversed. on_move(pair, pairs, images left) is called after each round. Returns an
    AttackResult: two moves a pair; zero_scores: no target had a pair to begin with; of an image that did not fall the
    adversarial sample is that of the target with the most moves.
    """
    setting = setting or Setting()
    result, labels = unmoved(network, images, labels, setting)
    attacked = np.flatnonzero(result.attacked)
    classes = predict(network, result.adversarial[:1]).shape[1]
    image, target = np.divmod(np.arange(len(attacked) * classes), classes)
    image = attacked[image]
    image, target = image[target != labels[image]], target[target != labels[image]]
    runs = result.adversarial[image]
    pixels = rows_of_pixels(runs)
    value = setting.extremes(pixels.dtype)[LOWER if lowers else RAISE]
    active, pairs = np.arange(len(runs)), setting.limit // 2
    for move in range(1, pairs + 1):
        if len(active) == 0:
            break
        of_target, of_others = _jacobian(network, runs[active], target[active], setting.chunk)
        towards, away = (-of_target, of_others) if lowers else (of_target, -of_others)
        result.forwards += len(active)
        result.backwards += 2 * len(active)
        moved = np.zeros(len(active), bool)
        for row, run in enumerate(active):
            free = np.flatnonzero(pixels[run] != value)
            pair = best_pair(towards[row, free], away[row, free])
            if pair:
                pixels[run, free[list(pair)]] = value
                moved[row] = True
        if move == 1:
            result.zero_scores[attacked] = ~np.isin(attacked, image[active[moved]])
        active = active[moved]
        _keep_first(result, image, runs, active, move)
        if len(active):
            decided = decisions(predict(network, runs[active], chunk=setting.chunk))
            wrong = active[decided != labels[image[active]]]
            result.forwards += len(active)
            result.succeeded[image[wrong]] = True
            _keep_first(result, image, runs, wrong, move)
        active = active[~result.succeeded[image[active]]]
        if on_move:
            on_move(move, pairs, len(np.unique(image[active])))
    return result


def _keep_first(result, image, runs, chosen, pairs):
    """Note for every image the first of its runs that is chosen."""
    images, first = np.unique(image[chosen], return_index=True)
    result.adversarial[images] = runs[chosen[first]]
    result.moves[images] = 2 * pairs
