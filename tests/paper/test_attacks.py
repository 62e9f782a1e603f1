"""Attacks against a reference that follows the paper's section 3.2 line by line, one image at a time, in float64, where
rounding decides no choice; and against what was measured on the author's own networks."""

import dataclasses
import math
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest

from minicnn.layers import Conv2D, Dense, Flatten, Sequential
from minicnn.paper.attacks import (
    ALGORITHMS,
    LOWER,
    RAISE,
    STRONGER,
    Algorithm,
    AttackError,
    AttackResult,
    Setting,
    attack,
    log_loss_change,
    log_odds_against,
    margin,
    margin_gradients,
    pixels_to_success,
)
from minicnn.paper.jsma import jsma
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.sparse_rs import sparse_rs
from minicnn.paper.statistics import summary
from minicnn.training import predict
from tests.conftest import colour_cnn, dense_network, small_cnn
from tests.paper import test_facts

mnist, networks = test_facts.mnist, test_facts.networks

NEVER = -math.inf  # the score of a move that is not to be made
STEP = 2.0**-17  # of finite differences; a network of ReLUs and maxima is piecewise linear, so they are exact
REFRESHED = Algorithm("gradient", absolute=True, lowers=True, refresh=True)  # Algorithm 3 with a map for every move
NAMES = [*ALGORITHMS, *STRONGER]
SCORES = {name: name for name in NAMES} | {"4": "2", REFRESHED: "3"}  # 4 is 2 with maps for every move
GRADIENTS = ("1", "3", "margin")
REFRESHING = ("4", "margin", REFRESHED)

every_algorithm = pytest.mark.parametrize("algorithm", NAMES)
every_specification = pytest.mark.parametrize("algorithm", SCORES, ids=[*NAMES, "3 refreshed"])
both_arithmetics = pytest.mark.parametrize("arithmetic", ["plain", "scaled"])


def small(scale=1.0):
    """small_cnn in float64, the logits multiplied by `scale`."""
    network = small_cnn(seed=21, dtype=np.float64)
    for parameter in network.layers["dense2"].parameters().values():
        parameter.data *= scale
    return network


def samples(network, count=9, shape=(1, 8, 8), minimum=0.0, maximum=1.0):
    """Noise with a quarter of the pixels at the minimum and some at the maximum; the network's decisions as labels, but
    for the last, which is wrong."""
    images = np.clip(np.random.default_rng(11).uniform(-0.3, 1.2, (count, *shape)), minimum, maximum)
    logits = predict(network, images)
    labels = logits.argmax(axis=1)
    labels[-1] = (labels[-1] + 1) % logits.shape[1]
    return images, labels


class OneImage:
    """What a network says of one image, passes counted."""

    def __init__(self, network, label, setting):
        self.network, self.label, self.setting = network, label, setting
        self.forwards = self.backwards = 0

    def differs(self, c):
        self.forwards += 1
        return predict(self.network, c[None]).argmax() != self.label

    def losses(self, images):
        """-ln p_label: as the author computed it, or to as many decimals as the smallest of probabilities needs."""
        self.forwards += len(images)
        logits = predict(self.network, images) / self.setting.T
        if self.setting.arithmetic == "plain":
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            with np.errstate(divide="ignore"):
                return -np.log(p[:, self.label] / p.sum(axis=1))
        with localcontext(Context(prec=40 + int(np.ptp(logits, axis=1).max()))):
            return [sum(Decimal(float(v - z[self.label])).exp() for v in z).ln() for z in logits]

    def gradient(self, c, scores):
        """By finite differences of the logits: dL/dc, or, scaled, the same times T / (1 - p_label); or the gradient of
        the largest other logit minus the label's."""
        self.forwards += 1
        self.backwards += 1
        z = predict(self.network, c[None])[0] / self.setting.T
        p = np.exp(z - z.max())
        if scores == "margin":
            dL_dz = np.zeros(len(z))
            dL_dz[max((j for j in range(len(z)) if j != self.label), key=lambda j: z[j])] = 1
            dL_dz[self.label] = -1
        elif self.setting.arithmetic == "plain":
            p = p / p.sum()
            p[self.label] -= 1
            dL_dz = p / self.setting.T
        else:
            others = np.delete(z, self.label)
            dL_dz = np.exp(z - others.max()) / np.exp(others - others.max()).sum()
            dL_dz[self.label] = -1
        steps = STEP * np.eye(c.size).reshape(-1, *c.shape)
        return (predict(self.network, c + steps) - predict(self.network, c - steps)) / (2 * STEP) @ dL_dz

    def maps(self, c, scores):
        """The two saliency maps S1 (of raising) and S2 (of lowering), and whether they say nothing."""
        values = (self.setting.maximum, self.setting.minimum)
        S = np.full((2, c.size), NEVER, object)
        if scores in GRADIENTS:
            gradient = self.gradient(c, scores)
            nothing = not gradient.any()
            for i, k in enumerate(gradient):
                if scores == "1":
                    S[RAISE, i] = k
                else:
                    S[RAISE if k > 0 else LOWER, i] = abs(k)
        else:
            allowed = list(np.ndindex(1 if scores == "author" else 2, c.size))
            moves = [(kind, i) for kind, i in allowed if c.flat[i] != values[kind]]
            changed = np.repeat(c[None], 1 + len(moves), axis=0)
            for image, (kind, i) in zip(changed[1:], moves, strict=True):
                image.flat[i] = values[kind]
            loss_0, *losses = self.losses(changed)
            for move in allowed:
                S[move] = 0
            for move, loss in zip(moves, losses, strict=True):
                S[move] = loss - loss_0 if scores == "author" else abs(loss - loss_0)
            nothing = all(loss == loss_0 for loss in losses)
        if self.setting.skip_unchanged:
            for kind in (RAISE, LOWER):
                S[kind, c.ravel() == values[kind]] = NEVER
        return S, nothing


