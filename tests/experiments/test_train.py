"""The paper's training, and python -m experiments.train: what it writes, and that a stopped or killed run goes on to
the same bits."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from experiments import common
from experiments.train import Protocol, plot_history, train
from minicnn import correct, data
from minicnn.weights import get_weights, load_npz, trained_at
from tests.experiments.conftest import PNG, TRAIN, TRAINED, assert_mistake, read_json, run, start, succeed

PROTOCOL = Protocol("mnist", T=20.0, epochs=50, batch=128)


@pytest.mark.parametrize(
    ("name", "temperature", "rate"),
    [("standard", 1, 0.1), ("temperature", 20, 0.1), ("distilled", 20, 0.05), ("standard-distilled", 1, 0.05)],
)
def test_protocol_recipe_of_each_network(name, temperature, rate):
    recipe = PROTOCOL.recipe(name)
    assert (recipe.temperature, recipe.learning_rate) == (temperature, rate)
    assert (recipe.epochs, recipe.batch, recipe.seed, recipe.l2) == (50, 128, 0, {"dense3_W": 0.01})


@pytest.mark.parametrize(
    ("name", "teacher", "T"), [("distilled", "temperature", 5.0), ("standard-distilled", "standard", 1.0)]
)
def test_train_trains_the_teacher_first(tmp_path, name, teacher, T):
    """At the temperature of the table; the student's targets depend on the teacher's dropout."""
    images, labels = np.random.default_rng(0).random((48, 1, 28, 28), np.float32), np.arange(48) % 10
    dataset = data.Dataset("digits", images[:32], labels[:32], *2 * (images[32:], labels[32:]))
    protocol = Protocol("digits", T=5.0, epochs=1, batch=16)
    students = []
    for on in (True, False):
        folder = tmp_path / str(on)
        told = dataclasses.replace(protocol, teacher_dropout=on)
        network, history = train(name, dataset, told, folder)
        files = [told.file_name(name), told.file_name(teacher)]
        assert {f"{file}.{end}" for file in files for end in ("npz", "csv", "checkpoint.npz")} == {
            path.name for path in folder.iterdir()
        }
        students.append(get_weights(network))
        recipe = json.loads(str(load_npz(folder / f"{files[1]}.checkpoint.npz")["fingerprint"]))
        assert [trained_at(folder / f"{file}.npz") for file in files] == [T, T]
        assert recipe["temperature"] == T and len(history) == 1
    assert not np.array_equal(students[0]["dense3_W"], students[1]["dense3_W"])
    assert len({(tmp_path / str(on) / f"{files[1]}.npz").read_bytes() for on in (True, False)}) == 1


def test_protocol_names_files_by_what_is_not_the_default():
    names = {
        (): "distilled",
        (("T", 5.0),): "distilled-T5",
        (("T", 0.1), ("seed", 2**64 - 1)): "distilled-T0.1-seed18446744073709551615",
        (("batch", 32),): "distilled-batch32",
        (("teacher_dropout", False),): "distilled-teacher-without-dropout",
        (("epochs", 1), ("graph", False), ("device", "cuda")): "distilled",
    }
    for changes, name in names.items():
        protocol = dataclasses.replace(PROTOCOL, **dict(changes))
        assert protocol.file_name("distilled") == name == common.network_name(name)
    assert dataclasses.replace(PROTOCOL, T=5.0, teacher_dropout=False).file_name("standard") == "standard"


def test_plot_history_of_several_seeds_names_each_curve_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(common, "save_figure", lambda path, fig: drawn.append(fig))
    row = {"epoch": 1, "train_loss": 0.5, "test_loss": 0.4, "test_accuracy": 0.875, "seconds": 2.0}
    plot_history(tmp_path / "a.png", "temperature", 20.0, [row], 2 * [row | {"test_accuracy": 0.75}])
    (loss, accuracy, seconds), title = drawn[0].axes, drawn[0].get_suptitle()
    assert [len(axes.lines) for axes in (loss, accuracy, seconds)] == [4, 2, 2]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["training, T = 20, dropout", "test, loss at T = 1"]
    assert seconds.get_ylim()[1] > 2
    assert title == "temperature: test accuracy 87.50% after 1 epochs, 75.00% after 2 epochs"


def test_train_writes_weights_history_picture_and_json(trained):
    path, out = trained
    written = {
        *(f"{TRAINED}.{end}" for end in ("npz", "checkpoint.npz", "csv", "png")),
        f"train_{TRAINED}.json",
        ".lock",
    }
    assert {p.name for p in path.iterdir()} == written
    assert "of 297 test images after 3 epochs" in out and str(path / f"{TRAINED}.npz") in out
    digits = data.load("digits")
    accuracy = correct(common.load_network(path / f"{TRAINED}.npz"), digits.test_images, digits.test_labels).mean()
    rows = list(csv.DictReader(io.StringIO((path / f"{TRAINED}.csv").read_text("utf-8"))))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy, abs=1.5 / 297)
    assert all(float(row["seconds"]) > 0 and float(row["validation_loss"]) > 0 for row in rows)
    assert (path / f"{TRAINED}.png").read_bytes().startswith(PNG)
    results = read_json(path / f"train_{TRAINED}.json")
    assert [{k: str(v) for k, v in row.items()} for row in results["history"]] == rows
    recipe = {"epochs": 3, "batch": 100, "seed": 7, "temperature": 1.0, "learning_rate": 0.1, "l2": {"dense3_W": 0.01}}
    assert recipe.items() <= results["recipe"].items()


def test_train_says_where_its_figures_come_from(trained):
    results = read_json(trained[0] / f"train_{TRAINED}.json")
    assert results["versions"].keys() == {"python", "numpy", "minicnn"}
    assert results["versions"]["numpy"] == np.__version__
    machine = results["machine"]
    assert machine["system"] and machine["device"] == "cpu" and machine["cores"] >= machine["threads"] >= 1
    assert (results["seed"], results["dataset"]) == (7, "digits")
    assert results["command"] == f"python -m experiments.{' '.join(TRAIN)} --out {trained[0]}"


def test_train_again_trains_nothing(trained):
    path, said = trained
    checkpoint = path / f"{TRAINED}.checkpoint.npz"
    kept, last_step = {p: p.read_bytes() for p in path.glob("standard*.*")}, checkpoint.stat().st_mtime_ns
    history = read_json(path / f"train_{TRAINED}.json")["history"]
    assert succeed(*TRAIN, "--out", path) == said
    assert {p: p.read_bytes() for p in kept} == kept and checkpoint.stat().st_mtime_ns == last_step
    assert read_json(path / f"train_{TRAINED}.json")["history"] == history


OTHERS = {
    "seed": ("--seed 8", "standard-seed8-batch100"),
    "T": ("--network temperature --temperature 2.5", "temperature-T2.5-seed7-batch100"),
    "teacher without dropout": (
        "--network standard-distilled --teacher-dropout off",
        "standard-distilled-seed7-batch100-teacher-without-dropout",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_train_of_another_run_has_files_of_its_own(trained, tmp_path, other):
    """In the folder of the first, which keeps its own; and attack finds them."""
    options, file_name = OTHERS[other]
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    kept = {path: path.read_bytes() for path in tmp_path.glob("standard*.*") if path.suffix != ".png"}
    said = succeed(*TRAIN, *options.split(), "--out", tmp_path)
    assert str(tmp_path / f"{file_name}.npz") in said
    assert {path: path.read_bytes() for path in kept} == kept
    recipe = read_json(tmp_path / f"train_{file_name}.json")["recipe"]
    T = 2.5 if other == "T" else 1.0
    assert recipe["temperature"] == T == trained_at(tmp_path / f"{file_name}.npz")
    succeed("attack", "--network", file_name, "--images", 2, "--limit", 1, "--out", tmp_path)
    found = read_json(tmp_path / f"attack_{file_name}_1_scaled.json")
    assert found["weights"] == str(tmp_path / f"{file_name}.npz") and found["trained_at"] == T


def test_train_of_fewer_epochs_than_there_are_is_refused(trained, tmp_path):
    """Of the network itself, and of its teacher."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for network in ("standard", "standard-distilled"):
        arguments = [*TRAIN, "--network", network, "--epochs", "1", "--out", tmp_path]
        assert_mistake(arguments, f"{TRAINED}.checkpoint.npz holds 3 epochs, 1 are asked for")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_train_on_other_data_is_refused_without_hashes(trained):
    """The network's files and name are those of another run then."""
    path, _ = trained
    kept = (path / f"{TRAINED}.npz").read_bytes()
    arguments = [*TRAIN, "--validation", "50", "--out", path]
    assert_mistake(arguments, path / f"{TRAINED}.checkpoint.npz", "choose another")
    assert not re.search("[0-9a-f]{12}", run(*arguments)[2].replace(str(path), ""))
    assert (path / f"{TRAINED}.npz").read_bytes() == kept


