"""The author's runs, image for image, and what the command does where one image differs."""

import sys

import numpy as np
import pytest

from experiments import common, replay
from experiments.author_networks import author_networks
from experiments.replay import DECISION, RUNS
from minicnn import data
from minicnn.paper.attacks import AttackResult
from tests.experiments.conftest import PNG, assert_mistake, read_json
from tests.paper.test_facts import DATA, needs_the_author

by_run = pytest.mark.parametrize("run", RUNS, ids=str)
IMAGES = {
    "algorithm_1": 605,
    "loss_difference_distilled": 992,
    "loss_difference_temperature20": 994,  # two of them of another run
    "loss_difference_conditional": 380,
}
# What comes out: succeeded, pixels, misclassified before any move, compared image for image.
EXPECTED = {
    "test.py: standard": (605, None, 3, 605),
    "test.py: distilled": (55, None, 8, 605),
    "test3.py: standard": (387, "18.344", 0, 0),
    "test3.py: distilled": (13, None, 0, 992),
    "test3.py, T = 20: standard": (354, "17.333", 0, 0),
    "test3.py, T = 20: temperature": (8, "10.25", 0, 994),
    "test2.py: standard": (380, None, 0, 380),
    "test2.py: distilled": (12, None, 0, 380),
}


@pytest.fixture(scope="module")
def mnist_and_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICNN_DATA", str(DATA))
        return data.load("mnist"), author_networks()


def replayed(run, mnist_and_networks, folder, chosen):
    """compare's figures of a run in plain arithmetic, over the chosen rows of its file."""
    dataset, networks = mnist_and_networks
    told = {column: values[chosen] for column, values in replay.read_run(run).items()}
    store = common.Store(folder)
    found = replay.attack(run, networks[run.network], dataset, told["test_image"], "plain", store)
    return replay.compare(run, told, *found)


@by_run
def test_runs_tell_of_every_image_once(run):
    told = replay.read_run(run)
    images = told["test_image"]
    assert len(np.unique(images)) == len(images) == IMAGES[run.file]
    assert images.min() >= 0 and images.max() < 10000
    if run.column == DECISION:
        assert run.succeeded == len(images) and set(told[DECISION]) == set(range(10))
    elif run.column:
        assert run.succeeded == told[run.column].sum() and set(told[run.column]) == {0, 1}


@needs_the_author
@pytest.mark.parametrize("run", [run for run in RUNS if run.column], ids=str)
def test_replay_comes_out_the_same_on_a_share_of_the_images(run, mnist_and_networks, tmp_path):
    """Every fortieth, and all on which his attack succeeded against the network that it seldom does against."""
    told = replay.read_run(run)
    chosen = np.arange(len(told["test_image"])) % 40 == 0
    if run.column != DECISION:
        chosen |= told[run.column] == 1
    found = replayed(run, mnist_and_networks, tmp_path, chosen)
    assert found["differing"].tolist() == [] and found["compared"] == chosen.sum()
    if run.network != "standard":  # all of his successes are among them
        expected = EXPECTED[str(run)]
        assert (found["succeeded"], found["pixels"]) == expected[:2] and found["wrong_before"] == expected[2]


@pytest.mark.slow
@needs_the_author
@by_run
def test_replay_comes_out_the_same_on_every_image(run, mnist_and_networks, tmp_path):
    found = replayed(run, mnist_and_networks, tmp_path, slice(None))
    assert found.pop("differing").tolist() == []
    assert tuple(found.values()) == EXPECTED[str(run)]


