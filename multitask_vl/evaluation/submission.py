"""Write and check official submission files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import native_id


def write_submission(task: Task, predictions: Mapping[str, str], path: Path) -> list[str]:
    """Write a task's submission file, and check it as the official server would.

    Args:
        predictions: id -> text, for every expected id.
        path: file to write; its folder is created if needed.

    Returns:
        defects of the written file; empty if it is valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    task.submission(predictions, path)
    try:
        task.check_submission(path, [native_id(id_) for id_ in predictions])
    except InputError as error:
        return error.problems
    return []
