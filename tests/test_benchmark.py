"""The benchmark runs and writes what it promises; how fast is no matter of a test."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minicnn import attacks
from minicnn.networks import paper_cnn, predict, save_weights


def run(tmp_path, *options):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "experiments.benchmark", "--threads", "1", "--repeats", "1", "--out", tmp_path]
    done = subprocess.run([*command, "--json", out, *options], capture_output=True, text=True)
    return done, json.loads(out.read_text()) if out.exists() else None


def test_alone_it_writes_seconds_and_no_ratio(tmp_path):
    done, results = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"threads", "versions", "machine", "date"} <= set(results)
    assert "train_step" not in results
    for task in ("train_step", "forward", "saliency"):
        assert results["seconds"][task]["minicnn"]["median"] > 0


def test_against_torch_it_writes_ratios_and_attacks(tmp_path):
    pytest.importorskip("torch")
    weights = tmp_path / "weights.npz"
    save_weights(paper_cnn(), weights)
    options = ("--weights", weights, "--attacks", "--images", "2", "1", "2", "1", "--limit", "1")
    done, results = run(tmp_path, "--against", "torch", *options)
    assert done.returncode == 0, done.stderr
    for task in ("train_step", "forward", "saliency"):
        seconds = {side: times["median"] for side, times in results["seconds"][task].items()}
        for layout in ("default", "channels_last"):
            assert results[task][f"vs_{layout}"] == pytest.approx(seconds["minicnn"] / seconds[layout])
    for figures in results["attacks"].values():
        assert figures["ratio"] == pytest.approx(figures["torch"] / figures["minicnn"])
    assert list(results["attacks"]) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("algorithm", ["1", "2", "3", "4"])
def test_torch_makes_the_same_attack(algorithm):
    """So that both sides of the benchmark do the same work."""
    torch = pytest.importorskip("torch")
    from experiments import torch_reference

    network = paper_cnn(seed=1)
    images = np.random.default_rng(0).random((2, 1, 28, 28), np.float32) * np.eye(28, dtype=np.float32)
    labels = predict(network, images).argmax(axis=1)
    labels[1] = (labels[1] + 1) % 10  # misclassified: not attacked
    ours = attacks.attack(network, images, labels, algorithm, attacks.Setting(limit=2))
    given = torch.from_numpy(images), torch.from_numpy(labels).long()
    succeeded, moves = torch_reference.attack(torch_reference.paper_cnn(network), *given, algorithm, limit=2)
    assert np.array_equal(ours.succeeded, succeeded.numpy())
    assert np.array_equal(ours.moves, moves.numpy())


def test_without_torch_one_clear_error(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    command = [sys.executable, "-m", "experiments.benchmark", "--against", "torch", "--out", tmp_path]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --against torch needs PyTorch: pip install torch"
