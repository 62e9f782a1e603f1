"""Proof 1 of the paper, equation by equation: as printed, and as it should be.

Song (2017), section 4, sets out to show that a higher temperature T makes a network less sensitive to its input. The
proof differentiates a softmax, and goes wrong in three places: what it calls the loss is the probability of the target
(3), the quotient rule has a plus for its minus (4), and the cross term is that of another product (5). This module
follows it from (2) to (5), then goes on to where it should have led: the limit of a confident network, the chain rule
down to the pixels, what temperature in training does to the gradient, and equation (1), which the attacks rest on.

Notation, the same in every function:

    x    the n logits, the input of the softmax; one vector, shape (n,). (The paper also writes x for the image.)
    T    the temperature, T > 0. (The paper does not state the condition.)
    k    the target class, 0 <= k < n. (The paper names it both j and k.)
    p    softmax(x / T), see (2)
    d_ik 1 if i = k, else 0; e_k is the vector of them, which the README calls y
    n    the number of logits; i and j are any of them
    u    x / T, the logits that a network trained at T = 1 would have, where x are those of one trained at T
    J    the derivatives of the logits by the pixels

Every function takes x as float64, or as `decimal.Decimal` with T an int or a Decimal: the same lines then compute to as
many digits as the decimal context asks for. All raise ValueError for a T that is not positive and finite, for logits
that are not one vector, and for a k that is no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

Number = Any  # a float or a Decimal
Vector = np.ndarray  # of them

# Equation (2): softmax with temperature


def softmax_with_temperature(x: Vector, T: Number) -> Vector:
    """(2)  p_i = exp(x_i / T) / sum_j exp(x_j / T), shape (n,). Correct as printed, given T > 0."""
    e = _exponentials(x, T)
    return e / e.sum()


# Equation (3): the loss


def loss_printed(x: Vector, k: int, T: Number) -> Number:
    """(3) as printed:  L = exp(x_k / T) / sum_j exp(x_j / T) = p_k.

    That is the probability of the true class, not a loss: who ascends it makes the true class stronger.
    """
    _one_hot(x, k)
    return softmax_with_temperature(x, T)[k]


def loss_corrected(x: Vector, k: int, T: Number) -> Number:
    """(3) corrected:  L = -ln p_k = ln(sum_j exp(x_j / T)) - x_k / T, the cross-entropy with a one-hot target.

    With l the class of the largest logit this is (x_l - x_k) / T + ln(1 + sum_{j != l} exp((x_j - x_l) / T)), which
    keeps its digits however close p_k is to 1.
    """
    _one_hot(x, k)
    e = _exponentials(x, T)
    x = _vector(x)
    largest = int(np.argmax(x))
    return (x[largest] - x[k]) / T + _log1p(np.delete(e, largest).sum())


# Equations (4) and (5): the derivative of p_k = f / S, with f = exp(x_k / T) and S = sum_j exp(x_j / T)


def derivative_4_printed(x: Vector, k: int, T: Number) -> Vector:
    """(4) as printed:  dL/dx_i = (f' S + f S') / S^2 = p_k (d_ik + p_i) / T, shape (n,). The plus is the slip."""
    f, S, df, dS = _quotient(x, k, T)
    return (df * S + f * dS) / S**2


def derivative_4_corrected(x: Vector, k: int, T: Number) -> Vector:
    """(4) corrected, the quotient rule:  dp_k/dx_i = (f' S - f S') / S^2 = p_k (d_ik - p_i) / T, shape (n,)."""
    f, S, df, dS = _quotient(x, k, T)
    return (df * S - f * dS) / S**2


def derivative_5_printed(x: Vector, k: int, T: Number) -> Vector:
    """(5) as printed:  dL/dx_i = (d_ik exp(x_k/T) S + exp(2 x_k/T)) / (T S^2) = p_k (d_ik + p_k) / T, shape (n,).

    It does not follow from (4) as printed either: there the second term is f S' = exp((x_k + x_i)/T) / T, which is
    exp(2 x_k/T) / T only for i = k.
    """
    e, S = _exponentials(x, T), _exponentials(x, T).sum()
    return (_one_hot(x, k) * e[k] * S + e[k] ** 2) / (T * S**2)


def derivative_5_corrected(x: Vector, k: int, T: Number) -> Vector:
    """(5) corrected:  dp_k/dx_i = (d_ik exp(x_k/T) S - exp((x_i + x_k)/T)) / (T S^2) = p_k (d_ik - p_i) / T."""
    e, S = _exponentials(x, T), _exponentials(x, T).sum()
    return (_one_hot(x, k) * e[k] * S - e * e[k]) / (T * S**2)


def cross_entropy_gradient(x: Vector, k: int, T: Number) -> Vector:
    """What Proof 1 was after:  d(-ln p_k)/dx_i = -(dp_k/dx_i) / p_k = (p_i - d_ik) / T, shape (n,).

    p_k - 1 is formed as minus the sum of the other p_j: as written it is 0 as soon as p_k rounds to 1.
    """
    p = softmax_with_temperature(x, T)
    p[k] = -saturation(x, k, T)
    return p / T


# First consequence: the sum over i. Softmax ignores a shift common to all logits, so every true derivative sums to 0.


def sum_of_4_printed(x: Vector, k: int, T: Number) -> Number:
    """sum_i of (4) as printed:  2 p_k / T, where the truth is 0."""
    return 2 * loss_printed(x, k, T) / T


def sum_of_5_printed(x: Vector, k: int, T: Number) -> Number:
    """sum_i of (5) as printed:  (p_k + n p_k^2) / T, where the truth is 0. The paper's n is 10."""
    p_k = loss_printed(x, k, T)
    return (p_k + len(x) * p_k**2) / T


