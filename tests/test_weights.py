"""Weights on disk: the format, what is refused, and that nothing else than what was saved is ever loaded."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest

from minicnn import files
from minicnn.autograd import Tensor
from minicnn.backend import to_host
from minicnn.layers import Dense, Layer, Sequential
from minicnn.paper.networks import paper_cnn
from minicnn.weights import (
    TRAINED_AT,
    TRAINED_ON,
    WeightsError,
    get_weights,
    load_npz,
    load_weights,
    save_npz,
    save_weights,
    set_weights,
    trained_at,
    trained_on,
)
from tests.conftest import small_cnn
from tests.test_files import run_and_measure


def bits(network):
    return {name: to_host(p.data).tobytes() for name, p in network.parameters().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_come_back_from_disk_bit_for_bit(tmp_path, dtype):
    network, other = small_cnn(1, dtype=dtype), small_cnn(2, dtype=dtype)
    path = tmp_path / "folder" / "weights.npz"
    save_weights(network, path)
    assert bits(other) != bits(network)
    assert load_weights(other, path) is other
    assert bits(other) == bits(network)
    assert all(p.data.flags.c_contiguous for p in other.parameters().values())
    assert os.listdir(path.parent) == ["weights.npz"]


def test_weights_move_between_devices_and_disk(device, tmp_path):
    expected, path = bits(small_cnn(4)), tmp_path / "weights.npz"
    network = small_cnn(4).to(device.name)
    save_weights(network, path)
    assert bits(load_weights(small_cnn(), path)) == expected
    loaded = load_weights(small_cnn().to(device.name), path)
    assert loaded.device == device.name and bits(loaded) == expected


def test_weights_in_files_are_filters_for_true_convolution(tmp_path):
    """sum_{i,j} file[i, j] x[r - i, c - j] of a file's filter, on the last row and column that a valid image has."""
    network = small_cnn()
    save_weights(network, tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    assert list(stored) == list(network.parameters())
    assert np.array_equal(stored["dense1_W"], network.layers["dense1"].W.data)
    x = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    convolved = sum(stored["conv1_W"][:, 0, i, j] * x[0, 0, 2 - i, 2 - j] for i in range(3) for j in range(3))
    y = network.layers["conv1"](Tensor(x)).data
    np.testing.assert_allclose(y[0, :, 0, 0], np.maximum(convolved, 0), rtol=1e-6)
    assert (convolved > 0).any()


def test_weights_carry_the_temperature_that_they_were_trained_at(tmp_path):
    network, path = small_cnn(1), tmp_path / "weights.npz"
    save_weights(network, path, temperature=20)
    assert trained_at(path) == 20.0
    assert bits(load_weights(small_cnn(2), path)) == bits(network)
    save_weights(network, path)
    assert trained_at(path) is None and list(load_npz(path)) == list(network.parameters())


def test_weights_carry_the_data_set_that_they_were_trained_on(tmp_path):
    network, path = small_cnn(1), tmp_path / "weights.npz"
    save_weights(network, path, dataset="digits")
    assert trained_on(path) == "digits" and trained_at(path) is None
    assert bits(load_weights(small_cnn(2), path)) == bits(network)
    save_weights(network, path, temperature=20)
    assert trained_on(path) is None
    for value in (np.zeros(()), np.array(["digits"])):
        save_npz(path, {TRAINED_ON: value})
        with pytest.raises(WeightsError, match="dataset is no name of a data set"):
            trained_on(path)


@pytest.mark.parametrize("value", [np.zeros(()), np.ones(2), np.array("20"), np.array(np.nan), np.array(np.inf)])
def test_weights_trained_at_no_temperature(tmp_path, value):
    save_npz(tmp_path / "weights.npz", {TRAINED_AT: value})
    with pytest.raises(WeightsError, match="temperature is no temperature"):
        trained_at(tmp_path / "weights.npz")


@pytest.mark.parametrize("name", [TRAINED_AT, TRAINED_ON])
def test_weights_of_a_parameter_named_as_what_stands_beside_them_are_not_written(tmp_path, name):
    class Odd(Layer):
        def __init__(self):
            setattr(self, name, Tensor(np.ones(1), requires_grad=True))

    with pytest.raises(WeightsError, match="not for a parameter"):
        save_weights(Odd(), tmp_path / "weights.npz")
    assert not any(tmp_path.iterdir())


def test_weights_of_another_dtype_are_converted():
    double = small_cnn(3, dtype=np.float64)
    single = set_weights(small_cnn(), get_weights(double))
    for name, p in single.parameters().items():
        assert p.dtype == np.float32 and np.array_equal(p.data, double.parameters()[name].data.astype(np.float32))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_weights_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "weights.npz"
    save_weights(small_cnn(1), path)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(OSError, match="no space left on device"):
        save_weights(small_cnn(2), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["weights.npz"]


NAMES = ["file", "self", "args", "allow_pickle", "arr_0", "a.npy", "history", "velocity/W", "../W", "W b", "ß", ""]


def test_npz_keeps_arrays_of_any_name(tmp_path):
    arrays = {name: np.full((2, i), i, np.float32) for i, name in enumerate(NAMES)}
    save_npz(tmp_path / "any.npz", arrays)
    found = load_npz(tmp_path / "any.npz")
    assert list(found) == NAMES
    assert all(np.array_equal(found[name], arrays[name]) for name in NAMES)
    with np.load(tmp_path / "any.npz", allow_pickle=False) as file:
        assert np.array_equal(file["file"], arrays["file"])


KEPT = {
    "the longest name": ("n" * (2**16 - 5), np.ones(1)),
    "fields": ("a", np.zeros(3, "f4,i8")),
    "nested fields": ("a", np.zeros(3, [("a", "f4"), ("b", [("c", "i8", (2, 2))])])),
    "dates": ("a", np.array(["2026-11-26"], "M8[D]")),
}
NOT_KEPT = {
    "a name with NUL": ("a\0b", np.ones(1)),
    "a name that is no text": ("a\ud800", np.ones(1)),
    "a name too long": ("n" * (2**16 - 4), np.ones(1)),
    "a name too long in UTF-8": ("\u6f22" * 22_000, np.ones(1)),
    "a field in letters of numpy's third format": ("a", np.zeros(1, [("\u6f22", "f4")])),
    "very many fields": ("a", np.zeros(1, [(f"field{i}", "f4") for i in range(5000)])),
    "objects": ("a", np.array([{}])),
}


@pytest.mark.filterwarnings("ignore:Stored array in format")
@pytest.mark.parametrize("case", [*KEPT, *NOT_KEPT])
def test_npz_gives_back_what_is_written_or_refuses_to_write_it(tmp_path, case):
    name, array = (KEPT | NOT_KEPT)[case]
    if case in KEPT:
        save_npz(tmp_path / "a.npz", {name: array})
        found = load_npz(tmp_path / "a.npz")
        assert list(found) == [name] and np.array_equal(found[name], array) and found[name].dtype == array.dtype
    else:
        with pytest.raises(ValueError):
            save_npz(tmp_path / "a.npz", {"b": np.ones(1), name: array})
        assert not list(tmp_path.iterdir())


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_npz_that_is_missing(tmp_path):
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'none.npz'}: no such weight file$"):
        load_npz(tmp_path / "none.npz")


DAMAGED = {
    "empty": b"",
    "text": b"not an archive",
    "one byte short": npz(a=np.arange(9.0))[:-1],
    "npy": npy(np.arange(3.0)),
    "pickled object": npz(a=np.array([{"any": "object"}], object)),
    "folder": None,
}


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_npz_that_is_damaged(tmp_path, contents):
    path = tmp_path / "weights.npz"
    if contents is None:
        path.mkdir()
    else:
        path.write_bytes(contents)
    with pytest.raises(WeightsError, match=f"^{path}: not a readable .npz file of arrays"):
        load_npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, lambda path, **arrays: save_npz(path, arrays)])
