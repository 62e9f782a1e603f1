"""Facts from outside: the author's three trained networks, his logs, and the map printed in Appendix A."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.author_networks import COMMIT, PICKLES, find_folder
from minicnn.backend import get
from minicnn.data import MIRRORS, MNIST_FILES, load
from minicnn.paper.networks import paper_cnn
from minicnn.paper.saliency import saliency_maps
from minicnn.training import evaluate, predict
from minicnn.weights import load_npz, load_weights

DATA = Path(os.environ.get("MINICNN_DATA") or "(MINICNN_DATA is not set)")
NETWORKS = tuple(PICKLES)
AUTHOR = find_folder()  # with the networks, or None
SAMPLES = 9984  # 78 whole batches of 128: what the author's test accuracy is over
APPENDIX_A = 2659  # zero-based place in the MNIST test set of the image whose map the paper prints

pytestmark = [
    pytest.mark.skipif(
        not all(any((DATA / "mnist" / f"{name}{end}").exists() for end in ("", ".gz")) for name in MNIST_FILES),
        reason=f"needs MNIST: put {', '.join(MNIST_FILES)} (each as it is or as .gz, from {MIRRORS[0]}) into "
        "$MINICNN_DATA/mnist",
    ),
    pytest.mark.skipif(
        AUTHOR is None,
        reason="needs the author's networks: git clone https://github.com/songhobby/CNN, then python -m "
        f"experiments.author_networks --clone CNN makes them of its commit {COMMIT[:8]}",
    ),
]


def needs_the_author(test):
    """For a test of another file: skip it where this file is skipped."""
    for mark in pytestmark:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def mnist():
    dataset = load("mnist")
    return dataset.test_images, dataset.test_labels


@pytest.fixture(scope="module")
def networks():
    return {n: load_weights(paper_cnn(ties="all"), AUTHOR / f"{n}.npz") for n in NETWORKS}


@pytest.fixture(scope="module")
def logits(networks, mnist):
    return {name: predict(network, mnist[0]) for name, network in networks.items()}


@pytest.fixture(scope="module")
def sample(mnist):
    images, labels = mnist
    return images[APPENDIX_A : APPENDIX_A + 1], labels[APPENDIX_A : APPENDIX_A + 1]


@pytest.fixture(scope="module")
def saliency_map(networks, sample):
    """The map as the author computed it: float32 p - y, gradient to every tied maximum, T = 1."""
    return saliency_maps(networks["standard"], *sample, arithmetic="plain").maps[0, 0]


@pytest.fixture(scope="module")
def printed():
    text = Path(__file__).with_name("appendix_a.txt").read_text(encoding="ascii")
    return np.array(text.replace("[", " ").replace("]", " ").split(), dtype=np.float64)


@pytest.mark.parametrize(("name", "count"), [("standard", 9936), ("temperature20", 9918), ("distilled", 9893)])
def test_author_networks_correct_decisions(logits, mnist, name, count):
    assert (logits[name].argmax(axis=1) == mnist[1])[:SAMPLES].sum() == count


@pytest.mark.parametrize(("name", "logged"), [("standard", 0.0328453), ("temperature20", 0.3387894943)])
def test_author_networks_loss_with_the_penalty_on_the_last_dense_layer(networks, logits, mnist, name, logged):
    z = logits[name][:SAMPLES].astype(np.float64)
    losses = np.logaddexp.reduce(z, axis=1) - z[np.arange(SAMPLES), mnist[1][:SAMPLES]]
    penalty = 0.01 * np.square(load_npz(AUTHOR / f"{name}.npz")["dense3_W"]).sum(dtype=np.float64)
    assert losses.mean() + penalty == pytest.approx(logged, rel=2e-6, abs=0)


def test_author_networks_loss_of_evaluate(networks, logits, mnist):
    """On the wrongly classified images, which make most of the loss, and as many others."""
    images, labels = mnist
    chosen = np.flatnonzero(logits["standard"].argmax(axis=1) != labels)
    chosen = np.concatenate([chosen, chosen + 1])
    z = logits["standard"][chosen].astype(np.float64)
    expected = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels[chosen]]
    accuracy, loss = evaluate(networks["standard"], images[chosen], labels[chosen])
    assert accuracy == (z.argmax(axis=1) == labels[chosen]).mean()
    assert loss == pytest.approx(expected.mean(), rel=1e-5, abs=0)


@pytest.mark.parametrize(("name", "median"), [("standard", "21.5"), ("temperature20", "288")])
def test_author_networks_median_of_the_largest_logit(logits, name, median):
    assert f"{np.median(np.abs(logits[name]).max(axis=1)):.3g}" == median


def test_plain_map_begins_with_the_author_s_order_of_the_sum(logits, mnist):
    """Class order gives another p_k on 1,098 of the images (on 1,094 here: the last bits of the logits are the
    machine's). On Appendix A both give 1 - p_k = 167 units of 2^-23."""
    z, labels = logits["standard"], mnist[1]
    rows, functions = np.arange(len(z)), get("cpu").functions
    tree = functions.saliency_cotangent(z, labels, 1.0, "plain")[0][rows, labels]
    in_class_order = functions.softmax(z, 1.0)[rows, labels] - 1
    assert 1050 < (tree != in_class_order).sum() < 1150
    assert tree[APPENDIX_A] == in_class_order[APPENDIX_A] == -167 * 2.0**-23


def test_appendix_a_mean_and_maximum(saliency_map, sample):
    assert sample[1] == [4]
    assert f"{saliency_map.mean(dtype=np.float64):.4e}" == "-2.2915e-08"
    assert f"{saliency_map.max():.5e}" == "9.78318e-05"


def test_appendix_a_entries(saliency_map, printed):
    ours = saliency_map.ravel()[: len(printed)].astype(np.float64)
    large = np.abs(printed) > 1e-9
    assert (len(printed), large.sum()) == (156, 147)
    relative = np.abs(ours[large] / printed[large] - 1)
    assert relative.max() < 2e-5
    assert np.abs(ours[~large] - printed[~large]).max() < 2e-5 * 1e-9


def test_appendix_a_is_algorithm_1_perturbed_at_move_12(networks, saliency_map, sample):
    (image,), (label,) = sample
    moved = np.repeat(image[None], 13, axis=0)
    for move, pixel in enumerate(np.argsort(-saliency_map, axis=None, kind="stable")[:12], 1):
        moved[move:].reshape(13 - move, -1)[:, pixel] = 1
    decisions = predict(networks["standard"], moved).argmax(axis=1)
    assert (decisions[:12] == label).all() and decisions[12] != label


def test_appendix_a_is_another_map_with_gradients_to_the_first_maximum_alone(sample, printed):
    network = load_weights(paper_cnn(ties="first"), AUTHOR / "standard.npz")
    first = saliency_maps(network, *sample, arithmetic="plain").maps[0, 0]
    assert f"{first.mean(dtype=np.float64):.2e}" == "-5.95e-08"
    large = np.abs(printed) > 1e-9
    assert np.median(np.abs(first.ravel()[: len(printed)][large] / printed[large] - 1)) > 0.1
