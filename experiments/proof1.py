"""Proof 1 measured: the equations of minicnn/paper/proof1.py as printed and as corrected, and where the paper stops.

experiments/proof1.ipynb explains them, with pictures and exercises. Parts 1 to 4 need no network. Parts 5 and 6 take a
trained one and go from the logits to the pixels and to equation (1). Where none is found and none was asked for, the
first four are the result. --symbolic instead proves the corrected equations with SymPy, exactly and for any number of
classes, and refutes the printed ones (minicnn/paper/proof1_symbolic.py).
"""

import textwrap

import numpy as np

from experiments import common
from minicnn.paper import proof1_measured as measured


def section(title, columns, rows, note):
    """A table under its title, the first column to the left, the others to the right, and a note under it.

    columns: "HEAD: FORMAT | ...", the formats of a row's figures as str.format takes them.
    """
    heads, forms = zip(*(column.split(": ") for column in columns.split(" | ")), strict=True)
    lines = [heads, *([form.format(**row) for form in forms] for row in rows)]
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = "\n".join(
        f"   {label:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        for label, *cells in lines
    )
    return f"{title}\n{table}\n{textwrap.fill(note, 80, initial_indent='   ', subsequent_indent='   ')}\n"


def equations_text(results):
    """Parts 1 to 4."""
    forms, training, limit = results["forms"], results["training_temperature"], results["limit"]
    ends = {"printed_5": limit["limits"]["printed_5"], "corrected_5": limit["limits"]["corrected"]}
    limit_row = {"lead": "limit", "one_minus_p_k": 0, "one_minus_p_k_float32": 0, "forms": ends}
    sections = (
        section(
            "1. Each form against finite differences",
            "T: {T} | (4) printed: {off[printed_4]:.0e} | right: {off[corrected_4]:.0e} | "
            "(5) printed: {off[printed_5]:.0e} | right: {off[corrected_5]:.0e} | of L: {off[cross_entropy]:.0e} | "
            "engine p_k: {off[engine_probability]:.0e} | L: {off[engine_loss]:.0e}",
            forms,
            f"The largest difference over the largest true entry, the worst of {measured.SAMPLES} vectors of logits. "
            "Below 1e-12: equal, to the rounding of float64. Above 1: wrong. Of L = -ln p_k: (p - e_k) / T. Engine: "
            "what its backward pass gives for p_k and for L.",
        ),
        section(
            "2. T times the sum over i, which is 0 for a true gradient",
            "T: {T} | p_k: {p_k:.4f} | (4) printed: {sums_times_T[printed_4]:.4f} | "
            "2 p_k: {sums_stated_times_T[printed_4]:.4f} | (5) printed: {sums_times_T[printed_5]:.4f} | "
            "p_k + 10 p_k^2: {sums_stated_times_T[printed_5]:.4f} | engine: {sums_times_T[engine_loss]:.0e}",
            forms,
            "Of the first of the vectors.",
        ),
        section(
            "3. T dp_k/dx_i by (5), while the target's logit leads nine equal others",
            "lead / T: {lead} | 1 - p_k: {one_minus_p_k:.2e} | in float32: {one_minus_p_k_float32:.2e} | "
            "printed, k: {forms[printed_5][0]:.1e} | i != k: {forms[printed_5][1]:.1e} | "
            "right, k: {forms[corrected_5][0]:.1e} | i != k: {forms[corrected_5][1]:.1e}",
            [*limit["rows"], limit_row],
            "The true derivative dies out: the softmax is saturated. The printed one never does.",
        ),
        section(
            f"4. What training at T = {training['T']} leaves of the gradient at test, where T is 1",
            "margin m: {margin} | ratio: {ratio:.3e} | predicted: {predicted:.3e} | 1/T: {one_over_T}",
            training["rows"],
            "ratio: T (1 - p_k(T u)) / (1 - p_k(u)), nine equal rivals. predicted: T exp(-(T - 1) m). 1/T: what the "
            "proof suggests.",
        ),
    )
    return "\n".join(["The equations and their symbols: minicnn/paper/proof1.py.\n", *sections])


