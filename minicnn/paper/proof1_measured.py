"""Proof 1 of the paper, measured: each form of minicnn.paper.proof1 against finite differences and the engine.

Parts 1 to 4 need logits alone: compare_forms (parts 1 and 2), limit_of_certainty, training_temperature. Parts 5 and 6
take a trained network and go from the logits to the pixels (chain_rule) and to equation (1). All return dicts of plain
values. Notation as in minicnn.paper.proof1.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from minicnn import backend, ops
from minicnn.autograd import Tensor, grad
from minicnn.layers import Layer
from minicnn.paper import proof1
from minicnn.paper.saliency import saliency_maps
from minicnn.training import correct, predict

Array = np.ndarray
Moves = dict[str, Array]  # what one_pixel_moves returns

TEMPERATURES = (1, 2, 5, 10, 20, 50, 100)
TRAINED_AT = 20  # the paper's T
SAMPLES = 20  # vectors of logits at each T
DIGITS, STEP = 50, Decimal("1e-15")  # of the finite differences; they leave about 30 correct digits
FRACTIONS = (1e-5, 1e-3, 0.01, 0.1, 1.0)  # of the way from a pixel's value to the maximum or minimum
MINIMUM, MAXIMUM = 0.0, 1.0
VALUES = (0.0, 0.5, 0.9, 1.0)  # upper ends of ranges of pixel values: background, dark, bright, near the maximum
PICKED = 100  # pixels, as many as Algorithm 1 makes moves
CHUNK = 128

FORMS: dict[str, Callable[[Array, int, Any], Array]] = {
    "printed_4": proof1.derivative_4_printed,
    "corrected_4": proof1.derivative_4_corrected,
    "printed_5": proof1.derivative_5_printed,
    "corrected_5": proof1.derivative_5_corrected,
    "cross_entropy": proof1.cross_entropy_gradient,
}


def compare_forms(rng: np.random.Generator, device: str = "cpu", samples: int = SAMPLES) -> list[dict]:
    """Every form against finite differences, one row per temperature.

    rng draws `samples` vectors of 10 logits of spread 3 T, so that p is neither flat nor certain at any T. A form's
    figure is the largest |form - truth| over the largest |truth| of a vector, the worst over the vectors; the truth is
    d(-ln p_k)/dx for "cross_entropy" and "engine_loss", dp_k/dx for all the others. largest_p_k is that of the most
    confident vector. p_k and the sums over i, times T, are those of the first vector.
    """
    rows = []
    for T in TEMPERATURES:
        x = rng.normal(0, 3 * T, (samples, 10))
        targets = (x / T + rng.gumbel(size=x.shape)).argmax(axis=1)  # drawn with the probabilities softmax(x / T)
        cases = [(row, int(k), T) for row, k in zip(x, targets, strict=True)]
        probability = np.array([_finite_difference(proof1.loss_printed, *case) for case in cases])
        loss = np.array([_finite_difference(proof1.loss_corrected, *case) for case in cases])
        found = {name: np.array([form(*case) for case in cases]) for name, form in FORMS.items()}
        found["engine_probability"], found["engine_loss"] = _engine_gradients(x, targets, T, device)
        truth = dict.fromkeys(found, probability) | {"cross_entropy": loss, "engine_loss": loss}
        rows.append(
            {
                "T": T,
                "off": {name: _largest_difference(form, truth[name]) for name, form in found.items()},
                "largest_p_k": float(max(proof1.loss_printed(*case) for case in cases)),
                "p_k": float(proof1.loss_printed(*cases[0])),
                "sums_times_T": {name: float(T * form[0].sum()) for name, form in found.items()},
                "sums_stated_times_T": {
                    "printed_4": float(T * proof1.sum_of_4_printed(*cases[0])),
                    "printed_5": float(T * proof1.sum_of_5_printed(*cases[0])),
                },
            }
        )
    return rows


def _finite_difference(function, x, k, T):
    with decimal.localcontext(decimal.Context(prec=DIGITS)):
        exact = np.array([Decimal(float(value)) for value in x])
        return proof1.central_difference(lambda moved: function(moved, k, T), exact, STEP).astype(np.float64)


def _engine_gradients(x, targets, T, device):
    """d p_k/dx and d(-ln p_k)/dx of every row of x by the engine, in float64."""
    place = backend.get(device)
    chosen, labels = place.asarray(np.eye(10)[targets]), place.asarray(targets, dtype=np.int32)
    z = Tensor(place.asarray(x), requires_grad=True)
    outputs = (ops.softmax(z, T=T) * chosen).sum(), ops.cross_entropy(z, labels, T=T).sum()
    return [backend.to_host(grad(output, [z])[0]) for output in outputs]


def _largest_difference(form, truth):
    return float((np.abs(form - truth).max(axis=1) / np.abs(truth).max(axis=1)).max())


def limit_of_certainty() -> dict[str, Any]:
    """T times each form at k and elsewhere, while the target's logit pulls ahead of nine equal others by `lead` T."""
    T, rows = 1, []
    for lead in (0, 2, 5, 10, 15, 20, 30):
        x = np.array([Decimal(lead)] + [Decimal(0)] * 9)
        in_float32 = ops.softmax(Tensor(x[None].astype(np.float32))).data[0, 0]
        with decimal.localcontext(decimal.Context(prec=DIGITS)):
            row: dict[str, Any] = {"lead": lead, "one_minus_p_k": float(proof1.saturation(x, 0, T))}
            row["one_minus_p_k_float32"] = float(1 - in_float32)
            row["forms"] = {name: [float(v) for v in form(x, 0, T)[:2]] for name, form in FORMS.items()}
        rows.append(row)
    return {"rows": rows, "limits": {name: list(pair) for name, pair in proof1.limits_of_certainty(T).items()}}


