"""Attacks against a reference that follows the paper's section 3.2 line by line, one image and one full forward pass at
a time, in float64, where rounding decides no choice; and against what was measured on the author's own networks."""

import dataclasses
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits

from minicnn.attacks import (
    ALGORITHMS,
    LOWER,
    RAISE,
    Algorithm,
    AttackError,
    AttackResult,
    Setting,
    attack,
    log_loss_change,
    margin,
    summary,
    wilson_interval,
)
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.networks import predict
from tests import test_facts

mnist, networks = test_facts.mnist, test_facts.networks

NEVER = -math.inf  # the score of a move that is not to be made
STEP = 2.0**-17  # of finite differences; a network of ReLUs and maxima is piecewise linear, so they are exact


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """The pillar has threads of its own; on a busy machine those of BLAS under them cost more than they bring."""
    with threadpool_limits(1, "blas"):
        yield


def small_network(scale=1.0):
    """(N, 1, 10, 10) -> (N, 4) logits in float64, the logits multiplied by `scale`."""
    rng = np.random.default_rng(11)
    shared = {"rng": rng, "dtype": np.float64}
    network = Sequential(
        conv1=Conv2D(1, 8, 3, **shared),
        pool1=MaxPool2D(2),
        conv2=Conv2D(8, 8, 3, **shared),
        flatten=Flatten(),
        dense1=Dense(32, 12, relu=True, **shared),
        dense2=Dense(12, 4, **shared),
    )
    for parameter in network.parameters().values():
        if parameter.data.ndim == 1:
            parameter.data[...] = rng.uniform(-0.1, 0.1, parameter.shape)
    dense2 = network.layers["dense2"]
    dense2.W.data[...] *= scale
    dense2.b.data[...] *= scale
    return network


def samples(network, count=6):
    """Noise with a quarter of the pixels at 0 and some at 1, the network's decisions as labels, the last one wrong."""
    rng = np.random.default_rng(11)
    images = np.clip(rng.uniform(-0.3, 1.2, (count, 1, 10, 10)), 0, 1)
    labels = predict(network, images).argmax(axis=1)
    labels[-1] = (labels[-1] + 1) % 4
    return images, labels


