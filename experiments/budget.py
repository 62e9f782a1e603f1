"""The gradient budget: by how much a network's gradient is smaller than another's, and what makes it smaller."""

import numpy as np

from experiments import common
from experiments.report import Parts, Table
from minicnn.paper import masking
from minicnn.paper.networks import PAPER_NETWORKS

SIZES_PART = 1000  # images that a kill may lose the sizes of gradients of: some ten seconds
COLORS = dict(zip(PAPER_NETWORKS, ("C0", "C1", "C2"), strict=True))


def budget(network, reference, sample, *, T, reference_T, trained_T, store):
    """masking.gradient_budget of a network attacked at T beside the reference attacked at reference_T, on a
    common.Sample, whose indices the images have; with its prediction where both T are 1, and
    masking.measured_in_float64 as "measured". The store keeps the sizes of the maps.

    Raises UsageError where no image is classified correctly by both.
    """

    images, labels = sample.images, sample.labels

    def sizes(network, T):
        def measure(x, y, tell):
            return masking.map_sizes(network, x, y, T)

        return common.in_parts(
            store, "sizes of gradients", network, (images, labels), {"map_sizes": T}, measure, SIZES_PART
        )

    ours, theirs = sizes(network, T), sizes(reference, reference_T)
    if not masking.both_correct(ours, theirs, labels).any():
        raise common.UsageError(
            f"gradients cannot be compared: of {len(images)} images both networks classify none correctly"
        )
    at_trained_T = sizes(network, trained_T) if T == reference_T == 1 else None
    figures = masking.gradient_budget(ours, theirs, labels, at_trained_T)
    figures["by_image"]["image"] = sample.indices[figures["by_image"]["image"]]
    return figures | {"measured": masking.measured_in_float64(network, reference, images, labels, ours, theirs)}


def describe(figures):
    found = {f"{name} at T = {b['T']:g}": b for name, budgets in figures.items() for b in budgets.values()}
    lines = {
        "images": lambda b: b["images"],
        "1/T": lambda b: b["terms"]["temperature"],
        "+ Jacobian": lambda b: b["terms"]["jacobian"],
        "+ (1 - p_k)": lambda b: b["terms"]["saturation"],
        "= mean": lambda b: b["mean_of_log10"],
        "median": lambda b: b["median"],
        "5 %": lambda b: b["quantiles"]["5"],
        "95 %": lambda b: b["quantiles"]["95"],
        "mean ratio": lambda b: b["log10_of_mean"],
        "ratio of means": lambda b: b["log10_of_ratio_of_means"],
        "plain: zeros": lambda b: f"{b['plain']['zero_share']:.1%}",
        "plain: ratio of means": lambda b: b["plain"]["log10_of_ratio_of_means"],
        "plain: median of others": lambda b: b["plain"]["median_where_not_zero"],
    }
    split = Table(
        [
            {"log10 of size / standard's": line} | {name: show(b) for name, b in found.items()}
            for line, show in lines.items()
        ]
    )
    return Parts([split, [line for name, b in found.items() for line in _remarks(name, b)]])


def _remarks(name, found):
    """Sentences on the paper's 10^10, and on how well the terms and the prediction hold."""
    lines, measured = [], found["measured"]
    if found["T"] == 1:
        exponents = (found[statistic] for statistic in ("median", "log10_of_mean", "log10_of_ratio_of_means"))
        median, mean, means = (f"10^{abs(x):.1f} {'smaller' if x < 0 else 'larger'}" for x in exponents)
        lines.append(
            f"the paper says 10^10 times smaller; the median image says {median}, the mean of the ratios {mean}, the "
            f"ratio of the means {means}; {found['share_smaller_than_the_paper_says']:.1%} lost more than 10^10"
        )
    if measured["images"]:
        lines.append(
            f"where plain float64 has digits ({measured['images']} images), the terms add up to its ratio but for "
            f"{measured['median_difference']:.1e} (median), {measured['largest_difference']:.1e} (largest)"
        )
    if expected := found.get("prediction"):
        r = expected["reference_correlation"]
        lines.append(
            f"T exp(-(T - 1) m) predicts {expected['median']:+.2f} (median); measured "
            f"{expected['same_network_median']:+.2f} beside its own gradient at T = {expected['T']:g} (median image "
            f"off by {expected['same_network_median_difference']:.2f}), {found['median']:+.2f} beside standard's (off "
            f"by {expected['reference_median_difference']:.2f}, correlation {'none' if r is None else f'{r:.2f}'})"
        )
    return [f"{name}: {line}" for line in lines]


