"""Check a submission file against the official question files: ids, types and characters.

    multitask-vl check-submission --task vqa --questions QUESTIONS... --submission RESULTS

Every kind of defect is reported; the exit code is 2 if there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multitask_vl.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--task", required=True, help="vqa, gqa, nlvr2, caption or the task of a plugin")
    parser.add_argument("--questions", required=True, type=Path, nargs="+", help="official question files")
    parser.add_argument("--submission", required=True, type=Path, help="file to submit")
    parser.add_argument("--subset", help="split of Karpathy's dataset_coco.json that the file answers")
    parser.add_argument("--plugin", action="append", default=[], help="module to import first, repeatable")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    missing = [f"{path}: file not found" for path in (*args.questions, args.submission) if not path.is_file()]
    if missing:
        raise InputError(missing)
    from multitask_vl.evaluation.score import find_task_class

    task = find_task_class(args.task, args.plugin)
    ids = task.submission_ids(args.questions, subset=args.subset)
    task.check_submission(args.submission, ids)
    print(f"{args.submission}: {len(ids):,} results, one for each id of {', '.join(map(str, args.questions))}")
