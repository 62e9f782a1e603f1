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

from minicnn import backend
from minicnn.layers import Layer, Sequential
from minicnn.ops import check_labels, check_temperature
from minicnn.paper.attacks import ALGORITHMS, LOWER, RAISE, AttackResult, Setting, parted
from minicnn.paper.networks import rescaled
from minicnn.paper.saliency import rows_of_pixels, saliency_maps
from minicnn.paper.statistics import (
    Comparison,
    Outcomes,
    Rate,
    compare_attacks,
    correlation,
    holm,
    log10_mean,
    median_interval,
    summary,
)
from minicnn.training import predict

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
    after = rows_of_pixels(result.adversarial)
    before = rows_of_pixels(backend.get("cpu").asarray(images, dtype=after.dtype))  # as they were attacked
    value = setting.extremes(after.dtype)[LOWER if ALGORITHMS[algorithm].lowers else RAISE]
    counted = before != value if setting.skip_unchanged else np.ones(before.shape, bool)
    painted = np.where(np.cumsum(counted, axis=1) <= setting.limit, value, before)
    seen = result.zero_scores | (before != after).any(axis=1)
    return result.attacked & ~result.succeeded & seen & (after == painted).all(axis=1)


def outcome(images: Array, result: AttackResult, algorithm: str, setting: Setting) -> dict:
    """statistics.summary of an attack on images (N, ...), and how its failures came about."""
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
    differ, closest = before.argmax(axis=1) != after.argmax(axis=1), None
    if differ.any():
        second, first = np.sort(before[differ], axis=1)[:, -2:].T
        closest = float(((first - second) / np.abs(first)).max())
    return {
        "decisions_compared": len(before),
        "decisions_that_differ": int(differ.sum()),
        "closest_call": closest,
    }


def map_sizes(network: Layer, images: Array, labels: Array, T: float) -> dict[str, Array]:
    """log10 of the size of each image's saliency map and its three terms, a dict of arrays (N,).

    The size is max |dL/dpixel|. With a the adjoint of scaled arithmetic, the map is (1 / T) (1 - p_k) J^T a, so

        log10 size = temperature + saturation + jacobian = -log10 T + log10(1 - p_k) + log10 max |J^T a|

    plain_size: log10 of what plain float32 sees, -inf for a map of zeros. logits (N, K). T (N,): T.
    """
    found = saliency_maps(network, images, labels, T, "scaled")
    return {
        "T": np.full(len(images), T, np.float64),
        "temperature": np.full(len(images), -math.log10(T)),
        "saturation": found.log10_scale.astype(np.float64) + math.log10(T),
        "jacobian": np.log10(np.abs(rows_of_pixels(found.maps)).max(axis=1).astype(np.float64)),
        "size": found.log10_size(),
        "plain_size": saliency_maps(network, images, labels, T, "plain").log10_size(),
        "logits": found.logits,
    }


def both_correct(ours: Sizes, theirs: Sizes, labels: Array) -> Array:
    """The images that both networks classify correctly, (N,) bool, from their map_sizes. Raises ValueError for labels
    that do not fit."""
    labels = check_labels(labels, *ours["logits"].shape)
    return (ours["logits"].argmax(axis=1) == labels) & (theirs["logits"].argmax(axis=1) == labels)


def gradient_budget(ours: Sizes, theirs: Sizes, labels: Array, at_trained_T: Sizes | None = None) -> dict:
    """By how much one network's gradient is smaller than a reference's, image by image, and what makes it smaller.

    ours, theirs: the map_sizes of the network and of the reference, each at the T that it is attacked at, on the same
    images, of which those count that both classify correctly. at_trained_T: the network's map_sizes at the temperature
    that it was trained at; with them a prediction is made, for two networks attacked at T = 1.

    All ratios are log10(size on network / size on reference). terms: mean of each term's difference; they sum to
    mean_of_log10. plain: what plain float32 sees of it. prediction: T exp(-(T - 1) m) of log10_predicted, beside the
    ratio to the same network's gradient at that T, and to the reference's. by_image: the arrays that all of it is from.
    Raises ValueError where no image counts, and for labels that do not fit.
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
        "T": float(ours["T"][0]),
        "reference_T": float(theirs["T"][0]),
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
        trained_T = float(at_trained_T["T"][0])
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
    a T = 1 network whose logits were u, (N,). Raises ValueError for labels that do not fit.
    """
    others, of_label = parted(logits.astype(np.float64), labels)
    margins = (of_label - others.max(axis=1)) / T
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
        saliency_maps(
            rescaled(n, dtype=np.float64), images[visible], labels[visible], float(T[0]), "plain"
        ).log10_size()
        for n, T in ((network, ours["T"]), (reference, theirs["T"]))
    ]
    off = np.abs(exact[0] - exact[1] - (ours["size"] - theirs["size"])[visible])
    return {
        "images": int(visible.sum()),
        "median_difference": float(np.median(off)),
        "largest_difference": float(off.max()),
    }


def success_curve(moves: Array, limit: int) -> dict:
    """How many attacks there are, how many have succeeded after 0, 1, ... `limit` moves, and how many moves the median
    attack takes, None where half of them or more fail. moves (N,): those that success took, infinite for no success;
    more than `limit` are none either.
    """
    moves = np.where(moves <= limit, moves, np.inf)
    counts = np.bincount(moves[np.isfinite(moves)].astype(int), minlength=limit + 1)
    median = float(np.median(moves)) if len(moves) else math.inf
    return {
        "attacked": len(moves),
        "succeeded": np.cumsum(counts).tolist(),
        "median": median if math.isfinite(median) else None,
    }