def largest(S, c, values, exact_zeros, kinds):
    """(kind, i) of the largest score, in raster order and by the order of kinds among equals; None where there is none.

    A comparison of choices needs scores that are clearly apart, or known to be equal: of moves that change nothing, or
    of gradients that are exactly 0.
    """
    place = max(((kind, i) for i in range(c.size) for kind in kinds), key=lambda move: S[move])  # the first of equals
    best = S[place]
    if best == NEVER:
        return None
    top = max(abs(s) for s in S.ravel() if s != NEVER)
    margin = top * type(top)(1e-9)
    for kind, i in np.ndindex(S.shape):
        if (kind, i) != place and S[kind, i] != NEVER and best - S[kind, i] <= margin:
            assert best == S[kind, i]
            assert exact_zeros or (c.flat[i] == values[kind] and c.flat[place[1]] == values[place[0]])
    return place


def reference(network, image, label, algorithm, setting):
    """Section 3.2 for one image; returns the fields of an AttackResult."""
    one, scores = OneImage(network, label, setting), SCORES[algorithm]
    c, values = image.copy(), (setting.maximum, setting.minimum)
    result = {"attacked": not one.differs(c), "succeeded": False, "moves": 0, "unchanged_moves": 0}
    result |= {"zero_scores": False, "adversarial": c}
    if result["attacked"] and setting.limit > 0:
        S, result["zero_scores"] = one.maps(c, scores)
        used = np.zeros(c.size, bool)
        for move in range(1, setting.limit + 1):
            kinds = (RAISE, LOWER) if setting.prefer == "raise" else (LOWER, RAISE)
            place = largest(S, c, values, scores in GRADIENTS, kinds)
            if place is None:
                break
            kind, i = place
            changed = c.flat[i] != values[kind]
            c.flat[i] = values[kind]
            used[i] = True
            S[:, i] = NEVER
            result["moves"] = move
            result["unchanged_moves"] += int(not changed)
            if changed and one.differs(c):
                result["succeeded"] = True
                break
            if changed and algorithm in REFRESHING and move < setting.limit and not used.all():
                S, _ = one.maps(c, scores)
                S[:, used] = NEVER
    return result | {"forwards": one.forwards, "backwards": one.backwards}


def assert_as_reference(network, images, labels, algorithm, setting):
    """All at once gives what the reference gives one by one; returns the reference's results."""
    found = attack(network, images, labels, algorithm, setting)
    expected = [reference(network, x, y, algorithm, setting) for x, y in zip(images, labels, strict=True)]
    for field in ("attacked", "succeeded", "moves", "unchanged_moves", "zero_scores"):
        assert getattr(found, field).tolist() == [e[field] for e in expected], field
    assert np.array_equal(found.adversarial, np.stack([e["adversarial"] for e in expected]))
    assert found.forwards == sum(e["forwards"] for e in expected)
    assert found.backwards == sum(e["backwards"] for e in expected)
    return expected


@both_arithmetics
@every_specification
@pytest.mark.parametrize(
    ("network", "shape", "limit"),
    [(small(), (1, 8, 8), 12), (dense_network(dtype=np.float64), (12,), 4)],
    ids=["cnn", "dense"],
)
def test_attack_against_the_paper_line_by_line(network, shape, limit, algorithm, arithmetic):
    images, labels = samples(network, shape=shape)
    expected = assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=limit))
    assert [e["attacked"] for e in expected] == [True] * 8 + [False]
    outcomes = {e["succeeded"] for e in expected[:-1]}
    assert outcomes == {True, False}, "a comparison of attacks needs some that succeed and some that fail"


@both_arithmetics
@every_specification
def test_attack_on_three_channels_against_the_paper_line_by_line(algorithm, arithmetic):
    """Nested layers, padding and a layer of one's own, with a move for every channel of a pixel."""
    network = colour_cnn(dtype=np.float64)
    images, labels = (a[:1] for a in samples(network, 2, (3, 32, 32)))
    limit = 2 if algorithm in REFRESHING else 6
    (expected,) = assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=limit))
    assert expected["moves"] == limit


@both_arithmetics
@every_algorithm
@pytest.mark.parametrize(
    "change",
    [{"T": 7.0}, {"maximum": 255 / 256, "minimum": 1 / 256}, {"skip_unchanged": True}, {"prefer": "lower"}],
    ids=["temperature", "bounds", "skip_unchanged", "prefer"],
)
def test_attack_settings_against_the_paper_line_by_line(algorithm, arithmetic, change):
    setting = Setting(arithmetic, limit=12, **change)
    images, labels = samples(small(), 3, minimum=setting.minimum, maximum=setting.maximum)
    assert_as_reference(small(), images, labels, algorithm, setting)


@pytest.mark.parametrize(
    ("algorithm", "arithmetic"),
    [("1", "plain"), ("1", "scaled"), ("2", "scaled"), ("3", "plain"), ("3", "scaled"), ("author", "scaled")]
    + [("margin", "plain")],
)
def test_attack_on_a_saturated_network_against_the_paper_line_by_line(algorithm, arithmetic):
    """1 - p_label is rounded to 0 for most images; their scaled attacks go on."""
    network = small(scale=3e2)
    images, labels = samples(network)
    assert (log_odds_against(predict(network, images), labels)[:-1] < -37).sum() >= 4
    assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=12))


