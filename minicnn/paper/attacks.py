"""Adversarial samples by single-pixel moves: Algorithms 1 to 4 of the paper (section 3.2), the author's own variant and
a stronger one are one loop with a specification each.

A move sets one pixel to the maximum ("raise") or the minimum ("lower"). The loop makes the move of the largest score,
never changing a pixel twice, until the decision differs from the label or the limit is reached. A pixel is one entry of
an image: where an image has several channels, each is moved by itself. What the paper's text leaves open is decided
here, once:

- Equal scores: the first pixel in raster order. Where raising and lowering it score the same (S1 = S2 matches both
  branches of Algorithm 2) it is raised; prefer="lower" does what the branches do one after the other.
- A used entry leaves both maps, as minus infinity (Algorithm 1 says so; Algorithm 3 sets it to 0; Algorithm 2 forgets).
- Algorithm 3 lowers where the gradient is 0 (its text defines k > 0 and k < 0).
- A move that changes nothing, raising a pixel that is at the maximum already, counts as a move, as printed;
  skip_unchanged=True leaves such moves out.
- Samples that are misclassified already are no samples of an attack (Definition 1) and are reported apart. Rates are
  shares of the others; statistics.summary(result, counted) takes another denominator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import backend
from minicnn.layers import Layer
from minicnn.ops import as_flag, as_number, check_count, check_labels, check_temperature
from minicnn.paper.one_pixel import AttackError as AttackError
from minicnn.paper.one_pixel import changing_images, decisions
from minicnn.paper.saliency import ARITHMETICS as ARITHMETICS
from minicnn.paper.saliency import check_arithmetic, logit_gradients, rows_of_pixels, saliency_maps
from minicnn.threads import chunks
from minicnn.training import predict

RAISE, LOWER = 0, 1


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """score: "gradient" (saliency map), "margin" (gradient of the margin) or "loss difference"; absolute: whether its
    absolute value counts; lowers: whether moves to the minimum are allowed; refresh: whether scores are computed again
    after every move.

    Raises ValueError for another score, and for a gradient with only one of absolute and lowers: its sign chooses
    between raising and lowering, so the two go together.
    """

    score: str
    absolute: bool
    lowers: bool
    refresh: bool = False

    def __post_init__(self) -> None:
        if self.score not in ("gradient", "margin", "loss difference"):
            raise ValueError(f"score must be 'gradient', 'margin' or 'loss difference', got {self.score!r}")
        if self.score != "loss difference" and self.absolute != self.lowers:
            raise ValueError("a gradient's sign chooses the move: give absolute and lowers the same value")


ALGORITHMS = {
    "1": Algorithm("gradient", absolute=False, lowers=False),
    "2": Algorithm("loss difference", absolute=True, lowers=True),
    "3": Algorithm("gradient", absolute=True, lowers=True),
    "4": Algorithm("loss difference", absolute=True, lowers=True, refresh=True),
    "author": Algorithm("loss difference", absolute=False, lowers=False),
}
# Not the paper's: the margin's gradient neither underflows nor depends on T or on the size of the logits.
STRONGER = {"margin": Algorithm("margin", absolute=True, lowers=True, refresh=True)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an attack is free to choose.

    arithmetic: "plain" (the author's float32, which underflows) or "scaled" (which does not); T > 0: temperature of the
    attacked loss; a margin depends on neither. limit: moves a sample (100 in the paper, effectively 99 in the author's
    code); maximum, minimum: values of a moved pixel; skip_unchanged: leave out moves that change nothing; prefer:
    "raise" or "lower", of two moves of a pixel that score the same; chunk: images scored at a time; for loss
    differences functions.CHUNK changed ones besides, in each thread. Raises ValueError for other values.
    """

    arithmetic: str = "scaled"
    T: float = 1.0
    limit: int = 100
    maximum: float = 1.0
    minimum: float = 0.0
    skip_unchanged: bool = False
    prefer: str = "raise"
    chunk: int = 256

    def __post_init__(self) -> None:
        checked = {name: as_number(name, getattr(self, name)) for name in ("maximum", "minimum")}
        checked |= {name: check_count(name, getattr(self, name), least) for name, least in (("limit", 0), ("chunk", 1))}
        checked |= {"T": check_temperature(self.T), "skip_unchanged": as_flag("skip_unchanged", self.skip_unchanged)}
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_arithmetic(self.arithmetic)
        if self.prefer not in ("raise", "lower"):
            raise ValueError(f"prefer must be 'raise' or 'lower', got {self.prefer!r}")
        if not -math.inf < self.minimum < self.maximum < math.inf:
            raise ValueError(f"minimum must be below maximum, both finite, got {self.minimum} and {self.maximum}")

    def extremes(self, dtype: Any) -> np.ndarray:
        """The values of a raised and of a lowered pixel, maximum and minimum, in that dtype, (2,). Raises AttackError
        where they are not finite there, or the same."""
        with np.errstate(over="ignore", under="ignore"):
            values = np.array([self.maximum, self.minimum]).astype(dtype)
        if not np.isfinite(values).all() or values[RAISE] == values[LOWER]:
            raise AttackError(
                f"minimum {self.minimum:g} and maximum {self.maximum:g} are {values[LOWER]} and {values[RAISE]} in "
                f"{values.dtype}: choose two numbers that are finite and different there"
            )
        return values


