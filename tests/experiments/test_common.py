"""What the experiments share: the networks they find, the parts they keep, the files they write."""

import argparse
import functools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import common
from minicnn import data, predict, weights
from minicnn.paper import attacks
from minicnn.paper.jsma import jsma
from minicnn.paper.networks import NETWORKS, paper_cnn, rescaled
from minicnn.paper.sparse_rs import sparse_rs
from tests.experiments.conftest import ROOT, read_json


def samples(count):
    """Noise images and the labels that paper_cnn(seed=1) gives them, the first of them wrong."""
    images = np.random.default_rng(0).random((count, 1, 28, 28), np.float32)
    labels = predict(paper_cnn(seed=1), images).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 10
    return images, labels


@pytest.mark.parametrize("text", ["student", "../standard", "standard/../../x", ""])
def test_network_name_of_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be standard or"):
        common.network_name(text)


@pytest.mark.parametrize(
    ("saved", "asked", "other", "said"),
    [
        ({"temperature": 5}, {"T": 5.0}, {"T": 20.0}, "was trained at T = 5, not at 20"),
        ({"dataset": "digits"}, {"dataset": "digits"}, {"dataset": "mnist"}, "was trained on digits, not on mnist"),
    ],
    ids=["temperature", "data set"],
)
def test_load_network_refuses_one_of_another_training(tmp_path, saved, asked, other, said):
    path = tmp_path / "standard.npz"
    weights.save_weights(paper_cnn(), path, **saved)
    common.load_network(path, **asked)
    common.load_network(path)
    with pytest.raises(common.UsageError, match=f"standard.npz {said}"):
        common.load_network(path, **other)
    weights.save_weights(paper_cnn(), path)  # as the author's files, which do not say
    common.load_network(path, **other)


def test_common_needs_no_working_folder(tmp_path):
    """Nor one on the drive of the project, of which Windows has several."""
    code = """
import os, sys
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
from experiments import common
print(common.RESULTS.is_absolute())
"""
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "gone")]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_from_here_on_another_drive(monkeypatch, tmp_path):
    def relpath(path):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(common.os.path, "relpath", relpath)
    assert common._from_here(tmp_path) == tmp_path


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e-46", "1e39", "1e400", "-0"])
def test_positive_floats_are_those_of_float32(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be a positive number, got {text}"):
        common.positive(float)(text)


def test_positive_integers_of_any_size():
    assert common.positive(int)(str(10**400)) == 10**400
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive number, got 0"):
        common.positive(int)("0")


def test_find_weights_prefers_the_folder_to_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "committed")
    own, committed = tmp_path / "standard.npz", tmp_path / "committed" / "digits" / "standard.npz"
    committed.parent.mkdir(parents=True)
    with pytest.raises(common.UsageError, match="no trained network 'standard' in .*: train it with"):
        common.find_weights("standard", "digits", tmp_path, "--weights")
    for path in (committed, own):
        path.touch()
        assert common.find_weights("standard", "digits", tmp_path, "--weights") == path


@pytest.mark.parametrize("name", NETWORKS)
def test_find_weights_has_every_mnist_network(name, tmp_path):
    path = common.find_weights(name, "mnist", tmp_path, "--weights")
    assert path.parent.name == "mnist"
    common.load_network(path)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_sample_is_a_permutation_of_the_test_set(digits):
    whole = common.sample(digits, 297, seed=3)
    assert sorted(whole.indices) == list(range(297)) != list(whole.indices)
    np.testing.assert_array_equal(whole.images, digits.test_images[whole.indices])
    np.testing.assert_array_equal(whole.labels, digits.test_labels[whole.indices])
    assert not np.array_equal(common.sample(digits, 297, seed=4).indices, whole.indices)
    assert str(whole) == "297 test images drawn by seed 3"


def test_sample_goes_on_where_a_smaller_one_ends(digits):
    for count in (1, 12, 200):
        np.testing.assert_array_equal(
            common.sample(digits, count, seed=0).indices, common.sample(digits, 250, seed=0).indices[:count]
        )


def test_sample_of_the_first_images(digits):
    first = common.sample(digits, 20, seed=3, first=True)
    assert first.indices.tolist() == list(range(20)) and str(first) == "the first 20 test images"
    assert first.taken() == {"seed": None, "count": 20, "indices": first.indices}