@pytest.mark.parametrize("algorithm", ["1", "3"])
def test_attack_scaled_does_not_see_a_positive_factor_of_the_logits(algorithm):
    images, labels = samples(small())
    # Beyond a factor of 1e6 only the best of the other classes counts: the direction no longer changes.
    million, billion = (attack(small(s), images, labels, algorithm, Setting("scaled", limit=12)) for s in (1e6, 1e9))
    assert np.array_equal(million.adversarial, billion.adversarial)
    assert million.succeeded.any() and not million.zero_scores.any()


@pytest.mark.parametrize(
    ("algorithm", "prefer", "value"),
    [("1", "raise", 1), ("2", "raise", 1), ("2", "lower", 0), ("3", "raise", 0), ("4", "raise", 1)]
    + [("4", "lower", 0), ("author", "raise", 1)],
)
def test_attack_plain_on_a_saturated_network_paints_raster_order(algorithm, prefer, value):
    """Where no single move turns the decision every score is exactly 0: the first pixels are raised, or lowered where
    that is preferred, and by Algorithm 3, whose k = 0 is not above 0."""
    images, labels = samples(small())
    found = attack(small(scale=1e9), images, labels, algorithm, Setting("plain", limit=3, prefer=prefer))
    silent = found.zero_scores & ~found.succeeded
    assert silent.sum() >= 3 and not found.zero_scores[-1] and (found.moves[silent] == 3).all()
    painted = images[silent]
    painted[:, 0, 0, :3] = value
    assert np.array_equal(found.adversarial[silent], painted)


@every_algorithm
def test_attack_does_not_depend_on_batch_chunk_memory_order_or_type(algorithm):
    network, setting = small(), Setting("scaled", limit=3)
    images, labels = samples(network)
    whole = attack(network, images, labels, algorithm, setting)
    others = [attack(network, images, labels, algorithm, dataclasses.replace(setting, chunk=n)) for n in (1, 4)]
    transposed = images.swapaxes(2, 3).copy().swapaxes(2, 3)
    for other in np.asfortranarray(images), transposed, images.tolist():
        others.append(attack(network, other, labels.tolist(), algorithm, setting))
    for found in others:
        for field in dataclasses.fields(AttackResult):
            assert np.array_equal(getattr(found, field.name), getattr(whole, field.name)), field.name
    for i in range(len(images)):
        alone = attack(network, images[i : i + 1], labels[i : i + 1], algorithm, setting)
        assert alone.moves == whole.moves[i]
        assert np.array_equal(alone.adversarial[0], whole.adversarial[i])


@pytest.mark.parametrize("algorithm", ["1", "2", "4", "margin"])
def test_attack_makes_the_same_moves_on_every_backend(device, algorithm):
    images, labels = samples(small())
    here, there = (attack(small().to(d), images, labels, algorithm, Setting(limit=4)) for d in ("cpu", device.name))
    for field in dataclasses.fields(AttackResult):
        assert np.array_equal(getattr(there, field.name), getattr(here, field.name)), field.name


def test_attack_follows_the_smallest_scores_on_every_backend(device):
    """Scores of a few times 1e-45, and zeros of either sign, which are equal."""
    network = small_cnn(seed=21).to(device.name)
    images, labels = (a[:-1] for a in samples(network))
    images = images.astype(np.float32)
    scores = np.random.default_rng(0).integers(-3, 4, images.shape) * np.finfo(np.float32).smallest_subnormal
    scores = np.where(images > np.median(images), -scores, scores).astype(np.float32)  # -0 among them
    result = attack(network, images, labels, "1", Setting(limit=5), maps=lambda x, y: scores)
    for image, moved, row, count in zip(images, result.adversarial, scores, result.moves, strict=True):
        order = sorted(range(row.size), key=lambda i: (-row.flat[i], i))
        expected = image.copy()
        expected.flat[order[:count]] = 1
        assert np.array_equal(moved, expected)
    assert (np.signbit(scores) & (scores == 0)).any() and result.moves.max() == 5


def switchboard(up, down, threshold=1e6):
    """Two classes: a pixel at 1/2 adds nothing, at 1 its entry of `up` / 2, at 0 its entry of `down` / 2 to the logit
    of class 1; the decision turns from 0 to 1 above `threshold`. A map at 1/2 is exactly 0: both ReLUs are at rest."""
    network = Sequential(conv=Conv2D(1, 2, 1, dtype=np.float64), flatten=Flatten(), out=Dense(2 * len(up), 2))
    conv, out = network.layers["conv"], network.layers["out"]
    conv.W.data[...] = np.reshape([1, -1], (2, 1, 1, 1))
    conv.b.data[...] = -0.5, 0.5
    out.W.data = np.zeros((2 * len(up), 2))
    out.W.data[:, 1] = np.concatenate([up, down])
    out.b.data = np.array([threshold, 0.0])
    return network


def grey(pixels, count=1):
    return np.full((count, 1, 1, pixels), 0.5), np.zeros(count, int)


@pytest.mark.parametrize("algorithm", ["2", "4", "author"])
@both_arithmetics
def test_attack_equal_scores_go_in_raster_order_and_raise_before_lower(algorithm, arithmetic):
    network = switchboard(np.ones(6), np.ones(6), threshold=8)
    for limit in range(6):
        found = attack(network, *grey(6), algorithm, Setting(arithmetic, limit=limit))
        assert found.adversarial.ravel().tolist() == [1.0] * limit + [0.5] * (6 - limit)


@pytest.mark.parametrize("algorithm", ["2", "4"])
def test_attack_raster_order_comes_before_raise_or_lower(algorithm):
    network = switchboard([1, 1, 2], [1, 2, 1], threshold=8)
    one, two, three = (attack(network, *grey(3), algorithm, Setting(limit=n)).adversarial.tolist() for n in (1, 2, 3))
    assert one == [[[[0.5, 0, 0.5]]]] and two == [[[[0.5, 0, 1]]]] and three == [[[[1, 0, 1]]]]


