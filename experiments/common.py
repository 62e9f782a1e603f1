"""What the experiments share: options, progress, trained networks, resumable parts, JSON, pictures.

`options`, the parsed command line, is for an experiment's main alone: the functions here that take it turn it into what
the others need.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import sys
import textwrap
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

import minicnn
from experiments.command import USER_ERRORS as USER_ERRORS
from experiments.command import Parser, UsageError, default_folder, experiment_name, note
from experiments.command import beside as beside
from experiments.command import require as require
from experiments.command import run as run
from minicnn import backend, cpu, data, weights
from minicnn.compiled import kernel_folder
from minicnn.files import is_stream, read_file, write_atomically
from minicnn.paper import attacks
from minicnn.paper.jsma import jsma
from minicnn.paper.networks import NETWORKS, paper_cnn, pool_ties
from minicnn.paper.sparse_rs import sparse_rs


def _from_here(path):
    """A path relative to the working folder, where there is one and on the same drive: shorter to read."""
    try:
        return Path(os.path.relpath(path))
    except (OSError, ValueError):
        return path


RESULTS = _from_here(Path(__file__).resolve().parent / "results")
PIXELS = 28 * 28  # of an image of either data set
NARROWEST = 3.2  # inches, of a picture
CHARACTERS_AN_INCH = 11  # of a picture's title

DATASETS = ("digits", "mnist")
IMAGES = {"digits": 297, "mnist": 1000}  # attacked, where neither the options nor the experiment say how many
GPU_IMAGES = 20  # times as many as two cores do, a GPU attacks in the same time
ATTACKS = (*attacks.ALGORITHMS, *attacks.STRONGER, "jsma", "sparse-rs")

# The denominators of success rates.
DENOMINATORS = {
    "correct": "the images that the network classifies correctly",
    "all": "all images",
    "common": "the images that all networks compared classify correctly",
}


def positive(kind):
    """An argparse type: int or float above 0, a float also in float32, in which networks compute."""

    def parse(text):
        value = kind(text)
        with np.errstate(over="ignore"):
            if not 0 < (np.float32(value) if kind is float else value) < math.inf:
                raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def not_negative(text):
    """An argparse type: an integer of at least 0."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return int(text)


def named(kind):
    """An argparse type: str or Path of a text that is not empty."""

    def parse(text):
        if not text:
            raise argparse.ArgumentTypeError("must be a name, got nothing")
        return kind(text)

    return parse


def json_file(text):
    """An argparse type: what results may be written to as JSON without replacing anything else, as a Path."""
    if not text.endswith(".json") and not is_stream(text):
        raise argparse.ArgumentTypeError(f"must be a file whose name ends in .json, got {text!r}")
    return Path(text)


def seed(text):
    """An argparse type: an integer of 64 bits, what Philox has for a key."""
    if not 0 <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"must be 0 to 2^64 - 1, got {text}")
    return int(text)


def seeds(options):
    """The seeds from --seed on, as many as --seeds says. Raises UsageError where the last would be none."""
    last = options.seed + options.seeds - 1
    try:
        seed(last)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--seed and --seeds: the last of {options.seeds} seeds {error}") from None
    return range(options.seed, last + 1)


def choice(parser, option, values, default, meaning):
    """Add an option that is one of several values, its default at the end of its help."""
    parser.add_argument(option, choices=list(values), default=default, help=f"{meaning}; default: {default}")


def ties_argument(parser, default="all"):
    """Add the option of the tie rule of max-pools."""
    meaning = "where max-pools send the gradient of equal maxima (all: as the author's Theano did)"
    choice(parser, "--ties", ("first", "all"), default, meaning)


def arguments(module_doc, datasets=DATASETS, out="runs/DATASET"):
    """A parser with the options that every experiment has; its description is the experiment's docstring. datasets:
    those that it takes, its default first; out: where it writes by default, in words."""
    parser = Parser(
        allow_abbrev=False,
        prog=f"python -m experiments.{experiment_name()}",
        description=module_doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=datasets, default=datasets[0], help=f"default: {datasets[0]}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--seed", type=seed, default=0, help="of random numbers, and of the networks meant; default: 0")
    parser.add_argument("--out", type=named(Path), metavar="DIR", help=f"folder for results; default: {out}")
    meaning = "results as JSON, pictures and tables beside it; default: in the folder"
    parser.add_argument("--json", type=json_file, metavar="FILE.json", help=meaning)
    return parser