# Second consequence: the limit of a confident network, p_k -> 1


def limits_of_certainty(T: Number) -> dict[str, tuple[Number, Number]]:
    """The limit of each form as p_k -> 1, as pairs (i = k, i != k).

    The truth vanishes: a confident softmax is saturated and passes no gradient on. That is the whole mechanism by which
    temperature hides the gradient, and the printed (5), which ends at 2/T and 1/T, has no trace of it.
    """
    _check_temperature(T)
    return {
        "corrected": (0 / T, 0 / T),
        "cross_entropy": (0 / T, 0 / T),
        "printed_4": (2 / T, 0 / T),
        "printed_5": (2 / T, 1 / T),
    }


def saturation(x: Vector, k: int, T: Number) -> Number:
    """1 - p_k = sum_{j != k} p_j, from the right-hand side, which keeps its digits where the left one rounds to 0.

    T times the cross-entropy gradient is -(1 - p_k) at k and adds up to 1 - p_k elsewhere: this is its size.
    """
    _one_hot(x, k)
    return np.delete(softmax_with_temperature(x, T), k).sum()


# Third consequence: what training at temperature T does to the gradient at test, where T is 1


def margin(u: Vector, k: int) -> Number:
    """m = u_k - max_{j != k} u_j: how far the target's logit is above the next one."""
    _one_hot(u, k)
    return _vector(u)[k] - np.delete(_vector(u), k).max()


def gradient_ratio(u: Vector, k: int, T: Number) -> Number:
    """What remains of the gradient at test:  T (1 - p_k(T u)) / (1 - p_k(u)), with p = softmax at temperature 1.

    Training at T fits softmax(x / T), so the logits come out as x = T u, where u is what a network trained at T = 1
    would have had. At test nothing divides by T any more. By the chain rule, with J_u = du/d(pixels),

        gradient with logits u    =    J_u^T (p(u)   - e_k)
        gradient with logits T u  =  T J_u^T (p(T u) - e_k)

    The Jacobian brings a factor T *up*. All of the fall of p - e_k, the gradient by the logits at T = 1, is saturation:
    |p - e_k|_1 = 2 (1 - p_k), hence the ratio. At the pixels the direction J_u^T (p - e_k) / (1 - p_k) changes too.
    In float64 it holds while T times the margin is below 700; beyond, exp underflows and decimals are needed.
    """
    _check_temperature(T)
    return T * saturation(_vector(u) * T, k, 1) / saturation(u, k, 1)


