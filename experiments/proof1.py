"""Proof 1 step by step: the equations as printed and as corrected, measured, and on to where the paper stops.

`python -m experiments.proof1` prints the walk. Parts 1 to 4 need no network: the equations of minicnn/proof1.py against
finite differences in decimals and against the engine's own gradients. Parts 5 and 6 take a trained network and go from
the logits to the pixels and to equation (1). Where none is found and none was asked for, the first four are the result.
"""

import decimal
import inspect
import math
import textwrap
from decimal import Decimal

import numpy as np

from experiments import common
from minicnn import backend, ops, proof1
from minicnn.autograd import Tensor, grad, no_grad
from minicnn.saliency import saliency_maps

TEMPERATURES = (1, 2, 5, 10, 20, 50, 100)
TRAINED_AT = 20  # the paper's T
SAMPLES = 20  # vectors of logits at each T
DIGITS = 50  # of the finite differences; with STEP they leave about 30 correct ones
STEP = Decimal("1e-15")
FRACTIONS = (1e-5, 1e-3, 0.01, 0.1, 1.0)  # of the way from a pixel's value to the maximum or minimum
MINIMUM, MAXIMUM = 0.0, 1.0
VALUES = (0.0, 0.5, 0.9, 1.0)  # upper ends of ranges of pixel values: background, dark, bright, near the maximum
BUDGET = 100
BATCH = 128

FORMS = {
    "printed_4": proof1.derivative_4_printed,
    "corrected_4": proof1.derivative_4_corrected,
    "printed_5": proof1.derivative_5_printed,
    "corrected_5": proof1.derivative_5_corrected,
    "cross_entropy": proof1.cross_entropy_gradient,
}


# Parts 1 to 4: logits alone


