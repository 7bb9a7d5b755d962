"""Will the official server take this file: its ids, types and characters against the official question files.

python -m multitask_vl.evaluation.submission --task vqa --questions QUESTIONS... --submission RESULTS
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.evaluation.score import task_named
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import official_id


def write_submission(task: Task, predictions: Mapping[str, str], path: Path) -> list[str]:
    """Write a task's official file and read it again as a server would; what is wrong with it, if anything.

    Args:
        predictions: id -> text, of all that the file must answer.
        path: its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    task.submission(predictions, path)
    try:
        task.check_submission(path, [official_id(id_) for id_ in predictions])
    except InputError as error:
        return error.problems
    return []


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Check a submission file; every kind of defect is told, and the exit code is 2 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.evaluation.submission", description=main.__doc__)
    parser.add_argument("--task", required=True, help="vqa, gqa, nlvr2, caption or a plug-in's")
    parser.add_argument("--questions", required=True, type=Path, nargs="+", help="official question files")
    parser.add_argument("--submission", required=True, type=Path, help="the file to send")
    parser.add_argument("--subset", help="of Karpathy's dataset_coco.json: which of its splits is answered")
    parser.add_argument("--plugin", action="append", default=[], help="module to import first; may be repeated")
    given = parser.parse_args(arguments)
    missing = [f"there is no file {path}" for path in (*given.questions, given.submission) if not path.is_file()]
    if missing:
        raise InputError(missing)
    task = task_named(given.task, given.plugin)
    ids = task.official_ids(given.questions, subset=given.subset)
    task.check_submission(given.submission, ids)
    print(f"{given.submission}: {len(ids):,} results, one for each id of {', '.join(map(str, given.questions))}")


if __name__ == "__main__":
    raise SystemExit(main())
