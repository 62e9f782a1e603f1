"""Each statement of minicnn/paper/proof1.py, held against finite differences in decimals of 60 digits."""

import decimal
import math
from decimal import Decimal

import numpy as np
import pytest

from minicnn.paper import proof1

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
def test_derivative_corrected_is_that_of_p_k(derivative, k, T):
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
def test_derivative_4_printed_is_off_by_exactly_twice_the_cross_term(T):
    x, k = logits(T), 3
    p = proof1.softmax_with_temperature(x, T)
    off = proof1.derivative_4_printed(x, k, T) - difference_of(proof1.loss_printed, x, k, T)
    assert relative_error(off, 2 * p[k] * p / T) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_derivative_5_printed_is_off_by_p_k_times_p_k_plus_p_i(T):
    x, k = logits(T), 3
    p = proof1.softmax_with_temperature(x, T)
    off = proof1.derivative_5_printed(x, k, T) - difference_of(proof1.loss_printed, x, k, T)
    assert relative_error(off, p[k] * (p[k] + p) / T) < Decimal("1e-15")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_derivative_forms_in_p(T):
    x, k = logits(T), 3
    p, d = proof1.softmax_with_temperature(x, T), one_hot(10, 3)
    tight = Decimal("1e-50")
    assert relative_error(proof1.derivative_4_printed(x, k, T), p[k] * (d + p) / T) < tight
    assert relative_error(proof1.derivative_5_printed(x, k, T), p[k] * (d + p[k]) / T) < tight
    for derivative in DERIVATIVES_OF_P_K:
        assert relative_error(derivative(x, k, T), p[k] * (d - p) / T) < tight


def test_derivative_5_printed_does_not_follow_from_4_printed():
    x, k = logits(2), 3
    four, five = proof1.derivative_4_printed(x, k, 2), proof1.derivative_5_printed(x, k, 2)
    p = proof1.softmax_with_temperature(x, 2)
    assert abs(four[k] - five[k]) < Decimal("1e-50")
    others = np.arange(10) != k
    assert relative_error((five - four)[others], (p[k] * (p[k] - p) / 2)[others]) < Decimal("1e-45")


@pytest.mark.parametrize("T", TEMPERATURES)
def test_derivative_of_f_and_of_S(T):
    x, k = logits(T), 3
    e, p = np.exp(x / T), proof1.softmax_with_temperature(x, T)
    tight = Decimal("1e-15")
    assert relative_error([e[k] / e.sum()], [p[k]]) < Decimal("1e-50")
    df = difference_of(lambda x, k, T: (x[k] / T).exp(), x, k, T)
    assert max(abs(df - one_hot(10, k) * e[k] / T)) < tight * e[k]
    assert relative_error(e / T, difference_of(lambda x, k, T: np.exp(x / T).sum(), x, k, T)) < tight


@pytest.mark.parametrize("T", TEMPERATURES)
def test_derivative_printed_is_off_by_what_depends_on_p_alone(T):
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


def test_loss_printed_ascended_makes_the_true_class_stronger():
    x, k = logits(1), 3
    ascended = x + Decimal("0.1") * difference_of(proof1.loss_printed, x, k, 1)
    assert proof1.loss_printed(ascended, k, 1) > proof1.loss_printed(x, k, 1)
    assert proof1.loss_corrected(ascended, k, 1) < proof1.loss_corrected(x, k, 1)


@pytest.mark.parametrize("T", TEMPERATURES)
def test_sum_of_true_gradients_is_zero_and_of_printed_ones_is_not(T):
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


def test_softmax_with_temperature_against_a_worked_example():
    p = proof1.softmax_with_temperature(np.log([1.0, 2.0, 5.0]), 1)
    np.testing.assert_allclose(p, [0.125, 0.25, 0.625], rtol=1e-15)
    p = proof1.softmax_with_temperature(np.log([1.0, 4.0, 25.0]), 2)
    np.testing.assert_allclose(p, [0.125, 0.25, 0.625], rtol=1e-15)


def test_loss_corrected_is_minus_log_p_k():
    x = logits(5)
    for k in range(10):
        loss = proof1.loss_corrected(x, k, 5)
        assert relative_error([loss], [-proof1.loss_printed(x, k, 5).ln()]) < Decimal("1e-50")


def test_loss_corrected_keeps_its_digits_when_p_k_rounds_to_1():
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
def test_every_form_in_float64_agrees_with_decimals_and_ignores_a_common_shift(function, T):
    x = np.random.default_rng(1).normal(0, 3 * T, 10).round(3)
    exact = np.array(function(decimals(x), 2, T), dtype=np.float64)
    np.testing.assert_allclose(function(x, 2, T), exact, rtol=1e-13)
    # multiples of 2^-10 survive the shift unrounded, so nothing but the formula is tested
    x = np.round(x * 1024) / 1024
    np.testing.assert_array_equal(function(x + 4096.0, 2, T), function(x, 2, T))


def test_every_form_bears_large_logits():
    x = np.array([1e4, 0.0, -1e4])
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(proof1.derivative_5_printed(x, 0, 1), [2.0, 1.0, 1.0])
        np.testing.assert_array_equal(proof1.cross_entropy_gradient(x, 1, 1), [1.0, -1.0, 0.0])
        assert proof1.loss_corrected(x, 2, 1) == 2e4


