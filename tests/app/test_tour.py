"""The notebook of the documentation, on a run of half a minute."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUR", "debug=fast")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of a busy machine wait for each other
    folder = tmp_path / "docs"
    folder.mkdir()
    notebook = nbformat.read(shutil.copy(NOTEBOOK, folder), as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": folder}}, timeout=600).execute()
    shown = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert "share of visual MACs" in shown
    assert (tmp_path / "outputs" / "tour" / "route.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "docs", "outputs"}
