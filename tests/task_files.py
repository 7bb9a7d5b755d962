"""Small official files and tasks with one split, for the tests of tasks, scores and example tables."""

import json
from pathlib import Path

from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Task


def make(name: str, data_dir: Path, split: str = "s", task_options: dict | None = None, **options) -> Task:
    """Build a task with one split; ``options`` are the keys of the split."""
    task_class = TASKS.get(name)
    config = task_class.Config.model_validate({**(task_options or {}), "splits": {split: options}})
    return task_class(name, config, data_dir)


def read(task: Task, split: str = "s") -> list:
    """Read the examples of a split."""
    task.sources(split)
    return list(task.read(split))


def write(folder: Path, name: str, value) -> str:
    """Write text, or a value as JSON, and return the file name."""
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")
    return name


def vqa_files(folder: Path, count: int = 3, **header) -> dict:
    """Write official VQA files, and return the keys of a split with them."""
    questions = [{"question_id": 10 + i, "image_id": i, "question": f"What is {i}?"} for i in range(count)]
    annotations = [
        {
            "question_id": 10 + i,
            "image_id": i,
            "question_type": "what is",
            "answer_type": "other",
            "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(["red"] * 4 + ["blue"] * 2 + ["sky"] * 4)],
        }
        for i in range(count)
    ]
    return {
        "questions": write(folder, "q.json", {"data_subtype": "val2014", **header, "questions": questions}),
        "annotations": write(folder, "a.json", {"annotations": annotations}),
    }


def karpathy_file(folder: Path) -> str:
    """Write a Karpathy file with five images: train, restval, val and two of test."""

    def image(number: int, split: str) -> dict:
        sentences = [{"raw": f" Cat {number} sleeps {i}. ", "sentid": 10 * number + i} for i in range(2)]
        name = f"COCO_val2014_{number:012d}.jpg"
        return {"filename": name, "cocoid": number, "imgid": 77, "split": split, "sentences": sentences}

    splits = ("train", "restval", "val", "test", "test")
    return write(
        folder, "dataset_coco.json", {"images": [image(i, s) for i, s in enumerate(splits)], "dataset": "coco"}
    )
