"""Experiments as a user meets them, as commands: exit code, what they say, what they write."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from experiments import common, masking
from minicnn import cpu, data
from minicnn.layers import Sequential
from minicnn.paper import attacks
from minicnn.paper.networks import LAST_LAYER, paper_cnn
from minicnn.training import predict
from minicnn.weights import get_weights, save_weights, set_weights
from tests.experiments.pictures import faults

TRAIN = ("train", "--epochs", "3", "--batch", "100", "--seed", "7", "--validation", "100")
TRAINED = "standard-seed7-batch100"  # what the files of that command are called
ROOT = Path(__file__).parents[2]
IMAGES = 6  # in `dataset`
cpu.convolutions()  # compiled now, where this machine has not done it: the first command would say so
PNG = b"\x89PNG\r\n\x1a\n"


def without_note(err):
    """What a command said on stderr but for the benchmark's note of OPENBLAS_CORETYPE, which a machine may have set."""
    return re.sub(r"note: OPENBLAS_CORETYPE=.*\n", "", err)


def run(experiment, *arguments):
    """(exit code, stdout, stderr `without_note`) of python -m experiments.EXPERIMENT, run in this process."""
    out, err, code, argv = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = [experiment, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'experiments", RuntimeWarning)  # a test has imported the module
            runpy.run_module(f"experiments.{experiment}", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    return code, out.getvalue(), without_note(err.getvalue())


def succeed(experiment, *arguments):
    """stdout of a command that must succeed and have nothing to complain about, without the progress of a slow one."""
    code, out, err = run(experiment, *arguments)
    assert (code, err) == (0, "")
    return "".join(line for line in out.splitlines(keepends=True) if not re.match(r"  .*: \d+ of \d+", line))


def start(experiment, *arguments, **options):
    """The process of python -m experiments.EXPERIMENT. options: of subprocess.Popen; environment: added to ours."""
    environment = os.environ | options.pop("environment", {})
    command = [sys.executable, "-m", f"experiments.{experiment}", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes | options)


def assert_mistake(arguments, *mentioned):
    """The command ends with code 2 and one line that says what is wrong."""
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for words in mentioned:
        assert str(words) in err


def read_json(path):
    """A JSON file as the standard has it, without NaN or Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}, which is no JSON")

    return json.loads(Path(path).read_text("utf-8"), parse_constant=refuse)


@pytest.fixture(autouse=True)
def no_faulty_picture(monkeypatch):
    """Whatever a test has drawn can be read."""
    save = common.save_figure

    def save_and_look(path, fig):
        save(path, fig)
        assert faults(fig) == [], path

    monkeypatch.setattr(common, "save_figure", save_and_look)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    """Digits need no files; a test with MNIST names its folder."""
    monkeypatch.delenv("MINICNN_DATA", raising=False)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A folder with standard.npz, untrained, and saturated.npz, the same with logits a million times as large."""
    path, network = tmp_path_factory.mktemp("untrained"), paper_cnn(seed=1)
    save_weights(network, path / "standard.npz")
    network.layers[LAST_LAYER].W.data *= 1e6
    save_weights(network, path / "saturated.npz")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder that a training run of three epochs has written, and what the command said."""
    path = tmp_path_factory.mktemp("trained")
    return path, succeed(*TRAIN, "--out", path)


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system of its own in a folder, or a skip where nothing can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a user who may mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path):
    """A folder on a read-only file system, where root too cannot write."""
    with mounted(tmp_path / "read-only", "ro") as folder:
        yield folder


@pytest.fixture(scope="session")
def driver():
    """A headless Chromium."""
    programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, Service(programs[1]))
    yield chromium
    chromium.quit()


def emulate(driver, width=1400, scheme="light"):
    """Have the driver show pages on a screen of that width, in the light or dark scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def base(digits):
    """A network of random features: its last layer alone is fitted, and scaled so that the label's logit is typically 1
    above the next. Multiplied by 1,000 it is so saturated that plain float32 sees nothing of its gradient."""
    network = paper_cnn(seed=0, ties="all")
    features = Sequential(**{name: layer for name, layer in network.layers.items() if name != LAST_LAYER})
    x = predict(features, digits.train_images[:500]).astype(np.float64)
    y = np.eye(10)[digits.train_labels[:500]]
    weights = np.linalg.solve(x.T @ x + 1e-3 * np.trace(x.T @ x) / len(x.T) * np.eye(len(x.T)), x.T @ y)
    gap = np.median(np.diff(np.sort(x @ weights, axis=1)[:, -2:]))
    return set_weights(network, get_weights(network) | {f"{LAST_LAYER}_W": weights / gap})


@pytest.fixture(scope="session")
def dataset(base, digits):
    """Digits: few to train on; to test on, the first that the network is right about by a gap of more than a half."""
    logits = predict(base, digits.test_images[:60])
    gap = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0]
    chosen = np.flatnonzero((logits.argmax(axis=1) == digits.test_labels[:60]) & (gap > 0.5))[:IMAGES]
    return digits._replace(
        train_images=digits.train_images[:64],
        train_labels=digits.train_labels[:64],
        test_images=digits.test_images[chosen],
        test_labels=digits.test_labels[chosen],
    )


@pytest.fixture
def told(dataset, tmp_path):
    """A function that makes a Study of `dataset`, or of another one, its attacks of these settings."""

    def study(dataset=dataset, first=False, **setting):
        setting, store = attacks.Setting(**{"limit": 20} | setting), common.Store(tmp_path / "parts")
        return masking.Study(dataset, None, 0, first, setting, trained_T=20.0, store=store)

    return study