class OneImage:
    """What the small network says of one image (10, 10), from its weights alone, passes counted."""

    def __init__(self, network, label, setting):
        self.weights = {name: p.data for name, p in network.parameters().items()}
        self.label, self.setting = label, setting
        self.forwards = self.backwards = 0

    def logits(self, c):
        w = self.weights

        def convolution(x, name):
            windows = sliding_window_view(x, (3, 3), axis=(1, 2))
            y = np.einsum("crsij,ocij->ors", windows, w[f"{name}_W"]) + w[f"{name}_b"][:, None, None]
            return np.maximum(y, 0)

        pooled = convolution(c[None], "conv1").reshape(8, 4, 2, 4, 2).max(axis=(2, 4))
        hidden = np.maximum(convolution(pooled, "conv2").ravel() @ w["dense1_W"] + w["dense1_b"], 0)
        return hidden @ w["dense2_W"] + w["dense2_b"]

    def differs(self, c):
        self.forwards += 1
        return self.logits(c).argmax() != self.label

    def loss(self, c):
        """-ln p_label: as the author computed it, or to as many decimals as the smallest of probabilities needs."""
        self.forwards += 1
        z = self.logits(c) / self.setting.T
        if self.setting.arithmetic == "plain":
            p = np.exp(z - z.max())
            with np.errstate(divide="ignore"):
                return -np.log(p[self.label] / sum(p))
        with localcontext(prec=40 + int(z.max() - z.min())):
            return sum(Decimal(float(v - z[self.label])).exp() for v in z).ln()

    def gradient(self, c):
        """dL/dc[m][n] by finite differences of the logits, or, scaled, the same times T / (1 - p_label)."""
        self.forwards += 1
        self.backwards += 1
        z = self.logits(c) / self.setting.T
        p = np.exp(z - z.max())
        if self.setting.arithmetic == "plain":
            p = p / sum(p)
            p[self.label] -= 1
            dL_dz = p / self.setting.T
        else:
            others = np.delete(z, self.label)
            dL_dz = np.exp(z - others.max()) / sum(np.exp(others - others.max()))
            dL_dz[self.label] = -1
        gradient = np.empty(c.shape)
        for m, n in np.ndindex(c.shape):
            up, down = c.copy(), c.copy()
            up[m, n] += STEP
            down[m, n] -= STEP
            gradient[m, n] = dL_dz @ ((self.logits(up) - self.logits(down)) / (2 * STEP))
        return gradient

    def maps(self, c, algorithm):
        """The two saliency maps S1 (of raising) and S2 (of lowering), and whether they say nothing."""
        setting = self.setting
        values = (setting.maximum, setting.minimum)
        S = np.full((2, *c.shape), NEVER, object)
        if algorithm in ("1", "3"):
            gradient = self.gradient(c)
            for m, n in np.ndindex(c.shape):
                if algorithm == "1":
                    S[RAISE, m, n] = gradient[m, n]
                else:
                    S[RAISE if gradient[m, n] > 0 else LOWER, m, n] = abs(gradient[m, n])
            nothing = (gradient == 0).all()
        else:
            loss_0 = self.loss(c)
            for m, n in np.ndindex(c.shape):
                temp = c[m, n]
                for kind in (RAISE,) if algorithm == "author" else (RAISE, LOWER):
                    c[m, n] = values[kind]
                    change = self.loss(c) - loss_0 if c[m, n] != temp else 0
                    S[kind, m, n] = change if algorithm == "author" else abs(change)
                    c[m, n] = temp
            nothing = all(s in (0, NEVER) for s in S.ravel())
        for kind, m, n in np.ndindex(S.shape):
            if setting.skip_unchanged and c[m, n] == values[kind]:
                S[kind, m, n] = NEVER
        return S, nothing


def largest(S, c, values, exact_zeros, kinds):
    """(kind, m, n) of the largest score, in raster order and by the order of kinds among equals; None where there is
    none.

    A comparison of choices needs scores that are clearly apart, or known to be equal: of moves that change nothing, or
    of gradients that are exactly 0.
    """
    best, place = NEVER, None
    for m, n in np.ndindex(c.shape):
        for kind in kinds:
            if S[kind, m, n] > best:
                best, place = S[kind, m, n], (kind, m, n)
    if place is not None:
        top = max(abs(s) for s in S.ravel() if s != NEVER)
        for kind, m, n in np.ndindex(S.shape):
            if (kind, m, n) != place and S[kind, m, n] != NEVER and best - S[kind, m, n] <= top * type(top)(1e-9):
                assert best == S[kind, m, n]
                assert exact_zeros or (c[m, n] == values[kind] and c[place[1:]] == values[place[0]])
    return place


def reference(network, image, label, algorithm, setting):
    """Section 3.2 for one image (10, 10); returns the fields of an AttackResult."""
    one = OneImage(network, label, setting)
    c, values = image.copy(), (setting.maximum, setting.minimum)
    result = {"attacked": not one.differs(c), "succeeded": False, "moves": 0, "unchanged_moves": 0}
    result |= {"zero_scores": False, "adversarial": c}
    if result["attacked"] and setting.limit > 0:
        S, result["zero_scores"] = one.maps(c, algorithm)
        used = np.zeros(c.shape, bool)
        for i in range(1, setting.limit + 1):
            kinds = (RAISE, LOWER) if setting.prefer == "raise" else (LOWER, RAISE)
            place = largest(S, c, values, algorithm in ("1", "3"), kinds)
            if place is None:
                break
            kind, m, n = place
            changed = c[m, n] != values[kind]
            c[m, n] = values[kind]
            used[m, n] = True
            S[:, m, n] = NEVER
            result["moves"] = i
            result["unchanged_moves"] += int(not changed)
            if changed and one.differs(c):
                result["succeeded"] = True
                break
            if algorithm == "4" and i < setting.limit and not used.all():
                S, _ = one.maps(c, algorithm)
                S[:, used] = NEVER
    return result | {"forwards": one.forwards, "backwards": one.backwards}


