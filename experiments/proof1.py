"""Proof 1 step by step: the equations as printed and as corrected, measured, and on to where the paper stops.

`python -m experiments.proof1` prints the walk. Parts 1 to 4 need no network: the equations of minicnn/paper/proof1.py
against finite differences in decimals and against the engine's own gradients. Parts 5 and 6 take a trained network and
go from the logits to the pixels and to equation (1). Where none is found and none was asked for, the first four are the
result.
"""

import decimal
import inspect
import math
import textwrap
from decimal import Decimal
from pathlib import Path

import numpy as np

from experiments import common
from minicnn import Tensor, backend, correct, grad, ops, predict
from minicnn.paper import proof1
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import geometric_mean, ranks
from minicnn.weights import trained_at

TEMPERATURES = (1, 2, 5, 10, 20, 50, 100)
TRAINED_AT = 20  # the paper's T
SAMPLES = 20  # vectors of logits at each T
DIGITS, STEP = 50, Decimal("1e-15")  # of the finite differences; they leave about 30 correct digits
FRACTIONS = (1e-5, 1e-3, 0.01, 0.1, 1.0)  # of the way from a pixel's value to the maximum or minimum
MINIMUM, MAXIMUM = 0.0, 1.0
VALUES = (0.0, 0.5, 0.9, 1.0)  # upper ends of ranges of pixel values: background, dark, bright, near the maximum
PICKED = 100  # pixels, as many as Algorithm 1 makes moves
CHUNK = 128

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


def limit_of_certainty():
    """T times each form at k and elsewhere, while the target's logit pulls ahead of nine equal others by `lead` T."""
    T, rows = 1, []
    for lead in (0, 2, 5, 10, 15, 20, 30):
        x = np.array([Decimal(lead)] + [Decimal(0)] * 9)
        in_float32 = ops.softmax(Tensor(x[None].astype(np.float32))).data[0, 0]
        with decimal.localcontext(decimal.Context(prec=DIGITS)):
            row = {"lead": lead, "one_minus_p_k": float(proof1.saturation(x, 0, T))}
            row["one_minus_p_k_float32"] = float(1 - in_float32)
            row["forms"] = {name: [float(v) for v in form(x, 0, T)[:2]] for name, form in FORMS.items()}
        rows.append(row)
    return {"rows": rows, "limits": {name: list(pair) for name, pair in proof1.limits_of_certainty(T).items()}}


def training_temperature(T=TRAINED_AT):
    """The gradient left at test by training at T: exact for nine equal rivals, and predicted from the margin alone."""
    rows = []
    for m in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        ratio = float(proof1.gradient_ratio(np.array([float(m)] + [0.0] * 9), 0, T))
        predicted = float(proof1.gradient_ratio_predicted(m, T))
        rows.append({"margin": m, "ratio": ratio, "predicted": predicted, "one_over_T": 1 / T})
    return {"T": T, "rows": rows}


# Parts 5 and 6: a network. It is a float64 network throughout, so that small differences of the loss mean something.


def logits_and_jacobian(network, image):
    """One image (1, H, W) -> its logits (10,) and J = d(logits)/d(pixels), (10, H W), in one batch of ten copies."""
    x = Tensor(network.backend.asarray(np.repeat(image[None], 10, axis=0)), requires_grad=True)
    logits = network(x)
    (rows,) = grad(logits, [x], network.backend.asarray(np.eye(10)))
    return backend.to_host(logits.data)[0], backend.to_host(rows).reshape(10, -1)


