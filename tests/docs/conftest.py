"""A wheel of the project, built and installed once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_run

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "requirements.txt")
FOLDERS = ("multitask_vl", "feature_extraction", "launch", "configs")


def pip(*arguments: str, cwd: Path) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"]
    subprocess.run(command, cwd=cwd, env=tiny_run.environment(), capture_output=True, check=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        shutil.copy(tiny_run.ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(tiny_run.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-build-isolation", "--wheel-dir", "out", ".", cwd=folder)
    (built,) = (folder / "out").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder in which the wheel is installed; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", "site", str(wheel), cwd=folder)
    return folder / "site"
