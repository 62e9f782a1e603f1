"""Why temperature seemed to work: is it robustness, or does float32 hide the gradient (gradient masking)?

Networks come from the results folder, are trained where they are missing, or are named with --weights. Attacks take
100 digits or 300 images of MNIST and gradient_budget all test images, unless --images says otherwise. Every attack is
kept in DIR/parts: a run that was stopped goes on from there. Writes masking.json, masking_budget.csv and PNG figures;
of some parts alone, masking_PART_PART.json and files whose names begin so. A network that is found is taken as it is,
however it was trained. The parts:
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import budget, common, curves
from experiments.figures import bars
from experiments.report import Parts, Picture, Section, Table
from experiments.train import chosen_protocol, plot_history, refuse_training, train, training_arguments
from minicnn import data, training
from minicnn.paper import attacks, masking
from minicnn.paper.networks import NETWORKS, PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import ARITHMETICS

SCALES = (1, 2, 5, 10, 15, 20, 50)
ATTACKED = {"digits": 100, "mnist": 300}  # images of the parts that attack
COST_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class Study:
    """What a part is told.

    dataset: whose test images are attacked; count: how many, None for the part's default; seed: of the sample and of
    random searches; first: whether the first ones are taken, not drawn ones; setting: of the attacks, its arithmetic
    ignored; trained_T: the temperature that `temperature` and `distilled` were trained at; store: keeps attacks.
    """

    dataset: data.Dataset
    count: int | None
    seed: int
    first: bool
    setting: attacks.Setting
    trained_T: float
    store: common.Store

    def taken(self, default):
        """The common.Sample of as many test images as are asked for, of `default` where none are."""
        return common.sample(self.dataset, self.count or default, self.seed, self.first)

    @functools.cached_property
    def sample(self):
        """The Sample of the parts that attack."""
        return self.taken(ATTACKED[self.dataset.name])

    def right(self, network):
        """The images of the sample that a network classifies correctly, (N,) bool."""
        return training.correct(network, self.sample.images, self.sample.labels)

    def attack(self, network, algorithm, part=None, **changes):
        """The AttackResult on the sample, in the setting with changes: computed, or from the store."""
        setting = dataclasses.replace(self.setting, **changes)
        return common.attack(network, *self.sample[:2], algorithm, setting, self.store, part=part, seed=self.seed)

    def moves(self, network, compute, **key):
        """The moves that success took on the sample, as compute(images, labels) finds them: computed, or from the
        store. key: what they depend on beside network and sample; its `attack` is what the progress is called."""

        def moves(images, labels, tell):
            return {"moves": compute(images, labels)}

        return common.in_parts(self.store, key["attack"], network, self.sample[:2], key, moves, curves.PART)["moves"]

    def outcome(self, network, algorithm, **changes):
        """masking.outcome of such an attack."""
        result, setting = self.attack(network, algorithm, **changes), dataclasses.replace(self.setting, **changes)
        return masking.outcome(self.sample.images, result, algorithm, setting)

    def outcomes(self, network, **changes):
        """Of Algorithm 1 in both arithmetics: arithmetic -> outcome."""
        return {a: self.outcome(network, "1", arithmetic=a, **changes) for a in ARITHMETICS}


class Part(NamedTuple):
    """One question of the study.

    needs: the networks that it asks for, in order. measure(networks, study) -> figures: name -> network, of those that
    there are, to a dict or list of plain numbers. describe(figures) -> report.Parts. draw(path, figures) writes its
    picture, and tell(figures) is the sentence beside it; None where it has none.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    measure: Callable
    describe: Callable
    draw: Callable | None
    tell: Callable | None


PARTS = {}


def part(title, describe, draw=None, tell=None, needs=PAPER_NETWORKS):
    """Make a function, measure, the next of the PARTS."""

    def add(measure):
        PARTS[measure.__name__] = Part(measure.__name__, title, tuple(needs), measure, describe, draw, tell)
        return measure

    return add


def one_table(rows):
    """The Parts of a text that is a table alone."""
    return Parts([Table(list(rows))])


def success(outcome):
    """The success rate of an outcome with its 95 % interval, as text."""
    low, high = outcome["success_interval"]
    return f"{outcome['success_rate']:.1%} ({100 * low:.0f}-{100 * high:.0f})"