def chain_rule(network, images, labels):
    """J^T (p - e_k) / T against the engine's gradients by the pixels; one row per temperature.

    off_scaled: against the saliency map in scaled arithmetic times its scale; off_plain: against the gradient of the
    cross-entropy, which forms p - e_k as written. Each is the largest difference over the largest entry of a map, the
    worst of the images. largest_entry, of J^T (p - e_k) / T, and its factors one_minus_p_k and direction, the largest
    entry of shared_out, are geometric means over the images: largest_entry = one_minus_p_k * direction / T.
    """
    known = [logits_and_jacobian(network, image) for image in images]
    rows = []
    for T in TEMPERATURES:
        x = Tensor(network.backend.asarray(images), requires_grad=True)
        targets = network.backend.asarray(labels, dtype=np.int32)
        (plain,) = grad(ops.cross_entropy(network(x), targets, T=T).sum(), [x])
        scaled = saliency_maps(network, images, labels, T=T, arithmetic="scaled")
        scaled = scaled.maps.reshape(len(images), -1) * 10 ** scaled.log10_scale[:, None]
        cases = [(J, z, int(k), T) for (z, J), k in zip(known, labels, strict=True)]
        ours = np.array([proof1.input_gradient(*case) for case in cases])
        rows.append(
            {
                "T": T,
                "off_scaled": _largest_difference(scaled, ours),
                "off_plain": _largest_difference(backend.to_host(plain).reshape(ours.shape), ours),
                "largest_entry": geometric_mean(np.abs(ours).max(axis=1)),
                "one_minus_p_k": geometric_mean([proof1.saturation(*case[1:]) for case in cases]),
                "direction": geometric_mean([np.abs(shared_out(*case)).max() for case in cases]),
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
        "steps": [step_row(moves, i) for i in range(len(FRACTIONS))],
        "with_noise": step_row(noisy, 0),
        "room": [room_row(moves, low, high) for low, high in zip((-math.inf, *VALUES), VALUES, strict=False)],
        "picks": {
            "gradient": _pick(moves, [m["gradient"] for m in moves]),
            "predicted": _pick(moves, [m["predicted"][-1, 0] for m in moves]),
        },
    }
    return summary, moves


def step_row(moves, i):
    """Row i of the table `steps` in equation_1."""
    real = [m["step"][i] != 0 for m in moves]
    parts = [[m[name][i][r] for m, r in zip(moves, real, strict=True)] for name in ("predicted", "linear", "actual")]
    predicted, linear, actual = map(np.concatenate, parts)
    larger = np.maximum(np.abs(predicted), np.abs(actual))
    larger[larger == 0] = 1  # no change was predicted and none came
    off = np.abs(actual - predicted) / larger
    correlations = [np.corrcoef(ranks(p), ranks(a))[0, 1] for p, a in zip(parts[0], parts[2], strict=True)]
    return {
        "fraction": FRACTIONS[i],
        "off": float(np.median(off)),
        "curvature": float(np.median(np.abs(linear - predicted) / larger)),
        "switches": float(np.median(np.abs(actual - linear) / larger)),
        "share_close": float((off < 0.1).mean()),
        "share_wrong_sign": float((np.sign(predicted) * np.sign(actual) < 0).mean()),
        "rank": float(np.mean(correlations)),
    }


def room_row(moves, low, high):
    """Pixels with low < value <= high, all of them moved the whole way up; see equation_1."""
    inside = [(m["value"] > low) & (m["value"] <= high) for m in moves]
    row = {"above": low, "to": high, "pixels": int(sum(map(np.count_nonzero, inside)))}
    for name in ("gradient", "predicted", "actual"):
        values = [np.abs(m[name] if name == "gradient" else m[name][-1, 0]) for m in moves]
        places = [ranks(v)[keep] / (len(v) - 1) for v, keep in zip(values, inside, strict=True)]
        row[name] = float(np.median(np.concatenate(places))) if row["pixels"] else None
    return row


def _pick(moves, scores):
    """The row of `picks` in equation_1 for the pixels of the largest scores of each image."""
    counts = []
    for m, score in zip(moves, scores, strict=True):
        best, chosen = (np.argsort(-s, kind="stable")[:PICKED] for s in (m["actual"][-1, 0], score))
        counts.append((np.sum(MAXIMUM - m["value"][chosen] < 0.1), len(np.intersect1d(best, chosen))))
    no_room, hits = np.mean(counts, axis=0)
    return {"no_room": float(no_room), "among_best": float(hits)}


def correctly_classified(network, images, labels, count):
    """Indices of the first `count` images that the network classifies correctly. Raises UsageError for too few."""
    found = []
    for start in range(0, len(images), CHUNK):
        chunk = slice(start, start + CHUNK)
        found.extend((start + np.flatnonzero(correct(network, images[chunk], labels[chunk]))).tolist())
        if len(found) >= count:
            return found[:count]
    raise common.UsageError(f"the network classifies {len(found)} test images correctly: --images can be no more")


def pixels(network, images, labels, count, rng):
    """What parts 5 and 6 find on the first `count` images that a float64 network classifies correctly: a dict of
    results, and the moves of equation_1."""
    chosen = correctly_classified(network, images, labels, count)
    case = network, images[chosen].astype(np.float64), labels[chosen]
    results = {"images": chosen, "chain_rule": chain_rule(*case)}
    results["equation_1"], moves = equation_1(*case, rng)
    return results, moves


# The walk, from the results alone


def table(columns, rows):
    """Lines of cells under their heads, the first column to the left, at least two spaces between columns.

    columns: "HEAD: FORMAT | ...", the formats of a row's figures as str.format takes them. None becomes "-".
    """
    heads, forms = zip(*(column.split(": ") for column in columns.split(" | ")), strict=True)
    known = ({name: math.nan if value is None else value for name, value in row.items()} for row in rows)
    figures = [[form.format(**row) for form in forms] for row in known]
    lines = [heads, *(["-" if "nan" in cell else cell for cell in cells] for cells in figures)]
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"   {label:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        for label, *cells in lines
    )