def pixels_text(results):
    """Parts 5 and 6."""
    rows = [row | {"one_over_T": 1 / row["T"]} for row in results["chain_rule"]]
    low, high = (next(row for row in rows if row["T"] == T) for T in (1, measured.TRAINED_AT))
    names = ("largest_entry", "one_over_T", "one_minus_p_k", "direction")
    growth = "{} = {} * {} * {}".format(*(f"{high[name] / low[name]:.4g}" for name in names))
    found, picks = results["equation_1"], results["equation_1"]["picks"]
    smallest, whole, noise = found["steps"][0], found["steps"][-1], found["with_noise"] | {"fraction": "noise"}
    larger = "the switches" if whole["switches"] > whole["curvature"] else "the curve"
    sections = (
        section(
            "5. From the logits to the pixels: J^T (p - e_k) / T",
            "T: {T} | off, scaled: {off_scaled:.1e} | off, plain: {off_plain:.1e} | largest: {largest_entry:.1e} | "
            "1/T: {one_over_T:.1e} | 1 - p_k: {one_minus_p_k:.1e} | direction: {direction:.1e}",
            rows,
            f"{results['weights']}, test images {', '.join(map(str, results['images']))}. off: from the engine's maps. "
            "The largest entry is 1/T times the saturation 1 - p_k times the direction, the largest entry of "
            f"J^T (p - e_k) / (1 - p_k). From T = 1 to T = {measured.TRAINED_AT} it is multiplied by {growth}.",
        ),
        section(
            "6. Equation (1), gradient * step: one pixel moved, part of the way to 0 or 1",
            "part: {fraction} | off: {off:.1e} | curve: {curvature:.1e} | switches: {switches:.1e} | "
            "under 10 %: {share_close:.0%} | wrong sign: {share_wrong_sign:.0%} | rank corr.: {rank:.2f}",
            [*found["steps"], noise],
            f"{found['moves']} moves; off: error over the larger of prediction and change, by the curve of the loss "
            f"and by ReLUs and pools that switch, medians. Good to 10 %: {whole['share_close']:.0%} the whole way, the "
            f"larger part of the error is {larger}. {smallest['share_close']:.0%} with {smallest['fraction']:g} of it: "
            f"where pools tie, the loss has no derivative. {noise['share_close']:.0%} with faint noise on the image, "
            "which leaves no ties.",
        ),
        section(
            "   No room: the whole way up, by the value of the pixel",
            "value to: {to} | pixels: {pixels} | gradient: {gradient:.2f} | predicted: {predicted:.2f} | "
            "actual: {actual:.2f}",
            [row for row in found["room"] if row["pixels"]],
            "Median places by absolute value among the image's pixels, from 0, the smallest, to 1, the largest.",
        ),
        section(
            f"   {measured.PICKED} pixels picked by the gradient, as Algorithm 1 does, and by equation (1)",
            "picked by: {by} | no room: {no_room:.1f} | best: {among_best:.1f}",
            [{"by": "gradient"} | picks["gradient"], {"by": "(1)"} | picks["predicted"]],
            f"Those with less than 0.1 to go, and those among the {measured.PICKED} that raise the loss most.",
        ),
    )
    return "\n".join(sections)


def symbolic_text(rows):
    """What --symbolic finds."""
    proved = section(
        "Proof 1 in SymPy: the corrected statements, then the printed ones",
        "statement: {statement} | any n: {any_n!s} | n = 10: {n_10!s}",
        rows,
        "Any n: the sum over the classes stays a symbol. n = 10: it is written out. f = exp(x_k/T), "
        "S = sum_j exp(x_j/T), f' and S' their derivatives by x_i, d_ik = 1 for i = k, else 0; r is the largest logit "
        "but x_k, m = x_k - r, c = sum_{j != k} exp((x_j - r)/T). gradient_ratio: T (1 - p_k(T u)) / (1 - p_k(u)), "
        "p at temperature 1; its prediction: T exp(-(T - 1) m); the factor: "
        "(c_T/c) (1 + c exp(-m)) / (1 + c_T exp(-T m)), where c is that of u and c_T that of T u. The code: "
        "minicnn/paper/proof1_symbolic.py.",
    )
    refutation = "   {statement}\n       {at}, T = 1: {right}, where the left side is {left}"
    refuted = [refutation.format(**row) for row in rows if not row["n_10"]]
    return "\n".join([proved, "Counterexamples, for i = k = 0 and for i = 1", *refuted, ""])


def draw_slip(path):
    """The printed forms and the truth against p_k, for i = k and i != k, with nine equal rivals; times T."""
    p_k = np.linspace(0.001, 0.999, 400)
    logits = [np.array([np.log(9 * p / (1 - p))] + [0.0] * 9) for p in p_k]
    # Where the two printed forms lie on each other, the dashes leave the broad line below them to be seen.
    styles = {
        "printed_4": {"label": "(4) as printed", "color": "tab:orange", "lw": 5, "alpha": 0.6},
        "printed_5": {"label": "(5) as printed", "color": "tab:red", "lw": 1.8, "ls": (0, (5, 3))},
        "corrected_5": {
            "label": "corrected: the truth",
            "color": "tab:green",
            "ls": "-",
            "marker": "o",
            "markevery": 40,
        },
    }
    figure, ((own, rival),) = common.figure(1, 2, width=5, height=4.4)
    near_0 = rival.inset_axes((0.14, 0.6, 0.55, 0.3))
    for axes, i in (own, 0), (rival, 1), (near_0, 1):
        for name, style in styles.items():
            axes.plot(p_k, [measured.FORMS[name](x, 0, 1)[i] for x in logits], **style)
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    shared = {"xlabel": "probability of the target, $p_k$", "ylim": (-0.1, 2.1)}
    own.set(title="the target's own logit, i = k", ylabel=r"$T \; \partial p_k / \partial x_i$", **shared)
    rival.set(title="a rival's logit, i ≠ k", **shared)
    near_0.set(ylim=(-0.04, 0.04), yticks=(-0.03, 0, 0.03))
    near_0.set_title("near 0, magnified: (4) has the wrong sign", fontsize=9)
    near_0.tick_params(labelsize=8)
    own.text(0.55, 1.25, "(4) and (5) as printed\nare equal here: $p_k (1 + p_k)$", ha="right")
    handles = own.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    common.head(
        figure,
        "Proof 1: the true gradient dies out as the network grows confident, the printed (5) does not\n"
        "ten classes: the target, and nine equal rivals",
    )
    common.save_figure(path, figure)