def training_temperature(T: float = TRAINED_AT) -> dict[str, Any]:
    """The gradient left at test by training at T: exact for nine equal rivals, and predicted from the margin alone."""
    rows = []
    for m in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        ratio = float(proof1.gradient_ratio(np.array([float(m)] + [0.0] * 9), 0, T))
        predicted = float(proof1.gradient_ratio_predicted(m, T))
        rows.append({"margin": m, "ratio": ratio, "predicted": predicted, "one_over_T": 1 / T})
    return {"T": T, "rows": rows}


# A network, in float64 throughout, so that small differences of the loss mean something.


def correctly_classified(network: Layer, images: Array, labels: Array, count: int) -> list[int]:
    """Indices of the first `count` images that the network classifies correctly, or of all such images."""
    found: list[int] = []
    for start in range(0, len(images), CHUNK):
        chunk = slice(start, start + CHUNK)
        found.extend((start + np.flatnonzero(correct(network, images[chunk], labels[chunk]))).tolist())
        if len(found) >= count:
            break
    return found[:count]


def logits_and_jacobian(network: Layer, image: Array) -> tuple[Array, Array]:
    """One image (C, H, W) -> its logits (10,) and J = d(logits)/d(pixels), (10, C H W), in one batch of ten copies."""
    x = Tensor(network.backend.asarray(np.repeat(image[None], 10, axis=0)), requires_grad=True)
    logits = network(x)
    (rows,) = grad(logits, [x], network.backend.asarray(np.eye(10)))
    return backend.to_host(logits.data)[0], backend.to_host(rows).reshape(10, -1)


