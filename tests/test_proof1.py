"""Each statement of minicnn/proof1.py, held against finite differences in decimals of 60 digits; the experiment."""

import decimal
import json
import math
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import common
from experiments import proof1 as experiment
from minicnn import networks, proof1
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential

TEMPERATURES = [1, 2, 5, 10, 20, 50, 100]
DERIVATIVES_OF_P_K = [proof1.derivative_4_corrected, proof1.derivative_5_corrected]


@pytest.fixture(autouse=True)
def sixty_digits():
    with decimal.localcontext() as context:
        context.prec = 60
        yield


def decimals(values):
    return np.array([Decimal(float(value)) for value in values])


def logits(T, seed=0, n=10):
    """Seeded logits of spread 3 T, so that p is neither flat nor certain at any temperature."""
    return decimals(np.random.default_rng(seed).normal(0, 3 * T, n))


def difference_of(function, x, k, T):
    return proof1.central_difference(lambda moved: function(moved, k, T), x, Decimal("1e-18"))


def relative_error(value, truth):
    assert all(t != 0 for t in truth)
    return max(abs((v - t) / t) for v, t in zip(value, truth, strict=True))


def one_hot(n, k):
    return np.array([Decimal(int(i == k)) for i in range(n)])


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("k", [0, 4, 9])
@pytest.mark.parametrize("derivative", DERIVATIVES_OF_P_K)
def test_corrected_4_and_5_are_the_derivative_of_p_k(derivative, k, T):
    x = logits(T, seed=k)
    truth = difference_of(proof1.loss_printed, x, k, T)
    assert relative_error(derivative(x, k, T), truth) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("k", [0, 4, 9])
def test_cross_entropy_gradient_is_the_derivative_of_the_corrected_loss(k, T):
    x = logits(T, seed=k)
    truth = difference_of(proof1.loss_corrected, x, k, T)
    assert relative_error(proof1.cross_entropy_gradient(x, k, T), truth) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_printed_4_is_off_by_exactly_twice_the_cross_term(T):
    x, k = logits(T), 3
    p = proof1.softmax_with_temperature(x, T)
    off = proof1.derivative_4_printed(x, k, T) - difference_of(proof1.loss_printed, x, k, T)
    assert relative_error(off, 2 * p[k] * p / T) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_printed_5_is_off_by_p_k_times_p_k_plus_p_i(T):
    x, k = logits(T), 3
    p = proof1.softmax_with_temperature(x, T)
    off = proof1.derivative_5_printed(x, k, T) - difference_of(proof1.loss_printed, x, k, T)
    assert relative_error(off, p[k] * (p[k] + p) / T) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_short_forms_in_p(T):
    x, k = logits(T), 3
    p, d = proof1.softmax_with_temperature(x, T), one_hot(10, 3)
    tight = Decimal("1e-50")
    assert relative_error(proof1.derivative_4_printed(x, k, T), p[k] * (d + p) / T) < tight
    assert relative_error(proof1.derivative_5_printed(x, k, T), p[k] * (d + p[k]) / T) < tight
    for derivative in DERIVATIVES_OF_P_K:
        assert relative_error(derivative(x, k, T), p[k] * (d - p) / T) < tight


def test_printed_5_does_not_follow_from_printed_4():
    x, k = logits(2), 3
    four, five = proof1.derivative_4_printed(x, k, 2), proof1.derivative_5_printed(x, k, 2)
    p = proof1.softmax_with_temperature(x, 2)
    assert abs(four[k] - five[k]) < Decimal("1e-50")
    others = np.arange(10) != k
    assert relative_error((five - four)[others], (p[k] * (p[k] - p) / 2)[others]) < Decimal("1e-45")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_f_and_S_and_their_derivatives_are_what_the_legend_says(T):
    x, k = logits(T), 3
    e, p = np.exp(x / T), proof1.softmax_with_temperature(x, T)
    tight = Decimal("1e-15")
    assert relative_error([e[k] / e.sum()], [p[k]]) < Decimal("1e-50")
    df = difference_of(lambda x, k, T: (x[k] / T).exp(), x, k, T)
    assert max(abs(df - one_hot(10, k) * e[k] / T)) < tight * e[k]
    assert relative_error(e / T, difference_of(lambda x, k, T: np.exp(x / T).sum(), x, k, T)) < tight


@pytest.mark.parametrize("T", TEMPERATURES)
def test_how_far_off_the_printed_forms_are_depends_on_p_alone(T):
    """Over the largest true entry it is 2 max(p) / (1 - p_k) for (4), which is 2 p_k / (1 - p_k) for (5) at x_k."""
    x = logits(1)
    for k in (3, int(np.argmax(x))):
        p = proof1.softmax_with_temperature(x, 1)
        largest = max(abs(proof1.derivative_4_corrected(T * x, k, T)))
        truth = proof1.derivative_4_corrected(T * x, k, T)
        off_4 = abs(proof1.derivative_4_printed(T * x, k, T) - truth) / largest
        off_5 = abs(proof1.derivative_5_printed(T * x, k, T) - truth) / largest
        assert relative_error([max(off_4), off_5[k]], [2 * max(p) / (1 - p[k]), 2 * p[k] / (1 - p[k])]) < Decimal(
            "1e-45"
        )
    assert max(off_5) == off_5[k]


