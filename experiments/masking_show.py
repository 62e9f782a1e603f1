"""Tables and pictures of experiments/masking.py."""

import numpy as np

from experiments import common
from minicnn.attacks import wilson_interval

COLORS = {
    "standard": "tab:blue",
    "temperature": "tab:orange",
    "distilled": "tab:green",
    "plain": "tab:red",
    "scaled": "tab:blue",
    "jacobian": "tab:green",
    "saturation": "tab:purple",
    "temperature term": "tab:brown",
}
CURVES = {
    "algorithm_1_scaled": ("Algorithm 1, scaled", "tab:blue", "-"),
    "algorithm_3_scaled": ("Algorithm 3, scaled", "tab:cyan", "-"),
    "algorithm_1_plain": ("Algorithm 1, plain", "tab:red", "-"),
    "algorithm_3_plain": ("Algorithm 3, plain", "tab:orange", "-"),
    "transfer": ("Algorithm 3's moves on standard", "tab:green", "--"),
    "random": ("random moves", "0.4", ":"),
}
VARIANTS = {
    "plain_float32": "plain float32",
    "plain_float64": "plain float64",
    "scaled_float32": "scaled float32",
    "plain_float32_at_T": "plain float32,\nloss at z / T",
}
BUDGETS = (1, 10, 30, 100, 300)


def table(header, rows):
    """Rows of cells under a header as lines of text: the first column to the left, the others to the right."""
    rows = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(["  " + line.rstrip() for line in lines])


def percent(successes, trials):
    """A share with its Wilson 95 % interval."""
    if not trials:
        return "no samples"
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:6.1%} ({low:.1%} to {high:.1%})"


def success(outcome):
    """The success rate of an outcome, as percent()."""
    return percent(outcome["succeeded"], outcome["attacked"])


def section(part, figures, folder):
    """What the report shows of a part: title, text, [(caption, path)] of the picture that show() has drawn, if any."""
    title, describe, draw = SHOWN[part]
    return title, describe(figures), [(title, folder / f"masking_{part}.png")] if draw else []


def show(part, figures, options):
    """Print a part as a table and write its picture, masking_PART.png, to options.out."""
    title, text, pictures = section(part, figures, options.out)
    print(f"\n{title}\n{text}", flush=True)
    for _, path in pictures:
        SHOWN[part][2](path, figures)
    if part == "gradient_budget":
        common.write_csv(options.out / "masking_budget.csv", budget_rows(figures))


def without_images(results):
    """Results less the figures of every image, which masking_budget.csv holds."""
    if not isinstance(results, dict):
        return results
    return {name: without_images(value) for name, value in results.items() if name != "by_image"}


def budget_rows(figures):
    """A dict for every network, T and image: log10 of the ratio and its terms."""
    terms = ("ratio", "temperature", "jacobian", "saturation")
    return [
        {"network": name, "T": budget["T"], "image": int(budget["by_image"]["image"][i])}
        | {term: round(float(budget["by_image"][term][i]), 5) for term in terms}
        for name, budgets in figures.items()
        for budget in budgets.values()
        for i in range(budget["images"])
    ]


# Tables


def describe_arithmetics(figures):
    rows = [
        [
            f"{network}, Algorithm {algorithm}, {VARIANTS[variant]}".replace("\n", " "),
            success(outcome),
            f"{outcome['zero_score_share']:.1%}",
            outcome["failed"],
            outcome["failed_with_a_map_of_zeros"],
            outcome["failed_painting_raster_order"],
        ]
        for network, algorithms in figures.items()
        for algorithm, variants in algorithms.items()
        for variant, outcome in variants.items()
    ]
    return table(["", "success", "zero maps", "failed", "of these zero map", "painted raster order"], rows)


def describe_control(figures):
    rows = [
        [
            f"s = {row['s']}",
            f"{row['decisions_that_differ']} of {row['decisions_compared']}",
            success(row["plain"]),
            success(row["scaled"]),
            f"{row['plain']['zero_score_share']:.1%}",
        ]
        for row in figures
    ]
    return table(["dense3 times", "decisions that differ", "plain", "scaled", "zero maps, plain"], rows)