@pytest.mark.parametrize("algorithm", ["2", "4"])
def test_attack_never_changes_a_pixel_twice(algorithm):
    """Pixel 0 has the two largest scores, and in Algorithm 4 the largest of all after its move: to be moved back."""
    found = attack(switchboard([9, 1, 1], [8, 1, 1], threshold=30), *grey(3), algorithm, Setting(limit=2))
    assert found.adversarial.tolist() == [[[[1, 1, 0.5]]]]


@every_algorithm
def test_attack_with_a_limit_above_the_number_of_pixels_moves_each_once(algorithm):
    network = switchboard(np.arange(1, 8), np.arange(8, 1, -1))
    found = attack(network, *grey(7, count=2), algorithm, Setting(limit=1000))
    assert found.moves.tolist() == [7, 7] and not found.succeeded.any()
    assert np.isin(found.adversarial, (0, 1)).all()


def test_attack_4_stops_looking_when_every_pixel_is_used():
    found = attack(switchboard([3, 2, 1], [0, 0, 0]), *grey(3), "4", Setting("plain", limit=1000))
    # The decision before; three maps of 1 loss and 2 tries a pixel, less one for every raised pixel, which raising does
    # not change; three decisions after moves.
    assert found.forwards == 1 + (1 + 6) + (1 + 5) + (1 + 4) + 3


@every_algorithm
def test_attack_limit(algorithm):
    """A decision that move k changes is a success for limit k and a failure of k - 1 moves for limit k - 1."""
    images, labels = samples(small())
    free = attack(small(), images, labels, algorithm, Setting(limit=40))
    image = np.flatnonzero(free.succeeded & (free.moves > 1))[:1]
    (needed,) = free.moves[image]
    settings = Setting(limit=needed), Setting(limit=needed - 1)
    enough, short = (attack(small(), images[image], labels[image], algorithm, s) for s in settings)
    assert enough.succeeded == [True] and enough.moves == [needed]
    assert short.succeeded == [False] and short.moves == [needed - 1]
    assert np.count_nonzero(enough.adversarial != short.adversarial) == 1
    looked = attack(small(), images, labels, algorithm, Setting(limit=0))
    assert looked.attacked.sum() == 8 and not looked.succeeded.any() and not looked.moves.any()
    assert np.array_equal(looked.adversarial, images) and (looked.forwards, looked.backwards) == (9, 0)


def test_attack_limit_of_the_paper_and_of_the_author():
    """The 100th move of the paper's text turns the decision; the author's loop ends at 99."""
    network = switchboard(np.ones(110), np.zeros(110), threshold=49.75)
    assert Setting().limit == 100
    paper, author = (attack(network, *grey(110), "2", s) for s in (Setting(), Setting(limit=99)))
    assert (paper.succeeded.item(), paper.moves.item()) == (True, 100)
    assert (author.succeeded.item(), author.moves.item()) == (False, 99)


def test_attack_leaves_misclassified_samples_out():
    network = small()
    images, labels = samples(network)
    found = attack(network, images, (labels + 1) % 3, "2")
    assert found.attacked.tolist() == [False] * 8 + [(labels[8] + 1) % 3 == predict(network, images)[8].argmax()]
    wrong = ~found.attacked
    assert np.array_equal(found.adversarial[wrong], images[wrong])
    for field in ("succeeded", "moves", "unchanged_moves", "zero_scores"):
        assert not getattr(found, field)[wrong].any()


def test_attack_maximum_of_the_data_and_of_the_attack():
    """255/256 is the largest value of MNIST's pixels; a pixel that has it is changed by raising it to 1, and only then.
    The raised pixel's logit is 1/2 with the one and 127/256 with the other."""
    images, labels = grey(2)
    images[..., 1] = 255 / 256
    below, above = switchboard([1, 0], [0, 0], threshold=0.497), switchboard([1, 0], [0, 0], threshold=0.495)
    for network, maximum, succeeds in ((below, 1.0, True), (below, 255 / 256, False), (above, 255 / 256, True)):
        found = attack(network, images, labels, "author", Setting(maximum=maximum, limit=1))
        assert found.succeeded.item() == succeeds
        assert found.adversarial.ravel().tolist() == [maximum, 255 / 256]
    for maximum, unchanged in ((1.0, 0), (255 / 256, 1)):
        found = attack(switchboard([1, 0], [0, 0]), images, labels, "author", Setting(maximum=maximum, limit=2))
        assert (found.moves.item(), found.unchanged_moves.item()) == (2, unchanged)


def test_attack_counts_moves_that_change_nothing_unless_they_are_skipped():
    """All pixels are at the maximum and no score says anything: Algorithm 1 spends its limit, or has no move."""
    images, labels = np.ones((2, 1, 1, 5)), np.zeros(2, int)
    network = switchboard(np.zeros(5), np.zeros(5))
    counted = attack(network, images, labels, "1", Setting(limit=3))
    skipped = attack(network, images, labels, "1", Setting(limit=3, skip_unchanged=True))
    assert counted.moves.tolist() == counted.unchanged_moves.tolist() == [3, 3]
    assert skipped.moves.tolist() == skipped.unchanged_moves.tolist() == [0, 0]
    # The decision and the map; an unchanged image has the decision that it had.
    assert (counted.forwards, counted.backwards) == (skipped.forwards, skipped.backwards) == (4, 2)
    assert counted.zero_scores.all() and skipped.zero_scores.all()
    lowered = attack(network, images, labels, "2", Setting(limit=3, skip_unchanged=True))
    assert lowered.adversarial.tolist() == [[[[0, 0, 0, 1, 1]]]] * 2 and not lowered.unchanged_moves.any()