def test_sample_tells_its_indices_where_they_are_few(digits):
    many = digits._replace(test_images=np.zeros((1001, 1, 1, 1)), test_labels=np.zeros(1001, int))
    assert len(common.sample(many, 1000, seed=5).taken()["indices"]) == 1000
    assert common.sample(many, 1001, seed=5).taken() == {"seed": 5, "count": 1001, "indices": None}


def test_sample_of_more_than_there_are(digits, capsys):
    assert len(common.sample(digits, 298, seed=0).labels) == 297
    assert capsys.readouterr().err == "note: digits has 297 test images, not 298: all of them are taken\n"


def test_chosen_sample_of_the_command_line(digits):
    parser = common.arguments("")
    common.attack_arguments(parser)

    def indices(*options):
        return common.chosen_sample(parser.parse_args(["--seed", "2", *options]), digits, 5).indices.tolist()

    assert indices() == common.sample(digits, 5, seed=2).indices.tolist()
    assert indices("--images", "7") == common.sample(digits, 7, seed=2).indices.tolist()
    assert indices("--first", "7") == list(range(7))
    with pytest.raises(common.UsageError, match="not allowed with"):
        indices("--first", "7", "--images", "7")


def test_network_key_tells_networks_apart():
    network = paper_cnn(seed=1)
    others = [paper_cnn(seed=2), rescaled(network, ties="all"), rescaled(network, dtype=np.float64)]
    assert common.network_key(rescaled(network)) == common.network_key(network)
    assert all(common.network_key(other) != common.network_key(network) for other in others)
    json.dumps(common.network_key(network))


def test_network_key_tells_arithmetics_apart(monkeypatch):
    network, keys = paper_cnn(seed=1), []
    for convolutions, flushes in (("compiled", False), ("numpy: no compiler", False), ("compiled", True)):
        monkeypatch.setattr(common.cpu, "convolutions", lambda text=convolutions: text)
        monkeypatch.setattr(common.cpu, "flushes_denormals", lambda found=flushes: found)
        keys.append(common.network_key(network))
    assert all(keys.count(key) == 1 for key in keys)
    monkeypatch.setattr(common.cpu, "convolutions", lambda: "numpy: another reason")
    monkeypatch.setattr(common.cpu, "flushes_denormals", lambda: False)
    assert common.network_key(network) == keys[1]


@pytest.mark.parametrize(
    ("denominator", "expected"), [("correct", [1, 0, 1]), ("all", [1, 1, 1]), ("common", [0, 0, 1])]
)
def test_counted_images(denominator, expected):
    correct = {"a": np.array([True, False, True, False]), "b": np.array([False, True, True, True])}
    assert common.counted(denominator, correct, "a", 3).tolist() == [bool(e) for e in expected]


def test_store_computes_a_part_once(tmp_path):
    store, computed = common.Store(tmp_path / "parts"), []

    def compute():
        computed.append(1)
        return {"values": np.arange(len(computed))}

    assert store.get({"seed": 1, "T": 2.0}, compute)["values"].tolist() == [0]
    assert store.get({"T": 2.0, "seed": 1}, compute)["values"].tolist() == [0]
    assert store.get({"seed": 2, "T": 2.0}, compute)["values"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "part",
    [
        {
            "a": np.arange(6, dtype=">f8").reshape(2, 3).T,
            "b": np.array("text"),
            "c": np.zeros((0, 3)),
            "d": np.array(2),
        },
        {"key": np.zeros(1), "sha256": np.array([True])},
        {"number": 3, "list": [1.5, 2.5]},
        {},
    ],
    ids=["arrays", "names of its own", "plain values", "nothing"],
)
def test_store_gives_back_what_it_was_given(tmp_path, part):
    store = common.Store(tmp_path)
    first, again = store.get({}, lambda: part), store.get({}, None)
    assert list(first) == list(again) == list(part)
    for name, value in part.items():
        for found in (first[name], again[name]):
            assert np.array_equal(found, value) and found.dtype == np.asarray(value).dtype


def test_store_with_a_file_in_its_way_fails_at_once(tmp_path):
    (tmp_path / "parts").touch()
    with pytest.raises(OSError, match="parts"):
        common.Store(tmp_path / "parts")


