"""The main job: train the paper's three networks, attack them with its algorithms, and set what comes out beside what
the paper says.

Networks: standard (T = 1), temperature (T = 20 on hard labels, also the teacher), distilled (T = 20 on its soft
labels). Every attack is run with the author's arithmetic (plain float32, which underflows) and with ours (scaled). In
the folder: results.json, report.md, report.html, explore.html, figures and trained networks. All of it resumes.

The paper's protocol is --dataset mnist (50 epochs); the default is scikit-learn's digits, a few minutes. --trained
experiments/results/mnist takes the networks that come with the project instead of training, and with them the one that
the paper has not, where it is there. --seeds N trains or takes those of N seeds, named as train names them: only then
is anything said of training, not of two networks alone. --masking adds what experiments.masking finds, a longer study
of why temperature seemed to work. The report also shows what experiments.replay, experiments.sweep and
experiments.adversarial_samples have left in the same folder.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments import article, claims, common, explore, figures, masking, report
from experiments.author_networks import author_networks
from experiments.budget import budget
from experiments.claims import Missing
from experiments.train import chosen_protocol, plot_history, refuse_training, train, training_arguments
from minicnn import training
from minicnn.paper import attacks
from minicnn.paper.attacks import ARITHMETICS
from minicnn.paper.networks import NETWORKS, PAPER_NETWORKS, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import Outcomes, Rate, summary

# Test images for each algorithm. 2 and the author's try every pixel, 4 every pixel after every move.
IMAGES = {
    "digits": {"1": 297, "2": 50, "3": 297, "4": 10, "author": 50},
    "mnist": {"1": 10000, "2": 2000, "3": 10000, "4": 300, "author": 10000},
}
# The networks that the table needs them on; the others run on all.
ATTACKED = {"2": ("standard",), "4": ("standard",), "author": PAPER_NETWORKS}
FIGURE_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the networks are attacked with.

    images: algorithm -> on how many of the test images; setting: of the attacks, its arithmetic ignored; denominator:
    of success rates, one of common.DENOMINATORS; trained_T: of the networks trained at temperature.
    """

    images: dict
    setting: attacks.Setting
    denominator: str
    trained_T: float

    def settings(self):
        """The setting in each arithmetic."""
        return [dataclasses.replace(self.setting, arithmetic=arithmetic) for arithmetic in ARITHMETICS]