def test_ascending_the_printed_loss_makes_the_true_class_stronger():
    x, k = logits(1), 3
    ascended = x + Decimal("0.1") * difference_of(proof1.loss_printed, x, k, 1)
    assert proof1.loss_printed(ascended, k, 1) > proof1.loss_printed(x, k, 1)
    assert proof1.loss_corrected(ascended, k, 1) < proof1.loss_corrected(x, k, 1)


@pytest.mark.parametrize("T", TEMPERATURES)
def test_true_gradients_sum_to_zero_and_printed_ones_do_not(T):
    x, k = logits(T), 3
    p_k = proof1.loss_printed(x, k, T)
    for derivative in [*DERIVATIVES_OF_P_K, proof1.cross_entropy_gradient]:
        gradient = derivative(x, k, T)
        assert abs(gradient.sum()) < Decimal("1e-50") * max(abs(gradient))
    sum_of_4, sum_of_5 = proof1.derivative_4_printed(x, k, T).sum(), proof1.derivative_5_printed(x, k, T).sum()
    assert relative_error([sum_of_4, sum_of_5], [2 * p_k / T, (p_k + 10 * p_k**2) / T]) < Decimal("1e-50")
    stated = [proof1.sum_of_4_printed(x, k, T), proof1.sum_of_5_printed(x, k, T)]
    assert relative_error(stated, [sum_of_4, sum_of_5]) < Decimal("1e-50")


def test_sum_of_5_printed_counts_the_classes_there_are():
    x = logits(2, n=4)
    stated, truth = proof1.sum_of_5_printed(x, 1, 2), proof1.derivative_5_printed(x, 1, 2).sum()
    assert relative_error([stated], [truth]) < Decimal("1e-50")


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("corrected", proof1.derivative_4_corrected),
        ("corrected", proof1.derivative_5_corrected),
        ("cross_entropy", proof1.cross_entropy_gradient),
        ("printed_4", proof1.derivative_4_printed),
        ("printed_5", proof1.derivative_5_printed),
    ],
)
def test_limits_of_certainty_are_approached_as_fast_as_p_k_approaches_1(name, form, T):
    k, at_k, elsewhere = 3, *proof1.limits_of_certainty(T)[name]
    limits = np.array([Decimal(at_k if i == k else elsewhere) for i in range(10)])
    x = logits(T)
    for lead in (30, 60, 90):
        x[k] = max(np.delete(x, k)) + lead * T
        short_of_1 = proof1.saturation(x, k, T)
        assert 0 < short_of_1 < Decimal(10) * Decimal(-lead).exp()
        # 1/50 and the like are floats, good to 2^-53 of themselves
        rounding = Decimal(2.0**-53) * abs(limits)
        assert all(abs(form(x, k, T) - limits) <= 3 * short_of_1 / T + rounding)


def test_limits_of_certainty_as_stated():
    limits = proof1.limits_of_certainty(Decimal(20))
    tenth, twentieth = Decimal("0.1"), Decimal("0.05")
    assert limits == {
        "corrected": (0, 0),
        "cross_entropy": (0, 0),
        "printed_4": (tenth, 0),
        "printed_5": (tenth, twentieth),
    }


def test_softmax_against_a_worked_example():
    p = proof1.softmax_with_temperature(np.log([1.0, 2.0, 5.0]), 1)
    np.testing.assert_allclose(p, [0.125, 0.25, 0.625], rtol=1e-15)
    p = proof1.softmax_with_temperature(np.log([1.0, 4.0, 25.0]), 2)
    np.testing.assert_allclose(p, [0.125, 0.25, 0.625], rtol=1e-15)


def test_corrected_loss_is_minus_log_p_k():
    x = logits(5)
    for k in range(10):
        loss = proof1.loss_corrected(x, k, 5)
        assert relative_error([loss], [-proof1.loss_printed(x, k, 5).ln()]) < Decimal("1e-50")


def test_corrected_loss_keeps_its_digits_when_p_k_rounds_to_1():
    x = np.array([50.0, 0.0, -1.0])
    assert proof1.loss_printed(x, 0, 1) == 1.0
    exact = float(proof1.loss_corrected(decimals(x), 0, 1))
    assert 0 < exact < 1e-20
    assert proof1.loss_corrected(x, 0, 1) == pytest.approx(exact, rel=1e-14, abs=0)
    assert proof1.loss_corrected(x, 1, 1) == pytest.approx(50.0, rel=1e-14, abs=0)


@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize(
    "function",
    [
        proof1.loss_printed,
        proof1.loss_corrected,
        proof1.derivative_4_printed,
        proof1.derivative_4_corrected,
        proof1.derivative_5_printed,
        proof1.derivative_5_corrected,
        proof1.cross_entropy_gradient,
        proof1.saturation,
    ],
)
def test_float64_agrees_with_decimals_and_a_common_shift_changes_nothing(function, T):
    x = np.random.default_rng(1).normal(0, 3 * T, 10).round(3)
    exact = np.array(function(decimals(x), 2, T), dtype=np.float64)
    np.testing.assert_allclose(function(x, 2, T), exact, rtol=1e-13)
    # multiples of 2^-10 survive the shift unrounded, so nothing but the formula is tested
    x = np.round(x * 1024) / 1024
    np.testing.assert_array_equal(function(x + 4096.0, 2, T), function(x, 2, T))


