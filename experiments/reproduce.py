"""The main job: train the paper's three networks, attack them with its algorithms, and set what comes out beside what
the paper says.

Networks: standard (T = 1), temperature (T = 20 on hard labels, also the teacher), distilled (T = 20 on its soft
labels). Every attack is run with the author's arithmetic (plain float32, which underflows) and with ours (scaled). In
the folder: results.json, report.md, report.html, the figures, and the trained networks. Everything resumes.

The paper's protocol is --dataset mnist (50 epochs); the default is scikit-learn's digits, a few minutes. --trained
experiments/results/mnist takes the networks that come with the project instead of training. --masking adds what
experiments.masking finds, a longer study of why temperature seemed to work.
"""

import argparse
import copy
import os
from pathlib import Path

import numpy as np

from experiments import common, masking, masking_show, report
from experiments.saliency_maps import draw_maps, draw_samples, show_image, show_map, show_moves
from minicnn import attacks, networks
from minicnn.saliency import saliency_maps

# Test images for the algorithms that try every pixel (4: after every move), where --images and --refreshed are silent.
EXPENSIVE = {"digits": {"2": 50, "author": 50, "4": 10}, "mnist": {"2": 1000, "author": 1000, "4": 50}}
# The networks that the table needs them on; the others run on all.
ATTACKED = {"2": ("standard",), "4": ("standard",)}
FIGURE_IMAGES = 8


def image_counts(options, dataset):
    """Algorithm -> the number of test images that it is run on."""
    cheap = options.images or common.PROTOCOL[options.dataset]["images"]
    counts = {"1": cheap, "3": cheap} | EXPENSIVE[options.dataset]
    if options.images:
        counts |= {"2": options.images, "author": options.images}
    if options.refreshed is not None:
        counts["4"] = options.refreshed
    counts["2"] = max(counts["2"], counts["4"])  # their row compares the two on the same images
    return {algorithm: min(count, len(dataset.test_labels)) for algorithm, count in counts.items()}


def measure(name, network, correct, dataset, options, store):
    """The figures of one network: accuracy, and every attack in both arithmetics. correct: as for common.counted."""
    figures = {"correct": int(correct[name].sum()), "tested": len(correct[name]), "attacks": {}}
    counts = image_counts(options, dataset)
    for algorithm in attacks.ALGORITHMS:
        if name not in ATTACKED.get(algorithm, common.NETWORKS) or not counts[algorithm]:
            continue
        count = counts[algorithm]
        images, labels = dataset.test_images[:count], dataset.test_labels[:count]
        counted = common.counted(options.denominator, correct, name, count)
        for arithmetic in ("plain", "scaled"):
            setting = common.setting(options, arithmetic)
            result = common.attack(network, images, labels, algorithm, setting, store, f"{name}: ")
            figures["attacks"].setdefault(algorithm, {})[arithmetic] = attacks.summary(result, counted)
            if algorithm == "2" and counts["4"]:
                of_4 = counted & (np.arange(count) < counts["4"])
                same_images = figures["attacks"].setdefault(report.ON_THE_SAME_IMAGES, {})
                of_4_alone = attacks.summary(result, of_4)
                same_images[arithmetic] = {k: of_4_alone[k] for k in report.OF_A_RATE}
    return figures


def study(trained, dataset, options):
    """The figures of every network in `trained` (name -> network; "standard" is the reference of the gradients)."""
    figures, store = {}, common.Store(options.out / "parts")
    correct = {
        name: networks.predict(network, dataset.test_images).argmax(axis=1) == dataset.test_labels
        for name, network in trained.items()
    }
    for name, network in trained.items():
        figures[name] = measure(name, network, correct, dataset, options, store)
        if name != "standard":
            tested = dataset.test_images, dataset.test_labels
            budget = masking.gradient_budget(network, trained["standard"], *tested, options)
            figures[name]["gradient"] = masking_show.without_images(budget)
        accuracy = figures[name]["correct"] / figures[name]["tested"]
        plain, scaled = (report.rate([{"networks": figures}], name, "1", a) for a in ("plain", "scaled"))
        print(f"{name}: {accuracy:.2%} correct; Algorithm 1 succeeds on {plain} plain, {scaled} scaled", flush=True)
    return {"networks": figures}