def main(options):
    if options.trained:
        refuse_training(options, "--trained")
    seeds = common.seeds(options)
    dataset = common.load_data(options.dataset, options.validation)
    sample = common.sample(dataset, len(dataset.test_labels), options.seed, options.first is not None)
    store, asked = common.Store(options.out / "parts"), options.first or options.images
    counts = image_counts(dataset, asked, options.expensive, options.refreshed)
    plan = Plan(counts, common.setting(options), options.denominator, options.temperature)
    protocols = [dataclasses.replace(chosen_protocol(options), seed=seed) for seed in seeds]
    names = PAPER_NETWORKS if options.trained is None else those_there(options.trained, protocols)

    def find(protocol):
        return find_networks(names, dataset, protocol, options.trained, options.out, options.ties)

    there = list(map(find, protocols)) if options.trained else []  # what a seed lacks is missed before any attack
    networks, histories, runs = [], [], []
    for i, protocol in enumerate(protocols):
        print(f"seed {protocol.seed}: training and attacking {', '.join(names)} on {dataset.name}", flush=True)
        ours, history = there[i] if there else find(protocol)
        networks.append(ours)
        histories.append(history)
        runs.append(measure(ours, sample, plan, store))
    their_networks, theirs, appendix = measure_author(dataset, options.device, options.ties, sample, plan, store)
    judged = claims.judge(claims.Results(runs, plan.trained_T, theirs, appendix))
    rates = over_seeds(runs) | ({} if isinstance(theirs, Missing) else over_seeds([theirs], article.THEIRS))

    environment = common.environment(options)
    setting = vars(plan.setting) | {"ties": options.ties, "images": plan.images}
    results = environment | {
        "runs": [
            {
                "seed": protocol.seed,
                "epochs": {name: len(epochs) for name, epochs in history.items()},
                "networks": masking.without_images(run),
            }
            for protocol, history, run in zip(protocols, histories, runs, strict=True)
        ],
        "author": theirs.reason if isinstance(theirs, Missing) else {"networks": masking.without_images(theirs)},
        "appendix_a": appendix.reason if isinstance(appendix, Missing) else appendix,
        "sample": sample.part(slice(max(counts.values()))).taken(),
        "setting": {key: value for key, value in setting.items() if key != "arithmetic"},
        "denominator": plan.denominator,
        "temperature": plan.trained_T,
        "seeds": {name: {of: rate.by_seed for of, rate in row.items()} for name, row in rates.items()},
        "comparisons": claims.comparisons(judged),
        "table": [found.row._asdict() for found in judged.values()],
    }
    if not options.trained:
        results["recipes"] = {name: vars(protocols[0].recipe(name)) for name in names}
    common.write_json(options.json, results)
    print(f"\n{report.terminal(claims.as_table(found.row for found in judged.values()))}\n\n{article.means(rates)}")

    pictures = draw(options.out, sample, networks[0], histories, their_networks, runs, plan, environment)
    told_of = (results, judged, rates, pictures, options.out)
    report.write(options.out, *article.article(*told_of))
    if options.masking:
        ours = masking_networks(networks[0], dataset, protocols[0], options.trained, options.out, options.ties)
        studied = {"Why temperature seemed to work": (ours, options.out)}
        if not isinstance(their_networks, Missing):
            studied["The author's networks"] = their_networks, options.out / "author"
        count = asked and min(asked, len(sample.labels))
        first = options.first is not None
        told = masking.Study(dataset, count, options.seed, first, plan.setting, plan.trained_T, store)
        results["masking"], more = study_masking(studied, told)
        common.write_json(options.json, results)
        report.write(options.out, *article.article(*told_of, more))
    print(f"\nwritten: {options.json}, {options.out}/explore.html, report.md and report.html with their figures")


def image_counts(dataset, images, expensive, refreshed):
    """Algorithm -> the number of test images that it is run on. images, for all at most, expensive, for 2 and the
    author's, and refreshed, for 4: as asked for, or None."""
    tested = len(dataset.test_labels)
    if max(images or 0, expensive or 0, refreshed or 0) > tested:
        common.note(f"{dataset.name} has {tested} test images: no more are taken")
    counts = {algorithm: min(count, images or count) for algorithm, count in IMAGES[dataset.name].items()}
    if expensive is not None:
        counts |= {"2": expensive, "author": expensive}
    if refreshed is not None:
        counts["4"] = refreshed
    counts["2"] = max(counts["2"], counts["4"])  # their row compares the two on the same images
    return {algorithm: min(count, tested) for algorithm, count in counts.items()}


def those_there(folder, protocols):
    """The paper's networks, and the one that it has not where the folder has it of every seed."""
    return tuple(
        name
        for name in NETWORKS
        if name in PAPER_NETWORKS or all((folder / f"{p.file_name(name)}.npz").exists() for p in protocols)
    )


def find_networks(names, dataset, protocol, trained, folder, ties):
    """Networks, trained to the folder, or taken from the folder `trained` unless that is None: name -> network, name ->
    history of its training."""
    if trained:
        histories = {name: common.read_csv(trained / f"{protocol.file_name(name)}.csv") for name in names}
    else:
        histories = {name: train(name, dataset, protocol, folder)[1] for name in names}
    networks = {}
    for name in names:
        path = (trained or folder) / f"{protocol.file_name(name)}.npz"
        networks[name] = protocol.load(name, path, ties)
    return networks, histories