def test_large_logits_do_not_overflow():
    x = np.array([1e4, 0.0, -1e4])
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(proof1.derivative_5_printed(x, 0, 1), [2.0, 1.0, 1.0])
        np.testing.assert_array_equal(proof1.cross_entropy_gradient(x, 1, 1), [1.0, -1.0, 0.0])
        assert proof1.loss_corrected(x, 2, 1) == 2e4


def test_temperature_divides_the_gradient_when_p_is_held_fixed():
    x = logits(1)
    at_1, at_20 = proof1.cross_entropy_gradient(x, 3, 1), proof1.cross_entropy_gradient(20 * x, 3, 20)
    assert relative_error(20 * at_20, at_1) < Decimal("1e-50")


def test_saturation_survives_where_one_minus_p_k_does_not():
    x = np.array([100.0, 0.0, 0.0])
    assert 1 - proof1.loss_printed(x, 0, 1) == 0
    assert proof1.saturation(x, 0, 1) == pytest.approx(2 * math.exp(-100), rel=1e-14, abs=0)


def test_gradient_keeps_its_entry_at_the_target_when_p_k_rounds_to_1():
    x = np.array([100.0, 0.0, 0.0])
    exact = proof1.cross_entropy_gradient(decimals(x), 0, 1)
    assert relative_error([sum(abs(exact))], [2 * proof1.saturation(decimals(x), 0, 1)]) < Decimal("1e-50")
    np.testing.assert_allclose(proof1.cross_entropy_gradient(x, 0, 1), exact.astype(np.float64), rtol=1e-14)


@pytest.mark.parametrize("T", [2, 5, 20, 100])
def test_ratio_follows_from_the_chain_rule(T):
    """With logits z = T u, d/du of the loss at temperature 1 against the same for logits u, in the 1-norm."""
    u, k = logits(1), 3
    u[k] = max(np.delete(u, k)) + Decimal("1.5")

    def size(logits_of_u):
        return sum(abs(proof1.central_difference(lambda v: proof1.loss_corrected(logits_of_u(v), k, 1), u, step)))

    with decimal.localcontext() as context:
        context.prec = 200
        step = Decimal("1e-40")
        measured = size(lambda v: v * T) / size(lambda v: v)
        assert relative_error([proof1.gradient_ratio(u, k, T)], [measured]) < Decimal("1e-15")


@pytest.mark.parametrize("T", [2, 5, 20, 100])
def test_ratio_of_a_single_rival_tends_to_the_prediction(T):
    """For two classes the quotient is (1 + e^-m) / (1 + e^-Tm) exactly: 1 in the limit, and not before."""
    for m in map(Decimal, ("0.5", 1, 5, 20, 80)):
        u = np.array([m / 3, m / 3 - m])
        assert abs(proof1.margin(u, 0) - m) < Decimal("1e-55")
        quotient = proof1.gradient_ratio(u, 0, T) / proof1.gradient_ratio_predicted(m, T)
        expected = (1 + (-m).exp()) / (1 + (-T * m).exp())
        # float() would round the distance from 1 away
        assert abs((quotient - 1) / (expected - 1) - 1) < Decimal("1e-15")
    assert 0 < quotient - 1 < Decimal("1e-34")


@pytest.mark.parametrize("T", [2, 20])
@pytest.mark.parametrize(("rivals", "factor"), [([0] * 9, 1), ([0] + [9] * 8, None), ([0] + [200] * 8, 1)])
def test_ratio_of_several_rivals_is_the_prediction_up_to_the_stated_factor(rivals, factor, T):
    """Classes that share second place at every T cancel out; those a gap g behind count exp(-g) and then exp(-T g)."""
    m = Decimal(60)
    u = np.array([m] + [Decimal(-gap) for gap in rivals])
    c, c_T = (sum(Decimal(-scale * gap).exp() for gap in rivals) for scale in (1, T))
    quotient = proof1.gradient_ratio(u, 0, T) / proof1.gradient_ratio_predicted(proof1.margin(u, 0), T)
    assert abs(quotient / (c_T / c) - 1) < Decimal("1e-23")
    if factor is not None:
        assert abs(quotient - factor) < Decimal("1e-23")


def test_lower_end_of_the_stated_factor_is_reached():
    """Nine rivals a hair apart share second place in u; T large enough pulls them apart again."""
    m, T = Decimal(20), 10**4
    u = np.array([m, Decimal(0)] + [Decimal("-0.01")] * 8)
    quotient = proof1.gradient_ratio(u, 0, T) / proof1.gradient_ratio_predicted(m, T)
    assert Decimal(1) / 9 < quotient < Decimal("1.01") / 9


