"""minicnn.paper.masking: the terms of the gradient budget add up, and what is judged follows from the figures.

Most networks are small, of random weights, with logits scaled so that the label's is typically a given gap above the
next: from a gap of 104 on plain float32 sees nothing of their gradients.
"""

import math

import numpy as np
import pytest

from minicnn.paper import attacks, masking, proof1
from minicnn.paper.networks import paper_cnn, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import Rate
from minicnn.training import predict
from minicnn.weights import get_weights, load_weights, set_weights
from tests.conftest import colour_cnn, dense_network, small_cnn
from tests.paper import test_facts

IMAGES = 6
NOISE = np.random.default_rng(0).random((IMAGES, 1, 8, 8), np.float32)
LABELS = predict(small_cnn(), NOISE).argmax(axis=1)


def network_of_gap(gap, dtype=np.float32, seed=0):
    """A small_cnn that is right about LABELS, with a median gap between first and second logit."""
    network = small_cnn(seed, ties="all", dtype=dtype)
    logits = np.sort(predict(network, NOISE), axis=1)
    weights = get_weights(network)
    weights["dense2_W"] = weights["dense2_W"] * (gap / np.median(logits[:, -1] - logits[:, -2]))
    return set_weights(network, weights)


def sizes(network, T=1.0):
    return masking.map_sizes(network, NOISE, LABELS, T)


# Attacks on maps of zeros


@pytest.mark.parametrize(
    ("algorithm", "skip", "raised", "zero", "expected"),
    [
        ("1", False, [0, 1, 2], True, True),
        ("1", False, [0, 1, 3], False, False),
        ("1", False, [0, 1], False, False),
        ("1", True, [0, 1, 2], True, False),
        ("1", True, [0, 2, 3], True, True),
        ("3", False, [], True, True),
        ("3", False, [], False, False),
        ("3", False, [0, 1, 2], False, False),
    ],
)
def test_painted_raster_order(algorithm, skip, raised, zero, expected):
    """A black image of 4 x 4 whose pixel 1 is at the maximum already; the limit is 3 moves."""
    images = np.zeros((1, 1, 4, 4), np.float32)
    images[0, 0, 0, 1] = skip
    adversarial = images.copy()
    adversarial.reshape(1, -1)[:, raised] = 1
    setting = attacks.Setting("plain", limit=3, skip_unchanged=skip)
    yes, no, count = np.ones(1, bool), np.zeros(1, bool), np.zeros(1, int)
    result = attacks.AttackResult(yes, no, count + 3, count, np.full(1, zero), adversarial)
    assert masking.painted_raster_order(images, result, algorithm, setting) == [expected]
    result.succeeded[:] = True
    assert masking.painted_raster_order(images, result, algorithm, setting) == [False]


@pytest.mark.parametrize("algorithm", ["1", "3"])
def test_outcome_of_zero_maps_is_that_failures_only_paint(algorithm):
    found = {}
    for arithmetic in attacks.ARITHMETICS:
        setting = attacks.Setting(arithmetic, limit=2)
        result = attacks.attack(network_of_gap(2000), NOISE, LABELS, algorithm, setting)
        found[arithmetic] = masking.outcome(NOISE, result, algorithm, setting)
    plain, scaled = found["plain"], found["scaled"]
    assert plain["zero_score_share"] == 1 and plain["failed"] > 0
    assert plain["failed_with_a_map_of_zeros"] == plain["failed_painting_raster_order"] == plain["failed"]
    assert scaled["zero_score_share"] == 0 and scaled["failed"] > 0
    assert scaled["failed_with_a_map_of_zeros"] == scaled["failed_painting_raster_order"] == 0


def test_changed_decisions_and_the_closest_of_them():
    before = np.array([[4.0, 2.0, 0.0], [1.0, 8.0, 6.0], [0.0, 1.0, 2.0]])
    same = {"decisions_compared": 3, "decisions_that_differ": 0, "closest_call": None}
    assert masking.changed_decisions(before, 3 * before) == same
    changed = {"decisions_compared": 3, "decisions_that_differ": 3, "closest_call": 0.5}
    assert masking.changed_decisions(before, -before) == changed


