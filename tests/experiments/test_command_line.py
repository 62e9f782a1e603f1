"""What every experiment's command does with its arguments, and with mistakes."""

from pathlib import Path

import numpy as np
import pytest

from minicnn import backend
from minicnn.backend import DeviceError
from minicnn.weights import load_npz, save_npz
from tests.experiments.conftest import assert_mistake, run, succeed

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text("utf-8"))
OPTIONS = {
    "train": "--network --epochs --batch --validation --temperature --teacher-dropout --no-graph",
    "attack": "--network --weights --algorithm --arithmetic --images --limit --maximum --skip-unchanged --prefer "
    "--ties --attack-temperature --denominator --other",
    "saliency_maps": "--network --weights --index --arithmetic --images --ties --attack-temperature",
    "proof1": "--network --weights --images --ties",
    "reproduce": "--epochs --seeds --refreshed --trained --masking --denominator",
    "benchmark": "--against --threads --repeats --attacks --images --limit --ties --epochs",
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_names_every_option(experiment):
    text = succeed(experiment, "--help")
    assert text.startswith(f"usage: python -m experiments.{experiment} ")
    for option in f"--dataset --device --seed --out --json {OPTIONS.get(experiment, '')}".split():
        assert f"\n  {option} " in text, option


def test_help_is_tested_for_experiments_that_exist():
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
        (["attack", "--network", "temperature", "--weights", "w.npz"], "not allowed with argument"),
        (["saliency_maps", "--index", "first"], "argument --index: invalid int value: 'first'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(tmp_path, arguments, message):
    code, out, err = run(*arguments, "--out", tmp_path / "out")
    *usage, last = err.splitlines()
    assert (code, out) == (2, "")
    assert usage[0].startswith("usage: ") and "error: " in last and message in last
    assert not (tmp_path / "out").exists()


def test_network_that_is_not_trained_yet(tmp_path):
    command = "python -m experiments.train --dataset digits --network distilled"
    assert_mistake(["attack", "--network", "distilled", "--out", tmp_path], tmp_path, command, "--weights")


def test_weights_that_are_not_there(tmp_path):
    path = tmp_path / "none.npz"
    assert_mistake(["attack", "--weights", path, "--out", tmp_path], f"{path}: no such weight file")


def test_weights_that_are_damaged(untrained, tmp_path):
    path, contents = tmp_path / "damaged.npz", (untrained / "standard.npz").read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    assert_mistake(["attack", "--weights", path, "--out", tmp_path], f"{path}: not a readable .npz file")


def test_weights_of_another_network(untrained, tmp_path):
    path, weights = tmp_path / "small.npz", load_npz(untrained / "standard.npz")
    save_npz(path, weights | {"dense3_b": np.zeros(9, np.float32)})
    assert_mistake(["attack", "--weights", path, "--out", tmp_path], path, "dense3_b has shape (9,)", "(10,)")


def test_device_cuda_without_a_gpu(untrained, tmp_path):
    try:
        backend.get("cuda")
    except DeviceError as error:
        arguments = ["attack", "--device", "cuda", "--weights", untrained / "standard.npz", "--out", tmp_path]
        assert_mistake(arguments, str(error))
    else:
        pytest.skip("this machine has a GPU: there is no error to be seen")


def test_dataset_that_is_damaged(tmp_path, monkeypatch):
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(b"\x1f\x8b\x08 and no more")
    monkeypatch.setenv("MINICNN_DATA", str(tmp_path))
    assert_mistake(["train", "--dataset", "mnist", "--out", tmp_path / "out"], path, "replace it")


def test_out_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert_mistake(["train", "--out", path], path, "--out")


def test_json_where_no_file_can_be(tmp_path):
    """Said before anything is computed."""
    (tmp_path / "file").touch()
    for path, wrong in ((tmp_path / "file" / "results.json", tmp_path / "file"), (tmp_path, tmp_path)):
        assert_mistake(["train", "--epochs", "1", "--out", tmp_path, "--json", path], wrong, "--json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
