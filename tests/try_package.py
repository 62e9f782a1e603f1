"""The package as a user gets it: the sdist is built, the wheel from it, and the wheel is installed alone in a new
environment of the lowest and of the highest Python that this machine has, and tried there. `make package` runs it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f"python3.{minor}" for minor in range(10, 15)]
PLACES = os.pathsep.join([*map(str, Path.home().glob(".pyenv/versions/*/bin")), os.environ["PATH"]])

ENGINE = """
import numpy as np
import minicnn
from minicnn import Tensor, cpu, gradcheck, ops
shapes = (2, 3, 5, 5), (4, 3, 3, 3), 4
images, filters, bias = (Tensor(np.random.default_rng(0).standard_normal(s), requires_grad=True) for s in shapes)
assert all(result.passed for result in gradcheck.check(ops.conv2d, {"x": images, "w": filters, "b": bias}))
print("minicnn", minicnn.__version__, "convolutions", cpu.convolutions(), "in", minicnn.__file__)
"""


def run(*command, code=0, **others):
    """Run a command; its standard output and error. Exits where its code is another than expected."""
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, **others)
    if done.returncode != code:
        sys.exit(f"{command} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def try_wheel(python, wheel, folder):
    """Install the wheel with this interpreter, without and with its extra, and use it outside of the sources."""
    run(python, "-m", "venv", folder / "venv")
    own = folder / "venv" / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    outside = {"cwd": folder, "env": clean}
    run(own, "-m", "pip", "install", "--quiet", wheel, **outside)
    print(run(own, "-c", ENGINE, **outside).strip())
    refused = run(own, "-m", "experiments.train", code=2, **outside)
    assert "pip install -e '.[experiments]' in a checkout" in refused and len(refused.splitlines()) == 1, refused
    run(own, "-m", "pip", "install", "--quiet", f"{wheel}[experiments]", **outside)
    run(own, "-m", "experiments.train", "--epochs", "1", "--out", "trained", **outside)
    run(own, "-m", "experiments.attack", "--images", "8", "--limit", "5", "--out", "trained", **outside)
    print(run(own, "--version").strip(), "trains and attacks with the installed wheel")


def main():
    found = [path for path in (shutil.which(name, path=PLACES) for name in NAMES) if path]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = folder / "sources"
        run("git", "clone", "--quiet", ROOT, sources)
        run(sys.executable, "-m", "build", "--outdir", folder, sources)
        (wheel,) = folder.glob("*.whl")
        for python in sorted({found[0], found[-1]}, key=found.index):
            place = folder / Path(python).name
            place.mkdir()
            try_wheel(python, wheel, place)


if __name__ == "__main__":
    main()