def test_store_computes_anew_when_the_engine_changes(tmp_path, monkeypatch):
    store = common.Store(tmp_path)
    store.get({}, lambda: {"values": np.zeros(1)})
    monkeypatch.setattr(common, "digest_of_sources", lambda: "another")
    assert store.get({}, lambda: {"values": np.ones(1)})["values"] == 1


def test_digest_of_sources_holds_the_engine_the_paper_and_the_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(common.minicnn, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(common, "kernel_folder", lambda: tmp_path)
    digests = set()
    for i, name in enumerate(("ops.py", "paper/attacks.py", "dense.cu", "common.cuh", "conv2d.c", "common.h")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        common.digest_of_sources.cache_clear()
        digests.add(common.digest_of_sources())
        assert len(digests) == i + 1
    common.digest_of_sources.cache_clear()


REFRESHED = attacks.Algorithm("gradient", absolute=True, lowers=True, refresh=True)


@pytest.mark.parametrize("arithmetic", attacks.ARITHMETICS)
@pytest.mark.parametrize("algorithm", [*attacks.ALGORITHMS, REFRESHED], ids=[*attacks.ALGORITHMS, "refreshed"])
def test_attack_in_parts_is_the_attack(tmp_path, algorithm, arithmetic):
    """Whatever their size: to the last bit, on images with a flat background, where the maxima of pools are equal."""
    images, labels = samples(5)
    images *= images > 0.7
    network, setting = paper_cnn(seed=1), attacks.Setting(arithmetic, limit=3)
    labels[1:] = predict(network, images[1:]).argmax(axis=1)
    whole = attacks.attack(network, images, labels, algorithm, setting)
    assert whole.attacked.sum() >= 4
    for part, files in ((1, 5), (2, 3), (None, 1)):
        store = common.Store(tmp_path / str(part))
        found = common.attack(network, images, labels, algorithm, setting, store, part=part)
        assert len(list(store.folder.iterdir())) == files
        for name, value in vars(whole).items():
            assert np.array_equal(getattr(found, name), value), name


@pytest.mark.parametrize("name", ["margin", "jsma", "sparse-rs"])
def test_attack_in_parts_is_the_stronger_attack(tmp_path, monkeypatch, name):
    """By its name; of sparse-rs each seed has parts of its own."""
    search = functools.partial(sparse_rs, queries=20)
    monkeypatch.setattr(common, "sparse_rs", search)
    images, labels = samples(2)
    network, setting = paper_cnn(seed=1), attacks.Setting(limit=4, skip_unchanged=True)
    whole = {
        "margin": lambda: attacks.attack(network, images, labels, attacks.STRONGER["margin"], setting),
        "jsma": lambda: jsma(network, images, labels, setting),
        "sparse-rs": lambda: search(network, images, labels, setting, seed=3),
    }[name]()
    found = common.attack(network, images, labels, name, setting, common.Store(tmp_path), part=1, seed=3)
    for field, value in vars(whole).items():
        assert np.array_equal(getattr(found, field), value), field
    common.attack(network, images, labels, name, setting, common.Store(tmp_path), part=1, seed=4)
    assert len(list(tmp_path.iterdir())) == (4 if name == "sparse-rs" else 2)


def test_attack_of_a_larger_sample_goes_on_with_the_parts_of_a_smaller_one(digits, tmp_path, monkeypatch):
    network, setting, attacked = paper_cnn(seed=1), attacks.Setting(limit=1), []
    attack = attacks.attack
    monkeypatch.setattr(
        attacks, "attack", lambda network, x, *others: attacked.append(len(x)) or attack(network, x, *others)
    )
    for count in (4, 4, 7):
        images, labels, *_ = common.sample(digits, count, seed=0)
        common.attack(network, images, labels, "1", setting, common.Store(tmp_path), part=2)
    assert attacked == [2, 2, 2, 1]


def test_images_a_part_are_some_seconds_of_work():
    setting = attacks.Setting(limit=100)
    algorithms = attacks.ALGORITHMS | {"refreshed": REFRESHED}
    found = {name: common.method(a, setting, seed=0)[-1] for name, a in algorithms.items()}
    assert found == {"1": 500, "3": 500, "2": 200, "author": 200, "4": 4, "refreshed": 10}
    assert common.method("4", attacks.Setting(limit=784), seed=0)[-1] == 1


def test_attack_keeps_what_differs_apart(tmp_path):
    """Another algorithm, setting, network or image is another part; an Algorithm without a name has parts too."""
    images, labels = samples(2)
    one, more = attacks.Setting(limit=1), attacks.Setting(limit=2)
    cases = [(1, 0, "1", one), (1, 0, "3", one), (1, 0, REFRESHED, one), (1, 0, "1", more), (2, 0, "1", one)]
    for parts, (seed, first, algorithm, setting) in enumerate([*cases, (1, 1, "1", one)], start=1):
        case = paper_cnn(seed=seed), images[first:], labels[first:], algorithm, setting
        common.attack(*case, common.Store(tmp_path))
        common.attack(*case, common.Store(tmp_path))
        assert len(list(tmp_path.iterdir())) == parts


def test_seeds_end_where_seeds_do():
    chosen = argparse.Namespace(seed=2**64 - 3, seeds=3)
    assert list(common.seeds(chosen)) == [2**64 - 3, 2**64 - 2, 2**64 - 1]
    chosen.seeds = 4
    with pytest.raises(common.UsageError, match="--seed and --seeds: the last of 4 seeds must be 0 to 2.64 - 1, got"):
        common.seeds(chosen)


def test_not_negative_arguments():
    assert common.not_negative("0") == 0
    with pytest.raises(argparse.ArgumentTypeError, match="at least 0, got -1"):
        common.not_negative("-1")


def test_write_json_of_arrays_and_numbers_that_are_not_finite(tmp_path):
    results = {"a": np.array([1.5, np.nan]), 2: (np.int32(3), -math.inf), "c": [True, None, {"d": np.float32(0.5)}]}
    common.write_json(tmp_path / "r.json", results)
    assert read_json(tmp_path / "r.json") == {"a": [1.5, None], "2": [3, None], "c": [True, None, {"d": 0.5}]}


def test_write_json_has_a_list_of_numbers_in_one_line_and_leaves_text_alone(tmp_path):
    results = {"a": list(range(50)), "b": [[1, 2], []], "c": "[\n1,  2]", "d": ["[1,", "2]"]}
    common.write_json(tmp_path / "r.json", results)
    assert read_json(tmp_path / "r.json") == results
    assert len((tmp_path / "r.json").read_text().splitlines()) == 3 + 4 + 1 + 4


def test_read_csv_reads_what_write_csv_wrote(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-30}]
    common.write_csv(tmp_path / "t.csv", rows)
    assert common.read_csv(tmp_path / "t.csv") == rows


@pytest.mark.parametrize("contents", [None, b"a,b\n1,x\n", b"a,b\n1\n", b"\xff\xfe"])
def test_read_csv_of_no_table(tmp_path, contents):
    if contents:
        (tmp_path / "t.csv").write_bytes(contents)
    said = "t.csv is no readable table of numbers" if contents else "t.csv is missing$"
    with pytest.raises(common.UsageError, match=said):
        common.read_csv(tmp_path / "t.csv")


def test_progress_is_a_line_at_most_every_seconds(capsys):
    """Where there is no terminal."""
    seldom, always = common.Progress("seldom", 10), common.Progress("always", 10, seconds=-1)
    for progress in (seldom, always):
        progress(3, "(move 1 of 2)")
        progress(10)
        progress.close()
    assert capsys.readouterr().out == "  always: 3 of 10 (move 1 of 2)\n  always: 10 of 10\n"


def test_in_parts_keeps_what_is_done(tmp_path):
    """A kill between two parts, and the rest afterwards, gives what all at once gives."""
    images, labels = np.random.default_rng(0).random((6, 1, 28, 28), np.float32), np.arange(6)
    store, network, computed = common.Store(tmp_path), paper_cnn(), []

    def compute(images, labels, tell):
        computed.append(len(images))
        if len(computed) == 2:
            raise KeyboardInterrupt
        return {"sum": images.sum(axis=(1, 2, 3)), "label": labels}

    def sums(network=network, of="images"):
        return common.in_parts(store, "sums", network, (images, labels), {"of": of}, compute, 4)

    with pytest.raises(KeyboardInterrupt):
        sums()
    found = sums()
    assert computed == [4, 2, 2] and np.array_equal(found["label"], labels)
    assert np.array_equal(found["sum"], images.sum(axis=(1, 2, 3)))
    sums(rescaled(network, 2))
    sums(of="others")
    assert computed[3:] == [4, 2, 4, 2]
