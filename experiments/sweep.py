"""Does the temperature at which a network is trained matter, beyond the size of its logits?

Trains the paper's network at every temperature T with every seed and measures it: accuracy, success of Algorithms 1 and
3 in plain and scaled arithmetic, the share of plain maps that are exactly 0, log10 of the gradient, the largest logit.
Beside it the control: the networks trained at T = 1, their last layer times s, for the same values.

A job is one network. Jobs run in processes of this machine, one a core with one thread each, or on a Dask cluster:

    pip install -e '.[dask]'                         on every machine, in a checkout of the same version
    dask scheduler                                   on one; it prints its ADDRESS
    dask worker ADDRESS --nworkers N --nthreads 1    on those that work, N processes each
    python -m experiments.sweep --scheduler ADDRESS

Nothing but this command writes results, and workers need no folder in common with it; each loads the data set itself.
What a job brings home is kept in DIR/parts: the same command does only what is missing. The job of a process that dies
is started again, three times at most. On this machine a training goes on from its checkpoint in DIR/sweep;
elsewhere it begins anew.

Writes sweep.json, sweep.csv (a row a network) and sweep.png. The default is 21 trainings and 18 controls on digits,
about 10 minutes on 2 free cores (20 of processor time). For a bigger machine: --dataset mnist --epochs 20 --seeds 2.
"""

import dataclasses
import importlib
import inspect
import platform
import statistics
import sys
import textwrap
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import command, common, report
from experiments.executors import executor
from experiments.train import Protocol, chosen_protocol, held_out, length_arguments
from minicnn import cpu, data, training
from minicnn.paper import attacks
from minicnn.paper.networks import paper_cnn, rescaled
from minicnn.paper.saliency import ARITHMETICS, saliency_maps
from minicnn.weights import get_weights, set_weights

IMAGES = {"digits": 200, "mnist": 500}  # attacked, of every network
ALGORITHMS = ("1", "3")
LEARNT = 0.5  # accuracy; what attacks do to a network below it says nothing of robustness
HEARTBEAT = 5  # seconds between two looks at the jobs
TRAINED, CONTROL = "trained at T", "T = 1, logits times s"


class Figure(NamedTuple):
    """How a figure is shown: what stands above its column, in two lines; its factor; its decimals."""

    heading: tuple[str, str]
    factor: int = 1
    decimals: int = 0

    def text(self, mean, deviation):
        """In a table; the deviation of a single value is none."""
        kind = f".{self.decimals}f" if abs(mean) < 1e5 else ".1e"
        return f"{self.factor * mean:{kind}}" + ("" if np.isnan(deviation) else f"±{self.factor * deviation:{kind}}")


FIGURES = {
    "accuracy": Figure(("", "accuracy"), 100, 1),
    "success_1_plain": Figure(("Alg. 1", "plain"), 100),
    "success_1_scaled": Figure(("Alg. 1", "scaled"), 100),
    "success_3_plain": Figure(("Alg. 3", "plain"), 100),
    "success_3_scaled": Figure(("Alg. 3", "scaled"), 100),
    "zero_maps": Figure(("plain", "map = 0"), 100),
    "log10_gradient": Figure(("log10 of", "gradient"), decimals=1),
    "logit_scale": Figure(("largest", "logit")),
}
PANELS = {  # of the picture: title -> figure -> arithmetic, which chooses its style
    "Algorithm 1 succeeds (%)": {"success_1_plain": "plain", "success_1_scaled": "scaled"},
    "Algorithm 3 succeeds (%)": {"success_3_plain": "plain", "success_3_scaled": "scaled"},
    "accuracy (%)": {"accuracy": ""},
    "log10 of the gradient": {"log10_gradient": ""},
    "largest logit": {"logit_scale": ""},
    "Algorithm 1 succeeds (%), by largest logit": {"success_1_plain": "plain", "success_1_scaled": "scaled"},
}
STYLES = {  # seen without colours too: what is trained is solid and filled, the control dashed, larger and hollow
    (TRAINED, "plain"): {"color": "#a50f15", "ls": "-", "marker": "o", "ms": 4},
    (CONTROL, "plain"): {"color": "#f4803c", "ls": "--", "marker": "s", "ms": 8, "mfc": "none"},
    (TRAINED, "scaled"): {"color": "#08306b", "ls": "-", "marker": "^", "ms": 4},
    (CONTROL, "scaled"): {"color": "#6baed6", "ls": "--", "marker": "D", "ms": 8, "mfc": "none"},
    (TRAINED, ""): {"color": "black", "ls": "-", "marker": "v", "ms": 4},
    (CONTROL, ""): {"color": "0.5", "ls": "--", "marker": "p", "ms": 9, "mfc": "none"},
}


