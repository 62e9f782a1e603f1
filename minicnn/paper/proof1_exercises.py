"""The checks of the exercises in experiments/proof1.ipynb: what is wrong with an answer.

No solution stands here: answers are held to finite differences and to the forms of minicnn.paper.proof1. `...` is an
answer that is not given yet.

>>> check(4, ...)
'Exercise 4: no answer yet.'
>>> check(4, lambda T: 0.5)
'Exercise 4: not yet. At T = 2 your margin is 0.5, and there the gradient is multiplied by 1.21.'
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.paper import proof1

Array = np.ndarray


class _Unanswered(Exception):
    """The answer is `...`, or returns it."""


def check(exercise: int, answer: Any) -> str:
    """Whether the answer to an exercise, 1 to 5, is right, as a sentence that says what is wrong with it if not.

    Raises KeyError for another exercise.
    """
    what_is_wrong = _CHECKS[exercise]
    try:
        wrong = what_is_wrong(_given(answer))
    except _Unanswered:
        return f"Exercise {exercise}: no answer yet."
    except Exception as error:  # of the answer, which is code of the reader's
        wrong = f"It raises {type(error).__name__}: {error}"
    return f"Exercise {exercise}: not yet. {wrong}" if wrong else f"Exercise {exercise}: right."


def _given(answer):
    if answer is ...:
        raise _Unanswered
    return answer


def _same(a, b):
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=1e-9)


def _derivative(function):
    """1: dp_k/dx_i for every i, a function of (p, k, T)."""
    rng = np.random.default_rng(0)
    for n, k, T in (10, 3, 1), (4, 1, 20):
        x = rng.normal(0, T, n)
        found = _given(function(proof1.softmax_with_temperature(x, T), k, T))
        truth = proof1.central_difference(functools.partial(proof1.loss_printed, k=k, T=T), x, 1e-4 * T)
        if np.shape(found) != truth.shape:
            return f"It should have an entry for each of the {n} classes, and has the shape {np.shape(found)}."
        if _same(found, truth):
            continue
        if _same(found, proof1.derivative_4_printed(x, k, T)):
            return "That is (4) as printed. What is the sign of the second term in the quotient rule?"
        if _same(found, proof1.derivative_5_printed(x, k, T)):
            return "That is (5) as printed. By which logit is S differentiated?"
        if _same(found, -truth):
            return "The sign is wrong: what happens to p_k when x_k grows?"
        if _same(found, proof1.cross_entropy_gradient(x, k, T)):
            return "That is the derivative of -ln p_k, which is -1/p_k times the one asked for."
        if _same(found, T * truth):
            return f"Right at T = 1, but T times too large at T = {T}: p is a function of x / T."
        i = int(np.argmax(np.abs(found - truth)))
        return (
            f"For x = {x.round(2)}, k = {k}, T = {T} and i = {i} it is {found[i]:.4f}; moving x_i gives {truth[i]:.4f}."
        )
    return None


def _logits(x):
    """2: ten logits at which (4) and (5) as printed differ."""
    four, five = (form(x, 0, 1) for form in (proof1.derivative_4_printed, proof1.derivative_5_printed))
    if len(four) != 10:
        return f"Ten logits are asked for, not {len(four)}."
    if np.abs(four - five).max() > 1e-3 * np.abs(five).max():
        return None
    return "There (4) and (5) as printed agree for every i. (4) has p_k p_i where (5) has p_k^2."


def _lead(lead):
    """3: the smallest whole lead over nine equal rivals at which the exact p_k, rounded to float32, is 1."""

    def short_of_1(lead):
        return 1 - np.float32(proof1.loss_printed(np.array([lead] + [0.0] * 9), 0, 1))

    if lead != int(lead):
        return "A whole number is asked for."
    if short_of_1(lead) != 0:
        return (
            f"With a lead of {lead} the exact p_k, rounded to float32, still has 1 - p_k = {short_of_1(lead):.1e}. "
            "(A softmax computed in float32 is 1 sooner: its sum loses small terms.)"
        )
    if short_of_1(lead - 1) == 0:
        return f"With a lead of {lead - 1} the exact p_k, rounded to float32, has 1 - p_k = 0 already."
    return None


def _margin(function):
    """4: the margin at which training at T leaves the gradient as large as it was, by its prediction."""
    for T in (2, 20, 100):
        m = float(_given(function(T)))
        ratio = proof1.gradient_ratio_predicted(m, T)
        if not np.isclose(ratio, 1, rtol=1e-6):
            return f"At T = {T} your margin is {m:.4g}, and there the gradient is multiplied by {ratio:.3g}."
    return None


def _score(function):
    """5: what (1) says of raising each pixel on its own to 1, a function of (gradient, image)."""
    rng = np.random.default_rng(0)
    gradient, image = rng.normal(size=(28, 28)), rng.uniform(0, 1, (28, 28))
    image[:14] = 1.0
    found = _given(function(gradient, image))
    truth = proof1.predicted_change(gradient, 1 - image)
    if np.shape(found) != truth.shape:
        return f"It should have the shape of the image, {truth.shape}, and has {np.shape(found)}."
    if _same(found, truth):
        return None
    if _same(found, gradient):
        return "That is Algorithm 1's score. A pixel that is 1 already cannot be raised: how long is its step?"
    if np.abs(found[:14]).max() > 1e-9:
        return "A pixel that is 1 already cannot be raised: its step is 0, and so is the change."
    row, column = np.argwhere(~np.isclose(found, truth))[0]
    value, slope = image[row, column], gradient[row, column]
    return (
        f"For a pixel of {value:.2f} with the gradient {slope:.2f} it is {found[row, column]:.3f}: gradient times step?"
    )


_CHECKS: dict[int, Callable[[Any], str | None]] = dict(enumerate((_derivative, _logits, _lead, _margin, _score), 1))
