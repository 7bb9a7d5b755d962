"""The quickstart notebook runs from its first cell to its last, and has no outputs."""

from __future__ import annotations

import json

import pytest
from accelerate.state import AcceleratorState

from tests.docs.pages import DOCS

CELLS = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]


def test_notebook_has_no_outputs():
    for cell in CELLS:
        assert not cell.get("outputs"), "clear the outputs before committing"
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    """Every cell in a shell of this process, with other values in the first: a fiftieth of the dataset, eight steps."""
    shells = pytest.importorskip("IPython.core.interactiveshell", reason='IPython is missing: pip install -e ".[dev]"')
    capture = pytest.importorskip("IPython.utils.capture")
    first, *cells = ("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    assert [line.split(" = ")[0] for line in first.splitlines()] == ["SCALE", "STEPS", "WORLD", "RUN"]
    assert CELLS[1]["metadata"]["tags"] == ["parameters"]
    monkeypatch.chdir(DOCS)  # where Jupyter starts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shell = shells.InteractiveShell(user_ns={})
    values = f"SCALE, STEPS = 0.02, 8\nWORLD = {str(tmp_path / 'world')!r}\nRUN = {str(tmp_path / 'run')!r}"
    printed, images = "", 0
    for source in [values, *cells]:
        AcceleratorState._reset_state(reset_partial_state=True)
        with capture.capture_output() as captured:
            result = shell.run_cell(source)
        assert result.success, f"{source}\n{captured.stdout}\n{captured.stderr}"
        printed += captured.stdout
        images += hasattr(result.result, "_repr_png_")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "of the attention is on the image" in printed
    assert images == 2
    assert "coco_caption" in printed
    assert "CIDEr" in printed
