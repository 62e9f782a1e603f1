"""Layers: how they begin, when they drop, where they lie, and what they print. Parameters of every form of a layer of
one's own: test_own_networks.py."""

import numpy as np
import pytest

from minicnn import Tensor, backend, layers, ops, predict
from minicnn.layers import Conv2D, Dense, Dropout, DropoutMasks, Flatten, MaxPool2D, Sequential, TemperatureSoftmax
from tests.conftest import colour_cnn, small_cnn


def bits(network):
    return {name: p.data.tobytes() for name, p in network.parameters().items()}


def noise(*shape):
    return Tensor(np.random.default_rng(0).random(shape, dtype=np.float32))


def test_parameters_are_named_in_order():
    parameters = small_cnn().parameters()
    assert list(parameters) == ["conv1_W", "conv1_b", "dense1_W", "dense1_b", "dense2_W", "dense2_b"]
    assert all(p.requires_grad and p.dtype == np.float32 for p in parameters.values())


@pytest.mark.parametrize(
    ("make", "inputs", "outputs"),
    [
        (lambda rng: Conv2D(32, 64, 3, rng=rng, dtype=np.float64), 32 * 9, 64 * 9),
        (lambda rng: Dense(300, 200, rng=rng, dtype=np.float64), 300, 200),
    ],
    ids=["Conv2D", "Dense"],
)
def test_weights_begin_glorot_uniform_and_biases_zero(make, inputs, outputs):
    layer = make(1)
    w, bound = layer.W.data, np.sqrt(6 / (inputs + outputs))
    assert not layer.b.data.any()
    assert 0.97 * bound < np.abs(w).max() <= bound
    # Uniform in +-bound: mean 0, mean square bound^2 / 3 with variance 4 bound^4 / 45.
    assert abs(w.mean()) < 5 * bound / np.sqrt(3 * w.size)
    assert abs(np.square(w).mean() - bound**2 / 3) < 5 * bound**2 * np.sqrt(4 / 45 / w.size)
    for seed in (0, 1):  # each of them a seed, and a Generator begins where it stands
        assert bits(make(seed)) == bits(make(np.random.default_rng(seed)))
    assert len({make(rng).W.data.tobytes() for rng in (0, 1, None, None)}) == 4


def test_dropout_only_where_masks_are_given():
    network, x = small_cnn(), noise(4, 1, 8, 8)
    plain, dropped = network(x).data, network(x, DropoutMasks(7, 0)).data
    assert np.array_equal(plain, network(x).data)
    assert np.array_equal(dropped, network(x, DropoutMasks(7, 0)).data)
    for other in (plain, network(x, DropoutMasks(8, 0)).data, network(x, DropoutMasks(7, 1)).data):
        assert not np.array_equal(dropped, other)


def test_dropout_layers_have_different_masks():
    """Two with default arguments, and one that is called twice, each take the next stream of a pass."""
    ones, twice = noise(50, 20) * 0 + 1, Dropout()
    for first, second in ((Dropout(), Dropout()), (twice, twice)):
        masks = DropoutMasks(3, 5)
        a, b = (layer(ones, masks).data for layer in (first, second))
        for layer, mask in enumerate((a, b)):
            expected = ops.dropout(ones, rate=0.5, seed=3, layer=layer, step=5).data
            assert np.array_equal(mask, expected)
        assert not np.array_equal(a, b)