def test_training_at_T_shrinks_the_gradient_only_beyond_a_margin_of_ln_T_over_T_minus_1():
    T = 20
    even = Decimal(T).ln() / (T - 1)
    assert proof1.gradient_ratio_predicted(even, T) == pytest.approx(1, rel=Decimal("1e-50"), abs=0)
    assert proof1.gradient_ratio_predicted(even / 2, T) > 1 > proof1.gradient_ratio_predicted(even * 2, T)


def test_ratio_in_float64_holds_while_T_times_the_margin_is_below_700():
    T = 20
    for lead in (1, 100, 699):
        u = np.array([lead / T] + [0.0] * 9)
        assert proof1.gradient_ratio(u, 0, T) == pytest.approx(
            float(proof1.gradient_ratio(decimals(u), 0, T)), rel=1e-10, abs=0
        )
    u = np.array([750 / T] + [0.0] * 9)
    assert proof1.gradient_ratio(u, 0, T) == 0 < proof1.gradient_ratio(decimals(u), 0, T)


@pytest.mark.parametrize("T", [1, 20])
def test_chain_rule_reaches_the_pixels(T):
    """A smooth map from 6 pixels to 10 logits with a known Jacobian: logits_i = sum_j W_ij pixel_j^2."""
    rng = np.random.default_rng(2)
    weights, pixels = rng.normal(0, 3, (10, 6)), rng.uniform(0.2, 1, 6)
    W = np.array([decimals(row) for row in weights])

    def loss(moved):
        return proof1.loss_corrected(W @ moved**2, 4, T)

    truth = proof1.central_difference(loss, decimals(pixels), Decimal("1e-18"))
    gradient = proof1.input_gradient(2 * weights * pixels, weights @ pixels**2, 4, T)
    np.testing.assert_allclose(gradient, truth.astype(np.float64), rtol=1e-10)


def test_equation_1_is_exact_to_first_order_and_only_to_that():
    """The error of the prediction is step^2 / 2 times the curvature p (1 - p) / T^2, until the step is large."""
    x, k, T = logits(2), 3, 2
    gradient = proof1.cross_entropy_gradient(x, k, T)
    curvature = proof1.softmax_with_temperature(x, T) * (1 - proof1.softmax_with_temperature(x, T)) / T**2
    for i in range(10):
        for step in (Decimal("1e-12"), Decimal("-1e-12")):
            moved = x + step * one_hot(10, i)
            actual = proof1.loss_corrected(moved, k, T) - proof1.loss_corrected(x, k, T)
            error = actual - proof1.predicted_change(gradient[i], step)
            assert abs(error / (curvature[i] * step**2 / 2) - 1) < Decimal("1e-11")


def test_predicted_change_is_per_pixel():
    np.testing.assert_array_equal(proof1.predicted_change(np.array([2.0, -3.0]), np.array([0.5, 0.25])), [1.0, -0.75])


def test_central_difference_converges_with_the_square_of_the_step():
    x = decimals([1.0, 2.0])

    def cubes(v):
        return (v**3).sum()

    for step in (Decimal("1e-3"), Decimal("1e-6")):
        assert all(abs(proof1.central_difference(cubes, x, step) - 3 * x**2 - step**2) < Decimal("1e-50"))


@pytest.mark.parametrize("T", [0, -1, 0.0, math.inf, math.nan, Decimal(0), Decimal(-20)])
def test_temperature_must_be_positive_and_finite(T):
    x = logits(1) if isinstance(T, Decimal) else np.arange(3.0)
    calls = [
        lambda: proof1.softmax_with_temperature(x, T),
        lambda: proof1.loss_corrected(x, 0, T),
        lambda: proof1.derivative_5_printed(x, 0, T),
        lambda: proof1.cross_entropy_gradient(x, 0, T),
        lambda: proof1.limits_of_certainty(T),
        lambda: proof1.gradient_ratio(x, 0, T),
        lambda: proof1.gradient_ratio_predicted(1, T),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="temperature T must be positive and finite"):
            call()


@pytest.mark.parametrize("k", [-1, 3, 1.0, True, "1", None])
@pytest.mark.parametrize(
    "function",
    [
        proof1.loss_printed,
        proof1.loss_corrected,
        proof1.derivative_4_printed,
        proof1.derivative_5_corrected,
        proof1.cross_entropy_gradient,
        proof1.saturation,
        proof1.gradient_ratio,
    ],
)
def test_target_must_be_a_class(function, k):
    with pytest.raises(ValueError, match="k must be an integer from 0 to 2"):
        function(np.arange(3.0), k, 1)


@pytest.mark.parametrize("x", [np.zeros((2, 10)), np.zeros(0), 1.0, [3.0]])
def test_logits_must_be_one_vector(x):
    with pytest.raises(ValueError, match="one vector of n >= 2 logits"):
        proof1.softmax_with_temperature(x, 1)


# experiments/proof1.py


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
def equations():
    """What parts 1 to 4 find with the default seed."""
    return {
        "forms": experiment.compare_forms(np.random.default_rng(0)),
        "limit": experiment.limit_of_certainty(),
        "training_temperature": experiment.training_temperature(),
    }


