"""What do adversarial samples look like, and are they still the digit?

Networks are attacked with Algorithms 1 and 3 in both arithmetics. Of the adversarial samples, the images on which an
attack succeeded, this tells:

    how many pixels of each were changed
    what an independent classifier sees in them: the label, the class that the attacked network sees, or another. It is
    the vote of the 3 nearest neighbours in the same training set, which has neither weights nor gradients
    the control: of the same images as many pixels changed at random places, each to 0 or to the maximum at random

Writes adversarial_samples.json, adversarial_samples.png (samples drawn at random above their controls) and
pixels_changed.png.
"""

import contextlib
import dataclasses
import itertools
import textwrap
from typing import NamedTuple

import numpy as np

from experiments import common, figures, report
from minicnn import predict
from minicnn.paper.attacks import ARITHMETICS, changed_pixels
from minicnn.paper.saliency import rows_of_pixels
from minicnn.paper.statistics import Outcomes, Rate, compare_attacks, median_interval
from minicnn.weights import trained_at

ALGORITHMS = ("1", "3")
NEIGHBOURS = 3
CLASSIFIER = f"{NEIGHBOURS} nearest neighbours"
LARGEST = 1e17  # what a pixel may be: the square of a distance between images is then one of float32
DRAWN = 10  # samples in a row of the picture


class Seen(NamedTuple):
    """Images (n, 1, H, W), and the class that the attacked network and the independent classifier see in each, (n,)."""

    images: np.ndarray
    network: np.ndarray
    classifier: np.ndarray


class Samples(NamedTuple):
    """The adversarial samples, n of them, that one attack made.

    network, algorithm, arithmetic: names; attacked: how many images were; indices (n,): in the test set; labels (n,);
    pixels (n,): how many were changed. before, adversarial, control: the images as they were, as the attack left them,
    and with as many pixels changed at random.
    """

    network: str
    algorithm: str
    arithmetic: str
    attacked: int
    indices: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    before: Seen
    adversarial: Seen
    control: Seen

    @property
    def name(self):
        """Of the attack, as tables have it."""
        return f"{self.network}, {self.algorithm}, {self.arithmetic}"


def change_at_random(images, counts, maximum, rng):
    """Images (N, 1, H, W) with exactly counts[i] pixels of image i changed: each place is as likely as any other, and
    a pixel becomes 0 or `maximum`, as likely, or the other of the two where it was that already."""
    pixels = images.reshape(len(images), -1)
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(pixels), 1)), axis=1)
    values = rng.choice(np.array([0, maximum], images.dtype), pixels.shape)
    values = np.where(values == pixels, images.dtype.type(maximum) - values, values)
    return np.where(order < counts[:, None], values, pixels).reshape(images.shape)


class Classifier:
    """The nearest neighbours in a Dataset's training set; answers are kept in the store. Raises UsageError where
    scikit-learn cannot be imported."""

    def __init__(self, dataset, store):
        neighbours = common.require("sklearn.neighbors")
        self.model = neighbours.KNeighborsClassifier(NEIGHBOURS, weights="distance", algorithm="brute")
        self.model.fit(rows_of_pixels(dataset.train_images), dataset.train_labels)
        self.key = {"classifier": str(self.model), "fit": common.digest(dataset.train_images, dataset.train_labels)}
        self.store = store

    def __call__(self, images, label):
        """The classes of images (n, 1, H, W), (n,). label: what the progress begins with."""

        def compute():
            parts = []
            with contextlib.closing(common.Progress(f"{label}: {CLASSIFIER}", len(images))) as progress:
                for start in range(0, len(images), 500):
                    parts.append(self.model.predict(rows_of_pixels(images[start : start + 500])))
                    progress(start + len(parts[-1]))
            return {"classes": np.concatenate([np.zeros(0, int), *parts])}

        return self.store.get(self.key | {"images": common.digest(images)}, compute)["classes"]


def attack(networks, sample, setting, seed, classify, store):
    """The Samples of every network (name -> network), algorithm and arithmetic.

    sample: a common.Sample; setting: of the attacks, its arithmetic ignored; seed: of the controls, in which an image
    has the same order of random places whatever it was attacked with; classify: a Classifier.
    """
    found = []
    for name, algorithm, arithmetic in itertools.product(networks, ALGORITHMS, ARITHMETICS):
        network, chosen = networks[name], dataclasses.replace(setting, arithmetic=arithmetic)
        result = common.attack(network, sample.images, sample.labels, algorithm, chosen, store, f"{name}: ")
        pixels = changed_pixels(sample.images, result).sum(axis=1)
        controls = change_at_random(sample.images, pixels, setting.maximum, np.random.default_rng(seed))
        rows = result.succeeded
        versions = {"before": sample.images, "adversarial": result.adversarial, "control": controls}
        seen = {
            version: Seen(
                images[rows],
                predict(network, images[rows]).argmax(axis=1),
                classify(images[rows], f"{name}, {algorithm}, {arithmetic}, {version}"),
            )
            for version, images in versions.items()
        }
        about = (name, algorithm, arithmetic, int(result.attacked.sum()))
        found.append(Samples(*about, sample.indices[rows], sample.labels[rows], pixels[rows], **seen))
    return found


