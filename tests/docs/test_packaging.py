"""What does somebody get who installs the project: a small wheel with programs, configurations and tiny weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from multitask_vl import __version__
from multitask_vl.cli.main import main
from tests import tiny_run

ROOT = tiny_run.ROOT
MEGABYTES = 25
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "requirements.txt")


def run(*words: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(words, cwd=cwd, env=tiny_run.environment(**env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy, so that nothing is left in the project's own folder."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in ("multitask_vl", "feature_extraction", "launch", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", "out", ".", cwd=folder)
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_the_wheel_holds_all_of_it_and_is_small(wheel):
    assert wheel.name == f"multitask_vl-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < MEGABYTES * 1e6
    names = set(zipfile.ZipFile(wheel).namelist())
    for top in ("multitask_vl", "feature_extraction"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".html", ".safetensors", ".json"):
                assert path.relative_to(ROOT).as_posix() in names
    for folder, ending in (("launch", ".py"), ("configs", ".yaml")):
        for path in (ROOT / folder).rglob(f"*{ending}"):
            assert f"multitask_vl/{path.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "build/")) or "__pycache__" in name]


def test_what_is_installed_runs_away_from_the_checkout(wheel, tmp_path):
    """Unpacked as pip would; the libraries are those of this environment."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site")
    run(*pip, str(wheel), cwd=tmp_path)
    env = {"PYTHONPATH": str(tmp_path / "site")}
    said = run(str(tmp_path / "site/bin/multitask-vl"), "--help", cwd=tmp_path, **env)
    assert {"train", "extract", "evaluate", "predict", "export", "doctor"} <= set(
        re.findall(r"^  ([\w-]+)", said, re.M)
    )
    run(sys.executable, "-m", "multitask_vl", "configs", "--copy", "configs", cwd=tmp_path, **env)
    assert (tmp_path / "configs/experiments/routing/single_adapter_mul.yaml").is_file()
    code = (
        "import multitask_vl, json, runpy\n"
        "from multitask_vl.cli.main import commands\n"
        "from multitask_vl.config import load_config, locate\n"
        "config = load_config('configs/examples/quickstart.yaml')\n"
        "paths = [multitask_vl.__file__, locate(config.backbone.pretrained), locate(config.clip.pretrained)]\n"
        # a program that reads configs/ beside itself
        "paths += [commands()['train'], runpy.run_path(commands()['recipes'])['CONFIGS'] / 'base.yaml']\n"
        "print(json.dumps(list(map(str, paths))))\n"
    )
    for path in yaml.safe_load(run(sys.executable, "-c", code, cwd=tmp_path, **env)):
        assert Path(path).is_relative_to(tmp_path / "site")
        assert Path(path).exists()


def test_every_program_is_a_command_with_a_sentence(capsys):
    known = main.commands()
    assert {path.stem for path in known.values() if isinstance(path, Path)} == {
        p.stem for p in ROOT.glob("launch/*.py")
    }
    assert command("--help") == 0
    said = capsys.readouterr().out
    for name in [*known, "configs"]:
        assert re.search(rf"^  {name}  +\w", said, re.M), name


def command(*words: str) -> int:
    before, sys.argv = sys.argv, ["multitask-vl", *words]
    try:
        return main.main()
    finally:
        sys.argv = before


def test_the_command_itself(capsys, tmp_path):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"multitask-vl {__version__}\n"
    assert command("trian") == 2
    assert "unknown command 'trian'; did you mean 'train'" in capsys.readouterr().err
    assert command("configs") == 0
    assert Path(capsys.readouterr().out.strip()) == ROOT / "configs"
    assert command("configs", "--copy", str(tmp_path)) == 2
    assert command("train", "--config", str(tmp_path / "absent.yaml")) == 2
    assert "absent.yaml: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command("export", "--help")
    assert caught.value.code == 0
    assert "usage: multitask-vl export" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        command("check-submission", "--help")
    assert caught.value.code == 0


def test_the_citation_is_whole():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "type", "authors", "version", "license", "abstract"} <= set(cff)
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] == "software"
    assert cff["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cff["license"] == project["license"]
    assert len(cff["references"]) == 4
    for one in [cff, *cff["references"]]:
        assert one["title"]
        for author in one["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"}), author
    for one in cff["references"]:
        assert {"type", "title", "authors", "year"} <= set(one)


def test_the_change_log_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.M)[:2] in (["Unreleased", __version__], [__version__])


def test_what_the_dockerfile_copies_exists():
    text = (ROOT / "Dockerfile").read_text()
    base = re.search(r"^FROM (\S+)", text, re.M)[1]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-[\w-]+", base), "pinned by a whole tag"
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    shown = re.findall(r"multitask-vl (\w[\w-]*)", text.split("FROM")[0])
    assert set(shown) <= {*main.commands(), "configs"}


def test_contributing_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:tests|docs|multitask_vl|benchmarks|configs|launch)/[\w/.]*)`", text):
        assert os.path.exists(ROOT / path), path