def denominator_argument(parser):
    """Add the option that chooses the denominator of success rates."""
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in DENOMINATORS.items())
    meaning = f"the denominator of success rates; {meanings}, as in the author's test3.py"
    choice(parser, "--denominator", DENOMINATORS, "correct", meaning)


def counted(denominator, correct, name, count):
    """The samples, of the first `count`, in the denominator of the rates on network `name`.

    correct: name -> (N,) bool of every network compared, N >= count. Returns (count,) bool.
    """
    if denominator == "all":
        return np.ones(count, bool)
    compared = correct.values() if denominator == "common" else [correct[name]]
    return np.logical_and.reduce([right[:count] for right in compared])


def network_name(text):
    """An argparse type: the name that train gives to a network."""
    if not text.startswith(tuple(NETWORKS)) or text != Path(text).name:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(NETWORKS)}, or begin so, got {text}")
    return text


def file_or_name(text):
    """An argparse type: a weight file as a Path, or the name of a network."""
    return Path(text) if text.endswith(".npz") else network_name(text)


def network_arguments(parser):
    """Add the options that choose one network, standard where both are None."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--network",
        type=network_name,
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}: trained before, or one that comes with the project; or such a name with what "
        "train has added to it, temperature-T5; default: standard",
    )
    which.add_argument("--weights", type=named(Path), metavar="FILE.npz", help="a weight file instead")


def attack_arguments(parser, images=", ".join(f"{count} of {name}" for name, count in IMAGES.items())):
    """Add the options of attacks to a parser. images: what the default of --images is, in words."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images", type=positive(int), metavar="N", help=f"attack N test images, drawn by the seed; default: {images}"
    )
    which.add_argument("--first", type=positive(int), metavar="N", help="attack the first N test images instead")
    parser.add_argument(
        "--limit", type=positive(int), default=100, help="moves an image; default: 100 (the author's code makes 99)"
    )
    parser.add_argument(
        "--maximum",
        type=positive(float),
        default=1.0,
        help="what a pixel is raised to; default: 1, as the paper has it (mnist's own is 255/256 = 0.99609375)",
    )
    parser.add_argument(
        "--attack-temperature", type=positive(float), default=1.0, help="T of the attacked loss; default: 1"
    )
    parser.add_argument(
        "--skip-unchanged", action="store_true", help="leave out moves that change nothing, which count as printed"
    )
    meaning = "where both moves of a pixel score the same (Algorithms 2 and 4)"
    choice(parser, "--prefer", ("raise", "lower"), "raise", meaning)
    ties_argument(parser)


