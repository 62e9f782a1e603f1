"""experiments/masking.py: the split is exact, the control changes no decision, and what is said follows from figures.

Most tests take a network of random features: its last layer alone is fitted, and scaled so that the label's logit is
typically 1 above the next. Multiplied by 1,000 it is so saturated that plain float32 sees nothing of its gradient.
"""

import argparse
import json
import math
import types

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from experiments import common, masking, masking_show
from minicnn import attacks, data, networks, proof1
from minicnn.layers import Sequential
from minicnn.saliency import saliency_maps
from tests import test_facts

IMAGES = 6


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def base(digits):
    network = networks.paper_cnn(seed=0, ties="all")
    features = Sequential(**{name: layer for name, layer in network.layers.items() if name != "dense3"})
    x = networks.predict(features, digits.train_images[:500]).astype(np.float64)
    y = np.eye(10)[digits.train_labels[:500]]
    weights = np.linalg.solve(x.T @ x + 1e-3 * np.trace(x.T @ x) / len(x.T) * np.eye(len(x.T)), x.T @ y)
    gap = np.median(np.diff(np.sort(x @ weights, axis=1)[:, -2:]))
    return networks.set_weights(network, networks.get_weights(network) | {"dense3_W": weights / gap})


@pytest.fixture(scope="module")
def chosen(base, digits):
    """The first test images that the network is right about by a gap of more than a half."""
    logits = networks.predict(base, digits.test_images[:60])
    gap = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0]
    return np.flatnonzero((logits.argmax(axis=1) == digits.test_labels[:60]) & (gap > 0.5))[:IMAGES]


@pytest.fixture(scope="module")
def images(digits, chosen):
    return digits.test_images[chosen]


@pytest.fixture(scope="module")
def labels(digits, chosen):
    return digits.test_labels[chosen]


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        dataset="digits",
        device="cpu",
        seed=0,
        out=tmp_path,
        temperature=20.0,
        images=IMAGES,
        limit=20,
        maximum=1.0,
        attack_temperature=1.0,
        skip_unchanged=False,
        prefer="raise",
        ties="all",
        teacher_dropout="on",
        batch=32,
        epochs=1,
        no_graph=False,
    )


@pytest.fixture
def zero_maps(base):
    """A network whose plain float32 maps are all exactly zero."""
    return masking.rescaled(base, 1000)


# 1. arithmetics


def test_failures_that_only_painted_are_those_of_zero_maps(zero_maps, images, labels, options):
    found = masking.arithmetics(zero_maps, images, labels, options)
    for algorithm in ("1", "3"):
        plain, scaled = found[algorithm]["plain_float32"], found[algorithm]["scaled_float32"]
        assert plain["zero_score_share"] == 1 and plain["failed"] > 0
        assert plain["failed_with_a_map_of_zeros"] == plain["failed_painting_raster_order"] == plain["failed"]
        assert scaled["zero_score_share"] == 0
        assert scaled["failed_with_a_map_of_zeros"] == scaled["failed_painting_raster_order"] == 0
    assert found["1"]["plain_float32_at_T"]["attacked"] == IMAGES


def test_the_variants_are_attacked_as_their_names_say(base, images, labels, options):
    """At logits that float32 half loses: each variant does what its own map says."""
    network = masking.rescaled(base, 30)
    plain = saliency_maps(network, images, labels, arithmetic="plain").maps
    exact = saliency_maps(masking.rescaled(network, dtype=np.float64), images, labels, arithmetic="plain").maps
    at_T = saliency_maps(network, images, labels, T=20.0, arithmetic="plain").maps
    assert exact.dtype == np.float64
    found = masking.arithmetics(network, images, labels, options)["1"]
    for name, maps in ("plain_float32", plain), ("plain_float64", exact), ("plain_float32_at_T", at_T):
        order = np.argsort(-maps.reshape(IMAGES, -1), axis=1, kind="stable")
        ones = np.ones(order.shape)
        replayed = masking.move_in_order(network, images, labels, order, ones, common.setting(options, "plain"))
        moves = replayed["moves"][replayed["moves"] > 0]
        assert found[name]["succeeded"] == len(moves) > 0
        assert found[name]["mean_moves_of_successes"] == pytest.approx(moves.mean())
    assert len({found[name]["mean_moves_of_successes"] for name in masking_show.VARIANTS}) > 2


