"""Sparse-RS against Croce et al. (2022), one image at a time, with sets of pixels and the same random numbers."""

import dataclasses
import itertools

import numpy as np
import pytest

from minicnn.autograd import Tensor
from minicnn.layers import Dense, Layer, Sequential
from minicnn.paper.attacks import AttackError, AttackResult, Setting, attack
from minicnn.paper.sparse_rs import generator, sparse_rs, swapped
from minicnn.training import predict
from tests.conftest import colour_cnn, dense_network
from tests.paper.test_attacks import samples, small


def alpha(query, queries, alpha_init):
    """Their appendix: the schedule for 10,000 queries, stretched to the number that there is."""
    i = query * 10_000 // queries
    if i == 0:
        return alpha_init
    if i <= 50:
        return alpha_init / 2
    if i <= 200:
        return alpha_init / 4
    if i <= 500:
        return alpha_init / 5
    if i <= 1000:
        return alpha_init / 6
    if i <= 2000:
        return alpha_init / 8
    if i <= 4000:
        return alpha_init / 10
    if i <= 6000:
        return alpha_init / 12
    if i <= 8000:
        return alpha_init / 15
    return alpha_init / 20


def reference(network, image, label, setting, queries, seed, alpha_init):
    """Random search in M, the chosen pixels, and U, the others; returns attacked, succeeded, image and queries."""
    if predict(network, image[None]).argmax() != label:
        return False, False, image, 0
    k, draw = setting.limit, generator(seed, image)

    def colour(i, bit):
        a, b = (setting.minimum, setting.maximum)[bit], (setting.minimum, setting.maximum)[1 - bit]
        return b if image.flat[i] == a else a

    def loss(z):
        """The negative of their margin."""
        p = predict(network, z[None])[0]
        return max(p[j] for j in range(len(p)) if j != label) - p[label], p.argmax() != label

    order = [int(i) for i in draw.permutation(image.size)]
    M, U = order[:k], order[k:]
    z = image.copy()
    for i, bit in zip(M, draw.integers(2, size=k), strict=True):
        z.flat[i] = colour(i, bit)
    best, fooled = loss(z)
    asked = 1
    while not fooled and asked < queries:
        m = min(max(int(alpha(asked, queries, alpha_init) * k), 1), len(U))
        A, B = draw.choice(k, m, replace=False), draw.choice(len(U), m, replace=False)
        new_M, new_U, new_z = M.copy(), U.copy(), z.copy()
        for a, b in zip(A, B, strict=True):
            new_M[a], new_U[b] = U[b], M[a]
            new_z.flat[M[a]] = image.flat[M[a]]
        for a, bit in zip(A, draw.integers(2, size=m), strict=True):
            new_z.flat[new_M[a]] = colour(new_M[a], bit)
        found, wrong = loss(new_z)
        asked += 1
        if found > best or wrong:
            M, U, z, best, fooled = new_M, new_U, new_z, found, wrong
    return True, fooled, z, asked


@pytest.mark.parametrize(
    ("network", "shape", "k", "change"),
    [
        (small(), (1, 8, 8), 6, {}),
        (small(), (1, 8, 8), 20, {"alpha": 0.9, "queries": 30}),
        (small(), (1, 8, 8), 50, {"alpha": 1.0, "queries": 8}),
        (small(), (1, 8, 8), 4, {"seed": 7, "maximum": 255 / 256, "minimum": 1 / 256}),
        (dense_network(dtype=np.float64), (12,), 1, {}),
        (colour_cnn(dtype=np.float64), (3, 32, 32), 9, {"queries": 20}),
    ],
    ids=["cnn", "alpha", "most pixels", "setting", "dense", "channels"],
)
def test_sparse_rs_against_the_paper_query_by_query(network, shape, k, change):
    change = {"queries": 60, "seed": 0, "alpha": 0.3} | change
    queries, seed, alpha_init = (change.pop(name) for name in ("queries", "seed", "alpha"))
    setting = Setting(limit=k, **change)
    images, labels = samples(network, shape=shape, minimum=setting.minimum, maximum=setting.maximum)
    found = sparse_rs(network, images, labels, setting, queries=queries, seed=seed, alpha=alpha_init)
    expected = [
        reference(network, x, y, setting, queries, seed, alpha_init) for x, y in zip(images, labels, strict=True)
    ]
    attacked, succeeded, adversarial, asked = zip(*expected, strict=True)
    assert found.attacked.tolist() == list(attacked) == [True] * 8 + [False]
    assert found.succeeded.tolist() == list(succeeded)
    assert np.array_equal(found.adversarial, np.stack(adversarial))
    assert (found.forwards, found.backwards) == (len(images) + sum(asked), 0)
    assert found.moves.tolist() == [k] * 8 + [0]