@dataclasses.dataclass
class AttackResult:
    """What an attack did to N samples; NumPy arrays over all N, also those that were not attacked.

    attacked: classified correctly before (bool). succeeded: the decision was changed (bool). moves: made until then, or
    in all, a pixel each. unchanged_moves: of these, how many changed nothing. zero_scores: every score was exactly 0
    (bool), the map said nothing. adversarial: the images, moved. forwards, backwards: passes spent, in images; a
    recomputed change of one pixel counts as one forward pass.
    """

    attacked: np.ndarray
    succeeded: np.ndarray
    moves: np.ndarray
    unchanged_moves: np.ndarray
    zero_scores: np.ndarray
    adversarial: np.ndarray
    forwards: int = 0
    backwards: int = 0


def parted(logits: np.ndarray, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, K), a copy, with that of the label -inf; and that of the label, (N,). Raises ValueError for labels
    that do not fit."""
    labels, rows = check_labels(labels, *logits.shape), np.arange(len(logits))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return others, logits[rows, labels]


def margin(logits: np.ndarray, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """max_{j != k} z_j - z_k of the label k, and the j that it is taken at, the first of equals. (N, K), (N,) -> (N,),
    (N,). Raises AttackError where it is no number, ValueError for labels that do not fit."""
    others, of_label = parted(logits, labels)
    rival = others.argmax(axis=1)
    margins = logits[np.arange(len(logits)), rival] - of_label
    if np.isnan(margins).any():
        raise AttackError("the logits are no finite numbers: choose other weights")
    return margins, rival


@np.errstate(under="ignore")
def log_odds_against(logits: np.ndarray, labels: Any) -> np.ndarray:
    """log((1 - p) / p) of the label's probability p: logsumexp_{j != k} z_j - z_k. (N, K), (N,) -> (N,).

    The loss -ln p is its softplus; positive where the label has less than half of the probability. Raises ValueError
    for labels that do not fit.
    """
    others, of_label = parted(logits, labels)
    return np.logaddexp.reduce(others, axis=1) - of_label


def log_loss_change(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """log |softplus(after) - softplus(before)|, the log of the loss's change, from the two log-odds; any one shape.

    Without underflow; -inf where they are equal. With b <= a the two log-odds, the difference of their softplus is
    log1p(e^t) for t = log sigmoid(b) + log expm1(a - b).
    """
    a, b = np.maximum(after, before), np.minimum(after, before)
    with np.errstate(divide="ignore", under="ignore"):
        t = (a - b) + np.log(-np.expm1(b - a)) - np.logaddexp(0, -b)
        return np.where(t < -50, t, np.log(np.logaddexp(0, t)))


def margin_gradients(network: Layer, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradient of every image's margin by its pixels, in one batch; of the images' shape."""

    def weigh(logits):
        weights, rows = np.zeros_like(logits), np.arange(len(logits))
        weights[rows, margin(logits, labels)[1]] = 1
        weights[rows, labels] = -1
        return [weights]

    return logit_gradients(network, images, weigh)[0]


