"""Fine-tuning on custom data: the page's files and commands, and those of the README, on real photographs."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

from multitask_vl.config import load_config
from tests import tiny_run
from tests.docs.pages import DOCS, FILE, README, block, run_commands

PAGE = DOCS / "finetune_your_data.md"
LIKE = re.compile(r"<!-- like: ([\w.]+) -->\n```json\n(.*?)```", re.DOTALL)
NUM_QUESTIONS = 3
"""Questions of the validation and test splits."""


@pytest.fixture
def folder(shared, tmp_path, monkeypatch):
    """The current folder after the first two steps of the page: images, questions and configurations."""
    source = shared / "data/coco_photos"
    questions = json.loads((source / "vqav2_questions.json").read_text())["questions"]
    answers = {
        annotation["question_id"]: [human["answer"] for human in annotation["answers"]]
        for annotation in json.loads((source / "vqav2_annotations.json").read_text())["annotations"]
    }
    lines = [
        {
            "image": f"{question['image_id']:012d}.jpg",
            "question": question["question"],
            "answers": answers[question["question_id"]],
        }
        for question in questions
    ]
    data = tmp_path / "my_data"
    (data / "images").mkdir(parents=True)
    for line in lines:
        shutil.copy(source / "images" / line["image"], data / "images")
    for name, part in (("train", lines), ("val", lines[:NUM_QUESTIONS]), ("test", lines[-NUM_QUESTIONS:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    (name, shown), *_ = LIKE.findall(PAGE.read_text())
    for line in map(json.loads, shown.splitlines()):
        assert line.keys() == lines[0].keys()
        assert (data / "images" / line["image"]).exists()
    for name, text in FILE.findall(PAGE.read_text()):
        (tmp_path / name).write_text(text)
    (tmp_path / "configs").symlink_to(tiny_run.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.shared
def test_finetuning_commands_run(folder, capsys):
    for command in run_commands(PAGE):
        program, *arguments = shlex.split(command)
        assert program == "multitask-vl"
        code = tiny_run.launch(*arguments)
        captured = capsys.readouterr()
        assert not code, f"{command}\n{captured.out}\n{captured.err}"
    assert (folder / "runs/my_tiny/report.html").exists()
    rows = (folder / "runs/my_tiny/predictions/my_vqa/test.jsonl").read_text().splitlines()
    assert len(rows) == NUM_QUESTIONS
    assert (folder / "runs/my_tiny/checkpoints/best-my_vqa").exists()


def test_readme_commands_are_those_of_the_page():
    """The page runs the README's commands with the tiny models."""
    commands = [command.replace(" --resume auto", "") for command in run_commands(PAGE)]
    for line in block(README, "own data").strip().splitlines():
        line = line.replace("configs/examples/my_data.yaml", "my_tiny.yaml").replace("runs/my_data", "runs/my_tiny")
        line = line.replace("accelerate launch -m multitask_vl", "multitask-vl")
        assert line.replace("images/a.jpg", "images/000000000370.jpg") in commands, line


def test_my_data_configuration_uses_pretrained_models():
    config = load_config(tiny_run.ROOT / "configs/examples/my_data.yaml")
    assert (config.vision.model, config.vision.pretrained) == ("RN101", "openai")
    assert config.backbone.pretrained == "facebook/bart-base"
    assert (config.method[0].name, config.method[0].sharing) == ("adapter", "single")
    assert config.routing.function == "mul"
    assert list(config.tasks["my_vqa"].splits) == ["train", "val", "test"]