@pytest.fixture(scope="module")
def pixels():
    """What parts 5 and 6 find on the small network, and the moves."""
    case = small_network(), noise_images(3), np.array([1, 5, 9])
    found = {"weights": "small.npz", "images": [0, 1, 2], "chain_rule": experiment.chain_rule(*case)}
    found["equation_1"], moves = experiment.equation_1(*case, np.random.default_rng(6))
    return found, moves


@pytest.fixture
def screen(equations, pixels, capsys):
    """The walk as printed: its parts, from 1."""
    experiment.show_equations(equations)
    experiment.show_pixels(pixels[0])
    parts = re.split(r"^(?=\d\. )", capsys.readouterr().out, flags=re.MULTILINE)
    assert [part[:2] for part in parts[1:]] == ["1.", "2.", "3.", "4.", "5.", "6."]
    return parts


def assert_defined_first(text, definitions):
    """Every symbol occurs for the first time in its definition."""
    for symbol, definition in definitions.items():
        first = re.search(rf"(?<![\w']){re.escape(symbol)}(?![\w'])", text).start()
        assert text.count(definition) == 1, symbol
        assert 0 <= first - text.index(definition) < len(definition), symbol


def test_symbols_are_defined_on_screen_before_they_are_used(screen):
    legend = {
        "n": "n      the number of classes",
        "i": "i and j are any of them",
        "j": "i and j are any of them",
        "k": "k is the target",
        "x": "x      the n logits",
        "T": "T      the temperature, T > 0",
        "p": "p      softmax(x / T)",
        "d_ik": "d_ik   1 if i = k, else 0",
        "f": "f, S   exp(x_k / T) and sum_j exp(x_j / T)",
        "S": "f, S   exp(x_k / T) and sum_j exp(x_j / T)",
        "f'": "f', S' the derivatives of f and S by x_i: f' = d_ik f / T and S' = exp(x_i / T) / T",
        "S'": "f', S' the derivatives of f and S by x_i: f' = d_ik f / T and S' = exp(x_i / T) / T",
    }
    assert_defined_first(screen[1], legend)
    part_4 = {
        "u": "u is a vector of n logits",
        "e_k": "e_k is 1 at k and 0 elsewhere",
        "v": "|v|_1 is the sum of all |v_i|",
        "m": "m = u_k - max_{j != k} u_j",
        "z": "Training at T fits softmax(z / T), so the logits come out as z = T u",
        "J_u": "J_u = du/d(pixels)",
    }
    assert_defined_first(screen[4], part_4)
    assert "e_k is 1 at k and 0 elsewhere" in screen[5] and "v = (p - e_k) / (1 - p_k)" in screen[5]
    assert "x is the image" in screen[6]


def test_printed_comes_before_corrected(screen):
    names = re.findall(r"^   ((?:loss|derivative)\w+)$", screen[1], re.MULTILINE)
    equations = ("loss", "derivative_4", "derivative_5")
    assert names == [f"{name}_{form}" for name in equations for form in ("printed", "corrected")]
    assert list(experiment.FORMS)[:4] == ["printed_4", "corrected_4", "printed_5", "corrected_5"]
    heads = [line for part in screen[2:4] for line in part.splitlines() if re.match("   (T|lead / T)  ", line)]
    assert len(heads) == 3
    for head in heads:
        for printed in ("(4) printed", "(5) printed", "printed, i = k", "printed, i != k"):
            corrected = printed.replace("printed", "corrected")
            if corrected in head:
                assert head.index(printed) < head.index(corrected)


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def test_columns_of_every_table_stay_apart(screen):
    counts = []
    for part in screen[2:]:
        for head, row in re.findall(r"^   ((?:T|lead / T|m|part|value)  .*)\n   (.*)$", part, re.MULTILINE):
            assert len(cells(head)) == len(cells(row))
            counts.append(len(cells(head)))
    assert counts == [8, 8, 7, 4, 7, 7, 5]


def test_columns_are_as_wide_as_their_widest_cell(capsys):
    heads = ("", "a head that is long", "short", "x" * 40)
    experiment._show_table(heads, [("a label that is long", 1, "a cell that is long", 2.5), ("b", -1, "c", 10)])
    lines = capsys.readouterr().out.splitlines()
    assert [cells(line) for line in lines] == [
        list(heads[1:]),
        ["a label that is long", "1", "a cell that is long", "2.5"],
        ["b", "-1", "c", "10"],
    ]
    assert len(set(map(len, lines))) == 1


def test_the_printed_forms_are_off_by_what_the_most_confident_vector_says(equations, screen):
    assert [row["T"] for row in equations["forms"]] == TEMPERATURES
    for row in equations["forms"]:
        p_k = row["largest_p_k"]
        assert p_k >= row["p_k"]
        for name in ("printed_4", "printed_5"):
            assert row["off"][name] == pytest.approx(2 * p_k / (1 - p_k), rel=1e-9) and row["off"][name] > 1
    assert f"worst of {experiment.SAMPLES} random vectors" in screen[2]


