"""How good are predictions in a file: a run's own, or an official results file against official annotations.

python -m multitask_vl.evaluation.score --task vqa --references ANNOTATIONS --predictions RESULTS --out SCORES
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.registry import TASKS, load_plugins
from multitask_vl.tasks.base import Example, Scores, Task
from multitask_vl.tasks.readers.json_stream import Problems, json_lines, write_json

_SHORT = {"caption": "coco_caption"}


def read_predictions(path: Path) -> dict[str, str]:
    """The predictions of a run's ``predictions/<task>/<split>.jsonl`` as id -> text.

    Raises:
        InputError: the file is missing or malformed, or an id stands in it twice.
    """
    problems, found = Problems(str(path)), {}
    for row, where in json_lines(path):
        id_ = problems.field(row, "id", str, where)
        text = problems.field(row, "prediction", str, where)
        if id_ is None or text is None:
            continue
        if id_ in found:
            problems.add("a second prediction for an id", f"{where} ({id_})")
        found[id_] = text
    problems.raise_any()
    return found


def score_predictions(task: Task, examples: Sequence[Example], predictions: Path, **options: Any) -> Scores:
    """Score a prediction file of a run.

    Args:
        examples: of the split, all of them and no others than the file has.
        options: see `Task.score`.
    """
    return task.score(examples, read_predictions(predictions), **options)


def task_named(name: str, plugins: Sequence[str] = ()) -> type[Task]:
    """A task's class by its name or a command's short one; InputError if there is none."""
    load_plugins(plugins)
    return TASKS.get(_SHORT.get(name, name))


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Score official files; the output is JSON on the 0-100 scale."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.evaluation.score", description=main.__doc__)
    parser.add_argument("--task", required=True, help="vqa, caption, gqa, nlvr2 or a plug-in's")
    parser.add_argument("--references", required=True, type=Path, help="official annotation (GQA: question) file")
    parser.add_argument("--predictions", required=True, type=Path, help="official results file")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--caption-tokenizer", default="ptb", choices=["ptb", "python"], help="python needs no Java")
    parser.add_argument("--plugin", action="append", default=[], help="module to import first; may be repeated")
    given = parser.parse_args(arguments)
    missing = [f"there is no file {path}" for path in (given.references, given.predictions) if not path.is_file()]
    if missing:
        raise InputError(missing)
    task = task_named(given.task, given.plugin)
    found = task.score_files(given.references, given.predictions, caption_tokenizer=given.caption_tokenizer)
    write_json(given.out, found)
    shown = {name: value for name, value in found.items() if not isinstance(value, dict)}
    print(
        ", ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
        )
    )
    for name, one in found.get("intervals", {}).items():
        low, high = one["interval"]
        print(f"{name}: {one['level']} % interval {low:.2f} to {high:.2f}, resampling {one['resampled']}")
    print(f"written to {given.out}")


if __name__ == "__main__":
    raise SystemExit(main())