def describe_budget(figures):
    header = [
        "log10 of size / standard's",
        "images",
        "1/T",
        "+ Jacobian",
        "+ (1 - p_k)",
        "= mean",
        "median",
        "5 %",
        "95 %",
    ]
    header += ["mean ratio", "ratio of means", "plain: zeros", "plain: ratio of means", "plain: median of others"]
    rows, lines = [], []
    for network, budgets in figures.items():
        for budget in budgets.values():
            name, plain = f"{network} at T = {budget['T']:g}", budget["plain"]
            exponents = [budget["terms"][t] for t in ("temperature", "jacobian", "saturation")]
            exponents += [
                budget["mean_of_log10"],
                budget["median"],
                budget["quantiles"]["5"],
                budget["quantiles"]["95"],
            ]
            exponents += [budget["log10_of_mean"], budget["log10_of_ratio_of_means"]]
            seen = plain["median_where_not_zero"]
            rows.append(
                [name, budget["images"], *(f"{x:+.2f}" for x in exponents), f"{plain['zero_share']:.1%}"]
                + ["none" if x is None else f"{x:+.2f}" for x in (plain["log10_of_ratio_of_means"], seen)]
            )
            lines += _remarks(network, name, budget)
    return "\n".join([table(header, rows), *lines])


def _times(exponent):
    return f"10^{abs(exponent):.1f} {'smaller' if exponent < 0 else 'larger'}"


def _remarks(network, name, budget):
    """Sentences on the paper's 10^10, and on how well the split and the prediction hold."""
    lines, measured = [], budget["measured"]
    if budget["T"] == 1:
        names = ("median", "log10_of_mean", "log10_of_ratio_of_means")
        median, mean, means = (_times(budget[statistic]) for statistic in names)
        share = budget["share_smaller_than_the_paper_says"]
        lines.append(
            f"  {network}: the paper says 10^10 times smaller; the median image says {median}, the mean of the ratios "
            f"{mean}, the ratio of the means {means}; {share:.1%} of the images lost more than 10^10"
        )
    if measured["images"]:
        lines.append(
            f"  {name}: the split is off plain float64 by {measured['median_difference']:.1e} (median), "
            f"{measured['largest_difference']:.1e} (largest) on the {measured['images']} images where that has digits"
        )
    if found := budget.get("prediction"):
        correlation = found["reference_correlation"]
        correlation = "none" if correlation is None else f"{correlation:.2f}"
        lines.append(
            f"  {network}: T exp(-(T - 1) m) says {found['median']:+.2f} (median); measured "
            f"{found['same_network_median']:+.2f} against its own loss at z / T (median image off by "
            f"{found['same_network_median_difference']:.2f}) and {budget['median']:+.2f} against standard (off by "
            f"{found['reference_median_difference']:.2f}, correlation {correlation})"
        )
    return lines


def describe_two_by_two_by_two(figures):
    rows = [
        [
            row["network"],
            f"{row['train_T']:g}",
            "yes" if row["distilled"] else "no",
            f"{row['test_T']:g}",
            success(row["plain"]),
            success(row["scaled"]),
        ]
        for row in figures
    ]
    return table(["network", "trained at T", "distilled", "attacked at T", "plain", "scaled"], rows)


def describe_pixels(figures):
    rows = []
    for network, curves in figures.items():
        for name, curve in curves.items():
            counts = curve["succeeded"]
            budgets = [*BUDGETS, len(counts) - 1]
            rows.append([f"{network}: {CURVES[name][0]}", *(f"{counts[n] / curve['attacked']:.1%}" for n in budgets)])
    return table(["success after moves", *map(str, budgets)], rows)


def describe_verdict(figures):
    lines = []
    for network, arithmetics in figures.items():
        for arithmetic, found in arithmetics.items():
            lines.append(f"  {network}, {arithmetic}: {found['sentence']}")
            lines += [
                f"    {'pass' if check['passed'] else 'FAIL'}  {check['check']}: {check['ground']}"
                for check in found["checks"]
            ]
    return "\n".join(lines)