def assert_as_reference(network, images, labels, algorithm, setting):
    """All at once gives what the reference gives one by one; returns the reference's results."""
    found = attack(network, images, labels, algorithm, setting)
    expected = [reference(network, x[0], y, algorithm, setting) for x, y in zip(images, labels, strict=True)]
    for field in ("attacked", "succeeded", "moves", "unchanged_moves", "zero_scores"):
        assert getattr(found, field).tolist() == [e[field] for e in expected], field
    assert np.array_equal(found.adversarial, np.stack([e["adversarial"] for e in expected])[:, None])
    assert found.forwards == sum(e["forwards"] for e in expected)
    assert found.backwards == sum(e["backwards"] for e in expected)
    return expected


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_against_the_paper_line_by_line(algorithm, arithmetic):
    network = small_network()
    images, labels = samples(network)
    limit = 8 if algorithm == "4" else 12
    expected = assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=limit))
    assert [e["attacked"] for e in expected] == [True] * 5 + [False]
    outcomes = {e["succeeded"] for e in expected[:-1]}
    assert outcomes == {True, False}, "a comparison of attacks needs some that succeed and some that fail"


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "change",
    [{"T": 7.0}, {"maximum": 255 / 256, "minimum": 1 / 256}, {"skip_unchanged": True}, {"prefer": "lower"}],
    ids=["temperature", "bounds", "skip_unchanged", "prefer"],
)
def test_settings_against_the_paper_line_by_line(algorithm, arithmetic, change):
    network = small_network()
    images, labels = samples(network, 3)
    limit = 3 if algorithm == "4" else 12
    assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=limit, **change))


@pytest.mark.parametrize(
    ("algorithm", "arithmetic"),
    [("1", "plain"), ("1", "scaled"), ("2", "scaled"), ("3", "plain"), ("3", "scaled"), ("author", "scaled")],
)
def test_saturated_network_against_the_paper_line_by_line(algorithm, arithmetic):
    """Logits a thousand times as large: 1 - p_label is rounded to 0 for most images, their scaled attacks go on."""
    network = small_network(scale=1e3)
    images, labels = samples(network)
    assert (margin(predict(network, images), labels)[:-1] < -37).sum() == 4
    assert_as_reference(network, images, labels, algorithm, Setting(arithmetic, limit=12))


@pytest.mark.parametrize("algorithm", ["1", "3"])
def test_scaled_arithmetic_does_not_see_a_positive_factor_of_the_logits(algorithm):
    images, labels = samples(small_network())
    setting = Setting("scaled", limit=12)
    # Beyond a factor of 1e6 the margin is that to one other class alone: the direction no longer changes.
    million, billion = (attack(small_network(scale=s), images, labels, algorithm, setting) for s in (1e6, 1e9))
    assert np.array_equal(million.adversarial, billion.adversarial)
    assert million.succeeded.any() and not million.zero_scores.any()


@pytest.mark.parametrize(("algorithm", "value"), [("1", 1), ("2", 1), ("3", 0), ("4", 1), ("author", 1)])
def test_plain_arithmetic_on_a_saturated_network_paints_raster_order(algorithm, value):
    """Every score is exactly 0: the first pixels are raised, and lowered by Algorithm 3, whose k = 0 is not above 0."""
    network = small_network(scale=1e6)
    images, labels = (a[[0, 1, 2, 4, 5]] for a in samples(network))  # one move turns the decision of number 3
    found = attack(network, images, labels, algorithm, Setting("plain", limit=3))
    assert found.zero_scores.tolist() == [True] * 4 + [False]
    assert found.moves.tolist() == [3] * 4 + [0] and not found.succeeded.any()
    painted = images.copy()
    painted[:4, 0, 0, :3] = value
    assert np.array_equal(found.adversarial, painted)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_batch_and_the_chunk_do_not_matter(algorithm):
    network = small_network()
    images, labels = samples(network)
    setting = Setting("scaled", limit=3)
    whole = attack(network, images, labels, algorithm, setting)
    for chunk in (1, 4):
        found = attack(network, images, labels, algorithm, dataclasses.replace(setting, chunk=chunk))
        for field in dataclasses.fields(AttackResult):
            assert np.array_equal(getattr(found, field.name), getattr(whole, field.name)), field.name
    for i in range(len(images)):
        alone = attack(network, images[i : i + 1], labels[i : i + 1], algorithm, setting)
        assert alone.moves == whole.moves[i]
        assert np.array_equal(alone.adversarial[0], whole.adversarial[i])