def test_npz_with_any_damage_is_refused_or_harmless(tmp_path, save):
    """Every byte is changed in turn, and the file cut at every byte: no other error, and never other values."""
    arrays = {"a": np.arange(40.0), "b": np.arange(3)}
    save(tmp_path / "whole.npz", **arrays)
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
    refused = 0
    for contents in damaged + [whole[:i] for i in range(len(whole))]:
        (tmp_path / "damaged.npz").write_bytes(contents)
        try:
            found = load_npz(tmp_path / "damaged.npz")
        except WeightsError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], arrays[name]) for name in found if name in arrays)
    assert refused > 1.5 * len(whole)


def test_npz_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    """Whoever repairs damage by writing anew must not do so where only memory or file descriptors have run out."""
    path = tmp_path / "a.npz"
    save_npz(path, {"a": np.arange(3.0)})
    for error in (MemoryError(), OSError(24, "Too many open files", str(path))):
        for function in ("builtins.open", "numpy.lib.format.read_magic"):

            def fail(*_args, error=error, **_kwargs):
                raise error

            if isinstance(error, OSError) and function != "builtins.open":
                continue  # of the bytes in memory, only damage can raise it
            with monkeypatch.context() as patch:
                patch.setattr(function, fail)
                with pytest.raises(type(error)) as caught:
                    load_npz(path)
            assert caught.value is error