@pytest.mark.parametrize("queries", [10_000, 1000, 137, 1])
def test_swapped_follows_the_schedule(queries):
    for k, alpha_init in ((1, 0.3), (20, 0.3), (150, 0.3), (1000, 1.0)):
        for query in range(queries):
            assert swapped(query, queries, k, alpha_init) == max(1, int(alpha(query, queries, alpha_init) * k))


def test_swapped_of_150_pixels_at_the_queries_where_it_changes():
    edges = [0, 1, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6000, 6001, 8000, 8001, 9999]
    expected = [45, 22, 22, 11, 11, 9, 9, 7, 7, 5, 5, 4, 4, 3, 3, 3, 3, 2, 2]
    assert [swapped(query, 10_000, 150, 0.3) for query in edges] == expected


@pytest.mark.parametrize("k", [1, 5, 63, 64, 1000])
def test_sparse_rs_changes_k_pixels_to_the_minimum_or_the_maximum(k):
    """At most all but one of the 64."""
    images, labels = samples(small())
    found = sparse_rs(small(), images, labels, Setting(limit=k), queries=40)
    differ = (found.adversarial != images).reshape(9, -1).sum(axis=1)
    assert differ.tolist() == found.moves.tolist() == [min(k, 63)] * 8 + [0]
    assert np.isin(found.adversarial[found.adversarial != images], (0, 1)).all()
    decided = predict(small(), found.adversarial).argmax(axis=1) != labels
    assert np.array_equal(decided & found.attacked, found.succeeded)
    assert not found.unchanged_moves.any() and not found.zero_scores.any()


def test_sparse_rs_keeps_the_largest_margin():
    """More queries never make it smaller: the first ones are the same where the schedule is."""
    images, labels = samples(small())
    labels = predict(small(), images).argmax(axis=1)

    def margins(queries):
        found = sparse_rs(small(), images, labels, Setting(limit=1), queries=queries)
        logits = predict(small(), found.adversarial)
        own = logits[np.arange(9), labels]
        logits[np.arange(9), labels] = -np.inf
        return logits.max(axis=1) - own

    steps = np.array([margins(queries) for queries in (1, 2, 4, 16, 64)])
    assert (np.diff(steps, axis=0) >= 0).all() and (steps[-1] > steps[0]).any()


def test_sparse_rs_finds_the_fewest_pixels_of_a_linear_network_and_never_less():
    """Two classes, 12 grey pixels that each add half of their |w| or take it away; the largest k are enough, and no
    set of fewer is."""
    rng = np.random.default_rng(5)
    w = rng.permutation(np.arange(1.0, 13)) * rng.choice([-1, 1], 12)
    network = Sequential(out=Dense(12, 2, dtype=np.float64))
    network.layers["out"].W.data[...] = np.stack([np.zeros(12), w], axis=1)
    image, gains = np.full((1, 12), 0.5), np.cumsum(np.sort(np.abs(w))[::-1]) / 2
    for fewest in (2, 3, 6, 10):
        network.layers["out"].b.data[...] = w.sum() / 2 + gains[fewest - 1] - 0.25, 0
        enough, short = (sparse_rs(network, image, [0], Setting(limit=k), queries=400) for k in (fewest, fewest - 1))
        assert enough.succeeded.item() and not short.succeeded.item()
        assert short.forwards == 1 + 400


def test_sparse_rs_keeps_what_changes_the_decision_where_logits_are_equal():
    """Pixel 0 makes class 2 as large as the label 1, which stays the first of the largest; pixel 1 makes class 0 so."""
    network = Sequential(out=Dense(2, 3, dtype=np.float64))
    network.layers["out"].W.data[...] = [[0, 0, 1], [1, 0, 0]]
    network.layers["out"].b.data[...] = 0, 1, 0
    queries = set()
    for seed in range(8):
        found = sparse_rs(network, np.zeros((1, 2)), [1], queries=2, seed=seed)
        assert found.succeeded.item() and found.adversarial.tolist() == [[0, 1]]
        queries.add(found.forwards - 1)
    assert queries == {1, 2}


class Blind(Layer):
    """Passes its input on, and no gradient back."""

    def __call__(self, x, masks=None):
        return Tensor(x.data) + x * 0.0


