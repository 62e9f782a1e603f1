"""Why temperature seemed to work: is it robustness, or does float32 hide the gradient (gradient masking)?

Networks come from the results folder, are trained where they are missing, or are named with --weights. Attacks take
the first 100 digits or 300 images of MNIST and gradient_budget all test images, unless --images says otherwise. Every
attack is kept in DIR/parts: a run that was stopped goes on from there. Writes masking.json, masking_budget.csv and PNG
figures. The parts:
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import common
from minicnn import training
from minicnn.paper import attacks, masking
from minicnn.paper.networks import NETWORKS, PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import ARITHMETICS, saliency_maps
from minicnn.paper.statistics import Rate

SCALES = (1, 2, 5, 10, 15, 20, 50)
ATTACKED = {"digits": 100, "mnist": 300}  # images of the parts that attack
COST_IMAGES = 2
MOVES_SHOWN = (1, 10, 30, 100, 300)
COLORS = {"standard": "tab:blue", "temperature": "tab:orange", "distilled": "tab:green"}
CURVES = {
    "algorithm_1_scaled": ("Algorithm 1, scaled", "tab:blue", "-"),
    "algorithm_3_scaled": ("Algorithm 3, scaled", "tab:cyan", "-"),
    "algorithm_1_plain": ("Algorithm 1, plain", "tab:red", "-"),
    "algorithm_3_plain": ("Algorithm 3, plain", "tab:orange", "-"),
    "transfer": ("Algorithm 3's moves on standard", "tab:green", "--"),
    "random": ("random moves", "0.4", ":"),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """What a part is told.

    setting: of the attacks, its arithmetic ignored; trained_T: the temperature that `temperature` and `distilled` were
    trained at; seed: of random moves; count: how many test images, None for the part's default; store: keeps attacks.
    """

    setting: attacks.Setting
    trained_T: float
    seed: int
    count: int | None
    store: common.Store

    def sample(self, dataset):
        """The first test images and their labels, as many as are attacked."""
        count = self.count or ATTACKED[dataset.name]
        return dataset.test_images[:count], dataset.test_labels[:count]

    def attack(self, network, sample, algorithm, label="", **changes):
        """The AttackResult on a sample (images, labels), in the setting with changes: computed, or from the store."""
        setting = dataclasses.replace(self.setting, **changes)
        return common.attack(network, *sample, algorithm, setting, self.store, label)

    def outcome(self, network, sample, algorithm, **changes):
        """masking.outcome of such an attack."""
        result = self.attack(network, sample, algorithm, **changes)
        return masking.outcome(sample[0], result, algorithm, dataclasses.replace(self.setting, **changes))

    def outcomes(self, network, sample, **changes):
        """Of Algorithm 1 in both arithmetics: arithmetic -> outcome."""
        return {a: self.outcome(network, sample, "1", arithmetic=a, **changes) for a in ARITHMETICS}


class Part(NamedTuple):
    """One question of the study.

    needs: the networks that it asks for. measure(trained, dataset, study) -> figures: name -> network to a dict or list
    of plain numbers. describe(figures) -> text. draw(path, figures) writes its picture; None where it has none.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    measure: Callable
    describe: Callable
    draw: Callable | None


PARTS = {}


def part(title, describe, draw=None, needs=PAPER_NETWORKS):
    """Make a function, measure, the next of the PARTS."""

    def add(measure):
        PARTS[measure.__name__] = Part(measure.__name__, title, tuple(needs), measure, describe, draw)
        return measure

    return add


def paper_networks(trained):
    """Those of the paper's three networks that are in name -> network."""
    return {name: trained[name] for name in PAPER_NETWORKS if name in trained}


