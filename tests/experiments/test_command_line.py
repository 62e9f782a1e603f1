"""What every experiment's command does with its arguments, and with mistakes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import common
from experiments.command import _alone
from minicnn import backend, files
from minicnn.backend import DeviceError
from minicnn.paper.networks import paper_cnn
from minicnn.weights import load_npz, save_npz, save_weights
from tests.experiments.conftest import ROOT, assert_mistake, read_json, run, start, succeed, without_note
from tests.test_files import needs_pipes

EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text("utf-8"))
OPTIONS = {
    "train": "--network --epochs --batch --validation --temperature --teacher-dropout --no-graph",
    "attack": "--network --weights --algorithm --arithmetic --images --limit --maximum --skip-unchanged --prefer "
    "--ties --attack-temperature --denominator --other --show",
    "adversarial_samples": "--networks --images --first --limit --ties",
    "saliency_maps": "--network --weights --index --arithmetic --images --ties --attack-temperature",
    "proof1": "--network --weights --images --ties --symbolic",
    "reproduce": "--epochs --seeds --refreshed --trained --masking --denominator",
    "benchmark": "--against --threads --repeats --attacks --images --limit --scaling --batches --counts --ties "
    "--epochs",
    "sweep": "--temperatures --seeds --epochs --batch --validation --scheduler --workers --images --limit --ties",
    "author_networks": "--clone",
    "replay": "--plain",
    "explore": "--trained --ties",
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_names_every_option(experiment):
    text = succeed(experiment, "--help")
    assert text.startswith(f"usage: python -m experiments.{experiment} ")
    for option in f"--dataset --device --seed --out --json {OPTIONS.get(experiment, '')}".split():
        assert f"\n  {option} " in text, option


@pytest.mark.parametrize(
    ("experiment", "defaults"),
    [
        ("train", ("default: digits", "default: runs/DATASET")),
        ("replay", ("{mnist}", "default: mnist", "default: runs/DATASET")),
        ("author_networks", ("default: mnist", "default: author_networks in the cache folder")),
    ],
)
def test_help_tells_the_defaults(experiment, defaults):
    text = " ".join(succeed(experiment, "--help").split())
    assert all(default in text for default in defaults)


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
        (["attack", "--network", "student"], "argument --network: must be standard or temperature or distilled"),
        (["train", "--temperature", "1e-46"], "argument --temperature: must be a positive number, got 1e-46"),
        (["attack", "--attack-temperature", "1e39"], "--attack-temperature: must be a positive number, got 1e39"),
        (["attack", "--maximum", "inf"], "argument --maximum: must be a positive number, got inf"),
        (["attack", "--limit", "-1"], "argument --limit: must be a positive number, got -1"),
        (["attack", "--algorithm", "5"], "argument --algorithm: invalid choice: '5'"),
        (["attack", "--network", "temperature", "--weights", "w.npz"], "not allowed with argument"),
        (["saliency_maps", "--index", "first"], "argument --index: invalid int value: 'first'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(tmp_path, arguments, message):
    assert_mistake([*arguments, "--out", tmp_path / "out"], message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_arguments_have_their_whole_names(tmp_path, experiment):
    """Half a name would mean another option as soon as there is one that begins alike."""
    for option in ("--see", "--data", "--epoch", "--image"):
        assert_mistake([experiment, option, "1", "--out", tmp_path / "out"], f"unrecognized arguments: {option} 1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_file_that_is_started_says_how_to_start_it(tmp_path, experiment):
    command = [sys.executable, ROOT / "experiments" / f"{experiment}.py", "--help"]
    started = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (started.returncode, started.stdout) == (2, "")
    assert started.stderr == f"error: start it in {ROOT}: python -m experiments.{experiment}\n"


@pytest.mark.parametrize("experiment", ["sweep", "reproduce"])
def test_seeds_are_checked_before_the_work(tmp_path, experiment):
    seeds = ("--seed", 2**64 - 1, "--seeds", 2)
    assert_mistake([experiment, *seeds, "--out", tmp_path], "--seed and --seeds: the last of 2 seeds must be")


def test_options_without_influence_and_folders_that_are_files(tmp_path):
    assert_mistake(["train", "--temperature", "5", "--out", tmp_path], "--temperature has no influence on standard")
    without = ("--network", "temperature", "--teacher-dropout", "off")
    assert_mistake(["train", *without, "--out", tmp_path], "--teacher-dropout has no influence on temperature")
    (tmp_path / "file").touch()
    assert_mistake(["train", "--out", tmp_path / "file"], "file is a file): choose another --out")


def test_network_that_is_not_trained_yet(tmp_path):
    command = "python -m experiments.train --dataset digits --network distilled"
    come = ", or take the one that comes with the project: --dataset mnist\n"
    assert_mistake(["attack", "--network", "distilled", "--out", tmp_path], tmp_path, command, "or name --weights FILE")
    folder = tmp_path / "two words"
    for experiment, option in ("adversarial_samples", "--networks FILE.npz"), ("explore", "--trained DIR"):
        assert_mistake([experiment, "--out", folder], f"--out '{folder}', or name {option}{come}")
    other = ("--weights", "w.npz", "--denominator", "common", "--other", "temperature")
    assert_mistake(["attack", *other, "--out", folder], f"or name --other FILE.npz{come}")


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


FOR_WEIGHTS = {  # what makes an experiment take the networks of a folder
    "attack": "--weights {0}/standard.npz",
    "adversarial_samples": "--networks {0}/standard.npz",
    "saliency_maps": "--weights {0}/standard.npz",
    "proof1": "--weights {0}/standard.npz",
    "masking": "--weights standard={0}/standard.npz",
    "reproduce": "--trained {0}",
    "benchmark": "--attacks --weights {0}/standard.npz",
    "explore": "--trained {0}",
}


@pytest.mark.parametrize("experiment", FOR_WEIGHTS)
def test_weights_of_another_data_set(tmp_path, experiment):
    """Said before the work, by whatever road they are found."""
    trained = tmp_path / "trained"
    for name in ("standard", "temperature", "distilled"):
        save_weights(paper_cnn(), trained / f"{name}.npz", dataset="mnist")
        (trained / f"{name}.csv").write_text("epoch\n1\n")
    options = FOR_WEIGHTS[experiment].format(trained).split()
    said = f"{trained / 'standard.npz'} was trained on mnist, not on digits"
    assert_mistake([experiment, *options, "--out", tmp_path / "out"], said)
    if "{0}/standard.npz" in FOR_WEIGHTS[experiment] and experiment != "masking":
        options = [option for option in options if option in ("--attacks",)]
        assert_mistake([experiment, *options, "--out", trained], said)


@needs_pipes
@pytest.mark.parametrize("experiment", [name for name in FOR_WEIGHTS if name not in ("reproduce", "explore")])
def test_weights_that_are_a_pipe(tmp_path, experiment):
    os.mkfifo(tmp_path / "standard.npz")
    options = FOR_WEIGHTS[experiment].format(tmp_path).split()
    assert_mistake([experiment, *options, "--out", tmp_path / "out"], f"{tmp_path / 'standard.npz'}: is no file")


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


@pytest.mark.parametrize("name", ["file/results.json", "", f"{'n' * 300}.json", "loop.json", "folder.json"])
def test_json_where_no_file_can_be(tmp_path, name):
    """Said before anything is computed."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    path = tmp_path / name
    assert_mistake(["train", "--epochs", "1", "--out", tmp_path, "--json", path], path, "--json")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.json", "loop.json"}


