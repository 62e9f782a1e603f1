"""Fit, evaluate, checkpoint: the paper's training (section 2, "Training parameters"; the author's code where it is
silent), which resumes from its checkpoint to the same bits."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor
from minicnn.networks import get_weights, load_npz, predict, save_npz, set_weights
from minicnn.ops import check_temperature, cross_entropy
from minicnn.optim import NesterovSGD

DIVERGED = 1e3  # nats a sample; a network that knows nothing has ln 10 = 2.3
STEPS_BETWEEN_CHECKS = 50


class TrainingError(ValueError):
    """Training cannot start, go on, or resume; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are the paper's, and the author's where the paper is silent.

    temperature T > 0 inside the softmax of the loss; l2: coefficient of sum(W^2) of the last dense layer;
    batch: samples a step, a last partial batch is dropped; seed: of shuffling and of dropout.
    """

    temperature: float = 1.0
    learning_rate: float = 0.1
    momentum: float = 0.5
    l2: float = 0.01
    batch: int = 128
    epochs: int = 50
    seed: int = 0

    def __post_init__(self):
        check_temperature(self.temperature)
        for name in ("learning_rate", "batch", "epochs"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if not self.l2 >= 0:
            raise TrainingError(f"l2 must be at least 0, got {self.l2}")


def evaluate(network, images, labels, T=1.0):
    """(accuracy in [0, 1], mean cross-entropy at temperature T in nats) on images (N, C, H, W), labels (N,)."""
    logits = predict(network, images)
    losses = backend.get("cpu").kernels.cross_entropy(logits, labels, T)
    return float((logits.argmax(axis=1) == labels).mean()), float(losses.mean(dtype=np.float64))


def distilled_labels(teacher, images, T, dropout=None):
    """The teacher's softmax at temperature T on the images: soft labels (N, K) float32 for a student.

    dropout: None as Papernot et al. (2016) have it, or a seed: with masks on, as the author computed them.
    """
    check_temperature(T)
    return backend.get("cpu").kernels.softmax(predict(teacher, images, dropout=dropout), T)


class _Run:
    """The state of a training run on its device, and its step. All that a step reads and writes stays on the device,
    and all that it does goes through the pillar, so that the CUDA pillar can capture the step as one graph."""

    def __init__(self, network, images, targets, recipe, graph):
        parameters = network.parameters()
        like = next(iter(parameters.values())).data
        self.device = backend.of(like)
        kernels, xp = self.device.kernels, self.device.xp
        self.network, self.recipe = network, recipe
        self.images = self.device.asarray(images, dtype=like.dtype)
        self.targets = self.device.asarray(targets, dtype=like.dtype if targets.ndim == 2 else np.int32)
        self.order = self.device.asarray(np.arange(len(images)), dtype=np.int32)
        self.counter, self.total_loss = xp.zeros(1, np.uint32), xp.zeros(1, np.float64)
        mean = xp.full(recipe.batch, 1 / recipe.batch, like.dtype)
        learning_rate = self.device.asarray([recipe.learning_rate], dtype=like.dtype)
        last_weights = list(parameters)[-2]
        self.optimiser = NesterovSGD(parameters, learning_rate, recipe.momentum, l2={last_weights: recipe.l2})

        def step():
            batch = Tensor(kernels.gather(self.images, self.order, self.counter, recipe.batch))
            target = kernels.gather(self.targets, self.order, self.counter, recipe.batch)
            losses = cross_entropy(network(batch, (recipe.seed, self.counter)), target, T=recipe.temperature)
            losses.backward(mean)
            self.optimiser.step()
            kernels.accumulate(self.total_loss, losses.data)
            kernels.advance(self.counter)

        self.step = kernels.capture(step) if graph else step
        self.steps_per_epoch = len(images) // recipe.batch

    def epoch(self, epoch, on_step):
        """One pass over the samples in an order that (seed, epoch) fixes. Returns the mean training loss."""
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.images))
        self.order[...] = self.device.asarray(order, dtype=np.int32)
        self.counter[...] = self.device.asarray([epoch * self.steps_per_epoch], dtype=np.uint32)
        self.total_loss[...] = 0
        for done in range(1, self.steps_per_epoch + 1):
            self.step()
            if done % STEPS_BETWEEN_CHECKS == 0 or done == self.steps_per_epoch:
                loss = float(self.total_loss[0]) / (done * self.recipe.batch)
                if not loss < DIVERGED:
                    raise TrainingError(
                        f"training diverged in epoch {epoch + 1}, step {done}: mean loss {loss:g}; "
                        f"a learning rate below {self.recipe.learning_rate:g} may help"
                    )
            on_step(done, self.steps_per_epoch)
        return loss


def _fingerprint(recipe, network, images, targets):
    """What makes two runs the same up to their number of epochs."""
    digest = hashlib.sha256()
    for array in (images, targets, *get_weights(network).values()):
        digest.update(np.ascontiguousarray(array))
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "epochs"}
    return json.dumps(settings | {"data_and_initial_weights": digest.hexdigest()}, sort_keys=True)


def _resume(path, run, fingerprint):
    """Load a checkpoint into the run; returns its history. Raises TrainingError where it is of another run."""
    state = load_npz(path)
    try:
        saved, history = str(state.pop("fingerprint")), json.loads(str(state.pop("history")))
    except (KeyError, ValueError):
        raise TrainingError(f"{path} is no checkpoint of this program: remove it or choose another folder") from None
    if saved != fingerprint:
        old, new = json.loads(saved), json.loads(fingerprint)
        differ = ", ".join(f"{k}: {old.get(k)} there, {new[k]} now" for k in new if old.get(k) != new[k])
        raise TrainingError(f"{path} is the checkpoint of another run ({differ}): remove it or choose another folder")
    velocity = {name.removeprefix("velocity/"): state.pop(name) for name in list(state) if name.startswith("velocity/")}
    if set(velocity) != set(run.optimiser.velocity):
        raise TrainingError(f"{path} lacks the momentum of some parameters: remove it or choose another folder")
    set_weights(run.network, state, source=path)
    for name, values in velocity.items():
        run.optimiser.velocity[name][...] = run.device.asarray(values)
    return history


def fit(network, images, targets, recipe, held_out=None, checkpoint=None, on_step=None, on_epoch=None, graph=True):
    """Train `network` in place, on the device where its parameters are.

    images (N, C, H, W), targets (N,) integers or (N, K) soft labels. held_out: name -> (images, labels), evaluated
    after every epoch at T = 1. checkpoint: a path; state is saved there after every epoch, atomically, and a run that
    finds its checkpoint goes on from it to the same bits. on_step(done, steps), on_epoch(row) are called back.
    graph=False runs each step by itself where the CUDA pillar would replay a captured one: the same bits, slower.
    Returns the history: a dict per epoch with epoch, train_loss (with dropout, at T, without the penalty), for each
    held-out set NAME_accuracy and NAME_loss, and seconds (training and evaluation).
    Raises TrainingError for too few samples, for divergence, and for a checkpoint of another run.
    """
    if len(images) != len(targets):
        raise TrainingError(f"{len(images)} images and {len(targets)} targets: each image needs one")
    if len(images) < recipe.batch:
        raise TrainingError(f"{len(images)} samples are less than one batch of {recipe.batch}")
    fingerprint = _fingerprint(recipe, network, images, targets)
    run = _Run(network, images, targets, recipe, graph)
    history = _resume(checkpoint, run, fingerprint) if checkpoint and Path(checkpoint).exists() else []
    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        row = {"epoch": epoch + 1, "train_loss": run.epoch(epoch, on_step or (lambda done, steps: None))}
        for name, (x, labels) in (held_out or {}).items():
            row[f"{name}_accuracy"], row[f"{name}_loss"] = evaluate(network, x, labels)
        row["seconds"] = time.perf_counter() - start
        history.append(row)
        if checkpoint:
            velocity = {f"velocity/{n}": backend.to_host(v) for n, v in run.optimiser.velocity.items()}
            save_npz(
                checkpoint,
                get_weights(network) | velocity | {"fingerprint": fingerprint, "history": json.dumps(history)},
            )
        if on_epoch:
            on_epoch(row)
    return history
