"""The paper's network, and the table of the four that the study trains."""

import numpy as np
import pytest

from minicnn.autograd import Tensor
from minicnn.layers import Dropout
from minicnn.paper.networks import (
    LAST_LAYER,
    NETWORKS,
    PAPER_NETWORKS,
    PENALTY,
    Trained,
    paper_cnn,
    pool_ties,
    rescaled,
)
from minicnn.training import predict
from minicnn.weights import get_weights

PAPER = {  # the table "Architecture of the CNN for MNIST", with valid padding: 28, 26, 24, 12, 10, 8, 4 rows
    "conv1": ((32, 1, 3, 3), (32, 26, 26)),
    "conv2": ((32, 32, 3, 3), (32, 24, 24)),
    "pool1": (None, (32, 12, 12)),
    "conv3": ((64, 32, 3, 3), (64, 10, 10)),
    "conv4": ((64, 64, 3, 3), (64, 8, 8)),
    "pool2": (None, (64, 4, 4)),
    "flatten": (None, (1024,)),
    "dropout1": (None, (1024,)),
    "dense1": ((1024, 200), (200,)),
    "dropout2": (None, (200,)),
    "dense2": ((200, 200), (200,)),
    "dropout3": (None, (200,)),
    "dense3": ((200, 10), (10,)),
}
RECTIFIED = ("conv1", "conv2", "conv3", "conv4", "dense1", "dense2")


def images(count):
    return Tensor(np.random.default_rng(0).random((count, 1, 28, 28), dtype=np.float32))


def test_paper_cnn_is_the_paper_s_table():
    network = paper_cnn()
    assert list(network.layers) == list(PAPER)
    x = images(2)
    for name, layer in network.layers.items():
        weights, output = PAPER[name]
        x = layer(x)
        assert x.shape == (2, *output)
        parameters = layer.parameters()
        assert (parameters["W"].shape if parameters else None) == weights
        if name in RECTIFIED:
            assert x.data.min() == 0
    assert x.data.min() < 0
    rates = {name: layer.rate for name, layer in network.layers.items() if isinstance(layer, Dropout)}
    assert rates == {"dropout1": 0.5, "dropout2": 0.5, "dropout3": 0.5}


def test_paper_cnn_parameters():
    parameters = paper_cnn().parameters()
    assert list(parameters) == [f"{layer}_{p}" for layer, (weights, _) in PAPER.items() if weights for p in "Wb"]
    # convolutions 9 (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 192, dense layers 1025 * 200 + 201 * 200 + 201 * 10
    assert sum(p.data.size for p in parameters.values()) == 64_992 + 247_210
    assert all(p.requires_grad and p.dtype == np.float32 for p in parameters.values())


@pytest.mark.parametrize("ties", ["first", "all"])
def test_pool_ties(ties):
    assert pool_ties(paper_cnn(ties=ties)) == [ties, ties]


def test_paper_cnn_weights_are_fixed_by_the_seed():
    def bits(seed):
        return {name: p.data.tobytes() for name, p in paper_cnn(seed=seed).parameters().items()}

    assert bits(5) == bits(5)
    assert all(w != bits(6)[name] for name, w in bits(5).items() if name.endswith("W"))


def test_rescaled_multiplies_the_logits_and_nothing_else(device):
    network = paper_cnn(seed=2, ties="all")
    network.layers[LAST_LAYER].b.data[...] = np.arange(10)
    before = {name: w.copy() for name, w in get_weights(network).items()}
    copy = rescaled(network.to(device.name), 4.0)
    assert (copy.device, copy.dtype, pool_ties(copy)) == (device.name, network.dtype, ["all", "all"])
    unchanged, after = get_weights(network), get_weights(copy)
    for name, w in before.items():
        assert np.array_equal(unchanged[name], w)
        assert np.array_equal(after[name], w * 4 if name.startswith(LAST_LAYER) else w)
    x = images(3).data
    np.testing.assert_allclose(predict(copy, x), 4 * predict(network, x), rtol=1e-6)
    assert all(
        a.data is not b.data for a, b in zip(network.parameters().values(), copy.parameters().values(), strict=True)
    )


def test_rescaled_changes_dtype_and_ties():
    copy = rescaled(paper_cnn(ties="all"), dtype=np.float64, ties="first")
    assert copy.dtype == np.float64 and pool_ties(copy) == ["first", "first"]
    assert all(np.array_equal(w, get_weights(paper_cnn())[name]) for name, w in get_weights(copy).items())


def test_networks_of_the_study():
    """Each teacher is a network of the table, named before its student and trained at the same temperature."""
    assert tuple(NETWORKS)[:3] == PAPER_NETWORKS and len(NETWORKS) == 4
    assert NETWORKS["distilled"] == Trained(at_temperature=True, teacher="temperature")
    for i, network in enumerate(NETWORKS.values()):
        if network.teacher:
            assert list(NETWORKS).index(network.teacher) < i
            assert NETWORKS[network.teacher].at_temperature == network.at_temperature
    assert {(n.at_temperature, n.teacher is not None) for n in NETWORKS.values()} == {
        (at, taught) for at in (True, False) for taught in (True, False)
    }
    assert set(PENALTY) == {f"{LAST_LAYER}_W"} < set(paper_cnn().parameters())
