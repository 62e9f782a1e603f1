"""python -m experiments.train: what it writes, and that a stopped or killed run goes on to the same bits."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from minicnn import correct, data
from minicnn.weights import load_npz
from tests.experiments.conftest import PNG, TRAIN, assert_mistake, read_json, succeed


def test_train_writes_weights_history_picture_and_json(trained):
    path, out = trained
    written = {"standard.npz", "standard.checkpoint.npz", "standard.csv", "standard.png", "train.json"}
    assert {p.name for p in path.iterdir()} == written
    assert "of 297 test images after 3 epochs" in out and str(path / "standard.npz") in out
    digits = data.load("digits")
    accuracy = correct(common.load_network(path / "standard.npz"), digits.test_images, digits.test_labels).mean()
    rows = list(csv.DictReader(io.StringIO((path / "standard.csv").read_text("utf-8"))))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy, abs=1.5 / 297)
    assert all(float(row["seconds"]) > 0 and float(row["validation_loss"]) > 0 for row in rows)
    assert (path / "standard.png").read_bytes().startswith(PNG)
    results = read_json(path / "train.json")
    assert [{k: str(v) for k, v in row.items()} for row in results["history"]] == rows
    recipe = {"epochs": 3, "batch": 100, "seed": 7, "temperature": 1.0, "learning_rate": 0.1, "l2": {"dense3_W": 0.01}}
    assert recipe.items() <= results["recipe"].items()


def test_train_says_where_its_figures_come_from(trained):
    results = read_json(trained[0] / "train.json")
    assert results["versions"].keys() == {"python", "numpy", "minicnn"}
    assert results["versions"]["numpy"] == np.__version__
    machine = results["machine"]
    assert machine["system"] and machine["device"] == "cpu" and machine["cores"] >= machine["threads"] >= 1
    assert (results["seed"], results["dataset"]) == (7, "digits")
    assert results["command"] == f"python -m experiments.{' '.join(TRAIN)} --out {trained[0]}"


def test_train_again_trains_nothing(trained):
    path, said = trained
    checkpoint = path / "standard.checkpoint.npz"
    kept, last_step = {p: p.read_bytes() for p in path.glob("standard.*")}, checkpoint.stat().st_mtime_ns
    history = read_json(path / "train.json")["history"]
    assert succeed(*TRAIN, "--out", path) == said
    assert {p: p.read_bytes() for p in kept} == kept and checkpoint.stat().st_mtime_ns == last_step
    assert read_json(path / "train.json")["history"] == history


def test_train_refuses_the_folder_of_another_run(trained):
    path, _ = trained
    kept = (path / "standard.npz").read_bytes()
    arguments = [*TRAIN, "--seed", "8", "--out", path]
    assert_mistake(arguments, path / "standard.checkpoint.npz", "seed: 7 there, 8 now", "choose another folder")
    assert (path / "standard.npz").read_bytes() == kept


def test_train_refuses_more_validation_samples_than_there_are(tmp_path):
    assert_mistake(["train", "--validation", "1500", "--out", tmp_path], "choose 0 to 1499")


def start(out):
    """The process of the training command, its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{TRAIN[0]}", *TRAIN[1:], "--out", str(out)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs pytest in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


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
    checkpoint = tmp_path / "standard.checkpoint.npz"
    stopped = start(tmp_path)
    wait_for_epoch(stopped, checkpoint, 1)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert err.strip() == "stopped; what is computed is kept: the same command goes on from there"

    killed = start(tmp_path)
    wait_for_epoch(killed, checkpoint, 2)
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "standard.npz").exists()

    succeed(*TRAIN, "--out", tmp_path)
    assert (tmp_path / "standard.npz").read_bytes() == (trained[0] / "standard.npz").read_bytes()
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_json(f / "train.json")["history"]]
        for f in (tmp_path, trained[0])
    ]
    assert timeless[0] == timeless[1]
