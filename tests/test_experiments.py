"""The experiments as a user meets them: commands in processes of their own, what they say and write, and mistakes."""

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import common, masking, reproduce
from minicnn import backend, data, networks
from minicnn.backend import DeviceError
from minicnn.saliency import saliency_maps
from tests import test_attacks, test_facts

one_blas_thread = test_attacks.one_blas_thread

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text("utf-8"))
OPTIONS = {
    "train": "--network --epochs --batch --validation --temperature --teacher-dropout --no-graph",
    "attack": "--network --weights --algorithm --arithmetic --images --limit --maximum --skip-unchanged --ties "
    "--attack-temperature --denominator --other",
    "saliency_maps": "--network --weights --index --arithmetic --images --ties --attack-temperature",
    "reproduce": "--epochs --seeds --refreshed --trained --masking --denominator",
    "benchmark": "--against",
}


def start(experiment, *arguments, data_folder=None):
    """The process of python -m experiments.EXPERIMENT, its output piped."""
    environment = {k: v for k, v in os.environ.items() if k != "MINICNN_DATA"}
    if data_folder:
        environment["MINICNN_DATA"] = str(data_folder)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{experiment}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs pytest in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(experiment, *arguments, data_folder=None):
    """(exit code, stdout, stderr) of python -m experiments.EXPERIMENT."""
    process = start(experiment, *arguments, data_folder=data_folder)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def succeed(experiment, *arguments, data_folder=None):
    """stdout of a command that must succeed and have nothing to complain about, without the progress of a slow one."""
    code, out, err = run(experiment, *arguments, data_folder=data_folder)
    assert (code, err) == (0, "")
    return "".join(line for line in out.splitlines(keepends=True) if not re.match(r"  .*: \d+ of \d+", line))


def read_json(path):
    """A JSON file as the standard has it, without NaN or Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}, which is no JSON")

    return json.loads(Path(path).read_text("utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with standard.npz, untrained, and saturated.npz, the same with logits a million times as large."""
    path = tmp_path_factory.mktemp("networks")
    network = networks.paper_cnn(seed=1)
    networks.save_weights(network, path / "standard.npz")
    dense3 = network.layers["dense3"]
    dense3.W.data[...] *= 1e6
    networks.save_weights(network, path / "saturated.npz")
    return path


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help(experiment):
    text = succeed(experiment, "--help")
    assert text.startswith("usage: ")
    for option in f"--dataset --device --seed --out --json {OPTIONS.get(experiment, '')}".split():
        assert f"\n  {option} " in text, option