def test_sequential_joins_a_convolution_and_the_pool_after_it(device, monkeypatch):
    """Of this module: a layer of one's own, be it a subclass, is called by itself."""

    class Own(Conv2D):
        def __call__(self, x, masks=None):
            return super().__call__(x * 2, masks)

    joined, together = [], ops.conv2d_max_pool2d
    monkeypatch.setattr(ops, "conv2d_max_pool2d", lambda *a, **o: (joined.append(a[1]), together(*a, **o))[1])
    x = Tensor(device.asarray(np.random.default_rng(0).normal(size=(2, 1, 8, 8)), dtype=np.float32))
    for kind, times in ((Conv2D, 1), (Own, 0)):
        first, pool = kind(1, 3, 3, rng=0).to(device.name), MaxPool2D(2, ties="all")
        y = Sequential(conv1=first, pool1=pool)(x)
        assert np.array_equal(*(backend.to_host(a.data) for a in (y, pool(first(x))))) and joined == [first.W] * times
        joined.clear()
    with pytest.raises(ValueError, match="^conv1, pool1: pool size must be 1 to 16 and at most the image's"):
        Sequential(conv1=Conv2D(1, 3, 3).to(device.name), pool1=MaxPool2D(7))(x)


def test_temperature_softmax(device):
    z = np.random.default_rng(0).normal(size=(3, 10))
    p = TemperatureSoftmax(20)(Tensor(device.asarray(z))).data
    expected = np.exp(z / 20) / np.exp(z / 20).sum(axis=1, keepdims=True)
    assert np.abs(device.asarray(expected) - p).max() < 1e-15
    for T in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"^the temperature T must be positive, got {T}$"):
            TemperatureSoftmax(T)


def test_device_and_dtype_of_a_network(device):
    for dtype in (np.float32, np.float64):
        network = colour_cnn(dtype=dtype)
        assert (network.device, network.dtype) == ("cpu", dtype)
        network.parameters()["classes_b"].grad = np.ones(5)
        assert network.to(device.name) is network
        assert (network.device, network.backend.name, network.dtype) == (device.name, device.name, dtype)
        assert all(isinstance(p.data, device.array) and p.grad is None for p in network.parameters().values())
    assert (Flatten().device, Flatten().dtype) == ("cpu", np.float32)


def test_device_and_dtype_of_a_network_in_two_places(device):
    network = small_cnn()
    network.layers["dense2"].W.data = network.layers["dense2"].W.data.astype(np.float64)
    with pytest.raises(ValueError, match="^parameters are float32 and float64: give all the same dtype$"):
        predict(network, noise(1, 1, 8, 8).data)
    if device.name == "cpu":
        return
    network = small_cnn()
    network.layers["dense2"].to(device.name)
    with pytest.raises(ValueError, match=rf"^parameters lie on cpu and {device.name}: move the network with .to\("):
        predict(network, noise(1, 1, 8, 8).data)


def test_predict_takes_the_dtype_that_a_network_says_it_has():
    """A layer of one's own by a property, or what is no Layer by attributes."""

    class Double(layers.Layer):
        dtype = property(lambda self: np.dtype(np.float64))

        def __call__(self, x, masks=None):
            return x * 1

    class Duck:
        backend, dtype = backend.get("cpu"), np.dtype(np.float64)

        def __call__(self, x, masks=None):
            return x * 1

    x = np.full((2, 3), 0.1)
    assert np.array_equal(predict(Double(), x), x) and np.array_equal(predict(Duck(), x), x)


def test_parameters_of_a_layer_that_changes_while_they_are_looked_for():
    class Table(dict):
        def items(self):
            self["owner"].seen = True
            return super().items()

    class Remembers(layers.Layer):
        def __init__(self):
            self.W, self.table = Tensor([1.0], requires_grad=True), Table()
            self.table["owner"] = self

    assert list(Remembers().parameters()) == ["W"]


def test_repr_shows_layers_and_shapes():
    assert repr(colour_cnn()) == (
        "Sequential(\n"
        "  features: Sequential(\n"
        "    conv: Conv2D(padding='same', relu=False), W (4, 3, 5, 5), b (4,)\n"
        "    leaky: Leaky(), slope (1,)\n"
        "    pool: MaxPool2D(size=4, ties='first')\n"
        "  )\n"
        "  flatten: Flatten()\n"
        "  classes: Dense(relu=False), W (256, 5), b (5,)\n"
        ")"
    )


