"""Run folders that every test of the reports may read, and a way to copy one to spoil it."""

import shutil
from pathlib import Path

import pytest

from tests.reports.run_folders import make_run, make_world


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a world and two runs, `runs/full` and its blind control `runs/blind`. Not to be changed."""
    base = tmp_path_factory.mktemp("reports")
    world = make_world(base / "world")
    make_run(base / "runs" / "full", world, base / "world")
    make_run(base / "runs" / "blind", world, base / "world", skill=0.3, features__control="shuffled")
    make_run(base / "runs" / "seed43", world, base / "world", seed=43)
    return base


@pytest.fixture
def copy(place, tmp_path):
    """Copies a run folder to where a test may spoil it."""
    return lambda name, to="run": Path(shutil.copytree(place / "runs" / name, tmp_path / to))