class _Scorer:
    """Scores every pixel of every image: best (n, P), the score of the pixel's better move, -inf for none; kind (n, P),
    RAISE or LOWER; zero (n,), whether all scores are 0. Counts the passes."""

    def __init__(self, network, algorithm, setting, maps):
        self.network, self.algorithm, self.setting, self.maps = network, algorithm, setting, maps
        self.score = self._by_loss_difference if algorithm.score == "loss difference" else self._by_gradient
        self.forwards = self.backwards = 0

    def __call__(self, images, labels):
        chunk = self.setting.chunk
        parts = [self.score(images[i : i + chunk], labels[i : i + chunk]) for i in range(0, len(images), chunk)]
        best, kind, zero = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if np.isnan(best).any():
            raise AttackError(
                f"the logits divided by T = {self.setting.T:g} are no finite {best.dtype}: choose a larger T, or other "
                "weights where the logits themselves are not finite"
            )
        return best, kind, zero

    def _by_gradient(self, images, labels):
        setting = self.setting
        if self.maps is not None:
            maps = _checked_maps(self.maps(images, labels), images)
        else:
            if self.algorithm.score == "margin":
                maps = margin_gradients(self.network, images, labels)
            else:
                maps = saliency_maps(self.network, images, labels, setting.T, setting.arithmetic, setting.chunk).maps
            self.forwards += len(images)
            self.backwards += len(images)
        best = maps.reshape(len(images), -1)
        zero = (best == 0).all(axis=1)
        kind = np.full(best.shape, RAISE)
        if self.algorithm.absolute:
            kind = np.where(best > 0, RAISE, LOWER)
            best = np.abs(best)
        if setting.skip_unchanged:
            values = setting.extremes(images.dtype)[kind]
            best = np.where(images.reshape(best.shape) == values, -np.inf, best)
        return best, kind, zero

    def _loss(self, logits, labels):
        """What differences are formed of: the loss, as the author computed it, or the log-odds, of which it is a
        function that grows."""
        z = logits / logits.dtype.type(self.setting.T)
        if self.setting.arithmetic == "scaled":
            return log_odds_against(z, labels)
        with np.errstate(divide="ignore"):
            return -np.log(backend.get("cpu").functions.softmax(z, 1.0)[np.arange(len(z)), labels])

    def _difference(self, after, before):
        """A number that orders the moves of an image as |L(c') - L(c)|, or signed L(c') - L(c), does."""
        if self.setting.arithmetic == "scaled" and self.algorithm.absolute:
            return np.maximum(log_loss_change(after, before), np.finfo(after.dtype).min)
        return np.abs(after - before) if self.algorithm.absolute else after - before

    @np.errstate(under="ignore")
    def _by_loss_difference(self, images, labels):
        setting = self.setting
        values = setting.extremes(images.dtype)[: 1 + self.algorithm.lowers]
        changes = images.reshape(len(images), -1, 1) != values
        image, pixel, kind = np.nonzero(changes)
        candidates = changing_images(self.network, images)
        before = self._loss(candidates.logits(), labels)
        after = self._loss(candidates.logits_with(image, pixel, values[kind]), labels[image])
        scores = np.full(changes.shape, -np.inf, images.dtype)
        if not setting.skip_unchanged:
            scores[...] = self._difference(before, before)[:, None, None]
        scores[image, pixel, kind] = self._difference(after, before[image])
        zero = np.ones(len(images), bool)
        zero[image[after != before[image]]] = False
        self.forwards += len(images) + len(image)
        lower = scores[..., LOWER:] > scores[..., :LOWER]
        if setting.prefer == "lower":
            lower |= scores[..., LOWER:] == scores[..., :LOWER]
        return scores.max(axis=2), np.where(lower.any(axis=2), LOWER, RAISE), zero