def docstring(function, whole=False):
    """A function's docstring under its name; if not whole, its first paragraph and its indented formulas."""
    paragraphs = inspect.getdoc(function).split("\n\n")
    shown = "\n".join(p for i, p in enumerate(paragraphs) if whole or i == 0 or p.startswith(" "))
    return f"   {function.__name__}\n{textwrap.indent(shown, 6 * ' ')}\n"


def equations_text(results):
    """Parts 1 to 4 of the walk."""
    forms, training, limit = results["forms"], results["training_temperature"], results["limit"]
    equations = (proof1.softmax_with_temperature, proof1.loss_printed, proof1.loss_corrected, *FORMS.values())
    ends = {"printed_5": limit["limits"]["printed_5"], "corrected_5": limit["limits"]["corrected"]}
    limit_row = {"lead": "limit", "one_minus_p_k": 0, "one_minus_p_k_float32": 0, "forms": ends}
    differences = table(
        "T: {T} | (4) printed: {off[printed_4]:.1e} | (4) corrected: {off[corrected_4]:.1e} | "
        "(5) printed: {off[printed_5]:.1e} | (5) corrected: {off[corrected_5]:.1e} | "
        "d(-ln p_k): {off[cross_entropy]:.1e} | engine, p_k: {off[engine_probability]:.1e} | "
        "engine, loss: {off[engine_loss]:.1e}",
        forms,
    )
    sums = table(
        "T: {T} | p_k: {p_k:.6f} | (4) printed: {sums_times_T[printed_4]:.6f} | "
        "2 p_k: {sums_stated_times_T[printed_4]:.6f} | (5) printed: {sums_times_T[printed_5]:.6f} | "
        "p_k + 10 p_k^2: {sums_stated_times_T[printed_5]:.6f} | (5) corrected: {sums_times_T[corrected_5]:.0e} | "
        "engine, loss: {sums_times_T[engine_loss]:.0e}",
        forms,
    )
    certainty = table(
        "lead / T: {lead} | 1 - p_k: {one_minus_p_k:.2e} | in float32: {one_minus_p_k_float32:.2e} | "
        "printed, i = k: {forms[printed_5][0]:.2e} | printed, i != k: {forms[printed_5][1]:.2e} | "
        "corrected, i = k: {forms[corrected_5][0]:.2e} | corrected, i != k: {forms[corrected_5][1]:.2e}",
        [*limit["rows"], limit_row],
    )
    ratios = table(
        "m: {margin} | ratio: {ratio:.3e} | predicted: {predicted:.3e} | 1/T: {one_over_T:.3e}", training["rows"]
    )
    return f"""\
1. The equations
   n      the number of classes; i and j are any of them, k is the target
   x      the n logits, the input of the softmax
   T      the temperature, T > 0
   p      softmax(x / T), the n probabilities, see (2)
   d_ik   1 if i = k, else 0
   f, S   exp(x_k / T) and sum_j exp(x_j / T): p_k = f / S, of which (4) and (5) are the derivative
   f', S' the derivatives of f and S by x_i: f' = d_ik f / T and S' = exp(x_i / T) / T

{chr(10).join(map(docstring, equations))}
2. Which of them are right
   Each form against finite differences, which know no calculus, in decimals of {DIGITS} digits: of the loss
   -ln p_k for d(-ln p_k) and for the loss of the engine, of p_k for the others. The figure is the largest
   difference over the largest true entry. Below 1e-12: equal, to the rounding of float64. Above 1: wrong.
   It is the figure of the worst of {SAMPLES} random vectors of logits at each T. For the printed forms that is the
   most confident vector, where it is 2 p_k / (1 - p_k): these figures go up and down with the draw, not with T.

{differences}

   A shift common to all logits changes no probability, so a true gradient sums to 0 over i. T times the sum,
   for the first of the vectors at each T. All sums are in float64: those of (5) corrected and of the engine are
   0 but for its rounding.

{sums}

3. What the slip hides: a confident network, p_k -> 1
   The target's logit leads nine equal others. T times the derivative of p_k by x_i, by (5) as printed and as
   corrected. The last line is the limit of that derivative, times T, as p_k -> 1.

{certainty}

   The true derivative dies out: the softmax is saturated. The printed (5) never does. T times the gradient of
   the loss -ln p_k, which is p_k - 1 at k, dies out too; in float32 p_k rounds to 1, and it is exactly 0.

4. What training at T = {training["T"]} does to the gradient at test, where T is 1
   u is a vector of n logits, as x is; e_k is 1 at k and 0 elsewhere; |v|_1 is the sum of all |v_i|.

{docstring(proof1.margin)}
{docstring(proof1.gradient_ratio, whole=True)}
{ratios}

   predicted: T exp(-(T - 1) m). Nine equal rivals here: the two meet as the margin m grows. The proof expects
   1/T at any margin. But a small margin makes the gradient larger, and a large one makes it vanish.
"""