class Progress:
    """A bar on a terminal, otherwise a plain line at most every `seconds` seconds."""

    def __init__(self, label, total, seconds=20):
        self.label, self.total, self.seconds = label, total, seconds
        self.last, self.bar = time.monotonic(), None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, leave=False)

    def __call__(self, done, note=""):
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.last > self.seconds:
            self.last = time.monotonic()
            print(f"  {self.label}: {done} of {self.total} {note}".rstrip(), flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


def load_data(name, validation=None):
    """The data set, its download shown. validation: as for data.load."""
    if name == "digits":
        require("sklearn.datasets")  # which data.load imports; no other data set waits for it
    bars = {}

    def progress(file, received, total):
        bars.setdefault(file, Progress(file, total))(received)

    dataset = data.load(name, validation, progress)
    for bar in bars.values():
        bar.close()
    return dataset


def find_weights(name, dataset, folder, option):
    """The weight file of one of the NETWORKS, or of a Protocol.file_name, trained on the data set of that name: in the
    folder, else the committed one. Raises UsageError where there is none; option: what it advises instead."""
    folders = [folder, RESULTS / dataset]
    for place in folders:
        if (place / f"{name}.npz").exists():
            return place / f"{name}.npz"
    network = max((network for network in NETWORKS if name.startswith(network)), key=len)
    has = [other for other in DATASETS if (RESULTS / other / f"{name}.npz").exists()]
    raise UsageError(
        f"no trained network {name!r} in {' or '.join(map(str, folders))}: train it with "
        f"python -m experiments.train --dataset {dataset} --network {network}"
        f"{'' if folder == default_folder(dataset) else f' --out {shlex.quote(str(folder))}'}"
        f"{'' if name == network else ' and the options that ' + name + ' tells of'}, or name {option}"
        f"{f', or take the one that comes with the project: --dataset {has[0]}' if has else ''}"
    )


def of_seed(network, seed):
    """What the files of a network are called, which is a name or the Path of a weight file: one of the NETWORKS is that
    of the seed, as train names it."""
    if isinstance(network, Path):
        return network.stem
    return f"{network}-seed{seed}" if seed and network in NETWORKS else network


def weights_of(network, options, option="--weights FILE"):
    """The weight file of a network, which is a name or the Path of that file. Raises UsageError where there is none;
    option: as for find_weights."""
    if isinstance(network, Path):
        return network
    return find_weights(of_seed(network, options.seed), options.dataset, options.out, option)


def chosen_name(options):
    """What the files of the network are called that the options of network_arguments choose."""
    return of_seed(options.weights or options.network or "standard", options.seed)


def chosen_weights(options):
    """The weight file of that network. Raises UsageError where there is none."""
    return weights_of(options.weights or options.network or "standard", options)


def load_network(path, device="cpu", ties="all", dtype=np.float32, T=None, dataset=None):
    """The paper's network with the weights of a file.

    ties: of its max-pools, as the author's Theano by default; T, dataset: what it must have been trained at and on, if
    its file tells. Raises UsageError for another.
    """
    found = weights.trained_at(path) if T else None
    if found not in (None, T):
        raise UsageError(f"{path} was trained at T = {found:g}, not at {T:g}: choose the temperature or the file again")
    found = weights.trained_on(path) if dataset else None
    if found not in (None, dataset):
        raise UsageError(f"{path} was trained on {found}, not on {dataset}: choose the data set or the file again")
    return weights.load_weights(paper_cnn(ties=ties, dtype=dtype).to(device), path)


def load_chosen(path, options, **told):
    """load_network on the device, with the tie rule and of the data set of the options. told: what else that takes."""
    return load_network(path, options.device, options.ties, dataset=options.dataset, **told)


def about_network(path, options):
    """What a JSON of results tells of the network of a weight file."""
    return {"weights": str(path), "trained_at": weights.trained_at(path), "ties": options.ties}


class Sample(NamedTuple):
    """Test images (N, 1, 28, 28), their labels (N,), their indices in the test set (N,), and the seed that drew them,
    None for the first ones."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    seed: int | None

    def part(self, which):
        """The Sample of those at a slice, at indices or where a mask is true."""
        return Sample(self.images[which], self.labels[which], self.indices[which], self.seed)

    def taken(self):
        """What was taken, for a JSON of results: indices where they are at most 1,000."""
        count = len(self.indices)
        return {"seed": self.seed, "count": count, "indices": self.indices if count <= 1000 else None}

    def __str__(self):
        if self.seed is None:
            return f"the first {len(self.indices)} test images"
        return f"{len(self.indices)} test images drawn by seed {self.seed}"


def sample(dataset, count, seed, first=False):
    """The Sample of `count` test images, or of all where there are fewer, which it says: the beginning of the
    permutation of the test set that the seed gives, so that a larger sample goes on where a smaller one ends; with
    first, the first ones."""
    tested = len(dataset.test_labels)
    if count > tested:
        note(f"{dataset.name} has {tested} test images, not {count}: all of them are taken")
    indices = (np.arange(tested) if first else np.random.default_rng(seed).permutation(tested))[:count]
    return Sample(dataset.test_images[indices], dataset.test_labels[indices], indices, None if first else seed)


def chosen_sample(options, dataset, default=None):
    """The Sample of the options that attack_arguments adds; where they are silent, of `default` or the IMAGES."""
    count = options.first or options.images or default or IMAGES[options.dataset]
    return sample(dataset, count, options.seed, options.first is not None)


def one_image(option, index, dataset):
    """The Sample of one test image. Raises UsageError where there is none of that index; option: what asks for it."""
    tested = len(dataset.test_labels)
    if not 0 <= index < tested:
        raise UsageError(f"{option} {index}: {dataset.name} has test images 0 to {tested - 1}")
    indices = np.array([index])
    return Sample(dataset.test_images[indices], dataset.test_labels[indices], indices, None)


def network_key(network):
    """What tells one paper_cnn, and who computes with it, from another, as plain values: for the key of a Store."""
    return {
        "weights": digest(*weights.get_weights(network).values()),
        "ties": pool_ties(network),
        "dtype": str(network.dtype),
        "device": network.device,
    } | arithmetic()


def arithmetic():
    """What the bits of results depend on beside the sources."""
    return {"convolutions": cpu.convolutions().partition(":")[0], "flushes_denormals": cpu.flushes_denormals()}


def digest(*arrays):
    """A short hash of the contents of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()[:16]


@functools.cache
def digest_of_sources(*others):
    """A short hash of the sources of minicnn and its kernels, and of other files."""
    sources = [*Path(minicnn.__file__).parent.rglob("*.py"), *kernel_folder().glob("*.[ch]*")]
    return digest(*(np.frombuffer(Path(path).read_bytes(), np.uint8) for path in [*sorted(sources), *others]))


class Store:
    """Parts of an experiment on disk, so that nothing computed is lost: get(key, compute) computes a part only once.

    key: a dict of plain values that says what the part depends on, beside the sources of minicnn: a change of the
    engine makes all parts anew. A part is a dict of arrays. Its file holds its key and a digest of both, so that a file
    that is damaged, or has got under another's name, is computed again.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key, compute):
        """The part of a key, from its file or else computed and kept."""
        found = self.find(key)
        return self.put(key, compute()) if found is None else found

    def find(self, key):
        """The part of a key, None where there is none that can be used."""
        path, text = self._place(key)
        if path.exists():
            with contextlib.suppress(weights.WeightsError):
                part = weights.load_sealed(path)
                if str(part.pop("/key", "")) == text:
                    return part
            note(f"{path} is damaged, or not the part of that name: computed again")
        return None

    def put(self, key, part):
        """Keep the part of a key. Returns it as find does."""
        path, text = self._place(key)
        part = {name: np.asarray(array) for name, array in part.items()}
        weights.save_sealed(path, part | {"/key": np.array(text)})
        return part

    def _place(self, key):
        """The file of a key, and what the key is there."""
        text = json.dumps(key | {"minicnn": digest_of_sources()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz", text


def setting(options, arithmetic="scaled"):
    """The attacks.Setting of the options that attack_arguments adds."""
    if options.limit > PIXELS:
        note(f"an image has {PIXELS} pixels, each is moved once: at most {PIXELS} moves, not {options.limit}")
    return attacks.Setting(
        arithmetic=arithmetic,
        T=options.attack_temperature,
        limit=min(options.limit, PIXELS),
        maximum=options.maximum,
        skip_unchanged=options.skip_unchanged,
        prefer=options.prefer,
        chunk=backend.get(options.device).functions.CHUNK,
    )


def attack_name(algorithm, arithmetic):
    """What titles and progress call an attack, one of ATTACKS or an Algorithm."""
    if isinstance(algorithm, attacks.Algorithm):
        return f"Algorithm of {algorithm.score}s, {arithmetic}"
    return f"Algorithm {algorithm}, {arithmetic}" if algorithm in attacks.ALGORITHMS else algorithm


def method(algorithm, setting, seed):
    """How an attack is made: run(network, images, labels, setting, on_move); plain values that tell it from others; and
    how many images two cores do in some ten seconds, what a kill loses at most. Arguments: as for attack."""
    if algorithm == "jsma":
        return jsma, {"search": algorithm}, 50
    if algorithm == "sparse-rs":
        return functools.partial(sparse_rs, seed=seed), {"search": algorithm, "seed": seed}, 200
    if isinstance(algorithm, str):
        algorithm = (attacks.ALGORITHMS | attacks.STRONGER)[algorithm]

    def run(network, images, labels, setting, on_move):
        return attacks.attack(network, images, labels, algorithm, setting, on_move)

    count = 200 if algorithm.score == "loss difference" else 500
    return run, vars(algorithm), max(1, 2 * count // setting.limit) if algorithm.refresh else count


def attack(network, images, labels, algorithm, setting, store, label="", part=None, seed=0):
    """An attack in parts of images that are kept in the store. Returns the AttackResult of all, the same for parts of
    any size.

    network: a paper_cnn. algorithm: one of ATTACKS, or an Algorithm. label: what the progress begins with. part: as for
    in_parts, by default what a kill may lose. seed: of sparse-rs.
    """
    run, about, count = method(algorithm, setting, seed)

    def compute(x, y, tell):
        def on_move(move, limit, active):
            tell(len(x) - active, f"(move {move} of {limit})")

        return vars(run(network, x, y, setting, on_move))

    key, title = {"algorithm": about, "setting": vars(setting)}, attack_name(algorithm, setting.arithmetic)
    joined = in_parts(store, label + title, network, (images, labels), key, compute, part or count)
    passes = {name: int(joined[name]) for name in ("forwards", "backwards")}
    return attacks.AttackResult(**joined | passes)


def in_parts(store, label, network, sample, key, compute, part):
    """What compute(images, labels, tell) gives for a sample, a dict of arrays over the images and of numbers, which add
    up; the store keeps `part` images at a time, on a GPU GPU_IMAGES times as many.

    label: what the progress is called; tell(done, note): progress within a part; key: what the result depends on
    beside network and sample.
    """
    images, labels = sample
    part *= 1 if network.device == "cpu" else GPU_IMAGES
    key, parts = network_key(network) | key, []
    with contextlib.closing(Progress(label, len(images))) as progress:
        for start in range(0, len(images), part):
            x, y = images[start : start + part], labels[start : start + part]

            def tell(done, note="", start=start):
                progress(start + done, note)

            parts.append(store.get(key | {"images": digest(x, y)}, functools.partial(compute, x, y, tell)))
            tell(len(x))
    found = {name: [kept[name] for kept in parts] for name in parts[0]}
    return {name: np.concatenate(each) if each[0].ndim else sum(each) for name, each in found.items()}


def environment(options):
    """Versions, machine, seed and command, for a JSON of results."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "minicnn": minicnn.__version__}
    machine = {
        "system": platform.platform(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": cpu.threads(),
        "device": options.device,
        "convolutions": cpu.convolutions(),
        "flushes_denormals": cpu.flushes_denormals(),
    }
    if options.device == "cuda":
        xp = backend.get("cuda").xp
        versions["cupy"] = xp.__version__
        machine["gpu"] = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m experiments.{experiment_name()} {shlex.join(sys.argv[1:])}".rstrip(),
        "seed": options.seed,
        "dataset": options.dataset,
        "versions": versions,
        "machine": machine,
    }


def _processor_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write_json(path, results):
    """Write results (dicts, lists, numbers, arrays) as JSON, atomically: a list of numbers in a line, null for numbers
    that are not finite."""

    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic)):
            return plain(value.tolist())
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(plain(results), indent=1, allow_nan=False)
    text = re.sub(r'\[\n[^][{}"]+\]', lambda numbers: " ".join(numbers[0].split()), text)
    write_atomically(path, f"{text}\n".encode())


