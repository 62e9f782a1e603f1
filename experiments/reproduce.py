"""The main job: train the paper's three networks, attack them with its algorithms, and set what comes out beside what
the paper says.

Networks: standard (T = 1), temperature (T = 20 on hard labels, also the teacher), distilled (T = 20 on its soft
labels). Every attack is run with the author's arithmetic (plain float32, which underflows) and with ours (scaled). In
the folder: results.json, report.md, report.html, the figures, and the trained networks. Everything resumes.

The paper's protocol is --dataset mnist (50 epochs); the default is scikit-learn's digits, a few minutes. --trained
experiments/results/mnist takes the networks that come with the project instead of training. --masking adds what
experiments.masking finds, a longer study of why temperature seemed to work.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments import claims, common, figures, masking, report
from experiments.claims import Missing
from minicnn import data, training
from minicnn.paper import attacks
from minicnn.paper.attacks import ARITHMETICS
from minicnn.paper.networks import PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import saliency_maps

# Test images for the algorithms that try every pixel (4: after every move), where --images and --refreshed are silent.
EXPENSIVE = {"digits": {"2": 50, "author": 50, "4": 10}, "mnist": {"2": 1000, "author": 1000, "4": 50}}
# The networks that the table needs them on; the others run on all.
ATTACKED = {"2": ("standard",), "4": ("standard",)}
OF_A_RATE = ("counted", "succeeded", "success_rate", "success_interval", "mean_moves_of_successes")
FIGURE_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the networks are attacked with.

    images: algorithm -> on how many test images, from the first; setting: of the attacks, its arithmetic ignored;
    denominator: of success rates, one of common.DENOMINATORS; trained_T: of the networks trained at temperature.
    """

    images: dict
    setting: attacks.Setting
    denominator: str
    trained_T: float

    def settings(self):
        """The setting in each arithmetic."""
        return [dataclasses.replace(self.setting, arithmetic=arithmetic) for arithmetic in ARITHMETICS]


def main(options):
    if options.trained and options.seeds > 1:
        raise common.UsageError("--trained holds the networks of one seed: leave out --seeds, or train")
    dataset = common.load_data(options.dataset, options.validation)
    protocol, store = common.protocol(options), common.Store(options.out / "parts")
    counts = image_counts(dataset, options.images, options.refreshed)
    plan = Plan(counts, common.setting(options), options.denominator, options.temperature)

    seeds, shown = [], None
    for seed in range(options.seed, options.seed + options.seeds):
        folder = options.out if shown is None else options.out / f"seed{seed}"
        print(f"seed {seed}: training and attacking {', '.join(PAPER_NETWORKS)} on {dataset.name}", flush=True)
        of_seed = dataclasses.replace(protocol, seed=seed)
        networks, epochs = find_networks(dataset, of_seed, options.trained, folder, options.ties)
        seeds.append({"seed": seed, "epochs": epochs, "networks": measure(networks, dataset, plan, store)})
        shown = shown or networks
    runs = [seed["networks"] for seed in seeds]
    their_networks = author_networks(dataset, options.device, options.ties)
    if isinstance(their_networks, Missing):
        theirs = appendix = their_networks
    else:
        print("the author's own networks", flush=True)
        theirs, appendix = (
            measure(their_networks, dataset, plan, store),
            appendix_a(their_networks["standard"], dataset),
        )
    table = claims.rows(claims.Results(runs, plan.trained_T, theirs, appendix))

    results = common.environment(options) | {
        "runs": seeds,
        "author": theirs.reason if isinstance(theirs, Missing) else {"networks": theirs},
        "appendix_a": appendix.reason if isinstance(appendix, Missing) else appendix,
        "setting": {key: value for key, value in vars(plan.setting).items() if key != "arithmetic"},
        "denominator": plan.denominator,
        "temperature": plan.trained_T,
        "table": [row._asdict() for row in table],
    }
    results["setting"] |= {"ties": options.ties, "images": plan.images}
    if not options.trained:
        results["recipes"] = {name: vars(protocol.recipe(name)) for name in PAPER_NETWORKS}
    common.write_json(options.json, results)
    print("\n" + report.terminal(table))

    pictures = draw(options.out, dataset, shown, their_networks, runs, plan)
    text, sections = about(results), [report.Section("Figures", "", pictures)]
    report.write(options.out, text, table, sections)
    if options.masking:
        ours = masking_networks(shown, dataset, protocol, options.trained, options.out, options.ties)
        studied = {"Why temperature seemed to work": (ours, options.out)}
        if not isinstance(their_networks, Missing):
            studied["The author's networks"] = their_networks, options.out / "author"
        told = masking.Study(plan.setting, plan.trained_T, options.seed, options.images, store)
        results["masking"], more = study_masking(studied, dataset, told)
        common.write_json(options.json, results)
        report.write(options.out, text, table, sections + more)
    print(f"\nwritten: {options.json}, {options.out}/report.md and report.html with their figures")


