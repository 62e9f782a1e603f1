"""The benchmark runs and writes what it promises; how fast is no matter of a test."""

import sys

import numpy as np
import pytest

from experiments import benchmark
from minicnn import cpu, predict
from minicnn.paper import attacks
from minicnn.paper.networks import paper_cnn
from tests.experiments.conftest import assert_mistake, read_json, run

TASKS = ("train_step", "forward", "saliency")


@pytest.fixture(autouse=True)
def threads():
    """As many as before, after a command that sets their number."""
    before = cpu.threads()
    yield
    cpu.set_threads(before)


def measured(folder, *options):
    """The JSON of a benchmark that must succeed."""
    code, _, err = run("benchmark", "--threads", 1, "--repeats", 1, "--out", folder, *options)
    assert code == 0, err
    return read_json(folder / "benchmark.json")


def test_measure_takes_turns_after_the_rounds_to_warm_up():
    called = []
    contestants = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = benchmark.measure(contestants, repeats=3, warm_up=2, wait=lambda: called.append("wait"))
    assert called == ["wait", "a", "wait", "wait", "b", "wait"] * 5
    assert [len(seconds[name]) for name in "ab"] == [3, 3] and min(map(min, seconds.values())) > 0


def test_benchmark_alone_writes_seconds_and_no_ratio(tmp_path):
    results = measured(tmp_path)
    assert {"threads", "versions", "machine", "date"} <= results.keys()
    assert set(TASKS).isdisjoint(results) and "torch" not in results["versions"]
    for task in TASKS:
        assert results["seconds"][task].keys() == {"minicnn"} and results["seconds"][task]["minicnn"]["median"] > 0


def test_benchmark_against_torch_writes_ratios_and_attacks(untrained, tmp_path):
    torch = pytest.importorskip("torch")
    weights = ("--weights", untrained / "standard.npz")
    results = measured(tmp_path, "--against", "torch", *weights, "--attacks", "--images", 2, 1, 2, 1, "--limit", 1)
    assert results["versions"]["torch"] == torch.__version__
    for task in TASKS:
        seconds = {side: times["median"] for side, times in results["seconds"][task].items()}
        ours = seconds.pop("minicnn")
        assert results[task] == {f"vs_{side}": pytest.approx(ours / other) for side, other in seconds.items()}
        assert seconds.keys() == {"default", "channels_last"}
    assert [(a, f["images"], f["limit"]) for a, f in results["attacks"].items()] == [
        ("1", 2, 1),
        ("2", 1, 1),
        ("3", 2, 1),
        ("4", 1, 1),
    ]
    for figures in results["attacks"].values():
        assert figures["ratio"] == pytest.approx(figures["torch"] / figures["minicnn"])


@pytest.mark.parametrize("algorithm", ["1", "2", "3", "4"])
def test_torch_reference_makes_the_same_attack(algorithm):
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


def test_torch_reference_takes_the_same_training_steps():
    """But for dropout, whose masks differ: without it, the weights of both sides after three steps."""
    torch = pytest.importorskip("torch")
    from experiments import torch_reference

    rng, network = np.random.default_rng(0), paper_cnn(seed=1)
    model = torch_reference.paper_cnn(network).eval()
    optimiser = torch_reference.optimiser(model, benchmark.RECIPE)
    ours = benchmark.NesterovSGD(network.parameters(), benchmark.RECIPE.learning_rate, l2=benchmark.PENALTY)
    for _ in range(3):
        images, labels = rng.random((8, 1, 28, 28), np.float32), rng.integers(0, 10, 8)
        benchmark.cross_entropy(network(benchmark.Tensor(images)), labels).mean().backward()
        ours.step()
        torch_reference.training_step(model, optimiser, torch.from_numpy(images), torch.from_numpy(labels))
    for theirs, parameter in zip(model.parameters(), network.parameters().values(), strict=True):
        values = theirs.detach().numpy()
        np.testing.assert_allclose(values.T if values.ndim == 2 else values, parameter.data, rtol=1e-3, atol=1e-6)


def test_benchmark_without_torch_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run("benchmark", "--against", "torch", "--out", tmp_path)
    assert (code, err) == (2, "error: --against torch needs PyTorch: pip install torch\n")


def test_benchmark_says_mistakes_before_it_measures(untrained, tmp_path):
    arguments = ["benchmark", "--images", 1, 1, 1, 1, "--weights", untrained / "standard.npz", "--out", tmp_path]
    assert_mistake(arguments, "add --attacks")
    assert_mistake(["benchmark", "--attacks", "--weights", tmp_path / "none.npz", "--out", tmp_path], "no such weight")
