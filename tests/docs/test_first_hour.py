"""Does the first hour with real data go as its page says: its files, its commands, in order, on real photographs?"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys

import pytest

from multitask_vl.config import load_config
from tests import tiny_run
from tests.docs.test_docs import FILE, RUN

DOCS = tiny_run.ROOT / "docs"
PAGE = (DOCS / "first_hour.md").read_text()
LIKE = re.compile(r"<!-- like: ([\w.]+) -->\n```json\n(.*?)```", re.DOTALL)
PICTURES = 40


def test_every_page_with_commands_to_run_is_run():
    """By this file, or by `test_docs`."""
    pages = {path.stem for path in DOCS.glob("*.md") if "<!-- run -->" in path.read_text()}
    by_test_docs = {"add_a_backbone", "add_a_method", "add_a_routing_function", "add_a_task", "reports"}
    assert pages == {"first_hour"} | by_test_docs


@pytest.fixture
def hour(shared, tmp_path, monkeypatch):
    """A folder as the page has it after its first two parts: photographs, questions about them, the YAMLs."""
    data = shared / "data/coco_photos"
    questions = json.loads((data / "vqav2_questions.json").read_text())["questions"]
    answers = {
        one["question_id"]: [person["answer"] for person in one["answers"]]
        for one in json.loads((data / "vqav2_annotations.json").read_text())["annotations"]
    }
    lines = [
        {
            "image": f"{one['image_id']:012d}.jpg",
            "question": one["question"],
            "answers": answers[one["question_id"]],
        }
        for one in questions
    ]
    (tmp_path / "photos").mkdir()
    for path in [
        *sorted((data / "images").glob("*.jpg"))[:PICTURES],
        *(data / "images" / one["image"] for one in lines),
    ]:
        shutil.copy(path, tmp_path / "photos")
    for name, some in (("train.jsonl", lines), ("report.jsonl", lines[:5])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in some))
    (name, shown), *_ = LIKE.findall(PAGE)
    for line in shown.splitlines():
        assert json.loads(line).keys() == lines[0].keys()
        assert (tmp_path / "photos" / json.loads(line)["image"]).exists()
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text)
    (tmp_path / "configs").symlink_to(tiny_run.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.shared
def test_the_hour(hour, capsys, monkeypatch):
    """Each command with its words, in this process, which spares seconds of importing each time."""
    commands = [line for block in RUN.findall(PAGE) for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        python, *words = shlex.split(command)
        assert python == "python"
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            code = ended.value.code
        else:
            code = tiny_run.launch(re.fullmatch(r"launch/(\w+)\.py", words[0])[1], *words[1:])
        said = capsys.readouterr()
        assert not code, f"{command}\n{said.out}\n{said.err}"
    assert (hour / "runs/first/report.html").exists()
    rows = (hour / "runs/first/predictions/questions/report.jsonl").read_text().splitlines()
    assert len(rows) == 5
    config = load_config(hour / "my_real.yaml")
    assert (config.clip.model, config.backbone.pretrained) == ("RN101", "facebook/bart-base")
