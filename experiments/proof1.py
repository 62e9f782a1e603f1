"""Proof 1 step by step: the equations as printed and as corrected, measured, and on to where the paper stops.

`python -m experiments.proof1` prints the walk. Parts 1 to 4 need no network: the equations of minicnn/proof1.py against
finite differences in decimals and against the engine's own gradients. Parts 5 and 6 take a trained network and go from
the logits to the pixels and to equation (1).
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
DIGITS = 50  # of the finite differences; with STEP they leave about 30 correct ones
STEP = Decimal("1e-15")
FRACTIONS = (1e-5, 1e-3, 0.01, 0.1, 1.0)  # of the way from a pixel's value to the maximum or minimum
MINIMUM, MAXIMUM = 0.0, 1.0
VALUES = (0.0, 0.5, 0.9, 1.0)  # upper ends of ranges of pixel values: background, dark, bright, near the maximum
BUDGET = 100
BATCH = 128

FORMS = {
    "corrected_4": proof1.derivative_4_corrected,
    "corrected_5": proof1.derivative_5_corrected,
    "cross_entropy": proof1.cross_entropy_gradient,
    "printed_4": proof1.derivative_4_printed,
    "printed_5": proof1.derivative_5_printed,
}


# Parts 1 to 4: logits alone


def compare_forms(rng, device="cpu", samples=20):
    """Every form against finite differences, one row per temperature.

    rng draws `samples` vectors of 10 logits of spread 3 T, so that p is neither flat nor certain at any T. A form's
    figure is the largest |form - truth| over the largest |truth| of a vector, the worst over the vectors; the truth is
    d(-ln p_k)/dx for "cross_entropy" and "engine_loss", dp_k/dx for all the others. The sums over i are those of the
    first vector, times T.
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


def training_temperature(T=20):
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
    worst of the images. largest_entry and one_minus_p_k are medians over the images.
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
                "largest_entry": float(np.median(np.abs(ours).max(axis=1))),
                "one_minus_p_k": float(np.median([proof1.saturation(*case[1:]) for case in cases])),
            }
        )
    return rows


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
    print("   x: the logits. T > 0: the temperature. k: the target class. d_ik: 1 if i = k, else 0.\n")
    for function in (proof1.softmax_with_temperature, proof1.loss_printed, proof1.loss_corrected, *FORMS.values()):
        _show_docstring(function)

    print("2. Which of them are right")
    print(f"   Each form against finite differences, which know no calculus, in decimals of {DIGITS} digits.")
    print("   The figure is the largest difference over the largest true entry. Below 1e-12: equal, to")
    print("   the rounding of float64. Above 1: wrong.\n")
    columns = {
        "(4) right": "corrected_4",
        "(5) right": "corrected_5",
        "d(-ln p_k)": "cross_entropy",
        "engine p_k": "engine_probability",
        "engine loss": "engine_loss",
        "(4) printed": "printed_4",
        "(5) printed": "printed_5",
    }
    _show_row("T", columns)
    for row in results["forms"]:
        _show_row(row["T"], [f"{row['off'][name]:.1e}" for name in columns.values()])
    print("\n   A shift common to all logits changes no probability, so a true gradient sums to 0")
    print("   over i. T times the sum, for one vector of logits at each T:\n")
    _show_row("T", ("p_k", "truth", "engine loss", "(4) printed", "2 p_k", "(5) printed", "p_k+10 p_k^2"))
    for row in results["forms"]:
        sums, stated = row["sums_times_T"], row["sums_stated_times_T"]
        figures = [f"{sums[name]:.0e}" for name in ("corrected_5", "engine_loss")]
        figures += [f"{sums['printed_4']:.6f}", f"{stated['printed_4']:.6f}"]
        figures += [f"{sums['printed_5']:.6f}", f"{stated['printed_5']:.6f}"]
        _show_row(row["T"], [f"{row['p_k']:.6f}", *figures])

    print("\n3. What the slip hides: a confident network, p_k -> 1")
    print("   The target's logit leads nine equal others. T times each derivative:\n")
    limit = results["limit"]
    _show_row("lead / T", ("1 - p_k", "in float32", "true, i = k", "true, i != k", "(5), i = k", "(5), i != k"))
    for row in limit["rows"]:
        pairs = [*row["forms"]["corrected_5"], *row["forms"]["printed_5"]]
        figures = [row["one_minus_p_k"], row["one_minus_p_k_float32"], *pairs]
        _show_row(row["lead"], [f"{figure:.2e}" for figure in figures])
    ends = [*limit["limits"]["corrected"], *limit["limits"]["printed_5"]]
    _show_row("limit", ["", "", *(f"{end:g}" for end in ends)])
    print("\n   The true gradient dies out: the softmax is saturated. The printed (5) never does.")
    print("   And in float32 p_k rounds to 1: what is left of the gradient at k is then 0.\n")

    training = results["training_temperature"]
    print(f"4. What training at T = {training['T']} does to the gradient at test, where T is 1")
    _show_docstring(proof1.gradient_ratio)
    _show_row("margin", ("ratio", "predicted", "1/T"))
    for row in training["rows"]:
        _show_row(row["margin"], [f"{row[name]:.3e}" for name in ("ratio", "predicted", "one_over_T")])
    print("\n   predicted: T exp(-(T - 1) m). Nine equal rivals here: the two meet as the margin grows.")
    print("   The proof expects 1/T at any margin. But a small margin makes the gradient larger, and a")
    print("   large one makes it vanish.")