@pytest.mark.parametrize("algorithm", ["1", "2", "4"])
def test_every_backend_makes_the_same_moves(device, algorithm):
    images, labels = samples(small_network())
    setting = Setting("scaled", limit=4)
    here = attack(small_network(), images, labels, algorithm, setting)
    there = attack(small_network().to(device.name), images, labels, algorithm, setting)
    for field in dataclasses.fields(AttackResult):
        assert np.array_equal(getattr(there, field.name), getattr(here, field.name)), field.name


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
@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_equal_scores_go_in_raster_order_and_raise_before_lower(algorithm, arithmetic):
    network = switchboard(np.ones(6), np.ones(6), threshold=8)
    for limit in range(6):
        found = attack(network, *grey(6), algorithm, Setting(arithmetic, limit=limit))
        assert found.adversarial.ravel().tolist() == [1.0] * limit + [0.5] * (6 - limit)


@pytest.mark.parametrize("algorithm", ["2", "4"])
def test_a_saturated_network_is_painted_white_or_black_by_what_is_preferred(algorithm):
    network = small_network(scale=1e5)
    images, labels = samples(network)
    images, labels = images[:1], labels[:1]
    for prefer, value in ("raise", 1), ("lower", 0):
        found = attack(network, images, labels, algorithm, Setting("plain", limit=4, prefer=prefer))
        assert found.zero_scores.item() and found.moves.item() == 4
        assert found.adversarial[0, 0].flat[:4].tolist() == [value] * 4
        assert np.array_equal(found.adversarial[0, 0].flat[4:], images[0, 0].flat[4:])


def test_memory_order_of_the_images_does_not_matter():
    network = small_network()
    images, labels = samples(network)
    expected = attack(network, images, labels, "1", Setting(limit=12))
    assert expected.succeeded.any()
    for other in (np.asfortranarray(images), images.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)):
        found = attack(network, other, labels, "1", Setting(limit=12))
        assert np.array_equal(found.adversarial, expected.adversarial)
        assert np.array_equal(found.succeeded, expected.succeeded)


@pytest.mark.parametrize("algorithm", ["2", "4"])
def test_raster_order_comes_before_raise_or_lower(algorithm):
    network = switchboard([1, 1, 2], [1, 2, 1], threshold=8)
    one, two, three = (attack(network, *grey(3), algorithm, Setting(limit=n)).adversarial.tolist() for n in (1, 2, 3))
    assert one == [[[[0.5, 0, 0.5]]]] and two == [[[[0.5, 0, 1]]]] and three == [[[[1, 0, 1]]]]