def test_attack_zero_scores_are_maps_that_are_zero_everywhere():
    images, labels = grey(3, count=2)
    images[1, ..., 0] = 0.75
    for algorithm in GRADIENTS:
        found = attack(switchboard([1, 1, 1], [0, 0, 0]), images, labels, algorithm, Setting(limit=1))
        assert found.zero_scores.tolist() == [True, False]
    for algorithm in ("2", "4", "author"):
        for up, nothing in ([0, 1, 0], False), ([0, 0, 0], True):
            found = attack(switchboard(up, [0, 0, 0]), images, labels, algorithm, Setting(limit=1))
            assert found.zero_scores.tolist() == [nothing] * 2


def test_attack_takes_infinite_plain_losses_for_the_largest():
    """-log(softmax) of a class whose probability underflows is infinite, as the author had it, and ends in no nan."""
    network = switchboard([1.0, 1e5, 2.0], [0, 0, 0], threshold=1)
    found = attack(network, *grey(3), "author", Setting("plain", limit=1))
    assert found.adversarial.tolist() == [[[[0.5, 1, 0.5]]]] and found.succeeded.item()


def test_attack_leaves_the_samples_as_they_are_and_tells_its_progress():
    network = small()
    images, labels = samples(network)
    before, told = images.copy(), []
    found = attack(network, images, labels, "3", Setting(limit=12), lambda *args: told.append(args))
    assert np.array_equal(images, before)
    assert [move for move, _, _ in told] == list(range(1, len(told) + 1)) and {limit for _, limit, _ in told} == {12}
    for move, _, active in told:
        assert active == (found.attacked & ~(found.succeeded & (found.moves <= move))).sum()


@pytest.mark.parametrize("skip_unchanged", [False, True])
@pytest.mark.parametrize("algorithm", ["1", "3", REFRESHED], ids=["1", "3", "3 refreshed"])
def test_attack_on_maps_given_to_it(algorithm, skip_unchanged):
    """On the network's own it is the attack itself, but for the passes; on the opposite ones another."""
    network = small()
    images, labels = samples(network)
    setting = Setting(limit=60, chunk=4, skip_unchanged=skip_unchanged)

    def given(sign):
        def maps(x, y):
            return sign * saliency_maps(network, x, y).maps

        return attack(network, images, labels, algorithm, setting, maps=maps)

    own, same, opposite = attack(network, images, labels, algorithm, setting), given(1), given(-1)
    spent = own.backwards
    assert 0 < spent == own.forwards - same.forwards and same.backwards == 0
    for name, values in vars(own).items():
        assert name in ("forwards", "backwards") or np.array_equal(getattr(same, name), values), name
    assert own.succeeded.any() and not np.array_equal(opposite.adversarial, own.adversarial)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool, np.float16])
@pytest.mark.parametrize("algorithm", ["1", "3", REFRESHED], ids=["1", "3", "3 refreshed"])
def test_attack_takes_maps_as_numbers_of_any_type(algorithm, dtype):
    network = small()
    images, labels = samples(network)
    maps = np.random.default_rng(0).integers(0, 256, images.shape).astype(dtype)

    def follow(maps):
        return attack(network, images, labels, algorithm, Setting(limit=9), maps=lambda x, y: maps[: len(x)])

    found, right = follow(maps), follow(maps.astype(np.float64))
    assert np.array_equal(found.adversarial, right.adversarial) and found.moves.any()


def test_attack_refuses_maps_that_are_no_numbers_of_the_images():
    network = small()
    images, labels = samples(network)
    with pytest.raises(AttackError, match="^maps gave what is not a number"):
        attack(network, images, labels, "3", maps=lambda x, y: np.full_like(x, np.nan))
    with pytest.raises(ValueError, match="^maps must give real numbers of at most 64 bits, .* got complex128"):
        attack(network, images, labels, "3", maps=lambda x, y: x * 1j)
    with pytest.raises(
        ValueError, match=r"^maps must give real numbers of at most 64 bits, .* got float64 \(1, 8, 8\)$"
    ):
        attack(network, images, labels, "3", maps=lambda x, y: x[0])


@pytest.mark.parametrize("algorithm", ["2", "4", "author"])
def test_attack_by_loss_differences_takes_no_maps(algorithm):
    network = small()
    with pytest.raises(ValueError, match="^maps take the place of a gradient"):
        attack(network, *samples(network), algorithm, maps=lambda x, y: x)


@pytest.mark.parametrize(("network", "shape"), [(small(), (1, 8, 8)), (dense_network(), (12,))], ids=["cnn", "dense"])
def test_attack_on_no_samples(network, shape):
    found = attack(network, np.zeros((0, *shape)), [], "2")
    assert found.adversarial.shape == (0, *shape) and (found.forwards, found.backwards) == (0, 0)
    figures = summary(found)
    assert (figures["attacked"], figures["success_rate"], figures["success_interval"]) == (0, None, (0, 1))


@pytest.mark.parametrize(("algorithm", "arithmetic"), [("1", "scaled"), ("2", "scaled"), ("2", "plain")])
def test_attack_refuses_scores_that_are_not_numbers(algorithm, arithmetic):
    images = samples(small())[0]
    labels = predict(small(), images).argmax(axis=1)
    with np.errstate(all="ignore"), pytest.raises(AttackError, match="T = 1e-310 are no finite float64: choose a lar"):
        attack(small(), images, labels, algorithm, Setting(arithmetic, T=1e-310))


