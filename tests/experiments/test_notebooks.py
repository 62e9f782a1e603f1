"""The notebooks run as they are committed, and their exercises know right answers from wrong ones."""

import importlib.util

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install -e '.[test]'")
notebooks = pytest.importorskip("tests.notebooks", reason="needs nbclient and ipykernel: pip install -e '.[test]'")

MOST_CELLS = {"proof1": 20, "your_own": 15}
ANSWERS = {  # exercise -> right answers, then wrong ones and what is said of them
    1: (
        ["p[k] * (np.eye(len(p))[k] - p) / T", "np.where(np.arange(len(p)) == k, p * (1 - p), -p * p[k]) / T"],
        {"p[k] * (np.eye(len(p))[k] + p) / T": "(4) as printed", "0 * p": "moving x_i gives"},
    ),
    2: (["[1] + [0] * 9", "np.arange(10)"], {"[0] * 10": "agree", "[1, 2]": "Ten logits are asked for"}),
    3: (["20"], {"19": "float32, still has 1 - p_k = 6.0e-08", "25": "With a lead of 24 the exact p_k"}),
    4: (["np.log(T) / (T - 1)"], {"1 / T": "At T = 2 your margin is 0.5", "log(T)": "It raises NameError"}),
    5: (
        ["gradient * (1 - image)"],
        {"gradient": "Algorithm 1's score", "abs(gradient) * (1 - image)": "gradient times step"},
    ),
}


def texts(cell):
    """What a code cell prints and shows, without its pictures."""
    shown = ["".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    return "".join(shown)


def code(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module", params=notebooks.PATHS, ids=lambda path: path.stem)
def executed(request):
    """The path of a notebook and a client whose kernel has run all of it, with the engine as it is."""
    with notebooks.kernel(request.param) as client:
        notebooks.run(client)
        yield request.param, client


def test_notebook_says_what_is_committed(executed):
    path, client = executed
    committed = code(nbformat.read(path, as_version=4))
    for name, cell in code(client.nb).items():
        expected = texts(committed[name])
        if name == "torch" and importlib.util.find_spec("torch") is None:
            expected = "PyTorch is not installed: pip install torch, and run this cell again\n"
        assert texts(cell) == expected, f"{path.name}, {name}: make notebooks writes the outputs anew"


def test_notebook_checks_the_answers_to_its_exercises(executed):
    path, client = executed
    cells = {cell.id: (index, cell) for index, cell in enumerate(client.nb.cells) if cell.id.startswith("exercise-")}
    assert list(cells) == [f"exercise-{number}" for number in ANSWERS if path.stem == "proof1"]
    for (number, (right, wrong)), (index, cell) in zip(ANSWERS.items(), cells.values(), strict=False):
        assert cell.source.count("...") == 1 and texts(cell) == f"Exercise {number}: no answer yet.\n"

        def verdict(answer, index=index, cell=cell):
            filled = nbformat.v4.new_code_cell(cell.source.replace("...", answer))
            return texts(client.execute_cell(filled, index))

        assert {verdict(answer) for answer in right} == {f"Exercise {number}: right.\n"}
        for answer, said in wrong.items():
            found = verdict(answer)
            assert found.startswith(f"Exercise {number}: not yet. ") and said in found


@pytest.mark.parametrize("path", notebooks.PATHS, ids=lambda path: path.stem)
def test_notebook_is_small_and_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= MOST_CELLS[path.stem] and path.stat().st_size < 150_000
    cells = code(notebook).values()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert str(notebooks.ROOT) not in path.read_text("utf-8")