@pytest.mark.parametrize("algorithm", ["2", "4"])
def test_a_used_pixel_is_never_moved_again(algorithm):
    """Pixel 0 has the two largest scores, and in Algorithm 4 the largest of all after its move: to be moved back."""
    found = attack(switchboard([9, 1, 1], [8, 1, 1], threshold=30), *grey(3), algorithm, Setting(limit=2))
    assert found.adversarial.tolist() == [[[[1, 1, 0.5]]]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_limit_above_the_number_of_pixels_moves_each_once(algorithm):
    network = switchboard(np.arange(1, 8), np.arange(8, 1, -1))
    found = attack(network, *grey(7, count=2), algorithm, Setting(limit=1000))
    assert found.moves.tolist() == [7, 7] and not found.succeeded.any()
    assert np.isin(found.adversarial, (0, 1)).all()


def test_algorithm_4_stops_looking_when_every_pixel_is_used():
    found = attack(switchboard([3, 2, 1], [0, 0, 0]), *grey(3), "4", Setting("plain", limit=1000))
    # The decision before; three maps of 1 loss and 2 tries a pixel, raising a raised one aside, which changes nothing;
    # three decisions after moves.
    assert found.forwards == 1 + (1 + 6) + (1 + 5) + (1 + 4) + 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limit(algorithm):
    """A decision that move k changes is a success for limit k and a failure of k - 1 moves for limit k - 1."""
    network = small_network()
    images, labels = (a[2:3] for a in samples(network))
    free = attack(network, images, labels, algorithm, Setting(limit=20))
    (needed,) = free.moves
    assert free.succeeded and 1 < needed < 20
    enough, short = (attack(network, images, labels, algorithm, Setting(limit=needed - n)) for n in (0, 1))
    assert enough.succeeded == [True] and enough.moves == [needed]
    assert short.succeeded == [False] and short.moves == [needed - 1]
    assert np.count_nonzero(enough.adversarial != short.adversarial) == 1


def test_limit_of_the_paper_and_of_the_author():
    """The 100th move of the paper's text turns the decision; the author's loop ends at 99."""
    network = switchboard(np.ones(110), np.zeros(110), threshold=49.75)
    assert Setting().limit == 100
    paper, author = (attack(network, *grey(110), "2", s) for s in (Setting(), Setting(limit=99)))
    assert (paper.succeeded.item(), paper.moves.item()) == (True, 100)
    assert (author.succeeded.item(), author.moves.item()) == (False, 99)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limit_0_only_looks(algorithm):
    network = small_network()
    images, labels = samples(network)
    found = attack(network, images, labels, algorithm, Setting(limit=0))
    assert found.attacked.sum() == 5 and not found.succeeded.any() and not found.moves.any()
    assert np.array_equal(found.adversarial, images)
    assert (found.forwards, found.backwards) == (6, 0)


def test_misclassified_samples_are_left_out():
    network = small_network()
    images, labels = samples(network)
    found = attack(network, images, (labels + 1) % 4, "2")
    assert found.attacked.tolist() == [False] * 5 + [(labels[5] + 1) % 4 == predict(network, images)[5].argmax()]
    wrong = ~found.attacked
    assert np.array_equal(found.adversarial[wrong], images[wrong])
    for field in ("succeeded", "moves", "unchanged_moves", "zero_scores"):
        assert not getattr(found, field)[wrong].any()


def test_maximum_of_the_data_and_of_the_attack():
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


def test_moves_that_change_nothing_count_unless_skipped():
    """All pixels are at the maximum and no score says anything: Algorithm 1 spends its budget, or has no move."""
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


def test_infinite_plain_losses_are_the_largest():
    """-log(softmax) of a class whose probability underflows is infinite, as the author had it, and ends in no nan."""
    network = switchboard([1.0, 1e5, 2.0], [0, 0, 0], threshold=1)
    found = attack(network, *grey(3), "author", Setting("plain", limit=1))
    assert found.adversarial.tolist() == [[[[0.5, 1, 0.5]]]] and found.succeeded.item()


def test_any_specification_can_run():
    """Algorithm 3 with a new map for every move, which the paper does not name."""
    network = small_network()
    images, labels = samples(network)
    once = attack(network, images, labels, "3", Setting(limit=12))
    refreshed = attack(network, images, labels, Algorithm("gradient", True, True, refresh=True), Setting(limit=12))
    assert refreshed.backwards == refreshed.moves.sum() > once.backwards == 5
    assert not np.array_equal(refreshed.adversarial, once.adversarial)


def test_the_samples_are_left_as_they_are_and_progress_is_told():
    network = small_network()
    images, labels = samples(network)
    before, told = images.copy(), []
    found = attack(network, images, labels, "3", Setting(limit=12), lambda *args: told.append(args))
    assert np.array_equal(images, before)
    assert [move for move, _, _ in told] == list(range(1, len(told) + 1)) and {limit for _, limit, _ in told} == {12}
    for move, _, active in told:
        assert active == (found.attacked & ~(found.succeeded & (found.moves <= move))).sum()


def test_no_samples():
    found = attack(small_network(), np.zeros((0, 1, 10, 10)), np.zeros(0, int), "2")
    assert found.adversarial.shape == (0, 1, 10, 10) and (found.forwards, found.backwards) == (0, 0)
    figures = summary(found)
    assert (figures["attacked"], figures["success_rate"], figures["success_interval"]) == (0, None, (0, 1))


@pytest.mark.parametrize("labels", [np.zeros(5, int), np.zeros((6, 1), int)])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match=r"images \(N, 1, H, W\) and labels \(N,\) are needed, got \(6, 1, 10, 10\)"):
        attack(small_network(), np.zeros((6, 1, 10, 10)), labels, "1")