def train_all(dataset, options):
    """The paper's three networks, trained here or taken from --trained: name -> network, name -> history."""
    if options.trained:
        histories = {name: common.read_csv(options.trained / f"{name}.csv") for name in common.NETWORKS}
        for name, history in histories.items():
            common.plot_history(options.out / f"{name}.png", name, common.recipe(name, options).temperature, history)
    else:
        histories = {name: common.train(name, options, dataset)[1] for name in common.NETWORKS}
    folder = options.trained or options.out
    return {name: common.load_network(folder / f"{name}.npz", options) for name in common.NETWORKS}, histories


def masking_networks(trained, dataset, options):
    """The networks of experiments.masking: also the one that the paper has not, where --trained has it."""
    if not options.trained:
        return masking.find_or_train(masking.PARTS, options, dataset)
    path = options.trained / "standard-distilled.npz"
    return trained | ({"standard-distilled": common.load_network(path, options)} if path.exists() else {})


def author_networks(options):
    """The author's two released networks: name -> network, or what is needed to have them, for a sentence."""
    if options.dataset != "mnist":
        return "needs --dataset mnist, on which the author's networks were trained"
    folder = Path(os.environ.get("MINICNN_DATA", ""), "author_networks")
    files = {"standard": folder / "standard.npz", "temperature": folder / "temperature20.npz"}
    if not all(path.exists() for path in files.values()):
        return "needs the author's networks: author_networks/*.npz in the folder that MINICNN_DATA names"
    return {name: common.load_network(path, options) for name, path in files.items()}


def appendix_a(network, dataset):
    """The map of Appendix A, and Algorithm 1 on it, from the author's standard network (ties "all", as he had it)."""
    network = masking.rescaled(network, ties="all")
    chosen = slice(report.APPENDIX_A["index"], report.APPENDIX_A["index"] + 1)
    images, labels = dataset.test_images[chosen], dataset.test_labels[chosen]
    found = {}
    for arithmetic in ("plain", "scaled"):
        result = attacks.attack(network, images, labels, "1", attacks.Setting(arithmetic))
        maps = saliency_maps(network, images, labels, arithmetic=arithmetic)
        found[arithmetic] = {
            "mean": float(maps.maps.mean(dtype=np.float64)),
            "max": float(maps.maps.max()),
            "log10_max": float(np.log10(maps.maps.max()) + maps.log10_scale[0]),
            "moves": int(result.moves[0]),
            "succeeded": bool(result.succeeded[0]),
        }
    return found


def draw_finding(path, dataset, network, options):
    """The finding in one picture: one sample, its map and Algorithm 1, in plain and in scaled arithmetic.

    The sample is the first that the network sees correctly and whose plain map is zero, or the first seen correctly.
    """
    count = image_counts(options, dataset)["1"]
    images, labels = dataset.test_images[:count], dataset.test_labels[:count]
    T = options.attack_temperature
    plain = saliency_maps(network, images, labels, T, "plain")
    correct = plain.logits.argmax(axis=1) == labels
    shown = int(np.argmax(2 * correct + (plain.zeros == plain.maps[0].size)))
    images, labels = images[shown : shown + 1], labels[shown : shown + 1]
    fig, axes = common.figure(2, 3, width=2.2, height=2.6)
    for line, arithmetic in zip(axes, ("plain", "scaled"), strict=True):
        found = saliency_maps(network, images, labels, T, arithmetic)
        result = attacks.attack(network, images, labels, "1", common.setting(options, arithmetic))
        decision = networks.predict(network, result.adversarial).argmax()
        zero = found.zeros[0] == found.maps[0].size
        show_image(line[0], images[0, 0], f"T = {options.temperature:g} network sees {plain.logits[shown].argmax()}")
        size = "exactly 0 everywhere" if zero else f"largest gradient $10^{{{found.log10_size()[0]:.0f}}}$"
        show_map(line[1], found.maps[0], f"saliency map, {arithmetic} float32:\n{size}")
        outcome = f"sees {decision}" if result.succeeded[0] else f"still sees {decision}"
        show_moves(line[2], images[0, 0], result.adversarial[0, 0])
        line[2].set_title(f"Algorithm 1, {result.moves[0]} moves:\n{outcome}", fontsize=8)
    common.save_figure(path, fig)