def measure(networks, sample, plan, store):
    """The figures of networks (name -> network, among them "standard", with which gradients are compared) on a sample
    of all test images: a claims.Run."""
    images, labels, T = sample.images, sample.labels, plan.setting.T
    correct = {name: training.correct(network, images, labels) for name, network in networks.items()}
    run = {}
    for name, network in networks.items():
        run[name] = {
            "correct": int(correct[name].sum()),
            "tested": len(labels),
            "by_image": Outcomes(np.ones(len(labels), bool), correct[name]),
            "attacks": attack_all(name, network, sample, correct, plan, store),
        }
        if NETWORKS[name].at_temperature:
            temperatures = {"T": T, "reference_T": T, "trained_T": plan.trained_T}
            run[name]["gradient"] = budget(network, networks["standard"], sample, **temperatures, store=store)
        plain, scaled = (claims.rate([run], name, "1", arithmetic) for arithmetic in ARITHMETICS)
        accuracy = correct[name].mean()
        print(f"{name}: {accuracy:.2%} correct; Algorithm 1 succeeds on {plain} plain, {scaled} scaled", flush=True)
    return run


def measure_author(dataset, device, ties, sample, plan, store):
    """The author's own networks, what `measure` gives of them, and appendix_a; each Missing where there are none."""
    if dataset.name == "mnist":
        networks = author_networks(device, ties)
    else:
        networks = Missing("needs --dataset mnist, on which the author's networks were trained")
    if isinstance(networks, Missing):
        return networks, networks, networks
    print("the author's own networks", flush=True)
    return networks, measure(networks, sample, plan, store), appendix_a(networks["standard"], dataset)


def attack_all(name, network, sample, correct, plan, store):
    """Every attack on one network: algorithm -> arithmetic -> statistics.summary, and the Outcomes "by_image". correct:
    as for common.counted."""
    found = {}
    for algorithm in attacks.ALGORITHMS:
        count = plan.images[algorithm]
        if not count or name not in ATTACKED.get(algorithm, NETWORKS):
            continue
        images, labels = sample.images[:count], sample.labels[:count]
        counted = common.counted(plan.denominator, correct, name, count)
        found[algorithm] = {}
        for setting in plan.settings():
            result = common.attack(network, images, labels, algorithm, setting, store, f"{name}: ")
            by_image = Outcomes(counted, result.succeeded, result.moves)
            found[algorithm][setting.arithmetic] = summary(result, counted) | {"by_image": by_image}
    return found


def over_seeds(runs, whose=""):
    """The Rates of the runs' networks: name, after `whose`, -> what of -> Rate."""
    found = {}
    for name in runs[0]:
        rates = {"accuracy": Rate.of_seeds((run[name]["correct"], run[name]["tested"]) for run in runs)}
        for algorithm in "13":
            for arithmetic in ARITHMETICS:
                rates[f"Algorithm {algorithm}, {arithmetic}"] = claims.rate(runs, name, algorithm, arithmetic)
        found[whose + name] = rates
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


def draw(folder, sample, networks, histories, their_networks, runs, plan, environment):
    """The page to explore and all figures of the table's report, to the folder; returns name -> report.Picture.

    networks: those of one seed; histories: of every seed, name -> history; their_networks: the author's; environment:
    of common.environment, told at the foot of the page.
    """
    explore.write(folder / "explore.html", environment | explore.embed(networks, sample, plan.setting, plan.trained_T))
    trained_at = f"T = {plan.trained_T:g}"
    draw_finding(folder / "finding.png", sample, networks["temperature"], plan)
    names = ["standard\nT = 1", f"temperature\n{trained_at}", f"distilled\n{trained_at}"]
    panels = {
        f"Algorithm {algorithm}": {a: [claims.rate(runs, n, algorithm, a) for n in PAPER_NETWORKS] for a in ARITHMETICS}
        for algorithm in "13"
    }
    figures.draw_rates(folder / "success.png", panels, names)
    captions = {
        "finding": "The same network, image and attack, plain and scaled float32; red: the pixels that were changed.",
        "success": "Success of Algorithms 1 and 3; whiskers are 95 % intervals.",
    }
    images, labels = sample.images[:FIGURE_IMAGES], sample.labels[:FIGURE_IMAGES]
    attacked = {
        "": ("Figures 1 and 2", networks["standard"]),
        "temperature_": (f"Figures 1 and 2 on the {trained_at} network", networks["temperature"]),
    }
    if not isinstance(their_networks, Missing):
        attacked["author_"] = "Figures 1 and 2 on the author's standard network", their_networks["standard"]
    for prefix, (title, network) in attacked.items():
        for setting in plan.settings():
            name = f"figures_1_and_2_{prefix}{setting.arithmetic}"
            result, decisions = attack_and_look(network, images, labels, setting)
            heading = f"{title}: Algorithm 1, {setting.arithmetic} arithmetic"
            figures.draw_samples(folder / f"{name}.png", images, labels, result, decisions, heading)
            captions[name] = f"{title}, Algorithm 1 in {setting.arithmetic} arithmetic; red: the changed pixels."
    for name in PAPER_NETWORKS:
        rows = [(a, saliency_maps(networks[name], images, labels, plan.setting.T, a)) for a in ARITHMETICS]
        figures.draw_maps(folder / f"saliency_{name}.png", images, rows)
        captions[f"saliency_{name}"] = f"Saliency maps of the {name} network; above them their largest absolute entry."
    for name in histories[0]:
        T = plan.trained_T if NETWORKS[name].at_temperature else 1.0
        plot_history(folder / f"{name}.png", name, T, *(history[name] for history in histories))
        captions[name] = f"Training of the {name} network{', every seed' * (len(histories) > 1)}."
    return {name: report.Picture(caption, folder / f"{name}.png") for name, caption in captions.items()}