class Job(NamedTuple):
    """One network of the sweep. series: TRAINED, at T = value, or CONTROL, logits times value; and its seed."""

    series: str
    value: float
    seed: int

    @property
    def T(self):
        """The temperature that it is trained at."""
        return self.value if self.series == TRAINED else 1.0

    @property
    def scale(self):
        """What its logits are multiplied by after that."""
        return self.value if self.series == CONTROL else 1.0

    @property
    def network(self):
        """Which of the paper's networks it is before that."""
        return "standard" if self.T == 1 else "temperature"

    def __str__(self):
        return f"{'T' if self.series == TRAINED else 's'} = {self.value:g}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all jobs share, as plain values that go to other machines.

    protocol: how networks are trained, but for T and seed; validation: as for data.load; indices: of the test images
    that are attacked; setting: of the attacks, its arithmetic ignored; ties: of max-pools, in attacks; folder: for
    checkpoints, None where a job may not write; threads: of a job; code: of `code`, where the plan was made.
    """

    protocol: Protocol
    validation: int | None
    indices: tuple[int, ...]
    setting: attacks.Setting
    ties: str
    folder: Path | None
    threads: int
    code: dict

    def protocol_of(self, job):
        """How the network of a job is trained."""
        return dataclasses.replace(self.protocol, T=job.T, seed=job.seed)

    def weights_key(self, job):
        """Of a Store: what the weights depend on, before they are scaled."""
        protocol = self.protocol_of(job)
        trained = {"dataset": protocol.dataset, "validation": self.validation, "device": protocol.device}
        code = {name: value for name, value in self.code.items() if name != "measurement"}
        return {"sweep": "weights"} | trained | vars(protocol.recipe(job.network)) | code

    def figures_key(self, job):
        """Of a Store: what the figures depend on."""
        measured = {"indices": self.indices, "setting": vars(self.setting), "ties": self.ties, "scale": job.scale}
        return self.weights_key(job) | {"sweep": "figures"} | measured | self.code


def code():
    """What figures depend on beside a plan: the engine, what is measured, and who computes."""
    return {
        "engine": common.digest_of_sources(),
        "measurement": common.digest(np.frombuffer(inspect.getsource(measure).encode(), np.uint8)),
    } | common.arithmetic()


def run(plan, job, weights=None):
    """Train the network of a job, unless its weights are given, and measure it; in whatever process, on any machine.

    weights: as get_weights has them, before they are scaled. Returns (weights, None where training led nowhere; the
    figures as `measure` has them, with host and seconds). Raises UsageError where the code is not the plan's.
    """
    begin = time.monotonic()
    cpu.set_threads(plan.threads)
    command.use_one_blas_thread()
    if differ := [name for name, value in code().items() if value != plan.code[name]]:
        raise common.UsageError(
            f"the worker on {platform.node()} is of another version than this command, or has no C compiler where it "
            f"has one ({', '.join(differ)} differ): start it again from the same checkout"
        )
    dataset, protocol = data.load(plan.protocol.dataset, plan.validation), plan.protocol_of(job)
    try:
        weights = weights or train(job.network, dataset, protocol, plan.folder)
        network = set_weights(paper_cnn(ties=plan.ties).to(protocol.device), weights)
        figures = measure(rescaled(network, job.scale), dataset, plan)
    except training.LearningError as error:
        figures = unmeasured(f"did not learn: {error}")
    return weights, figures | {"host": platform.node(), "seconds": time.monotonic() - begin}


def train(name, dataset, protocol, folder):
    """The weights of `standard` or `temperature`. folder: None, or where its checkpoint is."""
    network = paper_cnn(seed=protocol.seed).to(protocol.device)
    training.fit(
        network,
        dataset.train_images,
        dataset.train_labels,
        protocol.recipe(name),
        held_out(dataset) if folder else None,
        checkpoint=folder and folder / f"{protocol.file_name(name)}.checkpoint.npz",
    )
    return get_weights(network)


def measure(network, dataset, plan):
    """The figures of a network, a dict.

    Of all test images: accuracy, and logit_scale, the median of max |logit|. Of those of the plan's that are classified
    correctly: success_ALGORITHM_ARITHMETIC; zero_maps, the share of plain maps that are exactly 0; log10_gradient, the
    median of the true max |dL/dpixel|; images, how many these are. why: empty, or why the network was not attacked.
    """
    logits = training.predict(network, dataset.test_images)
    right = logits.argmax(axis=1) == dataset.test_labels
    whole = {"accuracy": right.mean(), "logit_scale": np.median(np.abs(logits).max(axis=1))}
    if right.mean() < LEARNT:
        epochs = plan.protocol.epochs
        return unmeasured(f"did not learn in {epochs} epochs: accuracy {right.mean():.1%}", **whole)
    chosen = np.array(plan.indices)[right[list(plan.indices)]]
    if not len(chosen):
        return unmeasured("classifies none of the attacked images correctly", **whole)
    images, labels = dataset.test_images[chosen], dataset.test_labels[chosen]
    figures = dict.fromkeys(FIGURES, np.nan) | whole
    for algorithm in ALGORITHMS:
        for arithmetic in ARITHMETICS:
            setting = dataclasses.replace(plan.setting, arithmetic=arithmetic)
            found = attacks.attack(network, images, labels, algorithm, setting)
            figures[f"success_{algorithm}_{arithmetic}"] = found.succeeded.mean()
            if (algorithm, arithmetic) == ("1", "plain"):
                figures["zero_maps"] = found.zero_scores.mean()
    sizes = saliency_maps(network, images, labels, plan.setting.T).log10_size()
    return figures | {"log10_gradient": np.median(sizes), "images": len(chosen), "why": ""}


def unmeasured(why, **known):
    """The figures of a network that was not attacked."""
    return dict.fromkeys(FIGURES, np.nan) | known | {"images": 0, "why": why}


def sweep(plan, values, seeds, store, pool):
    """Do the jobs whose results the store lacks. values: the temperatures and scales, 1 among them.

    Returns (job -> figures, job -> why it has none, an exception).
    """
    found, failed, pending, started = {}, {}, {}, time.monotonic()
    progress = common.Progress("sweep", 2 * len(values) * len(seeds), seconds=60)

    def controls(job):
        """Those whose weights this job makes."""
        return [Job(CONTROL, value, job.seed) for value in values] if job == Job(TRAINED, 1, job.seed) else []

    def begin(job, weights=None):
        figures = store.find(plan.figures_key(job))
        if weights is None and (figures is None or controls(job)):
            weights = store.find(plan.weights_key(job))
        if figures is None or controls(job) and weights is None and not figures["why"].item():
            pending[pool.submit(run, plan, job, weights)] = job, weights
        else:
            end(job, weights, figures)

    def end(job, weights, figures):
        found[job] = {name: value.item() for name, value in figures.items()}
        progress(len(found) + len(failed))
        for control in controls(job):
            if control.scale == 1 or weights is None:  # the same network; none
                found[control] = found[job]
            else:
                begin(control, weights)

    def fail(job, error):
        failed[job] = error
        for control in controls(job):
            failed[control] = RuntimeError(f"needs {job}, which failed")

    try:
        for value in sorted(values, key=lambda value: value != 1):  # first what other jobs wait for
            for seed in seeds:
                begin(Job(TRAINED, value, seed))
        while pending:
            done, _ = wait(pending, HEARTBEAT, FIRST_COMPLETED)
            for future in done:
                job, weights = pending.pop(future)
                try:
                    trained, figures = future.result()
                except Exception as error:
                    fail(job, error)
                    continue
                if weights is None and trained is not None:
                    weights = store.put(plan.weights_key(job), trained)
                end(job, weights, store.put(plan.figures_key(job), figures))
            progress(len(found) + len(failed), f"jobs, {(time.monotonic() - started) / 60:.1f} minutes")
    finally:
        progress.close()
    return found, failed


def in_order(jobs):
    """By series, value and seed."""
    return sorted(jobs, key=lambda job: (job.series != TRAINED, job.value, job.seed))


def summary(found):
    """Over the seeds of job -> figures: a list of dicts with series, value, networks, how many were attacked, and for
    each of the FIGURES of these [mean, standard deviation], NaN where there is none."""
    lines = []
    for series, value in dict.fromkeys(job[:2] for job in in_order(found)):
        figures = [found[job] for job in found if job[:2] == (series, value) and not found[job]["why"]]
        line = {"series": series, "value": value, "networks": len(figures)}
        for name in FIGURES:
            of_seeds = [f[name] for f in figures]
            mean = np.mean(of_seeds) if of_seeds else np.nan
            line[name] = [mean, statistics.stdev(of_seeds) if len(of_seeds) > 1 else np.nan]
        lines.append(line)
    return lines


def texts(line):
    """A line of a summary, or of its JSON, as text: what it is of, and each of the FIGURES, None where no network was
    attacked."""
    label, figures = f"{'T' if line['series'] == TRAINED else 's'} = {line['value']:g}", dict.fromkeys(FIGURES)
    if line["networks"]:
        for name, figure in FIGURES.items():
            figures[name] = figure.text(*(np.nan if number is None else number for number in line[name]))
    return label, figures


def table(lines):
    """A summary as text, percentages but for the last two columns."""
    rows = [["", *headings] for headings in zip(*(figure.heading for figure in FIGURES.values()), strict=True)]
    for series in (TRAINED, CONTROL):
        rows.append([series])
        for label, figures in (texts(line) for line in lines if line["series"] == series):
            rows.append([f"  {label}", *(figure or "-" for figure in figures.values())])
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    return "\n".join(" ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)


def draw(path, lines, seeds):
    """A summary as a picture, means with standard deviations: each figure against T and s, success against logits."""
    fig, axes = common.figure(2, 3, width=3.9, height=3.3)
    legend = {}
    for axis, (title, figures) in zip(axes.flat, PANELS.items(), strict=True):
        by_logit = title.endswith("by largest logit")
        for series in (TRAINED, CONTROL):
            shown = [line for line in lines if line["series"] == series and line["networks"]]
            x = [line["logit_scale"][0] if by_logit else line["value"] for line in shown]
            for name, arithmetic in figures.items():
                mean, deviation = FIGURES[name].factor * np.array([line[name] for line in shown]).reshape(-1, 2).T
                style = STYLES[series, arithmetic] | {"capsize": 2, "zorder": 3 if series == TRAINED else 2}
                label = f"{series}{arithmetic and f', {arithmetic} float32'}"
                legend[label] = axis.errorbar(x, mean, np.nan_to_num(deviation), **style)
        axis.set_title(title)
        axis.set_xlabel("largest logit" if by_logit else "T, or s")
        common.plain_numbers(axis.xaxis, None if by_logit else sorted({line["value"] for line in lines}))
        if "logit_scale" in figures:
            common.plain_numbers(axis.yaxis)
        if "success" in "".join(figures):
            axis.set_ylim(-3, 103)
    fig.legend(legend.values(), legend.keys(), loc="outside right upper")
    unlearnt = ", ".join(f"{line['value']:g}" for line in lines if line["series"] == TRAINED and not line["networks"])
    shown = f"mean and standard deviation over {seeds} seed{'s' * (seeds > 1)}"
    common.head(fig, shown + (unlearnt and f"; no network learnt at T = {unlearnt}"))
    common.save_figure(path, fig)


def section(results, folder):
    """What sweep.json and sweep.png tell, as a report.Section."""
    seeds = len(results["seeds"])
    caption = (
        f"Networks trained at each T, and those of T = 1 with their logits times s, {results['epochs']} epochs, "
        f"{seeds} seed{'s' * (seeds > 1)}. Where both lie on each other when set against the largest logit, "
        "temperature acts through the size of the logits alone."
    )
    heads = ["", *(" ".join(figure.heading).strip() for figure in FIGURES.values())]
    rows = [
        dict(zip(heads, [label, *figures.values()], strict=True)) for label, figures in map(texts, results["summary"])
    ]
    picture, table = report.Picture(caption, folder / "sweep.png"), report.Table(rows)
    heading = "Temperature, or the size of the logits?"
    return report.Section(heading, report.Parts([picture]), level=3, more=report.Parts([table]))


def in_one_line(error):
    """The exception that a job ended with."""
    if isinstance(error, CancelledError):
        return "the Dask cluster gave it up: is its scheduler still there?"
    text = " ".join(str(error).split())
    return text if isinstance(error, (RuntimeError, *common.USER_ERRORS)) else f"{type(error).__name__}: {text}"


def exit_failed(failed):
    """Say of job -> exception why these jobs have no figures, jobs with the same reason together; and exit, with 2
    where it is the user's mistake."""
    reasons = {}
    for job in in_order(failed):
        reasons.setdefault(in_one_line(failed[job]), []).append(str(job))
    for reason, jobs in reasons.items():
        print(f"error: {'; '.join(jobs)}: {reason}", file=sys.stderr)
    sys.exit(2 if any(isinstance(error, common.USER_ERRORS) for error in failed.values()) else 1)


