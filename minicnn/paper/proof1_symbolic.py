"""Proof 1 of the paper in exact symbols: SymPy differentiates (2), and every form is held to what it finds.

Names and notation are those of minicnn.paper.proof1. The classes are 0 <= i, k < n. n is a symbol, any number of
classes, and the sum over them stays a Sum; or it is a number, and the sum is written out. Needs SymPy.

>>> difference(derivative, derivative_4_corrected, i, k, n)
0
>>> values(derivative), values(derivative_4_printed)
((9/100, -1/100), (11/100, 1/100))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sympy import (
    Expr,
    IndexedBase,
    KroneckerDelta,
    Le,
    Sum,
    Symbol,
    cancel,
    diff,
    exp,
    expand,
    expand_log,
    limit,
    log,
    symbols,
    true,
)

Index = Any  # a class, or the number of classes: an int or a symbol
Form = Callable[[Index, Index, Index], Expr]  # of the classes i and k and their number n

n = Symbol("n", integer=True, positive=True)
i, j, k = symbols("i j k", integer=True, nonnegative=True)
T = Symbol("T", positive=True)
x = IndexedBase("x", real=True)
d = KroneckerDelta


def e(y: Expr) -> Expr:
    """exp(y / T), that of a sum as a product."""
    return expand(exp(y / T))


def S(n: Index) -> Expr:
    """sum_j exp(x_j / T)."""
    return Sum(e(x[j]), (j, 0, n - 1)).doit()


def p(i: Index, n: Index) -> Expr:
    """(2)  p_i = exp(x_i / T) / S."""
    return e(x[i]) / S(n)


# The derivatives that SymPy finds


def derivative(i: Index, k: Index, n: Index) -> Expr:
    """dp_k/dx_i, which (4) and (5) are about."""
    return diff(p(k, n), x[i])


def loss_derivative(i: Index, k: Index, n: Index) -> Expr:
    """d(-ln p_k)/dx_i, what the proof was after."""
    return diff(-log(p(k, n)), x[i])


# The forms on paper


def _quotient(i, k, n):
    """f, S, f', S' of p_k = f / S."""
    return e(x[k]), S(n), d(i, k) * e(x[k]) / T, e(x[i]) / T


def derivative_4_printed(i: Index, k: Index, n: Index) -> Expr:
    """(4) as printed:  (f' S + f S') / S^2."""
    f, S, df, dS = _quotient(i, k, n)
    return (df * S + f * dS) / S**2


def derivative_4_corrected(i: Index, k: Index, n: Index) -> Expr:
    """(4) corrected:  (f' S - f S') / S^2."""
    f, S, df, dS = _quotient(i, k, n)
    return (df * S - f * dS) / S**2


def derivative_5_printed(i: Index, k: Index, n: Index) -> Expr:
    """(5) as printed:  (d_ik exp(x_k/T) S + exp(2 x_k/T)) / (T S^2)."""
    return (d(i, k) * e(x[k]) * S(n) + e(2 * x[k])) / (T * S(n) ** 2)


def derivative_5_corrected(i: Index, k: Index, n: Index) -> Expr:
    """(5) corrected:  (d_ik exp(x_k/T) S - exp((x_i + x_k)/T)) / (T S^2)."""
    return (d(i, k) * e(x[k]) * S(n) - e(x[i] + x[k])) / (T * S(n) ** 2)


def cross_entropy_gradient(i: Index, k: Index, n: Index) -> Expr:
    """(p_i - d_ik) / T."""
    return (p(i, n) - d(i, k)) / T


def sum_over_i(form: Form) -> Form:
    """sum_i of a form."""
    return lambda i, k, n: Sum(form(j, k, n), (j, 0, n - 1))


def sum_of_4_printed(i: Index, k: Index, n: Index) -> Expr:
    """2 p_k / T."""
    return 2 * p(k, n) / T


def sum_of_5_printed(i: Index, k: Index, n: Index) -> Expr:
    """(p_k + n p_k^2) / T."""
    return (p(k, n) + n * p(k, n) ** 2) / T


# 1 - p_k, and what training at T leaves of it: r is the second largest logit, m = x_k - r the margin

c, c_T, m, r = symbols("c c_T m r", positive=True)


def saturation(i: Index, k: Index, n: Index) -> Expr:
    """c exp(-m/T) / (1 + c exp(-m/T)), with c = sum_{j != k} exp((x_j - r)/T), the rivals in second place."""
    rivals = (S(n) - e(x[k])) / e(r)
    return _saturated(rivals, e(r - x[k]))


def gradient_ratio(i: Index, k: Index, n: Index) -> Expr:
    """T (1 - p_k(T u)) / (1 - p_k(u)), both in the form of `saturation`, c_T for c at T u."""
    return T * _saturated(c_T, exp(-T * m)) / _saturated(c, exp(-m))


def gradient_ratio_exact(i: Index, k: Index, n: Index) -> Expr:
    """T exp(-(T - 1) m)  (c_T / c)  (1 + c exp(-m)) / (1 + c_T exp(-T m))."""
    return T * exp(-(T - 1) * m) * c_T / c * (1 + c * exp(-m)) / (1 + c_T * exp(-T * m))


def _saturated(rivals, fall):
    return rivals * fall / (1 + rivals * fall)


# What is claimed, and what becomes of it

ZERO = (0,) * 10
APART = (log(2), *ZERO[1:])  # p_k is not p_i: at ZERO the two printed forms agree


class Statement(NamedTuple):
    """left = right for all logits and all T > 0. at: ten logits that refute it at T = 1, if it is false."""

    text: str
    left: Form
    right: Form
    at: Sequence[Any] = ZERO


IDENTITIES = (
    Statement("(3) -ln p_k = ln S - x_k/T", lambda i, k, n: -log(p(k, n)), lambda i, k, n: log(S(n)) - x[k] / T),
    Statement("(4) dp_k/dx_i = (f' S - f S') / S^2", derivative, derivative_4_corrected),
    Statement("(5) dp_k/dx_i = (d_ik f S - exp((x_i + x_k)/T)) / (T S^2)", derivative, derivative_5_corrected),
    Statement("    dp_k/dx_i = p_k (d_ik - p_i) / T", derivative, lambda i, k, n: p(k, n) * (d(i, k) - p(i, n)) / T),
    Statement("    d(-ln p_k)/dx_i = (p_i - d_ik) / T", loss_derivative, cross_entropy_gradient),
    Statement("    sum_i dp_k/dx_i = 0", sum_over_i(derivative_5_corrected), lambda i, k, n: 0 * T),
    Statement("    sum_i of (4) as printed = 2 p_k / T", sum_over_i(derivative_4_printed), sum_of_4_printed),
    Statement("    sum_i of (5) as printed = (p_k + n p_k^2) / T", sum_over_i(derivative_5_printed), sum_of_5_printed),
    Statement("    1 - p_k = c exp(-m/T) / (1 + c exp(-m/T))", lambda i, k, n: 1 - p(k, n), saturation),
    Statement("    gradient_ratio = prediction times its factor", gradient_ratio, gradient_ratio_exact),
)
SLIPS = (
    Statement("(3) the loss is p_k: d(-ln p_k)/dx_i = dp_k/dx_i", loss_derivative, derivative),
    Statement("(4) dp_k/dx_i = (f' S + f S') / S^2", derivative, derivative_4_printed),
    Statement("(5) dp_k/dx_i = (d_ik f S + exp(2 x_k/T)) / (T S^2)", derivative, derivative_5_printed),
    Statement("(5) follows from (4) as printed", derivative_4_printed, derivative_5_printed, APART),
)


def difference(left: Form, right: Form, i: Index, k: Index, n: Index) -> Expr:
    """left - right, 0 where they are equal. i and k are classes: of SymPy's derivative of a Sum, which is another where
    they are not, that branch is taken."""
    found = (left(i, k, n) - right(i, k, n)).doit().subs({Le(i, n - 1): true, Le(k, n - 1): true})
    return cancel(expand_log(found, force=True))  # all logarithms are of exponentials and their sums


def holds(statement: Statement) -> bool:
    """For any number of classes."""
    return difference(statement.left, statement.right, i, k, n) == 0


def holds_for_ten(statement: Statement, target: int = 0) -> bool:
    """For ten classes, the sum over them written out, and each of them in turn as i."""
    return all(difference(statement.left, statement.right, i, target, 10) == 0 for i in range(10))


def values(form: Form, at: Sequence[Any] = ZERO) -> tuple[Expr, Expr]:
    """A form of ten classes at these logits and T = 1, for i = k = 0 and for i = 1."""
    known = {x[i]: value for i, value in enumerate(at)} | {T: 1}
    own, other = (form(i, 0, 10).doit().subs(known) for i in (0, 1))
    return own, other


def verdict(statement: Statement) -> dict[str, Any]:
    """Whether a statement holds, and both sides at its ten logits (values), as text."""
    left, right = (values(side, statement.at) for side in (statement.left, statement.right))
    return {
        "statement": statement.text,
        "any_n": holds(statement),
        "n_10": holds_for_ten(statement),
        "at": ", ".join(f"x_{i} = {value}" for i, value in enumerate(statement.at) if value) or "x = 0",
        "left": "{}, {}".format(*left),
        "right": "{}, {}".format(*right),
    }


def limits_of_certainty(form: Form) -> tuple[Expr, Expr]:
    """A form of any number of classes as p_k -> 1, for i = k and i != k, whatever share of 1 - p_k class i has."""
    rest, share, total = symbols("rest share total", positive=True)
    known = {e(x[0]): (1 - rest) * total, e(x[1]): share * rest * total, S(n): total}
    own, other = (limit(cancel(form(i, 0, n).subs(known)), rest, 0, "+") for i in (0, 1))
    return own, other