def test_cross_entropy_gradient_is_divided_by_T_when_p_is_held_fixed():
    x = logits(1)
    at_1, at_20 = proof1.cross_entropy_gradient(x, 3, 1), proof1.cross_entropy_gradient(20 * x, 3, 20)
    assert relative_error(20 * at_20, at_1) < Decimal("1e-50")


def test_saturation_survives_where_one_minus_p_k_does_not():
    x = np.array([100.0, 0.0, 0.0])
    assert 1 - proof1.loss_printed(x, 0, 1) == 0
    assert proof1.saturation(x, 0, 1) == pytest.approx(2 * math.exp(-100), rel=1e-14, abs=0)


def test_cross_entropy_gradient_keeps_its_entry_at_the_target_when_p_k_rounds_to_1():
    x = np.array([100.0, 0.0, 0.0])
    exact = proof1.cross_entropy_gradient(decimals(x), 0, 1)
    assert relative_error([sum(abs(exact))], [2 * proof1.saturation(decimals(x), 0, 1)]) < Decimal("1e-50")
    np.testing.assert_allclose(proof1.cross_entropy_gradient(x, 0, 1), exact.astype(np.float64), rtol=1e-14)


@pytest.mark.parametrize("T", [2, 5, 20, 100])
def test_gradient_ratio_follows_from_the_chain_rule(T):
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


@pytest.mark.parametrize("T", [1, Decimal("1.5"), 2, 20, 100])
@pytest.mark.parametrize("margin", ["-3", "0.5", "2", "80"])
@pytest.mark.parametrize("gaps", [[0], [0] * 9, [0] + [9] * 8, [0, "0.1", 3], [0] + [200] * 8], ids=str)
def test_gradient_ratio_is_the_prediction_times_the_stated_factor(gaps, margin, T):
    """Exactly, for any margin; the factor tends to c_T / c, and is 1 for a single rival only in the limit."""
    m, gaps = Decimal(margin), list(map(Decimal, gaps))
    u = np.array([m] + [-gap for gap in gaps]) + Decimal("0.3")
    c, c_T = (sum((-scale * gap).exp() for gap in gaps) for scale in (1, T))
    quotient = proof1.gradient_ratio(u, 0, T) / proof1.gradient_ratio_predicted(proof1.margin(u, 0), T)
    factor = c_T / c * (1 + c * (-m).exp()) / (1 + c_T * (-T * m).exp())
    assert relative_error([quotient], [factor]) < Decimal("1e-50")
    assert 1 / Decimal(len(gaps)) <= c_T / c <= 1
    if m == 80:
        assert relative_error([quotient], [c_T / c]) < Decimal("1e-33")


def test_gradient_ratio_reaches_the_lower_end_of_the_factor():
    """Nine rivals a hair apart share second place in u; T large enough pulls them apart again."""
    m, T = Decimal(20), 10**4
    u = np.array([m, Decimal(0)] + [Decimal("-0.01")] * 8)
    quotient = proof1.gradient_ratio(u, 0, T) / proof1.gradient_ratio_predicted(m, T)
    assert Decimal(1) / 9 < quotient < Decimal("1.01") / 9


def test_gradient_ratio_predicted_is_below_1_only_beyond_a_margin_of_ln_T_over_T_minus_1():
    T = 20
    even = Decimal(T).ln() / (T - 1)
    assert proof1.gradient_ratio_predicted(even, T) == pytest.approx(1, rel=Decimal("1e-50"), abs=0)
    assert proof1.gradient_ratio_predicted(even / 2, T) > 1 > proof1.gradient_ratio_predicted(even * 2, T)


def test_gradient_ratio_in_float64_holds_while_T_times_the_margin_is_below_700():
    T = 20
    for lead in (1, 100, 699):
        u = np.array([lead / T] + [0.0] * 9)
        assert proof1.gradient_ratio(u, 0, T) == pytest.approx(
            float(proof1.gradient_ratio(decimals(u), 0, T)), rel=1e-10, abs=0
        )
    u = np.array([750 / T] + [0.0] * 9)
    assert proof1.gradient_ratio(u, 0, T) == 0 < proof1.gradient_ratio(decimals(u), 0, T)


@pytest.mark.parametrize("T", [1, 20])
def test_input_gradient_is_the_chain_rule(T):
    """A smooth map from 6 pixels to 10 logits with a known Jacobian: logits_i = sum_j W_ij pixel_j^2."""
    rng = np.random.default_rng(2)
    weights, pixels = rng.normal(0, 3, (10, 6)), rng.uniform(0.2, 1, 6)
    W = np.array([decimals(row) for row in weights])

    def loss(moved):
        return proof1.loss_corrected(W @ moved**2, 4, T)

    truth = proof1.central_difference(loss, decimals(pixels), Decimal("1e-18"))
    gradient = proof1.input_gradient(2 * weights * pixels, weights @ pixels**2, 4, T)
    np.testing.assert_allclose(gradient, truth.astype(np.float64), rtol=1e-10)


def test_predicted_change_is_exact_to_first_order_and_only_to_that():
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
def test_every_form_needs_a_positive_and_finite_temperature(T):
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
def test_every_form_needs_a_target_that_is_a_class(function, k):
    with pytest.raises(ValueError, match="k must be an integer from 0 to 2"):
        function(np.arange(3.0), k, 1)


@pytest.mark.parametrize("x", [np.zeros((2, 10)), np.zeros(0), 1.0, [3.0]])
def test_softmax_with_temperature_needs_one_vector(x):
    with pytest.raises(ValueError, match="one vector of n >= 2 logits"):
        proof1.softmax_with_temperature(x, 1)