def image_counts(dataset, images, refreshed):
    """Algorithm -> the number of test images that it is run on. images, refreshed: as asked for, or None."""
    tested = len(dataset.test_labels)
    if max(images or 0, refreshed or 0) > tested:
        common.note(f"{dataset.name} has {tested} test images: no more are taken")
    cheap = images or common.DATASET_DEFAULTS[dataset.name]["images"]
    counts = {"1": cheap, "3": cheap} | EXPENSIVE[dataset.name]
    if images:
        counts |= {"2": images, "author": images}
    if refreshed is not None:
        counts["4"] = refreshed
    counts["2"] = max(counts["2"], counts["4"])  # their row compares the two on the same images
    return {algorithm: min(count, tested) for algorithm, count in counts.items()}


def find_networks(dataset, protocol, trained, folder, ties):
    """The paper's three networks, trained to the folder, or taken from the folder `trained` unless that is None:
    name -> network, name -> epochs of its training."""
    if trained:
        histories = {name: common.read_csv(trained / f"{name}.csv") for name in PAPER_NETWORKS}
        paths = {name: trained / f"{name}.npz" for name in PAPER_NETWORKS}
    else:
        histories = {name: common.train(name, dataset, protocol, folder, draw=False)[1] for name in PAPER_NETWORKS}
        paths = {name: folder / f"{protocol.file_name(name)}.npz" for name in PAPER_NETWORKS}
    T = {name: protocol.recipe(name).temperature for name in PAPER_NETWORKS}
    networks = {name: common.load_network(path, protocol.device, ties, T=T[name]) for name, path in paths.items()}
    for name, history in histories.items():
        common.plot_history(folder / f"{name}.png", name, T[name], history)
    return networks, {name: len(history) for name, history in histories.items()}


def author_networks(dataset, device, ties):
    """The author's two released networks, name -> network, or Missing."""
    if dataset.name != "mnist":
        return Missing("needs --dataset mnist, on which the author's networks were trained")
    folder = (data.data_folder() or Path()) / "author_networks"
    files = {"standard": folder / "standard.npz", "temperature": folder / "temperature20.npz"}
    if not all(path.exists() for path in files.values()):
        return Missing("needs the author's networks: author_networks/*.npz in the folder that MINICNN_DATA names")
    return {name: common.load_network(path, device, ties) for name, path in files.items()}


def measure(networks, dataset, plan, store):
    """The figures of networks (name -> network, among them "standard", with which gradients are compared): a
    claims.Run."""
    images, labels, T = dataset.test_images, dataset.test_labels, plan.setting.T
    correct = {name: training.correct(network, images, labels) for name, network in networks.items()}
    run = {}
    for name, network in networks.items():
        run[name] = {
            "correct": int(correct[name].sum()),
            "tested": len(labels),
            "attacks": attack_all(name, network, dataset, correct, plan, store),
        }
        if name != "standard":
            temperatures = {"T": T, "reference_T": T, "trained_T": plan.trained_T}
            budget = masking.budget(network, networks["standard"], images, labels, **temperatures, store=store)
            run[name]["gradient"] = masking.without_images(budget)
        plain, scaled = (claims.rate([run], name, "1", arithmetic) for arithmetic in ARITHMETICS)
        accuracy = correct[name].mean()
        print(f"{name}: {accuracy:.2%} correct; Algorithm 1 succeeds on {plain} plain, {scaled} scaled", flush=True)
    return run