def show_pixels(results):
    """Parts 5 and 6 in the terminal."""
    rows, found = results["chain_rule"], results["equation_1"]
    print("\n5. From the logits to the pixels")
    _show_docstring(proof1.input_gradient)
    print(f"   {results['weights']}, test images {', '.join(map(str, results['images']))}.")
    print("   J^T (p - e_k) / T with J from ten backward passes, against two maps of the engine: the")
    print("   scaled one, and backward of the loss, which subtracts 1 from p_k as written. All float64.")
    print("   Then the largest entry of the map, and 1 - p_k; medians of the images.\n")
    _show_row("T", ("off, scaled", "off, plain", "largest", "1 - p_k"))
    for row in rows:
        names = ("off_scaled", "off_plain", "largest_entry", "one_minus_p_k")
        _show_row(row["T"], [f"{row[name]:.1e}" for name in names])
    low, high = rows[0], max(rows, key=lambda row: row["largest_entry"])
    growth, saturation = (high[name] / low[name] for name in ("largest_entry", "one_minus_p_k"))
    print(f"\n   The same weights, the same images: from T = {low['T']} to T = {high['T']} the largest entry is")
    print(
        f"   multiplied by {growth:.1e}: 1/T alone gives {low['T'] / high['T']:g}, saturation alone {saturation:.1e}."
    )

    print("\n6. Equation (1): does the gradient say what a step will do?")
    _show_docstring(proof1.predicted_change)
    print(f"   {found['moves']} moves: one pixel, up to {MAXIMUM:g} or down to {MINIMUM:g}, and only part of the way.")
    print("   off: the error over the larger of prediction and change. It has two parts: the curve of the")
    print("   loss, and ReLUs and pools that switch on the way. Medians. Then the share of moves off by")
    print("   less than 10 %, the share of wrong signs, and the rank correlation.\n")
    _show_row("part", ("off", "curve", "switches", "under 10 %", "wrong sign", "rank corr."))
    for row in found["steps"]:
        _show_step(f"{row['fraction']:g}", row)
    _show_step("noise", found["with_noise"])
    smallest, whole = found["steps"][0], found["steps"][-1]
    good = [f"{100 * row['share_close']:.0f} %" for row in (whole, smallest, found["with_noise"])]
    cause = "the switches" if whole["switches"] > whole["curvature"] else "the curve of the loss"
    print(f"\n   The whole way, {good[0]} of the predictions are good to 10 %; the larger part of the error is")
    print(f"   {cause}. With {smallest['fraction']:g} of the way it is {good[1]}. The last line is that same step")
    print(f"   on the same images with faint noise: {good[2]}. What the noise takes away is ties. In a flat")
    print("   background the inputs of a pool are equal, and there the loss has a kink and no gradient.")

    print("\n   No room: the whole way up, by the value of the pixel. The figures are median places among")
    print("   the image's pixels, 0 the smallest and 1 the largest.\n")
    _show_row("value", ("pixels", "|gradient|", "|predicted|", "|actual|"))
    for row in found["room"]:
        places = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("gradient", "predicted", "actual")]
        _show_row(f"to {row['to']:g}", [row["pixels"], *places])
    print(f"\n   Of {BUDGET} pixels picked, those with less than 0.1 to go (no room), and those among the {BUDGET}")
    print("   that raise the loss most, each alone and the whole way (best). Means of the images.\n")
    _show_row("", ("by gradient", "by (1)"))
    for name, label in (("no_room", "no room"), ("among_best", "best")):
        _show_row(label, [f"{found['picks'][score][name]:.1f}" for score in ("gradient", "predicted")])
    print("\n   By gradient is Algorithm 1. By (1) is by gradient * step, which is 0 for a full pixel.")