def test_differences_stand_under_the_name_of_their_form(equations, screen):
    names = {
        "(4) printed": "printed_4",
        "(4) corrected": "corrected_4",
        "(5) printed": "printed_5",
        "(5) corrected": "corrected_5",
        "d(-ln p_k)": "cross_entropy",
        "engine, p_k": "engine_probability",
        "engine, loss": "engine_loss",
    }
    table = screen[2][screen[2].index("\n   T ") :].split("\n\n")[0].splitlines()[1:]
    head, *lines = map(cells, table)
    assert head == ["T", *names]
    for line, row in zip(lines, equations["forms"], strict=True):
        assert line == [str(row["T"]), *(f"{row['off'][name]:.1e}" for name in names.values())]


def test_sums_stand_under_the_name_of_what_was_summed(equations, screen):
    head, first = re.findall(r"^   (T .*p_k \+ 10 p_k\^2.*)\n   (.*)$", screen[2], re.MULTILINE)[0]
    shown = dict(zip(cells(head), cells(first), strict=True))
    row = equations["forms"][0]
    assert "truth" not in shown
    for name, form in (("(5) corrected", "corrected_5"), ("engine, loss", "engine_loss")):
        assert shown[name] == f"{row['sums_times_T'][form]:.0e}" and abs(row["sums_times_T"][form]) < 1e-14
    for name, form in (("(4) printed", "printed_4"), ("(5) printed", "printed_5")):
        assert float(shown[name]) == pytest.approx(row["sums_times_T"][form], abs=1e-6)
    assert float(shown["2 p_k"]) == pytest.approx(2 * row["p_k"], abs=1e-6)
    assert float(shown["p_k + 10 p_k^2"]) == pytest.approx(row["p_k"] + 10 * row["p_k"] ** 2, abs=1e-6)


def test_part_3_shows_the_derivative_of_p_k_and_its_limits(equations, screen):
    assert "T times the derivative of p_k by x_i" in screen[3] and "limit of that derivative, times T" in screen[3]
    head, last, limit = (cells(line) for line in re.findall("^   ((?:lead|30|limit) .*)$", screen[3], re.MULTILINE))
    names = ["printed, i = k", "printed, i != k", "corrected, i = k", "corrected, i != k"]
    assert head[3:] == names
    x = np.array([30.0] + [0.0] * 9)
    forms = (proof1.derivative_5_printed, proof1.derivative_5_corrected)
    truth = [v for form in forms for v in form(decimals(x), 0, 1)[:2].astype(float)]
    np.testing.assert_allclose(list(map(float, last[3:])), truth, rtol=0.01)
    assert limit == ["limit", "0", "0", "2", "1", "0", "0"]
    for row in equations["limit"]["rows"]:
        at_k, _ = row["forms"]["cross_entropy"]
        assert at_k == pytest.approx(-row["one_minus_p_k"], rel=1e-14, abs=0)


def test_training_at_T_first_enlarges_the_gradient_and_then_the_prediction_holds():
    """For nine equal rivals ratio / prediction is (1 + 9 e^-m) / (1 + 9 e^-Tm) exactly."""
    found = experiment.training_temperature()
    assert found["T"] == 20
    for row in found["rows"]:
        m = row["margin"]
        expected = (1 + 9 * math.exp(-m)) / (1 + 9 * math.exp(-20 * m))
        assert row["ratio"] / row["predicted"] == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(1, rel=1e-7)
    ratios = [row["ratio"] for row in found["rows"]]
    assert ratios[0] > 1 and ratios == sorted(ratios, reverse=True) and ratios[-1] < 1e-100
    assert {row["one_over_T"] for row in found["rows"]} == {0.05}


def test_the_walk_finds_the_corrected_forms_right_and_the_printed_ones_wrong():
    rows = experiment.compare_forms(np.random.default_rng(5), samples=4)
    assert [row["T"] for row in rows] == TEMPERATURES
    for row in rows:
        right, wrong = row["off"].copy(), {name: row["off"][name] for name in ("printed_4", "printed_5")}
        for name in wrong:
            del right[name]
        assert len(right) == 5 and max(right.values()) < 1e-12
        assert min(wrong.values()) > 0.5
        for name in right:
            assert abs(row["sums_times_T"][name]) < 1e-14
        for name in wrong:
            assert row["sums_times_T"][name] == pytest.approx(row["sums_stated_times_T"][name], rel=1e-13, abs=0)


def test_limit_in_the_walk_ends_where_it_should_and_float32_stops_before():
    found = experiment.limit_of_certainty()
    last = found["rows"][-1]
    assert len(last["forms"]) == 5
    for name, form in last["forms"].items():
        limit = found["limits"]["corrected" if name.startswith("corrected") else name]
        np.testing.assert_allclose(form, limit, atol=1e-11)
    assert last["one_minus_p_k_float32"] == 0 < last["one_minus_p_k"]


def test_chain_rule_equals_the_engine_on_a_network():
    rows = experiment.chain_rule(small_network(), noise_images(3), np.array([1, 5, 9]))
    assert [row["T"] for row in rows] == TEMPERATURES
    assert max(row["off_scaled"] for row in rows) < 1e-12
    assert max(row["off_plain"] for row in rows) < 1e-12
    assert min(row["largest_entry"] for row in rows) > 1e-4