def draw_rates(path, runs, T):
    """Success of Algorithms 1 and 3 on the three networks, plain beside scaled, with 95 % intervals."""
    fig, axes = common.figure(1, 2, width=4.2)
    for panel, algorithm in zip(axes[0], "13", strict=True):
        for offset, arithmetic in ((-0.2, "plain"), (0.2, "scaled")):
            rates = [report.rate(runs, name, algorithm, arithmetic) for name in common.NETWORKS]
            shares = [100 * r.share for r in rates]
            errors = [
                [100 * (r.share - r.interval[0]) for r in rates],
                [100 * (r.interval[1] - r.share) for r in rates],
            ]
            panel.bar(np.arange(3) + offset, shares, 0.4, yerr=errors, capsize=3, label=f"{arithmetic} float32")
        panel.set_xticks(range(3), ["standard\nT = 1", f"temperature\nT = {T:g}", f"distilled\nT = {T:g}"])
        panel.set(title=f"Algorithm {algorithm}", ylim=(0, 105))
        panel.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("adversarial samples found (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    common.save_figure(path, fig)


def draw_figures(dataset, trained, author, runs, options):
    """All figures of the table's report; returns (caption, path) pairs. author: as author_networks() has them."""
    images, labels = dataset.test_images[:FIGURE_IMAGES], dataset.test_labels[:FIGURE_IMAGES]
    out = options.out
    draw_finding(out / "finding.png", dataset, trained["temperature"], options)
    draw_rates(out / "success.png", runs, options.temperature)
    pictures = [
        ("The finding: the same network, image and attack, plain and scaled float32.", "finding.png"),
        ("Success of Algorithms 1 and 3; bars are Wilson 95 % intervals.", "success.png"),
    ]
    attacked = {
        "": ("Figures 1 and 2", trained["standard"]),
        "temperature_": (f"The same on the T = {options.temperature:g} network", trained["temperature"]),
    }
    if not isinstance(author, str):
        attacked["author_"] = "The same on the author's standard network", author["standard"]
    for prefix, (title, network) in attacked.items():
        for arithmetic in ("plain", "scaled"):
            path = out / f"figures_1_and_2_{prefix}{arithmetic}.png"
            result = attacks.attack(network, images, labels, "1", common.setting(options, arithmetic))
            decisions = networks.predict(network, result.adversarial).argmax(axis=1)
            draw_samples(path, images, labels, result, decisions, f"{title}: Algorithm 1, {arithmetic} arithmetic")
            pictures.append((f"{title}, {arithmetic} arithmetic.", path.name))
    for name in common.NETWORKS:
        T = options.attack_temperature
        found = [(a, saliency_maps(trained[name], images, labels, T, a)) for a in ("plain", "scaled")]
        draw_maps(out / f"saliency_{name}.png", images, found)
        pictures.append((f"Saliency maps of the {name} network.", f"saliency_{name}.png"))
        pictures.append((f"Training of the {name} network.", f"{name}.png"))
    return [(caption, out / name) for caption, name in pictures]


def masking_sections(heading, trained, dataset, options):
    """Run experiments.masking: its results, and the sections of the report that show them."""
    results = dict(masking.study(masking.PARTS, trained, dataset, options))
    sections = [masking_show.section(part, figures, options.out) for part, figures in results.items()]
    sections = [report.Section(f"{heading}: {title}", *rest) for title, *rest in sections]
    return masking_show.without_images(results), sections


def main(options):
    if options.trained and options.seeds > 1:
        raise common.UsageError("--trained holds the networks of one seed: leave out --seeds, or train")
    dataset = common.load_data(options)
    runs = []
    for seed in range(options.seed, options.seed + options.seeds):
        one = copy.copy(options)
        one.seed, one.out = seed, options.out if seed == options.seed else options.out / f"seed{seed}"
        print(f"seed {seed}: training and attacking {', '.join(common.NETWORKS)} on {dataset.name}", flush=True)
        trained, histories = train_all(dataset, one)
        if seed == options.seed:
            shown = trained
        epochs = {name: len(history) for name, history in histories.items()}
        runs.append({"seed": seed, "epochs": epochs} | study(trained, dataset, one))
    author_trained = author = appendix = author_networks(options)
    if not isinstance(author, str):
        print("the author's own networks", flush=True)
        appendix = appendix_a(author_trained["standard"], dataset)
        author = study(author_trained, dataset, options)
    results = common.environment(options) | {"runs": runs, "author": author, "appendix_a": appendix}
    if not options.trained:
        results["recipes"] = {name: vars(common.recipe(name, options)) for name in common.NETWORKS}
    results["setting"] = {k: v for k, v in vars(common.setting(options, "plain")).items() if k != "arithmetic"}
    results["setting"] |= {"ties": options.ties, "images": image_counts(options, dataset)}
    results["denominator"], results["temperature"] = options.denominator, options.temperature
    table = report.rows(results)
    results["table"] = [row._asdict() for row in table]
    common.write_json(options.json, results)
    print("\n" + report.terminal(table))
    sections = [report.Section("Figures", "", draw_figures(dataset, shown, author_trained, runs, options))]
    write_reports(options, dataset, results, table, sections)
    if options.masking:
        studied = {"Why temperature seemed to work": (masking_networks(shown, dataset, options), options)}
        if not isinstance(author, str):
            elsewhere = argparse.Namespace(**vars(options) | {"out": options.out / "author"})
            studied["The author's networks"] = author_trained, elsewhere
        results["masking"] = {}
        for heading, (networks_, where) in studied.items():
            results["masking"][heading], found = masking_sections(heading, networks_, dataset, where)
            sections += found
        common.write_json(options.json, results)
        write_reports(options, dataset, results, table, sections)
    print(f"\nwritten: {options.json}, {options.out}/report.md and report.html with their figures")


def write_reports(options, dataset, results, table, sections):
    """report.md and report.html beside the figures."""
    epochs = sorted({n for run in results["runs"] for n in run["epochs"].values()})
    machine, setting = results["machine"], results["setting"]
    names = {"author": "the author's own attack"} | {a: f"Algorithm {a}" for a in "1234"}
    counts = ", ".join(f"{setting['images'][a]} for {name}" for a, name in sorted(names.items()))
    text = report.Text(
        title=f"Temperature and robustness on {dataset.name}: the paper beside the truth",
        introduction=(
            f"Song (2017), reproduced with minicnn: {' to '.join(map(str, epochs))} epochs of training, "
            f"{options.seeds} seed{'s' * (options.seeds > 1)}. Plain is the author's float32 arithmetic, scaled is "
            "float32 without underflow. Attacks make at most "
            f"{setting['limit']} moves, to 0 or {setting['maximum']:g}, against the loss at T = {setting['T']:g}; "
            f"equal maxima of a max-pool: gradient to {setting['ties']}. Test images, from the first: {counts}. "
            f"Success rates are shares of {common.DENOMINATORS[options.denominator]}, with Wilson 95 % intervals."
        ),
        footer=(
            f"{results['command']}, {results['date']}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['device']}"
        ),
    )
    common.write_atomically(options.out / "report.md", report.markdown(text, table, sections, options.out).encode())
    common.write_atomically(options.out / "report.html", report.page(text, table, sections).encode())


def command_line():
    """The parser of this experiment."""
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--refreshed",
        type=common.not_negative,
        metavar="N",
        help="test images for Algorithm 4, a few seconds each; default: 10 of digits, 50 of mnist",
    )
    parser.add_argument(
        "--trained", type=Path, metavar="DIR", help="take NAME.npz and NAME.csv of the three networks from this folder"
    )
    parser.add_argument(
        "--masking", action="store_true", help="add experiments.masking to the report, some minutes to half an hour"
    )
    parser.add_argument("--seeds", type=common.positive(int), default=1, help="repeat with N seeds: mean and spread")
    common.training_arguments(parser)
    common.attack_arguments(parser, "digits 297 for Algorithms 1 and 3, 50 for 2 and the author's; mnist 1000")
    common.denominator_argument(parser)
    return parser


if __name__ == "__main__":
    common.run(main, command_line(), results=lambda options: "results.json")
