"""Score prediction files of a run, and find the task class for official results files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multitask_vl.registry import TASKS, load_plugins
from multitask_vl.tasks.base import Example, Scores, Task
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_jsonl

TASK_ALIASES = {"caption": "coco_caption"}
"""Short names of tasks in commands."""


def read_predictions(path: Path) -> dict[str, str]:
    """Read the predictions of a run's ``predictions/<task>/<split>.jsonl`` as id -> text.

    Raises:
        InputError: the file is missing or malformed, or has duplicate ids.
    """
    problems, predictions = ErrorCollector(str(path)), {}
    for row, where in read_jsonl(path):
        id_ = problems.require_field(row, "id", str, where)
        text = problems.require_field(row, "prediction", str, where)
        if id_ is None or text is None:
            continue
        if id_ in predictions:
            problems.add("a second prediction for an id", f"{where} ({id_})")
        predictions[id_] = text
    problems.raise_if_any()
    return predictions


def score_predictions(task: Task, examples: Sequence[Example], predictions: Path, **options: Any) -> Scores:
    """Score a prediction file of a run.

    Args:
        examples: all examples of the split; the file must have a prediction for each.
        options: see `Task.score`.

    Raises:
        InputError: malformed file, or missing or unknown ids.
        LabelsHidden: the split has no labels.
    """
    return task.score(examples, read_predictions(predictions), **options)


def find_task_class(name: str, plugins: Sequence[str] = ()) -> type[Task]:
    """Look up a task class by its registered name or an alias.

    Args:
        plugins: modules to import first.

    Raises:
        InputError: unknown task.
    """
    load_plugins(plugins)
    return TASKS.get(TASK_ALIASES.get(name, name))
