"""What the checks of the exercises say of answers: right ones in whatever form, and wrong ones by what is wrong."""

import numpy as np
import pytest

from minicnn import Tensor, ops
from minicnn.paper.proof1_exercises import check


def delta(p, k):
    return np.eye(len(p))[k]


RIGHT = {
    1: [lambda p, k, T: p[k] * (delta(p, k) - p) / T, lambda p, k, T: list((np.diag(p) - np.outer(p, p))[k] / T)],
    2: [[1] + [0] * 9, (50,) + (0,) * 9, np.arange(10)],
    3: [20, np.int64(20), 20.0],
    4: [lambda T: np.log(T) / (T - 1)],
    5: [lambda gradient, image: gradient * (1 - image), lambda gradient, image: gradient - gradient * image],
}
WRONG = [
    (1, lambda p, k, T: p[k] * (delta(p, k) + p) / T, "(4) as printed"),
    (1, lambda p, k, T: p[k] * (delta(p, k) + p[k]) / T, "(5) as printed"),
    (1, lambda p, k, T: p[k] * (p - delta(p, k)) / T, "The sign is wrong"),
    (1, lambda p, k, T: (p - delta(p, k)) / T, "the derivative of -ln p_k"),
    (1, lambda p, k, T: p[k] * (delta(p, k) - p), "Right at T = 1, but T times too large at T = 20"),
    (1, lambda p, k, T: p[k] * (1 - p[k]) / T, "an entry for each of the 10 classes, and has the shape ()"),
    (1, lambda p, k, T: 0 * p + 0.25, "it is 0.2500; moving x_i gives"),
    (1, 0.25, "It raises TypeError"),
    (2, [0] * 10, "agree for every i"),
    (2, [1, 0], "Ten logits"),
    (2, np.zeros((10, 1)), "It raises ValueError: x must be one vector"),
    (3, 17, "still has 1 - p_k = 3.6e-07. (A softmax computed in float32 is 1 sooner: its sum loses small terms.)"),
    (3, 19, "the exact p_k, rounded to float32, still has 1 - p_k = 6.0e-08"),
    (3, 21, "With a lead of 20 the exact p_k, rounded to float32, has 1 - p_k = 0 already"),
    (3, 19.5, "A whole number"),
    (4, lambda T: 0.05, "At T = 2 your margin is 0.05, and there the gradient is multiplied by 1.9"),
    (4, lambda T: np.log(2), "At T = 20"),
    (4, lambda T: T / 0, "It raises ZeroDivisionError"),
    (5, lambda gradient, image: gradient, "Algorithm 1's score"),
    (5, lambda gradient, image: gradient * image, "its step is 0"),
    (5, lambda gradient, image: abs(gradient) * (1 - image), "gradient times step?"),
    (5, lambda gradient, image: gradient.argmax(), "It should have the shape of the image, (28, 28), and has ()"),
]


@pytest.mark.parametrize("exercise", RIGHT)
def test_check_knows_right_answers(exercise):
    for answer in RIGHT[exercise]:
        assert check(exercise, answer) == f"Exercise {exercise}: right."


@pytest.mark.parametrize(("exercise", "answer", "said"), WRONG, ids=[f"{case[0]}, {case[2]}" for case in WRONG])
def test_check_says_what_is_wrong(exercise, answer, said):
    found = check(exercise, answer)
    assert found.startswith(f"Exercise {exercise}: not yet. ") and said in found


@pytest.mark.parametrize(("target", "first"), [(0, 17), (9, 19)])
def test_check_3_is_not_of_a_softmax_computed_in_float32(target, first):
    """From which lead on the engine's is 1, of the leads below the right answer."""
    leads = np.arange(10, 20)
    p = ops.softmax(Tensor(np.outer(leads, np.eye(10)[target]).astype(np.float32))).data[:, target]
    assert leads[p == 1].tolist() == list(range(first, 20))


def test_check_knows_five_exercises():
    with pytest.raises(KeyError, match="9"):
        check(9, 1)


@pytest.mark.parametrize("exercise", RIGHT)
def test_check_waits_for_an_answer(exercise):
    assert check(exercise, ...) == f"Exercise {exercise}: no answer yet."
    if callable(RIGHT[exercise][0]):
        assert check(exercise, lambda *arguments: ...) == f"Exercise {exercise}: no answer yet."