def write_results(options, results, inputs=()):
    """Write the JSON of an experiment: the environment, and results. inputs: names in it that tell runs apart; a note
    says where the JSON that is replaced differs in one of them."""
    path, results = options.json, environment(options) | results
    with contextlib.suppress(AttributeError, OSError, RecursionError, ValueError):
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        told = json.loads(json.dumps({name: results[name] for name in inputs}, default=lambda array: array.tolist()))
        if differ := [name for name, value in told.items() if name in found and found[name] != value]:
            note(f"{path} differs in {' and '.join(differ)}: it is replaced")
    write_json(path, results)


def written(*paths):
    """Say where results are."""
    print("written:", *paths, sep="\n  ")


def write_csv(path, rows):
    """Write dicts of the same keys as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_csv(path):
    """What write_csv wrote of dicts of numbers. Raises UsageError where the file is missing or holds something else."""
    try:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(read_file(path).decode()))]
        if not rows:
            raise ValueError("it has no rows")
        return rows
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no readable table of numbers ({error})") from None


def figure(rows=1, columns=1, width=4.0, height=3.0):
    """A matplotlib figure for a file, in the style of all pictures, which this process draws in from now on: (figure,
    array of axes). width, height: of each of the axes, in inches."""
    import matplotlib.style
    from matplotlib.figure import Figure

    matplotlib.style.use(["default", Path(__file__).with_name("minicnn.mplstyle")])  # whatever the user's is
    fig = Figure(figsize=(max(NARROWEST, width * columns), height * rows))
    return fig, fig.subplots(rows, columns, squeeze=False)


def drawn(text):
    """A text that may hold anything, the name of a file say, as matplotlib shows it: without formulas, with signs for
    bytes that are no text, and in legends, which leave out what begins with _."""
    return re.sub(r"^_", " _", text.encode(errors="replace").decode().replace("$", r"\$"))


def head(fig, text):
    """Set the title of a figure, in as many lines as its width asks for. text: any, without formulas."""
    width = int(CHARACTERS_AN_INCH * fig.get_figwidth())
    fig.suptitle(drawn("\n".join(textwrap.fill(line, width) for line in text.splitlines())))


def plain_numbers(axis, ticks=None):
    """Make an axis (axes.xaxis or axes.yaxis) logarithmic, with numbers and no powers of ten at these ticks; without
    any, at 1, 2, 5, 10, 20, ... What has no positive data then stays as it is."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    if not ticks and not math.isfinite(axis.get_minpos()):
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def save_figure(path, fig):
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