@pytest.mark.parametrize("shape", [(6, 100), (6, 3, 10, 10)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"images \(N, 1, H, W\)"):
        attack(small_network(), np.zeros(shape), np.zeros(6, int), "1")


@pytest.mark.parametrize(("algorithm", "arithmetic"), [("1", "scaled"), ("2", "scaled"), ("2", "plain")])
def test_scores_that_are_not_numbers_are_no_failed_attack(algorithm, arithmetic):
    network = small_network()
    images, labels = samples(network)
    with np.errstate(all="ignore"), pytest.raises(AttackError, match="T = 1e-310 leave float64: choose a larger T"):
        attack(network, images, labels, algorithm, Setting(arithmetic, T=1e-310))


def test_unknown_algorithm():
    with pytest.raises(ValueError, match="unknown algorithm '5': choose one of 1, 2, 3, 4, author"):
        attack(small_network(), *samples(small_network()), "5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arithmetic": "exact"}, "'plain' or 'scaled', got 'exact'"),
        ({"T": 0}, "T must be positive, got 0"),
        ({"T": math.nan}, "T must be positive, got nan"),
        ({"limit": -1}, "limit >= 0"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"maximum": 0.0}, "minimum < maximum"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Setting(**settings)


def softplus_difference(after, before):
    """|ln(1 + e^after) - ln(1 + e^before)| as a Decimal of at least 60 digits."""
    with localcontext(prec=400):
        after, before = ((1 + Decimal(float(m)).exp()).ln() for m in (after, before))
        return abs(after - before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 5e-15), (np.float32, 1e-6)])
def test_log_loss_change_against_decimals(dtype, tolerance):
    """Relative to the larger of 1 and the logarithm itself: rounding is all that the score loses."""
    levels = np.array([-300, -110.5, -80, -37.25, -20, -5, -1, -0.1, 0, 0.3, 2, 17, 40, 95, 300], dtype)
    gaps = np.array([1e-4, 1e-2, 0.5, 3, 19.5, 20.5, 30, 60, 250], dtype)
    pairs = [(level, level + gap) for level in levels for gap in gaps if level + gap <= 300 and level + gap != level]
    before, after = np.array(pairs, dtype).T
    found = log_loss_change(after, before)
    assert found.dtype == dtype
    expected = np.array([float(softplus_difference(a, b).ln()) for a, b in zip(after, before, strict=True)])
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < tolerance, pairs[error.argmax()]
    assert np.array_equal(log_loss_change(before, after), found)


def test_log_loss_change_is_in_order():
    """A larger margin after is a larger change, also where one form of the logarithm gives way to another."""
    before = np.full(4001, -3.0)
    changes = log_loss_change(before + np.logspace(-13, -4, 4001), before)
    assert (np.diff(changes) > 0).all()


def test_log_loss_change_of_equal_margins():
    margins = np.array([-300.0, -1.0, 0.0, 2.0, 300.0])
    assert (log_loss_change(margins, margins) == -np.inf).all()