def pixels_text(results):
    """Parts 5 and 6 of the walk."""
    rows = [row | {"one_over_T": 1 / row["T"]} for row in results["chain_rule"]]
    low, high = (next(row for row in rows if row["T"] == T) for T in (1, TRAINED_AT))
    names = ("largest_entry", "one_over_T", "one_minus_p_k", "direction")
    growth, *factors = (f"{high[name] / low[name]:.4g}" for name in names)
    found = results["equation_1"]
    smallest, whole, noise = found["steps"][0], found["steps"][-1], found["with_noise"]
    entries = table(
        "T: {T} | off, scaled: {off_scaled:.1e} | off, plain: {off_plain:.1e} | largest: {largest_entry:.1e} | "
        "1/T: {one_over_T:.1e} | 1 - p_k: {one_minus_p_k:.1e} | direction: {direction:.1e}",
        rows,
    )
    steps = table(
        "part: {fraction} | off: {off:.1e} | curve: {curvature:.1e} | switches: {switches:.1e} | "
        "under 10 %: {share_close:.0%} | wrong sign: {share_wrong_sign:.0%} | rank corr.: {rank:.2f}",
        [*found["steps"], noise | {"fraction": "noise"}],
    )
    room = table(
        "value to: {to} | pixels: {pixels} | |gradient|: {gradient:.2f} | |predicted|: {predicted:.2f} | "
        "|actual|: {actual:.2f}",
        found["room"],
    )
    picks = table(
        "picked by: {by} | no room: {no_room:.1f} | best: {among_best:.1f}",
        [{"by": "gradient"} | found["picks"]["gradient"], {"by": "(1)"} | found["picks"]["predicted"]],
    )
    return f"""\
5. From the logits to the pixels
{docstring(proof1.input_gradient)}
   {results["weights"]}, test images {", ".join(map(str, results["images"]))}.
   L is the loss -ln p_k; e_k is 1 at k and 0 elsewhere. J^T (p - e_k) / T with J from ten backward passes,
   against two maps of the engine: the scaled one, and the gradient of the loss, which subtracts 1 from p_k as
   written. All float64. Then the largest entry of the map, and its three factors: 1/T; 1 - p_k, the saturation;
   and the direction, the largest entry of J^T v with v = (p - e_k) / (1 - p_k). v is -1 at k and shares out 1
   among the other classes, the more evenly the higher T is. Geometric means of the images, which multiply as the
   entries do.

{entries}

   The same weights, the same images: from T = 1 to T = {TRAINED_AT} the largest entry is multiplied by
   {growth} = {factors[0]} (1/T) * {factors[1]} (saturation) * {factors[2]} (direction).

6. Equation (1): does the gradient say what a step will do?
{docstring(proof1.predicted_change)}
   Here the paper's x is the image, and x[m][n] the pixel in row m and column n.
   {found["moves"]} moves: one pixel, up to {MAXIMUM:g} or down to {MINIMUM:g}, and only part of the way.
   off: the error over the larger of prediction and change. It has two parts: the curve of the loss, and ReLUs and
   pools that switch on the way. Medians. Then the share of moves off by less than 10 %, the share of wrong signs,
   and the rank correlation.

{steps}

   The whole way, {whole["share_close"]:.0%} of the predictions are good to 10 %; the larger part of the error is
   {"the switches" if whole["switches"] > whole["curvature"] else "the curve of the loss"}. With \
{smallest["fraction"]:g} of the way it is {smallest["share_close"]:.0%}. The last line is that same step
   on the same images with faint noise: {noise["share_close"]:.0%}. What the noise takes away is ties. In a flat
   background the inputs of a pool are equal, and there the loss has a kink and no gradient.

   No room: the whole way up, by the value of the pixel. The figures are median places among the image's pixels,
   0 the smallest and 1 the largest.

{room}

   Of {PICKED} pixels picked, those with less than 0.1 to go (no room), and those among the {PICKED} that raise the
   loss most, each alone and the whole way (best). Means of the images. By gradient is Algorithm 1; by (1) is by
   gradient * step, which is 0 for a full pixel.

{picks}
"""


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
    figure, ((own, rival),) = common.figure(1, 2, width=5, height=4.4)
    near_0 = rival.inset_axes((0.14, 0.6, 0.55, 0.3))
    for axes, i in (own, 0), (rival, 1), (near_0, 1):
        for name, style in styles.items():
            axes.plot(p_k, [FORMS[name](x, 0, 1)[i] for x in logits], **style)
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    shared = {"xlabel": "probability of the target, $p_k$", "ylim": (-0.1, 2.1)}
    own.set(title="the target's own logit, i = k", ylabel=r"$T \; \partial p_k / \partial x_i$", **shared)
    rival.set(title="a rival's logit, i ≠ k", **shared)
    near_0.set(ylim=(-0.04, 0.04), yticks=(-0.03, 0, 0.03))
    near_0.set_title("near 0, magnified: (4) has the wrong sign", fontsize=9)
    near_0.tick_params(labelsize=8)
    own.text(0.55, 1.25, "(4) and (5) as printed\nare equal here: $p_k (1 + p_k)$", ha="right")
    own.legend(frameon=False, loc="upper left", handlelength=3.5)
    figure.suptitle(
        "Proof 1: the true gradient dies out as the network grows confident, the printed (5) does not\n"
        "ten classes: the target, and nine equal rivals"
    )
    common.save_figure(path, figure)


