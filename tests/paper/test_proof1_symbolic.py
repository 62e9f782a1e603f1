"""The exact proof: what it proves, what it refutes, and that its forms are those of minicnn/paper/proof1.py."""

import decimal
from decimal import Decimal

import numpy as np
import pytest
from sympy import Rational, exp

from minicnn.paper import proof1
from minicnn.paper import proof1_symbolic as symbolic

FORMS = [
    "derivative_4_printed",
    "derivative_4_corrected",
    "derivative_5_printed",
    "derivative_5_corrected",
    "cross_entropy_gradient",
]
each_identity = pytest.mark.parametrize("statement", symbolic.IDENTITIES, ids=lambda s: s.text.strip())
each_slip = pytest.mark.parametrize("statement", symbolic.SLIPS, ids=lambda s: s.text.strip())


@each_identity
def test_identities_hold_for_any_number_of_classes_and_for_ten(statement):
    assert symbolic.holds(statement) and symbolic.holds_for_ten(statement, target=3)


@each_slip
def test_slips_are_refuted(statement):
    assert not symbolic.holds(statement) and not symbolic.holds_for_ten(statement)
    left, right = (symbolic.values(side, statement.at) for side in (statement.left, statement.right))
    assert left[1] != right[1]


def test_values_at_zero_are_those_of_the_counterexample():
    ninth, eleventh = (Rational(9, 100), Rational(-1, 100)), (Rational(11, 100), Rational(1, 100))
    for form in (symbolic.derivative, symbolic.derivative_4_corrected, symbolic.derivative_5_corrected):
        assert symbolic.values(form) == ninth
    for form in (symbolic.derivative_4_printed, symbolic.derivative_5_printed):
        assert symbolic.values(form) == eleventh


def test_holds_sees_a_wrong_factor_and_a_wrong_number_of_classes():
    right = symbolic.sum_of_5_printed
    left = symbolic.sum_over_i(symbolic.derivative_5_printed)
    for wrong in (lambda i, k, n: right(i, k, 10), lambda i, k, n: symbolic.T * right(i, k, n)):
        assert not symbolic.holds(symbolic.Statement("", left, wrong))
    ten = symbolic.Statement("", left, lambda i, k, n: right(i, k, 10))
    assert symbolic.holds_for_ten(ten)  # there n is 10


@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("name", FORMS)
def test_forms_are_those_of_proof1(name, T):
    """In 50 digits, at ten rational logits, for every class."""
    logits = [Rational(int(v), 7) for v in np.random.default_rng(0).integers(-20, 20, 10)]
    known = {symbolic.x[i]: value for i, value in enumerate(logits)} | {symbolic.T: T}
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = np.array([Decimal(value.p) / Decimal(value.q) for value in logits])
        for i, expected in enumerate(getattr(proof1, name)(exact, 4, T)):
            found = getattr(symbolic, name)(i, 4, 10).subs(known).evalf(50)
            assert abs(Decimal(str(found)) / expected - 1) < Decimal("1e-48")


def test_gradient_ratio_is_that_of_proof1():
    """For two rivals, the second a half below the first."""
    rivals = {symbolic.c: 1 + exp(Rational(-1, 2)), symbolic.c_T: 1 + exp(Rational(-3, 2))}
    known = rivals | {symbolic.m: 2, symbolic.T: 3}
    with decimal.localcontext(decimal.Context(prec=60)):
        expected = proof1.gradient_ratio(np.array([Decimal("2.5"), Decimal("0.5"), Decimal(0)]), 0, 3)
        for form in (symbolic.gradient_ratio, symbolic.gradient_ratio_exact):
            found = form(0, 0, 3).subs(known).evalf(50)
            assert abs(Decimal(str(found)) / expected - 1) < Decimal("1e-48")


KEYS = ["printed_4", "corrected", "printed_5", "corrected", "cross_entropy"]


@pytest.mark.parametrize(("name", "key"), list(zip(FORMS, KEYS, strict=True)))
def test_limits_of_certainty_are_those_of_proof1(name, key):
    found = symbolic.limits_of_certainty(getattr(symbolic, name))
    assert [value.subs(symbolic.T, 20) for value in found] == list(proof1.limits_of_certainty(Rational(20))[key])