def test_every_experiment_is_tested():
    assert set(OPTIONS) <= set(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs", "0"], "argument --epochs: must be a positive number, got 0"),
        (["train", "--temperature", "-3"], "argument --temperature: must be a positive number, got -3"),
        (["train", "--temperature", "nan"], "argument --temperature: must be a positive number, got nan"),
        (["train", "--seed", "-1"], "argument --seed: must be 0 to 2^64 - 1, got -1"),
        (["train", "--network", "student"], "argument --network: invalid choice: 'student'"),
        (["attack", "--limit", "-1"], "argument --limit: must be a positive number, got -1"),
        (["attack", "--algorithm", "5"], "argument --algorithm: invalid choice: '5'"),
        (["attack", "--network", "standard", "--weights", "w.npz"], "not allowed with argument"),
        (["saliency_maps", "--index", "first"], "argument --index: invalid int value: 'first'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(tmp_path, arguments, message):
    code, out, err = run(*arguments, "--out", tmp_path / "out")
    *usage, last = err.splitlines()
    assert (code, out) == (2, "")
    assert usage[0].startswith("usage: ") and "Traceback" not in err
    assert "error: " in last and message in last
    assert not (tmp_path / "out").exists()


def assert_mistake(arguments, *mentioned, data_folder=None):
    """The command ends with code 2, one line that says what is wrong, and no traceback."""
    code, _, err = run(*arguments, data_folder=data_folder)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for words in mentioned:
        assert str(words) in err


def test_no_network_trained_yet(tmp_path):
    command = "python -m experiments.train --dataset digits --network distilled"
    assert_mistake(["attack", "--network", "distilled", "--out", tmp_path], tmp_path, command, "--weights")


def test_weight_file_that_is_not_there(tmp_path):
    path = tmp_path / "none.npz"
    assert_mistake(["attack", "--weights", path, "--out", tmp_path], f"{path}: no such weight file")


def test_damaged_weight_file(folder, tmp_path):
    path = tmp_path / "damaged.npz"
    contents = (folder / "standard.npz").read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    assert_mistake(["saliency_maps", "--weights", path, "--out", tmp_path], f"{path}: not a readable .npz file")


def test_weights_of_another_network(folder, tmp_path):
    path = tmp_path / "small.npz"
    weights = networks.load_npz(folder / "standard.npz")
    networks.save_npz(path, weights | {"dense3_b": np.zeros(9, np.float32)})
    assert_mistake(["attack", "--weights", path, "--out", tmp_path], path, "dense3_b has shape (9,)", "(10,)")


def test_options_that_exclude_each_other(folder, tmp_path):
    weights = ("--weights", folder / "standard.npz", "--out", tmp_path)
    assert_mistake(["saliency_maps", "--index", "1", "--images", "2", *weights], "--index", "--images")
    assert_mistake(["benchmark", "--images", "1", "1", "1", "1", *weights], "add --attacks")
    assert_mistake(["benchmark", "--attacks", "--weights", tmp_path / "none.npz", "--out", tmp_path], "no such weight")


@pytest.mark.parametrize("index", [-1, 297])
def test_index_out_of_range(folder, tmp_path, index):
    arguments = ["saliency_maps", "--weights", folder / "standard.npz", "--index", index, "--out", tmp_path]
    assert_mistake(arguments, f"--index {index}", "0 to 296")


def test_cuda_without_a_gpu(folder, tmp_path):
    try:
        backend.get("cuda")
    except DeviceError as error:
        arguments = ["attack", "--device", "cuda", "--weights", folder / "standard.npz", "--out", tmp_path]
        assert_mistake(arguments, str(error))
    else:
        pytest.skip("this machine has a GPU: there is no error to be seen")


def test_damaged_mnist(tmp_path):
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(b"\x1f\x8b\x08 and no more")
    arguments = ["train", "--dataset", "mnist", "--out", tmp_path / "out"]
    assert_mistake(arguments, path, "replace it", data_folder=tmp_path)


def test_more_validation_samples_than_samples(tmp_path):
    assert_mistake(["train", "--validation", "1500", "--out", tmp_path], "choose 0 to 1499")


def test_out_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert_mistake(["train", "--out", path], path, "--out")


def test_json_where_no_file_can_be(tmp_path):
    """Said before anything is computed."""
    (tmp_path / "file").touch()
    for path, wrong in ((tmp_path / "file" / "results.json", tmp_path / "file"), (tmp_path, tmp_path)):
        assert_mistake(["train", "--epochs", "1", "--out", tmp_path, "--json", path], wrong, "--json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


TRAIN = ("train", "--epochs", "3", "--batch", "100", "--seed", "7", "--validation", "100")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a training run of three epochs has written, and what the command said."""
    path = tmp_path_factory.mktemp("trained")
    return path, succeed(*TRAIN, "--out", path)


def test_train_writes_weights_history_picture_and_json(trained):
    path, out = trained
    assert {p.name for p in path.iterdir()} == {
        "standard.npz",
        "standard.checkpoint.npz",
        "standard.csv",
        "standard.png",
        "train.json",
    }
    assert "of 297 test images after 3 epochs" in out and str(path / "standard.npz") in out
    network = networks.load_weights(networks.paper_cnn(), path / "standard.npz")
    digits = data.load("digits")
    accuracy = (networks.predict(network, digits.test_images).argmax(axis=1) == digits.test_labels).mean()
    rows = list(csv.DictReader(io.StringIO((path / "standard.csv").read_text("utf-8"))))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy, abs=1.5 / 297)
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert (path / "standard.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    results = read_json(path / "train.json")
    assert [{k: str(v) for k, v in row.items()} for row in results["history"]] == rows
    assert {"epochs": 3, "batch": 100, "seed": 7, "temperature": 1.0, "learning_rate": 0.1}.items() <= results[
        "recipe"
    ].items()


def assert_says_where_it_comes_from(results, experiment, seed=0):
    assert set(results["versions"]) == {"python", "numpy", "minicnn"}
    assert results["versions"]["numpy"] == np.__version__
    assert results["machine"]["device"] == "cpu" and results["machine"]["cores"] >= results["machine"]["threads"] >= 1
    assert results["machine"]["system"]
    assert (results["seed"], results["dataset"]) == (seed, "digits")
    assert results["command"].startswith(f"python -m experiments.{experiment} --")


def test_train_says_where_its_figures_come_from(trained):
    results = read_json(trained[0] / "train.json")
    assert_says_where_it_comes_from(results, "train", seed=7)
    assert results["command"] == f"python -m experiments.{' '.join(TRAIN)} --out {trained[0]}"


def test_the_same_command_again_trains_nothing(trained):
    path, said = trained
    checkpoint = path / "standard.checkpoint.npz"
    kept, last_step = {p: p.read_bytes() for p in path.glob("standard.*")}, checkpoint.stat().st_mtime_ns
    history = read_json(path / "train.json")["history"]
    assert succeed(*TRAIN, "--out", path) == said
    assert {p: p.read_bytes() for p in kept} == kept and checkpoint.stat().st_mtime_ns == last_step
    assert read_json(path / "train.json")["history"] == history


def test_another_run_in_the_same_folder_is_refused(trained):
    path, _ = trained
    kept = (path / "standard.npz").read_bytes()
    arguments = [*TRAIN, "--seed", "8", "--out", path]
    assert_mistake(arguments, path / "standard.checkpoint.npz", "seed: 7 there, 8 now", "choose another folder")
    assert (path / "standard.npz").read_bytes() == kept


def wait_for_epoch(process, checkpoint, epoch):
    """Return as soon as the checkpoint of that epoch is there and the process is at the next one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if checkpoint.exists() and len(json.loads(str(networks.load_npz(checkpoint)["history"]))) >= epoch:
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def test_stopped_and_killed_training_goes_on_to_the_same_bits(trained, tmp_path):
    """Ctrl-C in the second epoch, kill -9 in the third, and the command once more."""
    checkpoint = tmp_path / "standard.checkpoint.npz"
    stopped = start(*TRAIN, "--out", tmp_path)
    wait_for_epoch(stopped, checkpoint, 1)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert err.strip() == "stopped; what is computed is kept: the same command goes on from there"

    killed = start(*TRAIN, "--out", tmp_path)
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


def test_attack_keeps_its_parts(folder, tmp_path):
    """A part on disk is not computed again, which a changed part shows; a damaged one is."""
    arguments = ["attack", "--weights", folder / "standard.npz", "--algorithm", "3", "--images", "20", "--limit", "4"]
    arguments += ["--arithmetic", "plain", "--out", tmp_path]
    out = succeed(*arguments)
    written = tmp_path / "attack_standard_3_plain.json"
    first = read_json(written)
    assert_says_where_it_comes_from(first, "attack")
    assert first["weights"] == str(folder / "standard.npz") and first["ties"] == "all"
    assert (first["algorithm"], first["setting"]["arithmetic"], first["setting"]["limit"]) == ("3", "plain", 4)
    attacked, succeeded = first["attacked_by_image"], first["succeeded_by_image"]
    assert first["images"] == 20 == len(attacked)
    assert first["attacked"] == sum(attacked) == 20 - first["misclassified"] > 0
    assert first["succeeded"] == sum(succeeded)
    assert first["success_rate"] == first["succeeded"] / first["attacked"]
    low, high = first["success_interval"]
    assert 0 <= low <= first["success_rate"] <= high <= 1
    assert first["moves"] == sum(first["moves_by_image"]) > 0 and first["backwards"] == first["attacked"]
    for figure in (first["misclassified"], first["attacked"], f"{first['success_rate']:.1%}", first["forwards"]):
        assert f" {figure}" in out

    (part,) = (tmp_path / "parts").iterdir()
    arrays = networks.load_npz(part)
    networks.save_npz(part, arrays | {"moves": arrays["moves"] + 1000})
    assert succeed(*arguments) != out
    second = read_json(written)
    assert second["moves_by_image"] == [moves + 1000 for moves in first["moves_by_image"]]

    part.write_bytes(part.read_bytes()[:100])
    assert succeed(*arguments) == out
    third = read_json(written)
    assert {k: third[k] for k in first if k != "date"} == {k: first[k] for k in first if k != "date"}


def test_attack_counts_what_it_is_asked_to(folder, trained, tmp_path):
    """Of all images, of those that one network gets right, and of those that both do."""
    weights, other = trained[0] / "standard.npz", folder / "standard.npz"
    digits = data.load("digits")
    right = [
        networks.predict(networks.load_weights(networks.paper_cnn(), path), digits.test_images[:60]).argmax(axis=1)
        == digits.test_labels[:60]
        for path in (weights, other)
    ]
    assert 0 < (right[0] & right[1]).sum() < right[0].sum() < 60
    arguments = ["attack", "--weights", weights, "--images", 60, "--limit", 5, "--out", tmp_path, "--other", other]
    for denominator, counted in ("correct", right[0]), ("all", np.ones(60)), ("common", right[0] & right[1]):
        out = succeed(*arguments, "--denominator", denominator)
        figures = read_json(tmp_path / "attack_standard_1_scaled.json")
        assert (figures["denominator"], figures["counted"]) == (denominator, counted.sum())
        assert figures["succeeded"] == (np.array(figures["succeeded_by_image"]) & (counted > 0)).sum()
        assert f"{figures['success_rate']:.1%}" in out
    assert_mistake([*arguments[:-2], "--denominator", "common"], "--other")


@pytest.fixture(scope="module")
def three_networks(trained, tmp_path_factory):
    """A folder as reproduce --trained takes it: one network under the three names."""
    path = tmp_path_factory.mktemp("three")
    for name, suffix in itertools.product(common.NETWORKS, ("npz", "csv")):
        (path / f"{name}.{suffix}").write_bytes((trained[0] / f"standard.{suffix}").read_bytes())
    return path


def test_reproduce_writes_the_table_the_figures_and_both_reports(three_networks, tmp_path):
    arguments = ["reproduce", "--trained", three_networks, "--images", 12, "--limit", 3, "--refreshed", 1]
    out = succeed(*arguments, "--out", tmp_path)
    results = read_json(tmp_path / "results.json")
    assert_says_where_it_comes_from(results, "reproduce")
    (run,) = results["runs"]
    assert run["epochs"] == {"standard": 3, "temperature": 3, "distilled": 3}
    assert len(results["table"]) == 12 and all(all(row.values()) for row in results["table"])
    assert all(row["verdict"] in out for row in results["table"])
    first, *others = run["networks"].values()
    for figures in others:
        assert figures["attacks"]["1"] == first["attacks"]["1"] and figures["gradient"]["median"] == 0

    text, page = ((tmp_path / name).read_text("utf-8") for name in ("report.md", "report.html"))
    assert all(row["verdict"] in text for row in results["table"])
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {"finding.png", "success.png", "figures_1_and_2_plain.png", "standard.png"} <= set(pictures)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in pictures)
    assert page.count("<img ") == page.count("data:image/png;base64,") == len(pictures) and "http" not in page


@pytest.mark.parametrize("take_trained", [True, False], ids=["--trained", "found in the folder"])
def test_reproduce_with_the_masking_study(three_networks, tmp_path, monkeypatch, take_trained):
    """One part of it: what it finds is in the results and in both reports."""
    monkeypatch.setattr(masking, "PARTS", ("control",))
    monkeypatch.setattr(masking, "SCALES", (1, 2))
    monkeypatch.setattr(reproduce, "train_all", lambda dataset, options: take(options))
    options = reproduce.command_line().parse_args(["--masking", "--images", "5", "--limit", "1", "--refreshed", "0"])
    options.out, options.json = tmp_path, tmp_path / "results.json"

    def take(options):
        names = {name: common.load_network(three_networks / f"{name}.npz", options) for name in common.NETWORKS}
        for name in names:
            (tmp_path / f"{name}.npz").write_bytes((three_networks / f"{name}.npz").read_bytes())
            (tmp_path / f"{name}.png").write_bytes(b"\x89PNG")
        return names, {name: [{}] for name in names}

    if take_trained:
        options.trained = three_networks
    reproduce.main(options)
    ((heading, found),) = read_json(options.json)["masking"].items()
    assert [row["s"] for row in found["control"]] == [1, 2]
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert heading in text and "decisions that differ" in text
    assert (tmp_path / "masking_control.png").exists()


@pytest.mark.parametrize("missing", ["distilled.npz", "temperature.csv"])
def test_reproduce_names_the_file_that_trained_lacks(three_networks, tmp_path, missing):
    for path in three_networks.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert_mistake(["reproduce", "--trained", tmp_path, "--out", tmp_path / "out"], tmp_path / missing)


def test_reproduce_has_one_seed_of_trained_networks(three_networks, tmp_path):
    assert_mistake(["reproduce", "--trained", three_networks, "--seeds", "2", "--out", tmp_path], "--seeds")


def test_saliency_map_of_one_image(folder, tmp_path):
    path, weights = tmp_path / "deep" / "down" / "map.json", folder / "standard.npz"
    out = succeed("saliency_maps", "--weights", weights, "--index", 5, "--out", tmp_path, "--json", path)
    results = read_json(path)
    assert_says_where_it_comes_from(results, "saliency_maps")
    digits = data.load("digits")
    network = networks.load_weights(networks.paper_cnn(ties="all"), folder / "standard.npz")
    expected = saliency_maps(network, digits.test_images[5:6], digits.test_labels[5:6], arithmetic="plain").maps[0]
    found = np.array(results["map"])
    assert found.shape == (28, 28)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert (results["index"], results["label"]) == (5, digits.test_labels[5])
    assert results["max"] == found.max() and results["mean"] == pytest.approx(found.mean(), rel=1e-12)
    assert results["log10_max"] == pytest.approx(np.log10(found.max()), rel=1e-12)
    assert results["log10_scale"] == 0
    assert f"test image 5, label {digits.test_labels[5]}, plain" in out
    for name in ("saliency_maps.png", "figures_1_and_2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.fixture(scope="module")
def saturated_index(folder):
    """A test image whose plain map is exactly zero on the saturated network."""
    digits = data.load("digits")
    network = networks.load_weights(networks.paper_cnn(), folder / "saturated.npz")
    found = saliency_maps(network, digits.test_images[:50], digits.test_labels[:50], arithmetic="plain")
    return int(np.flatnonzero(found.zeros == 28 * 28)[0])


def test_plain_map_of_a_saturated_network_has_no_logarithm(folder, saturated_index, tmp_path):
    out = succeed("saliency_maps", "--weights", folder / "saturated.npz", "--index", saturated_index, "--out", tmp_path)
    results = read_json(tmp_path / "saliency_maps.json")
    assert not np.any(results["map"])
    assert (results["mean"], results["max"], results["log10_max"]) == (0, 0, None)
    assert "no entry above 0" in out


def test_scaled_map_of_a_saturated_network_has_its_size_beside_it(folder, saturated_index, tmp_path):
    weights = ("--weights", folder / "saturated.npz")
    succeed("saliency_maps", *weights, "--index", saturated_index, "--arithmetic", "scaled", "--out", tmp_path)
    results = read_json(tmp_path / "saliency_maps.json")
    assert np.abs(results["map"]).max() > 1
    assert results["log10_scale"] < -45  # the smallest float32
    assert results["log10_max"] == pytest.approx(np.log10(np.max(results["map"])) + results["log10_scale"], rel=1e-12)


def test_saliency_maps_of_the_first_images(folder, tmp_path):
    out = succeed("saliency_maps", "--weights", folder / "standard.npz", "--images", 2, "--out", tmp_path)
    results = read_json(tmp_path / "saliency_maps.json")
    assert [entry["index"] for entry in results["maps"]] == [0, 1]
    assert out.count("test image ") == 2


def with_files_of_the_author(function):
    for mark in test_facts.pytestmark:
        function = mark(function)
    return function


@with_files_of_the_author
def test_appendix_a_from_the_command_line(tmp_path):
    """Mean, maximum and the number of moves as the paper prints them."""
    weights = test_facts.DATA / "author_networks" / "standard.npz"
    arguments = ["--dataset", "mnist", "--weights", weights.resolve(), "--index", 2659, "--ties", "all"]
    arguments += ["--arithmetic", "plain", "--out", tmp_path, "--json", tmp_path / "a.json"]
    out = succeed("saliency_maps", *arguments, data_folder=test_facts.DATA.resolve())
    results = read_json(tmp_path / "a.json")
    assert (results["index"], results["label"]) == (2659, 4)
    assert (f"{results['mean']:.4e}", f"{results['max']:.5e}") == ("-2.2915e-08", "9.78318e-05")
    assert results["algorithm_1"] == {"succeeded": True, "moves": 12}
    assert "succeeds at move 12" in out