@pytest.fixture
def canned(monkeypatch):
    """main with attacks that come out as his did, but for what a test changes: Run -> (AttackResult, decisions)."""
    found = {}
    for run in RUNS:
        told = replay.read_run(run)
        n = len(told["test_image"])
        counted = told[run.column] == 1 if run.column and run.column != DECISION else np.arange(n) < run.succeeded
        pixels = {"18.344": (18.344 * 387), "17.333": (17.333 * 354), "10.25": 82}.get(run.pixels, 0)
        moves = np.zeros(n, int)
        moves[counted] = np.diff(np.round(np.linspace(0, pixels, run.succeeded + 1)))
        result = AttackResult(np.ones(n, bool), counted, moves, np.zeros(n, int), np.zeros(n, bool), np.zeros(n))
        found[run] = result, told.get(DECISION, np.zeros(n, int))
    monkeypatch.setattr(
        replay, "author_networks", lambda device: dict.fromkeys(("standard", "temperature", "distilled"))
    )
    monkeypatch.setattr(common, "load_data", lambda name: None)
    monkeypatch.setattr(replay, "attack", lambda run, *_: found[run])
    return found


def command(monkeypatch, capsys, *arguments):
    """(exit code, stdout) of python -m experiments.replay with what is patched in the module."""
    monkeypatch.setattr(sys, "argv", ["replay.py", *map(str, arguments)])
    code = 0
    try:
        common.run(replay.main, replay.command_line(), lambda options: f"{replay.name_of(options)}.json")
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["both", "plain"])
def test_replay_that_agrees(canned, monkeypatch, capsys, tmp_path, plain):
    name = "replay_plain" if plain else "replay"
    code, out = command(monkeypatch, capsys, "--out", tmp_path, *plain)
    assert code == 0 and "3,956 of 3,956 outcomes that the author's runs tell of come out the same." in out
    assert "354, 17.333  354, 17.333  " in out and "994 of 994" in out and ("scaled\n" in out) == (not plain)
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    assert {path.stem for path in tmp_path.glob("*.*") if path.stem != ".lock"} == {name}
    results = read_json(tmp_path / f"{name}.json")
    assert results["failures"] == [] and results["setting"] == {"limit": 99, "maximum": 1, "T": 1, "ties": "all"}
    assert [run["his"]["succeeded"] for run in results["runs"]] == [run["ours"]["succeeded"] for run in results["runs"]]
    assert all(("scaled" in run["ours"]) == (not plain) for run in results["runs"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    sentence, picture, selection, *tables = replay.section(results, tmp_path).whole()
    assert "100 % there by selection" in selection
    assert "3,956 of 3,956" in sentence and picture.path.exists() == (not plain)
    assert str(tables[0]) in out and (plain or str(tables[1]) in out)


def test_replay_with_one_image_that_differs_fails_and_names_it(canned, monkeypatch, capsys, tmp_path):
    _, decisions = canned[RUNS[0]]
    decisions[7] += 1
    image = replay.read_run(RUNS[0])["test_image"][7]
    code, out = command(monkeypatch, capsys, "--out", tmp_path)
    assert code == 1 and f"\ntest.py: standard: another outcome on test images {image}\n" in out
    assert "604 of 605" in out and "3,955 of 3,956" in out
    results = read_json(tmp_path / "replay.json")
    assert results["failures"] == [f"test.py: standard: another outcome on test images {image}"]
    assert results["runs"][0]["ours"]["differing"] == [image] and (tmp_path / "replay.png").exists()


def test_replay_with_another_figure_fails(canned, monkeypatch, capsys, tmp_path):
    canned[RUNS[2]][0].moves[0] += 30
    code, out = command(monkeypatch, capsys, "--out", tmp_path)
    assert code == 1 and "images and their pixels are 387, 18.421, his are 387, 18.344" in " ".join(out.split())


def test_replay_counts_what_was_wrong_before_any_move_as_his_program_does(canned):
    result, decisions = canned[RUNS[1]]
    result.attacked[result.succeeded.nonzero()[0][:8]] = False
    result.succeeded &= result.attacked
    found = replay.compare(RUNS[1], replay.read_run(RUNS[1]), result, decisions)
    assert (found["succeeded"], found["wrong_before"], len(found["differing"])) == (55, 8, 0)


def test_replay_without_the_networks_or_on_digits(monkeypatch, tmp_path):
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path))
    assert_mistake(["replay", "--out", tmp_path / "out"], "replay needs the author's networks", "--clone DIR")
    assert_mistake(["replay", "--dataset", "digits", "--out", tmp_path / "out"], "invalid choice: 'digits'")