def chain_rule(network: Layer, images: Array, labels: Array) -> list[dict]:
    """J^T (p - e_k) / T against the engine's gradients by the pixels; one row per temperature.

    off_scaled: against the saliency map in scaled arithmetic times its scale; off_plain: against the gradient of the
    cross-entropy, which forms p - e_k as written. Each is the largest difference over the largest entry of a map, the
    worst of the images. largest_entry, of J^T (p - e_k) / T, and its factors one_minus_p_k and direction, the largest
    entry of shared_out, are geometric means over the images: largest_entry = one_minus_p_k * direction / T.
    """
    from scipy.stats import gmean

    known = [logits_and_jacobian(network, image) for image in images]
    rows = []
    for T in TEMPERATURES:
        x = Tensor(network.backend.asarray(images), requires_grad=True)
        targets = network.backend.asarray(labels, dtype=np.int32)
        (plain,) = grad(ops.cross_entropy(network(x), targets, T=T).sum(), [x])
        found = saliency_maps(network, images, labels, T=T, arithmetic="scaled")
        scaled = found.maps.reshape(len(images), -1) * 10 ** found.log10_scale[:, None]
        cases = [(J, z, int(k), T) for (z, J), k in zip(known, labels, strict=True)]
        ours = np.array([proof1.input_gradient(*case) for case in cases])
        rows.append(
            {
                "T": T,
                "off_scaled": _largest_difference(scaled, ours),
                "off_plain": _largest_difference(backend.to_host(plain).reshape(ours.shape), ours),
                "largest_entry": float(gmean(np.abs(ours).max(axis=1))),
                "one_minus_p_k": float(gmean([proof1.saturation(*case[1:]) for case in cases])),
                "direction": float(gmean([np.abs(shared_out(*case)).max() for case in cases])),
            }
        )
    return rows


def shared_out(jacobian: Array, x: Array, k: int, T: Any) -> Array:
    """J^T (p - e_k) / (1 - p_k), shape (pixels,): the direction in which the loss grows, apart from the saturation.

    (p - e_k) / (1 - p_k) is -1 at k, and elsewhere the softmax of the other logits alone: it shares out 1 among them,
    and does not depend on x_k.
    """
    shares = np.insert(proof1.softmax_with_temperature(np.delete(x, k), T), k, -1)
    return jacobian.T @ shares


def one_pixel_moves(network: Layer, image: Array, label: int, fractions: Sequence[float] = FRACTIONS) -> Moves:
    """Each of the P pixels of one image moved on its own, up to the maximum and down to the minimum, part of the way.

    Returns a dict of arrays: value (P,), gradient (P,) of the loss at T = 1, and of shape (len(fractions), 2, P), the
    second axis up and down: step; predicted by equation (1); actual, the change of the loss; and linear, the change if
    the network were linear, L(z + J step) - L(z). What linear has beyond predicted is the curvature of the
    cross-entropy. What actual has beyond linear is the ReLUs and pools that switch on the way: between two switches
    the logits are a linear function of the pixels.
    """
    pixels = image.reshape(-1).astype(np.float64)
    z, J = logits_and_jacobian(network, image)
    loss, gradient = proof1.loss_corrected(z, label, 1), proof1.input_gradient(J, z, label, 1)
    step = np.multiply.outer(fractions, [MAXIMUM - pixels, MINIMUM - pixels])

    moves = np.nonzero(step)
    pixel, size = moves[2], step[moves]
    moved = np.repeat(pixels[None], len(pixel), axis=0)
    moved[np.arange(len(pixel)), pixel] += size
    after = {
        "linear": z + J.T[pixel] * size[:, None],
        "actual": predict(network, moved.reshape(-1, *image.shape), chunk=CHUNK),
    }
    found = {"value": pixels, "gradient": gradient, "step": step}
    found["predicted"] = proof1.predicted_change(gradient, step)
    for name, logits in after.items():
        found[name] = np.zeros_like(step)
        found[name][moves] = [proof1.loss_corrected(row, label, 1) - loss for row in logits]
    return found


