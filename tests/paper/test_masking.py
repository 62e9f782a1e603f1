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
from minicnn.paper.statistics import summary
from minicnn.training import predict
from minicnn.weights import get_weights, load_weights, set_weights
from tests.conftest import colour_cnn, dense_network, small_cnn
from tests.paper import test_facts
from tests.paper.test_attacks import each_labels

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
def test_painted_raster_order_of_images_of_another_dtype(algorithm):
    """The samples are the images as the network's dtype has them."""
    images, setting = NOISE.astype(np.float64) * 0.999 + 1e-9, attacks.Setting("plain", limit=2)
    network = network_of_gap(2000)
    labels = predict(network, images).argmax(axis=1)
    result = attacks.attack(network, images, labels, algorithm, setting)
    painted = masking.painted_raster_order(images, result, algorithm, setting)
    assert painted.any()
    assert np.array_equal(painted, masking.painted_raster_order(images.astype(np.float32), result, algorithm, setting))


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


@pytest.mark.parametrize(
    ("moves", "succeeded", "median"),
    [
        ([3, 1, np.inf, 3], [0, 1, 1, 3, 3, 3], 3),
        ([9, 1, np.inf, 2], [0, 1, 2, 2, 2, 2], None),
        ([4, 6], [0, 0, 0, 0, 1, 1], None),  # the mean of the middle two is within 5, one of them is not
        ([4, 5, 6], [0, 0, 0, 0, 1, 2], 5),
    ],
)
def test_success_curve_counts_successes_up_to_each_move(moves, succeeded, median):
    found = masking.success_curve(np.array(moves), 5)
    assert found == {"attacked": len(moves), "succeeded": succeeded, "median": median}


@each_labels
def test_masking_refuses_labels(labels):
    network, images = small_cnn(), NOISE[:3]
    ours = masking.map_sizes(network, images, predict(network, images).argmax(axis=1), 1.0)
    for call in (
        lambda: masking.both_correct(ours, ours, labels),
        lambda: masking.gradient_budget(ours, ours, labels, ours),
        lambda: masking.log10_predicted(ours["logits"], labels, 2.0),
        lambda: masking.saturated(network, images, labels),
        lambda: masking.map_sizes(network, images, labels, 1.0),
    ):
        with pytest.raises(ValueError, match=r"^(class labels must|labels must be 0 to 2)"):
            call()


def test_masking_of_no_images():
    network, none, setting = small_cnn(), NOISE[:0], attacks.Setting("plain", limit=2)
    result = attacks.attack(network, none, [], "3", setting)
    assert masking.outcome(none, result, "3", setting)["failed_painting_raster_order"] == 0
    assert all(len(values) == 0 for values in masking.map_sizes(network, none, [], 1.0).values())
    assert masking.saturated(network, none, []).shape == (0,)
    with pytest.raises(ValueError, match="^no image was attacked: there is no cost of one$"):
        masking.cost(result, "3", 2)


def test_changed_decisions_of_one_class_and_of_no_images():
    for logits in (np.ones((3, 1)), np.ones((0, 3))):
        found = masking.changed_decisions(logits, logits)
        assert (found["decisions_that_differ"], found["closest_call"]) == (0, None)


def test_success_curve_of_no_attack():
    assert masking.success_curve(np.zeros(0), 1) == {"attacked": 0, "succeeded": [0, 0], "median": None}


# The verdict: what 200 attacks say, of which those against the first images succeed


def succeeding(count, moves=30.0):
    return np.where(np.arange(200) < count, moves, np.inf)


ITERATIVE = np.minimum(succeeding(80, 5), succeeding(200))
RIVALS = {
    "one step": succeeding(140),
    "Sparse-RS": succeeding(198, 100),
    "transfer": succeeding(120),
    "random search": succeeding(10),
}


def outcomes(iterative=ITERATIVE, limit=100, **rivals):
    """What judge says of each check, by the name of the rival, and its sentence."""
    rivals = RIVALS | {name.replace("_", " "): moves for name, moves in rivals.items()}
    found = masking.judge(iterative, rivals, limit)
    return {c["check"].removeprefix("iterative against "): c["outcome"] for c in found["checks"]}, found["sentence"]


def test_judge_useful_gradients_pass_every_check():
    found, sentence = outcomes()
    checks = [*RIVALS, "a tenth of the moves", masking.UNBOUNDED]
    assert found == dict.fromkeys(checks, "pass")
    rates = "Algorithm 3 succeeds on 70.0%, refreshed after every move on 100.0%"
    assert sentence == f"All 6 checks pass: no sign of gradient masking. {rates}."


@pytest.mark.parametrize("rival", RIVALS)
def test_judge_fails_where_a_rival_beats_the_gradient(rival):
    """An iterative attack that is late on half of the images, and comes to them all in the end."""
    late = np.minimum(succeeding(100), succeeding(200, 300))
    others = dict.fromkeys((name.replace(" ", "_") for name in RIVALS), succeeding(50))
    found, sentence = outcomes(late, **others | {rival.replace(" ", "_"): succeeding(140)})
    assert found.pop(rival) == "fail" and set(found.values()) == {"pass"}
    assert sentence.startswith(f"1 of 6 checks fails (iterative against {rival}): a sign of gradient masking. Algo")
    assert sentence.endswith("refreshed after every move on 50.0%, which may measure no robustness.")