@pytest.mark.parametrize("T", TEMPERATURES)
def test_direction_is_the_gradient_without_its_saturation(T):
    """The vector v: -1 at k, positive elsewhere, of sum 0, no matter what x_k is, and more even at a higher T."""
    x, k = logits(1), 3
    identity = np.array([one_hot(10, i) for i in range(10)])
    v = experiment.shared_out(identity, x, k, T)
    expected = (proof1.softmax_with_temperature(x, T) - one_hot(10, k)) / proof1.saturation(x, k, T)
    others = np.arange(10) != k
    assert relative_error(v[others], expected[others]) < Decimal("1e-50") and v[k] == -1
    assert abs(v[others].sum() - 1) < Decimal("1e-50") and min(v[others]) > 0
    hotter = experiment.shared_out(identity, x, k, 2 * T)[others]
    assert max(hotter) < max(v[others]) and min(hotter) > min(v[others])
    moved = x + 7 * one_hot(10, k)
    assert relative_error(experiment.shared_out(identity, moved, k, T), v) < Decimal("1e-50")


def test_largest_entry_is_the_product_of_its_three_factors(pixels):
    for row in pixels[0]["chain_rule"]:
        product = row["one_minus_p_k"] * row["direction"] / row["T"]
        assert row["largest_entry"] == pytest.approx(product, rel=1e-12, abs=0)


def test_the_factors_on_screen_multiply_to_the_growth_on_screen(pixels, screen):
    T, growth = re.search(r"from T = 1 to T = (\d+) the largest entry is\s+multiplied by (\S+) = ", screen[5]).groups()
    factors = re.search(r" = (\S+) \(1/T\) \* (\S+) \(saturation\) \* (\S+) \(direction\)", screen[5]).groups()
    T, growth, *factors = map(float, (T, growth, *factors))
    first, row = (next(row for row in pixels[0]["chain_rule"] if row["T"] == t) for t in (1, T))
    assert T == 20 and factors[0] == 0.05
    assert growth == pytest.approx(row["largest_entry"] / first["largest_entry"], rel=1e-3)
    assert growth == pytest.approx(math.prod(factors), rel=2e-3)
    assert abs(factors[2] - 1) > 0.01  # without it they would not


def test_equation_1_holds_for_small_steps_between_kinks_and_fails_for_large_ones():
    found, moves = experiment.equation_1(small_network(), noise_images(2), np.array([1, 5]), np.random.default_rng(6))
    assert found["moves"] == 2 * 2 * 64
    smallest, whole = found["steps"][0], found["steps"][-1]
    assert smallest["share_close"] > 0.98 and smallest["off"] < 1e-3 and smallest["rank"] > 0.99
    assert whole["share_close"] < 0.8 and whole["off"] > 0.02 and whole["switches"] > 100 * smallest["switches"]
    for m in moves:
        # ten times the step, a hundred times the curvature
        _, shorter, longer, _, _ = m["linear"] - m["predicted"]
        seen = m["predicted"][1] != 0  # a pixel that wins no pool has no gradient
        assert seen.mean() > 0.9
        assert np.median(longer[seen] / shorter[seen]) == pytest.approx(100, rel=0.05)


def test_equation_1_fails_for_any_step_where_pools_tie():
    """A flat image: raising a pixel switches pools at once, lowering it does not move their maximum at all."""
    flat = np.full((1, 8, 8), 0.5)
    noisy = flat + np.random.default_rng(7).uniform(0, 0.01, flat.shape)
    share = {}
    for name, image in (("flat", flat), ("noisy", noisy)):
        moves = [experiment.one_pixel_moves(small_network(), image, 1, (1e-7,))]
        share[name] = experiment._step_row(moves, 0)["share_close"]
    assert share["flat"] < 0.6 and share["noisy"] > 0.98


def test_pixels_at_the_maximum_have_no_room():
    image = noise_images(1)[0]
    image[0, :4] = 1.0
    moves = experiment.one_pixel_moves(small_network(), image, 1)
    assert np.count_nonzero(moves["gradient"][:32]) > 16
    for name in ("step", "predicted", "linear", "actual"):
        assert not moves[name][:, 0, :32].any()
        assert moves[name][-1, 1, :32].any() and moves[name][-1, 0, 32:].any()
    room = experiment._room_row([moves], 0.9, 1.0)
    assert room["pixels"] >= 32 and room["gradient"] > room["actual"]


def test_spearman_ranks_share_their_places():
    np.testing.assert_array_equal(experiment._ranks(np.array([3.0, 1.0, 3.0, 7.0])), [1.5, 0.0, 1.5, 3.0])
    assert experiment._spearman(np.array([1.0, 2.0, 3.0]), np.array([-5.0, -6.0, -100.0])) == pytest.approx(-1)