# The gradient budget


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_map_sizes_each_term_is_what_it_is_called(T):
    """1/T from T, saturation from logits in float64, and the rest is the Jacobian's."""
    found = sizes(network_of_gap(40), T)
    logits = found["logits"].astype(np.float64)
    expected = [math.log10(proof1.saturation(z, int(k), T)) for z, k in zip(logits, LABELS, strict=True)]
    np.testing.assert_allclose(found["saturation"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["temperature"], -math.log10(T))
    assert found["saturation"].max() < -0.01
    total = sum(found[term] for term in masking.TERMS)
    np.testing.assert_allclose(total, found["size"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("build", "shape"), [(dense_network, (12,)), (colour_cnn, (3, 32, 32))])
def test_map_sizes_of_any_network(build, shape):
    images, labels = np.random.default_rng(0).random((2, *shape), np.float32), np.zeros(2, int)
    found = masking.map_sizes(build(), images, labels, 1.0)
    exact = saliency_maps(build(dtype=np.float64), images, labels, arithmetic="plain").log10_size()
    np.testing.assert_allclose(sum(found[term] for term in masking.TERMS), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_gradient_budget_terms_sum_to_the_ratio_measured_in_float64(T):
    """Logits that plain float64 still has digits for; there, nothing is split and nothing scaled."""
    found = masking.gradient_budget(sizes(network_of_gap(6), T), sizes(network_of_gap(2)), LABELS)
    exact = [
        saliency_maps(network_of_gap(gap, np.float64), NOISE, LABELS, t, "plain").log10_size()
        for gap, t in ((6, T), (2, 1.0))
    ]
    measured = exact[0] - exact[1]
    assert np.abs(measured).max() > 0.1
    by_image = found["by_image"]
    split = by_image["temperature"] + by_image["jacobian"] + by_image["saturation"]
    np.testing.assert_allclose(split, measured, rtol=0, atol=2e-5)
    np.testing.assert_allclose(split, by_image["ratio"], rtol=0, atol=1e-9)
    assert (found["T"], found["reference_T"], found["images"]) == (T, 1, IMAGES)
    assert found["largest_residual"] < 1e-9 and "prediction" not in found
    assert found["mean_of_log10"] == pytest.approx(sum(found["terms"].values()), abs=1e-9)


def test_gradient_budget_far_below_the_smallest_float():
    found = masking.gradient_budget(sizes(network_of_gap(2000)), sizes(network_of_gap(2)), LABELS)
    assert found["plain"]["zero_share"] == 1 and found["plain"]["log10_of_ratio_of_means"] == -math.inf
    assert found["plain"]["median_where_not_zero"] is None
    assert -math.inf < found["quantiles"]["0"] < -60
    assert found["quantiles"]["0"] <= found["median"] <= found["quantiles"]["100"] < 0
    assert found["mean_of_log10"] < found["log10_of_mean"]


def test_gradient_budget_predicts_the_ratio_to_the_same_networks_gradient_at_T():
    """T (c_T / c) exp(-(T - 1) m) with 1 <= c <= 2, times what the adjoint's direction does to max |J^T a|."""
    at_1, at_20 = (sizes(network_of_gap(100), T) for T in (1.0, 20.0))
    found = masking.gradient_budget(at_1, sizes(network_of_gap(2)), LABELS, at_20)
    direction = at_1["jacobian"] - at_20["jacobian"]
    excess = found["by_image"]["same_network"] - found["by_image"]["predicted"] - direction
    assert (-math.log10(2) - 0.05 <= excess).all() and (excess <= 0.05).all()
    assert found["prediction"]["T"] == 20


def test_gradient_budget_counts_images_that_both_classify_correctly():
    ours, theirs, labels = sizes(network_of_gap(6)), sizes(network_of_gap(2)), LABELS.copy()
    labels[1] = (labels[1] + 1) % 3
    found = masking.gradient_budget(ours, theirs, labels)
    assert found["by_image"]["image"].tolist() == [0, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="of 6 images both networks classify none correctly"):
        masking.gradient_budget(ours, theirs, (LABELS + 1) % 3)


def test_log10_predicted_is_that_of_proof_1():
    T, z, k = 20.0, np.array([[30.0, 10.0, -5.0], [4.0, 8.0, 1.0]]), np.array([0, 1])
    for logits, label, found in zip(z, k, masking.log10_predicted(z, k, T), strict=True):
        margin = proof1.margin(logits / T, int(label))
        assert 10**found == pytest.approx(proof1.gradient_ratio_predicted(margin, T), rel=1e-12)


def test_measured_in_float64_is_the_split_where_float64_has_digits():
    images = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    network, reference = (rescaled(paper_cnn(seed=1, ties="all"), scale) for scale in (60, 20))
    labels = predict(network, images).argmax(axis=1)

    def measured(network, T):
        ours, theirs = (masking.map_sizes(n, images, labels, t) for n, t in ((network, T), (reference, 1.0)))
        return masking.measured_in_float64(network, reference, images, labels, ours, theirs)

    for T in (1.0, 20.0):
        found = measured(network, T)
        assert found["images"] == 4 and 0 < found["median_difference"] <= found["largest_difference"] < 2e-5
    nothing = {"images": 0, "median_difference": None, "largest_difference": None}
    assert measured(rescaled(reference, 1e4), 1.0) == nothing


# Success against moved pixels


@pytest.mark.parametrize("skip_unchanged", [False, True])
def test_follow_maps_of_the_network_itself_is_algorithm_3(skip_unchanged):
    images = np.round(NOISE)  # many pixels are at the minimum or maximum already
    network, setting = network_of_gap(2), attacks.Setting("scaled", limit=60, skip_unchanged=skip_unchanged)
    labels = predict(network, images).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 3  # misclassified, so not attacked
    maps = saliency_maps(network, images, labels).maps
    found = masking.follow_maps(network, images, labels, maps, setting)
    result = attacks.attack(network, images, labels, "3", setting)
    assert result.succeeded.any() and not found["attacked"][0]
    assert np.array_equal(found["attacked"], result.attacked)
    assert np.array_equal(found["moves"], np.where(result.succeeded, result.moves, 0))


def test_success_curve_counts_successes_up_to_each_move():
    found = masking.success_curve(np.array([True, True, False, True, True]), np.array([3, 1, 0, 3, 0]), 5)
    assert found == {"attacked": 4, "succeeded": [0, 1, 1, 3, 3, 3]}


# The verdict

HEALTHY = {
    "one_step": Rate(70, 100),
    "iterative": Rate(99, 100),
    "transfer": Rate(20, 100),
    "random": Rate(5, 100),
    "unbounded": Rate(100, 100),
}


def test_judge_useful_gradients_pass_every_check():
    found = masking.judge(**HEALTHY)
    assert found["failed"] == 0 and [c["passed"] for c in found["checks"]] == [True] * 4
    expected = "All 4 checks pass: no sign of gradient masking behind Algorithm 3's success rate of 70.0%."
    assert found["sentence"] == expected


@pytest.mark.parametrize(
    ("changed", "successes", "check", "ground"),
    [
        ("iterative", 30, "iterative against one step", "below one step"),
        ("iterative", 72, "iterative against one step", "not significantly different from one step"),
        ("transfer", 90, "white box against transfer", "below transfer"),
        ("random", 68, "gradient against random moves", "not significantly different from random moves"),
        ("random", 90, "gradient against random moves", "below random moves"),
        ("unbounded", 99, "unbounded attack", "99 of 100"),
    ],
)
def test_judge_each_figure_turns_its_check(changed, successes, check, ground):
    found = masking.judge(**HEALTHY | {changed: Rate(successes, 100)})
    failed = [c for c in found["checks"] if not c["passed"]]
    assert [c["check"] for c in failed] == [check] and ground in failed[0]["ground"]
    rate = "Algorithm 3's success rate of 70.0%"
    if "significantly" in ground:
        told = f"shows nothing on so few images ({check}): {rate} is not shown to measure robustness."
    else:
        told = f"contradicts useful gradients ({check}): {rate} measures no robustness."
    assert found["sentence"] == f"1 of 4 checks {told}"


def test_judge_an_attack_that_always_succeeds_needs_no_better_one():
    found = masking.judge(**HEALTHY | dict.fromkeys(("one_step", "iterative", "transfer"), Rate(50, 50)))
    assert found["failed"] == 0


def test_judge_without_transfer_has_three_checks():
    found = masking.judge(**HEALTHY | {"transfer": None})
    assert len(found["checks"]) == 3 and found["sentence"].startswith("All 3 checks pass")


@pytest.mark.parametrize("few", [[(2, 3), (3, 4), (1, 3), (0, 3), (3, 3)], 5 * [(1, 1)]])
def test_judge_too_few_images_show_nothing(few):
    found = masking.judge(*(Rate(*pair) for pair in few))
    assert found["failed"] == 3 and found["sentence"].startswith("3 of 4 checks show nothing on so few images")


# The cost


def test_cost_is_at_most_that_of_the_text():
    network, image, label = network_of_gap(2), NOISE[:1], LABELS[:1]
    setting, found = attacks.Setting(limit=1), {}
    for name in masking.COSTS:
        found[name] = masking.cost(attacks.attack(network, image, label, name, setting), name, 1)
    assert {name: row["forwards_at_most"] for name, row in found.items()} == {"1": 2, "2": 130, "3": 2, "4": 130}
    for row in found.values():
        assert row["images"] == 1 and 0 < row["mean_moves"] <= 1
        assert 0 < row["forwards"] <= row["forwards_at_most"] and row["backwards"] == row["backwards_at_most"]
    assert found["2"]["forwards"] > 64 < found["4"]["forwards"]


def test_costs_of_the_text_at_100_moves():
    """784 pixels; counted by hand: every pixel up and down, the image itself, and a pass a move."""
    expected = {"1": 101, "2": 2 * 784 + 1 + 100, "3": 101, "4": 100 * (2 * 784 + 2)}
    assert {name: forwards(784, 100) for name, (forwards, _, _) in masking.COSTS.items()} == expected


# Known figures: the author's networks on the first 300 MNIST test images; another framework found the same rates


@pytest.fixture(scope="module")
def mnist():
    dataset = test_facts.load("mnist")
    return dataset.test_images[:300], dataset.test_labels[:300]


@pytest.fixture(scope="module")
def author():
    folder = test_facts.DATA / "author_networks"
    return {name: load_weights(paper_cnn(ties="all"), folder / f"{name}.npz") for name in test_facts.NETWORKS}


@test_facts.needs_the_author
def test_author_standard_with_logits_times_10_withstands_the_plain_attack(mnist, author):
    """At s = 1 the rate is 0.630."""
    copy = rescaled(author["standard"], 10)
    result = attacks.attack(copy, *mnist, "1", attacks.Setting("plain"))
    assert f"{attacks.summary(result)['success_rate']:.3f}" == "0.057"
    logits = (predict(network, mnist[0]) for network in (author["standard"], copy))
    assert masking.changed_decisions(*logits)["decisions_that_differ"] == 0


@test_facts.needs_the_author
def test_author_gradient_budget(mnist, author):
    at_1, at_20 = (masking.map_sizes(author["temperature20"], *mnist, T) for T in (1.0, 20.0))
    reference = masking.map_sizes(author["standard"], *mnist, 1.0)
    found = masking.gradient_budget(at_1, reference, mnist[1], at_20)
    assert f"{found['plain']['zero_share']:.3f}" == "0.953"
    assert found["median"] < -80 and found["terms"]["saturation"] < -80
    assert 0.5 < found["terms"]["jacobian"] < math.log10(20) and found["terms"]["temperature"] == 0
    assert found["prediction"]["same_network_median_difference"] < 0.5
