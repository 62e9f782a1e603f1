"""Predict, evaluate, fit: the paper's training (section 2, "Training parameters"; the author's code where that is
silent), which resumes from its checkpoint to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import DropoutMasks, Layer
from minicnn.ops import check_labels, check_temperature, cross_entropy
from minicnn.optim import NesterovSGD
from minicnn.weights import get_weights, load_npz, save_npz, set_weights

DIVERGED = 1e3  # nats a sample; a network that knows nothing has ln 10 = 2.3
STEPS_BETWEEN_CHECKS = 50


class TrainingError(ValueError):
    """Training cannot start, go on, or resume; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are the paper's, and the author's where the paper is silent, but for the
    penalty, which names parameters.

    temperature T > 0 inside the softmax of the loss; l2: parameter name -> coefficient of sum(w^2) in the loss;
    batch: samples a step, a last partial batch is dropped; seed: of shuffling and of dropout.
    """

    temperature: float = 1.0
    learning_rate: float = 0.1
    momentum: float = 0.5
    l2: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch: int = 128
    epochs: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        for name in ("learning_rate", "batch", "epochs"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        for name, coefficient in self.l2.items():
            if not coefficient >= 0:
                raise TrainingError(f"the l2 of {name} must be at least 0, got {coefficient}")


def predict(network: Layer, images: Any, dropout: int | None = None, chunk: int = 256) -> np.ndarray:
    """Logits (N, K) as a NumPy array, `chunk` images at a time, without a graph.

    images: what the network takes, (N, C, H, W) or (N, D). dropout: None, or the seed of masks to draw (chunk i takes
    step i).
    """
    device, dtype = network.backend, network.dtype
    logits = []
    with no_grad():
        for step, start in enumerate(range(0, max(len(images), 1), chunk)):
            batch = Tensor(device.asarray(images[start : start + chunk], dtype=dtype))
            masks = None if dropout is None else DropoutMasks(dropout, step)
            logits.append(backend.to_host(network(batch, masks).data))
    return np.concatenate(logits)


def correct(network: Layer, images: Any, labels: Any, chunk: int = 256) -> np.ndarray:
    """Which images the network classifies as their labels say, (N,) bool. labels (N,) integers, one an image.

    Raises ValueError for labels of another shape or type, or that are no class of the network.
    """
    logits = predict(network, images, chunk=chunk)
    return logits.argmax(axis=1) == check_labels(labels, *logits.shape)


def evaluate(network: Layer, images: Any, labels: Any, T: float = 1.0) -> tuple[float, float]:
    """(accuracy in [0, 1], mean cross-entropy at temperature T in nats) on images as for predict, labels (N,)."""
    logits = predict(network, images)
    labels = check_labels(labels, *logits.shape)
    losses = backend.get("cpu").functions.cross_entropy(logits, labels, T)
    return float((logits.argmax(axis=1) == labels).mean()), float(losses.mean(dtype=np.float64))


def distilled_labels(teacher: Layer, images: Any, T: float, dropout: int | None = None) -> np.ndarray:
    """The teacher's softmax at temperature T on the images: soft labels (N, K) for a student.

    dropout: None as Papernot et al. (2016) have it, or a seed: with masks on, as the author computed them.
    """
    check_temperature(T)
    return backend.get("cpu").functions.softmax(predict(teacher, images, dropout=dropout), T)


class _Run:
    """The state of a training run on its device, and its step. All that a step reads and writes stays on the device,
    and all that it does is backend functions, so that on CUDA it can be captured as one graph."""

    def __init__(
        self,
        network: Layer,
        images: Any,
        targets: Any,
        recipe: Recipe,
        loss: Callable[[Tensor, Any], Tensor],
        graph: bool,
    ) -> None:
        self.device, dtype = network.backend, network.dtype
        functions, xp = self.device.functions, self.device.xp
        self.network, self.recipe = network, recipe
        self.images = self.device.asarray(images, dtype=dtype)
        self.targets = self.device.asarray(targets, dtype=np.int32 if targets.dtype.kind in "iu" else dtype)
        self.order = self.device.asarray(np.arange(len(images)), dtype=np.int32)
        self.counter, self.total_loss = xp.zeros(1, np.uint32), xp.zeros(1, np.float64)
        mean = xp.full(recipe.batch, 1 / recipe.batch, dtype)
        learning_rate = self.device.asarray([recipe.learning_rate], dtype=dtype)
        self.optimiser = NesterovSGD(network.parameters(), learning_rate, recipe.momentum, recipe.l2)

        def step() -> None:
            batch = Tensor(functions.gather(self.images, self.order, self.counter, recipe.batch))
            target = functions.gather(self.targets, self.order, self.counter, recipe.batch)
            losses = loss(network(batch, DropoutMasks(recipe.seed, self.counter)), target)
            if losses.shape != mean.shape:
                raise TrainingError(f"the loss must be one number a sample, {mean.shape}, got {losses.shape}")
            losses.backward(mean)
            self.optimiser.step()
            functions.accumulate(self.total_loss, losses.data)
            functions.advance(self.counter)

        self.step = functions.capture(step) if graph else step
        self.steps_per_epoch = len(images) // recipe.batch

    def epoch(self, epoch: int, on_step: Callable[[int, int], None]) -> float:
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


def _fingerprint(recipe: Recipe, network: Layer, images: Any, targets: Any) -> str:
    """What makes two runs the same up to their number of epochs."""
    digest = hashlib.sha256()
    for array in (images, targets, *get_weights(network).values()):
        digest.update(np.ascontiguousarray(array).data)
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "epochs"}
    return json.dumps(settings | {"data_and_initial_weights": digest.hexdigest()}, sort_keys=True)


def _resume(path: str | Path, run: _Run, fingerprint: str) -> list[dict]:
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
    weights, velocity = (
        {name.removeprefix(kind): array for name, array in state.items() if name.startswith(kind)}
        for kind in ("weights/", "velocity/")
    )
    if set(velocity) != set(run.optimiser.velocity):
        raise TrainingError(f"{path} lacks the momentum of some parameters: remove it or choose another folder")
    set_weights(run.network, weights, source=path)
    for name, values in velocity.items():
        run.optimiser.velocity[name][...] = run.device.asarray(values)
    return history


def fit(
    network: Layer,
    images: Any,
    targets: Any,
    recipe: Recipe,
    held_out: Mapping[str, tuple[Any, Any]] | None = None,
    checkpoint: str | Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    graph: bool = True,
    loss: Callable[[Tensor, Any], Tensor] | None = None,
) -> list[dict]:
    """Train `network` in place, on the device where its parameters are.

    images (N, C, H, W) or (N, D), targets (N,) integers or (N, K) soft labels. held_out: name -> (images, labels),
    evaluated after every epoch at T = 1. checkpoint: a path; state is saved there after every epoch, atomically, and a
    run that finds its checkpoint goes on from it to the same bits. on_step(done, steps), on_epoch(row) are called back.
    graph=False runs each step by itself where CUDA would replay a captured one: the same bits, slower; a layer or loss
    of your own needs it where it computes on CUDA what cannot be captured, a matrix product or an indexing by arrays.
    loss(logits, targets) -> (N,), a function of the batch's Tensor and its raw targets; by default the cross-entropy at
    the recipe's temperature, and then targets are checked first.
    Returns the history: a dict per epoch with epoch, train_loss (with dropout, at T, without the penalty), for each
    held-out set NAME_accuracy and NAME_loss, and seconds (training and evaluation).
    Raises TrainingError for too few samples, for divergence, and for a checkpoint of another run; ValueError for labels
    that fit neither the images nor the network.
    """
    targets = backend.to_host(targets)
    if len(images) != len(targets):
        raise TrainingError(f"{len(images)} images and {len(targets)} targets: each image needs one")
    if len(images) < recipe.batch:
        raise TrainingError(f"{len(images)} samples are less than one batch of {recipe.batch}")
    if loss is None:
        if targets.ndim != 2:
            check_labels(targets, len(images), predict(network, images[:1]).shape[1])

        def loss(z: Tensor, target: Any) -> Tensor:
            return cross_entropy(z, target, T=recipe.temperature)

    fingerprint = _fingerprint(recipe, network, images, targets)
    run = _Run(network, images, targets, recipe, loss, graph)
    history = _resume(checkpoint, run, fingerprint) if checkpoint and Path(checkpoint).exists() else []
    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        row = {"epoch": epoch + 1, "train_loss": run.epoch(epoch, on_step or (lambda done, steps: None))}
        for name, (x, labels) in (held_out or {}).items():
            row[f"{name}_accuracy"], row[f"{name}_loss"] = evaluate(network, x, labels)
        row["seconds"] = time.perf_counter() - start
        history.append(row)
        if checkpoint:
            state = {f"weights/{n}": w for n, w in get_weights(network).items()}
            state |= {f"velocity/{n}": backend.to_host(v) for n, v in run.optimiser.velocity.items()}
            state |= {"fingerprint": np.array(fingerprint), "history": np.array(json.dumps(history))}
            save_npz(checkpoint, state)
        if on_epoch:
            on_epoch(row)
    return history
