"""Does the notebook run from its first cell to its last, and is it kept without outputs?"""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests import tiny_run

NOTEBOOK = tiny_run.ROOT / "docs/quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_it_has_no_outputs():
    for cell in CELLS:
        assert not cell.get("outputs"), "clear the outputs before committing"
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    """As it stands, but for the four values of its first cell: a fiftieth of the world, eight steps."""
    nbformat = pytest.importorskip("nbformat", reason='nbformat is missing: pip install -e ".[dev]"')
    nbclient = pytest.importorskip("nbclient", reason='nbclient is missing: pip install -e ".[dev]"')
    pytest.importorskip("ipykernel", reason='ipykernel is missing: pip install -e ".[dev]"')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = [line.split(" = ")[0] for line in parameters.source.splitlines()]
    assert names == ["SCALE", "STEPS", "WORLD", "RUN"]
    parameters.source = f"SCALE, STEPS = 0.02, 8\nWORLD = {str(tmp_path / 'world')!r}\nRUN = {str(tmp_path / 'run')!r}"
    for name, value in tiny_run.environment(PYTHONPATH=os.pathsep.join([str(tiny_run.ROOT), *sys.path])).items():
        monkeypatch.setenv(name, value)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    said = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("of the attention is on the picture" in text for text in said)
    assert sum("image/png" in text for text in said) == 2
    assert any("coco_caption" in text and "CIDEr" in text for text in said)