def _show_step(label, row):
    figures = [f"{row[name]:.1e}" for name in ("off", "curvature", "switches")]
    figures += [f"{100 * row[name]:.0f} %" for name in ("share_close", "share_wrong_sign")]
    _show_row(label, [*figures, f"{row['rank']:.2f}"])


def _show_docstring(function):
    """The docstring's first paragraph, and its indented formulas, as the source has them."""
    paragraphs = inspect.getdoc(function).split("\n\n")
    shown = [p for i, p in enumerate(paragraphs) if i == 0 or p.startswith(" ")]
    print(f"   {function.__name__}")
    print(textwrap.indent("\n".join(shown), "      ") + "\n")


def _show_row(head, cells):
    print(f"   {head!s:<8}" + "".join(f"{cell:>13}" for cell in cells))


def draw_slip(path):
    """The truth and the printed forms against p_k, for i = k and i != k, with nine equal rivals; times T."""
    p_k = np.linspace(0.001, 0.999, 400)
    logits = [np.array([np.log(9 * p / (1 - p))] + [0.0] * 9) for p in p_k]
    styles = {
        "corrected_5": {"label": "truth", "color": "tab:green", "lw": 2.5},
        "printed_4": {"label": "(4) as printed", "color": "tab:orange", "lw": 2, "ls": (0, (4, 4))},
        "printed_5": {"label": "(5) as printed", "color": "tab:red", "lw": 2, "ls": (4, (4, 4))},
    }
    figure, (axes,) = common.figure(1, 2, width=5, height=4)
    for i, title in enumerate(("the target's own logit, i = k", "another logit, i ≠ k")):
        for name, style in styles.items():
            axes[i].plot(p_k, [FORMS[name](x, 0, 1)[i] for x in logits], **style)
        axes[i].axhline(0, color="0.6", lw=0.8, zorder=0)
        axes[i].set(title=title, xlabel="probability of the target, $p_k$")
    axes[0].set_ylabel(r"$T \; \partial p_k / \partial x_i$")
    axes[0].legend(frameon=False)
    figure.suptitle("Proof 1: the true gradient dies out as the network grows confident, the printed one does not")
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


def main(options):
    rng = np.random.default_rng(options.seed)
    results = {
        "forms": compare_forms(rng, options.device),
        "limit": limit_of_certainty(),
        "training_temperature": training_temperature(),
    }
    show_equations(results)
    draw_slip(options.out / "proof1.png")

    # Not earlier: who has no trained network yet still gets the first four parts before the error says how to get one.
    path = common.find_weights(options)
    network = common.load_network(path, options, dtype=np.float64)
    dataset = common.load_data(options)
    chosen = correctly_classified(network, dataset.test_images, dataset.test_labels, options.images)
    images, labels = dataset.test_images[chosen].astype(np.float64), dataset.test_labels[chosen]
    results |= {"weights": str(path), "ties": options.ties, "images": chosen}
    results["chain_rule"] = chain_rule(network, images, labels)
    results["equation_1"], moves = equation_1(network, images, labels, rng)
    show_pixels(results)
    draw_equation_1(moves, options.out / "equation1.png")
    common.write_json(options.json, common.environment(options) | results)
    print(f"\n   Pictures: {options.out / 'proof1.png'}, {options.out / 'equation1.png'}. Figures: {options.json}")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--network", choices=list(common.NETWORKS), default="standard")
    which.add_argument("--weights", metavar="FILE.npz", help="a weight file instead of a network trained here")
    parser.add_argument("--images", type=common.positive(int), default=2, help="of parts 5 and 6; default: 2")
    parser.add_argument("--ties", choices=("first", "all"), default="all", help="max-pool gradient; all as the author")
    common.run(main, parser)
