"""PyTorch as an independent witness in float64: loss, every gradient and Nesterov steps of the paper's network."""

import numpy as np
import pytest

from minicnn.autograd import Tensor
from minicnn.ops import cross_entropy
from minicnn.optim import NesterovSGD
from minicnn.paper.networks import paper_cnn

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
functional = torch.nn.functional

L2, LEARNING_RATE, MOMENTUM = 0.01, 0.1, 0.5
BATCH = 6


def samples(step):
    rng = np.random.default_rng((1, step))
    return rng.random((BATCH, 1, 28, 28)), rng.integers(0, 10, BATCH)


def network():
    """The paper's network with random biases: zero ones would hide an error in them."""
    net, rng = paper_cnn(seed=3, dtype=np.float64), np.random.default_rng(4)
    for name, parameter in net.parameters().items():
        if name.endswith("_b"):
            parameter.data[...] = rng.normal(0, 0.1, parameter.shape)
    return net


def torch_parameters(net):
    return {n: torch.tensor(p.data, requires_grad=True) for n, p in net.parameters().items()}


def torch_loss(parameters, x, labels, T):
    """Mean cross-entropy at temperature T and the penalty on the last weights."""
    for layer in ("conv1", "conv2", "pool", "conv3", "conv4", "pool"):
        if layer == "pool":
            x = functional.max_pool2d(x, 2)
        else:
            x = functional.conv2d(x, parameters[f"{layer}_W"], parameters[f"{layer}_b"]).relu()
    x = x.flatten(1)
    for layer in ("dense1", "dense2", "dense3"):
        x = x @ parameters[f"{layer}_W"] + parameters[f"{layer}_b"]
        x = x if layer == "dense3" else x.relu()
    loss = functional.cross_entropy(x / T, labels)
    return loss + L2 * parameters["dense3_W"].square().sum()


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("T", [1, 20])
def test_paper_cnn_loss_and_every_gradient_are_torch_s(T):
    net = network()
    images, labels = samples(0)
    theirs, x_theirs = torch_parameters(net), torch.tensor(images, requires_grad=True)
    expected = torch_loss(theirs, x_theirs, torch.tensor(labels), T)
    expected.backward()

    x, last = Tensor(images, requires_grad=True), net.layers["dense3"].W
    loss = cross_entropy(net(x), labels, T=T).mean() + (last**2).sum() * L2
    loss.backward()

    errors = {n: relative_error(p.grad, theirs[n].grad) for n, p in net.parameters().items()}
    errors |= {"loss": relative_error(loss.data, expected), "images": relative_error(x.grad, x_theirs.grad)}
    assert len(errors) == 16 and max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("T", [1, 20])
def test_paper_cnn_after_three_nesterov_steps_is_torch_s(T):
    net = network()
    before = {n: p.data.copy() for n, p in net.parameters().items()}
    theirs = torch_parameters(net)
    optimiser = NesterovSGD(net.parameters(), LEARNING_RATE, MOMENTUM, {"dense3_W": L2})
    their_optimiser = torch.optim.SGD(theirs.values(), LEARNING_RATE, MOMENTUM, nesterov=True)
    for step in range(3):
        images, labels = samples(step)
        cross_entropy(net(Tensor(images)), labels, T=T).mean().backward()
        optimiser.step()

        their_optimiser.zero_grad()
        torch_loss(theirs, torch.tensor(images), torch.tensor(labels), T).backward()
        their_optimiser.step()
    # Compared by how far they moved: the weights themselves would agree to some digits without any step.
    moved = {
        n: relative_error(p.data - before[n], theirs[n] - torch.tensor(before[n])) for n, p in net.parameters().items()
    }
    assert max(moved.values()) < 1e-9, moved
