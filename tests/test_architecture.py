"""Imports point down only: those of every file, held to the table in README.md."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_name(path): path for folder in ("minicnn", "experiments") for path in (ROOT / folder).rglob("*.py")}


def imports(name):
    """The modules of this project that a module names in an import, wherever in its file."""
    found = set()
    for node in ast.walk(ast.parse(PATHS[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & PATHS.keys()) or {node.module}
    return found & PATHS.keys()


IMPORTS = {name: imports(name) for name in PATHS}


def table():
    """README's table with full names, module -> modules; "experiments" stands for each of its modules."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("```imports\n")[1].split("```")[0]
    arrows = {}
    for line in text.splitlines():
        source, targets = line.split(" -> ")
        assert source not in arrows, f"{source} has two lines"
        arrows[source] = {name if name in PATHS else f"minicnn.{name}" for name in targets.split(", ")}
    return {source if source in PATHS else f"minicnn.{source}": targets for source, targets in arrows.items()}


def below(name, arrows):
    """Everything that a module of the table reaches."""
    reached, stack = set(), [name]
    while stack:
        new = arrows.get(stack.pop(), set()) - reached
        reached |= new
        stack += new
    return reached


def test_no_check_hangs_on_an_assert():
    """python -O leaves them out."""
    for name, path in PATHS.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.Assert) for node in nodes), name


def test_imports_have_no_circle():
    assert len(IMPORTS) > 30 and IMPORTS["minicnn.backend"] == {"minicnn.cpu", "minicnn.cuda"}
    list(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises CycleError


@pytest.mark.parametrize("name", [name for name in PATHS if name.startswith("minicnn.")])
def test_imports_are_those_of_the_readme(name):
    """Of the engine and the paper's methods: what a line says, and what lies below that."""
    assert IMPORTS[name] <= below(name, table())


def test_imports_of_the_readme_are_in_the_code():
    for name, targets in table().items():
        if name != "experiments":
            assert targets <= IMPORTS[name], f"README: {name} -> {', '.join(targets - IMPORTS[name])}"


def test_imports_of_the_packages_themselves():
    """minicnn/__init__.py is the front door of the engine alone, and only those outside go through it."""
    assert not any(target.startswith(("minicnn.paper", "experiments")) for target in IMPORTS["minicnn"])
    assert not IMPORTS["minicnn.paper"]
    assert table()["experiments"] == {"minicnn.paper", "minicnn"}
