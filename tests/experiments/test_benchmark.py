"""The benchmark runs and writes what it promises; how fast is no matter of a test."""

import re
import sys
import time

import numpy as np
import pytest

from experiments import benchmark
from minicnn import NesterovSGD, Tensor, cpu, predict
from minicnn.ops import cross_entropy
from minicnn.paper import attacks
from minicnn.paper.networks import paper_cnn
from tests.experiments.conftest import PNG, assert_mistake, read_json, run

TASKS = ("train_step", "forward", "saliency")
MEMORY = ("peak_memory",) if sys.platform == "linux" else ()
SCALING = ("--scaling", "--batches", 1, 3, "--counts", 1, 2, "--attacks", "--images", 2, 1, 2, 1, "--limit", 1)


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
    assert called == ["wait", "a", "wait", "a", "wait", "wait", "b", "wait", "b", "wait"] * 5
    assert [len(seconds[name]) for name in "ab"] == [3, 3] and min(map(min, seconds.values())) > 0


def test_measure_times_the_second_of_two_short_calls_and_the_only_long_one(monkeypatch):
    for short, calls in (10, 2), (0, 1):
        monkeypatch.setattr(benchmark, "SHORT", short)
        called = []

        def first_is_slow(called=called):
            called.append(time.sleep(0.05 if not called else 0))

        ((seconds,),) = benchmark.measure({"a": first_is_slow}, repeats=1, warm_up=0).values()
        assert len(called) == calls and (seconds > 0.04) == (calls == 1)


def assert_memory(results, sides):
    """Each that of a process of its own, not of this one, and without the other sides' libraries."""
    peaks = results["peak_memory"]
    assert peaks.keys() == sides and 2**25 < peaks["minicnn"] < 2**28
    assert all(peaks["minicnn"] < peak < 2**31 for side, peak in peaks.items() if side != "minicnn")


def test_benchmark_alone_writes_seconds_and_no_ratio(tmp_path):
    held = np.ones(2**28, np.uint8)
    results = measured(tmp_path)
    if MEMORY:
        assert_memory(results, {"minicnn"})
    assert held.all()
    assert {"threads", "versions", "machine", "date"} <= results.keys()
    assert set(TASKS).isdisjoint(results) and "torch" not in results["versions"]
    for task in TASKS:
        assert results["seconds"][task].keys() == {"minicnn"} and results["seconds"][task]["minicnn"]["median"] > 0


def test_benchmark_against_torch_writes_ratios_and_attacks(untrained, tmp_path):
    torch = pytest.importorskip("torch")
    weights = ("--weights", untrained / "standard.npz")
    results = measured(tmp_path, "--against", "torch", *weights, *SCALING)
    assert_scaling(results, {"minicnn", "default", "channels_last"}, [1])
    assert results["versions"]["torch"] == torch.__version__
    if MEMORY:
        assert_memory(results, {"minicnn", "default", "channels_last"})
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
        better = max(figures["default"], figures["channels_last"])
        assert figures["ratio"] == pytest.approx(better / figures["minicnn"])


@pytest.fixture(scope="module")
def scaled(untrained, tmp_path_factory):
    """The folder of a command that measured cost against work by one and two threads, whose picture could not be
    written; what it said of that; and what the same command said after it."""

    def unwritable(*_):
        raise OSError("no picture")

    folder, before = tmp_path_factory.mktemp("scaled"), cpu.threads()
    command = ("benchmark", "--threads", 2, "--repeats", 1, *SCALING, "--weights", untrained / "standard.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.common.save_figure", unwritable)
        failed = run(*command, "--out", folder)
    results = read_json(folder / "benchmark.json")
    again = run(*command, "--out", folder)
    cpu.set_threads(before)
    return folder, results, failed, again


def test_benchmark_compares_the_step_with_its_floor(scaled):
    """The floor by hand: multiply-adds an image of every layer, three times, the first layer's twice."""
    convolutions = [26**2 * 9 * 32, 24**2 * 9 * 32 * 32, 10**2 * 9 * 32 * 64, 8**2 * 9 * 64 * 64]
    layers = [*convolutions, 1024 * 200, 200 * 200, 200 * 10]
    found, step = scaled[1]["floor"], scaled[1]["seconds"]["train_step"]["minicnn"]["median"]
    assert found["operations"] == 2 * 128 * (3 * sum(layers) - layers[0]) == benchmark.products(128)
    assert found["seconds"] == pytest.approx(found["operations"] / found["sgemm_per_second"])
    assert found["ratio"] == pytest.approx(step / found["seconds"])