def draw_equation_1(moves, path):
    """Predicted against actual change, absolute values, one panel a step; what has the wrong sign stands out."""
    panels, highest = range(len(measured.FRACTIONS))[-3:], 1
    figure, (panels_axes,) = common.figure(1, len(panels), width=4.3, height=4.6)
    for axes, i in zip(panels_axes, panels, strict=True):
        fraction = measured.FRACTIONS[i]
        scales = [np.abs(m["gradient"]).max() * fraction for m in moves]
        predicted, actual = (
            np.concatenate([m[name][i].reshape(-1) / scale for m, scale in zip(moves, scales, strict=True)])
            for name in ("predicted", "actual")
        )
        for sign, style, label in (1, ".", "sign as predicted"), (-1, "x", "wrong sign"):
            chosen = np.sign(predicted) * np.sign(actual) == sign
            x, y = np.abs(predicted[chosen]), np.abs(actual[chosen])
            axes.loglog(x, y, style, ms=3, alpha=0.5, color="tab:blue" if sign == 1 else "tab:red", label=label)
        axes.axline((1e-3, 1e-3), (1, 1), color="0.3", lw=1, label="equation (1)")
        axes.set(title=f"{100 * fraction:g} % of the way", xlabel="|predicted|", xlim=(1e-6, 2))
        highest = max(highest, np.abs(actual).max())
    for axes in panels_axes:
        axes.set_ylim(1e-6, 2 * highest)
    panels_axes[0].set_ylabel("|actual change of the loss|")
    handles = panels_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, markerscale=3)
    common.head(
        figure, "Equation (1): one pixel moved; both axes over (largest gradient of the image) × (part of the way)"
    )
    common.save_figure(path, figure)


def name_of(options):
    """What the results are called in the names of files."""
    return "symbolic" if options.symbolic else common.chosen_name(options)


def of_network(network, dataset, count, rng):
    """Parts 5 and 6 on a network and the first `count` test images that it classifies correctly: their figures, and the
    moves of one pixel behind equation (1)."""
    chosen = measured.correctly_classified(network, dataset.test_images, dataset.test_labels, count)
    if len(chosen) < count:
        raise common.UsageError(f"the network classifies {len(chosen)} test images correctly: fewer than --images")
    case = network, dataset.test_images[chosen].astype(np.float64), dataset.test_labels[chosen]
    summary, moves = measured.equation_1(*case, rng)
    return {"images": chosen, "chain_rule": measured.chain_rule(*case), "equation_1": summary}, moves


def walk(options):
    """All parts, or the first four where there is no network."""
    rng = np.random.default_rng(options.seed)
    results = {
        "forms": measured.compare_forms(rng, options.device),
        "limit": measured.limit_of_certainty(),
        "training_temperature": measured.training_temperature(),
    }
    path = missing = None
    try:
        path = common.chosen_weights(options)
        network = common.load_chosen(path, options, dtype=np.float64)
        figures, moves = of_network(network, common.load_data(options.dataset), options.images, rng)
        results |= common.about_network(path, options) | figures
    except common.USER_ERRORS as error:
        # Whatever is wrong with the network, the first four parts are complete without it.
        missing = error
        results["parts_5_and_6_missing"] = str(error)
    common.write_results(options, results)

    pictures = [common.beside(options, "proof1.png")]
    print(equations_text(results))
    draw_slip(pictures[0])
    if not missing:
        pictures.append(common.beside(options, f"equation1_{name_of(options)}.png"))
        print(pixels_text(results))
        draw_equation_1(moves, pictures[1])
    print("   Written:", *pictures, options.json, sep="\n   ")
    if missing:
        if path or options.network:
            raise missing
        print(f"\n   Parts 5 and 6 need a trained network, and there is none yet:\n   {missing}.")


def main(options):
    if not options.symbolic:
        return walk(options)
    if options.weights or options.network:
        raise common.UsageError("--symbolic is about the equations alone: leave out --network and --weights")
    from minicnn.paper import proof1_symbolic as symbolic  # SymPy takes a second

    rows = [symbolic.verdict(statement) for statement in (*symbolic.IDENTITIES, *symbolic.SLIPS)]
    common.write_results(options, {"statements": rows})
    print(symbolic_text(rows))
    print(f"   Written: {options.json}")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    parser.add_argument("--images", type=common.positive(int), default=2, help="of parts 5 and 6; default: 2")
    common.ties_argument(parser)
    parser.add_argument("--symbolic", action="store_true", help="prove and refute with SymPy instead of measuring")
    common.run(main, parser, lambda o: f"proof1_{name_of(o)}.json", resumes=False)
