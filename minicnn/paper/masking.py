"""Gradient masking: does temperature make a network robust, or does float32 hide its gradient?

Numbers alone: from networks, images and the results of attacks to dicts of plain figures. What is asked of which
network is in experiments/masking.py. All sizes of gradients are log10, since most are far below the smallest float.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minicnn.layers import Layer, Sequential
from minicnn.paper.attacks import ALGORITHMS, AttackResult, Setting, summary
from minicnn.paper.networks import rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import Rate, compare, correlation, log10_mean, median_interval, wilson_interval
from minicnn.training import correct

Array = np.ndarray
Sizes = Mapping[str, Array]  # what map_sizes returns

PAPER_LOG10_RATIO = -10.0  # abstract: the gradient falls "by a factor of 10^10 at T = 20"
TERMS = ("temperature", "saturation", "jacobian")

# The attack that is judged, and the same with its map computed again after every move.
ONE_STEP = "3"
ITERATIVE = dataclasses.replace(ALGORITHMS[ONE_STEP], refresh=True)


def painted_raster_order(images: Array, result: AttackResult, algorithm: str, setting: Setting) -> Array:
    """Failed attacks that did no more than paint the image from its first pixel on, (N,) bool.

    A map of zeros has no largest entry: Algorithm 1 then raises, Algorithm 3 lowers, the first `limit` pixels in raster
    order. images (N, ...) are those attacked.
    """
    value = setting.minimum if ALGORITHMS[algorithm].lowers else setting.maximum
    before, after = images.reshape(len(images), -1), result.adversarial.reshape(len(images), -1)
    counted = before != value if setting.skip_unchanged else np.ones(before.shape, bool)
    painted = np.where(np.cumsum(counted, axis=1) <= setting.limit, before.dtype.type(value), before)
    seen = result.zero_scores | (before != after).any(axis=1)
    return result.attacked & ~result.succeeded & seen & (after == painted).all(axis=1)


def outcome(images: Array, result: AttackResult, algorithm: str, setting: Setting) -> dict:
    """attacks.summary of an attack on images (N, ...), and how its failures came about."""
    failed = result.attacked & ~result.succeeded
    return summary(result) | {
        "failed": int(failed.sum()),
        "failed_with_a_map_of_zeros": int((failed & result.zero_scores).sum()),
        "failed_painting_raster_order": int(painted_raster_order(images, result, algorithm, setting).sum()),
    }


def changed_decisions(before: Array, after: Array) -> dict:
    """On how many images two networks with logits (N, K) decide differently.

    closest_call: among these images, the largest gap between first and second logit `before`, relative to the first; a
    tie to rounding is near 1e-7. None where no decision changes.
    """
    differ = before.argmax(axis=1) != after.argmax(axis=1)
    second, first = np.sort(before[differ], axis=1)[:, -2:].T
    return {
        "decisions_compared": len(before),
        "decisions_that_differ": int(differ.sum()),
        "closest_call": float(((first - second) / np.abs(first)).max()) if differ.any() else None,
    }


def map_sizes(network: Layer, images: Array, labels: Array, T: float) -> dict[str, Array]:
    """log10 of the size of each image's saliency map and its three terms, a dict of arrays (N,).

    The size is max |dL/dpixel|. With a the adjoint of scaled arithmetic, the map is (1 / T) (1 - p_k) J^T a, so

        log10 size = temperature + saturation + jacobian = -log10 T + log10(1 - p_k) + log10 max |J^T a|

    plain_size: log10 of what plain float32 sees, -inf for a map of zeros. logits (N, K). T (): T.
    """
    found = saliency_maps(network, images, labels, T, "scaled")
    return {
        "T": np.array(T, np.float64),
        "temperature": np.full(len(images), -math.log10(T)),
        "saturation": found.log10_scale.astype(np.float64) + math.log10(T),
        "jacobian": np.log10(np.abs(found.maps.reshape(len(images), -1)).max(axis=1).astype(np.float64)),
        "size": found.log10_size(),
        "plain_size": saliency_maps(network, images, labels, T, "plain").log10_size(),
        "logits": found.logits,
    }


def both_correct(ours: Sizes, theirs: Sizes, labels: Array) -> Array:
    """The images that both networks classify correctly, (N,) bool, from their map_sizes."""
    return (ours["logits"].argmax(axis=1) == labels) & (theirs["logits"].argmax(axis=1) == labels)


def gradient_budget(ours: Sizes, theirs: Sizes, labels: Array, at_trained_T: Sizes | None = None) -> dict:
    """By how much one network's gradient is smaller than a reference's, image by image, and what makes it smaller.

    ours, theirs: the map_sizes of the network and of the reference, each at the T that it is attacked at, on the same
    images, of which those count that both classify correctly. at_trained_T: the network's map_sizes at the temperature
    that it was trained at; with them a prediction is made, for two networks attacked at T = 1.

    All ratios are log10(size on network / size on reference). terms: mean of each term's difference; they sum to
    mean_of_log10. plain: what plain float32 sees of it. prediction: T exp(-(T - 1) m) of log10_predicted, beside the
    ratio to the same network's gradient at that T, and to the reference's. by_image: the arrays that all of it is from.
    Raises ValueError where no image counts.
    """
    both = both_correct(ours, theirs, labels)
    if not both.any():
        raise ValueError(f"of {len(labels)} images both networks classify none correctly: there is nothing to compare")
    difference = {name: (ours[name] - theirs[name])[both] for name in ("size", *TERMS)}
    ratio = difference["size"]
    plain, plain_reference = ours["plain_size"][both], theirs["plain_size"][both]
    with np.errstate(invalid="ignore"):
        seen = plain - plain_reference
    seen = seen[np.isfinite(seen)]
    figures: dict[str, Any] = {
        "T": float(ours["T"]),
        "reference_T": float(theirs["T"]),
        "images": int(both.sum()),
        "terms": {name: float(difference[name].mean()) for name in TERMS},
        "largest_residual": float(np.abs(ratio - sum(difference[name] for name in TERMS)).max()),
        "mean_of_log10": float(ratio.mean()),
        "median": float(np.median(ratio)),
        "median_interval": median_interval(ratio),
        "log10_of_mean": log10_mean(ratio),
        "log10_of_ratio_of_means": log10_mean(ours["size"][both]) - log10_mean(theirs["size"][both]),
        "quantiles": {str(q): float(np.quantile(ratio, q / 100)) for q in (0, 5, 25, 50, 75, 95, 100)},
        "share_smaller_than_the_paper_says": float((ratio < PAPER_LOG10_RATIO).mean()),
        "plain": {
            "zero_share": float((plain == -np.inf).mean()),
            "reference_zero_share": float((plain_reference == -np.inf).mean()),
            "log10_of_ratio_of_means": _difference(log10_mean(plain), log10_mean(plain_reference)),
            "median": _difference(np.median(plain), np.median(plain_reference)),
            "median_where_not_zero": float(np.median(seen)) if len(seen) else None,
        },
        "by_image": {"image": np.flatnonzero(both), "ratio": ratio} | {name: difference[name] for name in TERMS},
    }
    if at_trained_T is not None:
        trained_T = float(at_trained_T["T"])
        predicted = log10_predicted(ours["logits"], labels, trained_T)[both]
        same = (ours["size"] - at_trained_T["size"])[both]
        figures["by_image"] |= {"predicted": predicted, "same_network": same}
        figures["prediction"] = {
            "T": trained_T,
            "median": float(np.median(predicted)),
            "same_network_median": float(np.median(same)),
            "same_network_median_difference": float(np.median(np.abs(same - predicted))),
            "same_network_largest_difference": float(np.abs(same - predicted).max()),
            "reference_median_difference": float(np.median(np.abs(ratio - predicted))),
            "reference_correlation": correlation(ratio, predicted),
        }
    return figures


def _difference(a: float, b: float) -> float | None:
    """a - b of two exponents, or None where both are those of zeros."""
    return None if a == b == -math.inf else float(a - b)


def log10_predicted(logits: Array, labels: Array, T: float) -> Array:
    """log10 of T exp(-(T - 1) m) (proof1.gradient_ratio_predicted), m the margin u_k - max_{j != k} u_j of u = z / T.

    What the gradient of a T-trained network with logits z (N, K) is expected to be at test (T = 1), relative to that of
    a T = 1 network whose logits were u, (N,).
    """
    rows = np.arange(len(logits))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    margins = (logits[rows, labels] - others.max(axis=1)) / T
    return math.log10(T) - (T - 1) * margins / math.log(10)


def measured_in_float64(
    network: Sequential, reference: Sequential, images: Array, labels: Array, ours: Sizes, theirs: Sizes
) -> dict:
    """How far the ratio of gradient_budget is off that of plain float64 maps, which are not split into terms.

    The two networks are paper_cnns, ours and theirs their map_sizes. Compared are the images that both classify
    correctly and whose maps have digits in plain float64: 1 - p_k above 10^-8 in both.
    """
    visible = both_correct(ours, theirs, labels) & (ours["saturation"] > -8) & (theirs["saturation"] > -8)
    if not visible.any():
        return {"images": 0, "median_difference": None, "largest_difference": None}
    exact = [
        saliency_maps(rescaled(n, dtype=np.float64), images[visible], labels[visible], float(T), "plain").log10_size()
        for n, T in ((network, ours["T"]), (reference, theirs["T"]))
    ]
    off = np.abs(exact[0] - exact[1] - (ours["size"] - theirs["size"])[visible])
    return {
        "images": int(visible.sum()),
        "median_difference": float(np.median(off)),
        "largest_difference": float(off.max()),
    }


def follow_maps(network: Layer, images: Array, labels: Array, maps: Array, setting: Setting) -> dict[str, Array]:
    """Make Algorithm 3's moves on maps found elsewhere, of the images' shape, until the network decides differently.

    Returns attacked (N,), classified correctly before, and moves (N,), how many it took, 0 where the setting's limit
    were not enough.
    """
    moved = np.array(images, order="C")
    pixels, scores = moved.reshape(len(images), -1), maps.reshape(len(images), -1)
    values, scores = np.where(scores > 0, setting.maximum, setting.minimum).astype(pixels.dtype), np.abs(scores)
    if setting.skip_unchanged:
        scores = np.where(pixels == values, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    attacked, moves = correct(network, images, labels), np.zeros(len(images), int)
    active = np.flatnonzero(attacked)
    for move in range(min(setting.limit, order.shape[1])):
        if len(active) == 0:
            break
        chosen = order[active, move]
        value = values[active, chosen]
        tried = active[pixels[active, chosen] != value]
        pixels[active, chosen] = value
        if len(tried):
            moves[tried[~correct(network, moved[tried], labels[tried])]] = move + 1
            active = active[moves[active] == 0]
    return {"attacked": attacked, "moves": moves}


def success_curve(attacked: Array, moves: Array, limit: int) -> dict:
    """How many attacks there are, and how many have succeeded after 0, 1, ... `limit` moves.

    attacked (N,) bool; moves (N,): those that success took, 0 for no success.
    """
    counts = np.bincount(moves[moves > 0], minlength=limit + 1)
    return {"attacked": int(attacked.sum()), "succeeded": np.cumsum(counts).tolist()}


ENOUGH = 0.9  # where all attacks succeed, the lower bound of their rate that leaves nothing to be better at


def judge(one_step: Rate, iterative: Rate, transfer: Rate | None, random: Rate, unbounded: Rate) -> dict:
    """What success rates say of gradient masking, after Athalye, Carlini and Wagner (2018, section 3.1) and Carlini et
    al. (2019, section 4).

    Against a network whose gradients are useful an iterative attack beats one step, an attack with the gradient beats
    transfer and random moves, and an unbounded attack, one that may move every pixel, always succeeds. Each is a check.
    It passes where the figures show it: Wilson 95 % intervals apart, or nothing left to succeed on; otherwise it fails,
    and contradicts useful gradients where the figures show the reverse. transfer may be None; no Rate is of 0 trials.
    Their fifth sign, success that does not grow with the number of moves, cannot occur where successes are counted
    cumulatively; and with every pixel moved little of the digit is left, so that the unbounded attack easily succeeds.
    """
    checks = [_above("iterative against one step", "iterative", iterative, "one step", one_step)]
    if transfer is not None:
        checks.append(_above("white box against transfer", "white box", one_step, "transfer", transfer))
    checks.append(_above("gradient against random moves", "gradient", one_step, "random moves", random))
    checks.append(
        {
            "check": "unbounded attack",
            "passed": unbounded.successes == unbounded.trials,
            "contradicts": unbounded.successes < unbounded.trials,
            "figures": {"every pixel": _rate(unbounded)},
            "ground": f"every pixel may move: {_share(unbounded)}",
        }
    )
    failed = [check["check"] for check in checks if not check["passed"]]
    against = [check["check"] for check in checks if check["contradicts"]]
    rate = f"Algorithm {ONE_STEP}'s success rate of {one_step.share:.1%}"
    if against:
        finding = f"contradict{'s' if len(against) == 1 else ''} useful gradients ({'; '.join(against)})"
        sentence = f"{len(against)} of {len(checks)} checks {finding}: {rate} measures no robustness."
    elif failed:
        finding = f"show{'s' if len(failed) == 1 else ''} nothing on so few images ({'; '.join(failed)})"
        sentence = f"{len(failed)} of {len(checks)} checks {finding}: {rate} is not shown to measure robustness."
    else:
        sentence = f"All {len(checks)} checks pass: no sign of gradient masking behind {rate}."
    return {"checks": checks, "failed": len(failed), "sentence": sentence}


def _above(title: str, name: str, ours: Rate, other_name: str, others: Rate) -> dict[str, Any]:
    """The check that `ours` is higher than `others`."""
    order = compare(ours, others)
    saturated = order == 0 and ours.successes == ours.trials and ours.interval[0] > ENOUGH
    relation = {1: "above", 0: "not significantly different from", -1: "below"}[order]
    relation = "as high as it can be, beside" if saturated else relation
    return {
        "check": title,
        "passed": order > 0 or saturated,
        "contradicts": order < 0,
        "figures": {name: _rate(ours), other_name: _rate(others)},
        "ground": f"{name} {_share(ours)}, {relation} {other_name} {_share(others)}",
    }


def _rate(rate: Rate) -> dict:
    successes, trials = rate.successes, rate.trials
    return {"succeeded": successes, "attacked": trials, "interval": wilson_interval(successes, trials)}


def _share(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.successes} of {rate.trials} ({low:.1%} to {high:.1%})"


# The passes of an algorithm as printed, for N pixels and M moves: forward, backward, and what the paper says they are.
COSTS: dict[str, tuple[Callable[[int, int], int], int, str]] = {
    "1": (lambda N, M: M + 1, 1, "O(N)"),
    "2": (lambda N, M: 2 * N + 1 + M, 0, "O(N + M)"),
    "3": (lambda N, M: M + 1, 1, "O(N)"),
    "4": (lambda N, M: M * (2 * N + 2), 0, "O(N^2)"),
}


def cost(result: AttackResult, algorithm: str, limit: int) -> dict[str, Any]:
    """Passes that an attack spent on an image, counted and at most. Every image was attacked, with `limit` moves.

    Not counted: the pass that finds out whether a sample is classified correctly (Definition 1). A move that changes
    nothing, such as lowering a black pixel, is known to change nothing and costs no pass: counted is less than at most.
    """
    images, pixels = len(result.attacked), result.adversarial[0].size
    forwards, backwards, paper = COSTS[algorithm]
    return {
        "images": images,
        "mean_moves": int(result.moves.sum()) / images,
        "forwards": result.forwards / images - 1,
        "backwards": result.backwards / images,
        "forwards_at_most": forwards(pixels, limit),
        "backwards_at_most": backwards,
        "paper": paper,
    }
