"""Networks that are not the paper's: layers of one's own with parameters of any name, nested, shared, in lists; all of
them found, trained, saved, loaded and moved, or an error."""

import collections
import dataclasses
import types

import numpy as np
import pytest

from minicnn import Recipe, Tensor, evaluate, fit, get_weights, gradcheck, load_weights, predict, save_weights
from minicnn.backend import to_host
from minicnn.layers import Dense, Dropout, Flatten, Layer, Sequential
from minicnn.training import TrainingError
from minicnn.weights import load_npz
from tests.conftest import Leaky, colour_cnn, dense_network


def weight(*shape):
    return Tensor(np.full(shape, 0.5, np.float32), requires_grad=True)


class AnyNames(Layer):
    """Parameters of names that other places use for themselves, in a list, a tuple and a dict; one that is fixed."""

    def __init__(self):
        self.file, self.history, self.fingerprint = weight(3), weight(3), weight(3)
        self.several = [weight(3), Leaky()]
        self.pair, self.by_name = (weight(3),), {"velocity/x": weight(3)}
        self.fixed = Tensor(np.ones(3, np.float32))
        self.count, self.label = 7, "no parameter"

    def __call__(self, x, masks=None):
        for w in (self.file, self.history, self.fingerprint, self.several[0], self.pair[0], self.fixed):
            x = x * w
        return self.several[1](x - 0.02) * self.by_name["velocity/x"]


class Shared(Layer):
    """One layer under two names, called twice."""

    def __init__(self):
        self.first = self.second = Dense(3, 3, rng=0)
        self.last = Dense(3, 2, rng=1)

    def __call__(self, x, masks=None):
        return self.last(self.second(self.first(x, masks), masks), masks)


class Subclass(Sequential):
    """A Sequential with a parameter of its own."""

    def __init__(self):
        super().__init__(dense=Dense(3, 2, rng=0))
        self.scale = weight(1)

    def __call__(self, x, masks=None):
        return super().__call__(x, masks) * self.scale


def any_names():
    return Sequential(mine=AnyNames(), classes=Dense(3, 2, rng=1))


OF_ANY_NAMES = "file history fingerprint several_0 several_1_slope pair_0 by_name_velocity/x fixed".split()
NETWORKS = {  # how it is made, the shape of an image, classes, the names of its parameters
    "nested, padded, in colour": (
        colour_cnn,
        (3, 32, 32),
        5,
        ["features_conv_W", "features_conv_b", "features_leaky_slope", "classes_W", "classes_b"],
    ),
    "dense only": (dense_network, (12,), 4, ["hidden_W", "hidden_b", "classes_W", "classes_b"]),
    "any names": (any_names, (3,), 2, [f"mine_{name}" for name in OF_ANY_NAMES] + ["classes_W", "classes_b"]),
    "any names at the top": (AnyNames, (3,), 3, OF_ANY_NAMES),
    "shared layer": (Shared, (3,), 2, ["first_W", "first_b", "last_W", "last_b"]),
    "subclass of Sequential": (Subclass, (3,), 2, ["dense_W", "dense_b", "scale"]),
}
every_network = pytest.mark.parametrize(("make", "shape", "classes", "names"), NETWORKS.values(), ids=NETWORKS)


def samples(shape, classes, count=24):
    rng = np.random.default_rng(5)
    return rng.random((count, *shape), dtype=np.float32) + 0.1, np.arange(count) % classes


def bits(network):
    return {name: to_host(p.data).tobytes() for name, p in network.parameters().items()}


def train(network, data, path=None, epochs=2, **options):
    recipe = Recipe(learning_rate=0.01, batch=8, epochs=epochs)
    return fit(network, *data, recipe, checkpoint=path, **options)


@every_network
def test_own_network_is_trained_saved_loaded_and_moved(device, tmp_path, make, shape, classes, names):
    network, data = make(), samples(shape, classes)
    assert list(network.parameters()) == names
    before = bits(network)
    on_cpu = device.name == "cpu"  # the simulated GPU cannot capture the operators of its arrays
    train(network.to(device.name), data, graph=on_cpu)
    assert network.device == device.name
    after = bits(network)
    assert {name for name in names if after[name] == before[name]} == {name for name in names if "fixed" in name}

    path = tmp_path / "weights.npz"
    save_weights(network, path)
    assert list(load_npz(path)) == list(get_weights(network)) == names
    loaded = load_weights(make().to(device.name), path)
    assert bits(loaded) == after != before
    assert np.array_equal(predict(loaded, data[0]), predict(network, data[0]))
    assert bits(load_weights(make(), path).to(device.name)) == after