def temperatures(text):
    """An argparse type: numbers separated by commas, in order and once each; 1 is always among them."""
    return sorted({1.0, *map(common.positive(float), text.split(","))})


def main(options):
    if options.scheduler and options.workers:
        raise common.UsageError("--workers are processes of this machine: a Dask cluster has those that it has")
    seeds = common.seeds(options)
    dataset, protocol = common.load_data(options.dataset, options.validation), chosen_protocol(options)
    sample = common.chosen_sample(options, dataset, IMAGES[options.dataset])
    results = common.environment(options)
    cores = results["machine"]["cores"]
    workers = options.workers or (cores if options.device == "cpu" else 1)
    plan = Plan(
        protocol=protocol,
        validation=options.validation,
        indices=tuple(sample.indices.tolist()),
        setting=common.setting(options),
        ties=options.ties,
        folder=None if options.scheduler else options.out / "sweep",  # train may ask for other epochs in its own
        threads=1 if options.scheduler else max(1, cores // workers),
        code=code(),
    )
    store = common.Store(options.out / "parts")
    with executor(options.scheduler, workers) as pool:
        found, failed = sweep(plan, options.temperatures, seeds, store, pool)
    if not found:
        exit_failed(failed)
    lines, rows = summary(found), [job._asdict() | found[job] for job in in_order(found)]
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # no NaN
    results |= {
        "epochs": protocol.epochs,
        "batch": protocol.batch,
        "seeds": list(seeds),
        "sample": sample.taken(),
        "setting": vars(plan.setting),
        "ties": plan.ties,
        "summary": lines,
        "rows": rows,
        "failed": [
            job._asdict() | {"error": "".join(traceback.format_exception(failed[job]))} for job in in_order(failed)
        ],
    }
    common.write_json(options.json, results)
    csv, picture = (common.beside(options, name) for name in ("sweep.csv", "sweep.png"))
    common.write_csv(csv, rows)
    draw(picture, lines, len(seeds))
    print(f"{table(lines)}\npercentages but for the last two columns; mean±standard deviation over the seeds")
    for job in in_order(found):
        if found[job]["why"]:
            print(textwrap.fill(f"{job}: {found[job]['why']}", 80, subsequent_indent="  "))
    common.written(options.json, csv, picture)
    if failed:
        exit_failed(failed)


if __name__ == "__main__":
    main = importlib.import_module(__spec__.name).main  # whose jobs another process finds, unlike those of __main__
    parser = common.arguments(__doc__)
    default = "1,2,5,10,20,50,100"
    meaning = f"of training, and the factors of the control: numbers, 1 is always among them; default: {default}"
    parser.add_argument("--temperatures", type=temperatures, default=default, metavar="T,T,...", help=meaning)
    parser.add_argument("--seeds", type=common.positive(int), default=3, help="networks of each; default: 3")
    length_arguments(parser)
    parser.set_defaults(temperature=1.0, teacher_dropout="on", no_graph=False)  # of a Protocol, not asked for here
    parser.add_argument(
        "--scheduler",
        type=common.named(str),
        metavar="ADDRESS",
        help="of a Dask cluster that does the work; default: this machine",
    )
    parser.add_argument("--workers", type=common.positive(int), help="processes; default: one a core, 1 with cuda")
    common.attack_arguments(parser, "200 of digits, 500 of mnist")
    common.run(main, parser)