def draw_equation_1(moves, path):
    """Predicted against actual change, absolute values, one panel a step; what has the wrong sign stands out."""
    panels, highest = range(len(FRACTIONS))[-3:], 1
    figure, (panels_axes,) = common.figure(1, len(panels), width=4.3, height=4.3)
    for axes, i in zip(panels_axes, panels, strict=True):
        scales = [np.abs(m["gradient"]).max() * FRACTIONS[i] for m in moves]
        predicted, actual = (
            np.concatenate([m[name][i].reshape(-1) / scale for m, scale in zip(moves, scales, strict=True)])
            for name in ("predicted", "actual")
        )
        for sign, color, label in ((1, "tab:blue", "sign as predicted"), (-1, "tab:red", "wrong sign")):
            chosen = np.sign(predicted) * np.sign(actual) == sign
            x, y = np.abs(predicted[chosen]), np.abs(actual[chosen])
            axes.loglog(x, y, ".", ms=3, alpha=0.5, color=color, label=label)
        axes.axline((1e-3, 1e-3), (1, 1), color="0.3", lw=1, label="equation (1)")
        axes.set(title=f"{100 * FRACTIONS[i]:g} % of the way", xlabel="|predicted|", xlim=(1e-6, 2))
        highest = max(highest, np.abs(actual).max())
    for axes in panels_axes:
        axes.set_ylim(1e-6, 2 * highest)
    panels_axes[0].set_ylabel("|actual change of the loss|")
    panels_axes[0].legend(frameon=False, markerscale=3, loc="upper left")
    figure.suptitle("Equation (1): one pixel moved; both axes over (largest gradient of the image) × (part of the way)")
    common.save_figure(path, figure)