def attack_and_look(network, images, labels, setting):
    """Algorithm 1: its AttackResult, and the network's decisions on what it made, (N,)."""
    result = attacks.attack(network, images, labels, "1", setting)
    return result, training.predict(network, result.adversarial).argmax(axis=1)


def draw_finding(path, sample, network, plan):
    """One image, its map and Algorithm 1, in plain and in scaled arithmetic, on the T-trained network.

    The image is that of the page.
    """
    image, label, *_ = explore.choose(network, sample, plan.setting.T)
    seen = training.predict(network, image).argmax()
    rows = []
    for setting in plan.settings():
        result, (decision,) = attack_and_look(network, image, label, setting)
        maps = saliency_maps(network, image, label, setting.T, setting.arithmetic)
        rows.append((setting.arithmetic, maps, result, decision))
    figures.draw_finding(path, image[0], f"T = {plan.trained_T:g} network sees {seen}", rows)


def masking_networks(networks, dataset, protocol, trained, folder, ties):
    """The networks of experiments.masking: also the one that the paper has not, where the folder `trained` has it."""
    if not trained:
        return masking.find_or_train(masking.PARTS, dataset, protocol, folder, ties)
    name = "standard-distilled"
    path = trained / f"{protocol.file_name(name)}.npz"
    return networks | ({name: protocol.load(name, path, ties)} if path.exists() else {})


def study_masking(studied, told):
    """experiments.masking on each of `studied`, heading -> (networks, folder of its pictures); told: masking.Study.
    Returns heading -> part -> figures, and heading -> part -> the Section that shows them."""
    results, sections = {}, {}
    for heading, (networks, folder) in studied.items():
        found = dict(masking.study(masking.PARTS, networks, told, folder))
        results[heading] = masking.without_images(found)
        sections[heading] = {part: masking.section(part, figures, folder) for part, figures in found.items()}
    return results, sections


def command_line():
    """The parser of this experiment."""
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--expensive",
        type=common.positive(int),
        metavar="N",
        help="test images for Algorithm 2 and the author's; default: 50 of digits, 2000 and 10000 of mnist",
    )
    parser.add_argument(
        "--refreshed",
        type=common.not_negative,
        metavar="N",
        help="test images for Algorithm 4, a few seconds each; default: 10 of digits, 300 of mnist",
    )
    parser.add_argument(
        "--trained",
        type=common.named(Path),
        metavar="DIR",
        help="take NAME.npz and NAME.csv of the networks from this folder",
    )
    parser.add_argument(
        "--masking", action="store_true", help="add experiments.masking to the report, some minutes to half an hour"
    )
    parser.add_argument("--seeds", type=common.positive(int), default=1, help="N seeds, from --seed on: means, spreads")
    training_arguments(parser)
    common.attack_arguments(parser, "all, for Algorithms 1 and 3; no other takes more")
    common.denominator_argument(parser)
    return parser


if __name__ == "__main__":
    common.run(main, command_line(), results=lambda options: "results.json")