@pytest.mark.parametrize("suffix", ["checkpoint.npz", "npz", "csv"])
def test_train_with_something_in_the_way_names_it(tmp_path, suffix):
    (tmp_path / f"standard-batch500.{suffix}").mkdir()
    arguments = ["train", "--epochs", "1", "--batch", "500", "--out", tmp_path]
    assert_mistake(arguments, tmp_path / f"standard-batch500.{suffix}")


def test_train_refuses_more_validation_samples_than_there_are(tmp_path):
    assert_mistake(["train", "--validation", "1500", "--out", tmp_path], "choose 0 to 1499")


def wait_for_epoch(process, checkpoint, epoch):
    """Return as soon as the checkpoint of that epoch is there and the process is at the next one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if checkpoint.exists() and len(json.loads(str(load_npz(checkpoint)["history"]))) >= epoch:
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_train_stopped_and_killed_goes_on_to_the_same_bits(trained, tmp_path):
    """Ctrl-C in the second epoch, kill -9 in the third, and the command once more."""
    checkpoint = tmp_path / f"{TRAINED}.checkpoint.npz"
    command = (*TRAIN, "--out", tmp_path)
    # A shell that runs pytest in the background has Ctrl-C ignored, and children inherit that.
    stopped = start(*command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for_epoch(stopped, checkpoint, 1)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert err.strip() == "stopped; what is computed is kept: the same command goes on from there"

    killed = start(*command)
    wait_for_epoch(killed, checkpoint, 2)
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / f"{TRAINED}.npz").exists()

    succeed(*TRAIN, "--out", tmp_path)
    assert (tmp_path / f"{TRAINED}.npz").read_bytes() == (trained[0] / f"{TRAINED}.npz").read_bytes()
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_json(f / f"train_{TRAINED}.json")["history"]]
        for f in (tmp_path, trained[0])
    ]
    assert timeless[0] == timeless[1]