def successes(row):
    """The columns of Study.outcomes."""
    zeros = f"{row['plain']['zero_score_share']:.1%}"
    return {"plain": success(row["plain"]), "scaled": success(row["scaled"]), "zero maps, plain": zeros}


def rates(outcomes):
    """Success rates in percent and the bounds of their 95 % intervals, three arrays."""
    return 100 * np.array([(o["success_rate"], *o["success_interval"]) for o in outcomes]).T


def describe_arithmetics(figures):
    return Parts(
        Table(
            [
                {
                    f"{network}: algorithm, map": f"{algorithm}, {variant.replace('_', ' ')}",
                    "success": success(found),
                    "zero maps": f"{found['zero_score_share']:.1%}",
                    "failed": found["failed"],
                    "of these zero map": found["failed_with_a_map_of_zeros"],
                    "painted raster order": found["failed_painting_raster_order"],
                }
                for algorithm, variants in algorithms.items()
                for variant, found in variants.items()
            ]
        )
        for network, algorithms in figures.items()
    )


def draw_arithmetics(path, figures):
    """Success, and below it the failures that only painted in raster order, in the four arithmetics."""
    fig, axes = common.figure(2, 2, width=4.6, height=2.6)
    width = 0.8 / len(figures)
    for (top, bottom), algorithm in zip(axes.T, ("1", "3"), strict=True):
        for i, (network, algorithms) in enumerate(figures.items()):
            outcomes = algorithms[algorithm].values()
            at = np.arange(len(outcomes)) + (i - (len(figures) - 1) / 2) * width
            style = {"width": width, "color": budget.COLORS[network], "label": network}
            bars(top, at, rates(outcomes), capsize=2, error_kw={"lw": 1, "ecolor": "0.2"}, **style)
            bottom.bar(at, [100 * o["failed_painting_raster_order"] / o["attacked"] for o in outcomes], **style)
        top.set(title=f"Algorithm {algorithm}", ylabel="success (% of attacked)")
        bottom.set(ylabel="painted in raster order\n(% of attacked)")
        for panel in top, bottom:
            ticks = [variant.replace("_", " ").replace(" at", "\nat") for variant in algorithms[algorithm]]
            panel.set_xticks(range(len(ticks)), ticks)
            panel.set_ylim(0, 104)
            panel.grid(visible=False, axis="x")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    common.head(fig, "The same weights, the gradient computed four ways (whiskers: 95 % intervals)")
    common.save_figure(path, fig)


def tell_arithmetics(figures):
    rates = (
        f"{network}: " + ", ".join(f"{o['success_rate']:.1%} {v.replace('_', ' ')}" for v, o in found["1"].items())
        for network, found in figures.items()
    )
    return f"Success of Algorithm 1, where the weights are the same: {'; '.join(rates)}."


@part("1. The same weights, the map computed four ways", describe_arithmetics, draw_arithmetics, tell_arithmetics)
def arithmetics(networks, study):
    """Algorithms 1 and 3 on the same weights: network -> algorithm -> variant of the map's arithmetic -> outcome."""
    figures = {}
    for name, network in networks.items():
        figures[name] = {}
        exact = rescaled(network, dtype=np.float64)
        for algorithm in ("1", "3"):
            figures[name][algorithm] = {
                "plain_float32": study.outcome(network, algorithm, arithmetic="plain"),
                "plain_float64": study.outcome(exact, algorithm, arithmetic="plain"),
                "scaled_float32": study.outcome(network, algorithm, arithmetic="scaled"),
                "plain_float32_at_T": study.outcome(network, algorithm, arithmetic="plain", T=study.trained_T),
            }
    return figures


