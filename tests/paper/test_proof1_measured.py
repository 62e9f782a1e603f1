"""What is measured of Proof 1: every form on logits, then the chain rule and equation (1) on a network."""

import math
from decimal import Decimal

import numpy as np
import pytest

from minicnn import predict
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.paper import proof1
from minicnn.paper import proof1_measured as measured

TEMPERATURES = [1, 2, 5, 10, 20, 50, 100]
PRINTED = ("printed_4", "printed_5")


def small_network():
    """Conv, pool and dense in float64 with random biases, for 8 x 8 images; scaled so that p_k is not flat."""
    rng = np.random.default_rng(3)
    shared = {"rng": rng, "dtype": np.float64}
    network = Sequential(
        conv1=Conv2D(1, 4, 3, **shared), pool1=MaxPool2D(2), flatten=Flatten(), dense1=Dense(36, 10, **shared)
    )
    for name, parameter in network.parameters().items():
        parameter.data = parameter.data * 3 if name.endswith("_W") else rng.normal(0, 0.1, parameter.shape)
    return network


def noise_images(count):
    return np.random.default_rng(4).uniform(0.05, 0.95, (count, 1, 8, 8))


@pytest.fixture(scope="module")
def forms():
    return measured.compare_forms(np.random.default_rng(0))


def test_compare_forms_finds_the_corrected_ones_right_and_the_printed_ones_wrong(forms):
    assert [row["T"] for row in forms] == TEMPERATURES
    for row in forms:
        right = [name for name in row["off"] if name not in PRINTED]
        assert len(right) == 5 and max(row["off"][name] for name in right) < 1e-12
        assert all(abs(row["sums_times_T"][name]) < 1e-14 for name in right)
        for name in PRINTED:
            stated = row["sums_stated_times_T"][name]
            assert row["sums_times_T"][name] == pytest.approx(stated, rel=1e-13, abs=0)


def test_compare_forms_is_off_by_what_the_most_confident_vector_says(forms):
    for row in forms:
        p_k = row["largest_p_k"]
        assert p_k >= row["p_k"]
        for name in PRINTED:
            assert row["off"][name] == pytest.approx(2 * p_k / (1 - p_k), rel=1e-9) and row["off"][name] > 1


def test_limit_of_certainty_ends_where_it_should_and_float32_stops_before():
    found = measured.limit_of_certainty()
    last = found["rows"][-1]
    assert len(last["forms"]) == 5
    for name, form in last["forms"].items():
        limit = found["limits"]["corrected" if name.startswith("corrected") else name]
        np.testing.assert_allclose(form, limit, atol=1e-11)
    assert last["one_minus_p_k_float32"] == 0 < last["one_minus_p_k"]
    for row in found["rows"]:
        assert row["forms"]["cross_entropy"][0] == pytest.approx(-row["one_minus_p_k"], rel=1e-14, abs=0)