def table(rows):
    """Rows, dicts column -> cell with the same columns, as lines of text. Floats, all exponents, are shown signed."""
    rows = list(rows)
    show = {float: "{:+.2f}".format, int: "{:,}".format, type(None): lambda _: "none", str: str}
    cells = [[show[type(cell)](cell) for cell in row] for row in (rows[0], *(row.values() for row in rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return "\n".join(["  " + line.rstrip() for line in lines])


def success(outcome):
    """The success rate of an outcome with its 95 % interval, as text."""
    low, high = outcome["success_interval"]
    return f"{outcome['success_rate']:6.1%} ({low:.1%} to {high:.1%})"


def successes(row):
    """The columns of Study.outcomes."""
    zeros = f"{row['plain']['zero_score_share']:.1%}"
    return {"plain": success(row["plain"]), "scaled": success(row["scaled"]), "zero maps, plain": zeros}


def rates(outcomes):
    """Success rates in percent and the bounds of their 95 % intervals, three arrays."""
    return 100 * np.array([(o["success_rate"], *o["success_interval"]) for o in outcomes]).T


def describe_arithmetics(figures):
    return table(
        {
            "": f"{network}, Algorithm {algorithm}, {variant.replace('_', ' ')}",
            "success": success(found),
            "zero maps": f"{found['zero_score_share']:.1%}",
            "failed": found["failed"],
            "of these zero map": found["failed_with_a_map_of_zeros"],
            "painted in raster order": found["failed_painting_raster_order"],
        }
        for network, algorithms in figures.items()
        for algorithm, variants in algorithms.items()
        for variant, found in variants.items()
    )


def draw_arithmetics(path, figures):
    """Success, and below it the failures that only painted in raster order, in the four arithmetics."""
    fig, axes = common.figure(2, 2, width=4.6, height=2.6)
    width = 0.8 / len(figures)
    for (top, bottom), algorithm in zip(axes.T, ("1", "3"), strict=True):
        for i, (network, algorithms) in enumerate(figures.items()):
            outcomes = algorithms[algorithm].values()
            at = np.arange(len(outcomes)) + (i - (len(figures) - 1) / 2) * width
            rate, low, high = rates(outcomes)
            spread = np.maximum([rate - low, high - rate], 0)
            style = {"width": width, "color": COLORS[network], "label": network}
            top.bar(at, rate, yerr=spread, capsize=2, error_kw={"lw": 1, "ecolor": "0.2"}, **style)
            bottom.bar(at, [100 * o["failed_painting_raster_order"] / o["attacked"] for o in outcomes], **style)
        top.set(title=f"Algorithm {algorithm}", ylabel="success (% of attacked)")
        bottom.set(ylabel="painted in raster order\n(% of attacked)")
        for panel in top, bottom:
            ticks = [variant.replace("_", " ").replace(" at", "\nat") for variant in algorithms[algorithm]]
            panel.set_xticks(range(len(ticks)), ticks, fontsize=8)
            panel.set_ylim(0, 104)
            panel.grid(axis="y", alpha=0.3)
    axes[1, 0].legend(fontsize=8, title="network", title_fontsize=8)
    fig.suptitle("The same weights, the gradient computed four ways (whiskers: 95 % intervals)", fontsize=11)
    common.save_figure(path, fig)


@part("1. The same weights, the map computed four ways", describe_arithmetics, draw_arithmetics)
def arithmetics(trained, dataset, study):
    """Algorithms 1 and 3 on the same weights: network -> algorithm -> variant of the map's arithmetic -> outcome."""
    figures, sample = {}, study.sample(dataset)
    for name, network in paper_networks(trained).items():
        figures[name] = {}
        exact = rescaled(network, dtype=np.float64)
        for algorithm in ("1", "3"):
            figures[name][algorithm] = {
                "plain_float32": study.outcome(network, sample, algorithm, arithmetic="plain"),
                "plain_float64": study.outcome(exact, sample, algorithm, arithmetic="plain"),
                "scaled_float32": study.outcome(network, sample, algorithm, arithmetic="scaled"),
                "plain_float32_at_T": study.outcome(network, sample, algorithm, arithmetic="plain", T=study.trained_T),
            }
    return figures


def describe_control(figures):
    return table(
        {
            "dense3 times": f"s = {row['s']}",
            "decisions that differ": f"{row['decisions_that_differ']} of {row['decisions_compared']}",
            **successes(row),
        }
        for row in figures
    )


def draw_control(path, figures):
    """Success against s, plain and scaled, and the maps of zeros that explain it."""
    fig, ((panel,),) = common.figure(width=6.4, height=3.8)
    scales = [row["s"] for row in figures]
    for arithmetic, color in ("scaled", "tab:blue"), ("plain", "tab:red"):
        rate, low, high = rates([row[arithmetic] for row in figures])
        panel.fill_between(scales, low, high, color=color, alpha=0.15, lw=0)
        panel.plot(scales, rate, "o-", color=color, label=f"Algorithm 1 succeeds, {arithmetic} float32")
    zeros = [100 * row["plain"]["zero_score_share"] for row in figures]
    panel.plot(scales, zeros, "s--", color="0.45", label="maps of zeros, plain float32")
    panel.set_xscale("log")
    panel.set_xticks(scales, [str(s) for s in scales])
    panel.minorticks_off()
    panel.set(xlabel="s: factor on the last layer's weights and biases", ylabel="% of attacked images", ylim=(0, 100))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="center right")
    differ, compared = max(row["decisions_that_differ"] for row in figures), figures[0]["decisions_compared"]
    changes = f"at most {differ}" if differ else "none"
    panel.set_title(f"`standard`, its logits times s: {changes} of {compared} decisions change", fontsize=10)
    common.save_figure(path, fig)


@part("2. Control: `standard` with its logits times s, Algorithm 1", describe_control, draw_control, ["standard"])
def control(trained, dataset, study):
    """Algorithm 1 on `standard` with logits s times as large, one row per s.

    Multiplying all logits by s > 0 changes no decision and, in exact arithmetic, hardly the map's order; what changes
    is where float32 ends. Decisions are compared on all test images.
    """
    network, sample, rows = trained["standard"], study.sample(dataset), []
    logits = training.predict(network, dataset.test_images)
    for s in SCALES:
        copy = rescaled(network, s)
        decisions = masking.changed_decisions(logits, training.predict(copy, dataset.test_images))
        rows.append({"s": s} | decisions | study.outcomes(copy, sample))
    return rows


def budget(network, reference, images, labels, *, T, reference_T, trained_T, store):
    """masking.gradient_budget of a network attacked at T beside the reference attacked at reference_T, with its
    prediction where both are 1, and masking.measured_in_float64 as "measured". The store keeps the sizes of the maps.

    Raises UsageError where no image is classified correctly by both.
    """

    def sizes(network, T):
        key = common.network_key(network) | {"map_sizes": T, "images": common.digest(images, labels)}
        return store.get(key, lambda: masking.map_sizes(network, images, labels, T))

    ours, theirs = sizes(network, T), sizes(reference, reference_T)
    if not masking.both_correct(ours, theirs, labels).any():
        raise common.UsageError(
            f"gradients cannot be compared: of {len(images)} images both networks classify none correctly"
        )
    at_trained_T = sizes(network, trained_T) if T == reference_T == 1 else None
    figures = masking.gradient_budget(ours, theirs, labels, at_trained_T)
    return figures | {"measured": masking.measured_in_float64(network, reference, images, labels, ours, theirs)}


def describe_budget(figures):
    found = {f"{name} at T = {b['T']:g}": b for name, budgets in figures.items() for b in budgets.values()}
    split = table(
        {
            "log10 of size / standard's": name,
            "images": b["images"],
            "1/T": b["terms"]["temperature"],
            "+ Jacobian": b["terms"]["jacobian"],
            "+ (1 - p_k)": b["terms"]["saturation"],
            "= mean": b["mean_of_log10"],
            "median": b["median"],
            "5 %": b["quantiles"]["5"],
            "95 %": b["quantiles"]["95"],
            "mean ratio": b["log10_of_mean"],
            "ratio of means": b["log10_of_ratio_of_means"],
            "plain: zeros": f"{b['plain']['zero_share']:.1%}",
            "plain: ratio of means": b["plain"]["log10_of_ratio_of_means"],
            "plain: median of others": b["plain"]["median_where_not_zero"],
        }
        for name, b in found.items()
    )
    return "\n".join([split, *(line for name, b in found.items() for line in _remarks(name, b))])


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
    return [f"  {name}: {line}" for line in lines]


def budget_rows(figures):
    """A dict for every network, T and image: log10 of the ratio and its terms."""
    terms = ("ratio", "temperature", "jacobian", "saturation")
    return [
        {"network": name, "T": found["T"], "image": int(found["by_image"]["image"][i])}
        | {term: round(float(found["by_image"][term][i]), 5) for term in terms}
        for name, budgets in figures.items()
        for found in budgets.values()
        for i in range(found["images"])
    ]


def draw_budget(path, figures):
    """A row per network: distribution of the ratio, its terms image by image, predicted against measured. Beside the
    picture masking_budget.csv, with a line per network, T and image."""
    common.write_csv(path.with_name("masking_budget.csv"), budget_rows(figures))
    fig, axes = common.figure(len(figures), 3, width=4.4, height=3.4)
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
            prediction.plot(predicted, ratio, ".", ms=3, color="0.5", label="measured beside standard")
            label = f"beside its own gradient at T = {found['prediction']['T']:g}"
            prediction.plot(predicted, by_image["same_network"], ".", ms=3, color=color, label=label)
            title = "predicted from the margin m"
            prediction.set(xlabel="log10 of T exp(-(T - 1) m)", ylabel="log10, measured", title=title)
        else:
            prediction.axis("off")
    for panel in axes.flat:
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    common.save_figure(path, fig)


@part("3. The gradient budget: 1/T, Jacobian and saturation, beside the paper's 10^10", describe_budget, draw_budget)
def gradient_budget(trained, dataset, study):
    """The budget of `temperature` and `distilled` beside `standard`, attacked at the setting's T and at that of
    training, on all test images unless the study says how many: network -> T -> figures."""
    images, labels = dataset.test_images[: study.count], dataset.test_labels[: study.count]
    networks = paper_networks(trained)
    reference, T = networks.pop("standard"), study.setting.T
    if not networks:
        raise common.UsageError("gradient_budget compares with standard: name temperature or distilled beside it")
    told = {"reference_T": T, "trained_T": study.trained_T, "store": study.store}
    return {
        name: {
            f"test_T_{t:g}": budget(network, reference, images, labels, T=t, **told)
            for t in dict.fromkeys((T, study.trained_T))
        }
        for name, network in networks.items()
    }


def describe_two_by_two_by_two(figures):
    return table(
        {
            "network": row["network"],
            "trained at T": f"{row['train_T']:g}",
            "distilled": "yes" if row["distilled"] else "no",
            "attacked at T": f"{row['test_T']:g}",
            **successes(row),
        }
        for row in figures
    )


@part("4. Training temperature, distillation, temperature of the attack", describe_two_by_two_by_two, needs=NETWORKS)
def two_by_two_by_two(trained, dataset, study):
    """Algorithm 1 on every network there is, its loss at T = 1 and at the T of training, in rows."""
    rows, sample = [], study.sample(dataset)
    for name in sorted(trained, key=lambda name: (NETWORKS[name].at_temperature, NETWORKS[name].teacher is not None)):
        train_T = study.trained_T if NETWORKS[name].at_temperature else 1.0
        for T in (1.0, study.trained_T):
            row = {"network": name, "train_T": train_T, "distilled": NETWORKS[name].teacher is not None, "test_T": T}
            rows.append(row | study.outcomes(trained[name], sample, T=T))
    return rows


def curves(network, reference, images, labels, study, pixels=None):
    """Successes after 0 to `pixels` moves, all of an image by default: name -> {attacked, succeeded: a list of counts}.

    algorithm_A_ARITHMETIC: on the network itself. To be compared with Algorithm 3: random, its moves on a map of noise
    from the seed; transfer, its moves on the scaled map of `reference`, absent where that is the network. The decision
    is looked at after every move in all.
    """
    pixels = images[0].size if pixels is None else pixels
    found = {}
    for name in (name for name in CURVES if name.startswith("algorithm")):
        _, algorithm, arithmetic = name.split("_")
        result = study.attack(network, (images, labels), algorithm, arithmetic=arithmetic, limit=pixels)
        found[name] = masking.success_curve(result.attacked, np.where(result.succeeded, result.moves, 0), pixels)
    setting = dataclasses.replace(study.setting, arithmetic="scaled", limit=pixels)

    def follow(source, maps):
        key = {"maps of": source, "setting": vars(setting), "images": common.digest(images, labels)}
        moved = study.store.get(
            common.network_key(network) | key, lambda: masking.follow_maps(network, images, labels, maps(), setting)
        )
        return masking.success_curve(moved["attacked"], moved["moves"], pixels)

    rng = np.random.default_rng(study.seed)
    found["random"] = follow(study.seed, lambda: rng.uniform(-1, 1, images.shape))
    if reference is not network:
        source = common.network_key(reference)
        found["transfer"] = follow(source, lambda: saliency_maps(reference, images, labels, setting.T).maps)
    return found


def describe_pixels(figures):
    rows = []
    for network, found in figures.items():
        for name, curve in found.items():
            shares = [f"{count / curve['attacked']:.1%}" for count in curve["succeeded"]]
            moves = [n for n in MOVES_SHOWN if n < len(shares) - 1] + [len(shares) - 1]
            rows.append({"success after moves": f"{network}: {CURVES[name][0]}"} | {str(n): shares[n] for n in moves})
    return table(rows)


def draw_pixels(path, figures):
    """Success against moved pixels, a panel per network."""
    fig, (panels,) = common.figure(1, len(figures), width=4.4, height=3.6)
    for panel, (network, found) in zip(panels, figures.items(), strict=True):
        for name, (label, color, style) in CURVES.items():
            if name in found:
                rate = 100 * np.array(found[name]["succeeded"]) / found[name]["attacked"]
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


@part("5. Success against moved pixels", describe_pixels, draw_pixels)
def success_by_pixels(trained, dataset, study):
    """The curves of each network, with `standard` as the reference: network -> name -> curve."""
    sample = study.sample(dataset)
    return {n: curves(network, trained["standard"], *sample, study) for n, network in paper_networks(trained).items()}


def describe_verdict(figures):
    lines = []
    for network, found in figures.items():
        for arithmetic, judged in found.items():
            lines.append(f"  {network}, {arithmetic}: {judged['sentence']}")
            for check in judged["checks"]:
                lines.append(f"    {'pass' if check['passed'] else 'FAIL'}  {check['check']}: {check['ground']}")
    return "\n".join(lines)


@part("6. The published signs of gradient masking", describe_verdict)
def verdict(trained, dataset, study):
    """masking.judge of each network in plain and in scaled arithmetic: network -> arithmetic -> figures."""
    figures, sample, limit = {}, study.sample(dataset), study.setting.limit
    for name, found in success_by_pixels(trained, dataset, study).items():
        figures[name] = {}
        at_limit = {curve: _rate(points, limit) for curve, points in found.items()}
        for arithmetic in ARITHMETICS:
            own = f"algorithm_{masking.ONE_STEP}_{arithmetic}"
            result = study.attack(trained[name], sample, masking.ITERATIVE, "iterative ", arithmetic=arithmetic)
            figures[name][arithmetic] = masking.judge(
                one_step=at_limit[own],
                iterative=Rate(int(result.succeeded.sum()), int(result.attacked.sum())),
                transfer=at_limit.get("transfer"),
                random=at_limit["random"],
                unbounded=_rate(found[own], sample[0][0].size),
            )
    return figures


def _rate(curve, moves):
    return Rate(curve["succeeded"][min(moves, len(curve["succeeded"]) - 1)], curve["attacked"])


def describe_cost(figures):
    return table(
        {
            "per image": f"Algorithm {algorithm}",
            "moves": f"{row['mean_moves']:.1f}",
            "forward": f"{row['forwards']:,.1f}",
            "backward": f"{row['backwards']:.1f}",
            "forward at most": row["forwards_at_most"],
            "backward at most": row["backwards_at_most"],
            "the paper": row["paper"],
        }
        for algorithm, row in figures.items()
    )


@part("7. Passes per image, counted and at most", describe_cost, needs=["standard"])
def cost(trained, dataset, study):
    """masking.cost of each algorithm on the first COST_IMAGES that `standard` classifies correctly, in scaled
    arithmetic, which succeeds early: algorithm -> figures."""
    images, labels = study.sample(dataset)
    right = np.flatnonzero(training.correct(trained["standard"], images, labels))[:COST_IMAGES]
    sample, limit = (images[right], labels[right]), study.setting.limit
    results = {a: study.attack(trained["standard"], sample, a, arithmetic="scaled") for a in masking.COSTS}
    return {algorithm: masking.cost(result, algorithm, limit) for algorithm, result in results.items()}


def section(name, figures, folder):
    """What a report shows of a part: title, text, [(caption, path)] of the picture that study has drawn, if any."""
    _, title, _, _, describe, draw = PARTS[name]
    return title, describe(figures), [(title, folder / f"masking_{name}.png")] if draw else []


def without_images(results):
    """Results less the figures of every image, which masking_budget.csv holds."""
    if not isinstance(results, dict):
        return results
    return {name: without_images(value) for name, value in results.items() if name != "by_image"}


def study(parts, trained, dataset, study, folder):
    """Measure each of the parts, names of PARTS; yields (name, figures), then prints and draws them.

    trained: name -> network, `standard` among them. study: a Study. Raises UsageError where one of the networks is
    right on no image: there is nothing to attack.
    """
    for name, network in trained.items():
        right = training.correct(network, *study.sample(dataset))
        if not right.any():
            raise common.UsageError(f"{name} classifies none of the first {len(right)} test images correctly: train it")
    for name in parts:
        figures = PARTS[name].measure(trained, dataset, study)
        yield name, figures
        title, text, pictures = section(name, figures, folder)
        print(f"\n{title}\n{text}", flush=True)
        for _, path in pictures:
            PARTS[name].draw(path, figures)


def find_or_train(parts, dataset, protocol, folder, ties):
    """Name -> network: those that the parts need, found in the folder or among the committed ones, or trained."""
    needed, found = {name for part in parts for name in PARTS[part].needs}, {}
    for name in (name for name in NETWORKS if name in needed):
        file_name, T = protocol.file_name(name), protocol.recipe(name).temperature
        try:
            path = common.find_weights(file_name, protocol.dataset, folder)
            print(f"{name}: {path}", flush=True)
        except common.UsageError:
            print(f"{name}: to be trained, {protocol.epochs} epochs", flush=True)
            common.train(name, dataset, protocol, folder)
            path = folder / f"{file_name}.npz"
        found[name] = common.load_network(path, protocol.device, ties, T=T)
    return found


def named_weights(text):
    """NAME=FILE as (name, path)."""
    name, _, path = text.partition("=")
    if name not in NETWORKS or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE.npz with NAME one of {', '.join(NETWORKS)}, got {text!r}")
    return name, Path(path)


def main(options):
    if options.weights and "standard" not in dict(options.weights):
        raise common.UsageError("--weights must name standard=FILE.npz: the other networks are measured against it")
    dataset, protocol = common.load_data(options.dataset, options.validation), common.protocol(options)
    if options.weights:
        trained = {
            name: common.load_network(path, options.device, options.ties, T=protocol.recipe(name).temperature)
            for name, path in options.weights
        }
    else:
        trained = find_or_train(options.parts, dataset, protocol, options.out, options.ties)
    store = common.Store(options.out / "parts")
    count = options.images and len(common.first_images(dataset, options.images)[1])
    told = Study(common.setting(options), options.temperature, options.seed, count, store)
    results = common.environment(options) | {
        "weights": {name: common.network_key(network)["weights"] for name, network in trained.items()},
        "trained_at": {name: protocol.recipe(name).temperature for name in trained},
        "ties": options.ties,
        "limit": told.setting.limit,
    }
    for name, figures in study(options.parts, trained, dataset, told, options.out):
        results[name] = figures
        common.write_json(options.json, without_images(results))


if __name__ == "__main__":
    parser = common.arguments(__doc__ + "\n" + "\n".join(f"    {p.name:20}{p.title}" for p in PARTS.values()))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="default: all")
    parser.add_argument(
        "--weights", nargs="+", type=named_weights, metavar="NAME=FILE.npz", help="these networks and no others"
    )
    common.training_arguments(parser)
    common.attack_arguments(parser, "100 of digits, 300 of mnist; all for gradient_budget")
    common.run(main, parser)