def rows(figures):
    """A dict for every network, T and image: log10 of the ratio and its terms."""
    terms = ("ratio", "temperature", "jacobian", "saturation")
    return [
        {"network": name, "T": found["T"], "image": int(found["by_image"]["image"][i])}
        | {term: round(float(found["by_image"][term][i]), 5) for term in terms}
        for name, budgets in figures.items()
        for found in budgets.values()
        for i in range(found["images"])
    ]


def draw(path, figures):
    """A row per network: distribution of the ratio, its terms image by image, predicted against measured. Beside the
    picture, NAME_gradient_budget.png, NAME_budget.csv, with a line per network, T and image."""
    common.write_csv(path.with_name(f"{path.stem.removesuffix('gradient_budget')}budget.csv"), rows(figures))
    fig, axes = common.figure(len(figures), 3, width=4.4, height=4.0)
    for (network, budgets), (histogram, terms, prediction) in zip(figures.items(), axes, strict=True):
        found = next(iter(budgets.values()))
        by_image, color = found["by_image"], COLORS[network]
        ratio = by_image["ratio"]
        histogram.hist(ratio, bins=40, color=color, alpha=0.5)
        histogram.axvline(masking.PAPER_LOG10_RATIO, color="k", label=f"the paper: {masking.PAPER_LOG10_RATIO:g}")
        histogram.axvline(found["median"], color="tab:red", ls="--", label=f"median: {found['median']:.1f}")
        mean, mean_ratio = found["mean_of_log10"], found["log10_of_mean"]
        histogram.axvline(mean, color="tab:blue", ls="-.", label=f"mean of log10: {mean:.1f}")
        histogram.axvline(mean_ratio, color="tab:purple", ls=":", label=f"log10 of mean ratio: {mean_ratio:.1f}")
        title = f"{network}: plain float32 shows 0 for {found['plain']['zero_share']:.0%}"
        histogram.set(xlabel="log10(gradient / standard's)", ylabel="test images", title=title)
        order, at = np.argsort(ratio), np.arange(len(ratio))
        for term, label, shade in ("saturation", "saturation, 1 - p", "purple"), ("jacobian", "Jacobian", "green"):
            style = {"color": f"tab:{shade}", "label": f"{label}, mean {found['terms'][term]:+.1f}"}
            terms.fill_between(at, 0, by_image[term][order], alpha=0.45, lw=0, **style)
        terms.plot(at, ratio[order], "k", lw=1.2, label="sum: the ratio")
        terms.axhline(masking.PAPER_LOG10_RATIO, color="k", lw=0.6)
        title = f"what it is made of; 1/T: {found['terms']['temperature']:+.1f}"
        terms.set(xlabel="test images, by their ratio", ylabel="contribution to log10", title=title)
        if "prediction" in found:
            predicted = by_image["predicted"]
            prediction.axline((predicted.max(), predicted.max()), slope=1, color="0.6", lw=1)
            prediction.plot(predicted, ratio, "x", ms=3, color="0.5", label="measured beside standard")
            label = f"beside its own gradient at T = {found['prediction']['T']:g}"
            prediction.plot(predicted, by_image["same_network"], ".", ms=3, color=color, label=label)
            title = "predicted from the margin m"
            prediction.set(xlabel="log10 of T exp(-(T - 1) m)", ylabel="log10, measured", title=title)
        else:
            prediction.axis("off")
    for panel in axes.flat:
        if labels := panel.get_legend_handles_labels()[1]:
            columns = 1 if len(labels) < 3 else 2
            panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)
    common.save_figure(path, fig)


def tell(figures):
    return (
        "Image by image. Left: the gradient beside that of standard; middle: what the ratio is made of; right: the "
        "ratio that the margin of the logits predicts, and the measured one."
    )