ENOUGH = 0.95  # an attack that certainly succeeds on so many images leaves nothing worth finding

UNBOUNDED = "every pixel may move"


def judge(iterative: Array, rivals: Mapping[str, Array], limit: int) -> dict:
    """What attacks on one network say of gradient masking, after Athalye, Carlini and Wagner (2018, section 3.1) and
    Carlini et al. (2019, sections 4.4, 4.5, 4.11 and 5.2 to 5.4).

    iterative: of the attack that computes the gradient again after every move, the moves that success took on each
    image attacked, (N,), infinite for none, of all pixels. rivals: name -> the same of other attacks, among them "one
    step"; success within `limit` moves is compared, and the iterative attack also with itself after a tenth of them.
    Image for image it beats them all where the gradient is useful. A check passes where it does (McNemar's exact test,
    adjusted by Holm for the checks made), fails where the rival does, and cannot tell where neither is significant; but
    where the iterative attack certainly succeeds on ENOUGH of the images, and the interval of the difference does not
    say that the rival does on more, little is left to be better at, and it passes. With every pixel free to move it
    passes or fails where the Wilson 95 % interval is above or below ENOUGH.

    The limit should be large enough for an attack that nothing misleads. With few moves Sparse-RS, which searches sets
    of pixels, beats every attack that takes one after the other, also on the margin, whose gradient nothing masks. So
    a check that fails is a sign of masking, and no proof.
    """

    def within(moves: Array, most: float) -> Outcomes:
        return Outcomes(np.ones(len(moves), bool), moves <= most)

    ours = within(iterative, limit)
    others = {name: within(moves, limit) for name, moves in rivals.items()}
    others["a tenth of the moves"] = within(iterative, limit // 10)
    compared = {name: compare_attacks([ours], [outcomes]) for name, outcomes in others.items()}
    adjusted = holm([comparison.p for comparison in compared.values()])
    checks = [_against(name, c._replace(adjusted=p)) for (name, c), p in zip(compared.items(), adjusted, strict=True)]
    free = Rate(int(np.isfinite(iterative).sum()), len(iterative))
    low, high = free.interval
    checks.append(
        {
            "check": UNBOUNDED,
            "outcome": "pass" if low >= ENOUGH else "fail" if high < ENOUGH else "cannot tell",
            "succeeded": free.successes,
            "images": free.trials,
            "interval": free.interval,
            "ground": f"{free.successes} of {free.trials} ({low:.1%} to {high:.1%})",
        }
    )
    return {"checks": checks, "sentence": _sentence(checks, *compared["one step"].shares)}


def _against(rival: str, comparison: Comparison) -> dict[str, Any]:
    """The check of the iterative attack against a rival."""
    ours, theirs = comparison.shares
    outcome = {1: "pass", 0: "cannot tell", -1: "fail"}[comparison.order]
    enough = outcome == "cannot tell" and ours.interval[0] >= ENOUGH and comparison.interval[1] >= 0
    difference, low, high = comparison.in_points()
    return {
        "check": f"iterative against {rival}",
        "outcome": "pass" if enough else outcome,
        "succeeded": {"iterative": ours.successes, rival: theirs.successes},
        "alone": {"iterative": comparison.pairs[0].first, rival: comparison.pairs[0].second},
        "images": comparison.n,
        "difference": comparison.difference,
        "interval": comparison.interval,
        "p": comparison.adjusted,
        "ground": f"{ours.successes} and {theirs.successes} of {comparison.n}, {difference} points ({low} to {high}), "
        f"{comparison.p_value}{': nearly all succeed' * enough}",
    }


def _sentence(checks: list[dict[str, Any]], iterative: Rate, one_step: Rate) -> str:
    failed, unknown = ([c["check"] for c in checks if c["outcome"] == outcome] for outcome in ("fail", "cannot tell"))
    rates = (
        f"Algorithm {ONE_STEP} succeeds on {one_step.share:.1%}, refreshed after every move on {iterative.share:.1%}"
    )
    if failed:
        fail, signs = ("fails", "a sign") if len(failed) == 1 else ("fail", "signs")
        count = f"{len(failed)} of {len(checks)} checks {fail} ({'; '.join(failed)})"
        return f"{count}: {signs} of gradient masking. {rates}, which may measure no robustness."
    if unknown:
        count = f"No check fails, {len(unknown)} of {len(checks)} cannot tell on {iterative.trials} images"
        return f"{count} ({'; '.join(unknown)}). {rates}."
    return f"All {len(checks)} checks pass: no sign of gradient masking. {rates}."


def saturated(network: Layer, images: Array, labels: Array, T: float = 1.0) -> Array:
    """Where the label's probability is 1 in plain float32, (N,) bool: its own entry of the adjoint, p_k - 1, is 0.
    Raises ValueError for labels that do not fit."""
    logits = predict(network, images)
    labels = check_labels(labels, *logits.shape)
    T = check_temperature(T, logits.dtype)
    adjoint, _ = backend.get("cpu").functions.saliency_cotangent(logits, labels.astype(np.int32), T, "plain")
    return adjoint[np.arange(len(labels)), labels] == 0


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
    Raises ValueError where no image was attacked.
    """
    images, pixels = len(result.attacked), math.prod(result.adversarial.shape[1:])
    if not images:
        raise ValueError("no image was attacked: there is no cost of one")
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
