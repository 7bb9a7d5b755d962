"""Score an official results file against official annotations.

    multitask-vl score --task vqa --references ANNOTATIONS --predictions RESULTS --out SCORES.json

Scores are on the 0-100 scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multitask_vl.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--task", required=True, help="vqa, caption, gqa, nlvr2 or the task of a plugin")
    parser.add_argument("--references", required=True, type=Path, help="official annotation (GQA: question) file")
    parser.add_argument("--predictions", required=True, type=Path, help="official results file")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument(
        "--caption-tokenizer", default="ptb", choices=["ptb", "python"], help="python needs no Java (default: ptb)"
    )
    parser.add_argument("--plugin", action="append", default=[], help="module to import first, repeatable")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    missing = [f"{path}: file not found" for path in (args.references, args.predictions) if not path.is_file()]
    if missing:
        raise InputError(missing)
    from multitask_vl.evaluation.score import find_task_class
    from multitask_vl.storage.atomic import atomic_write_json

    task = find_task_class(args.task, args.plugin)
    scores = task.score_files(args.references, args.predictions, caption_tokenizer=args.caption_tokenizer)
    atomic_write_json(args.out, scores)
    plain = {name: value for name, value in scores.items() if not isinstance(value, dict)}
    print(
        ", ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
        )
    )
    for name, entry in scores.get("intervals", {}).items():
        low, high = entry["interval"]
        print(f"{name}: {entry['level']} % interval {low:.2f} to {high:.2f}, resampling {entry['unit']}")
    print(f"written to {args.out}")