IMAGES, LABELS = np.full((3, 1, 8, 8), 0.5), np.array([0, 1, 2])


def with_one(value):
    images = IMAGES.copy()
    images[1, 0, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "algorithm", "message"),
    [
        (IMAGES, LABELS, "5", "unknown algorithm '5': choose one of '1', '2', '3', '4', 'author'"),
        (IMAGES, LABELS, 1, "unknown algorithm 1: choose one of '1', '2'"),
        (IMAGES, LABELS, ["1"], r"unknown algorithm \['1'\]: choose one of '1', '2'"),
        (IMAGES, LABELS[:2], "1", r"class labels must have shape \(3,\), one an image, got \(2,\)"),
        (IMAGES, LABELS[:, None], "1", r"class labels must have shape \(3,\), one an image, got \(3, 1\)"),
        (IMAGES, np.eye(3), "1", r"class labels must have shape \(3,\), one an image, got \(3, 3\)"),
        (IMAGES, LABELS.astype(float), "1", "class labels must be integers, got float64"),
        (IMAGES, LABELS == 0, "1", "class labels must be integers, got bool"),
        (IMAGES, list("012"), "1", "class labels must be integers, got <U1"),
        (IMAGES, LABELS + 1, "1", "labels must be 0 to 2, got 1 to 3"),
        (IMAGES, LABELS - 1, "2", "labels must be 0 to 2, got -1 to 1"),
        (IMAGES * 255, LABELS, "1", r"numbers in \[0.0, 1.0\], these are from 127.5 to 127.5: scale them, or give"),
        ((IMAGES * 255).astype(np.uint8), LABELS, "1", "these are from 127.0 to 127.0: scale them"),
        (IMAGES - 0.6, LABELS, "2", r"these are from -0\.09\d* to -0\.09\d*: scale them"),
        (with_one(math.nan), LABELS, "1", "these are from nan to nan: scale them"),
        (with_one(math.inf), LABELS, "2", "these are from 0.5 to inf: scale them"),
        (IMAGES[:, 0], LABELS, "1", r"images must have shape \(N, C, H, W\), got \(3, 8, 8\)"),
        (IMAGES[:, :, :6], LABELS, "1", r"weights must have shape \(24, U\), got \(36, 8\)"),
        (IMAGES[..., :2], LABELS, "1", "a kernel of 3 does not fit into 2 rows or columns"),
    ],
)
def test_attack_refuses(images, labels, algorithm, message):
    with pytest.raises(ValueError, match=message):
        attack(small(), images, labels, algorithm)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (("loss", True, True), "score must be 'gradient', 'margin' or 'loss difference', got 'loss'"),
        ((1, True, True), "score must be 'gradient', 'margin' or 'loss difference', got 1"),
        (("gradient", True, False), "absolute and lowers"),
        (("margin", True, False), "absolute and lowers"),
        (("gradient", False, True), "absolute and lowers"),
    ],
)
def test_algorithm_refuses(specification, message):
    with pytest.raises(ValueError, match=message):
        Algorithm(*specification)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arithmetic": "exact"}, "'plain' or 'scaled', got 'exact'"),
        ({"prefer": "higher"}, "'raise' or 'lower', got 'higher'"),
        ({"T": 0}, "T must be positive, got 0"),
        ({"T": math.nan}, "T must be positive, got nan"),
        ({"limit": -1}, "limit must be an integer of at least 0, got -1"),
        ({"limit": 2.5}, "limit must be an integer of at least 0, got 2.5"),
        ({"limit": "10"}, "limit must be an integer of at least 0, got '10'"),
        ({"chunk": 0}, "chunk must be an integer of at least 1, got 0"),
        ({"chunk": 1e3}, "chunk must be an integer of at least 1, got 1000.0"),
        ({"maximum": 0.0}, "minimum must be below maximum, both finite, got 0.0 and 0.0"),
        ({"maximum": math.inf}, "both finite, got 0.0 and inf"),
        ({"minimum": math.nan}, "both finite, got nan and 1.0"),
        ({"maximum": "1"}, "maximum must be a number, got '1'"),
        ({"minimum": np.zeros(2)}, r"minimum must be a number, got array\(\[0., 0.\]\)"),
        ({"T": None}, "T must be a number, got None"),
        ({"limit": True}, "limit must be an integer of at least 0, got True"),
        ({"skip_unchanged": 1}, "skip_unchanged must be True or False, got 1"),
    ],
)
def test_setting_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Setting(**settings)


RANGES = [{"maximum": 1e39}, {"minimum": -1e39}, {"maximum": 1e-60}]
each_range = pytest.mark.parametrize("settings", RANGES, ids=str)


@each_range
@every_specification
def test_attack_refuses_a_range_that_the_network_s_dtype_does_not_have(algorithm, settings):
    """1e39 is infinite in float32: a success there would be one on no image."""
    images, labels = np.zeros((3, 1, 8, 8), np.float32), np.array([0, 1, 2])
    for call in (
        attack,
        lambda *arguments: jsma(*arguments[:3], arguments[4]),
        lambda *arguments: sparse_rs(*arguments[:3], arguments[4]),
    ):
        with (
            np.errstate(all="raise"),
            pytest.raises(AttackError, match=r"^minimum \S+ and maximum \S+ are .* in float32:"),
        ):
            call(small_cnn(), images, labels, algorithm, Setting(**settings))


def test_attack_in_float64_takes_what_float32_does_not_have():
    images, labels = samples(small(1e-39))
    found = attack(small(1e-39), images, labels, "3", Setting(maximum=1e39, limit=3))
    assert found.succeeded.any() and found.adversarial.max() == 1e39