def describe_cost(figures):
    rows = [
        [
            f"Algorithm {algorithm}",
            f"{row['mean_moves']:.1f}",
            f"{row['forwards']:,.1f}",
            f"{row['backwards']:.1f}",
            f"{row['forwards_at_most']:,}",
            row["backwards_at_most"],
            row["paper"],
        ]
        for algorithm, row in figures.items()
    ]
    header = ["an image", "moves", "forward", "backward", "forward at most", "backward at most", "the paper"]
    return table(header, rows)


# Pictures


def draw_arithmetics(path, figures):
    """Success, and below it the failures that only painted raster order, in the four arithmetics."""
    fig, axes = common.figure(2, 2, width=4.6, height=2.6)
    width = 0.8 / len(figures)
    for column, algorithm in enumerate(("1", "3")):
        top, bottom = axes[:, column]
        for i, (network, algorithms) in enumerate(figures.items()):
            outcomes = [algorithms[algorithm][v] for v in VARIANTS]
            at = np.arange(len(VARIANTS)) + (i - (len(figures) - 1) / 2) * width
            rate = np.array([o["success_rate"] for o in outcomes])
            low, high = np.array([o["success_interval"] for o in outcomes]).T
            spread = 100 * np.maximum([rate - low, high - rate], 0)
            style = {"width": width, "color": COLORS[network], "label": network}
            top.bar(at, 100 * rate, yerr=spread, capsize=2, error_kw={"lw": 1, "ecolor": "0.2"}, **style)
            painted = [100 * o["failed_painting_raster_order"] / o["attacked"] for o in outcomes]
            bottom.bar(at, painted, **style)
        top.set(title=f"Algorithm {algorithm}", ylabel="success (% of attacked)", ylim=(0, 104))
        bottom.set(ylabel="painted raster order\n(% of attacked)", ylim=(0, 104))
        for panel in top, bottom:
            panel.set_xticks(range(len(VARIANTS)), list(VARIANTS.values()), fontsize=8)
            panel.grid(axis="y", alpha=0.3)
    axes[1, 0].legend(fontsize=8, title="network", title_fontsize=8)
    fig.suptitle("The same weights, the gradient computed four ways (whiskers: 95 % intervals)", fontsize=11)
    common.save_figure(path, fig)


def draw_control(path, figures):
    """Success against s, plain and scaled, and the maps of zeros that explain it."""
    fig, ((panel,),) = common.figure(width=6.4, height=3.8)
    scales = [row["s"] for row in figures]
    for arithmetic in ("scaled", "plain"):
        rate = [100 * row[arithmetic]["success_rate"] for row in figures]
        low, high = 100 * np.array([row[arithmetic]["success_interval"] for row in figures]).T
        panel.fill_between(scales, low, high, color=COLORS[arithmetic], alpha=0.15, lw=0)
        panel.plot(scales, rate, "o-", color=COLORS[arithmetic], label=f"Algorithm 1 succeeds, {arithmetic} float32")
    zeros = [100 * row["plain"]["zero_score_share"] for row in figures]
    panel.plot(scales, zeros, "s--", color="0.45", label="maps of zeros, plain float32")
    panel.set_xscale("log")
    panel.set_xticks(scales, [str(s) for s in scales])
    panel.minorticks_off()
    panel.set(xlabel="s: factor on the last layer's weights and biases", ylabel="% of attacked images", ylim=(0, 100))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="center right")
    differ = max(row["decisions_that_differ"] for row in figures)
    compared = figures[0]["decisions_compared"]
    changes = f"at most {differ} of {compared} decisions change" if differ else f"none of {compared} decisions changes"
    panel.set_title(f"`standard`, its logits times s: {changes}", fontsize=10)
    common.save_figure(path, fig)