def attack_all(name, network, dataset, correct, plan, store):
    """Every attack on one network: algorithm -> arithmetic -> attacks.summary. correct: as for common.counted."""
    found = {}
    for algorithm in attacks.ALGORITHMS:
        count = plan.images[algorithm]
        if not count or name not in ATTACKED.get(algorithm, PAPER_NETWORKS):
            continue
        images, labels = dataset.test_images[:count], dataset.test_labels[:count]
        counted = common.counted(plan.denominator, correct, name, count)
        results = {
            setting.arithmetic: common.attack(network, images, labels, algorithm, setting, store, f"{name}: ")
            for setting in plan.settings()
        }
        found[algorithm] = {arithmetic: attacks.summary(result, counted) for arithmetic, result in results.items()}
        if algorithm == "2" and plan.images["4"]:
            of_4 = counted & (np.arange(count) < plan.images["4"])
            alone = {arithmetic: attacks.summary(result, of_4) for arithmetic, result in results.items()}
            found[claims.ON_THE_SAME_IMAGES] = {a: {k: summary[k] for k in OF_A_RATE} for a, summary in alone.items()}
    return found


def appendix_a(network, dataset):
    """The map of Appendix A, and Algorithm 1 on it, from the author's standard network (ties "all", as he had it):
    arithmetic -> figures."""
    network = rescaled(network, ties="all")
    index = claims.APPENDIX_A["index"]
    images, labels = dataset.test_images[index : index + 1], dataset.test_labels[index : index + 1]
    found = {}
    for arithmetic in ARITHMETICS:
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


def draw(folder, dataset, networks, their_networks, runs, plan):
    """All figures of the table's report, to the folder; returns (caption, path) pairs. their_networks: the author's."""
    trained_at = f"T = {plan.trained_T:g}"
    draw_finding(folder / "finding.png", dataset, networks["temperature"], plan)
    names = ["standard\nT = 1", f"temperature\n{trained_at}", f"distilled\n{trained_at}"]
    panels = {
        f"Algorithm {algorithm}": {a: [claims.rate(runs, n, algorithm, a) for n in PAPER_NETWORKS] for a in ARITHMETICS}
        for algorithm in "13"
    }
    figures.draw_rates(folder / "success.png", panels, names)
    pictures = [
        ("The finding: the same network, image and attack, plain and scaled float32.", "finding.png"),
        ("Success of Algorithms 1 and 3; bars are Wilson 95 % intervals.", "success.png"),
    ]
    images, labels = dataset.test_images[:FIGURE_IMAGES], dataset.test_labels[:FIGURE_IMAGES]
    attacked = {
        "": ("Figures 1 and 2", networks["standard"]),
        "temperature_": (f"The same on the {trained_at} network", networks["temperature"]),
    }
    if not isinstance(their_networks, Missing):
        attacked["author_"] = "The same on the author's standard network", their_networks["standard"]
    for prefix, (title, network) in attacked.items():
        for setting in plan.settings():
            name = f"figures_1_and_2_{prefix}{setting.arithmetic}.png"
            result, decisions = attack_and_look(network, images, labels, setting)
            heading = f"{title}: Algorithm 1, {setting.arithmetic} arithmetic"
            figures.draw_samples(folder / name, images, labels, result, decisions, heading)
            pictures.append((f"{title}, {setting.arithmetic} arithmetic.", name))
    for name in PAPER_NETWORKS:
        rows = [(a, saliency_maps(networks[name], images, labels, plan.setting.T, a)) for a in ARITHMETICS]
        figures.draw_maps(folder / f"saliency_{name}.png", images, rows)
        pictures.append((f"Saliency maps of the {name} network.", f"saliency_{name}.png"))
        pictures.append((f"Training of the {name} network.", f"{name}.png"))
    return [(caption, folder / name) for caption, name in pictures]


