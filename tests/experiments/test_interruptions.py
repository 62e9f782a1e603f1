"""Commands that are killed, stopped, started twice, or run out of disk: no results are lost, none are wrong."""

import csv
import errno
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import command, common, figures
from minicnn import cpu
from tests.experiments.conftest import ROOT, assert_mistake, mounted, read_json, run, start, succeed

COMMANDS = {  # each in several parts, the shortest that there are
    "train": "train --network standard-distilled --epochs 2 --batch 75 --validation 1350",
    "attack": "attack --network standard --algorithm 4 --images 10 --seed 0",
    "reproduce": "reproduce --epochs 1 --batch 250 --validation 1250 --images 4 --limit 2 --refreshed 1",
    "masking": "masking --parts control cost --images 60 --limit 2",
}


def timeless(value):
    """Results less what differs from run to run: dates, seconds, and the folder that the command names."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("date", "seconds", "command", "weights")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder):
    """What a command has written, file by file, but for pictures and reports, which show dates and seconds."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if path.suffix == ".json":
            found[name] = timeless(read_json(path))
        elif path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(path.read_text("utf-8")))
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        elif path.name.endswith(".checkpoint.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                found[name] = {k: arrays[k].tobytes() for k in arrays.files if k not in ("history", "/sha256")}
                found[name]["history"] = timeless(json.loads(str(arrays["history"])))
        elif path.suffix == ".npz":
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def prepare(folder, untrained):
    folder.mkdir()
    (folder / "standard.npz").write_bytes((untrained / "standard.npz").read_bytes())


def run_undrawn(errors, *arguments):
    """Run a command in a process that has nothing else to do, its complaints in a file. Pictures are empty: they are
    not compared, and drawing them would take half of the time."""
    common.save_figure = figures.draw_maps = figures.draw_samples = lambda path, *_: common.write_atomically(path, b"")
    code, _, err = run(*arguments)
    errors.write_text(err)
    sys.exit(code)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("seed", range(2))  # of the moments, for two to be at work side by side
@pytest.mark.parametrize("name", COMMANDS)
def test_command_killed_at_random_moments_goes_on_to_the_same_bits(untrained, tmp_path, name, seed):
    """10 times kill -9, until the command gets through; then from the start, in another folder."""
    command, errors = COMMANDS[name].split(), tmp_path / "errors"
    processes = multiprocessing.get_context("forkserver")
    # What is imported once, in the process that all are forked from, is no second of a command that is to be killed.
    processes.set_forkserver_preload([__name__, f"experiments.{name}", "sklearn.datasets", "statsmodels.api"])

    def ends_within(seconds, folder):
        """Whether the command has got through, without a word of complaint; else it is killed."""
        process = processes.Process(target=run_undrawn, args=(errors, *command, "--out", folder))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return False
        assert (process.exitcode, errors.read_text()) == (0, "")
        return True

    prepare(tmp_path / "first", untrained)
    assert ends_within(300, tmp_path / "first")
    prepare(tmp_path / "whole", untrained)
    begin = time.monotonic()
    assert ends_within(300, tmp_path / "whole")
    duration, rng, killed, finished = time.monotonic() - begin, np.random.default_rng(seed), 0, 0
    assert contents(tmp_path / "first") == contents(tmp_path / "whole")
    prepare(tmp_path / "0", untrained)
    while killed < 10 or not finished:
        if ends_within(rng.uniform(0.05, 1) * duration if killed < 10 else 300, tmp_path / f"{finished}"):
            assert contents(tmp_path / f"{finished}") == contents(tmp_path / "whole")
            finished += 1
            prepare(tmp_path / f"{finished}", untrained)
        else:
            killed += 1
    print(f"{name}: {killed} kills in {finished} runs of {duration:.1f} s")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_attack_stopped_in_its_middle_keeps_what_is_computed(untrained, tmp_path):
    command = (*COMMANDS["attack"].split(), "--limit", 100)
    prepare(tmp_path / "whole", untrained)
    succeed(*command, "--out", tmp_path / "whole")
    prepare(tmp_path / "stopped", untrained)
    # A shell that runs pytest in the background has Ctrl-C ignored, and children inherit that.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(*command, "--out", tmp_path / "stopped", **default)
    deadline = time.monotonic() + 60
    while not (kept := list((tmp_path / "stopped").glob("parts/*.npz"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\nstopped; what is computed is kept: the same command goes on from there\n"
    parts = len(list((tmp_path / "whole").glob("parts/*.npz")))
    assert 1 <= len(kept) < parts == 3
    written = {path: path.stat().st_mtime_ns for path in kept}
    succeed(*command, "--out", tmp_path / "stopped")
    assert {path: path.stat().st_mtime_ns for path in kept} == written
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc, which Linux has")
def test_command_stopped_while_it_is_imported_ends_without_a_traceback(tmp_path):
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("attack", "--out", tmp_path, **default)
    while "_multiarray_umath" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == -signal.SIGINT


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_command_stopped_three_times_ends_without_a_traceback(tmp_path):
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("train", "--out", tmp_path, **default)
    while not list(tmp_path.glob("*.checkpoint.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(300):
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err


@pytest.mark.parametrize("experiment", ["attack", "proof1", "benchmark"])
def test_command_stopped_promises_only_what_it_keeps(untrained, tmp_path, monkeypatch, experiment):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.common.environment", stop)
    small = {"benchmark": ("--threads", cpu.threads(), "--repeats", 1), "proof1": ("--images", 1)}
    options = small.get(experiment, ("--images", 2, "--limit", 1, "--weights", untrained / "standard.npz"))
    code, _, err = run(experiment, *options, "--out", tmp_path)
    kept = "; what is computed is kept: the same command goes on from there"
    assert (code, err) == (130, f"\nstopped{'' if experiment == 'proof1' else kept}\n")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_two_commands_in_one_folder(untrained, tmp_path):
    """While one is at work there, others end at once, with one line; it does its work."""
    prepare(tmp_path / "out", untrained)
    command = (*COMMANDS["attack"].split(), "--out", tmp_path / "out")
    first, deadline = start(*command), time.monotonic() + 60
    while not list((tmp_path / "out").glob("parts/*.npz")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    others = [start(*command) for _ in range(2)]
    refused = f"error: another command is at work in {tmp_path / 'out'}: wait for it, or choose another --out\n"
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in others] == 2 * [(refused, 2)]
    first.send_signal(signal.SIGCONT)
    assert (first.communicate(timeout=120)[1], first.returncode) == ("", 0)
    before = contents(tmp_path / "out")
    succeed(*command)
    assert contents(tmp_path / "out") == before


FULL = {  # what does not fit, where there are so many kilobytes of room
    "train": ("train --epochs 1 --batch 500", "standard-batch500.checkpoint.npz", 1000),
    "attack": ("attack --network standard --images 297 --limit 1", "parts/", 400),
    "saliency_maps": ("saliency_maps --network standard --limit 1", "saliency_maps_standard_plain.json", 100),
    "its pictures": ("saliency_maps --network standard --limit 1", "saliency_maps_standard_plain.png", 235),
}


@pytest.mark.parametrize("name", FULL)
def test_full_disk_is_one_line_that_names_the_file(untrained, tmp_path, name):
    """Nothing half written is left, and with more room the same command gets through."""
    command, missing, room = FULL[name]
    with mounted(tmp_path / "full", "size=20m") as disk:
        prepare(disk / "out", untrained)
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - 1024 * room))
        command = (*command.split(), "--out", disk / "out")
        assert_mistake(command, f"{disk}/out/{missing}", "No space left on device")
        assert not [path for path in disk.rglob("*") if path.name.endswith(".partial")]
        (disk / "filler").unlink()
        succeed(*command)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files that is an error, no signal")
def test_file_beyond_the_limit_of_the_user_is_one_line_that_names_it(tmp_path):
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))}
    process = start("train", "--epochs", 1, "--batch", 500, "--out", tmp_path, **limit)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (2, f"error: {tmp_path}/standard-batch500.checkpoint.npz: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_folder_that_is_read_only_serves_networks(untrained, tmp_path, read_only):
    """Nothing is written to where a network is only read."""
    command = ("attack", "--images", 2, "--limit", 1)
    subprocess.run(["mount", "-o", "remount,rw", str(read_only)], check=True)
    (read_only / "standard.npz").write_bytes((untrained / "standard.npz").read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
    succeed(*command, "--weights", read_only / "standard.npz", "--out", tmp_path / "out")
    assert_mistake((*command, "--out", read_only), read_only, "Read-only file system")


@pytest.mark.filterwarnings("ignore:flock not supported")  # filelock's own note, of ENOSYS
@pytest.mark.parametrize("number", command.NO_LOCKS)
def test_folder_without_locks_is_used_with_a_note(tmp_path, monkeypatch, capsys, number):
    """As NFS may be, or a folder shared with a virtual machine."""

    def no_flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_flock)
    with command._alone(tmp_path):
        (tmp_path / "result").write_text("here")
    assert number == errno.ENOSYS or f"{tmp_path} is on a file system without locks" in capsys.readouterr().err


def test_folder_that_cannot_be_locked_is_an_error(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", broken)
    refused = pytest.raises(
        command.UsageError, match=r"^cannot lock .*lock \(Input/output error\): choose another --out$"
    )
    with refused, command._alone(tmp_path):
        pass


def test_lock_is_not_kept_by_a_killed_command(untrained, tmp_path):
    code = "import os, signal; from pathlib import Path; from experiments import command\n"
    code += f"with command._alone(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    succeed("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