def npy_header(shape, rest=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + rest


def write_archive(path, contents, members=1):
    """A compressed .npz whose members hold pieces of bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(members):
            with archive.open(f"{i}.npy", "w", force_zip64=False) as file:
                for piece in contents:
                    file.write(piece)


def zip_bomb(path):
    write_archive(path, [npy_header((2**28,)), *[bytes(2**20)] * 1024])


def lying_zip_bomb(path):
    """Whose directory says that a gigabyte is 228 bytes."""
    zip_bomb(path)
    size = struct.pack("<I", 2**30 + len(npy_header((2**28,))))
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", 228)))


HUGE = {
    "oversized": (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 4 << 30), "larger than"),
    "zip bomb": (zip_bomb, "inflates to more than"),
    "zip bomb of members": (lambda path: write_archive(path, [bytes(2**20)] * 64, 16), "inflates to more than"),
    "zip bomb that lies": (lying_zip_bomb, "not a readable .npz"),
    "header that promises": (lambda path: write_archive(path, [npy_header((2**40,))]), "not a readable .npz"),
    "header without sense": (
        lambda path: write_archive(path, [npy_header((-1, -4), bytes(16))]),
        "not a readable .npz",
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if "members" in kind else []) for kind in HUGE]
)
def test_npz_of_any_size_takes_little_memory(tmp_path, kind):
    """Read as the arrays of whatever, and as the weights of a network, whose size is known."""
    make, problem = HUGE[kind]
    path = tmp_path / "huge.npz"
    make(path)
    code = """
import sys
from minicnn.paper.networks import paper_cnn
from minicnn.weights import WeightsError, load_npz, load_weights
for read in (load_npz, lambda path: load_weights(paper_cnn(), path))[int(sys.argv[2]):]:
    try:
        read(sys.argv[1])
    except WeightsError as error:
        print(error)
"""
    for first, most in (0, 900), (1, 150):
        said, megabytes = run_and_measure(code, path, first)
        assert said.count(f"{path}: ") == 2 - first and megabytes < most
        assert said.startswith(f"{path}: {problem}") or first


def test_weights_may_have_any_size_that_the_network_has(tmp_path):
    """In the wider dtype, compressed or not, with names as long as they come."""
    for network in (paper_cnn(dtype=np.float64), small_cnn(dtype=np.float64)):
        save_weights(network, tmp_path / "weights.npz", temperature=20)
        load_weights(network, tmp_path / "weights.npz")
        np.savez_compressed(tmp_path / "weights.npz", **get_weights(network))
        load_weights(network, tmp_path / "weights.npz")


def changed(**arrays):
    return lambda weights: {k: v for k, v in (weights | arrays).items() if v is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(dense1_b=None), r"not the weights of this network \(missing \['dense1_b'\], unknown \[\]\)"),
        (
            changed(conv1_b=None, bias=np.zeros(4)),
            r"not the weights of this network \(missing \['conv1_b'\], unknown \['bias'\]\)",
        ),
        (changed(dense1_W=np.zeros((8, 36))), r"dense1_W has shape \(8, 36\), the network's is \(36, 8\)"),
        (changed(conv1_b=np.zeros((4, 1))), r"conv1_b has shape \(4, 1\), the network's is \(4,\)"),
        (changed(conv1_b=np.array([0, np.nan, 0, 0])), "conv1_b holds values that are no finite numbers"),
        (changed(conv1_b=np.array([0, np.inf, 0, 0])), "conv1_b holds values that are no finite numbers"),
        (changed(conv1_b=np.array(["a", "b", "c", "d"])), "conv1_b holds <U1, not floating-point numbers"),
        (changed(conv1_b=np.zeros(4, complex)), "conv1_b holds complex128, not floating-point numbers"),
        (changed(conv1_b=np.zeros(4, int)), "conv1_b holds int64, not floating-point numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, change, message):
    network, path = small_cnn(), tmp_path / "weights.npz"
    before = bits(network)
    save_npz(path, change(get_weights(small_cnn(9))))
    with pytest.raises(WeightsError, match=f"^{path}: {message}$"):
        load_weights(network, path)
    assert bits(network) == before


def test_weights_in_memory_are_the_parameters_themselves():
    """Only files turn filters: an array that is set is the parameter, and PyTorch's filters are ours."""
    network, rng = small_cnn(), np.random.default_rng(0)
    arrays = {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in network.parameters().items()}
    set_weights(network, arrays)
    for name, found in get_weights(network).items():
        assert np.array_equal(found, arrays[name]) and np.array_equal(network.parameters()[name].data, arrays[name])


def test_set_weights_takes_what_numpy_understands():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    arrays = get_weights(small_cnn(3))
    network = set_weights(small_cnn(), {name: torch.from_numpy(array) for name, array in arrays.items()})
    assert bits(network) == bits(small_cnn(3))
    assert bits(set_weights(small_cnn(), {n: Tensor(array) for n, array in arrays.items()})) == bits(network)


def test_get_weights_are_copies():
    network = small_cnn()
    before = get_weights(network)
    network.parameters()["conv1_W"].data[...] = 7
    assert not (before["conv1_W"] == 7).any()


def test_set_weights_refuses_what_is_infinite_in_the_parameter_s_dtype():
    network = small_cnn()
    weights = {name: w.astype(np.float64) for name, w in get_weights(network).items()}
    weights["dense2_b"][0] = 1e300
    with pytest.raises(WeightsError, match="dense2_b holds values that are no finite numbers"):
        set_weights(network, weights)
    assert np.isfinite(network.parameters()["dense2_b"].data).all()


def test_set_weights_takes_the_network_s_own_arrays(device):
    """Two layers change places, and one is set from a part of another: all is read before anything is written."""
    network = Sequential(a=Dense(3, 3, rng=0), b=Dense(3, 3, rng=1)).to(device.name)
    before, own = get_weights(network), {name: p.data for name, p in network.parameters().items()}
    own["a_W"], own["b_W"], own["a_b"], own["b_b"] = own["b_W"].T, own["a_W"], own["b_W"][0], own["a_W"][:, 2]
    after = get_weights(set_weights(network, own))
    assert np.array_equal(after["a_W"], before["b_W"].T) and np.array_equal(after["b_W"], before["a_W"])
    assert np.array_equal(after["a_b"], before["b_W"][0]) and np.array_equal(after["b_b"], before["a_W"][:, 2])


def test_set_weights_of_a_parameter_that_cannot_be_written_to_changes_nothing():
    network = small_cnn()
    network.layers["dense2"].b.data.flags.writeable = False
    before = bits(network)
    with pytest.raises(
        WeightsError, match="^weights: dense2_b is an array that cannot be written to: give its Tensor a"
    ):
        set_weights(network, get_weights(small_cnn(5)))
    assert bits(network) == before


def test_set_weights_takes_small_numbers_whatever_numpy_is_told():
    network = small_cnn()
    with np.errstate(all="raise"):
        set_weights(network, {name: np.full(w.shape, 1e-300) for name, w in get_weights(network).items()})
    assert not any(w.any() for w in get_weights(network).values())


@pytest.mark.parametrize(
    "name", ["a\0b", "a\ud800", "a" * 70_000, "\u00e4" * 40_000], ids=["NUL", "half", "long", "bytes"]
)
def test_weights_of_a_name_that_a_file_cannot_hold_are_not_written(tmp_path, name):
    layer = Layer()
    vars(layer)[name] = Tensor([1.0], requires_grad=True)
    with pytest.raises(WeightsError, match=r"w.npz: 'a?.* cannot be the name of an array: rename a layer"):
        save_weights(layer, tmp_path / "w.npz")
    assert not os.listdir(tmp_path)
