"""The notebook is its paired script, and runs from its first cell to its last."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "your_own_images.ipynb"


def test_the_notebook_is_its_script_without_outputs() -> None:
    notebook, script = nbformat.read(NOTEBOOK, as_version=4), jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 10
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.real_data
def test_the_notebook_runs(tmp_path: Path) -> None:
    """With ImageNet's weights, on pictures that scikit-learn ships."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys; sys.path.insert(0, {str(ROOT)!r})"))
    # nbclient looks for the kernel of the environment that it runs in.
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    accuracy = re.search(r"^accuracy ([\d.]+)%", printed, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) > 90  # sky and temple are easily told from petals
    assert len(re.findall(r"^pictures/.*\.png: (?:china|flower), probability", printed, re.MULTILINE)) == 4
    assert re.search(r"<Run runs/run_1: resnet50, accuracy", printed)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