@every_network
def test_own_network_resumes_to_the_same_bits(tmp_path, make, shape, classes, names):
    whole, resumed, data = make(), make(), samples(shape, classes)
    train(whole, data, epochs=3)
    train(make(), data, tmp_path / "checkpoint.npz", epochs=1)
    history = train(resumed, data, tmp_path / "checkpoint.npz", epochs=3)
    assert [row["epoch"] for row in history] == [1, 2, 3] and bits(resumed) == bits(whole)


@every_network
def test_own_network_learns(make, shape, classes, names):
    network, data = make(), samples(shape, classes, 8)
    history = train(network, data, epochs=60)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert 0 <= evaluate(network, *data)[0] <= 1


def test_shared_layer_is_one_parameter_trained_once():
    """As two layers of equal weights, whose gradients are added up, would be."""
    network, data = Shared(), samples((3,), 2, 8)
    first, last = network.first, network.last
    x = Tensor(data[0])
    apart = Dense(3, 3, rng=0)
    loss = (last(apart(first(x))) ** 2).sum()
    loss.backward()
    expected = first.W.grad + apart.W.grad
    first.W.grad = None
    (network(x) ** 2).sum().backward()
    np.testing.assert_allclose(network.parameters()["first_W"].grad, expected, rtol=1e-5)


def with_attributes(**attributes):
    layer = Layer()
    vars(layer).update(attributes)
    return layer


def overwritten():
    network = Subclass()
    network.dense = weight(2)
    return network


COLLIDING = {
    "of two layers": (lambda: Sequential(a=Sequential(b=Dense(2, 2)), a_b=Dense(2, 2)), "two parameters are .*'a_b_W'"),
    "of a layer and a list": (
        lambda: with_attributes(w=[weight(2)], w_0=weight(2)),
        "two parameters are both named 'w_0': rename a layer or an attribute",
    ),
    "of a layer and an attribute of Sequential": (overwritten, "'dense' is the name of a layer and of an attribute"),
}