def measure(samples):
    """The figures of Samples, as a dict: how many pixels were changed (None without samples); shares of the samples;
    and by how much the classifier sees the label more often in the controls, a paired difference (McNemar's p)."""
    labels, pixels = samples.labels, samples.pixels
    before, adversarial, control = samples.before, samples.adversarial, samples.control
    as_label, as_network = adversarial.classifier == labels, adversarial.classifier == adversarial.network
    every = np.ones(len(labels), bool)
    outcomes = ([Outcomes(every, right, pixels)] for right in (control.classifier == labels, as_label))
    paired = compare_attacks(*outcomes)
    changed = None
    if len(pixels):
        changed = {f"quantile_{q:g}": float(np.quantile(pixels, q)) for q in (0.05, 0.5, 0.95)}
        changed["median_interval"] = median_interval(pixels)
    return {
        "attacked": samples.attacked,
        "samples": len(labels),
        "pixels_changed": changed,
        "classifier": {
            "before_as_label": share(before.classifier == labels),
            "as_label": share(as_label),
            "as_network": share(as_network),
            "as_another": share(~as_label & ~as_network),
            "control_as_label": share(control.classifier == labels),
            "control_less_adversarial": {
                "difference": paired.difference,
                "interval": paired.interval,
                "p": paired.p,
            },
        },
        "network": {"control_as_label": share(control.network == labels)},
        "by_image": {
            "index": samples.indices,
            "pixels_changed": pixels,
            "network": adversarial.network,
            "classifier": adversarial.classifier,
        },
    }


def share(seen):
    """How many of bool (n,) are true, as a dict: share (None of none) with its Wilson 95 % interval."""
    rate = Rate(int(seen.sum()), len(seen))
    return {"count": rate.successes, "share": rate.share if rate.trials else None, "interval": rate.interval}


def describe(found):
    """The figures of adversarial_samples.json as report.Parts."""

    def table(columns):
        return report.Table([{"": name} | columns(figures) for name, figures in found["attacks"].items()])

    return report.Parts(
        [
            "Pixels changed in the adversarial samples of network, algorithm, arithmetic:",
            table(pixels_changed),
            f"What the {CLASSIFIER} see in them, % (95 % intervals); of all clean test images they see "
            f"{found['clean_test_images']['share']:.2%} correctly:",
            table(seen_in_samples),
            "Who sees the label in the same images before the attack, and in the control, as many pixels changed at "
            "random, % (95 % intervals):",
            table(seen_in_others),
        ]
    )


def pixels_changed(figures):
    """Columns of describe. figures: of measure."""
    median = quantiles = None
    if changed := figures["pixels_changed"]:
        median = "{:g} ({:g} to {:g})".format(changed["quantile_0.5"], *changed["median_interval"])
        quantiles = f"{changed['quantile_0.05']:.0f} to {changed['quantile_0.95']:.0f}"
    counts = {"attacked": figures["attacked"], "samples": figures["samples"]}
    return counts | {"median": median, "5 % to 95 %": quantiles}


def seen_in_samples(figures):
    """Columns of describe."""
    names = {"the label": "as_label", "the network's class": "as_network", "another": "as_another"}
    return {head: percent(figures["classifier"][name]) for head, name in names.items()}


def seen_in_others(figures):
    """Columns of describe."""
    return {
        "neighbours, before": percent(figures["classifier"]["before_as_label"]),
        "neighbours, control": percent(figures["classifier"]["control_as_label"]),
        "network, control": percent(figures["network"]["control_as_label"]),
    }


def percent(share):
    """A dict of share() as text, in percent."""
    if share["share"] is None:
        return "none"
    low, high = share["interval"]
    return f"{100 * share['share']:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def draw(path, made, seed):
    """Adversarial samples in scaled arithmetic, drawn at random, each above its control. made: list of Samples."""
    rows = [samples for samples in made if samples.arithmetic == "scaled" and len(samples.labels)]
    fig, axes = common.figure(2 * max(1, len(rows)), 1 + DRAWN, width=1.1, height=1.35)
    for axis in axes.flat:
        axis.axis("off")
    for samples, (above, below) in zip(rows, axes.reshape(-1, 2, 1 + DRAWN), strict=False):
        name = common.drawn(textwrap.fill(samples.network, 14))
        heads = f"{name}\nAlgorithm {samples.algorithm}", "as many pixels\nat random"
        for axis, head in zip((above[0], below[0]), heads, strict=True):
            axis.text(0.5, 0.5, head, ha="center", va="center", fontsize=figures.SMALL).set_in_layout(False)
        drawn = np.random.default_rng(seed).permutation(len(samples.labels))[:DRAWN]
        for i, top, bottom in zip(drawn, above[1:], below[1:], strict=False):
            for axis, seen, what in (
                (top, samples.adversarial, f"label {samples.labels[i]}, {samples.pixels[i]} pixels\n"),
                (bottom, samples.control, ""),
            ):
                figures.show_image(
                    axis, seen.images[i, 0], f"{what}seen as {seen.network[i]}, k-NN {seen.classifier[i]}"
                )
    common.save_figure(path, fig)