def test_picture_says_what_it_shows(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(common, "save_figure", lambda path, figure: kept.append(figure))
    experiment.draw_slip(tmp_path / "proof1.png")
    (figure,) = kept
    left, right = figure.axes
    (near_0,) = right.child_axes
    assert left.get_ylim() == right.get_ylim()
    assert "nine equal rivals" in figure.get_suptitle()
    assert [t.get_text() for t in left.get_legend().get_texts()] == [
        "(4) as printed",
        "(5) as printed",
        "corrected: the truth",
    ]
    (note,) = left.texts
    assert "equal here: $p_k (1 + p_k)$" in note.get_text()
    p_k = left.lines[0].get_xdata()
    at_k, elsewhere, magnified = ([line.get_ydata() for line in ax.lines[:3]] for ax in (left, right, near_0))
    np.testing.assert_allclose(at_k[0], p_k * (1 + p_k), rtol=1e-12)
    np.testing.assert_allclose(at_k[1], at_k[0], rtol=1e-12)
    np.testing.assert_allclose(at_k[2], p_k * (1 - p_k), rtol=1e-12)
    np.testing.assert_allclose(elsewhere[1], p_k**2, rtol=1e-12)
    np.testing.assert_allclose(elsewhere[2], -p_k * (1 - p_k) / 9, rtol=1e-10)
    np.testing.assert_allclose(elsewhere[0], -elsewhere[2], rtol=1e-12)
    np.testing.assert_array_equal(magnified, elsewhere)
    # of two curves in one place the lower is broader, the upper dashed
    below, above = left.lines[:2]
    assert below.get_linewidth() > 2 * above.get_linewidth() and above.is_dashed() and not below.is_dashed()


def walk(out, *arguments):
    """python -m experiments.proof1 in a process of its own; returns it, and the JSON that it wrote."""
    command = [sys.executable, "-m", "experiments.proof1", "--out", out, *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    return done, json.loads((out / "proof1.json").read_text())


def assert_first_four_parts(found, stdout, out):
    assert {"forms", "limit", "training_temperature", "seed", "command"} <= found.keys()
    assert not {"chain_rule", "equation_1", "weights"} & found.keys()
    assert f"Written: {out / 'proof1.png'}, {out / 'proof1.json'}\n" in stdout
    assert (out / "proof1.png").stat().st_size > 10_000
    assert "4. What training" in stdout and "5. From the logits" not in stdout


def test_where_no_network_is_and_none_was_asked_for_the_first_four_parts_are_the_result(tmp_path):
    done, found = walk(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_first_four_parts(found, done.stdout, tmp_path)
    missing = found["parts_5_and_6_missing"]
    assert missing.startswith("no trained network 'standard'") and "python -m experiments.train" in missing
    closing = done.stdout[done.stdout.index("Written: ") :]
    assert "Parts 5 and 6 need a trained network" in closing and missing in closing
    assert closing.endswith("run at once:\n   python -m experiments.proof1 --dataset mnist\n")


@pytest.mark.parametrize("option", ["--weights", "--network"])
def test_a_network_that_was_asked_for_and_is_not_there_is_an_error_after_the_first_four_parts(option, tmp_path):
    value = {"--weights": str(tmp_path / "none.npz"), "--network": "distilled"}[option]
    done, found = walk(tmp_path, option, value)
    assert done.returncode == 2
    assert_first_four_parts(found, done.stdout, tmp_path)
    assert done.stderr == f"error: {found['parts_5_and_6_missing']}\n" and value in done.stderr
    assert "--dataset mnist" not in done.stdout


@pytest.fixture
def options(tmp_path, equations, monkeypatch):
    """The defaults of the command line; parts 1 to 4 and the committed networks are replaced."""
    monkeypatch.setattr(experiment, "compare_forms", lambda rng, device: equations["forms"])
    monkeypatch.setattr(common, "RESULTS", tmp_path / "committed")
    names = {"dataset": "digits", "device": "cpu", "seed": 0, "out": tmp_path, "json": tmp_path / "proof1.json"}
    return SimpleNamespace(**names, network=None, weights=None, images=2, ties="all")


def test_networks_of_the_project_are_pointed_to_only_where_they_are(options, capsys):
    experiment.main(options)
    assert "python -m experiments.proof1 --dataset mnist" not in capsys.readouterr().out
    (common.RESULTS / "mnist").mkdir(parents=True)
    (common.RESULTS / "mnist" / "standard.npz").touch()
    options.network = None
    experiment.main(options)
    assert "python -m experiments.proof1 --dataset mnist" in capsys.readouterr().out


def test_a_damaged_network_is_an_error_even_if_none_was_asked_for(options, capsys):
    (options.out / "standard.npz").write_bytes(b"no weights")
    with pytest.raises(networks.WeightsError) as error:
        experiment.main(options)
    found = json.loads(options.json.read_text())
    assert_first_four_parts(found, capsys.readouterr().out, options.out)
    assert found["parts_5_and_6_missing"] == str(error.value)


def test_with_a_network_all_parts_are_written_and_named(options, pixels, monkeypatch, capsys):
    (options.out / "standard.npz").touch()
    monkeypatch.setattr(experiment, "with_network", lambda path, options, rng: pixels)
    experiment.main(options)
    found = json.loads(options.json.read_text())
    assert {"forms", "limit", "training_temperature", "weights", "chain_rule", "equation_1"} <= found.keys()
    assert "parts_5_and_6_missing" not in found
    files = [options.out / name for name in ("proof1.png", "equation1.png", "proof1.json")]
    assert capsys.readouterr().out.endswith(f"Written: {', '.join(map(str, files))}\n")
    assert all(path.stat().st_size > 5000 for path in files)
