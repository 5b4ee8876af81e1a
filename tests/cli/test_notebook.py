"""experiments/notebook: the notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import asyncdgl

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebook" / "notebook.ipynb"
MOST_BYTES = 300_000


def texts(cell: Any) -> str:
    """What a cell printed, or showed as text."""
    outputs = cell.get("outputs", [])
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.ray
@pytest.mark.timeout(400)  # a Python of its own, and Ray
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    # The kernel of this very Python, whatever kernels the user has, and this very package.
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(Path(asyncdgl.__file__).parents[1]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    errors = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    noise = [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert (errors, noise) == ([], [])
    shown = "\n".join(texts(cell) for cell in code)
    accuracies = [float(found) for found in re.findall(r"test accuracy (\d\.\d+)", shown)]
    assert len(accuracies) == 3
    assert min(accuracies) > 0.8, accuracies
    [on_ray, used] = re.search(r"test accuracy (\S+), used afterwards (\S+)", shown).groups()
    assert on_ray == used
    assert re.search(r"bit-exact: 2 of 2 stages, \d+ passes", shown)
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert len(list((here / "runs").iterdir())) == 3


def test_the_notebook_that_lies_here_is_small() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