@pytest.mark.parametrize(("make", "message"), COLLIDING.values(), ids=COLLIDING)
def test_parameters_of_the_same_name_are_refused(tmp_path, make, message):
    network = make()
    for use in (
        network.parameters,
        lambda: save_weights(network, tmp_path / "w.npz"),
        lambda: network.to("cpu"),
        lambda: predict(network, np.ones((1, 2))),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_parameters_that_were_computed_are_refused():
    layer = with_attributes(scale=weight(2) * 2)
    with pytest.raises(ValueError, match="^scale was computed from other Tensors: use Tensor"):
        layer.parameters()


class Slotted(Layer):
    __slots__ = ("__hidden", "factor", "unset")

    def __init__(self):
        self.factor, self.__hidden, self.last = weight(2), weight(2), weight(2)


@dataclasses.dataclass(slots=True, eq=False)
class SlottedData(Layer):
    factor: Tensor = dataclasses.field(default_factory=lambda: weight(2))


class SlottedSequential(Sequential):
    __slots__ = ("factor",)


def slotted_sequential():
    network = SlottedSequential(dense=Dense(2, 2))
    network.factor = weight(2)
    return network


HELD = {
    "slots": (Slotted, ["_Slotted__hidden", "factor", "last"]),
    "slots of a dataclass": (SlottedData, ["factor"]),
    "slots of a Sequential": (slotted_sequential, ["dense_W", "dense_b", "factor"]),
    "a deque": (lambda: with_attributes(w=collections.deque([weight(2), weight(2)])), ["w_0", "w_1"]),
    "a UserList": (lambda: with_attributes(w=collections.UserList([Dense(1, 1)])), ["w_0_W", "w_0_b"]),
    "a UserDict": (lambda: with_attributes(w=collections.UserDict(a=weight(2))), ["w_a"]),
    "a mapping proxy": (lambda: with_attributes(w=types.MappingProxyType({"a": [weight(2)]})), ["w_a_0"]),
}


@pytest.mark.parametrize(("make", "names"), HELD.values(), ids=HELD)
def test_parameters_are_found_in(make, names):
    assert sorted(make().parameters()) == sorted(names)
    assert sorted(Sequential(inner=make()).parameters()) == sorted(f"inner_{name}" for name in names)


@pytest.mark.parametrize(
    "holder",
    [
        lambda: {weight(2)},
        lambda: frozenset([Dense(1, 1)]),
        lambda: {weight(2): 1},
        lambda: {"a": [{weight(2)}]},
        lambda: {Dense(1, 1): 1}.keys(),
    ],
    ids=["set", "frozenset of layers", "key", "set in a list in a dict", "keys"],
)
def test_parameters_without_a_name_are_refused(holder):
    layer = with_attributes(w=holder())
    with pytest.raises(ValueError, match="^w.* has a Tensor in a set or as a key, where it has no name: use a list or"):
        layer.parameters()
    assert list(with_attributes(names={"a", 1}, sizes={(1, 2): 3}, w=weight(2)).parameters()) == ["w"]


def test_l2_names_its_parameters():
    """The penalty is where it is named and nowhere else; a name that there is not is an error."""
    data = samples((3, 32, 32), 5)

    def trained(**l2):
        network = colour_cnn()
        fit(network, *data, Recipe(batch=24, epochs=1, l2=l2))
        return get_weights(network)

    plain, penalised = trained(), trained(features_leaky_slope=0.5, classes_W=0.25)
    changed = {name for name, w in plain.items() if not np.array_equal(w, penalised[name])}
    assert changed == {"features_leaky_slope", "classes_W"}
    step = 0.1 * 1.5  # learning rate (1 + momentum), the first step of Nesterov's
    expected = plain["classes_W"] - step * 2 * 0.25 * get_weights(colour_cnn())["classes_W"]
    np.testing.assert_allclose(penalised["classes_W"], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"^l2 names \['slope'\], the parameters are \['classes_W', "):
        trained(slope=0.5)
    with pytest.raises(TrainingError, match="^the l2 of slope must be at least 0, got -1$"):
        Recipe(l2={"slope": -1})


def test_dropout_of_own_networks_differs_by_layer_and_repeats():
    """Two with default arguments one after the other keep a quarter, not a half; the same pass has the same bits."""
    network, x = Sequential(a=Dropout(), b=Dropout(), flatten=Flatten()), np.ones((64, 1, 8, 8), np.float32)
    first = predict(network, x, dropout=1)
    assert abs((first != 0).mean() - 0.25) < 0.03 and set(np.unique(first)) == {0, 4}
    assert np.array_equal(first, predict(network, x, dropout=1))
    assert not np.array_equal(first, predict(network, x, dropout=2))


def test_own_network_of_operators_alone():
    """Attention over rows, (N, 4, 3) -> (N, 2)."""

    class Attention(Layer):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.query = Tensor(rng.normal(size=(3, 3)), requires_grad=True)
            self.out = Tensor(rng.normal(size=(3, 2)), requires_grad=True)

        def __call__(self, x, masks=None):
            scores = x @ self.query @ x.transpose(0, 2, 1)
            e = (scores - scores.max(axis=-1, keepdims=True)).exp()
            rows = (e / e.sum(axis=-1, keepdims=True)) @ x
            return rows[:, 0] @ self.out

    network, x = Attention(), np.random.default_rng(1).normal(size=(5, 4, 3))
    results = gradcheck.check(lambda x, *_: network(x), {"x": x, **network.parameters()})
    assert all(result.passed for result in results), results
    assert predict(network, x).shape == (5, 2)


def test_fit_of_a_large_loss_of_ones_own_is_no_divergence():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 12)).astype(np.float32)
    targets = 1000 * x[:, 0]

    def squared_error(z, target):
        return (z[:, 0] - target) ** 2

    recipe = Recipe(batch=32, epochs=2, learning_rate=1e-5)
    history = fit(dense_network(), x, targets, recipe, loss=squared_error, graph=False)
    assert history[0]["train_loss"] > 1000 and len(history) == 2