def draw_budget(path, figures):
    """A row per network: distribution of the ratio, its terms image by image, predicted against measured."""
    fig, axes = common.figure(len(figures), 3, width=4.4, height=3.4)
    for (network, budgets), (histogram, terms, prediction) in zip(figures.items(), axes, strict=True):
        budget = next(iter(budgets.values()))
        by_image = budget["by_image"]
        ratio = by_image["ratio"]
        histogram.hist(ratio, bins=40, color=COLORS[network], alpha=0.5)
        marks = [
            (-10, "k", "-", "the paper: -10"),
            (budget["median"], "tab:red", "--", f"median: {budget['median']:.1f}"),
            (budget["mean_of_log10"], "tab:blue", "-.", f"mean of log10: {budget['mean_of_log10']:.1f}"),
            (budget["log10_of_mean"], "tab:purple", ":", f"log10 of mean ratio: {budget['log10_of_mean']:.1f}"),
        ]
        for at, color, style, label in marks:
            histogram.axvline(at, color=color, ls=style, lw=1.5, label=label)
        histogram.set(xlabel="log10(gradient / standard's)", ylabel="test images")
        histogram.set_title(f"{network}: plain float32 shows 0 for {budget['plain']['zero_share']:.0%}", fontsize=10)
        histogram.legend(fontsize=7)
        order = np.argsort(ratio)
        at = np.arange(len(order))
        for term, label in ("saturation", "saturation, 1 - p"), ("jacobian", "Jacobian"):
            label += f", mean {budget['terms'][term]:+.1f}"
            terms.fill_between(at, 0, by_image[term][order], color=COLORS[term], alpha=0.45, lw=0, label=label)
        terms.plot(at, ratio[order], "k", lw=1.2, label="sum: the ratio")
        terms.axhline(-10, color="k", ls="-", lw=0.6)
        terms.set(xlabel="test images, by their ratio", ylabel="contribution to log10")
        terms.set_title(f"what it is made of; 1/T: {budget['terms']['temperature']:+.1f}", fontsize=10)
        terms.legend(fontsize=7)
        if "prediction" in budget:
            predicted = by_image["predicted"]
            bounds = [predicted.min(), predicted.max()]
            prediction.plot(bounds, bounds, color="0.6", lw=1)
            prediction.plot(predicted, ratio, ".", ms=3, color="0.5", label="measured against standard")
            own = {"color": COLORS[network], "label": "against its own loss at z / T"}
            prediction.plot(predicted, by_image["same_network"], ".", ms=3, **own)
            prediction.set(xlabel="log10 of T exp(-(T - 1) m)", ylabel="log10, measured")
            prediction.set_title("predicted from the margin m", fontsize=10)
            prediction.legend(fontsize=7)
        else:
            prediction.axis("off")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    common.save_figure(path, fig)


def draw_pixels(path, figures):
    """Success against moved pixels, a panel per network."""
    fig, (panels,) = common.figure(1, len(figures), width=4.4, height=3.6)
    for panel, (network, curves) in zip(panels, figures.items(), strict=True):
        for name, (label, color, style) in CURVES.items():
            if name in curves:
                rate = 100 * np.array(curves[name]["succeeded"]) / curves[name]["attacked"]
                panel.plot(np.arange(len(rate)), rate, style, color=color, label=label)
        panel.axvline(100, color="0.7", lw=1)
        panel.set_xscale("symlog", linthresh=10)
        ticks = [0, 5, 10, 30, 100, 300, len(rate) - 1]
        panel.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
        panel.minorticks_off()
        panel.set(title=network, xlabel="moved pixels (line: the paper's 100)", ylim=(0, 101), xlim=(0, len(rate) - 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("success (% of attacked)")
    panels[-1].legend(fontsize=7)
    common.save_figure(path, fig)


SHOWN = {
    "arithmetics": ("1. The same weights, the map computed four ways", describe_arithmetics, draw_arithmetics),
    "control": ("2. Control: `standard` with its logits times s, Algorithm 1", describe_control, draw_control),
    "gradient_budget": ("3. The gradient budget", describe_budget, draw_budget),
    "two_by_two_by_two": ("4. Temperature, distillation, temperature of the attack", describe_two_by_two_by_two, None),
    "success_by_pixels": ("5. Success against moved pixels", describe_pixels, draw_pixels),
    "verdict": ("6. The published signs of gradient masking", describe_verdict, None),
    "cost": ("7. Passes an image, counted and at most", describe_cost, None),
}
