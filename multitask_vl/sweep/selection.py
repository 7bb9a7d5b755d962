"""Which value of a setting is best for a point of the grid: the average of a split that is not reported decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole
from multitask_vl.sweep.grid import Grid, GridRun


def resolved(grid: Grid, run: GridRun) -> GridRun | None:
    """A run with its setting chosen; None while its trials are not all finished. Writes down the choice."""
    if not run.open:
        return run
    choice = choose(grid, run.group)
    return None if choice is None else grid.at(run, choice["chosen"])


def choose(grid: Grid, group: str) -> dict[str, Any] | None:
    """The choice for a group, as kept in ``selected/GROUP.json``; None while a trial is not finished.

    Computed from the trials' scores whenever it is asked for, so that it is the same in every process.

    Raises:
        InputError: a trial has no average on the split.
    """
    scores = []
    for trial in grid.trials(group):
        path = grid.out / "runs" / trial.name / "scores.json"
        if not path.is_file():
            return None
        splits = json.loads(path.read_text())["splits"]
        average = splits.get(grid.select.split, {}).get("average")
        if average is None:
            raise InputError(
                f"{path}: no average on split {grid.select.split!r} (scored: {', '.join(splits)}); put it into "
                f"evaluation.final of the grid's 'always' and remove {path.parent}"
            )
        scores.append((trial, average))
    best = max(scores, key=lambda pair: pair[1])[0]  # the first of several that are best
    choice = {
        "key": grid.select.key,
        "split": grid.select.split,
        "chosen": best.value,
        "averages": [{"value": trial.value, "average": average, "run": trial.name} for trial, average in scores],
    }
    path = Path(grid.out) / "selected" / f"{group}.json"
    text = json.dumps(choice, indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        write_whole(path, text)
    return choice