def compare_forms(rng, device="cpu", samples=SAMPLES):
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
        cases = [(row, k, T) for row, k in zip(x, targets, strict=True)]
        probability = np.array([_finite_difference(proof1.loss_printed, *case) for case in cases])
        loss = np.array([_finite_difference(proof1.loss_corrected, *case) for case in cases])
        found = {name: np.array([form(*case) for case in cases]) for name, form in FORMS.items()}
        found["engine_probability"], found["engine_loss"] = _engine_gradients(x, targets, T, device)
        rows.append(
            {
                "T": T,
                "off": {
                    name: _largest_difference(form, loss if name in ("cross_entropy", "engine_loss") else probability)
                    for name, form in found.items()
                },
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
    with decimal.localcontext() as context:
        context.prec = DIGITS
        exact = np.array([Decimal(float(value)) for value in x])
        return proof1.central_difference(lambda moved: function(moved, k, T), exact, STEP).astype(np.float64)


def _engine_gradients(x, targets, T, device):
    """d p_k/dx and d(-ln p_k)/dx of every row of x by Tensor.backward, in float64."""
    place = backend.get(device)
    chosen = place.asarray(np.eye(10)[targets])

    def gradient(function):
        z = Tensor(place.asarray(x), requires_grad=True)
        function(z).sum().backward()
        return backend.to_host(z.grad)

    return (
        gradient(lambda z: ops.softmax(z, T=T) * chosen),
        gradient(lambda z: ops.cross_entropy(z, place.asarray(targets, dtype=np.int32), T=T)),
    )


def _largest_difference(form, truth):
    return float((np.abs(form - truth).max(axis=1) / np.abs(truth).max(axis=1)).max())


def limit_of_certainty():
    """T times each form at k and elsewhere, while the target's logit pulls ahead of nine equal others by `lead` T."""
    T, rows = 1, []
    for lead in (0, 2, 5, 10, 15, 20, 30):
        x = np.array([float(lead)] + [0.0] * 9)
        exact = np.array([Decimal(lead)] + [Decimal(0)] * 9)
        with decimal.localcontext() as context:
            context.prec = DIGITS
            rows.append(
                {
                    "lead": lead,
                    "one_minus_p_k": float(proof1.saturation(exact, 0, T)),
                    "one_minus_p_k_float32": float(1 - ops.softmax(Tensor(x[None].astype(np.float32))).data[0, 0]),
                    "forms": {name: [float(v) for v in form(exact, 0, T)[:2]] for name, form in FORMS.items()},
                }
            )
    return {"rows": rows, "limits": {name: list(pair) for name, pair in proof1.limits_of_certainty(T).items()}}


def training_temperature(T=TRAINED_AT):
    """The gradient left at test by training at T: exact for nine equal rivals, and predicted from the margin alone."""
    rows = []
    for m in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        u = np.array([float(m)] + [0.0] * 9)
        rows.append(
            {
                "margin": m,
                "ratio": float(proof1.gradient_ratio(u, 0, T)),
                "predicted": float(proof1.gradient_ratio_predicted(m, T)),
                "one_over_T": 1 / T,
            }
        )
    return {"T": T, "rows": rows}


# Parts 5 and 6: a network. It is a float64 network throughout, so that small differences of the loss mean something.


def logits_and_jacobian(network, image):
    """One image (1, H, W) -> its logits (10,) and J = d(logits)/d(pixels), (10, H W), in one batch of ten copies."""
    x = Tensor(_on_device(network, np.repeat(image[None], 10, axis=0)), requires_grad=True)
    logits = network(x)
    (rows,) = grad(logits, [x], backend.of(x.data).asarray(np.eye(10)))
    return backend.to_host(logits.data)[0], backend.to_host(rows).reshape(10, -1)


def chain_rule(network, images, labels):
    """J^T (p - e_k) / T against the engine's gradients by the pixels; one row per temperature.

    off_scaled: against the saliency map in scaled arithmetic times its scale; off_plain: against Tensor.backward of the
    cross-entropy, which forms p - e_k as written. Each is the largest difference over the largest entry of a map, the
    worst of the images. largest_entry, of J^T (p - e_k) / T, and its factors one_minus_p_k and direction, the largest
    entry of shared_out, are geometric means over the images: largest_entry = one_minus_p_k * direction / T.
    """
    known = [logits_and_jacobian(network, image) for image in images]
    rows = []
    for T in TEMPERATURES:
        x = Tensor(_on_device(network, images), requires_grad=True)
        targets = backend.of(x.data).asarray(labels, dtype=np.int32)
        ops.cross_entropy(network(x), targets, T=T).sum().backward()
        plain = backend.to_host(x.grad).reshape(len(images), -1)
        scaled = saliency_maps(network, images, labels, T=T, arithmetic="scaled")
        scaled = scaled.maps.reshape(len(images), -1) * 10 ** scaled.log10_scale[:, None]
        cases = [(J, z, int(k), T) for (z, J), k in zip(known, labels, strict=True)]
        ours = np.array([proof1.input_gradient(*case) for case in cases])
        rows.append(
            {
                "T": T,
                "off_scaled": _largest_difference(scaled, ours),
                "off_plain": _largest_difference(plain, ours),
                "largest_entry": _geometric_mean(np.abs(ours).max(axis=1)),
                "one_minus_p_k": _geometric_mean([proof1.saturation(*case[1:]) for case in cases]),
                "direction": _geometric_mean([np.abs(shared_out(*case)).max() for case in cases]),
            }
        )
    return rows


def shared_out(jacobian, x, k, T):
    """J^T (p - e_k) / (1 - p_k), shape (pixels,): the direction in which the loss grows, apart from the saturation.

    (p - e_k) / (1 - p_k) is -1 at k, and elsewhere the softmax of the other logits alone: it shares out 1 among them,
    and does not depend on x_k.
    """
    shares = np.insert(proof1.softmax_with_temperature(np.delete(x, k), T), k, -1)
    return jacobian.T @ shares


def _geometric_mean(values):
    return float(np.exp(np.log(values).mean()))


def one_pixel_moves(network, image, label, fractions=FRACTIONS):
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
    linear, actual = np.zeros_like(step), np.zeros_like(step)
    linear[moves] = _losses(z + J.T[pixel] * size[:, None], label) - loss
    actual[moves] = _losses(_logits(network, moved.reshape(-1, *image.shape)), label) - loss
    predicted = proof1.predicted_change(gradient, step)
    names = ("value", "gradient", "step", "predicted", "linear", "actual")
    return dict(zip(names, (pixels, gradient, step, predicted, linear, actual), strict=True))


def equation_1(network, images, labels, rng):
    """How far equation (1) holds: summary of one_pixel_moves for some images, as a dict. Returns it and the moves.

    steps, a row per fraction of the way, over all moves that change a pixel: off is |actual - predicted| over the
    larger of the two, so 1 says that one is nothing beside the other and 2 that only the sign differs; curvature and
    switches are the two parts of that difference, over the same, all three medians; share_close counts moves off by
    under 10 %; rank is Spearman's correlation of predicted and actual, the mean of the images.
    with_noise: the first row again, on the images with uniform noise of at most 1 % from rng, where no two pixels tie.
    room, a row per range of pixel values, for the whole way up: the median place of these pixels by |gradient|,
    |predicted| and |actual|, from 0, the smallest of the image, to 1, the largest.
    picks: of Algorithm 1's 100 pixels, by gradient, and of the 100 that equation (1) prefers, by gradient * step: how
    many have less than a tenth of the way to go, and how many are among the 100 that truly raise the loss most; means.
    """
    cases = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    moves = [one_pixel_moves(network, *case) for case in cases]
    noisy = [(0.99 * image + rng.uniform(0, 0.01, image.shape), label) for image, label in cases]
    noisy = [one_pixel_moves(network, *case, FRACTIONS[:1]) for case in noisy]
    summary = {
        "images": len(moves),
        "moves": int(sum(np.count_nonzero(m["step"][-1]) for m in moves)),
        "steps": [_step_row(moves, i) for i in range(len(FRACTIONS))],
        "with_noise": _step_row(noisy, 0),
        "room": [_room_row(moves, low, high) for low, high in zip((-math.inf, *VALUES), VALUES, strict=False)],
        "picks": _picks(moves),
    }
    return summary, moves


def _step_row(moves, i):
    """Row i of the table `steps` in equation_1."""
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
        "rank": float(np.mean([_spearman(p, a) for p, a in zip(parts[0], parts[2], strict=True)])),
    }


def _room_row(moves, low, high):
    """Pixels with low < value <= high, all of them moved the whole way up; see equation_1."""
    inside = [(m["value"] > low) & (m["value"] <= high) for m in moves]
    columns = {
        "gradient": [m["gradient"] for m in moves],
        "predicted": [m["predicted"][-1, 0] for m in moves],
        "actual": [m["actual"][-1, 0] for m in moves],
    }
    row = {"above": low, "to": high, "pixels": int(sum(map(np.count_nonzero, inside)))}
    for name, values in columns.items():
        places = [_ranks(np.abs(v))[keep] / (len(v) - 1) for v, keep in zip(values, inside, strict=True)]
        row[name] = float(np.median(np.concatenate(places))) if row["pixels"] else None
    return row


def _picks(moves):
    picks = {}
    for name in ("gradient", "predicted"):
        counts = []
        for m in moves:
            best = _largest(m["actual"][-1, 0])
            chosen = _largest(m["gradient"] if name == "gradient" else m["predicted"][-1, 0])
            counts.append((np.sum(MAXIMUM - m["value"][chosen] < 0.1), len(set(best) & set(chosen))))
        no_room, hits = np.mean(counts, axis=0)
        picks[name] = {"no_room": float(no_room), "among_best": float(hits)}
    return picks


def _largest(scores):
    return np.argsort(-scores, kind="stable")[:BUDGET].tolist()


def _spearman(a, b):
    return np.corrcoef(_ranks(a), _ranks(b))[0, 1]


def _ranks(values):
    """Ranks from 0, equal values sharing their mean rank."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[where]


def _losses(logits, label):
    return np.array([proof1.loss_corrected(row, label, 1) for row in logits])


def _logits(network, images):
    with no_grad():
        parts = [network(Tensor(_on_device(network, images[i : i + BATCH]))) for i in range(0, len(images), BATCH)]
    return np.concatenate([backend.to_host(part.data) for part in parts])


def _on_device(network, images):
    weights = next(iter(network.parameters().values())).data
    return backend.of(weights).asarray(images, dtype=weights.dtype)


# The walk, from the results alone


def show_equations(results):
    """Parts 1 to 4 in the terminal."""
    print("1. The equations")
    print("   n      the number of classes; i and j are any of them, k is the target")
    print("   x      the n logits, the input of the softmax")
    print("   T      the temperature, T > 0")
    print("   p      softmax(x / T), the n probabilities, see (2)")
    print("   d_ik   1 if i = k, else 0")
    print("   f, S   exp(x_k / T) and sum_j exp(x_j / T): p_k = f / S, of which (4) and (5) are the derivative")
    print("   f', S' the derivatives of f and S by x_i: f' = d_ik f / T and S' = exp(x_i / T) / T\n")
    for function in (proof1.softmax_with_temperature, proof1.loss_printed, proof1.loss_corrected, *FORMS.values()):
        _show_docstring(function)

    print("2. Which of them are right")
    print("   Each form against finite differences, which know no calculus, in decimals of")
    print(f"   {DIGITS} digits: of the loss -ln p_k for d(-ln p_k) and for the loss of the engine, of p_k for")
    print("   the others. The figure is the largest difference over the largest true entry. Below")
    print("   1e-12: equal, to the rounding of float64. Above 1: wrong.")
    print(f"   It is the figure of the worst of {SAMPLES} random vectors of logits at each T. For the printed")
    print("   forms that is the most confident vector, where it is 2 p_k / (1 - p_k): these figures go up")
    print("   and down with the draw, not with T.\n")
    columns = {
        "(4) printed": "printed_4",
        "(4) corrected": "corrected_4",
        "(5) printed": "printed_5",
        "(5) corrected": "corrected_5",
        "d(-ln p_k)": "cross_entropy",
        "engine, p_k": "engine_probability",
        "engine, loss": "engine_loss",
    }
    rows = results["forms"]
    lines = [(row["T"], *(f"{row['off'][name]:.1e}" for name in columns.values())) for row in rows]
    _show_table(("T", *columns), lines)
    print("\n   A shift common to all logits changes no probability, so a true gradient sums to 0 over i.")
    print("   T times the sum, for the first of the vectors at each T. All sums are in float64: those of (5)")
    print("   corrected and of the engine are 0 but for its rounding.\n")
    heads = ("T", "p_k", "(4) printed", "2 p_k", "(5) printed", "p_k + 10 p_k^2", "(5) corrected", "engine, loss")
    lines = []
    for row in rows:
        sums, stated = row["sums_times_T"], row["sums_stated_times_T"]
        figures = [row["p_k"], sums["printed_4"], stated["printed_4"], sums["printed_5"], stated["printed_5"]]
        zeros = [f"{sums[name]:.0e}" for name in ("corrected_5", "engine_loss")]
        lines.append((row["T"], *(f"{figure:.6f}" for figure in figures), *zeros))
    _show_table(heads, lines)

    print("\n3. What the slip hides: a confident network, p_k -> 1")
    print("   The target's logit leads nine equal others. T times the derivative of p_k by x_i, by (5) as")
    print("   printed and as corrected. The last line is the limit of that derivative, times T, as p_k -> 1.\n")
    limit = results["limit"]
    heads = ("1 - p_k", "in float32", "printed, i = k", "printed, i != k", "corrected, i = k", "corrected, i != k")
    lines = []
    for row in limit["rows"]:
        pairs = [*row["forms"]["printed_5"], *row["forms"]["corrected_5"]]
        figures = [row["one_minus_p_k"], row["one_minus_p_k_float32"], *pairs]
        lines.append((row["lead"], *(f"{figure:.2e}" for figure in figures)))
    ends = [*limit["limits"]["printed_5"], *limit["limits"]["corrected"]]
    _show_table(("lead / T", *heads), [*lines, ("limit", "0", "0", *(f"{end:g}" for end in ends))])
    print("\n   The true derivative dies out: the softmax is saturated. The printed (5) never does. T times the")
    print("   gradient of the loss -ln p_k, which is p_k - 1 at k, dies out too; in float32 p_k rounds to 1,")
    print("   and it is exactly 0.\n")

    training = results["training_temperature"]
    print(f"4. What training at T = {training['T']} does to the gradient at test, where T is 1")
    print("   u is a vector of n logits, as x is; e_k is 1 at k and 0 elsewhere; |v|_1 is the sum of all |v_i|.\n")
    _show_docstring(proof1.margin)
    _show_docstring(proof1.gradient_ratio, whole=True)
    names = ("ratio", "predicted", "one_over_T")
    lines = [(row["margin"], *(f"{row[name]:.3e}" for name in names)) for row in training["rows"]]
    _show_table(("m", "ratio", "predicted", "1/T"), lines)
    print("\n   predicted: T exp(-(T - 1) m). Nine equal rivals here: the two meet as the margin m grows.")
    print("   The proof expects 1/T at any margin. But a small margin makes the gradient larger, and a")
    print("   large one makes it vanish.")


def show_pixels(results):
    """Parts 5 and 6 in the terminal."""
    rows, found = results["chain_rule"], results["equation_1"]
    print("\n5. From the logits to the pixels")
    _show_docstring(proof1.input_gradient)
    print(f"   {results['weights']}, test images {', '.join(map(str, results['images']))}.")
    print("   L is the loss -ln p_k; e_k is 1 at k and 0 elsewhere.")
    print("   J^T (p - e_k) / T with J from ten backward passes, against two maps of the engine: the")
    print("   scaled one, and backward of the loss, which subtracts 1 from p_k as written. All float64.")
    print("   Then the largest entry of the map, and its three factors: 1/T; 1 - p_k, the saturation; and")
    print("   the direction, the largest entry of J^T v with v = (p - e_k) / (1 - p_k). v is -1 at k and")
    print("   shares out 1 among the other classes, the more evenly the higher T is. Geometric means of")
    print("   the images, which multiply as the entries do.\n")
    names = ("off_scaled", "off_plain", "largest_entry", "1/T", "one_minus_p_k", "direction")
    table = [row | {"1/T": 1 / row["T"]} for row in rows]
    lines = [(row["T"], *(f"{row[name]:.1e}" for name in names)) for row in table]
    _show_table(("T", "off, scaled", "off, plain", "largest", "1/T", "1 - p_k", "direction"), lines)
    low, high = (next(row for row in table if row["T"] == T) for T in (1, TRAINED_AT))
    growth, *factors = (f"{np.divide(high[name], low[name]):.4g}" for name in names[2:])
    print(f"\n   The same weights, the same images: from T = 1 to T = {TRAINED_AT} the largest entry is")
    print(f"   multiplied by {growth} = {factors[0]} (1/T) * {factors[1]} (saturation) * {factors[2]} (direction).")

    print("\n6. Equation (1): does the gradient say what a step will do?")
    _show_docstring(proof1.predicted_change)
    print("   Here the paper's x is the image, and x[m][n] the pixel in row m and column n.")
    print(f"   {found['moves']} moves: one pixel, up to {MAXIMUM:g} or down to {MINIMUM:g}, and only part of the way.")
    print("   off: the error over the larger of prediction and change. It has two parts: the curve of the")
    print("   loss, and ReLUs and pools that switch on the way. Medians. Then the share of moves off by")
    print("   less than 10 %, the share of wrong signs, and the rank correlation.\n")
    lines = [_step_line(f"{row['fraction']:g}", row) for row in found["steps"]]
    lines.append(_step_line("noise", found["with_noise"]))
    _show_table(("part", "off", "curve", "switches", "under 10 %", "wrong sign", "rank corr."), lines)
    smallest, whole = found["steps"][0], found["steps"][-1]
    good = [f"{100 * row['share_close']:.0f} %" for row in (whole, smallest, found["with_noise"])]
    cause = "the switches" if whole["switches"] > whole["curvature"] else "the curve of the loss"
    print(f"\n   The whole way, {good[0]} of the predictions are good to 10 %; the larger part of the error is")
    print(f"   {cause}. With {smallest['fraction']:g} of the way it is {good[1]}. The last line is that same step")
    print(f"   on the same images with faint noise: {good[2]}. What the noise takes away is ties. In a flat")
    print("   background the inputs of a pool are equal, and there the loss has a kink and no gradient.")

    print("\n   No room: the whole way up, by the value of the pixel. The figures are median places among")
    print("   the image's pixels, 0 the smallest and 1 the largest.\n")
    lines = []
    for row in found["room"]:
        places = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("gradient", "predicted", "actual")]
        lines.append((f"to {row['to']:g}", row["pixels"], *places))
    _show_table(("value", "pixels", "|gradient|", "|predicted|", "|actual|"), lines)
    print(f"\n   Of {BUDGET} pixels picked, those with less than 0.1 to go (no room), and those among the {BUDGET}")
    print("   that raise the loss most, each alone and the whole way (best). Means of the images.\n")
    lines = [
        (label, *(f"{found['picks'][score][name]:.1f}" for score in ("gradient", "predicted")))
        for name, label in (("no_room", "no room"), ("among_best", "best"))
    ]
    _show_table(("", "by gradient", "by (1)"), lines)
    print("\n   By gradient is Algorithm 1. By (1) is by gradient * step, which is 0 for a full pixel.")


def _step_line(label, row):
    figures = [f"{row[name]:.1e}" for name in ("off", "curvature", "switches")]
    figures += [f"{100 * row[name]:.0f} %" for name in ("share_close", "share_wrong_sign")]
    return (label, *figures, f"{row['rank']:.2f}")


def _show_docstring(function, whole=False):
    """The docstring as the source has it; if not whole, its first paragraph and its indented formulas."""
    paragraphs = inspect.getdoc(function).split("\n\n")
    shown = [p for i, p in enumerate(paragraphs) if whole or i == 0 or p.startswith(" ")]
    print(f"   {function.__name__}")
    print(textwrap.indent("\n".join(shown), "      ") + "\n")


def _show_table(heads, lines):
    """Lines of cells under their heads, the first column to the left, at least two spaces between columns."""
    table = [[str(cell) for cell in line] for line in (heads, *lines)]
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    for label, *cells in table:
        print(f"   {label:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True)))


def draw_slip(path):
    """The printed forms and the truth against p_k, for i = k and i != k, with nine equal rivals; times T."""
    p_k = np.linspace(0.001, 0.999, 400)
    logits = [np.array([np.log(9 * p / (1 - p))] + [0.0] * 9) for p in p_k]
    # Where the two printed forms lie on each other, the dashes leave the broad line below them to be seen.
    styles = {
        "printed_4": {"label": "(4) as printed", "color": "tab:orange", "lw": 5, "alpha": 0.6},
        "printed_5": {"label": "(5) as printed", "color": "tab:red", "lw": 1.8, "ls": (0, (5, 3))},
        "corrected_5": {"label": "corrected: the truth", "color": "tab:green", "lw": 2.5},
    }
    figure, (axes,) = common.figure(1, 2, width=5, height=4.4)
    near_0 = axes[1].inset_axes((0.14, 0.6, 0.55, 0.3))
    for ax, i in zip((*axes, near_0), (0, 1, 1), strict=True):
        for name, style in styles.items():
            ax.plot(p_k, [FORMS[name](x, 0, 1)[i] for x in logits], **style)
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    for ax, title in zip(axes, ("the target's own logit, i = k", "a rival's logit, i ≠ k"), strict=True):
        ax.set(title=title, xlabel="probability of the target, $p_k$", ylim=(-0.1, 2.1))
    near_0.set(ylim=(-0.04, 0.04), yticks=(-0.03, 0, 0.03))
    near_0.set_title("near 0, magnified: (4) has the wrong sign", fontsize=9)
    near_0.tick_params(labelsize=8)
    axes[0].text(0.55, 1.25, "(4) and (5) as printed\nare equal here: $p_k (1 + p_k)$", ha="right")
    axes[0].set_ylabel(r"$T \; \partial p_k / \partial x_i$")
    axes[0].legend(frameon=False, loc="upper left", handlelength=3.5)
    figure.suptitle(
        "Proof 1: the true gradient dies out as the network grows confident, the printed (5) does not\n"
        "ten classes: the target, and nine equal rivals"
    )
    common.save_figure(path, figure)


def draw_equation_1(moves, path):
    """Predicted against actual change, absolute values, one panel a step; what has the wrong sign stands out."""
    panels, highest = range(len(FRACTIONS))[-3:], 1
    figure, (axes,) = common.figure(1, len(panels), width=4.3, height=4.3)
    for ax, i in zip(axes, panels, strict=True):
        scale = [np.abs(m["gradient"]).max() * FRACTIONS[i] for m in moves]
        predicted, actual = (
            np.concatenate([m[name][i].reshape(-1) / s for m, s in zip(moves, scale, strict=True)])
            for name in ("predicted", "actual")
        )
        for sign, color, label in ((1, "tab:blue", "sign as predicted"), (-1, "tab:red", "wrong sign")):
            chosen = np.sign(predicted) * np.sign(actual) == sign
            x, y = np.abs(predicted[chosen]), np.abs(actual[chosen])
            ax.loglog(x, y, ".", ms=3, alpha=0.5, color=color, label=label)
        ax.axline((1e-3, 1e-3), (1, 1), color="0.3", lw=1, label="equation (1)")
        ax.set(title=f"{100 * FRACTIONS[i]:g} % of the way", xlabel="|predicted|", xlim=(1e-6, 2))
        highest = max(highest, np.abs(actual).max())
    for ax in axes:
        ax.set_ylim(1e-6, 2 * highest)
    axes[0].set_ylabel("|actual change of the loss|")
    axes[0].legend(frameon=False, markerscale=3, loc="upper left")
    figure.suptitle("Equation (1): one pixel moved; both axes over (largest gradient of the image) × (part of the way)")
    common.save_figure(path, figure)


def correctly_classified(network, images, labels, count):
    """Indices of the first `count` images that the network classifies correctly. Raises UsageError for too few."""
    found = []
    for start in range(0, len(images), BATCH):
        decisions = _logits(network, images[start : start + BATCH]).argmax(axis=1)
        found.extend((start + np.flatnonzero(decisions == labels[start : start + BATCH])).tolist())
        if len(found) >= count:
            return found[:count]
    raise common.UsageError(f"the network classifies {len(found)} test images correctly: --images can be no more")


def with_network(path, options, rng):
    """What parts 5 and 6 find on the network of a weight file: a dict of results, and the moves of equation_1."""
    network = common.load_network(path, options, dtype=np.float64)
    dataset = common.load_data(options)
    chosen = correctly_classified(network, dataset.test_images, dataset.test_labels, options.images)
    images, labels = dataset.test_images[chosen].astype(np.float64), dataset.test_labels[chosen]
    results = {"weights": str(path), "ties": options.ties, "images": chosen}
    results["chain_rule"] = chain_rule(network, images, labels)
    results["equation_1"], moves = equation_1(network, images, labels, rng)
    return results, moves


def main(options):
    asked_for = options.weights or options.network
    options.network = options.network or "standard"
    pictures = [options.out / "proof1.png"]
    rng = np.random.default_rng(options.seed)
    results = {
        "forms": compare_forms(rng, options.device),
        "limit": limit_of_certainty(),
        "training_temperature": training_temperature(),
    }
    show_equations(results)
    draw_slip(pictures[0])

    path = None
    try:
        path = common.find_weights(options)
        found, moves = with_network(path, options, rng)
    except common.USER_ERRORS as error:
        # Whatever is wrong with the network, the first four parts are complete without it.
        _write(options, results | {"parts_5_and_6_missing": str(error)}, pictures)
        if path or asked_for:
            raise
        print(f"\n   Parts 5 and 6 need a trained network, and there is none yet:\n   {error}.")
        if (common.RESULTS / "mnist" / f"{options.network}.npz").exists():
            print("   With the networks that come with the project they run at once:")
            print("   python -m experiments.proof1 --dataset mnist")
        return
    results |= found
    show_pixels(results)
    pictures.append(options.out / "equation1.png")
    draw_equation_1(moves, pictures[1])
    _write(options, results, pictures)


def _write(options, results, pictures):
    common.write_json(options.json, common.environment(options) | results)
    print(f"\n   Written: {', '.join(map(str, [*pictures, options.json]))}")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser, default=None)  # one that is missing is an error only if it was asked for
    parser.add_argument("--images", type=common.positive(int), default=2, help="of parts 5 and 6; default: 2")
    parser.add_argument("--ties", choices=("first", "all"), default="all", help="max-pool gradient; all as the author")
    common.run(main, parser)