OTHERS = ["standard.npz", "standard.checkpoint.npz", "standard.png", "explore.html", "sweep.csv", ".lock", "json"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_json_is_no_file_of_another_kind(tmp_path, experiment):
    for name in OTHERS:
        (tmp_path / name).write_text("mine")
        said = f"argument --json: must be a file whose name ends in .json, got '{tmp_path / name}'"
        assert_mistake([experiment, "--out", tmp_path, "--json", tmp_path / name], said)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(OTHERS, "mine")


def test_json_among_the_results_of_another_command_waits_for_it(untrained, tmp_path):
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "results.json"
    succeed(*command, "--json", path)
    assert not (tmp_path / "theirs" / ".lock").exists()  # a folder that is no command's is nobody's to lock
    with _alone(tmp_path / "theirs"):
        said = f"another command is at work in {tmp_path / 'theirs'}: wait for it, or choose another --json"
        assert_mistake([*command, "--json", path], said)
    succeed(*command, "--json", path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("attack", "--weights", ""),
        ("attack", "--out", ""),
        ("attack", "--json", ""),
        ("attack", "--other", ""),
        ("adversarial_samples", "--networks", ""),
        ("masking", "--weights", "standard="),
        ("explore", "--trained", ""),
        ("reproduce", "--trained", ""),
        ("author_networks", "--clone", ""),
        ("sweep", "--scheduler", ""),
    ],
    ids=" ".join,
)
def test_paths_that_are_empty(tmp_path, arguments):
    assert_mistake([arguments[0], "--out", tmp_path / "out", *arguments[1:]], f"argument {arguments[1]}: must be ")
    assert not (tmp_path / "out").exists()