def assert_scaling(results, sides, threads):
    rows = results["scaling"]
    assert [(row["threads"], row["batch"]) for row in rows] == [(count, batch) for count in threads for batch in (1, 3)]
    for row in rows:
        assert row["seconds"].keys() == set(TASKS) and all(of.keys() == sides for of in row["seconds"].values())
    attacked = [(row["algorithm"], row["images"]) for row in results["attack_scaling"]]
    assert attacked == [(algorithm, count) for algorithm in "123" for count in (1, 2)]
    for row in results["attack_scaling"]:
        assert row.keys() == {"algorithm", "images", "limit"} | sides | ({"ratio"} if len(sides) > 1 else set())


def test_benchmark_measures_cost_against_work_and_draws_it(scaled):
    folder, results, _, again = scaled
    assert_scaling(results, {"minicnn"}, [1, 2])
    assert again[0] == 0 and (folder / "benchmark.png").read_bytes().startswith(PNG)


def test_benchmark_measures_nothing_twice_and_loses_nothing_to_a_picture(scaled):
    folder, before, failed, again = scaled
    assert (failed[0], failed[2]) == (2, "error: no picture\n") and (again[0], again[2]) == (0, "")
    after = read_json(folder / "benchmark.json")
    timed = "seconds", "compile_seconds", "floor", "scaling", "attacks", *MEMORY
    assert {name: before[name] for name in timed} == {name: after[name] for name in timed}


def test_benchmark_takes_no_more_loss_differences_than_it_says():
    """And no count twice."""
    cases = benchmark.cases_of_scaling(benchmark.PLANS["cpu"], [101, 200, 101])
    assert [case[:2] for case in cases] == [("1", 101), ("1", 200), ("2", 100), ("3", 101), ("3", 200)]


def test_benchmark_says_what_slows_numpy(monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert benchmark.who_computes()["OPENBLAS_CORETYPE"] == "Haswell"
    assert capsys.readouterr().err.startswith("note: OPENBLAS_CORETYPE=Haswell is set: NumPy's products may be slower")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "OPENBLAS_CORETYPE" not in benchmark.who_computes() and not capsys.readouterr().err


def test_benchmark_says_what_it_found_in_80_columns(scaled):
    folder, _, _, (_, out, _) = scaled
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 80
    assert re.search(r"7\.6 GFLOP, take .* ms at sgemm's\n\d+ GFLOP/s: the step takes \S+ times its floor\n", out)
    assert cpu.convolutions() != "compiled" or re.search(r"\nthe C kernels are compiled in \S+ s, once on a", out)


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
    ours = NesterovSGD(network.parameters(), benchmark.RECIPE.learning_rate, l2=benchmark.PENALTY)
    for _ in range(3):
        images, labels = rng.random((8, 1, 28, 28), np.float32), rng.integers(0, 10, 8)
        cross_entropy(network(Tensor(images)), labels).mean().backward()
        ours.step()
        torch_reference.training_step(model, optimiser, torch.from_numpy(images), torch.from_numpy(labels))
    for theirs, parameter in zip(model.parameters(), network.parameters().values(), strict=True):
        values = theirs.detach().numpy()
        np.testing.assert_allclose(values.T if values.ndim == 2 else values, parameter.data, rtol=1e-3, atol=1e-6)


def test_benchmark_without_torch_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run("benchmark", "--against", "torch", "--out", tmp_path)
    assert (code, err) == (2, "error: --against torch needs PyTorch: pip install torch\n")


def test_benchmark_says_that_there_are_no_more_images(untrained, tmp_path):
    command = ("benchmark", "--threads", 1, "--repeats", 1, "--attacks", "--weights", untrained / "standard.npz")
    code, _, err = run(*command, "--images", 298, 1, 1, 1, "--limit", 1, "--out", tmp_path)
    assert (code, err) == (0, "note: digits has 297 test images: no more are taken\n")


def test_benchmark_says_mistakes_before_it_measures(untrained, tmp_path):
    arguments = ["benchmark", "--images", 1, 1, 1, 1, "--weights", untrained / "standard.npz", "--out", tmp_path]
    assert_mistake(arguments, "add --attacks")
    for option in (("--limit", 100), ("--network", "standard"), ("--weights", "w.npz"), ("--counts", 5)):
        assert_mistake(["benchmark", *option, "--out", tmp_path], f"{option[0]}: of the attacks, add --attacks")
    assert_mistake(["benchmark", "--batches", 5, "--out", tmp_path], "--batches: of the scaling, add --scaling")
    assert_mistake(["benchmark", "--attacks", "--counts", 5, "--out", tmp_path], "--counts: of the scaling, add --sc")
    assert_mistake(["benchmark", "--threads", 1025, "--out", tmp_path], "--threads 1025: at most 1024")
    assert_mistake(["benchmark", "--scaling", "--device", "cuda", "--out", tmp_path], "leave out --device cuda")
    assert_mistake(["benchmark", "--attacks", "--weights", tmp_path / "none.npz", "--out", tmp_path], "no such weight")
