"""Predict, evaluate, fit: the paper's training (section 2, "Training parameters"; the author's code where that is
silent), which resumes from its checkpoint to the same bits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn import backend
from minicnn.autograd import Tensor, no_grad
from minicnn.layers import DropoutMasks, Layer, backend_and_dtype, over_images
from minicnn.ops import as_integer, as_number, check_count, check_labels, check_temperature, cross_entropy, softmax
from minicnn.optim import NesterovSGD
from minicnn.threads import chunks
from minicnn.weights import LIMIT, get_weights, load_sealed, save_sealed, set_weights, weights_limit

DIVERGED = 1e3  # nats a sample; a network that knows nothing has ln 10 = 2.3
STEPS_BETWEEN_CHECKS = 50
LARGEST = sys.float_info.max  # JSON has larger integers


class TrainingError(ValueError):
    """Training cannot start, go on, or resume; the message says why and what to do."""


class LearningError(TrainingError):
    """Training with this recipe leads nowhere: nothing can be learnt at its temperature, or the loss diverged."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are the paper's, and the author's where the paper is silent, but for the
    penalty, which names parameters.

    temperature T > 0 inside the softmax of the loss; l2: parameter name -> coefficient of sum(w^2) in the loss;
    batch: samples a step, a last partial batch is dropped; seed, below 2^64: of shuffling and of dropout. Numbers are
    kept as Python's, in whatever type they come. Raises TrainingError for what is no number and for one out of range,
    ValueError for such a temperature.
    """

    temperature: float = 1.0
    learning_rate: float = 0.1
    momentum: float = 0.5
    l2: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch: int = 128
    epochs: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"temperature": check_temperature(self.temperature)}
        try:
            checked |= {name: as_number(name, getattr(self, name)) for name in ("learning_rate", "momentum")}
            checked |= {name: as_integer(name, getattr(self, name)) for name in ("batch", "epochs", "seed")}
            checked["l2"] = {name: as_number(f"the l2 of {name}", value) for name, value in self.l2.items()}
        except ValueError as error:
            raise TrainingError(str(error)) from None
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("learning_rate", "batch", "epochs"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} must be positive, got {getattr(self, name):g}")
        if self.learning_rate == math.inf:
            raise TrainingError("learning_rate must be finite, got inf")
        if not 0 <= self.seed < 2**64:
            raise TrainingError(f"seed must be at least 0 and below 2^64, got {self.seed}")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"momentum must be at least 0 and below 1, got {self.momentum:g}")
        for name, coefficient in self.l2.items():
            if not coefficient >= 0:
                raise TrainingError(f"the l2 of {name} must be at least 0, got {coefficient:g}")
            if coefficient == math.inf:
                raise TrainingError(f"the l2 of {name} must be finite, got inf")


def predict(network: Layer, images: Any, dropout: int | None = None, chunk: int = 256) -> np.ndarray:
    """Logits (N, K) as a NumPy array, `chunk` images at a time, shared by the threads of the CPU, without a graph.

    images: what the network takes, (N, C, H, W) or (N, D). dropout: None, or the seed of masks to draw (chunk i, which
    then is not shared, takes step i). Raises ValueError for a chunk that is no integer above 0, and where the network
    gives anything but rows of logits; TypeError for images that are no real numbers.
    """
    chunk = check_count("chunk", chunk)
    device, dtype = backend_and_dtype(network)

    def logits_of(part, masks=None):
        batch = Tensor(device.asarray(images[part], dtype=dtype))
        with no_grad():
            logits = network(batch, masks).data
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ValueError(
                f"the network gives {logits.shape} for {len(batch)} images: rows of logits, (N, K), are needed"
            )
        return logits

    if dropout is None:
        parts = over_images(network, device, logits_of, len(images), chunk)
    else:
        in_turn = enumerate(chunks(len(images), chunk))
        parts = [logits_of(part, DropoutMasks(dropout, step)) for step, part in in_turn]
    return np.concatenate([backend.to_host(part) for part in parts])  # only now: a GPU is to be kept busy


def correct(network: Layer, images: Any, labels: Any, chunk: int = 256) -> np.ndarray:
    """Which images the network classifies as their labels say, (N,) bool. labels (N,) integers, one an image.

    Raises ValueError for labels of another shape or type, or that are no class of the network.
    """
    logits = predict(network, images, chunk=chunk)
    return logits.argmax(axis=1) == check_labels(labels, *logits.shape)


def evaluate(network: Layer, images: Any, labels: Any, T: float = 1.0, chunk: int | None = None) -> tuple[float, float]:
    """(accuracy in [0, 1], mean cross-entropy at temperature T in nats) on images and with errors as for predict,
    labels (N,). chunk: images at a time, by default as many as suit the device (functions.CHUNK). On a GPU the last
    bits of a dense layer depend on it."""
    logits = predict(network, images, chunk=network.backend.functions.CHUNK if chunk is None else chunk)
    T = check_temperature(T, logits.dtype)
    labels = check_labels(labels, *logits.shape)
    losses = backend.get("cpu").functions.cross_entropy(logits, labels, T)
    return float((logits.argmax(axis=1) == labels).mean()), float(losses.mean(dtype=np.float64))


def distilled_labels(teacher: Layer, images: Any, T: float, dropout: int | None = None) -> np.ndarray:
    """The teacher's softmax at temperature T on the images: soft labels (N, K) for a student.

    dropout: None as Papernot et al. (2016) have it, or a seed: with masks on, as the author computed them.
    """
    T = check_temperature(T, teacher.dtype)
    return backend.get("cpu").functions.softmax(predict(teacher, images, dropout=dropout), T)


class Run:
    """The state of a training run on its device, and its step(). All that a step reads and writes stays on the device,
    and all that it does is backend functions, so that on CUDA it can be captured as one graph. Arguments and errors are
    those of fit."""

    def __init__(
        self,
        network: Layer,
        images: Any,
        targets: Any,
        recipe: Recipe,
        loss: Callable[[Tensor, Any], Tensor] | None = None,
        graph: bool = True,
    ) -> None:
        images, targets = map(backend.get("cpu").asarray, (images, targets))
        if not targets.ndim:
            raise TrainingError(f"targets are one an image, got {targets}")
        if len(images) != len(targets):
            raise TrainingError(f"{len(images)} images and {len(targets)} targets: each image needs one")
        if len(images) < recipe.batch:
            raise TrainingError(f"{len(images)} samples are less than one batch of {recipe.batch}")
        self.device, dtype = backend_and_dtype(network)
        functions, xp = self.device.functions, self.device.xp
        self.network, self.recipe, self.diverged = network, recipe, math.inf
        if loss is None:
            self.diverged, loss = DIVERGED, functools.partial(cross_entropy, T=recipe.temperature)
            check_temperature(recipe.temperature, dtype)
            if targets.ndim != 2:
                check_labels(targets, len(images), predict(network, images[:1]).shape[1])
        self.images = self.device.asarray(images, dtype=dtype)
        if targets.dtype.kind in "iu" and targets.size and max(-int(targets.min()), int(targets.max())) >= 2**31:
            raise TrainingError(f"integer targets must be below 2^31, got {targets.min()} to {targets.max()}")
        self.targets = self.device.asarray(targets, dtype=np.int32 if targets.dtype.kind in "iu" else dtype)
        for name, values in (("images", self.images), ("targets", self.targets)):
            if not bool(xp.isfinite(values).all()):
                raise TrainingError(f"the {name} hold values that are no finite numbers")
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
                if not loss < self.diverged:
                    larger = " or a larger temperature" if self.recipe.temperature < 1 else ""
                    raise LearningError(
                        f"training diverged in epoch {epoch + 1}, step {done}: mean loss {loss:g}; "
                        f"a learning rate below {self.recipe.learning_rate:g}{larger} may help"
                    )
            on_step(done, self.steps_per_epoch)
        return loss


def _check_temperature_teaches(network: Layer, images: Any, targets: np.ndarray, recipe: Recipe) -> None:
    """Raises LearningError where the temperature makes the loss of the first batch so large that training would count
    as diverged, or all its probabilities equal, which at T = 1 they are not."""
    T, logits, target = recipe.temperature, Tensor(predict(network, images[: recipe.batch])), targets[: recipe.batch]
    if target.dtype.kind == "f":
        target = target.astype(logits.dtype)
    with np.errstate(all="ignore"):
        loss, at_1 = (float(cross_entropy(logits, target, T=t).data.mean(dtype=np.float64)) for t in (T, 1.0))
        spread, spread_at_1 = (np.ptp(softmax(logits, T=t).data) for t in (T, 1.0))
    if not loss < DIVERGED and at_1 < DIVERGED:
        raise LearningError(
            f"at temperature {T:g} the untrained network's loss is {loss:g} already, at 1 it is {at_1:g}: "
            "nothing can be learnt, choose a larger temperature"
        )
    if spread == 0 < spread_at_1:
        raise LearningError(
            f"at temperature {T:g} all classes have the same probability to the last bit of {logits.dtype}: "
            "nothing can be learnt, choose a smaller temperature"
        )


def _identity(function: Any) -> tuple[str, str]:
    """The name of a function and a digest of its code: what it closes over does not count."""
    if isinstance(function, functools.partial):
        name, digest = _identity(function.func)
        return f"{name} with {function.args} {function.keywords}", digest
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    constants = [c for c in getattr(code, "co_consts", ()) if not hasattr(c, "co_code")]  # whose text holds an address
    text = repr((getattr(code, "co_code", b""), constants, getattr(code, "co_names", ())))
    return name, hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(recipe: Recipe, network: Layer, images: Any, targets: Any, loss: Callable | None) -> str:
    """What makes two runs the same up to their number of epochs."""
    digest = hashlib.sha256()
    for array in (images, targets, *get_weights(network).values()):
        digest.update(np.ascontiguousarray(array).data)
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "epochs"}
    settings["loss"], settings["code_of_loss"] = ("cross_entropy", "") if loss is None else _identity(loss)
    settings["data_and_initial_weights"] = digest.hexdigest()
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network))  # the address of an object of one's own
    settings["network"] = hashlib.sha256(layers.encode()).hexdigest()
    return json.dumps(settings, sort_keys=True, default=lambda number: number.item())


DIGESTS = {
    "data_and_initial_weights": "other data or initial weights",
    "network": "another network",
    "code_of_loss": "another code of the loss",
}


def _resume(path: str | Path, run: Run, fingerprint: str, fields: set[str]) -> list[dict]:
    """Load a checkpoint into the run; returns its history. Raises TrainingError where it is of another run or where
    anything in it does not fit the run; the network is then unchanged. fields: the names in a row of the history."""

    def refuse(why: str) -> TrainingError:
        return TrainingError(f"{path} {why}: remove it or choose another folder")

    state = load_sealed(path, LIMIT + 2 * weights_limit(run.network))
    try:
        saved, history = (json.loads(str(state.pop(name))) for name in ("fingerprint", "history"))
    except (KeyError, RecursionError, ValueError):
        raise refuse("is no checkpoint of this program") from None
    now = json.loads(fingerprint)
    if not isinstance(saved, dict):
        raise refuse("is no checkpoint of this program")
    if saved != now:
        differ = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
        words = [DIGESTS.get(name) or f"{name}: {saved.get(name)} there, {now.get(name)} now" for name in differ]
        raise refuse(f"is the checkpoint of another run ({', '.join(words)})")
    if not _is_history(history, fields):
        raise refuse(f"has no history of epochs with {', '.join(sorted(fields))}")
    if len(history) > run.recipe.epochs:
        raise TrainingError(
            f"{path} holds {len(history)} epochs, {run.recipe.epochs} are asked for: ask for as many or remove it"
        )
    parts = {"weights": get_weights(run.network), "velocity": run.optimiser.velocity}
    expected = {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    for name in sorted({*state, *expected}):
        if name not in state or name not in expected:
            raise refuse(f"{'lacks' if name in expected else 'has an unknown'} {name}")
        found, want = state[name], expected[name]
        if (found.shape, found.dtype) != (want.shape, want.dtype):
            raise refuse(f"has {name} as {found.dtype}{found.shape}, this run as {want.dtype}{want.shape}")
        if not np.isfinite(found).all():
            raise refuse(f"has values in {name} that are no finite numbers")
    set_weights(run.network, {name: state[f"weights/{name}"] for name in parts["weights"]}, source=path)
    for name, velocity in run.optimiser.velocity.items():
        velocity[...] = run.device.asarray(state[f"velocity/{name}"])
    return history


def _is_history(history: Any, fields: set[str]) -> bool:
    """Whether this is a list of rows with these fields, all numbers, one an epoch from 1 on."""
    return (
        isinstance(history, list)
        and len(history) > 0
        and all(isinstance(row, dict) and set(row) == fields for row in history)
        and all(isinstance(value, (int, float)) for row in history for value in row.values())
        and all(abs(row["train_loss"]) <= LARGEST and 0 <= row["seconds"] <= LARGEST for row in history)
        and [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    )


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
    chunk: int | None = None,
) -> list[dict]:
    """Train `network` in place, on the device where its parameters are.

    images (N, C, H, W) or (N, D), targets (N,) integers or (N, K) soft labels. held_out: name -> (images, labels),
    evaluated after every epoch at T = 1, `chunk` images at a time as evaluate has it. checkpoint: a path; state is
    saved there after every epoch, atomically, and a run that finds its checkpoint goes on from it to the same bits.
    on_step(done, steps), on_epoch(row) are called back. graph=False runs each step by itself where CUDA would replay a
    captured one: the same bits, slower; a layer or loss of your own needs it where it computes on CUDA what cannot be
    captured, a matrix product or an indexing by arrays. loss(logits, targets) -> (N,), a function of the batch's Tensor
    and its targets, an array of the backend, integers as int32 and others in the network's dtype; by default the
    cross-entropy at the recipe's temperature, and then targets are checked first. A checkpoint knows a loss by its name
    and its code, and a network by its repr: not what a function closes over, nor the code of a layer.
    Returns the history: a dict per epoch with epoch, train_loss (with dropout, at T, without the penalty), for each
    held-out set NAME_accuracy and NAME_loss, and seconds (training and evaluation).
    Raises LearningError for a temperature at which nothing can be learnt and for divergence (of a loss of one's own:
    once it is not finite); TrainingError, of which that is one, for too few samples, for images that are no finite
    numbers, for integer targets beyond int32, for a name of held_out whose columns the history has already, and for a
    checkpoint that is of another run, does not fit this one, or holds more epochs than are asked for; ValueError for
    labels that fit neither the images nor the network, and for a chunk that is no integer above 0; TypeError for images
    or targets that are no real numbers.
    """
    images, targets = map(backend.get("cpu").asarray, (images, targets))
    chunk = None if chunk is None else check_count("chunk", chunk)
    figures = [f"{name}_{what}" for name in held_out or {} for what in ("accuracy", "loss")]
    fields = ["epoch", "train_loss", *figures, "seconds"]
    if twice := [field for field in fields if fields.count(field) > 1]:
        raise TrainingError(f"the history would have two columns {twice[0]}: rename a set of held_out")
    run = Run(network, images, targets, recipe, loss, graph)
    fingerprint = _fingerprint(recipe, network, images, targets, loss)
    history = []
    if checkpoint and Path(checkpoint).exists():
        history = _resume(checkpoint, run, fingerprint, set(fields))
    elif loss is None:
        _check_temperature_teaches(network, images, targets, recipe)
    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        row = {"epoch": epoch + 1, "train_loss": run.epoch(epoch, on_step or (lambda done, steps: None))}
        for name, (x, labels) in (held_out or {}).items():
            row[f"{name}_accuracy"], row[f"{name}_loss"] = evaluate(network, x, labels, chunk=chunk)
        row["seconds"] = time.perf_counter() - start
        history.append(row)
        if checkpoint:
            state = {f"weights/{n}": w for n, w in get_weights(network).items()}
            state |= {f"velocity/{n}": backend.to_host(v) for n, v in run.optimiser.velocity.items()}
            state |= {"fingerprint": np.array(fingerprint), "history": np.array(json.dumps(history))}
            save_sealed(checkpoint, state)
        if on_epoch:
            on_epoch(row)
    return history
