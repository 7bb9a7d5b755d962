"""Selection of a setting by trials, on a split that is not reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.sweep.grid import Grid, GridRun


def apply_selection(grid: Grid, run: GridRun) -> GridRun | None:
    """A run with its selected setting; None while some of its trials are not finished. Records the selection."""
    if not run.needs_selection:
        return run
    selection = select_value(grid, run.group)
    return None if selection is None else grid.with_value(run, selection["chosen"])


def select_value(grid: Grid, group: str) -> dict[str, Any] | None:
    """The selection of a group, as stored in ``selected/GROUP.json``; None while a trial is not finished.

    Computed from the trials' scores at every call, so that it is the same in every process.

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
                f"{path}: no average on split {grid.select.split!r} (scored: {', '.join(splits)}); add it to "
                f"evaluation.final_splits of the sweep's 'common' and remove {path.parent}"
            )
        scores.append((trial, average))
    best = max(scores, key=lambda pair: pair[1])[0]  # the first one in a tie
    selection = {
        "key": grid.select.key,
        "split": grid.select.split,
        "chosen": best.value,
        "averages": [{"value": trial.value, "average": average, "run": trial.name} for trial, average in scores],
    }
    path = Path(grid.out) / "selected" / f"{group}.json"
    text = json.dumps(selection, indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        atomic_write(path, text)
    return selection
