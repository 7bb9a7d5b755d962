"""Does what the pages under docs/ show run as it stands: their files, their YAML, their command?"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from multitask_vl.methods.base import Method
from multitask_vl.tasks.base import Task
from tests import tiny_run

PAGES = sorted((tiny_run.ROOT / "docs").glob("add_a_*.md"))
FILE = re.compile(r"<!-- file: ([\w./]+) -->\n```\w+\n(.*?)```", re.DOTALL)
RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


def test_there_are_pages():
    assert [page.stem for page in PAGES] == ["add_a_backbone", "add_a_method", "add_a_routing_function", "add_a_task"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_s_example_trains_and_predicts(page, tmp_path):
    """In a folder with the page's files, where configs/examples/quickstart.yaml is a run of seconds with the same tasks."""
    tiny_run.write_files(tmp_path)
    text = page.read_text()
    for name, code in FILE.findall(text):
        # the tiny run's data lie in its own folder
        (tmp_path / name.removeprefix("data/world/")).write_text(code)
    tiny = tiny_run.write_config(tmp_path)
    run = yaml.safe_load((tmp_path / "my_run.yaml").read_text())
    assert run["compose"] == ["configs/examples/quickstart.yaml"]
    run.get("training", {}).pop("steps", None)
    run |= {"compose": [str(tiny)], "run_dir": str(tmp_path / "run")}
    if "backbone" in run:
        run["backbone"]["tokenizer"] = str(tmp_path / "tokenizer")
    (tmp_path / "my_run.yaml").write_text(yaml.safe_dump(run))
    (command,) = (line for (line,) in map(str.splitlines, RUN.findall(text)))
    words = command.replace("PYTHONPATH=. python ", "").split()
    assert words == ["launch/train_multitask.py", "--config", "my_run.yaml"]
    done = subprocess.run(
        [sys.executable, str(tiny_run.ROOT / words[0]), *words[1:]],
        cwd=tmp_path,
        env=tiny_run.environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tiny_run.ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["splits"]["report"]["tasks"]) == {"vqa", "gqa", "nlvr2", "coco_caption", *run.get("tasks", ())}


def test_what_the_pages_name_exists():
    text = (tiny_run.ROOT / "docs" / "add_a_method.md").read_text()
    for name in ("trains", "prompt", "cannot_merge", "merge", "wrap"):
        assert f"`{name}" in text
        assert hasattr(Method, name)
    text = (tiny_run.ROOT / "docs" / "add_a_task.md").read_text()
    for name in ("sources", "read", "score", "submission", "target", "reduce", "pictures", "reads_text", "existing"):
        assert f"`{name}" in text
        assert hasattr(Task, name)
    for path in re.findall(r"`((?:multitask_vl|tests|docs)/[\w/.]+)`", "".join(page.read_text() for page in PAGES)):
        assert (tiny_run.ROOT / path).exists(), path


def test_the_commands_of_the_page_on_reports_run(tmp_path):
    """In a folder whose runs are a tiny one and its copy under the control's name."""
    tiny_run.write_files(tmp_path)
    config = tiny_run.write_config(tmp_path, run_dir=str(tmp_path / "runs" / "quickstart_blind"))
    words = ["training.steps=4", "training.checkpoint_every=null", "features.control=shuffled"]
    assert tiny_run.launch("train_multitask", "--config", str(config), *words) == 0
    seeing = Path(shutil.copytree(tmp_path / "runs" / "quickstart_blind", tmp_path / "runs" / "quickstart"))
    resolved = seeing / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("control: shuffled", "control: none"))
    text = (tiny_run.ROOT / "docs" / "reports.md").read_text()
    commands = [line.split() for block in RUN.findall(text) for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        script = [str(tiny_run.ROOT / word) if word.startswith("launch/") else word for word in command[1:]]
        done = subprocess.run(
            [sys.executable, *script],
            cwd=tmp_path,
            env=tiny_run.environment() | {"PYTHONPATH": str(tiny_run.ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
        assert done.stdout
    assert "Looking inside" in (seeing / "report.html").read_text()
    for name in re.findall(r"!\[.+\]\((\w+\.webp)\)", text):
        assert (tiny_run.ROOT / "docs" / name).stat().st_size < 200_000
