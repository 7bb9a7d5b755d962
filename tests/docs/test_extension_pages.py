"""Pages about extending the toolkit, and the page about reports: their files and commands run."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import yaml

from multitask_vl.methods.base import Method
from multitask_vl.registry import BACKBONES, METHODS, ROUTING, TASKS
from multitask_vl.tasks.base import Task
from tests import tiny_run
from tests.docs.pages import DOCS, FILE, run_commands

EXTENSION_PAGES = sorted(DOCS.glob("add_a_*.md"))


@pytest.fixture
def plugin_folder(tmp_path, monkeypatch):
    """The current folder, importable; modules and registrations of a test are removed after it."""
    for registry in (BACKBONES, METHODS, ROUTING, TASKS):
        registry.names()  # imports the built-in entries
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    modules = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def test_every_extension_page_exists():
    assert [page.stem for page in EXTENSION_PAGES] == [
        "add_a_backbone", "add_a_method", "add_a_routing_function", "add_a_task",
    ]  # fmt: skip


@pytest.mark.parametrize("page", EXTENSION_PAGES, ids=lambda page: page.stem)
def test_extension_page_example_trains(page, plugin_folder):
    """The files of the page; a run of seconds with the same tasks replaces the quickstart it composes."""
    tiny_run.write_dataset(plugin_folder)
    for name, code in FILE.findall(page.read_text()):
        # the data of the tiny run are in its own folder
        (plugin_folder / name.removeprefix("data/world/")).write_text(code)
    tiny = tiny_run.write_config(plugin_folder)
    run = yaml.safe_load((plugin_folder / "my_run.yaml").read_text())
    assert run["compose"] == ["configs/examples/quickstart.yaml"]
    run["training"] = {"max_steps": 6, "checkpoint_steps": None}
    run |= {"compose": [str(tiny)], "run_dir": str(plugin_folder / "run")}
    if "backbone" in run:
        run["backbone"]["tokenizer"] = str(plugin_folder / "tokenizer")
    (plugin_folder / "my_run.yaml").write_text(yaml.safe_dump(run))
    (command,) = run_commands(page)
    assert command == "PYTHONPATH=. multitask-vl train --config my_run.yaml"
    assert tiny_run.launch(*command.split()[2:]) in (0, None)
    scores = json.loads((plugin_folder / "run" / "scores.json").read_text())
    assert set(scores["splits"]["test"]["tasks"]) == {"vqa", "gqa", "nlvr2", "coco_caption", *run.get("tasks", ())}


def test_extension_pages_name_existing_attributes():
    text = (DOCS / "add_a_method.md").read_text()
    for name in ("trainable_base_parameters", "prompt", "merge_blocker", "merge", "wrap"):
        assert f"`{name}" in text
        assert hasattr(Method, name)
    text = (DOCS / "add_a_task.md").read_text()
    for name in (
        "sources", "read", "score", "submission", "sample_target", "reduce", "num_images", "has_text", "resolve_files",
    ):  # fmt: skip
        assert f"`{name}" in text
        assert hasattr(Task, name)


def test_reports_page_commands_run(tmp_path, monkeypatch, capsys):
    """The runs are a tiny one and its copy under the name of the control."""
    tiny_run.write_dataset(tmp_path)
    config = tiny_run.write_config(tmp_path, run_dir=str(tmp_path / "runs" / "quickstart_shuffled"))
    overrides = ["training.max_steps=4", "training.checkpoint_steps=null", "features.shuffle_images=true"]
    assert tiny_run.launch("train", "--config", str(config), *overrides) == 0
    run_dir = tmp_path / "runs" / "quickstart"
    shutil.copytree(tmp_path / "runs" / "quickstart_shuffled", run_dir)
    resolved = run_dir / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("shuffle_images: true", "shuffle_images: false"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    commands = run_commands(DOCS / "reports.md")
    assert len(commands) == 7
    for command in commands:
        program, *arguments = command.split()
        assert program == "multitask-vl"
        code = tiny_run.launch(*arguments)
        captured = capsys.readouterr()
        assert code == 0, f"{command}\n{captured.err[-3000:]}"
        assert captured.out
    assert "W_down" in (run_dir / "report.html").read_text()
    for name in re.findall(r"!\[.+\]\((\w+\.webp)\)", (DOCS / "reports.md").read_text()):
        assert (DOCS / name).stat().st_size < 200_000