def test_sparse_rs_is_misled_by_no_gradient_and_no_size_of_the_logits():
    images, labels = samples(small())
    setting = Setting(limit=12)
    expected = sparse_rs(small(), images, labels, setting, queries=100)
    assert expected.succeeded.any()
    blind = Sequential(blind=Blind(), network=small())
    for network in blind, small(scale=2.0**40):
        found = sparse_rs(network, images, labels, setting, queries=100)
        assert np.array_equal(found.adversarial, expected.adversarial)
    assert attack(blind, images, labels, "margin", setting).zero_scores[:8].all()


def test_sparse_rs_does_not_depend_on_batch_chunk_or_type():
    network, setting = small(), Setting(limit=5)
    images, labels = samples(network)
    whole = sparse_rs(network, images, labels, setting, queries=30)
    for other in (
        sparse_rs(network, images, labels, dataclasses.replace(setting, chunk=2), queries=30),
        sparse_rs(network, np.asfortranarray(images).tolist(), labels.tolist(), setting, queries=30),
    ):
        for field in dataclasses.fields(AttackResult):
            assert np.array_equal(getattr(other, field.name), getattr(whole, field.name)), field.name
    backwards = sparse_rs(network, images[::-1], labels[::-1], setting, queries=30)
    assert np.array_equal(backwards.adversarial[::-1], whole.adversarial)
    for i in range(len(images)):
        alone = sparse_rs(network, images[i : i + 1], labels[i : i + 1], setting, queries=30)
        assert np.array_equal(alone.adversarial[0], whole.adversarial[i])


def test_sparse_rs_seeds_and_images_have_numbers_of_their_own():
    images, labels = samples(small())
    found = [sparse_rs(small(), images, labels, Setting(limit=5), queries=1, seed=s).adversarial for s in range(3)]
    moved = [(f != images)[i] for f in found for i in range(8)]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(moved, 2))


def test_sparse_rs_asks_the_same_on_every_backend(device):
    images, labels = samples(small())
    here, there = (sparse_rs(small().to(d), images, labels, Setting(limit=5), queries=10) for d in ("cpu", device.name))
    for field in dataclasses.fields(AttackResult):
        assert np.array_equal(getattr(there, field.name), getattr(here, field.name)), field.name


def test_sparse_rs_tells_its_progress():
    images, labels = samples(small())
    told = []
    found = sparse_rs(small(), images, labels, Setting(limit=12), lambda *args: told.append(args), queries=50)
    assert [query for query, _, _ in told] == list(range(1, len(told) + 1)) and {q for _, q, _ in told} == {50}
    left = [8, *(active for _, _, active in told)]
    assert (np.diff(left) <= 0).all() and left[-1] == 8 - found.succeeded.sum()
    assert found.forwards == 9 + sum(left[:-1])


def test_sparse_rs_on_no_samples_and_no_pixels():
    for images, labels, setting in (
        (np.zeros((0, 1, 8, 8)), [], Setting(limit=5)),
        (*samples(small()), Setting(limit=0)),
    ):
        found = sparse_rs(small(), images, labels, setting)
        assert np.array_equal(found.adversarial, images) and not found.succeeded.any() and not found.moves.any()
        assert (found.forwards, found.backwards) == (len(images), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "queries must be an integer of at least 1, got 0"),
        ({"queries": 10.0}, "queries must be an integer of at least 1, got 10.0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"alpha": 0}, "alpha must be above 0 and at most 1, got 0"),
        ({"alpha": 1.5}, "alpha must be above 0 and at most 1, got 1.5"),
        ({"alpha": np.nan}, "alpha must be above 0 and at most 1, got nan"),
    ],
)
def test_sparse_rs_refuses_settings(settings, message):
    images, labels = samples(small())
    with pytest.raises(ValueError, match=message):
        sparse_rs(small(), images, labels, **settings)


def test_sparse_rs_refuses_samples_and_logits_that_are_not_numbers():
    images, labels = samples(small())
    with pytest.raises(AttackError, match=r"numbers in \[0.0, 1.0\], these are from nan to nan"):
        sparse_rs(small(), images * np.nan, labels)
    with pytest.raises(ValueError, match="labels must be 0 to 2, got"):
        sparse_rs(small(), images, labels + 2)
    network = small()
    network.layers["dense2"].b.data[...] = np.nan
    with pytest.raises(AttackError, match="no finite numbers: choose other weights"):
        sparse_rs(network, images, np.zeros(9, int))