def test_out_and_json_in_a_file_system_that_cannot_be_written_to(tmp_path, read_only):
    for wrong in (
        ["--out", read_only],
        ["--out", read_only / "new"],
        ["--out", tmp_path, "--json", read_only / "r.json"],
    ):
        assert_mistake(["train", "--epochs", "1", *wrong], read_only, "Read-only file system", "choose another --out")


def test_json_into_a_pipe(untrained, tmp_path):
    """As `--json /dev/stdout` has it, with what is printed after it."""
    arguments = ("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    out, err = (process := start(*arguments, "--json", "/dev/stdout")).communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    (tmp_path / "results.json").write_text(out[: out.index("\n}\n") + 3])
    assert read_json(tmp_path / "results.json")["images"] == 2


def test_json_into_a_file_that_standard_output_is(untrained, tmp_path):
    """As `--json /dev/stdout >>log` has it."""
    path = tmp_path / "log"
    path.write_text("old\n")
    arguments = ("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    with path.open("a") as log:
        _, err = (process := start(*arguments, "--json", "/dev/stdout", stdout=log)).communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    old, _, said = path.read_text().partition("{")
    results, _, said = said.partition("\n}\n")
    assert old == "old\n" and json.loads(f"{{{results}}}")["images"] == 2
    assert said.startswith(str(untrained)) and said.endswith(f"{tmp_path / 'stdout_attack_standard_1_scaled.npz'}\n")


def test_results_are_told_as_missing_where_a_library_is(tmp_path, monkeypatch):
    """Before the work that its pictures are for."""
    for library in ("matplotlib.figure", "tqdm", "scipy", "statsmodels"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            assert_mistake(["train", "--out", tmp_path / "out"], library, "pip install -e '.[experiments]'")
    assert not any((tmp_path / "out").glob("*.npz"))


def test_convolutions_by_nobody_are_an_error_before_the_work(tmp_path):
    for environment, said in (
        ({"MINICNN_CONV": "cudnn"}, "MINICNN_CONV must be numpy or compiled, got 'cudnn'"),
        ({"MINICNN_CONV": "compiled", "CC": "no-such-compiler"}, "no-such-compiler does not run"),
    ):
        process = start("train", "--out", tmp_path / "out", environment=environment)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and said in err


TRAINED_BEFORE = ROOT / "experiments" / "results" / "mnist"
SMALL = {  # the smallest command of each experiment, and its results
    "train": ("--epochs 1 --batch 500", "train_standard-batch500.json"),
    "attack": (f"--weights {TRAINED_BEFORE}/standard.npz --images 4 --limit 1", "attack_standard_1_scaled.json"),
    "adversarial_samples": (
        f"--networks {TRAINED_BEFORE}/standard.npz --images 2 --limit 1",
        "adversarial_samples.json",
    ),
    "saliency_maps": (
        f"--weights {TRAINED_BEFORE}/standard.npz --images 2 --limit 1",
        "saliency_maps_standard_plain.json",
    ),
    "proof1": (f"--weights {TRAINED_BEFORE}/standard.npz --images 1", "proof1_standard.json"),
    "masking": (
        f"--weights standard={TRAINED_BEFORE}/standard.npz --parts control --images 4 --limit 1",
        "masking_control.json",
    ),
    "reproduce": (f"--trained {TRAINED_BEFORE} --images 2 --limit 1 --refreshed 0", "results.json"),
    "benchmark": ("--threads 1 --repeats 1", "benchmark.json"),
    "sweep": ("--temperatures 2 --seeds 1 --epochs 1 --batch 500 --images 4 --limit 1 --workers 1", "sweep.json"),
    "author_networks": ("--clone .", "author_networks.json"),
    "replay": ("--plain", "replay_plain.json"),
    "explore": (f"--trained {TRAINED_BEFORE}", "explore.json"),
}
OF_THE_AUTHOR = ("author_networks", "replay")  # which need his files


BESIDE = {  # of the smallest commands, what stands beside the JSON
    "attack": ["attack_standard_1_scaled.npz"],
    "adversarial_samples": ["adversarial_samples.png", "pixels_changed.png"],
    "saliency_maps": ["figures_1_and_2_standard_plain.png", "saliency_maps_standard_plain.png"],
    "proof1": ["equation1_standard.png", "proof1.png"],
    "masking": ["masking_control_control.png"],
    "explore": ["explore.html"],
    "sweep": ["sweep.csv", "sweep.png"],
}


@pytest.mark.parametrize("experiment", BESIDE)
def test_json_has_its_pictures_beside_it(tmp_path, experiment):
    """So that none stands beside the JSON of another run."""
    (options, results), other = SMALL[experiment], tmp_path / "other" / "mine.json"
    command = (experiment, *options.split(), "--out", tmp_path)
    succeed(*command)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file() and path.name != ".lock"}
    assert sorted(path.name for path in first) == sorted([results, *BESIDE[experiment]])
    out = succeed(*command, "--json", other)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert sorted(path.name for path in other.parent.iterdir()) == sorted(
        ["mine.json", *(f"mine_{name}" for name in BESIDE[experiment])]
    )
    assert all(str(path) in out for path in other.parent.iterdir())


def close(*descriptors):
    """What a shell does for >&- and 2>&-, in the process that is to become the command."""

    def in_child():
        for descriptor in descriptors:
            os.close(descriptor)

    return in_child


ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
OF_A_NOTEBOOK = {"MPLBACKEND": "module://no_such.backend_inline"}
TROUBLES = {  # exit code, streams, environment
    "a pipe without a reader": (141, "pipe", {}),
    "a full disk": (1, "/dev/full", {}),
    "no standard output": (0, close(1), {}),
    "no standard streams": (0, close(1, 2), {}),
    "ascii": (0, None, ASCII),
    "a backend for a notebook": (0, None, OF_A_NOTEBOOK),
    "a folder whose name is no text": (0, None, {}),
    "the last three, a folder's name among them": (0, None, ASCII | OF_A_NOTEBOOK),
}
# What depends on an experiment: what it prints, draws and names, and that its results are written before.
TROUBLES_OF_ALL = ("a full disk", "the last three, a folder's name among them")


def assert_loses_nothing(experiment, trouble, folder):
    """The command writes its results and ends quietly, whatever its standard output is."""
    code, stream, environment = TROUBLES[trouble]
    options, results = SMALL[experiment]
    if "name" in trouble:
        folder = folder / os.fsdecode(b"caf\xe9 $x^$")
    streams = {"environment": environment}
    if callable(stream):
        streams["preexec_fn"] = stream
    elif stream == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        streams["stdout"] = writer
    elif stream:
        streams["stdout"] = os.open(stream, os.O_WRONLY)
    process = start(experiment, *options.split(), "--out", folder, **streams)
    _, err = process.communicate(timeout=300)
    if "stdout" in streams:
        os.close(streams["stdout"])
    assert process.returncode == code
    full = "error: standard output: No space left on device; the results are in their files\n"
    assert without_note(err) == (full if code == 1 else "")
    assert read_json(folder / results)["command"].startswith(f"python -m experiments.{experiment} ")
    assert not list(folder.glob(".*partial"))


needs_a_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux, which has /dev/full")


@needs_a_full_device
@pytest.mark.parametrize("trouble", TROUBLES)
def test_results_outlive_trouble_with_the_output(tmp_path, trouble):
    assert_loses_nothing("attack", trouble, tmp_path)


@needs_a_full_device
@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in SMALL if name not in ("attack", *OF_THE_AUTHOR)])
@pytest.mark.parametrize("trouble", TROUBLES_OF_ALL)
def test_results_outlive_trouble_with_the_output_in_every_experiment(tmp_path, trouble, experiment):
    assert_loses_nothing(experiment, trouble, tmp_path)