def test_judge_never_concludes_from_signs_that_a_gradient_is_masked():
    """Not from five of six that fail."""
    found, sentence = outcomes(succeeding(20, 99), **{name.replace(" ", "_"): succeeding(150) for name in RIVALS})
    assert list(found.values()).count("fail") == 5 and ": signs of gradient masking. " in sentence


def test_judge_cannot_tell_what_is_not_significant():
    """Two images of 200, either way; and with the success that nothing much can be added to, they are no matter."""
    for count, outcome in (160, "cannot tell"), (198, "pass"):
        for rival in count + 2, count - 2:
            assert outcomes(succeeding(count), one_step=succeeding(rival))[0]["one step"] == outcome


def test_judge_does_not_pass_where_the_interval_speaks_for_the_rival():
    """Six images of 300 for the rival alone: p = 0.031, after Holm not below 0.05, and yet no pass."""
    iterative, rivals = np.full(300, 30.0), {"one step": np.full(300, 30.0), "Sparse-RS": np.full(300, 30.0)}
    iterative[:6], rivals["one step"][:4] = 300, np.inf
    even, beaten, *_ = masking.judge(iterative, rivals, 100)["checks"]
    assert (even["outcome"], even["p"]) == ("pass", 0.5) and even["ground"].endswith("nearly all succeed")
    assert (beaten["outcome"], f"{beaten['p']:.4f}") == ("cannot tell", "0.0625")


def test_judge_compares_image_for_image_and_adjusts_for_the_other_checks():
    """Ten images for the gradient alone and two for the rival: McNemar's p is 0.0386, too much beside another."""
    iterative = succeeding(110)
    rival = np.where((np.arange(200) >= 10) & (np.arange(200) < 112), 30, np.inf)
    found = masking.judge(iterative, {"one step": rival}, 100)["checks"]
    assert found[0]["alone"] == {"iterative": 10, "one step": 2} and found[0]["images"] == 200
    assert found[0]["succeeded"] == {"iterative": 110, "one step": 102}
    assert (found[0]["outcome"], f"{found[0]['p']:.4f}") == ("pass", "0.0386")
    low, high = found[0]["interval"]
    assert low < 0.04 < high and found[0]["difference"] == pytest.approx(0.04)
    assert found[0]["ground"].startswith("110 and 102 of 200, +4.0 points (+")
    again = masking.judge(iterative, {"one step": rival, "Sparse-RS": succeeding(111)}, 100)["checks"][0]
    assert (again["outcome"], f"{again['p']:.4f}") == ("cannot tell", "0.0771")


@pytest.mark.parametrize(("count", "outcome"), [(200, "pass"), (190, "cannot tell"), (100, "fail")])
def test_judge_the_unbounded_attack_should_reach_nearly_all(count, outcome):
    found, _ = outcomes(succeeding(count, 784))
    assert found[masking.UNBOUNDED] == outcome and found["a tenth of the moves"] == "cannot tell"


def test_judge_success_that_does_not_grow_cannot_be_told():
    assert outcomes(succeeding(150, 10))[0]["a tenth of the moves"] == "cannot tell"
    assert outcomes(succeeding(150, 10), limit=99)[0]["a tenth of the moves"] == "pass"


def test_judge_too_few_images_show_nothing():
    few = np.full(5, 3.0)
    found = masking.judge(few, {"one step": few, "Sparse-RS": few}, 100)
    assert [check["outcome"] for check in found["checks"]] == ["cannot tell"] * 4
    assert found["sentence"].startswith("No check fails, 4 of 4 cannot tell on 5 images (iterative against one step; ")


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_saturated_where_plain_float32_loses_the_labels_entry(T):
    """Where 1 - p_k is below 2^-24, 1 and all other exponentials add up to 1."""
    network = network_of_gap(14 * T)
    found, saturation = masking.saturated(network, NOISE, LABELS, T), sizes(network, T)["saturation"]
    assert found.any() and not found.all() and (np.abs(saturation + 24 * math.log10(2)) > 0.1).all()
    assert np.array_equal(found, saturation < -24 * math.log10(2))


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
    folder = test_facts.AUTHOR
    return {name: load_weights(paper_cnn(ties="all"), folder / f"{name}.npz") for name in test_facts.NETWORKS}


@test_facts.needs_the_author
def test_author_standard_with_logits_times_10_withstands_the_plain_attack(mnist, author):
    """At s = 1 the rate is 0.630."""
    copy = rescaled(author["standard"], 10)
    result = attacks.attack(copy, *mnist, "1", attacks.Setting("plain"))
    assert f"{summary(result)['success_rate']:.3f}" == "0.057"
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
