"""Repeat the author's four runs on exactly his images, and compare every decision that can be compared.

The history of his repository holds pictures of adversarial samples. Known are the test images behind them, pixel by
pixel (experiments/results/author_runs), and the networks that he attacked:

    test.py            Algorithm 1: of 1,000 shuffled test images those on which it succeeded against his standard
                       network, and whether it did on these against distilled. What is misclassified before any move
                       counts as a success there
    test3.py           the signed loss difference, on 992 images that standard and distilled both classify correctly
    test3.py, T = 20   the same with his network at T = 20 without distillation; 994 pictures, two of another run
    test2.py           the same attack: the images on which it succeeded against standard, and whether it did on these
                       against distilled

First in plain float32 as he computed it: at most 99 moves, to 1, loss at T = 1, max-pool gradients to all equal maxima.
Then the same images in scaled float32, which does not underflow.

Exits with 1 where a decision or a figure of the plain runs differs from his, and names the images. Writes replay.json
and replay.png; with --plain, replay_plain.json and replay_plain.png, which no report shows. Needs the author's
networks, which experiments.author_networks makes. Nine minutes of processor time, so about five on 2 free cores;
--plain leaves out scaled, two fifths of it. It goes on where it was stopped. --seed has no influence.
"""

import sys
from typing import NamedTuple

import numpy as np

from experiments import common, figures, report
from experiments.author_networks import author_networks
from experiments.claims import Missing
from minicnn.paper.attacks import ARITHMETICS, Setting
from minicnn.training import predict

LIMIT = 99  # of his loop, whose hundredth round ends before it looks
DECISION = "class_after_attack_on_standard"


class Run(NamedTuple):
    """One of his runs, and one of the two networks in it.

    file: of author_runs; algorithm: as for attacks.attack; succeeded: the images that his program counted; pixels:
    their mean as he logged it, or None; column: of the file, what it tells of every image on this network, its class
    after the attack or whether that succeeded, or None.
    """

    program: str
    network: str
    file: str
    algorithm: str
    succeeded: int
    pixels: str | None
    column: str | None

    def __str__(self):
        return f"{self.program}: {self.network}"


RUNS = (
    Run("test.py", "standard", "algorithm_1", "1", 605, None, DECISION),
    Run("test.py", "distilled", "algorithm_1", "1", 55, None, "succeeds_on_distilled"),
    Run("test3.py", "standard", "loss_difference_distilled", "author", 387, "18.344", None),
    Run("test3.py", "distilled", "loss_difference_distilled", "author", 13, None, "succeeds_on_distilled"),
    Run("test3.py, T = 20", "standard", "loss_difference_temperature20", "author", 354, "17.333", None),
    Run(
        "test3.py, T = 20",
        "temperature",
        "loss_difference_temperature20",
        "author",
        8,
        "10.25",
        "succeeds_on_temperature20",
    ),
    Run("test2.py", "standard", "loss_difference_conditional", "author", 380, None, DECISION),
    Run("test2.py", "distilled", "loss_difference_conditional", "author", 12, None, "succeeds_on_distilled"),
)


def read_run(run):
    """The columns of a run's file: name -> integers (N,), "test_image" among them."""
    rows = common.read_csv(common.RESULTS / "author_runs" / f"{run.file}.csv")
    return {column: np.array([row[column] for row in rows], int) for column in rows[0]}


def attack(run, network, dataset, images, arithmetic, store):
    """The AttackResult of a run's attack on test images, their indices given, and the decisions afterwards, (N,)."""
    pixels, labels = dataset.test_images[images], dataset.test_labels[images]
    setting = Setting(arithmetic, limit=LIMIT)
    result = common.attack(network, pixels, labels, run.algorithm, setting, store, f"{run}: ")
    return result, predict(network, result.adversarial).argmax(axis=1)


def compare(run, told, result, decisions):
    """A run beside his, in figures. told: columns of read_run; result, decisions: what attack returns of its images,
    where those that were misclassified before any move are left as they are.

    "succeeded", "pixels": as his program counts and logs them, with the "wrong_before" among them, which were
    misclassified before any move. "compared": on how many images the decision or the success is known; "differing":
    those, as test images, on which ours is another.
    """
    counted = result.succeeded | ~result.attacked
    if run.column is None:
        differs = np.zeros(0, bool)
    else:
        differs = (decisions if run.column == DECISION else counted) != told[run.column]
    decimals = len(run.pixels.partition(".")[2]) if run.pixels else None
    return {
        "succeeded": int(counted.sum()),
        "pixels": f"{result.moves[counted].mean():.{decimals}f}" if run.pixels else None,
        "wrong_before": int((~result.attacked).sum()),
        "compared": len(differs),
        "differing": told["test_image"][np.flatnonzero(differs)],
    }


def figure(succeeded, pixels):
    """A number of images and their mean pixels, where these are told, as text."""
    return f"{succeeded}" + (f", {pixels}" if pixels else "")


def failures(replayed):
    """A sentence for everything in which a run differs from his. replayed: Run -> figures of compare."""
    found = []
    for run, ours in replayed.items():
        if len(ours["differing"]):
            found.append(f"{run}: another outcome on test images {', '.join(map(str, ours['differing']))}")
        if (ours["succeeded"], ours["pixels"]) != (run.succeeded, run.pixels):
            figures = figure(ours["succeeded"], ours["pixels"]), figure(run.succeeded, run.pixels)
            found.append("{}: images and their pixels are {}, his are {}".format(run, *figures))
    return found