def test_trouble_is_tested_for_every_experiment():
    assert set(SMALL) == set(EXPERIMENTS)


def test_help_into_a_pipe_without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    process = start("attack", "--help", stdout=writer)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_folder_at_work_is_refused(tmp_path, experiment):
    """At once, in one line, and only as long as the other command lives; another folder is free."""
    held = f"""
import time
from pathlib import Path
from experiments import command
with command._alone(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", held], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        before = sorted(tmp_path.iterdir())
        options, _ = SMALL[experiment]
        assert_mistake([experiment, *options.split(), "--out", tmp_path], f"another command is at work in {tmp_path}")
        assert sorted(tmp_path.iterdir()) == before
        if experiment == "attack":
            succeed(experiment, *options.split(), "--out", tmp_path / "another")
    finally:
        holder.kill()
        holder.wait()
    if experiment == "attack":
        succeed(experiment, *options.split(), "--out", tmp_path)


def test_error_is_one_line_whatever_the_names_of_files_are(untrained, tmp_path):
    name = "two\nlines\u2028three.npz"
    assert_mistake(["attack", "--weights", tmp_path / name, "--out", tmp_path], "two lines three.npz: no such weight")
    (tmp_path / name).write_bytes(b"damaged")
    (tmp_path / "folder\nname").write_text("a file")
    assert_mistake(["attack", "--weights", tmp_path / name, "--out", tmp_path], "two lines three.npz: not a readable")
    assert_mistake(["attack", "--weights", tmp_path / name, "--out", tmp_path / "folder\nname"], "folder name")


def test_error_of_numbers_comes_without_warnings(tmp_path):
    options = (*SMALL["attack"][0].split(), "--algorithm", 2, "--attack-temperature", "1e-45", "--out", tmp_path)
    process = start("attack", *options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "library"),
    [("TQDM_MININTERVAL", "tqdm"), ("SOURCE_DATE_EPOCH", "sklearn"), ("MATPLOTLIBRC", "matplotlib")],
)
def test_libraries_that_the_environment_breaks(untrained, tmp_path, variable, library):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    value = tmp_path if variable == "MATPLOTLIBRC" else "x"
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    process = start(*command, environment={variable: str(value)})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: {library}") and "mend its settings" in err


@pytest.mark.parametrize("experiment", ["masking", "attack"])
def test_commands_without_docstrings(tmp_path, experiment):
    """As python -OO has them."""
    options, results = SMALL[experiment]
    command = [sys.executable, "-OO", "-m", f"experiments.{experiment}", *options.split(), "--out", tmp_path]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "") and (tmp_path / results).exists()


def test_what_a_killed_command_left_is_removed_by_the_next(untrained, tmp_path):
    """In the folder, and in those below it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = files.partial_name("x.npz").replace(f".{os.getpid()}.", f".{gone.pid}.")
    left = [tmp_path / name, tmp_path / "parts" / name, tmp_path / "seed1" / name, tmp_path / "json" / name]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    command = ("attack", "--weights", untrained / "standard.npz", "--images", 2, "--limit", 1, "--out", tmp_path)
    succeed(*command, "--json", tmp_path / "json" / "results.json")
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("experiment", ["attack", "saliency_maps", "masking", "reproduce"])
def test_more_images_than_there_are_is_said_once(untrained, tmp_path, monkeypatch, experiment):
    """And nothing else is: the work itself is left out."""

    def stop(*_, **__):
        raise common.UsageError("stopped here")

    monkeypatch.setattr(common, "attack", stop)
    monkeypatch.setattr("experiments.train.train", stop)
    path = untrained / "standard.npz"
    weights = {"masking": ["--weights", f"standard={path}", "--parts", "control"], "reproduce": []}
    options = weights.get(experiment, ["--weights", path])
    code, _, err = run(experiment, *options, "--images", 400, "--limit", 1000, "--out", tmp_path)
    images, limit, stopped = sorted(err.splitlines(), key=lambda line: ("stopped" in line, "pixels" in line))
    assert code == 2 and stopped == "error: stopped here"
    assert images.startswith("note: digits has 297 test images") and limit.startswith("note: an image has 784 pixels")