def name_of(options):
    """What the network is called in the names of files; --seed is not its, but that of the samples."""
    return Path(options.weights).stem if options.weights else options.network or "standard"


def main(options):
    rng, found, missing = np.random.default_rng(options.seed), None, None
    results = {
        "forms": compare_forms(rng, options.device),
        "limit": limit_of_certainty(),
        "training_temperature": training_temperature(),
    }
    path, name = options.weights, options.network or "standard"
    try:
        path = path or common.find_weights(name, options.dataset, options.out)
        network = common.load_network(path, options.device, options.ties, np.float64)
        dataset = common.load_data(options.dataset)
        found, moves = pixels(network, dataset.test_images, dataset.test_labels, options.images, rng)
        results |= {"weights": str(path), "trained_at": trained_at(path), "ties": options.ties} | found
    except common.USER_ERRORS as error:
        # Whatever is wrong with the network, the first four parts are complete without it.
        missing = error
        results["parts_5_and_6_missing"] = str(error)
    common.write_json(options.json, common.environment(options) | results)

    pictures = [options.out / "proof1.png"]
    print(equations_text(results))
    draw_slip(pictures[0])
    if found:
        pictures.append(options.out / f"equation1_{name_of(options)}.png")
        print(pixels_text(results))
        draw_equation_1(moves, pictures[1])
    print(f"   Written: {', '.join(map(str, [*pictures, options.json]))}")
    if missing:
        if path or options.network:
            raise missing
        print(f"\n   Parts 5 and 6 need a trained network, and there is none yet:\n   {missing}.")
        if (common.RESULTS / "mnist" / f"{name}.npz").exists():
            print("   With the networks that come with the project they run at once:")
            print("   python -m experiments.proof1 --dataset mnist")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser, default=None)  # one that is missing is an error only if it was asked for
    parser.add_argument("--images", type=common.positive(int), default=2, help="of parts 5 and 6; default: 2")
    common.ties_argument(parser)
    common.run(main, parser, lambda o: f"proof1_{name_of(o)}.json", resumes=False)
