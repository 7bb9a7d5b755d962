"""Installation: the wheel, its commands, and the metadata of the project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from multitask_vl import __version__
from multitask_vl.cli.main import COMMANDS
from tests import tiny_run
from tests.docs.pages import README, block

ROOT = tiny_run.ROOT
MAX_MEGABYTES = 25


def test_wheel_is_complete_and_small(wheel):
    assert wheel.name == f"multitask_vl-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < MAX_MEGABYTES * 1e6
    names = set(zipfile.ZipFile(wheel).namelist())
    for top in ("multitask_vl", "feature_extraction"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".html", ".css", ".safetensors", ".json"):
                assert path.relative_to(ROOT).as_posix() in names
    for folder, suffix in (("launch", ".py"), ("configs", ".yaml")):
        for path in (ROOT / folder).rglob(f"*{suffix}"):
            assert f"multitask_vl/{path.relative_to(ROOT).as_posix()}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"multitask_vl", "feature_extraction"}
    assert not [name for name in names if "__pycache__" in name]


def test_installed_command_needs_no_checkout(installed, tmp_path):
    def run(*arguments: str) -> str:
        command = [str(installed / "bin" / "multitask-vl"), *arguments]
        env = tiny_run.environment(PYTHONPATH=str(installed))
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert set(re.findall(r"^  ([\w-]+) ", run("--help"), re.M)) == set(COMMANDS)
    assert Path(run("configs").strip()) == installed / "multitask_vl" / "configs"
    run("configs", "--copy", "configs")
    assert (tmp_path / "configs/experiments/routing/single_adapter_mul.yaml").is_file()
    lines = run("sweep", "configs/sweeps/precision.yaml", "--dry-run").splitlines()
    assert " -m multitask_vl train --config configs/examples/quickstart.yaml " in lines[1]


def test_readme_python_block_runs_installed(installed, tmp_path):
    """In another folder, from the wheel alone."""
    code = (
        block(README, "python")
        + "from multitask_vl.config.resources import CONFIGS_DIR, locate\n"
        + "print(mvl.__file__, CONFIGS_DIR / 'base.yaml', locate('bundled:bart'), sep='\\n')\n"
    )
    command, env = [sys.executable, "-c", code], tiny_run.environment(PYTHONPATH=str(installed))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *shown, module, config, weights = done.stdout.splitlines()
    assert len(shown) == 4
    assert all(shown)
    for path in map(Path, (module, config, weights)):
        assert path.is_relative_to(installed)
        assert path.exists()


def test_citation_has_required_fields():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "type", "authors", "version", "license", "abstract"} <= set(cff)
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] == "software"
    assert cff["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cff["license"] == project["license"]
    assert len(cff["references"]) == 4
    for entry in [cff, *cff["references"]]:
        assert entry["title"]
        for author in entry["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"}), author
    for reference in cff["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)


def test_changelog_has_current_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.M)[:2] in (["Unreleased", __version__], [__version__])


def test_dockerfile_copies_existing_paths():
    text = (ROOT / "Dockerfile").read_text()
    base = re.search(r"^FROM (\S+)", text, re.M)[1]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-[\w-]+", base), "pinned to a full tag"
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert set(re.findall(r"multitask-vl (\w[\w-]*)", text.split("FROM")[0])) <= set(COMMANDS)


def test_contributing_names_existing_paths():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:tests|docs|multitask_vl|benchmarks|studies|examples|configs|launch)/[\w/.]*)`", text)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), path
