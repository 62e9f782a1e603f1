"""Train one of the paper's networks: standard (T = 1), temperature (T = 20 on hard labels, also the teacher), or
distilled (T = 20 on the teacher's soft labels; the teacher is trained first); or standard-distilled (T = 1 on the soft
labels of standard), which the paper has not.

Writes NAME.npz (weights), NAME.csv and NAME.png (loss, accuracy, time by epoch), train_NAME.json, and
NAME.checkpoint.npz after every epoch: the same command goes on from there, to the same bits. NAME is the network's,
with what is not the default of the data set: temperature-T5, standard-seed1. MNIST with 50 epochs is the paper's
protocol.
"""

import argparse
import contextlib
import dataclasses

import numpy as np

from experiments import common
from minicnn import training, weights
from minicnn.paper.networks import NETWORKS, PENALTY, TEMPERATURE, paper_cnn

# The paper's protocol ("Training parameters") is that of MNIST. The 1,500 digits need smaller batches, and the full
# rate for the distilled network too: at half of it, it is still at chance after 25 epochs of 46 steps.
DATASET_DEFAULTS = {
    "mnist": {"batch": 128, "epochs": 50, "learning_rate": 0.1, "distilled_rate": 0.05},
    "digits": {"batch": 32, "epochs": 25, "learning_rate": 0.1, "distilled_rate": 0.1},
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the four networks are trained on a data set.

    dataset: its name; T > 0: of those trained at temperature; epochs, batch: as in a Recipe; seed: of initial weights,
    shuffling and dropout; teacher_dropout: whether distilled labels are computed with dropout on; device; graph: as for
    training.fit. Defaults are the command line's.
    """

    dataset: str
    T: float
    epochs: int
    batch: int
    seed: int = 0
    teacher_dropout: bool = True
    device: str = "cpu"
    graph: bool = True

    def recipe(self, name):
        """The Recipe of one of the NETWORKS."""
        trained, defaults = NETWORKS[name], DATASET_DEFAULTS[self.dataset]
        return training.Recipe(
            temperature=self.T if trained.at_temperature else 1.0,
            learning_rate=defaults["distilled_rate" if trained.teacher else "learning_rate"],
            l2=PENALTY,
            batch=self.batch,
            epochs=self.epochs,
            seed=self.seed,
        )

    def file_name(self, name):
        """What the files of one of the NETWORKS are called: its name, and what is not the data set's default."""
        trained = NETWORKS[name]
        others = {
            f"-T{self.T}".removesuffix(".0"): trained.at_temperature and self.T != TEMPERATURE,
            f"-seed{self.seed}": self.seed != 0,
            f"-batch{self.batch}": self.batch != DATASET_DEFAULTS[self.dataset]["batch"],
            "-teacher-without-dropout": trained.teacher and not self.teacher_dropout,
        }
        return name + "".join(text for text, differs in others.items() if differs)

    def load(self, name, path, ties):
        """One of the NETWORKS from a file, as load_network has it, which refuses another temperature or data set."""
        return common.load_network(path, self.device, ties, T=self.recipe(name).temperature, dataset=self.dataset)


def chosen_protocol(options):
    """The Protocol of the options that training_arguments adds."""
    defaults = DATASET_DEFAULTS[options.dataset]
    return Protocol(
        dataset=options.dataset,
        T=options.temperature,
        epochs=options.epochs or defaults["epochs"],
        batch=options.batch or defaults["batch"],
        seed=options.seed,
        teacher_dropout=options.teacher_dropout == "on",
        device=options.device,
        graph=not options.no_graph,
    )


def held_out(dataset):
    """What training.fit evaluates after every epoch: the test set and, where there is one, the validation set."""
    found = {"test": (dataset.test_images, dataset.test_labels)}
    if len(dataset.validation_images):
        found["validation"] = dataset.validation_images, dataset.validation_labels
    return found


def train(name, dataset, protocol, folder, teacher=None):
    """Train one of the NETWORKS, or go on where it stopped; its teacher first, unless that is given. Returns (network,
    history).

    Writes to the folder, under protocol.file_name(name), .checkpoint.npz after every epoch, then .npz and .csv.
    """
    recipe, targets, file_name = protocol.recipe(name), dataset.train_labels, protocol.file_name(name)
    if NETWORKS[name].teacher:
        if teacher is None:
            teacher, _ = train(NETWORKS[name].teacher, dataset, protocol, folder)
        dropout = protocol.seed if protocol.teacher_dropout else None
        targets = training.distilled_labels(teacher, dataset.train_images, recipe.temperature, dropout)
    network = paper_cnn(seed=protocol.seed).to(protocol.device)
    steps, epochs = len(dataset.train_images) // recipe.batch, 0

    def on_epoch(row):
        nonlocal epochs
        epochs = row["epoch"]
        progress(epochs * steps, f"epoch {epochs}, test {row['test_accuracy']:.2%}")

    def on_step(done, _):
        progress(epochs * steps + done)

    label, total = f"{name}, T = {recipe.temperature:g}", recipe.epochs * steps
    with contextlib.closing(common.Progress(label, total)) as progress:
        history = training.fit(
            network,
            dataset.train_images,
            targets,
            recipe,
            held_out(dataset),
            checkpoint=folder / f"{file_name}.checkpoint.npz",
            on_step=on_step,
            on_epoch=on_epoch,
            graph=protocol.graph,
        )
    weights.save_weights(network, folder / f"{file_name}.npz", recipe.temperature, protocol.dataset)
    common.write_csv(folder / f"{file_name}.csv", history)
    return network, history


def plot_history(path, name, T, *histories):
    """Loss, error and time of every epoch as a picture; histories: one of every seed."""
    fig, ((loss, error, seconds),) = common.figure(1, 3)
    for i, history in enumerate(histories):
        columns = {key: np.array([row[key] for row in history]) for key in history[0]}
        epochs, hidden = columns["epoch"], "_" * i  # a label that begins so is in no legend
        marked = {"markevery": max(1, len(epochs) // 8)}
        loss.plot(epochs, columns["train_loss"], "C0-o", label=f"{hidden}training, T = {T:g}, dropout", **marked)
        for kind, style in ("validation", "C1--s"), ("test", "C2-.^"):
            if f"{kind}_loss" in columns:
                loss.plot(epochs, columns[f"{kind}_loss"], style, label=f"{hidden}{kind}, loss at T = 1", **marked)
                error.plot(epochs, 100 * (1 - columns[f"{kind}_accuracy"]), style, **marked)
        seconds.plot(epochs, columns["seconds"], "C0-")
    seconds.set_ylim(0, 1.05 * max(row["seconds"] for history in histories for row in history))
    for axes, title in (loss, "loss (nats)"), (error, "error (%)"), (seconds, "seconds an epoch"):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, error):
        common.plain_numbers(axes.yaxis)
    fig.legend(loc="outside lower center", ncols=3)
    reached = ", ".join(f"{history[-1]['test_accuracy']:.2%} after {len(history)} epochs" for history in histories)
    common.head(fig, f"{name}: test accuracy {reached}")
    common.save_figure(path, fig)


def default_of(name):
    """One of the DATASET_DEFAULTS, in words."""
    return "default: " + ", ".join(f"{values[name]} for {dataset}" for dataset, values in DATASET_DEFAULTS.items())


def length_arguments(parser):
    """Add the options of training that say how long, and on what, to a parser."""
    parser.add_argument("--epochs", type=common.positive(int), help=default_of("epochs"))
    parser.add_argument("--batch", type=common.positive(int), help=f"samples a step; {default_of('batch')}")
    parser.add_argument(
        "--validation",
        type=int,
        help="training samples set apart; default: 1000 of mnist, as the author had it (the paper's text says 10000)",
    )


def training_arguments(parser):
    """Add all options of training to a parser."""
    length_arguments(parser)
    parser.add_argument(
        "--temperature",
        type=common.positive(float),
        default=TEMPERATURE,
        help="T > 0 that the networks temperature and distilled are trained at; default: %(default)g",
    )
    meaning = "dropout while the distilled labels are computed: on as the author did, off as Papernot et al."
    common.choice(parser, "--teacher-dropout", ("on", "off"), "on", meaning)
    parser.add_argument("--no-graph", action="store_true", help="cuda: run each step by itself, for debugging")


def refuse_training(options, option):
    """Raises UsageError where the options say how to train, though `option` is given, which names trained networks."""
    parser = argparse.ArgumentParser()
    training_arguments(parser)
    names = ("epochs", "batch", "validation", "teacher_dropout", "no_graph")
    given = [f"--{n.replace('_', '-')}" for n in names if getattr(options, n) != parser.get_default(n)]
    if given:
        raise common.UsageError(f"{option} takes networks as they are: leave out {', '.join(given)}, or train")


def main(options):
    name, protocol = options.network, chosen_protocol(options)
    if options.temperature != TEMPERATURE and not NETWORKS[name].at_temperature:
        raise common.UsageError(f"--temperature has no influence on {name}, which is trained at T = 1: leave it out")
    if not protocol.teacher_dropout and not NETWORKS[name].teacher:
        raise common.UsageError(f"--teacher-dropout has no influence on {name}, which has no teacher: leave it out")
    dataset = common.load_data(options.dataset, options.validation)
    _, history = train(name, dataset, protocol, options.out)
    last, file, recipe = history[-1], options.out / protocol.file_name(name), protocol.recipe(name)
    common.write_results(options, {"recipe": vars(recipe), "history": history})
    picture = file.with_name(f"{file.name}.png")
    plot_history(picture, name, recipe.temperature, history)
    print(
        f"{name}: {last['test_accuracy']:.2%} of {len(dataset.test_labels)} test images after "
        f"{last['epoch']} epochs, {sum(row['seconds'] for row in history):.0f} s"
    )
    common.written(f"{file}.npz", f"{file}.csv", picture, options.json)


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.choice(parser, "--network", NETWORKS, "standard", "which network")
    training_arguments(parser)
    common.run(main, parser, lambda o: f"train_{chosen_protocol(o).file_name(o.network)}.json")