def draw_pixels(path, made):
    """The share of the attacked images with an adversarial sample of at most so many pixels. made: list of Samples."""
    fig, axes = common.figure(1, len(ALGORITHMS), width=4.4, height=3.4)
    networks = list(dict.fromkeys(samples.network for samples in made))
    most = max(samples.pixels.max(initial=0) for samples in made)
    for samples in made:
        panel = axes[0, ALGORITHMS.index(samples.algorithm)]
        shares = 100 * np.arange(len(samples.pixels) + 1) / max(1, samples.attacked)
        panel.step(
            [0, *np.sort(samples.pixels), most],
            [*shares, shares[-1]],
            where="post",
            color=f"C{networks.index(samples.network)}",
            linestyle="-" if samples.arithmetic == "scaled" else ":",
            marker="os^Dv"[networks.index(samples.network) % 5],
            markevery=0.1,
            label=common.drawn(f"{samples.network}, {samples.arithmetic}"),
        )
        panel.set(title=f"Algorithm {samples.algorithm}", xlabel="pixels changed, at most", ylim=(-2, 102))
    axes[0, 0].set_ylabel("attacked images that fall (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    common.save_figure(path, fig)


def section(found, folder):
    """What adversarial_samples.json and its pictures tell, as a report.Section."""
    samples, pixels = (
        report.Picture(
            "Adversarial samples in scaled arithmetic, drawn at random, not chosen; below each the same image with as "
            f"many pixels changed at random. Seen as: by the attacked network; k-NN: by the {CLASSIFIER}.",
            folder / "adversarial_samples.png",
        ),
        report.Picture("How many pixels the adversarial samples needed.", folder / "pixels_changed.png"),
    )
    seen = [of_name["classifier"]["as_label"]["share"] for of_name in found["attacks"].values() if of_name["samples"]]
    answer = (
        f"The {CLASSIFIER}, who see {found['clean_test_images']['share']:.2%} of the clean test images correctly, see "
        f"the label in {min(seen):.0%} to {max(seen):.0%} of the adversarial samples of a network, algorithm and "
        "arithmetic."
        if seen
        else "No attack succeeded."
    )
    more = report.Parts([pixels, *describe(found)])
    return report.Section("Is it still the digit?", report.Parts([answer, samples]), more=more)


def main(options):
    if options.maximum > LARGEST:
        raise common.UsageError(f"--maximum {options.maximum:g}: {CLASSIFIER} measure distances up to {LARGEST:g}")
    paths = {}
    for chosen in options.networks:
        name = common.of_seed(chosen, options.seed)
        if name in paths:
            raise common.UsageError(f"--networks: two are called {name}")
        paths[name] = common.weights_of(chosen, options, "--networks FILE.npz")
    dataset = common.load_data(options.dataset)
    networks = {name: common.load_chosen(path, options) for name, path in paths.items()}
    sample = common.chosen_sample(options, dataset)
    setting, store = common.setting(options), common.Store(options.out / "parts")
    classify = Classifier(dataset, store)
    clean = share(classify(dataset.test_images, "clean test images") == dataset.test_labels)
    made = attack(networks, sample, setting, options.seed, classify, store)
    found = {"classifier": CLASSIFIER, "clean_test_images": clean, "attacks": {s.name: measure(s) for s in made}}
    told = {
        "weights": {name: str(path) for name, path in paths.items()},
        "ties": options.ties,
        "trained_at": {name: trained_at(path) for name, path in paths.items()},
        "setting": {key: value for key, value in vars(setting).items() if key != "arithmetic"},
        "sample": sample.taken(),
    }
    common.write_results(options, told | found)
    print(f"{sample}\n\n{describe(found)}")
    pictures = [common.beside(options, name) for name in ("adversarial_samples.png", "pixels_changed.png")]
    draw(pictures[0], made, options.seed)
    draw_pixels(pictures[1], made)
    common.written(options.json, *pictures)


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--networks",
        nargs="+",
        type=common.file_or_name,
        default=["standard", "temperature"],
        metavar="NAME|FILE.npz",
        help="trained before, or coming with the project, or weight files; default: standard temperature",
    )
    common.attack_arguments(parser)
    common.run(main, parser)