def agreement(replayed):
    """His figures beside ours, as a table."""
    return report.Table(
        [
            {
                "his run": f"{run}",
                "his images, pixels": figure(run.succeeded, run.pixels),
                "ours": figure(ours["succeeded"], ours["pixels"]),
                "both agree on": f"{ours['compared'] - len(ours['differing'])} of {ours['compared']}"
                if run.column
                else "not told",
                "wrong before": ours["wrong_before"],
            }
            for run, ours in replayed.items()
        ]
    )


def arithmetics(replayed):
    """The same images in both arithmetics, as a table; without those that are misclassified before any move."""
    return report.Table(
        [
            {"success on the same images": f"{run}", "attacked": ours["attacked"]}
            | {a: f"{ours[a]} = {ours[a] / ours['attacked']:.1%}" for a in ARITHMETICS if a in ours}
            for run, ours in replayed.items()
        ]
    )


def draw(path, replayed):
    """Ours as bars, plain and scaled, his as marks on them, of the images that were right before any move."""
    fig, ((axes,),) = common.figure(1, 1, width=8.5, height=5)
    found = list(replayed.values())
    attacked, at = np.array([ours["attacked"] for ours in found]), np.arange(len(found))
    for offset, arithmetic in zip((-0.2, 0.2), ARITHMETICS, strict=True):
        if arithmetic in found[0]:
            succeeded = np.array([ours[arithmetic] for ours in found])
            label = f"this engine, {arithmetic} float32"
            color = figures.BAR_COLOURS[arithmetic]
            bars = axes.barh(at + offset, 100 * succeeded / attacked, 0.4, color=color, label=label)
            counts = [f"{a} of {b}" for a, b in zip(succeeded, attacked, strict=True)]
            axes.bar_label(bars, counts, padding=6, fontsize=figures.SMALL)
    his = np.array([run.succeeded - ours["wrong_before"] for run, ours in replayed.items()])
    axes.plot(100 * his / attacked, at - 0.2, "kD", ms=6, mec="white", label="the author's program, plain float32")
    axes.set_yticks(at, [f"{run}" for run in replayed])
    axes.invert_yaxis()
    axes.set(xlabel="images on which the attack succeeds (%)", xlim=(0, 118), xticks=range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    fig.legend(loc="outside lower center", ncols=3)
    common.head(fig, in_one_line(replayed))
    common.save_figure(path, fig)


def in_one_line(replayed):
    """How far both agree, as a sentence."""
    compared = sum(ours["compared"] for ours in replayed.values())
    same = compared - sum(len(ours["differing"]) for ours in replayed.values())
    return f"{same:,} of {compared:,} outcomes that the author's runs tell of come out the same"


def section(results, folder):
    """What replay.json and replay.png tell, as a report.Section."""
    replayed = {Run(**run["his"]): run["ours"] for run in results["runs"]}
    text = [
        f"The author's four runs on exactly his images: {in_one_line(replayed)}.",
        report.Picture(
            "His runs, image for image: in plain float32 his program's count, and the same images without underflow.",
            folder / "replay.png",
        ),
    ]
    more = [
        "Of test.py and test2.py only pictures of adversarial samples against his standard network are left, so that "
        "this network has 100 % there by selection. Of the attack by loss differences on the T = 20 network the "
        "history holds 994 pictures: two are left from another run and cannot be told apart, so that rates here are "
        "shares of 994, those of his log of 992.",
        agreement(replayed),
        arithmetics(replayed),
    ]
    heading = "The author's runs, image for image"
    return report.Section(heading, report.Parts(text), level=3, more=report.Parts(more))


def name_of(options):
    """What the results are called in the names of files."""
    return "replay_plain" if options.plain else "replay"


def main(options):
    networks = author_networks(options.device)
    if isinstance(networks, Missing):
        raise common.UsageError(f"replay {networks.reason}")
    dataset, store, replayed = common.load_data("mnist"), common.Store(options.out / "parts"), {}
    picture = common.beside(options, f"{name_of(options)}.png")
    for arithmetic in ARITHMETICS[: 1 if options.plain else None]:
        for run in RUNS:
            told = read_run(run)
            result, decisions = attack(run, networks[run.network], dataset, told["test_image"], arithmetic, store)
            if arithmetic == "plain":
                replayed[run] = compare(run, told, result, decisions) | {"attacked": int(result.attacked.sum())}
            replayed[run][arithmetic] = int(result.succeeded.sum())
        wrong = failures(replayed)
        results = {"setting": {"limit": LIMIT, "maximum": 1.0, "T": 1.0, "ties": "all"}, "failures": wrong}
        runs = [{"his": run._asdict(), "ours": ours} for run, ours in replayed.items()]
        common.write_results(options, results | {"runs": runs})
        if arithmetic == "plain":
            print(f"\n{agreement(replayed)}\n\n{in_one_line(replayed)}.", flush=True)
            for sentence in wrong:
                print(report.wrapped(sentence, indent=0), flush=True)
    if not options.plain:
        print(f"\n{arithmetics(replayed)}")
    draw(picture, replayed)
    print()
    common.written(options.json, picture)
    if wrong:
        sys.exit(1)


def command_line():
    """The parser of this experiment."""
    parser = common.arguments(__doc__, datasets=("mnist",))
    parser.add_argument("--plain", action="store_true", help="only his arithmetic; writes replay_plain.json and .png")
    return parser


if __name__ == "__main__":
    common.run(main, command_line(), lambda options: f"{name_of(options)}.json")
