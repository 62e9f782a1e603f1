"""python -m experiments.sweep: what it measures, and that no death of a process loses a job or leaves one behind."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import sweep
from tests.experiments.conftest import PNG, ROOT, assert_mistake, read_json, run, start, succeed

SMALL = "--temperatures 2,1e30 --seeds 1 --epochs 3 --images 8 --limit 10".split()
RATES = [f"success_{algorithm}_{arithmetic}" for algorithm in "13" for arithmetic in ("plain", "scaled")]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder that a small sweep has written, and what it said."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, succeed("sweep", *SMALL, "--out", folder)


def figures(folder):
    """(series, value, seed) -> what was measured, less who did it."""
    rows = read_json(folder / "sweep.json")["rows"]
    names = ("series", "value", "seed")
    return {
        tuple(row[n] for n in names): {n: x for n, x in row.items() if n not in (*names, "host", "seconds")}
        for row in rows
    }


def test_sweep_writes_results_of_every_network(swept):
    folder, _ = swept
    expected = {(series, value, 0) for series in (sweep.TRAINED, sweep.CONTROL) for value in (1, 2, 1e30)}
    found = figures(folder)
    assert set(found) == expected
    results = read_json(folder / "sweep.json")
    assert results["failed"] == [] and len(results["sample"]["indices"]) == 8
    assert [line["networks"] for line in results["summary"]] == [1, 1, 0, 1, 1, 1]
    rows = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text("utf-8"))))
    assert [float(row["accuracy"]) if row["accuracy"] else None for row in rows] == [
        row["accuracy"] for row in results["rows"]
    ]
    assert (folder / "sweep.png").read_bytes().startswith(PNG)


def test_sweep_at_a_temperature_that_teaches_nothing_says_so(swept):
    """As a result, not as a failure."""
    folder, said = swept
    found = figures(folder)[sweep.TRAINED, 1e30, 0]
    assert found.pop("why").startswith("did not learn: at temperature 1e+30 all classes have the same probability")
    assert found.pop("images") == 0 and set(found.values()) == {None}
    assert "T = 1e+30, seed 0: did not learn: at temperature 1e+30" in said


def test_sweep_measures_what_train_and_attack_do(swept):
    """On the network that train finds in the folder, which is trained already."""
    folder, _ = swept
    assert not list(folder.glob("*.checkpoint.npz"))  # where train and reproduce have theirs, of other epochs
    folder /= "sweep"
    checkpoint = folder / "temperature-T2.checkpoint.npz"
    options = ("--epochs", 3, "--temperature", 2, "--network", "temperature", "--out", folder)
    before = checkpoint.stat().st_mtime_ns
    succeed("train", *options)
    assert checkpoint.stat().st_mtime_ns == before
    found = figures(swept[0])[sweep.TRAINED, 2, 0]
    history = read_json(folder / "train_temperature-T2.json")["history"]
    assert found["accuracy"] == pytest.approx(history[-1]["test_accuracy"])
    for name in RATES:
        _, algorithm, arithmetic = name.split("_")
        attack = ("attack", "--network", "temperature-T2", "--algorithm", algorithm, "--arithmetic", arithmetic)
        succeed(*attack, *SMALL[-4:], "--out", folder)
        result = read_json(folder / f"attack_temperature-T2_{algorithm}_{arithmetic}.json")
        assert (found[name], found["images"]) == (result["success_rate"], result["attacked"])


def test_sweep_control_is_the_network_of_T_1_with_larger_logits(swept):
    found = figures(swept[0])
    standard = found[sweep.TRAINED, 1, 0]
    assert found[sweep.CONTROL, 1, 0] == standard
    for scale in 2, 1e30:
        control = found[sweep.CONTROL, scale, 0]
        assert control["accuracy"] == standard["accuracy"]
        assert control["logit_scale"] == pytest.approx(scale * standard["logit_scale"])
    assert found[sweep.CONTROL, 1e30, 0]["zero_maps"] == 1 > standard["zero_maps"]
    assert found[sweep.CONTROL, 1e30, 0]["log10_gradient"] < -1e28


def test_sweep_table_fits_a_terminal(swept):
    out = swept[1]
    assert max(map(len, out.splitlines())) <= 80
    ordinary = {
        "accuracy": [0.9871, 0.0123],
        **dict.fromkeys(RATES, [1.0, 0.12]),
        "zero_maps": [1.0, 0.11],
        "log10_gradient": [-312.61, 12.34],
        "logit_scale": [3214.0, 321.0],
    }
    lines = [{"series": series, "value": 100.0, "networks": 3} | ordinary for series in (sweep.TRAINED, sweep.CONTROL)]
    text = sweep.table(lines)
    assert "98.7±1.2" in text and "-312.6±12.3" in text and max(map(len, text.splitlines())) <= 80


class Here(concurrent.futures.Executor):
    """Does each job at once, in this process. jobs: those done, and whether each was to be trained."""

    def __init__(self):
        self.jobs = []

    def submit(self, function, plan, job, weights):
        self.jobs.append((job, weights is None))
        future = concurrent.futures.Future()
        try:
            future.set_result(function(dataclasses.replace(plan, threads=sweep.cpu.threads()), job, weights))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch):
    executor = Here()
    monkeypatch.setattr(sweep, "executor", lambda *_: contextlib.nullcontext(executor))
    return executor


def test_sweep_again_does_only_what_is_missing(swept, tmp_path, here, monkeypatch):
    """A job that failed is told at the end, with exit code 1, and missing: the others are kept."""
    shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    before, options, train = figures(tmp_path), ("--out", tmp_path), sweep.train
    said = swept[1].replace(str(swept[0]), str(tmp_path))
    assert succeed("sweep", *SMALL, *options) == said and figures(tmp_path) == before and here.jobs == []
    trained, control = sweep.Job(sweep.TRAINED, 3, 0), sweep.Job(sweep.CONTROL, 3, 0)
    monkeypatch.setattr(sweep, "train", lambda *_: 1 / 0)
    code, _, err = run("sweep", "--temperatures", "2,3,1e30", *SMALL[2:], *options)
    assert (code, err) == (1, "error: T = 3, seed 0: ZeroDivisionError: division by zero\n")
    assert sorted(here.jobs) == [(control, False), (trained, True)]
    assert before.items() <= figures(tmp_path).items() and control in figures(tmp_path)
    (failed,) = read_json(tmp_path / "sweep.json")["failed"]
    assert failed["value"] == 3 and failed["error"].startswith("Traceback ")
    monkeypatch.setattr(sweep, "train", train)
    here.jobs.clear()
    succeed("sweep", "--temperatures", "2,3,1e30", *SMALL[2:], *options)
    assert here.jobs == [(trained, True)] and trained in figures(tmp_path)
    here.jobs.clear()
    succeed("sweep", *SMALL[:-1], 9, *options)  # moves: what is trained is measured again
    assert len(here.jobs) == 5 and [job for job, trains in here.jobs if trains] == [sweep.Job(sweep.TRAINED, 1e30, 0)]


def test_sweep_without_the_network_of_the_control_says_so(tmp_path, here, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: 1 / 0)
    code, out, err = run("sweep", *SMALL, "--seeds", 2, "--out", tmp_path)
    trained = "; ".join(f"T = {value}, seed {seed}" for value in ("1", "2", "1e+30") for seed in (0, 1))
    scaled = "error: s = 1, seed 0; s = 2, seed 0; s = 1e+30, seed 0: needs T = 1, seed 0, which failed"
    why = [f"error: {trained}: ZeroDivisionError: division by zero", scaled, scaled.replace("seed 0", "seed 1")]
    assert (code, out, err.splitlines()) == (1, "", why) and not (tmp_path / "sweep.png").exists()


def test_sweep_that_computes_nothing_replaces_nothing(tmp_path, here):
    """Because of a mistake, the checkpoints of more epochs, or of a fault."""
    options = ("--temperatures", 1, *SMALL[2:4], "--images", 4, "--limit", 1, "--batch", 500, "--out", tmp_path)
    succeed("sweep", *options, "--epochs", 2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("sweep.*")}
    assert set(before) == {"sweep.json", "sweep.csv", "sweep.png"}
    code, out, err = run("sweep", *options, "--epochs", 1)
    assert (code, out) == (2, "") and "holds 2 epochs, 1 are asked for" in err
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "sweep" / "standard-batch500.checkpoint.npz").write_text("no checkpoint")
    assert run("sweep", *options, "--epochs", 2)[0] == 2
    assert {path.name: path.read_bytes() for path in tmp_path.glob("sweep.*")} == before


def test_sweep_refuses_the_figures_of_other_code(tmp_path, here, monkeypatch):
    """As of a Dask worker that was started from another version."""
    codes = iter([{"engine": "here", "convolutions": "compiled"}])
    monkeypatch.setattr(sweep, "code", lambda: next(codes, {"engine": "there", "convolutions": "compiled"}))
    code, _, err = run("sweep", *SMALL, "--out", tmp_path)
    assert code == 2 and "is of another version than this command" in err and "(engine differ)" in err
    assert not list((tmp_path / "parts").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temperatures 1,hot", "argument --temperatures: "),
        ("--temperatures 1,0", "argument --temperatures: must be a positive number, got 0"),
        ("--scheduler 127.0.0.1:8786 --workers 2", "--workers are processes of this machine"),
        ("--scheduler 127.0.0.1", "no Dask scheduler at 127.0.0.1 (missing port number"),
        ("--scheduler tcp://127.0.0.1:9", "no Dask scheduler at tcp://127.0.0.1:9 (Timed out"),
    ],
)
def test_sweep_refuses(tmp_path, options, message):
    dask = pytest.importorskip("dask", reason="needs the extra dask")
    pytest.importorskip("distributed", reason="needs the extra dask")
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        assert_mistake(["sweep", *options.split(), "--out", tmp_path], message)


def test_sweep_without_dask_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert_mistake(["sweep", "--scheduler", "127.0.0.1:8786", "--out", tmp_path], "pip install -e '.[dask]'")


def workers_of(process):
    """The process ids of a command's pool, of its processes those that multiprocessing has spawned for jobs."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    ids = [int(child) for path in children for child in path.read_text().split()]
    return [child for child in ids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def ends(process, seconds=30):
    """Whether a process that is not our child ends in time."""
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{process}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_for(condition, process):
    """What condition() gives once it gives anything, while the process runs."""
    deadline = time.monotonic() + 240
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return found


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux, which has /proc")


@needs_proc
@pytest.mark.parametrize("how", [pytest.param("killed", marks=pytest.mark.slow), "stopped by Ctrl-C"])
def test_sweep_that_ends_early_leaves_no_process_behind(swept, tmp_path, how):
    """Nor a word but its own; the same command goes on from there."""
    begun = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("sweep", *SMALL, "--workers", 2, "--out", tmp_path, **begun)
    wait_for(lambda: list(tmp_path.glob("parts/*.npz")), process)
    workers = workers_of(process.pid)
    assert workers
    if how == "killed":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    stopped = "\nstopped; what is computed is kept: the same command goes on from there\n"
    if how == "killed":
        assert process.returncode == -signal.SIGKILL  # and Python's resource tracker may tell what was not given back
    else:
        assert (process.returncode, err) == (130, stopped)
    assert all(ends(worker) for worker in workers)
    if how == "killed":
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/*.npz")}
        succeed("sweep", *SMALL, "--out", tmp_path)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept and figures(tmp_path) == figures(swept[0])


@pytest.mark.slow
@needs_proc
def test_sweep_survives_the_death_of_a_process(swept, tmp_path):
    """Killed half-way, its job runs again, to the same figures."""
    process = start("sweep", *SMALL, "--workers", 2, "--out", tmp_path)
    wait_for(lambda: list(tmp_path.glob("sweep/*.checkpoint.npz")), process)
    for worker in workers_of(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert figures(tmp_path) == figures(swept[0])


@pytest.fixture
def cluster(tmp_path):
    """A Dask cluster of two worker processes, started as a user does: a client, and worker's address -> Popen."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    file, workers = tmp_path / "scheduler.json", {}

    def begin(name, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *map(str, arguments), "--no-dashboard"]
        process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    with contextlib.ExitStack() as stack:
        scheduler = begin("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
        address = json.loads(wait_for(lambda: file.exists() and file.read_text(), scheduler))["address"]
        client = stack.enter_context(distributed.Client(address, set_as_default=False))
        options = ("--nworkers", 1, "--nthreads", 1, "--no-nanny", "--local-directory", tmp_path)
        named = {name: begin("worker", address, "--name", name, *options) for name in ("one", "two")}
        client.wait_for_workers(2, timeout=120)
        workers = {worker: named[told["id"]] for worker, told in client.scheduler_info()["workers"].items()}
        yield client, workers


@needs_posix
def test_sweep_on_a_dask_cluster_survives_the_death_of_a_worker(swept, tmp_path, cluster):
    """One that is at work is killed half-way, and its job runs on the other, to the figures of this machine's pool."""
    client, workers = cluster
    address, folder = client.scheduler.address, tmp_path / "out"
    process = start("sweep", *SMALL, "--scheduler", address, "--out", folder)
    wait_for(lambda: list(folder.glob("parts/*.npz")), process)
    victim = wait_for(lambda: [worker for worker, jobs in client.processing().items() if jobs], process)[0]
    workers[victim].kill()
    out, err = process.communicate(timeout=240)
    said = [line for line in err.splitlines() if "Couldn't gather" not in line]  # Dask's own: a result died with it
    assert (process.returncode, said) == (0, []) and out.startswith(f"asking the Dask scheduler at {address}\n")
    assert victim not in client.scheduler_info()["workers"]
    assert figures(folder) == figures(swept[0])
    assert not list(folder.rglob("*.checkpoint.npz"))


def test_sweep_section_has_a_row_a_temperature_and_a_scale(tmp_path):
    figures = {name: [0.5, None] for name in sweep.FIGURES}
    summary = [{"series": sweep.TRAINED, "value": 1.0, "networks": 1} | figures]
    summary += [{"series": sweep.CONTROL, "value": 20.0, "networks": 0} | dict.fromkeys(figures, [None, None])]
    results = {"seeds": [0], "epochs": 25, "summary": summary}
    picture, table = sweep.section(results, tmp_path).whole()
    assert "25 epochs, 1 seed." in picture.caption and picture.path == tmp_path / "sweep.png"
    heads, (trained, control) = table.texts()
    assert trained[0] == "T = 1" and trained[heads.index("accuracy")] == "50.0"
    assert control[0] == "s = 20" and set(control[1:]) == {"none"}