def test_margin():
    logits = np.array([[0.0, 0.0], [3.0, 1.0], [-800.0, 900.0]])
    assert margin(logits, np.array([0, 1, 1])).tolist() == [0, 2, -1700]
    z, k = np.random.default_rng(0).normal(0, 5, (50, 10)), np.arange(50) % 10
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    others = np.where(np.arange(10) == k[:, None], 0, p).sum(axis=1)
    assert margin(z, k) == pytest.approx(np.log(others / p[np.arange(50), k]), rel=1e-12, abs=1e-12)
    assert np.logaddexp(0, margin(z, k)) == pytest.approx(-np.log(p[np.arange(50), k]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    assert [round(end, 4) for end in wilson_interval(successes, trials)] == [low, high]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (5, 10), (10, 10), (72, 100), (1, 1), (9999, 10000)])
def test_wilson_interval_from_its_definition(successes, trials):
    """Its ends are the proportions p that lie z standard deviations sqrt(p (1 - p) / n) from what was observed."""
    low, high = wilson_interval(successes, trials)
    share, z = successes / trials, 1.959963984540054

    def end(outside, inside):
        for _ in range(200):
            p = (outside + inside) / 2
            far = abs(share - p) > z * math.sqrt(p * (1 - p) / trials)
            outside, inside = (p, inside) if far else (outside, p)
        return inside

    assert low == pytest.approx(end(0.0, share) if successes else 0, abs=1e-12)
    assert high == pytest.approx(end(1.0, share) if successes < trials else 1, abs=1e-12)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert 0 <= low <= share <= high <= 1


def test_wilson_interval_of_no_trials():
    assert wilson_interval(0, 0) == (0, 1)


@pytest.fixture
def five_samples():
    return AttackResult(
        attacked=np.array([True, True, True, True, False]),
        succeeded=np.array([True, False, True, False, False]),
        moves=np.array([4, 100, 7, 100, 0]),
        unchanged_moves=np.array([0, 90, 1, 20, 0]),
        zero_scores=np.array([False, True, False, False, False]),
        adversarial=np.zeros((5, 1, 2, 2)),
        forwards=321,
        backwards=4,
    )


def test_summary(five_samples):
    assert summary(five_samples) == {
        "images": 5,
        "misclassified": 1,
        "attacked": 4,
        "counted": 4,
        "succeeded": 2,
        "success_rate": 0.5,
        "success_interval": wilson_interval(2, 4),
        "mean_moves_of_successes": 5.5,
        "unchanged_moves": 111,
        "moves": 211,
        "zero_score_share": 0.25,
        "forwards": 321,
        "backwards": 4,
    }


@pytest.mark.parametrize(
    ("counted", "successes", "mean_moves", "zero_share"),
    [([1, 1, 1, 1, 1], 2, 5.5, 0.25), ([1, 1, 0, 0, 1], 1, 4.0, 0.5), ([0, 0, 0, 0, 1], 0, None, None)],
)
def test_summary_over_another_denominator(five_samples, counted, successes, mean_moves, zero_share):
    """All samples; those that two networks agree on; none that was attacked."""
    trials = sum(counted)
    assert summary(five_samples, np.array(counted, bool)) == summary(five_samples) | {
        "counted": trials,
        "succeeded": successes,
        "success_rate": successes / trials,
        "success_interval": wilson_interval(successes, trials),
        "mean_moves_of_successes": mean_moves,
        "zero_score_share": zero_share,
    }


def test_nothing_counted(five_samples):
    figures = summary(five_samples, np.zeros(5, bool))
    assert (figures["counted"], figures["success_rate"], figures["success_interval"]) == (0, None, (0, 1))


def needs_the_author(function):
    for mark in test_facts.pytestmark:
        function = mark(function)
    return function


@needs_the_author
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
def test_success_on_the_authors_networks(mnist, networks, name, arithmetic, algorithm, rate, zero_maps):
    """As measured with another framework: the first 300 test images, 100 moves to 1.0, T = 1, gradient to all ties."""
    images, labels = mnist
    figures = summary(attack(networks[name], images[:300], labels[:300], algorithm, Setting(arithmetic)))
    assert f"{figures['success_rate']:.3f}" == rate
    assert f"{100 * figures['zero_score_share']:.1f} %" == zero_maps