def test_repr_of_a_layer_that_knows_its_owner():
    owner, part = Sequential(part=Dense(1, 1)), layers.Layer()
    part.owner, owner.layers["knows"] = owner, part
    assert "owner: ..." in repr(owner) and list(owner.parameters()) == ["part_W", "part_b"]


def test_sequential_says_which_layer_does_not_fit():
    inner = Sequential(first=Dense(3, 4), second=Dense(5, 2))
    network = Sequential(whole=inner)
    with pytest.raises(ValueError, match=r"^whole: second: weights must have shape \(4, U\), got \(5, 2\)$"):
        network(Tensor(np.ones((1, 3), np.float32)))


def test_sequential_takes_layers_of_any_name():
    network = Sequential(self=Dense(3, 4), layers=Dense(4, 2))
    assert list(network.parameters()) == ["self_W", "self_b", "layers_W", "layers_b"]
    assert network(Tensor(np.ones((1, 3), np.float32))).shape == (1, 2)


def test_layer_refuses_parameters_of_its_class():
    """They would be found by no one, or shared by all layers: a Tensor, a list of layers, those of a base class too."""

    class Bare(layers.Layer):
        factor = Tensor([1.0], requires_grad=True)

    class Listed(layers.Layer):
        steps = [Dense(1, 1)]

    class Derived(Bare):
        pass

    for layer, name in ((Bare(), "Bare.factor"), (Listed(), "Listed.steps"), (Sequential(a=Derived()), "Bare.factor")):
        with pytest.raises(ValueError, match=f"^{name} is shared by all layers of the class: make it in __init__$"):
            layer.parameters()
    own = Derived()
    own.factor = Tensor([2.0], requires_grad=True)
    assert list(own.parameters()) == ["factor"]


def test_layer_without_a_call_of_its_own():
    with pytest.raises(NotImplementedError):
        layers.Layer()(noise(1, 1))


def test_max_pool2d_layer_has_its_ties():
    x = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True)
    for ties, count in (("first", 1), ("all", 4)):
        x.grad = None
        MaxPool2D(2, ties)(x).sum().backward()
        assert x.grad.sum() == count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0, 0), "inputs must be an integer of at least 1, got 0"),
        (lambda: Dense(-3, 2), "inputs must be an integer of at least 1, got -3"),
        (lambda: Dense(3, 2.0), "units must be an integer of at least 1, got 2.0"),
        (lambda: Dense(3, 2, relu=1), "relu must be True or False, got 1"),
        (lambda: Conv2D(0, 0, 3), "channels must be an integer of at least 1, got 0"),
        (lambda: Conv2D(1, 0, 3), "filters must be an integer of at least 1, got 0"),
        (lambda: Conv2D(1, 2, 0), "the size of a filter must be an integer of at least 1, got 0"),
        (lambda: Conv2D(1, 2, 3, relu="no"), "relu must be True or False, got 'no'"),
        (lambda: MaxPool2D(np.array([2, 2])), r"pool size must be an integer of at least 1, got array\(\[2, 2\]\)"),
        (lambda: Dropout(None), "the dropout rate must be a number, got None"),
        (lambda: TemperatureSoftmax("1"), "the temperature T must be a number, got '1'"),
    ],
)
def test_layers_refuse(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_layers_keep_numbers_and_flags_as_python_s():
    made = [Dense(3, 2, np.array(False)), Conv2D(1, 2, np.array(3), "same", np.False_), MaxPool2D(np.array(2))]
    assert [type(value) for value in (made[0].relu, made[1].relu, made[2].size)] == [bool, bool, int]
    assert made[1].W.shape == (2, 1, 3, 3) and not made[0].relu and not made[1].relu


@pytest.mark.parametrize("name", ["parameters", "to", "device", "dtype", "backend"])
def test_layer_refuses_an_attribute_of_the_name_of_a_method(name):
    with pytest.raises(ValueError, match=f"^'{name}' is a name of Layer's own: give the attribute of Layer another$"):
        setattr(layers.Layer(), name, Tensor([1.0], requires_grad=True))