def gradient_ratio_predicted(m: Number, T: Number) -> Number:
    """The ratio for a large margin m:  T exp(-(T - 1) m), up to a factor that tends to c_T / c.

    c counts the rivals in second place, one that is g lower as exp(-g), so that 1 <= c <= n - 1; c_T counts it as
    exp(-T g), for the gaps are stretched T times too. For T >= 1 that is 1/(n - 1) <= c_T / c <= 1, and 1 for a single
    rival or equal ones. With 1 - p_k(u) = c exp(-m) / (1 + c exp(-m)), and the same of T u, the ratio is exactly

        T exp(-(T - 1) m)  (c_T / c)  (1 + c exp(-m)) / (1 + c_T exp(-T m))
    """
    _check_temperature(T)
    return T * _exp(-(T - 1) * m)


# Where the paper stops: from the logits to the pixels


def input_gradient(jacobian: np.ndarray, x: Vector, k: int, T: Number) -> Vector:
    """Chain rule:  dL/dpixel = J^T (p - e_k) / T, with J = d(logits)/d(pixels), shape (n, pixels) -> (pixels,).

    This is the saliency map. With p held fixed 1/T would make it T times smaller; but p is not held fixed, and J is not
    the same network's at another T.
    """
    return np.asarray(jacobian).T @ cross_entropy_gradient(x, k, T)


def predicted_change(gradient: Vector, step: Vector) -> Vector:
    """(1)  change of the loss = Grad(x[m][n]) * (change of x[m][n]): first order, so exact only for a vanishing step.

    And not even then where max-pools tie, as on a flat background: there the loss has no derivative.
    gradient and step of any matching shapes, one entry per pixel moved on its own.
    """
    return gradient * step


def central_difference(function: Callable[[Vector], Number], x: Vector, step: Number) -> Vector:
    """[f(x + step e_i) - f(x - step e_i)] / (2 step) for every i, shape (n,): the derivative without any calculus.

    Wrong by O(step^2) and by rounding / step. In decimals of 50 digits a step of 1e-15 leaves about 30 correct digits.
    """
    x = _vector(x)
    moves = [step * (np.arange(len(x)) == i).astype(int) for i in range(len(x))]
    return np.array([(function(x + move) - function(x - move)) / (2 * step) for move in moves])


# The pieces


def _exponentials(x, T):
    """exp((x_j - max x) / T), which cannot overflow: in (2) to (5) the factor exp(-max x / T) cancels."""
    x = _vector(x)
    _check_temperature(T)
    return np.exp((x - x.max()) / T)


def _quotient(x, k, T):
    """f = exp(x_k / T), S = sum_j exp(x_j / T), and their derivatives f' = d_ik f / T and S' = exp(x_i / T) / T."""
    d, e = _one_hot(x, k), _exponentials(x, T)
    return e[k], e.sum(), d * e[k] / T, e / T


def _vector(x):
    x = np.asarray(x)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"x must be one vector of n >= 2 logits, not of shape {x.shape}: pass one sample at a time")
    return x if x.dtype == object else x.astype(np.float64)


def _one_hot(x, k):
    """d_ik for every i, as integers, which multiply floats and decimals alike."""
    n = len(_vector(x))
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k < n:
        raise ValueError(f"the target class k must be an integer from 0 to {n - 1}, not {k!r}")
    return (np.arange(n) == k).astype(int)


def _check_temperature(T):
    if not 0 < T < math.inf:
        raise ValueError(f"the temperature T must be positive and finite, not {T}: p = softmax(x / T) needs it")


def _exp(value):
    return value.exp() if isinstance(value, Decimal) else np.exp(value)


def _log1p(value):
    return (1 + value).ln() if isinstance(value, Decimal) else np.log1p(value)
