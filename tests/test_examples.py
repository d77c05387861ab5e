"""The notebooks in examples/: they run in Jupyter, and their outputs are there."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="Jupyter is missing: make test installs it")
nbclient = pytest.importorskip("nbclient", reason="Jupyter is missing: make test installs it")
pytest.importorskip("ipykernel", reason="Jupyter is missing: make test installs it")

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def formats(cell):
    """Return the formats of a cell's outputs."""
    return {name for output in cell.outputs for name in output.get("data", {})}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_has_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert sum(len(cell.source.splitlines()) for cell in cells) <= 40
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in formats(cell) for cell in cells)
    assert path.stat().st_size < 350_000
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    before = [formats(cell) for cell in cells]
    for cell in cells:
        cell.source = re.sub(r"^steps = \d+", "steps = 2", cell.source, flags=re.MULTILINE)
        cell.outputs = []
    resources = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    for cell, expected in zip(cells, before, strict=True):
        assert expected <= formats(cell), cell.source


@pytest.mark.slow
def test_a_picture_grows_in_one_place():
    code = """
import clipag_plugins as clip
from clipag_plugins import notebook
notebook.SECONDS = 0
picture = clip.generate(["a red apple", "a castle"], steps=3, size=32, tries=2)
quiet = clip.generate("a red apple", steps=1, size=32, options=clip.RunOptions(progress=False))
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3")
    updates = []
    process = client.process_message

    def watch(message, *arguments):
        updates.append(message["msg_type"])
        return process(message, *arguments)

    client.process_message = watch
    client.execute()
    assert updates.count("display_data") == 1 and updates.count("update_display_data") >= 4
    (shown,) = (output for output in book.cells[0].outputs if output.output_type == "display_data")
    assert "image/png" in shown.data
