"""The public API: what minicnn/__init__.py names, that all of it is annotated, and that its examples run."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import minicnn

ROOT = Path(__file__).parents[1]
MODULES = ["minicnn", *(m.name for m in pkgutil.walk_packages(minicnn.__path__, "minicnn.") if "kernels" not in m.name)]
each_module = pytest.mark.parametrize("name", MODULES)


def test_public_api_is_what_all_names():
    named = set(minicnn.__all__)
    public = {name for name in vars(minicnn) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(vars(minicnn)[name])}
    assert named == (public - modules) | {"gradcheck", "layers", "ops"}
    assert minicnn.__all__ == sorted(minicnn.__all__)
    assert all(getattr(minicnn, name).__doc__ for name in named)


def functions_of(module):
    """(name, function) of every public function and method that a module defines, constructors among them."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(function, "fget", None) or getattr(function, "__func__", function)
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and (method == "__init__" or not method.startswith("_")):
                yield f"{name}.{method}", function


@each_module
def test_public_functions_are_annotated(name):
    missing = []
    for function_name, function in functions_of(importlib.import_module(name)):
        signature = inspect.signature(function)
        annotations = [p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")]
        if signature.empty in [*annotations, signature.return_annotation]:
            missing.append(function_name)
    assert not missing


@each_module
def test_doctests_run(name):
    """And none is left out, not those of operations behind their decorator either."""
    module, runner = importlib.import_module(name), doctest.DocTestRunner()
    tests = doctest.DocTestFinder().find(module)
    assert sum(len(test.examples) for test in tests) == Path(module.__file__).read_text().count(">>> ")
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


def mypy(*arguments):
    pytest.importorskip("mypy", reason="needs mypy: pip install mypy")
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_mypy_passes_on_the_package():
    result = mypy()
    assert result.returncode == 0, result.stdout + result.stderr


PROGRAM = """
from minicnn import Layer, Recipe, Tensor, grad, layers, no_grad, op, ops, predict

@op
def square(x, power=2):
    return x * x, (lambda g: 2 * x * g,)

class Scale(Layer):
    def __init__(self) -> None:
        self.factor = Tensor([1.0], requires_grad=True)

    def __call__(self, x: Tensor, masks: layers.DropoutMasks | None = None) -> Tensor:
        return (1 - (x @ x.T).exp().max(axis=1)[0] / self.factor).log()

network: layers.Sequential = layers.Sequential(scale=Scale()).to("cpu")
with no_grad():
    y: Tensor = square(network(Tensor([1.0])))
recipe = Recipe(l2={"scale_factor": 0.1}, epochs=2)
"""
MISTAKES = {
    'Recipe(epochs="2")': "arg-type",
    "Recipe(l2=0.1)": "arg-type",
    'ops.max_pool2d(y, size="2")': "arg-type",
    "ops.dropout(y, 0.5)": "call-arg",
    "y.mean(axis='0')": "arg-type",
    "network.devise": "attr-defined",
    "predict(y, [1.0])": "arg-type",
}


def test_mypy_passes_on_a_user_s_program_and_finds_its_mistakes(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM + "\n".join(MISTAKES))
    result = mypy("--cache-dir", str(tmp_path), str(path))
    found = [line.split() for line in result.stdout.splitlines() if ": error:" in line]
    first = PROGRAM.count("\n") + 1
    expected = [(f"{path}:{first + i}:", f"[{code}]") for i, code in enumerate(MISTAKES.values())]
    assert [(words[0], words[-1]) for words in found] == expected, result.stdout