def overflowing():
    """Of four pixels, two of which overflow when they are at 1, to infinity minus infinity: the label is 1 before."""
    network = Sequential(a=Dense(4, 2), b=Dense(2, 2))
    network.layers["a"].W.data[...] = 3e38
    network.layers["b"].W.data[...] = [[1, -1], [-1, 1]]
    network.layers["b"].b.data[...] = 0, 1
    return network, np.zeros((2, 4), np.float32), np.array([1, 1])


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda *arguments: attack(*arguments, "1"),
        lambda *arguments: attack(*arguments, "author"),
        lambda *arguments: attack(*arguments, "4"),
        lambda *arguments: sparse_rs(*arguments, Setting(limit=3)),
        lambda *arguments: attack(*arguments, "3", maps=lambda x, y: np.ones_like(x)),
    ],
    ids=["1", "author", "4", "sparse_rs", "maps of something else"],
)
def test_attack_counts_no_success_on_logits_that_become_nan(call):
    with pytest.raises(AttackError, match="no finite"):
        call(*overflowing())


@pytest.mark.parametrize("scale", [1.0, 400.0])
@both_arithmetics
@every_specification
def test_attack_does_not_depend_on_numpy_s_error_state(algorithm, arithmetic, scale):
    """Numbers too small for a float are 0 here."""
    network = small_cnn(seed=21)
    for parameter in network.layers["dense2"].parameters().values():
        parameter.data *= np.float32(scale)
    images, labels = samples(network)
    expected = attack(network, images, labels, algorithm, Setting(arithmetic, limit=4))
    with np.errstate(all="raise"):
        found = attack(network, images, labels, algorithm, Setting(arithmetic, limit=4))
    assert np.array_equal(found.adversarial, expected.adversarial) and (found.moves == expected.moves).all()


LABELS_THAT_DO_NOT_FIT = {  # three images of three classes
    "a column": np.array([[0], [1], [2]]),
    "negative": np.array([0, 1, -1]),
    "no class": [0, 1, 3],
    "floats": np.array([0.0, 1.0, 2.0]),
    "bools": np.array([True, False, True]),
    "a number": 1,
    "too few": [0, 1],
}
each_labels = pytest.mark.parametrize("labels", LABELS_THAT_DO_NOT_FIT.values(), ids=LABELS_THAT_DO_NOT_FIT)


@each_labels
def test_margin_log_odds_against_and_margin_gradients_refuse_labels(labels):
    for call in (
        lambda: margin(np.eye(3), labels),
        lambda: log_odds_against(np.eye(3), labels),
        lambda: margin_gradients(small(), IMAGES, labels),
    ):
        with pytest.raises(ValueError, match=r"^(class labels must|labels must be 0 to 2)"):
            call()


def test_margin_and_log_odds_against_take_lists_and_no_labels():
    z = np.random.default_rng(0).normal(size=(3, 3))
    for function in (margin, log_odds_against):
        assert np.array_equal(function(z, [2, 0, 1]), function(z, np.array([2, 0, 1])))
        assert np.shape(function(z[:0], []))[-1] == 0
    with np.errstate(all="raise"):
        assert log_odds_against(np.array([[0, 800, -800]], np.float32), [1]) == -800


@pytest.mark.parametrize("change", [{"arithmetic": "plain"}, {"T": 7.0}, {"T": 1e-30}])
@pytest.mark.parametrize("scale", [1.0, 2.0**40])
def test_attack_margin_depends_on_no_size_of_the_logits_no_temperature_and_no_arithmetic(scale, change):
    """By a power of two not even rounding changes."""
    images, labels = samples(small())
    expected, found = (
        attack(small(s), images, labels, "margin", Setting(limit=12, **settings))
        for s, settings in ((1.0, {}), (scale, change))
    )
    assert expected.succeeded.any() and np.array_equal(found.adversarial, expected.adversarial)


def test_attack_margin_needs_the_fewest_pixels_on_a_linear_network():
    """Two classes, logits linear in the pixels: the margin grows by |w| (1 - c) or |w| c with every move, and with all
    pixels at 1/2 the largest |w| come first, so that no set of fewer pixels turns the decision."""
    rng = np.random.default_rng(5)
    w = rng.permutation(np.arange(1.0, 13)) * rng.choice([-1, 1], 12)
    network = Sequential(out=Dense(12, 2, dtype=np.float64))
    network.layers["out"].W.data[...] = np.stack([np.zeros(12), w], axis=1)
    gains = np.cumsum(np.sort(np.abs(w))[::-1]) / 2
    for fewest in range(1, 13):
        network.layers["out"].b.data[...] = w.sum() / 2 + gains[fewest - 1] - 0.25, 0
        found = attack(network, np.full((1, 12), 0.5), [0], "margin")
        assert found.succeeded.item() and found.moves.item() == fewest


def test_margin():
    logits = np.array([[3.0, 1.0, 3.0], [5.0, 2.0, 2.0], [1.0, 4.0, 2.0], [-np.inf, 1.0, -np.inf]])
    margins, rival = margin(logits, np.array([1, 0, 1, 1]))
    assert margins.tolist() == [2, -3, -2, -np.inf] and rival.tolist() == [0, 1, 2, 0]
    for wrong in np.nan, np.inf:
        with np.errstate(invalid="ignore"), pytest.raises(AttackError, match="the logits are no finite numbers"):
            margin(np.array([[wrong, wrong]]), np.array([0]))


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_attack_margin_refuses_logits_that_are_not_numbers(bias):
    network = small()
    network.layers["dense2"].b.data[:2] = bias
    images = samples(small())[0]
    with np.errstate(all="ignore"), pytest.raises(AttackError, match="no finite numbers: choose other weights"):
        attack(network, images, np.zeros(len(images), int), "margin")