def attack_and_look(network, images, labels, setting):
    """Algorithm 1: its AttackResult, and the network's decisions on what it made, (N,)."""
    result = attacks.attack(network, images, labels, "1", setting)
    return result, training.predict(network, result.adversarial).argmax(axis=1)


def draw_finding(path, dataset, network, plan):
    """One sample, its map and Algorithm 1, in plain and in scaled arithmetic, on the T-trained network.

    The sample is the first that the network sees correctly and whose plain map is zero, or the first seen correctly.
    """
    images, labels = dataset.test_images[: plan.images["1"]], dataset.test_labels[: plan.images["1"]]
    plain = saliency_maps(network, images, labels, plan.setting.T, "plain")
    decisions = plain.logits.argmax(axis=1)
    shown = int(np.argmax(2 * (decisions == labels) + (plain.zeros == plain.maps[0].size)))
    image, label = images[shown : shown + 1], labels[shown : shown + 1]
    rows = []
    for setting in plan.settings():
        result, (decision,) = attack_and_look(network, image, label, setting)
        maps = saliency_maps(network, image, label, setting.T, setting.arithmetic)
        rows.append((setting.arithmetic, maps, result, decision))
    figures.draw_finding(path, image[0], f"T = {plan.trained_T:g} network sees {decisions[shown]}", rows)


def about(results):
    """What stands around the table, from what is written as results.json: report.Text."""
    epochs = sorted({n for run in results["runs"] for n in run["epochs"].values()})
    machine, setting, seeds = results["machine"], results["setting"], len(results["runs"])
    names = {"author": "the author's own attack"} | {a: f"Algorithm {a}" for a in "1234"}
    counts = ", ".join(f"{setting['images'][a]} for {name}" for a, name in sorted(names.items()))
    return report.Text(
        title=f"Temperature and robustness on {results['dataset']}: the paper beside the truth",
        introduction=(
            f"Song (2017), reproduced with minicnn: {' to '.join(map(str, epochs))} epochs of training, "
            f"{seeds} seed{'s' * (seeds > 1)}. Plain is the author's float32 arithmetic, scaled is float32 without "
            f"underflow. Attacks make at most {setting['limit']} moves, to 0 or {setting['maximum']:g}, against the "
            f"loss at T = {setting['T']:g}; equal maxima of a max-pool: gradient to {setting['ties']}. Test images, "
            f"from the first: {counts}. The denominator of success rates: "
            f"{common.DENOMINATORS[results['denominator']]}; intervals are Wilson 95 %."
        ),
        footer=(
            f"{results['command']}, {results['date']}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['device']}"
        ),
    )


def masking_networks(networks, dataset, protocol, trained, folder, ties):
    """The networks of experiments.masking: also the one that the paper has not, where the folder `trained` has it."""
    if not trained:
        return masking.find_or_train(masking.PARTS, dataset, protocol, folder, ties)
    name = "standard-distilled"
    path, T = trained / f"{name}.npz", protocol.recipe(name).temperature
    return networks | ({name: common.load_network(path, protocol.device, ties, T=T)} if path.exists() else {})


def study_masking(studied, dataset, told):
    """experiments.masking on each of `studied`, heading -> (networks, folder of its pictures); told: masking.Study.
    Returns heading -> part -> figures, and the Sections that show them."""
    results, sections = {}, []
    for heading, (networks, folder) in studied.items():
        found = dict(masking.study(masking.PARTS, networks, dataset, told, folder))
        results[heading] = masking.without_images(found)
        shown = [masking.section(part, part_figures, folder) for part, part_figures in found.items()]
        sections += [report.Section(f"{heading}: {title}", *rest) for title, *rest in shown]
    return results, sections


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
