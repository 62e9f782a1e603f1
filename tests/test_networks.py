"""The paper's network, and weights on disk: the format, what is refused, and writes that are whole or not there."""

import io
import os

import numpy as np
import pytest

from minicnn import files
from minicnn.autograd import Tensor
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential
from minicnn.networks import (
    WeightsError,
    get_weights,
    load_npz,
    load_weights,
    paper_cnn,
    predict,
    save_npz,
    save_weights,
    set_weights,
)

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


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, 1, 28, 28), dtype=np.float32)


def small(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return Sequential(
        conv1=Conv2D(1, 3, 2, rng=rng, dtype=dtype),
        pool1=MaxPool2D(3),
        flatten=Flatten(),
        dense1=Dense(243, 4, rng=rng, dtype=dtype),
    )


def bits(network):
    return {name: p.data.tobytes() for name, p in network.parameters().items()}


def test_paper_cnn_is_the_paper_s_table():
    network = paper_cnn()
    assert list(network.layers) == list(PAPER)
    x = Tensor(images(2))
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
    assert len({layer.stream for layer in network.layers.values() if isinstance(layer, Dropout)}) == 3


def test_parameter_count():
    parameters = paper_cnn().parameters()
    assert list(parameters) == [f"{layer}_{p}" for layer, (weights, _) in PAPER.items() if weights for p in "Wb"]
    # convolutions 9 (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 192, dense layers 1025 * 200 + 201 * 200 + 201 * 10
    assert sum(p.data.size for p in parameters.values()) == 64_992 + 247_210
    assert all(p.requires_grad and p.dtype == np.float32 for p in parameters.values())


@pytest.mark.parametrize("ties", ["first", "all"])
def test_ties_reach_both_pools(ties):
    network = paper_cnn(ties=ties)
    assert [network.layers[name].ties for name in ("pool1", "pool2")] == [ties, ties]


def test_glorot_uniform_weights_and_zero_biases():
    for name, p in paper_cnn(seed=1, dtype=np.float64).parameters().items():
        if name.endswith("_b"):
            assert not p.data.any()
            continue
        area = 9 if p.data.ndim == 4 else 1
        bound = np.sqrt(6 / (area * (p.shape[0] + p.shape[1])))
        assert 0.97 * bound < np.abs(p.data).max() <= bound
        # Uniform in +-bound: mean 0, mean square bound^2 / 3 with variance 4 bound^4 / 45.
        n = p.data.size
        assert abs(p.data.mean()) < 5 * bound / np.sqrt(3 * n)
        assert abs(np.square(p.data).mean() - bound**2 / 3) < 5 * bound**2 * np.sqrt(4 / 45 / n)


def test_the_seed_fixes_the_weights():
    assert bits(paper_cnn(seed=5)) == bits(paper_cnn(seed=5))
    assert all(
        a != b
        for (n, a), b in zip(bits(paper_cnn(seed=5)).items(), bits(paper_cnn(seed=6)).values(), strict=True)
        if n.endswith("W")
    )


def test_dropout_only_where_it_is_asked_for():
    network, x = paper_cnn(), Tensor(images(4))
    plain, dropped = network(x).data, network(x, (7, 0)).data
    assert np.array_equal(plain, network(x).data)
    assert np.array_equal(dropped, network(x, (7, 0)).data)
    for other in (plain, network(x, (8, 0)).data, network(x, (7, 1)).data):
        assert not np.array_equal(dropped, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_come_back_from_disk_bit_for_bit(tmp_path, dtype):
    network, other = small(dtype, seed=1), small(dtype, seed=2)
    path = tmp_path / "folder" / "weights.npz"
    save_weights(network, path)
    assert bits(other) != bits(network)
    assert load_weights(other, path) is other
    assert bits(other) == bits(network)
    assert all(p.data.flags.c_contiguous for p in other.parameters().values())
    assert os.listdir(path.parent) == ["weights.npz"]


def test_files_hold_filters_for_true_convolution(tmp_path):
    """sum_{i,j} file[i, j] x[r - i, c - j] of a file's filter, on the last row and column that a valid image has."""
    network = small()
    save_weights(network, tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    assert set(stored) == {"conv1_W", "conv1_b", "dense1_W", "dense1_b"}
    assert np.array_equal(stored["dense1_W"], network.layers["dense1"].W.data)
    x = images(1)
    convolved = sum(stored["conv1_W"][:, 0, i, j] * x[0, 0, 1 - i, 1 - j] for i in range(2) for j in range(2))
    y = network.layers["conv1"](Tensor(x)).data
    np.testing.assert_allclose(y[0, :, 0, 0], np.maximum(convolved, 0), rtol=1e-6)
    assert (convolved > 0).any()


def test_weights_of_another_dtype_are_converted():
    double = small(np.float64, seed=3)
    single = set_weights(small(np.float32), get_weights(double))
    for name, p in single.parameters().items():
        assert p.dtype == np.float32 and np.array_equal(p.data, double.parameters()[name].data.astype(np.float32))


def fail(*_args, **_kwargs):
    raise OSError("no space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "weights.npz"
    save_npz(path, {"a": np.arange(3.0)})
    before = path.read_bytes()
    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(OSError, match="no space left on device"):
        save_npz(path, {"a": np.arange(4.0)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["weights.npz"]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, n=name, f=original: events.append(n) or f(*a))
    save_npz(tmp_path / "weights.npz", {"a": np.arange(3.0)})
    assert events == ["fsync", "replace"]


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'none.npz'}: no such weight file$"):
        load_npz(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"not an archive",
        npz(a=np.arange(9.0))[:-1],
        npy(np.arange(3.0)),
        npz(a=np.array([{"any": "object"}], object)),
    ],
    ids=["empty", "text", "one byte short", "npy", "pickled object"],
)
def test_damaged_file(tmp_path, contents):
    path = tmp_path / "weights.npz"
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=f"^{path}: not a readable .npz file of arrays"):
        load_npz(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match="not a readable .npz file of arrays"):
        load_npz(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_is_a_weights_error_or_harmless(save):
    """Every byte is changed in turn, and the file cut at every byte: no other error, and never other values."""
    arrays = {"a": np.arange(40.0), "b": np.arange(3)}
    buffer = io.BytesIO()
    save(buffer, **arrays)
    whole = buffer.getvalue()
    damaged = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
    refused = 0
    for contents in damaged + [whole[:i] for i in range(len(whole))]:
        try:
            found = load_npz(io.BytesIO(contents))
        except WeightsError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], arrays[name]) for name in found if name in arrays)
    assert refused > 1.5 * len(whole)


