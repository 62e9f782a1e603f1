"""What the README shows is true: its code runs, its commands exist, its files are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readme_code_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets
    modules = set(re.findall(r"python -m experiments\.(\w+)", README))
    assert modules and all((ROOT / "experiments" / f"{name}.py").exists() for name in modules - {"NAME"})


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (experiments\.[a-z_]+[^\n`|#]*)", README))))
def test_readme_command_has_options_that_exist(command):
    """An option that is missing is told of only after all others are understood; test_command_line.py runs each."""
    arguments = [sys.executable, "-m", *shlex.split(command), "--no-such-option"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "unrecognized arguments: --no-such-option" in done.stderr, done.stderr


def test_readme_has_every_experiment_in_its_table():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    runnable = {p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text(encoding="utf-8")}
    assert named == runnable


def test_readme_names_files_that_are_there():
    paths = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    paths += re.findall(r"`((?:minicnn|kernels|tests|experiments)/[\w./]+)`", README)
    missing = [p for p in paths if not (ROOT / p).exists()]
    assert paths and not missing, missing