def _result(images, adversarial, zero):
    n = len(images)
    yes, no = np.ones(n, bool), np.zeros(n, bool)
    moves = np.full(n, 3)
    return attacks.AttackResult(yes, no, moves, np.zeros(n, int), np.full(n, zero), adversarial)


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
def test_painting_in_raster_order_is_recognised(algorithm, skip, raised, zero, expected):
    """A black image of 4 x 4 whose pixel 1 is at the maximum already; the limit is 3 moves."""
    images = np.zeros((1, 1, 4, 4), np.float32)
    images[0, 0, 0, 1] = skip
    adversarial = images.copy()
    adversarial.reshape(1, -1)[:, raised] = 1
    setting = attacks.Setting("plain", limit=3, skip_unchanged=skip)
    result = _result(images, adversarial, zero)
    assert masking.painted_raster_order(images, result, algorithm, setting) == [expected]
    result.succeeded[:] = True
    assert masking.painted_raster_order(images, result, algorithm, setting) == [False]


# 2. control


def test_no_decision_changes_at_any_scale(base, images, labels, options, digits):
    options.limit = 2
    rows = masking.control(base, images, labels, options, digits.test_images[:100])
    assert [row["s"] for row in rows] == [1, 2, 5, 10, 15, 20, 50]
    assert all(row["decisions_that_differ"] == 0 and row["closest_call"] is None for row in rows)
    assert all(row["decisions_compared"] == 100 and row["plain"]["attacked"] == IMAGES for row in rows)


def test_a_changed_decision_is_counted(base, images, labels, options, monkeypatch):
    options.limit = 1
    negative = masking.rescaled(base, -1)
    monkeypatch.setattr(masking, "rescaled", lambda network, s: negative)
    row = masking.control(base, images, labels, options)[0]
    assert row["decisions_that_differ"] == IMAGES and row["closest_call"] > 0


def test_rescaled_multiplies_logits_and_nothing_else(base, images):
    before = networks.get_weights(base)
    copy = masking.rescaled(base, 3.0)
    np.testing.assert_allclose(networks.predict(copy, images), 3 * networks.predict(base, images), rtol=1e-4, atol=1e-6)
    after = networks.get_weights(copy)
    assert [n for n in before if not np.array_equal(before[n], after[n])] == ["dense3_W"]  # its biases are 0
    assert all(np.array_equal(before[n], w) for n, w in networks.get_weights(base).items())


# 3. the gradient budget


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_the_split_sums_to_the_ratio_measured_in_float64(base, images, labels, options, T):
    """Logits that plain float64 still has digits for; there, nothing is split and nothing scaled."""
    reference, network = masking.rescaled(base, 2), masking.rescaled(base, 6)
    found = masking.gradient_budget(network, reference, images, labels, options, T)
    sizes = []
    for n, t in (network, T), (reference, 1.0):
        exact = saliency_maps(masking.rescaled(n, dtype=np.float64), images, labels, t, "plain").maps
        sizes.append(np.log10(np.abs(exact).max(axis=(1, 2))))
    measured = sizes[0] - sizes[1]
    assert np.abs(measured).max() > 0.1
    by_image = found["by_image"]
    split = by_image["temperature"] + by_image["jacobian"] + by_image["saturation"]
    np.testing.assert_allclose(split, measured, rtol=0, atol=2e-5)
    np.testing.assert_allclose(split, by_image["ratio"], rtol=0, atol=1e-9)
    assert found["largest_residual"] < 1e-9
    assert found["measured"]["images"] == found["images"] == IMAGES
    assert found["measured"]["largest_difference"] < 2e-5
    assert found["mean_of_log10"] == pytest.approx(sum(found["terms"].values()), abs=1e-9)


