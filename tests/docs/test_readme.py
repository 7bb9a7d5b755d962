"""README: its commands and code run, its files exist, and it stays short."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from multitask_vl.cli.main import COMMANDS
from multitask_vl.registry import METHODS, ROUTING
from tests import tiny_run
from tests.docs.pages import DOCS, README, block

TEXT = README.read_text()
SHORT = [
    "training.max_steps=8", "evaluation.max_examples=8", "evaluation.eval_every_epochs=null", "training.log_steps=2",
]  # fmt: skip


def make_commands(target: str) -> list[str]:
    """Commands that make would run for a target after the setup."""
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", target, "WORLD=absent"]
    # the tests themselves may run under make, which would pass its flags on
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    out = subprocess.run(command, cwd=tiny_run.ROOT, env=env, capture_output=True, text=True, check=True).stdout
    return [line.replace(".venv/bin/", "").strip() for line in out.splitlines()]


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 130
    assert len(TEXT.split()) <= 900


def test_readme_demo_equals_make_demo():
    commands = [line.replace("absent", "data/world") for line in make_commands("demo") if not line.startswith("rm ")]
    assert commands == block(README, "demo").strip().splitlines()


def test_ci_runs_make_test():
    script = (tiny_run.ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert any("pytest" in line for line in make_commands("test"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder after the demo commands, on a fiftieth of the dataset; one training uses the real launcher."""
    folder = tmp_path_factory.mktemp("demo")
    data = f"data_dir={folder / 'world'}"
    for line in block(README, "demo").strip().splitlines():
        program, *arguments = line.replace("runs/", f"{folder}/runs/").split()
        if "make-synthetic" in arguments:
            arguments = ["make-synthetic", "--out", str(folder / "world"), "--scale", "0.02"]
        elif "extract" in arguments:
            arguments += [data]
        elif program == "accelerate":
            name = re.search(r"configs/examples/(\w+)\.yaml$", line)[1]
            arguments += [data, f"run_dir={folder / 'runs' / name}", *SHORT]
            if name == "quickstart":
                command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments]
                done = subprocess.run(
                    command, cwd=tiny_run.ROOT, env=tiny_run.environment(), capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr[-3000:]
                continue
            arguments = ["train", *arguments[arguments.index("--config", 2) :]]
        assert tiny_run.launch(*arguments) in (0, None), line
    return folder


@pytest.mark.slow
def test_demo_writes_scores_and_report(demo):
    scores = json.loads((demo / "runs/quickstart/scores.json").read_text())
    assert set(scores["splits"]) == {"val", "test", "ood"}
    assert set(scores["splits"]["test"]["tasks"]) == {"vqa", "gqa", "nlvr2", "coco_caption"}
    assert (demo / "runs/quickstart/report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_inference_page_code_runs(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    (demo / "data").mkdir()
    (demo / "data/world").symlink_to(demo / "world")
    page, names = DOCS / "inference.md", {}
    capsys.readouterr()
    exec(block(page, "answer") + block(page, "adapter"), names)
    *answers, trained = capsys.readouterr().out.splitlines()
    assert len(answers) == 2
    counts = json.loads((demo / "runs/quickstart/scores.json").read_text())["parameters"]
    assert trained == f"{counts['trainable']} of {counts['total']} parameters trained"


def test_readme_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(block(README, "python"), {})
    answer, caption, methods, functions = capsys.readouterr().out.splitlines()
    assert answer
    assert caption
    assert methods == f"methods: {METHODS.names()}"
    assert functions == f"routing functions: {ROUTING.names()}"
    assert (tmp_path / "scene.png").is_file()


def test_readme_lists_methods_and_routing_functions():
    table = TEXT[TEXT.index("| `method:` |") : TEXT.index("`sharing:")]
    first_cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)[1:]
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == set(METHODS.names())
    functions = re.search(r"Routing functions: (.*?), for\nall tasks", TEXT, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", functions)) <= set(ROUTING.names())


def test_readme_names_existing_commands_and_files():
    assert set(re.findall(r"multitask-vl (\w[\w-]*)", TEXT)) <= set(COMMANDS)
    assert shutil.which("make")
    for target in re.findall(r"make (demo|test|lint|docs|clean)", TEXT):
        assert make_commands(target)