def attack(
    network: Layer,
    images: np.ndarray,
    labels: Any,
    algorithm: str | Algorithm,
    setting: Setting | None = None,
    on_move: Callable[[int, int, int], None] | None = None,
    maps: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> AttackResult:
    """Run an algorithm on every correctly classified sample, all at once.

    network: any Layer from images (N, C, H, W) or (N, D) to logits (N, K), on any device. images: a host array with
    values from the setting's minimum to its maximum; labels (N,) integers. algorithm: a key of ALGORITHMS or STRONGER,
    or an Algorithm. on_move(move, limit, active) is called after each round of moves. maps(images, labels): what
    takes the place of the gradient, of the images' shape, such as the map of another network; its passes are not
    counted. Returns an AttackResult. Raises ValueError for an unknown algorithm, for maps of another shape or where an
    algorithm takes no gradient, and for labels that do not fit; AttackError for images out of that range, for a range
    that the network's dtype does not have, and where logits, scores or maps are not numbers, as for a T that is too
    small; TypeError for images that are no real numbers.
    """
    setting = setting or Setting()
    if not isinstance(algorithm, Algorithm):
        known = ALGORITHMS | STRONGER
        if algorithm not in list(known):  # a list: what cannot be hashed is unknown as well
            raise ValueError(f"unknown algorithm {algorithm!r}: choose one of {', '.join(map(repr, known))}")
        algorithm = known[algorithm]
    if maps is not None and algorithm.score == "loss difference":
        raise ValueError("maps take the place of a gradient: choose an algorithm that follows one")
    check_temperature(setting.T, network.dtype)
    scorer = _Scorer(network, algorithm, setting, maps)
    result, labels = unmoved(network, images, labels, setting)
    adversarial = result.adversarial
    pixels = rows_of_pixels(adversarial)  # a view: the moves are made in it
    extremes = setting.extremes(pixels.dtype)
    active = np.flatnonzero(result.attacked)
    if len(active) and setting.limit:
        best, kind, result.zero_scores[active] = scorer(adversarial[active], labels[active])
        ranking = _ranking(best, 1 if algorithm.refresh else setting.limit, network.backend, setting.chunk)
        moving = changing_images(network, adversarial[active], setting.chunk)
    rows = np.arange(len(active))  # of scores, ranking and moving images, for those still active
    used = np.zeros((len(active), pixels.shape[1]), bool)
    rounds = min(setting.limit, pixels.shape[1])
    for move in range(rounds):
        if len(active) == 0:
            break
        pixel = ranking[rows, 0 if algorithm.refresh else move]
        possible = best[rows, pixel] > -np.inf
        active, rows, pixel = active[possible], rows[possible], pixel[possible]
        value = extremes[kind[rows, pixel]]
        changed = pixels[active, pixel] != value
        pixels[active, pixel] = value
        used[rows, pixel] = True
        result.moves[active] += 1
        result.unchanged_moves[active] += ~changed
        tried = active[changed]
        result.forwards += len(tried)
        if len(tried):
            decided = moving.decisions_after(rows[changed], pixel[changed], value[changed])
            result.succeeded[tried] = decided != labels[tried]
        remain = ~result.succeeded[active]
        active, rows, changed = active[remain], rows[remain], changed[remain]
        if algorithm.refresh and len(active) and move + 1 < rounds:
            best[rows, pixel[remain]] = -np.inf
            moved = rows[changed]  # the scores of the others are what they were
            if len(moved):
                scores, kind[moved], _ = scorer(adversarial[active[changed]], labels[active[changed]])
                best[moved] = np.where(used[moved], -np.inf, scores)
            ranking[rows] = _ranking(best[rows], 1, network.backend, setting.chunk)
        if on_move:
            on_move(move + 1, setting.limit, len(active))
    result.forwards += scorer.forwards
    result.backwards = scorer.backwards
    return result


def _checked_maps(maps, images):
    """Maps that a user gave for the images, as numbers of theirs."""
    maps = np.asarray(maps)
    if maps.shape != images.shape or maps.dtype.kind not in "fiub" or maps.dtype.itemsize > 8:
        raise ValueError(
            f"maps must give real numbers of at most 64 bits, of the images' shape {images.shape}, "
            f"got {maps.dtype} {maps.shape}"
        )
    maps = maps.astype(np.result_type(maps, images.dtype))
    if np.isnan(maps).any():
        raise AttackError("maps gave what is not a number (NaN): give each pixel a score")
    return maps


def unmoved(network: Layer, images: Any, labels: Any, setting: Setting) -> tuple[AttackResult, np.ndarray]:
    """What every attack begins with: the result of no move, its images a copy of the network's dtype, and the labels
    (N,) as a NumPy array. Arguments and errors as for `attack`."""
    copy = np.array(backend.get("cpu").asarray(images, dtype=network.dtype), order="C")
    maximum, minimum = setting.extremes(copy.dtype)
    if not ((copy >= minimum) & (copy <= maximum)).all():
        raise AttackError(
            f"images must be numbers in [{setting.minimum}, {setting.maximum}], these are from {copy.min()} to "
            f"{copy.max()}: scale them, or give the Setting another minimum and maximum"
        )
    n = len(copy)
    labels = check_labels(labels, n)
    logits = predict(network, copy, chunk=setting.chunk)
    attacked = decisions(logits) == check_labels(labels, *logits.shape)
    none, count = np.zeros(n, bool), np.zeros(n, int)
    return AttackResult(attacked, none, count, count.copy(), none.copy(), copy, forwards=n), labels


def changed_pixels(images: np.ndarray, result: AttackResult) -> np.ndarray:
    """Which entries of the adversarial samples are not those of the images attacked, in the samples' dtype, (N, P)
    bool: fewer than the moves, where a move changed nothing."""
    return rows_of_pixels(result.adversarial != np.asarray(images, result.adversarial.dtype))


def pixels_to_success(images: np.ndarray, *results: AttackResult) -> np.ndarray:
    """Per image the fewest pixels changed by any of several attacks on the same network that succeeded, (N,) floats;
    infinite where none did. images: those attacked.
    """
    fewest = np.full(len(images), np.inf)
    for result in results:
        changed = changed_pixels(images, result).sum(axis=1)
        fewest = np.where(result.succeeded, np.minimum(fewest, changed), fewest)
    return fewest


def _ranking(best, count, device, chunk):
    """The `count` best pixels of each image in order, equal scores in raster order, found on the device for `chunk`
    images at a time. (n, P) -> (n, count)."""
    if count == 1:
        return best.argmax(axis=1)[:, None]
    # The minus is the host's: CuPy's would turn the smallest scores to 0.
    parts = (device.asarray(-best[part]) for part in chunks(len(best), chunk))
    return np.concatenate(
        [backend.to_host(device.xp.argsort(scores, axis=1, kind="stable")[:, :count]) for scores in parts]
    )