def changed(**arrays):
    return lambda weights: {k: v for k, v in (weights | arrays).items() if v is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(dense1_b=None), r"not the weights of this network \(missing \['dense1_b'\], unknown \[\]\)"),
        (
            changed(conv1_b=None, bias=np.zeros(3)),
            r"not the weights of this network \(missing \['conv1_b'\], unknown \['bias'\]\)",
        ),
        (changed(dense1_W=np.zeros((4, 243))), r"dense1_W has shape \(4, 243\), the network's is \(243, 4\)"),
        (changed(conv1_b=np.zeros((3, 1))), r"conv1_b has shape \(3, 1\), the network's is \(3,\)"),
        (changed(conv1_b=np.array([0, np.nan, 0])), "conv1_b holds values that are no finite numbers"),
        (changed(conv1_b=np.array([0, np.inf, 0])), "conv1_b holds values that are no finite numbers"),
        (changed(conv1_b=np.array(["a", "b", "c"])), "conv1_b holds values that are no finite numbers"),
        (changed(conv1_b=np.zeros(3, complex)), "conv1_b holds values that are no finite numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, change, message):
    network, path = small(), tmp_path / "weights.npz"
    before = bits(network)
    save_npz(path, change(get_weights(small(seed=9))))
    with pytest.raises(WeightsError, match=f"^{path}: {message}$"):
        load_weights(network, path)
    assert bits(network) == before


def test_predict_in_chunks():
    network, x = small(np.float64), images(7)
    whole = predict(network, x)
    assert whole.shape == (7, 4) and whole.dtype == np.float64
    assert np.array_equal(whole, network(Tensor(x.astype(np.float64))).data)
    np.testing.assert_allclose(predict(network, x, chunk=3), whole, rtol=1e-12)
    assert predict(network, x[:0]).shape == (0, 4)
    assert all(p.grad is None for p in network.parameters().values())


def test_predict_with_dropout_takes_another_mask_for_every_chunk():
    network = Sequential(flatten=Flatten(), dropout1=Dropout(0.5), dense1=Dense(784, 3, rng=np.random.default_rng(0)))
    x = np.repeat(images(1), 4, axis=0)
    first = predict(network, x, dropout=1, chunk=2)
    assert np.array_equal(first, predict(network, x, dropout=1, chunk=2))
    assert not np.allclose(first[:2], first[2:]) and not np.allclose(first[0], first[1])
    assert not np.array_equal(first, predict(network, x, dropout=2, chunk=2))


def test_predict_on_every_device(device):
    network, x = small(np.float64), images(3)
    expected = predict(network, x)
    found = predict(network.to(device.name), x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weights_move_between_devices_and_disk(device, tmp_path):
    expected, path = bits(small(seed=4)), tmp_path / "weights.npz"
    network = small(seed=4).to(device.name)
    assert all(isinstance(p.data, device.array) for p in network.parameters().values())
    save_weights(network, path)
    assert bits(load_weights(small(), path)) == expected
    loaded = load_weights(small().to(device.name), path)
    assert bits(loaded.to("cpu")) == expected
