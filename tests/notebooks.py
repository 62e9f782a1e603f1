"""The notebooks of experiments/, run by the interpreter that runs this, whatever kernels the machine has registered.

`make notebooks` writes their outputs anew. They are committed with outputs, so that a reader on GitHub sees the figures
and pictures without running anything; tests/experiments/test_notebooks.py holds what they say to what they compute.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
PATHS = sorted(FOLDER.glob("*.ipynb"))


class ThisInterpreter(AsyncKernelManager):
    """A kernel of the running Python."""

    @property
    def kernel_spec(self):
        return KernelSpec(**get_kernel_dict())


@contextlib.contextmanager
def kernel(path):
    """A started client of a notebook without outputs, in the folder where the notebook lies; run(client) fills it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as own, mock.patch.dict(os.environ, IPYTHONDIR=own, JUPYTER_RUNTIME_DIR=own):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        os.environ.pop("MPLBACKEND", None)  # an experiment that was imported has set it to one for files
        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisInterpreter,
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            timeout=300,
        )
        client.reset_execution_trackers()
        with client.setup_kernel():
            yield client


def run(client):
    """Execute every cell. Raises CellExecutionError for one that fails."""
    for index, cell in enumerate(client.nb.cells):
        client.execute_cell(cell, index)


def main():
    for path in PATHS:
        with kernel(path) as client:
            run(client)
        client.nb.metadata = {key: client.nb.metadata[key] for key in ("kernelspec", "language_info")}
        nbformat.write(client.nb, path)
        print(f"{path}: {len(client.nb.cells)} cells, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