def result_of(succeeded, adversarial):
    """An AttackResult of which only the outcome counts."""
    n = len(adversarial)
    count, none = np.zeros(n, int), np.zeros(n, bool)
    return AttackResult(np.ones(n, bool), np.array(succeeded, bool), count, count, none, np.array(adversarial))


def test_pixels_to_success_is_the_best_of_all_attacks_per_image():
    """Counted are the pixels that differ, whatever the moves; without a success none count."""
    images = np.full((4, 1, 2, 2), 0.5)
    one, two, three = (np.array(images) for _ in range(3))
    one[:, 0, 0, 0], two[:, 0, 0] = 1, 1
    three[...] = 0
    few = result_of([1, 0, 0, 0], one)
    some = result_of([1, 1, 0, 0], two)
    all_of_them = result_of([1, 1, 1, 0], three)
    none = np.inf
    assert pixels_to_success(images, few).tolist() == [1, none, none, none]
    assert pixels_to_success(images, all_of_them).tolist() == [4, 4, 4, none]
    assert pixels_to_success(images, all_of_them, few, some).tolist() == [1, 2, 4, none]
    assert pixels_to_success(images).tolist() == [none] * 4
    assert pixels_to_success(images.tolist(), few, some).tolist() == [1, 2, none, none]


def test_pixels_to_success_compares_in_the_networks_precision():
    """0.1 is another number in float64 than in float32; an image that was not moved differs nowhere."""
    images = np.full((1, 3), 0.1)
    moved = np.array([[0.1, 1.0, 0.1]], np.float32)
    assert pixels_to_success(images, result_of([1], moved)).tolist() == [1]


def test_pixels_to_success_counts_no_moves_that_change_nothing():
    images, labels = samples(small())
    for skip in (False, True):
        found = attack(small(), images, labels, "3", Setting(limit=40, skip_unchanged=skip))
        pixels = pixels_to_success(images, found)
        assert np.array_equal(pixels < np.inf, found.succeeded)
        expected = (found.moves - found.unchanged_moves)[found.succeeded]
        assert found.succeeded.any() and np.array_equal(pixels[found.succeeded], expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 5e-15), (np.float32, 1e-6)])
def test_log_loss_change_against_decimals(dtype, tolerance):
    """Relative to the larger of 1 and the logarithm itself: rounding is all that the score loses."""
    levels = np.array([-300, -110.5, -80, -37.25, -20, -5, -1, -0.1, 0, 0.3, 2, 17, 40, 95, 300], dtype)
    gaps = np.array([1e-4, 1e-2, 0.5, 3, 19.5, 20.5, 30, 60, 250], dtype)
    pairs = [(level, level + gap) for level in levels for gap in gaps if level + gap <= 300 and level + gap != level]
    before, after = np.array(pairs, dtype).T
    with localcontext(Context(prec=400)):
        exact = [[(1 + Decimal(float(m)).exp()).ln() for m in pair] for pair in pairs]
        expected = np.array([float((b - a).ln()) for a, b in exact])
    found = log_loss_change(after, before)
    assert found.dtype == dtype
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < tolerance, pairs[error.argmax()]
    assert np.array_equal(log_loss_change(before, after), found)
    assert (log_loss_change(levels, levels) == -np.inf).all()


def test_log_loss_change_is_in_order():
    """Larger log-odds after are a larger change, also where one form of the logarithm gives way to another."""
    before = np.full(4001, -3.0)
    changes = log_loss_change(before + np.logspace(-13, -4, 4001), before)
    assert (np.diff(changes) > 0).all()


def test_log_odds_against():
    logits = np.array([[0.0, 0.0], [3.0, 1.0], [-800.0, 900.0]])
    assert log_odds_against(logits, np.array([0, 1, 1])).tolist() == [0, 2, -1700]
    z, k = np.random.default_rng(0).normal(0, 5, (50, 10)), np.arange(50) % 10
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    p_k = p[np.arange(50), k]
    others = np.where(np.arange(10) == k[:, None], 0, p).sum(axis=1)
    assert log_odds_against(z, k) == pytest.approx(np.log(others / p_k), rel=1e-12, abs=1e-12)
    assert np.logaddexp(0, log_odds_against(z, k)) == pytest.approx(-np.log(p_k), rel=1e-12, abs=1e-12)


@test_facts.needs_the_author
@pytest.mark.parametrize(
    ("name", "arithmetic", "algorithm", "rate", "zero_maps"),
    [
        ("standard", "plain", "1", "0.630", "0.0 %"),
        ("standard", "plain", "3", "0.660", "0.0 %"),
        ("standard", "scaled", "1", "0.837", "0.0 %"),
        ("standard", "scaled", "3", "0.917", "0.0 %"),
        ("temperature20", "plain", "1", "0.037", "95.3 %"),
        ("temperature20", "plain", "3", "0.040", "95.3 %"),
        ("temperature20", "scaled", "1", "0.947", "0.0 %"),
        ("temperature20", "scaled", "3", "0.953", "0.0 %"),
    ],
)
def test_attack_success_on_the_authors_networks(mnist, networks, name, arithmetic, algorithm, rate, zero_maps):
    """As measured with another framework: the first 300 test images, 100 moves to 1.0, T = 1, gradient to all ties."""
    images, labels = mnist
    figures = summary(attack(networks[name], images[:300], labels[:300], algorithm, Setting(arithmetic)))
    assert f"{figures['success_rate']:.3f}" == rate
    assert f"{100 * figures['zero_score_share']:.1f} %" == zero_maps
