"""Fixtures of report tests: read-only run folders, and a way to copy one for changes."""

import shutil
from pathlib import Path

import pytest

from tests.reports.run_folders import hostile_page, make_run, make_scenes


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder with images and three runs: `runs/full`, its control `runs/shuffled`, `runs/seed43`. Read-only."""
    base = tmp_path_factory.mktemp("reports")
    scenes = make_scenes(base / "world")
    make_run(base / "runs" / "full", scenes, base / "world")
    make_run(base / "runs" / "shuffled", scenes, base / "world", accuracy=0.3, features__shuffle_images=True)
    make_run(base / "runs" / "seed43", scenes, base / "world", seed=43)
    return base


@pytest.fixture
def copy_run(base, tmp_path):
    """Copy a run folder for a test that changes it."""
    return lambda name, to="run": Path(shutil.copytree(base / "runs" / name, tmp_path / to))


@pytest.fixture
def no_charts(monkeypatch):
    """Pages without charts, which take most of the time to draw; returns the runs of each omitted chart."""
    omitted = []
    for module in ("page", "compare"):
        monkeypatch.setattr(f"multitask_vl.reports.{module}.loss_panels", lambda runs: omitted.append(runs) or [])
        monkeypatch.setattr(f"multitask_vl.reports.{module}.score_panels", lambda runs: omitted.append(runs) or {})
    monkeypatch.setattr("multitask_vl.reports.compare.dot_panels", lambda runs, split: omitted.append(runs) or [])
    return omitted


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory) -> Path:
    """The report of a run with a control, hostile and very long texts, a missing and a corrupt image."""
    return hostile_page(tmp_path_factory.mktemp("hostile"))