def equation_1(
    network: Layer, images: Array, labels: Array, rng: np.random.Generator, picked: int = PICKED
) -> tuple[dict[str, Any], list[Moves]]:
    """How far equation (1) holds: summary of one_pixel_moves for some images, as a dict. Returns it and the moves.

    steps, a row per fraction of the way, over all moves that change a pixel: off is |actual - predicted| over the
    larger of the two, so 1 says that one is nothing beside the other and 2 that only the sign differs; curvature and
    switches are the two parts of that difference, over the same, all three medians; share_close counts moves off by
    under 10 %; rank is Spearman's correlation of predicted and actual, the mean of the images.
    with_noise: the first row again, on the images with uniform noise of at most 1 % from rng, where no two pixels tie.
    room, a row per range of pixel values, for the whole way up: the median place of these pixels by |gradient|,
    |predicted| and |actual|, from 0, the smallest of the image, to 1, the largest.
    picks: of the `picked` pixels of the largest gradient, Algorithm 1's, and of those that equation (1) prefers, by
    gradient * step: how many have less than a tenth of the way to go, and how many are among the as many that truly
    raise the loss most; means.
    """
    cases = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    moves = [one_pixel_moves(network, *case) for case in cases]
    noisy = [(0.99 * image + rng.uniform(0, 0.01, image.shape), label) for image, label in cases]
    noisy_moves = [one_pixel_moves(network, *case, FRACTIONS[:1]) for case in noisy]
    summary = {
        "images": len(moves),
        "moves": int(sum(np.count_nonzero(m["step"][-1]) for m in moves)),
        "steps": [step_row(moves, i) for i in range(len(FRACTIONS))],
        "with_noise": step_row(noisy_moves, 0),
        "room": [room_row(moves, low, high) for low, high in zip((-math.inf, *VALUES), VALUES, strict=False)],
        "picks": {
            "gradient": _pick(moves, [m["gradient"] for m in moves], picked),
            "predicted": _pick(moves, [m["predicted"][-1, 0] for m in moves], picked),
        },
    }
    return summary, moves


def step_row(moves: list[Moves], i: int) -> dict[str, float]:
    """Row i of the table `steps` in equation_1."""
    from scipy.stats import spearmanr

    real = [m["step"][i] != 0 for m in moves]
    parts = [[m[name][i][r] for m, r in zip(moves, real, strict=True)] for name in ("predicted", "linear", "actual")]
    predicted, linear, actual = map(np.concatenate, parts)
    larger = np.maximum(np.abs(predicted), np.abs(actual))
    larger[larger == 0] = 1  # no change was predicted and none came
    off = np.abs(actual - predicted) / larger
    return {
        "fraction": FRACTIONS[i],
        "off": float(np.median(off)),
        "curvature": float(np.median(np.abs(linear - predicted) / larger)),
        "switches": float(np.median(np.abs(actual - linear) / larger)),
        "share_close": float((off < 0.1).mean()),
        "share_wrong_sign": float((np.sign(predicted) * np.sign(actual) < 0).mean()),
        "rank": float(np.mean([spearmanr(p, a).statistic for p, a in zip(parts[0], parts[2], strict=True)])),
    }


def room_row(moves: list[Moves], low: float, high: float) -> dict[str, float | None]:
    """Pixels with low < value <= high, all of them moved the whole way up; see equation_1."""
    from scipy.stats import rankdata

    inside = [(m["value"] > low) & (m["value"] <= high) for m in moves]
    row: dict[str, float | None] = {"above": low, "to": high, "pixels": int(sum(map(np.count_nonzero, inside)))}
    for name in ("gradient", "predicted", "actual"):
        values = [np.abs(m[name] if name == "gradient" else m[name][-1, 0]) for m in moves]
        places = [(rankdata(v)[keep] - 1) / (len(v) - 1) for v, keep in zip(values, inside, strict=True)]
        row[name] = float(np.median(np.concatenate(places))) if row["pixels"] else None
    return row


def _pick(moves, scores, picked):
    """The row of `picks` in equation_1 for the pixels of the largest scores of each image."""
    counts = []
    for m, score in zip(moves, scores, strict=True):
        best, chosen = (np.argsort(-s, kind="stable")[:picked] for s in (m["actual"][-1, 0], score))
        counts.append((np.sum(MAXIMUM - m["value"][chosen] < 0.1), len(np.intersect1d(best, chosen))))
    no_room, hits = np.mean(counts, axis=0)
    return {"no_room": float(no_room), "among_best": float(hits)}
