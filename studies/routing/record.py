"""Recorded results of the routing study: record.json, one line per run and per row."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from studies.records import object_lines

RECORD = Path(__file__).with_name("record.json")


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        group: the row it belongs to; runs of one row differ in the seed only.
        options: axis of the sweep -> option; `include` holds the name of an included variant.
        lr: learning rate selected for the row; None without selection.
        scores: task or `average` -> score on the test split.
        trainable, total: numbers of parameters, without the frozen image encoder.
        step_ms: median time of a training step in milliseconds.
        cpu_s: processor time of the whole command in seconds.
        steps: number of training steps.
        commit: commit of the code that ran, with a star if the working tree had changes.
    """

    group: str
    options: dict[str, str]
    lr: float | None
    scores: dict[str, float]
    trainable: int
    total: int
    step_ms: float
    cpu_s: float
    steps: int
    commit: str


@dataclass(frozen=True)
class Study:
    """Everything the tables are made of.

    Attributes:
        runs: name -> finished run, in the order of the sweep.
        paired: row -> task -> [mean, low, high] of the difference to the row without routing on the same examples:
            mean over seeds, and the bootstrap interval over examples.
        trials: row -> learning rate -> average of its trial on the val split.
        wall_s: total time of all commands in seconds, including trials.
        cpu_s: total processor time of all commands in seconds.
        num_commands: number of commands, including trials.
        num_planned: number of runs of the sweep.
    """

    runs: dict[str, RunResult]
    paired: dict[str, dict[str, list[float]]]
    trials: dict[str, dict[str, float]]
    wall_s: float
    cpu_s: float
    num_commands: int
    num_planned: int

    def rows(self) -> dict[str, list[RunResult]]:
        """Row -> its runs."""
        rows: dict[str, list[RunResult]] = {}
        for run in self.runs.values():
            rows.setdefault(run.group, []).append(run)
        return rows


def baseline(options: dict[str, str]) -> str:
    """The row that a row is compared with: the same modules without routing."""
    return f"{options['method']}-none"


def write_record(path: Path, studies: dict[str, Study]) -> None:
    """Write the studies with one line per run and row, so that a diff shows which runs changed."""

    def text(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return object_lines({name: json.dumps(one) for name, one in value.items()})

    parts = {
        name: object_lines({key: text(value) for key, value in asdict(study).items()})
        for name, study in studies.items()
    }
    atomic_write(path, f"{object_lines(parts)}\n")


def read_record(path: Path) -> dict[str, Study]:
    """The recorded studies, `full` and `quick`; empty if the file does not exist.

    Raises:
        InputError: the file is corrupt.
    """
    if not path.is_file():
        return {}
    try:
        return {
            name: Study(**study | {"runs": {run: RunResult(**one) for run, one in study["runs"].items()}})
            for name, study in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: not a record of this study ({type(error).__name__}: {error}). To restore it, run: "
            f"git checkout -- {path}"
        ) from None