def test_training_temperature_first_enlarges_the_gradient_and_then_the_prediction_holds():
    """For nine equal rivals ratio / prediction is (1 + 9 e^-m) / (1 + 9 e^-Tm) exactly."""
    rows = measured.training_temperature()["rows"]
    expected = [(1 + 9 * math.exp(-row["margin"])) / (1 + 9 * math.exp(-20 * row["margin"])) for row in rows]
    assert [row["ratio"] / row["predicted"] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == pytest.approx(1, rel=1e-7)
    ratios = [row["ratio"] for row in rows]
    assert ratios[0] > 1 and ratios == sorted(ratios, reverse=True) and ratios[-1] < 1e-100
    assert {row["one_over_T"] for row in rows} == {0.05}


def test_chain_rule_equals_the_engine():
    network, images = small_network(), noise_images(3)
    rows = measured.chain_rule(network, images, predict(network, images).argmax(axis=1))
    assert [row["T"] for row in rows] == TEMPERATURES
    for row in rows:
        assert max(row["off_scaled"], row["off_plain"]) < 1e-12
        product = row["one_minus_p_k"] * row["direction"] / row["T"]
        assert row["largest_entry"] == pytest.approx(product, rel=1e-12, abs=0) and product > 1e-4
    assert abs(rows[4]["direction"] / rows[0]["direction"] - 1) > 0.01  # at the pixels the direction changes too


@pytest.mark.parametrize("T", TEMPERATURES)
def test_shared_out_is_the_gradient_without_its_saturation(T):
    """With J = 1: -1 at k, positive elsewhere, of sum 0, no matter what x_k is, and more even at a higher T."""
    x, k = np.array([Decimal(v) for v in np.random.default_rng(0).normal(0, 3, 10)]), 3
    one, tiny = np.array([[Decimal(int(i == j)) for j in range(10)] for i in range(10)]), Decimal("1e-24")
    v = measured.shared_out(one, x, k, T)
    expected = (proof1.softmax_with_temperature(x, T) - one[k]) / proof1.saturation(x, k, T)
    others = np.arange(10) != k
    assert max(abs(v - expected)) < tiny and v[k] == -1
    assert abs(v.sum()) < tiny and min(v[others]) > 0
    higher = measured.shared_out(one, x, k, 2 * T)[others]
    assert max(higher) < max(v[others]) and min(higher) > min(v[others])
    assert max(abs(measured.shared_out(one, x + 7 * one[k], k, T) - v)) < tiny


def test_equation_1_holds_for_small_steps_between_kinks_and_fails_for_large_ones():
    case = small_network(), noise_images(2), np.array([1, 5])
    found, moves = measured.equation_1(*case, np.random.default_rng(6))
    assert (found["images"], found["moves"]) == (2, 2 * 2 * 64)
    smallest, whole = found["steps"][0], found["steps"][-1]
    assert smallest["share_close"] > 0.98 and smallest["off"] < 1e-3 and smallest["rank"] > 0.99
    assert whole["share_close"] < 0.8 and whole["off"] > 0.02 and whole["switches"] > 100 * smallest["switches"]
    for m in moves:
        # ten times the step, a hundred times the curvature
        _, shorter, longer, _, _ = m["linear"] - m["predicted"]
        seen = m["predicted"][1] != 0  # a pixel that wins no pool has no gradient
        assert seen.mean() > 0.9
        assert np.median(longer[seen] / shorter[seen]) == pytest.approx(100, rel=0.05)


def test_equation_1_picks_pixels_with_room_by_gradient_times_step():
    image = noise_images(1)
    image[0, 0, :4] = 1.0
    found, (m,) = measured.equation_1(small_network(), image, np.array([1]), np.random.default_rng(0), picked=10)
    best = set(np.argsort(-m["actual"][-1, 0])[:10])
    for name, scores in ("gradient", m["gradient"]), ("predicted", m["predicted"][-1, 0]):
        picked = np.argsort(-scores)[:10]
        no_room = (m["value"][picked] > 0.9).sum()
        assert found["picks"][name] == {"no_room": no_room, "among_best": len(best & set(picked))}
        assert (no_room == 0) == (name == "predicted")


def test_step_row_fails_for_any_step_where_pools_tie():
    """A flat image: raising a pixel switches pools at once, lowering it does not move their maximum at all."""
    flat = np.full((1, 8, 8), 0.5)
    noisy = flat + np.random.default_rng(7).uniform(0, 0.01, flat.shape)
    share = []
    for image in (flat, noisy):
        moves = [measured.one_pixel_moves(small_network(), image, 1, (1e-7,))]
        share.append(measured.step_row(moves, 0)["share_close"])
    assert share[0] < 0.6 and share[1] > 0.98


def test_room_row_has_no_room_at_the_maximum():
    image = noise_images(1)[0]
    image[0, :4] = 1.0
    moves = measured.one_pixel_moves(small_network(), image, 1)
    assert np.count_nonzero(moves["gradient"][:32]) > 16
    for name in ("step", "predicted", "linear", "actual"):
        assert not moves[name][:, 0, :32].any()
        assert moves[name][-1, 1, :32].any() and moves[name][-1, 0, 32:].any()
    room = measured.room_row([moves], 0.9, 1.0)
    assert room["pixels"] >= 32 and room["gradient"] > room["actual"]
    assert measured.room_row([moves], -1.0, -0.5)["gradient"] is None


def test_correctly_classified_passes_over_the_others_and_stops_at_the_count(monkeypatch):
    monkeypatch.setattr(measured, "CHUNK", 2)
    network, images = small_network(), noise_images(5)
    labels = predict(network, images).argmax(axis=1)
    labels[1] = (labels[1] + 1) % 10
    assert measured.correctly_classified(network, images, labels, 3) == [0, 2, 3]
    assert measured.correctly_classified(network, images, labels, 9) == [0, 2, 3, 4]
    assert measured.correctly_classified(network, images[:0], labels[:0], 1) == []