def describe_control(figures):
    return one_table(
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
    for arithmetic, color, style in ("scaled", "tab:blue", "o-"), ("plain", "tab:red", "^-."):
        rate, low, high = rates([row[arithmetic] for row in figures])
        panel.fill_between(scales, low, high, color=color, alpha=0.15, lw=0)
        panel.plot(scales, rate, style, color=color, label=f"Algorithm 1 succeeds, {arithmetic} float32")
    zeros = [100 * row["plain"]["zero_score_share"] for row in figures]
    panel.plot(scales, zeros, "s--", color="0.45", label="maps of zeros, plain float32")
    common.plain_numbers(panel.xaxis, scales)
    panel.set(xlabel="s: factor on the last layer's weights and biases", ylabel="% of attacked images", ylim=(0, 103))
    fig.legend(loc="outside lower center", ncols=2)
    differ, compared = max(row["decisions_that_differ"] for row in figures), figures[0]["decisions_compared"]
    changes = f"at most {differ}" if differ else "none"
    panel.set_title(f"standard, its logits times s: {changes} of {compared} decisions change")
    common.save_figure(path, fig)


def tell_control(figures):
    first, last = figures[0], figures[-1]
    differ = max(row["decisions_that_differ"] for row in figures)
    changed = {a: "{:.1%} to {:.1%}".format(*(row[a]["success_rate"] for row in (first, last))) for a in ARITHMETICS}
    return (
        f"Nothing but the size of the logits: those of standard times {first['s']} to {last['s']} change "
        f"{differ or 'none'} of {first['decisions_compared']:,} decisions; the success of Algorithm 1 goes from "
        f"{changed['plain']} in plain float32, from {changed['scaled']} in scaled."
    )


@part(
    "2. Control: standard with its logits times s, Algorithm 1",
    describe_control,
    draw_control,
    tell_control,
    needs=["standard"],
)
def control(networks, study):
    """Algorithm 1 on `standard` with logits s times as large, one row per s.

    Multiplying all logits by s > 0 changes no decision and, in exact arithmetic, hardly the map's order; what changes
    is where float32 ends. Decisions are compared on all test images.
    """
    network, images, rows = networks["standard"], study.dataset.test_images, []
    logits = training.predict(network, images)
    for s in SCALES:
        copy = rescaled(network, s)
        decisions = masking.changed_decisions(logits, training.predict(copy, images))
        rows.append({"s": s} | decisions | study.outcomes(copy))
    return rows


@part(
    "3. The gradient budget: 1/T, Jacobian and saturation, beside the paper's 10^10",
    budget.describe,
    budget.draw,
    budget.tell,
)
def gradient_budget(networks, study):
    """The budget of `temperature` and `distilled` beside `standard`, attacked at the setting's T and at that of
    training, on all test images unless the study says how many: network -> T -> figures."""
    sample = study.taken(len(study.dataset.test_labels))
    reference, T = networks["standard"], study.setting.T
    told = {"reference_T": T, "trained_T": study.trained_T, "store": study.store}
    return {
        name: {
            f"test_T_{t:g}": budget.budget(network, reference, sample, T=t, **told)
            for t in dict.fromkeys((T, study.trained_T))
        }
        for name, network in networks.items()
        if name != "standard"
    }


def describe_two_by_two_by_two(figures):
    return one_table(
        {
            "network": f"{row['network']}, T={row['train_T']:g}",
            "attack at T": f"{row['test_T']:g}",
            **successes(row),
        }
        for row in figures
    )


@part("4. Training temperature, distillation, temperature of the attack", describe_two_by_two_by_two, needs=NETWORKS)
def two_by_two_by_two(networks, study):
    """Algorithm 1 on every network there is, its loss at T = 1 and at the T of training, in rows."""
    rows = []
    for name in sorted(networks, key=lambda name: (NETWORKS[name].at_temperature, NETWORKS[name].teacher is not None)):
        train_T = study.trained_T if NETWORKS[name].at_temperature else 1.0
        for T in (1.0, study.trained_T):
            row = {"network": name, "train_T": train_T, "distilled": NETWORKS[name].teacher is not None, "test_T": T}
            rows.append(row | study.outcomes(networks[name], T=T))
    return rows


@part(
    "5. Success against moves, up to all pixels",
    functools.partial(curves.describe, shown=(1, 10, 30, 100, 300)),
    functools.partial(curves.draw, names=curves.ONE_MAP, scale="symlog"),
    curves.tell_one_map,
)
def success_by_pixels(networks, study):
    """One map an image: network -> attack -> masking.success_curve over all pixels."""
    found, pixels = curves.moves_to_success(curves.ONE_MAP, networks, study), common.PIXELS
    return {n: {a: masking.success_curve(moves, pixels) for a, moves in of.items()} for n, of in found.items()}


@part(
    "6. Stronger attacks, success against moves",
    functools.partial(curves.describe, shown=curves.BUDGETS, note=curves.NOTE),
    functools.partial(curves.draw, names=curves.DRAWN),
    curves.tell_stronger,
)
def stronger_attacks(networks, study):
    """network -> attack -> masking.success_curve up to the limit; best: of all, for each image."""
    figures = {}
    for name, found in curves.moves_to_success(curves.STRONGER, networks, study).items():
        found["best"] = np.minimum.reduce(list(found.values()))
        figures[name] = {attack: masking.success_curve(moves, study.setting.limit) for attack, moves in found.items()}
    return figures


def describe_verdict(figures):
    parts = Parts()
    for network, found in figures.items():
        for arithmetic, judged in found.items():
            points = [f"{check['outcome']}: {check['check']}: {check['ground']}" for check in judged["checks"]]
            if judged.get("missed"):
                count = judged["checks"][0]["images"]
                missed = f"Sparse-RS finds {judged['missed']} that it misses; on {judged['missed_saturated']} of these"
                points.append(f"{missed} p_k is 1 in float32, as on {judged['saturated']} of all {count}")
            parts += [f"{network}, {arithmetic}: {judged['sentence']}", points]
    return parts


def missed(network, moves, study):
    """How many images Sparse-RS finds and the gradient in plain arithmetic misses, and on how many of these, and of
    all, p_k is 1. moves: as of moves_to_success."""
    limit, attacked = study.setting.limit, study.sample.part(study.right(network))
    saturated = masking.saturated(network, attacked.images, attacked.labels, study.setting.T)
    found = (moves["iterative_plain"] > limit) & (moves["sparse_rs"] <= limit)
    counts = {"missed": found, "missed_saturated": found & saturated, "saturated": saturated}
    return {name: int(counted.sum()) for name, counted in counts.items()}


@part("7. The published signs of gradient masking", describe_verdict)
def verdict(networks, study):
    """masking.judge of each network in plain and in scaled arithmetic, in plain also what is `missed`: network ->
    arithmetic -> figures."""
    figures, one_step = {}, f"algorithm_{masking.ONE_STEP}"
    names = [f"{attack}_{arithmetic}" for attack in (one_step, "iterative") for arithmetic in ARITHMETICS]
    names += ["sparse_rs", "random_search", "transfer"]
    for network, moves in curves.moves_to_success(names, networks, study).items():
        figures[network] = {}
        for arithmetic in ARITHMETICS:
            rivals = {"one step": moves[f"{one_step}_{arithmetic}"], "Sparse-RS": moves["sparse_rs"]}
            rivals |= {name.replace("_", " "): moves[name] for name in ("transfer", "random_search") if name in moves}
            figures[network][arithmetic] = masking.judge(moves[f"iterative_{arithmetic}"], rivals, study.setting.limit)
        figures[network]["plain"] |= missed(networks[network], moves, study)
    return figures


def describe_cost(figures):
    return one_table(
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


@part("8. Passes per image, counted and at most", describe_cost, needs=["standard"])
def cost(networks, study):
    """masking.cost of each algorithm on the first COST_IMAGES that `standard` classifies correctly, in scaled
    arithmetic, which succeeds early: algorithm -> figures."""
    network = networks["standard"]
    images, labels, *_ = study.sample.part(np.flatnonzero(study.right(network))[:COST_IMAGES])
    setting, figures = dataclasses.replace(study.setting, arithmetic="scaled"), {}
    for algorithm in masking.COSTS:
        result = common.attack(network, images, labels, algorithm, setting, study.store)
        figures[algorithm] = masking.cost(result, algorithm, setting.limit)
    return figures


def section(name, figures, folder, stem="masking"):
    """What a report shows of a part: a sentence and the picture that study has drawn, if any; what describe says."""
    part = PARTS[name]
    caption = f"{part.title.partition('. ')[2]}."
    shown = [part.tell(figures), Picture(caption, folder / f"{stem}_{name}.png")] if part.draw else []
    return Section(part.title, Parts(shown), level=3, more=part.describe(figures))


def without_images(results):
    """Results less the figures of every image, which masking_budget.csv holds."""
    if not isinstance(results, dict):
        return results
    return {name: without_images(value) for name, value in results.items() if name != "by_image"}


def study(parts, trained, study, folder, stem="masking"):
    """Measure each of the parts, names of PARTS; yields (name, figures), then prints and draws them.

    trained: name -> network, `standard` among them. study: a Study. stem: what the names of pictures begin with. Raises
    UsageError where one of the networks is right on no image: there is nothing to attack; or gradient_budget has none
    to compare with standard.
    """
    given = {part: {name: trained[name] for name in PARTS[part].needs if name in trained} for part in parts}
    if "gradient_budget" in parts and len(given["gradient_budget"]) < 2:
        raise common.UsageError(
            "gradient_budget compares with standard: name temperature or distilled beside it, or --parts without it"
        )
    for name, network in trained.items():
        right = study.right(network)
        if not right.any():
            raise common.UsageError(f"{name} classifies none of {len(right)} test images correctly: train it")
    for name in parts:
        figures = PARTS[name].measure(given[name], study)
        yield name, figures
        shown = section(name, figures, folder, stem)
        print(f"\n{shown.heading}\n{shown.whole()}", flush=True)
        for shown_part in shown.parts:
            if isinstance(shown_part, Picture):
                PARTS[name].draw(shown_part.path, figures)


def find_or_train(parts, dataset, protocol, folder, ties):
    """Name -> network: those that the parts need, found in the folder or among the committed ones, or trained."""
    needed, found = {name for part in parts for name in PARTS[part].needs}, {}
    for name in (name for name in NETWORKS if name in needed):
        file_name = protocol.file_name(name)
        try:
            path = common.find_weights(file_name, protocol.dataset, folder, "--weights")
            print(f"{name}: {path}, taken as it is", flush=True)
        except common.UsageError:
            print(f"{name}: to be trained, {protocol.epochs} epochs", flush=True)
            _, history = train(name, dataset, protocol, folder, teacher=found.get(NETWORKS[name].teacher))
            plot_history(folder / f"{file_name}.png", name, protocol.recipe(name).temperature, history)
            path = folder / f"{file_name}.npz"
        found[name] = protocol.load(name, path, ties)
    return found


def named_weights(text):
    """NAME=FILE as (name, path)."""
    name, _, path = text.partition("=")
    if name not in NETWORKS or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE.npz with NAME one of {', '.join(NETWORKS)}, got {text!r}")
    return name, Path(path)


def file_name(parts):
    """Of the JSON: a run of some parts alone replaces no other's."""
    some = "".join(f"_{name}" for name in PARTS if name in parts)
    return f"masking{'' if set(parts) == set(PARTS) else some}.json"


def main(options):
    if options.weights:
        refuse_training(options, "--weights")
        named = [name for name, _ in options.weights]
        if len(set(named)) < len(named):
            raise common.UsageError(f"--weights names a network twice: {', '.join(named)}")
        if "standard" not in named:
            raise common.UsageError("--weights must name standard=FILE.npz: the other networks are measured against it")
    dataset, protocol = common.load_data(options.dataset, options.validation), chosen_protocol(options)
    if options.weights:
        trained = {name: protocol.load(name, path, options.ties) for name, path in options.weights}
    else:
        trained = find_or_train(options.parts, dataset, protocol, options.out, options.ties)
    asked = options.first or options.images
    count = asked and len(common.chosen_sample(options, dataset, asked).labels)
    told = Study(
        dataset=dataset,
        count=count,
        seed=options.seed,
        first=options.first is not None,
        setting=common.setting(options),
        trained_T=options.temperature,
        store=common.Store(options.out / "parts"),
    )
    results = common.environment(options) | {
        "weights": {name: common.network_key(network)["weights"] for name, network in trained.items()},
        "trained_at": {name: protocol.recipe(name).temperature for name in trained},
        "ties": options.ties,
        "limit": told.setting.limit,
    }
    files = common.beside(options, Path(file_name(options.parts)).stem)
    for name, figures in study(options.parts, trained, told, files.parent, files.name):
        results[name] = figures
        common.write_json(options.json, without_images(results))
    print()
    drawn = (name for name in options.parts if PARTS[name].draw)
    common.written(options.json, *(files.with_name(f"{files.name}_{name}.png") for name in drawn))


if __name__ == "__main__":
    described = "\n".join(f"    {p.name:20}{p.title}" for p in PARTS.values())
    parser = common.arguments(f"{__doc__ or ''}\n{described}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="default: all")
    parser.add_argument(
        "--weights", nargs="+", type=named_weights, metavar="NAME=FILE.npz", help="these networks and no others"
    )
    training_arguments(parser)
    common.attack_arguments(parser, "100 of digits, 300 of mnist; all for gradient_budget")
    common.run(main, parser, lambda options: file_name(options.parts))