def test_each_term_is_what_it_is_called(base, images, labels, options):
    """1/T from T, saturation from logits in float64, and the rest is the Jacobian's."""
    network = masking.rescaled(base, 100)
    logits = networks.predict(network, images).astype(np.float64)
    for T in (1.0, 20.0):
        found = masking.map_sizes(network, images, labels, T, options)
        expected = [math.log10(proof1.saturation(z, int(k), T)) for z, k in zip(logits, labels, strict=True)]
        np.testing.assert_allclose(found["saturation"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found["temperature"], -math.log10(T))
    assert found["saturation"].max() < -0.01


def test_sizes_far_below_the_smallest_float(zero_maps, base, images, labels, options):
    found = masking.gradient_budget(zero_maps, base, images, labels, options)
    assert found["plain"]["zero_share"] == 1 and found["plain"]["log10_of_ratio_of_means"] == -math.inf
    assert found["plain"]["median_where_not_zero"] is None
    assert -math.inf < found["quantiles"]["0"] < -60
    assert found["quantiles"]["0"] <= found["median"] <= found["quantiles"]["100"] < 0
    assert found["mean_of_log10"] < found["log10_of_mean"]


def test_mean_of_powers():
    assert masking.log10_mean(np.array([0.0, 1.0])) == pytest.approx(math.log10(5.5))
    assert masking.log10_mean(np.array([-400.0, -401.0])) == pytest.approx(-400 + math.log10(0.55))
    assert masking.log10_mean(np.array([-np.inf, 0.0])) == pytest.approx(math.log10(0.5))
    assert masking.log10_mean(np.array([-np.inf])) == -math.inf


def test_prediction_is_that_of_proof_1():
    T, z, k = 20.0, np.array([[30.0, 10.0, -5.0], [4.0, 8.0, 1.0]]), np.array([0, 1])
    for logits, label, found in zip(z, k, masking.log10_predicted(z, k, T), strict=True):
        margin = proof1.margin(logits / T, int(label))
        assert 10**found == pytest.approx(proof1.gradient_ratio_predicted(margin, T), rel=1e-12)


def test_prediction_against_the_networks_own_loss_at_z_over_T(base, images, labels, options):
    """T (c_T / c) exp(-(T - 1) m) with 1 <= c <= 9, times what the adjoint's direction does to max |J^T a|."""
    network = masking.rescaled(base, 200)
    found = masking.gradient_budget(network, base, images, labels, options)
    at = {t: masking.map_sizes(network, images, labels, t, options) for t in (1.0, 20.0)}
    direction = at[1.0]["jacobian"] - at[20.0]["jacobian"]
    excess = found["by_image"]["same_network"] - found["by_image"]["predicted"] - direction
    assert (-math.log10(9) - 0.05 <= excess).all() and (excess <= 0.05).all()


# 4. two by two by two


def test_eight_rows_with_four_networks(base, images, labels, options):
    trained = {name: masking.rescaled(base, s) for s, name in enumerate(masking.TABLE, 20)}
    options.limit = 3
    rows = masking.two_by_two_by_two(trained, images, labels, options)
    assert {(r["train_T"], r["distilled"], r["test_T"]) for r in rows} == {
        (train, distilled, test) for train in (1, 20) for distilled in (False, True) for test in (1, 20)
    }
    row = next(r for r in rows if r["network"] == "distilled" and r["test_T"] == 20)
    setting = attacks.Setting("plain", T=20, limit=3)
    direct = attacks.attack(trained["distilled"], images, labels, "1", setting)
    assert (row["plain"]["succeeded"], row["plain"]["forwards"]) == (direct.succeeded.sum(), direct.forwards)
    at_1 = next(r for r in rows if r["network"] == "distilled" and r["test_T"] == 1)
    assert at_1["plain"]["zero_score_share"] != row["plain"]["zero_score_share"] or at_1["plain"] != row["plain"]
    del trained["standard-distilled"]
    assert len(masking.two_by_two_by_two(trained, images, labels, options)) == 6


def test_the_student_of_standard_learns_at_temperature_1_and_resumes(base, digits, options):
    few = types.SimpleNamespace(
        train_images=digits.train_images[:64],
        train_labels=digits.train_labels[:64],
        test_images=digits.test_images[:8],
        test_labels=digits.test_labels[:8],
    )
    student = masking.train_standard_distilled(base, options, few)
    state = networks.load_npz(options.out / "standard-distilled.checkpoint.npz")
    recipe = json.loads(str(state["fingerprint"]))
    assert recipe["temperature"] == 1.0
    assert recipe["learning_rate"] == common.recipe("distilled", options).learning_rate
    again = masking.train_standard_distilled(base, options, few)
    for name, values in networks.get_weights(student).items():
        assert np.array_equal(values, networks.get_weights(again)[name])


def test_the_interval_of_a_median_holds_it_19_times_of_20():
    rng = np.random.default_rng(0)
    assert masking.median_interval([7.0]) == (7.0, 7.0)
    for n in (25, 400):
        intervals = [masking.median_interval(rng.standard_normal(n)) for _ in range(1000)]
        assert 0.94 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.99
    assert np.mean([high - low for low, high in intervals]) < 0.3


# 5. success by pixels


@pytest.mark.parametrize("skip_unchanged", [False, True])
def test_moving_in_the_maps_own_order_is_algorithm_3(base, images, labels, options, skip_unchanged):
    network = masking.rescaled(base, 10)
    setting = attacks.Setting("scaled", limit=60, skip_unchanged=skip_unchanged)
    maps = saliency_maps(network, images, labels).maps.reshape(IMAGES, -1)
    labels = labels.copy()
    labels[0] = (labels[0] + 1) % 10  # misclassified, so not attacked
    order, values = masking.moves_of_algorithm_3(maps, images, setting)
    found = masking.move_in_order(network, images, labels, order, values, setting)
    result = attacks.attack(network, images[1:], labels[1:], "3", setting)
    assert result.succeeded.any()
    assert not found["attacked"][0] and found["moves"][0] == 0
    assert np.array_equal(found["moves"][1:], np.where(result.succeeded, result.moves, 0))


def test_curves_count_successes_up_to_each_move(base, images, labels, options):
    network, reference = masking.rescaled(base, 10), networks.paper_cnn(seed=1, ties="all")
    curves = masking.success_by_pixels(network, reference, images, labels, options, pixels=40)
    assert set(curves) == set(masking_show.CURVES)
    for curve in curves.values():
        counts = np.array(curve["succeeded"])
        assert curve["attacked"] == IMAGES and len(counts) == 41
        assert counts[0] == 0 and (np.diff(counts) >= 0).all() and counts[-1] <= IMAGES
    short = attacks.attack(network, images, labels, "1", common.setting(options, "scaled"))
    assert curves["algorithm_1_scaled"]["succeeded"][options.limit] == short.succeeded.sum() > 0
    maps = saliency_maps(reference, images, labels).maps.reshape(IMAGES, -1)
    order, values = masking.moves_of_algorithm_3(maps, images, attacks.Setting())
    moves = masking.move_in_order(network, images, labels, order, values, attacks.Setting(limit=40))["moves"]
    assert curves["transfer"]["succeeded"][-1] == (moves > 0).sum()


def test_every_pixel_may_move_and_nothing_transfers_to_itself(base, images, labels, options):
    curves = masking.success_by_pixels(masking.rescaled(base, 10), base, images[:1], labels[:1], options)
    assert all(len(curve["succeeded"]) == 785 for curve in curves.values())
    assert "transfer" not in masking.success_by_pixels(base, base, images[:1], labels[:1], options, pixels=1)


# 6. verdict

HEALTHY = {
    "one_step": (70, 100),
    "iterative": (99, 100),
    "transfer": (20, 100),
    "random": (5, 100),
    "unbounded": (100, 100),
}


def test_a_network_with_useful_gradients_passes_every_check():
    found = masking.judge(**HEALTHY)
    assert found["failed"] == 0 and [c["passed"] for c in found["checks"]] == [True] * 4
    assert (
        found["sentence"]
        == "All 4 checks pass: no sign of gradient masking behind Algorithm 3's success rate of 70.0%."
    )


@pytest.mark.parametrize(
    ("changed", "value", "check", "ground"),
    [
        ("iterative", (30, 100), "iterative against one step", "below one step"),
        ("iterative", (72, 100), "iterative against one step", "not told apart from one step"),
        ("transfer", (90, 100), "white box against transfer", "below transfer"),
        ("random", (68, 100), "gradient against random moves", "not told apart from random moves"),
        ("random", (90, 100), "gradient against random moves", "below random moves"),
        ("unbounded", (99, 100), "unlimited budget", "99 of 100"),
    ],
)
def test_each_figure_turns_its_check(changed, value, check, ground):
    found = masking.judge(**HEALTHY | {changed: value})
    failed = [c for c in found["checks"] if not c["passed"]]
    assert [c["check"] for c in failed] == [check] and ground in failed[0]["ground"]
    rate = "Algorithm 3's success rate of 70.0%"
    if "not told apart" in ground:
        told = f"show nothing on so few images ({check}): {rate} is not shown to measure robustness."
    else:
        told = f"contradicts useful gradients ({check}): {rate} measures no robustness."
    assert found["sentence"].startswith("1 of 4 checks ") and found["sentence"].endswith(told)


def test_an_attack_that_always_succeeds_needs_no_better_one():
    found = masking.judge(**HEALTHY | {"one_step": (50, 50), "iterative": (50, 50), "transfer": (50, 50)})
    assert found["failed"] == 0


def test_without_transfer_three_checks_remain():
    found = masking.judge(**HEALTHY | {"transfer": None})
    assert len(found["checks"]) == 3 and found["sentence"].startswith("All 3 checks pass")


def test_too_few_images_show_nothing():
    for few in (masking.judge((2, 3), (3, 4), (1, 3), (0, 3), (3, 3)), masking.judge(*5 * [(1, 1)])):
        assert few["failed"] == 3
        assert few["sentence"].startswith("3 of 4 checks show nothing on so few images")


# 7. cost


def test_passes_counted_are_at_most_those_of_the_text(base, images, labels, options, monkeypatch):
    monkeypatch.setattr(masking, "COST_IMAGES", 1)
    options.limit = 1
    wrong = labels.copy()
    wrong[0] = (wrong[0] + 1) % 10
    found = masking.cost(masking.rescaled(base, 10), images, wrong, options)
    assert {name: row["forwards_at_most"] for name, row in found.items()} == {"1": 2, "2": 1570, "3": 2, "4": 1570}
    for row in found.values():
        assert row["images"] == 1
        assert 0 < row["forwards"] <= row["forwards_at_most"] and row["backwards"] == row["backwards_at_most"]
    assert found["2"]["forwards"] > 784 < found["4"]["forwards"]


def test_passes_of_the_text_at_100_moves():
    """784 pixels; counted by hand: every pixel up and down, the image itself, and a pass a move."""
    assert {name: forwards(784, 100) for name, (forwards, _, _) in masking.COSTS.items()} == {
        "1": 101,
        "2": 2 * 784 + 1 + 100,
        "3": 101,
        "4": 100 * (2 * 784 + 2),
    }


# The command


def test_the_command_writes_every_part(base, options, capsys, monkeypatch):
    monkeypatch.setattr(masking, "COSTS", {"1": masking.COSTS["1"]})
    options.weights = []
    for s, name in enumerate(("standard", "temperature"), 1):
        networks.save_weights(masking.rescaled(base, 10 * s), options.out / f"{name}.npz")
        options.weights.append((name, options.out / f"{name}.npz"))
    options.parts, options.json, options.images, options.limit = masking.PARTS, options.out / "masking.json", 10, 1
    monkeypatch.setattr(masking, "success_by_pixels", _few_pixels)
    masking.main(options)
    results = json.loads(options.json.read_text())
    assert set(masking.PARTS) <= set(results)
    assert set(results["arithmetics"]) == {"standard", "temperature"}
    assert set(results["gradient_budget"]["temperature"]) == {"test_T_1", "test_T_20"}
    assert "by_image" not in json.dumps(results)
    rows = (options.out / "masking_budget.csv").read_text().splitlines()
    assert rows[0] == "network,T,image,ratio,temperature,jacobian,saturation" and len(rows) > 1
    pictures = {path.name for path in options.out.glob("*.png")}
    assert pictures == {
        f"masking_{part}.png" for part in ("arithmetics", "control", "gradient_budget", "success_by_pixels")
    }
    printed = capsys.readouterr().out
    assert all(title in printed for title, _, _ in masking_show.SHOWN.values())


def _few_pixels(network, reference, images, labels, options):
    """Curves without attacks: one success of two from the tenth move on."""
    names = set(masking_show.CURVES) - ({"transfer"} if reference is network else set())
    return {name: {"attacked": 2, "succeeded": [0] * 10 + [1] * 775} for name in names}


def test_a_network_that_is_never_right_is_an_error(base, digits, options):
    negative = {"standard": masking.rescaled(base, -1)}
    with pytest.raises(common.UsageError, match="standard classifies none of the first 6 test images"):
        masking.run_part("control", negative, digits, options)


def test_weights_must_name_a_standard_network(options):
    options.weights = [("temperature", options.out / "temperature.npz")]
    with pytest.raises(common.UsageError, match="standard=FILE"):
        masking.main(options)
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=FILE"):
        masking.named_weights("teacher=file.npz")


# Known figures (the author's networks)


@pytest.fixture(scope="module")
def mnist():
    dataset = data.load("mnist")
    return dataset.test_images[:300], dataset.test_labels[:300]


@pytest.fixture(scope="module")
def author():
    path = test_facts.DATA / "author_networks"
    return {n: networks.load_weights(networks.paper_cnn(ties="all"), path / f"{n}.npz") for n in test_facts.NETWORKS}


class TestAuthorsNetworks:
    """On the first 300 MNIST test images; the same rates were found with another framework."""

    pytestmark = test_facts.pytestmark

    def test_control(self, mnist, author, options, monkeypatch):
        """At s = 1 the rate is 0.630."""
        options.limit = 100
        monkeypatch.setattr(masking, "SCALES", (10,))
        real = masking.outcome
        monkeypatch.setattr(masking, "outcome", lambda *a: real(*a) if a[4].arithmetic == "plain" else None)
        (row,) = masking.control(author["standard"], *mnist, options)
        assert f"{row['plain']['success_rate']:.3f}" == "0.057"
        assert row["decisions_that_differ"] == 0

    def test_gradient_budget(self, mnist, author, options):
        found = masking.gradient_budget(author["temperature20"], author["standard"], *mnist, options)
        assert f"{found['plain']['zero_share']:.3f}" == "0.953"
        assert found["median"] < -80 and found["terms"]["saturation"] < -80
        assert 0.5 < found["terms"]["jacobian"] < math.log10(20) and found["terms"]["temperature"] == 0
        assert found["prediction"]["same_network_median_difference"] < 0.5
