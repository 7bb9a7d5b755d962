"""What is kept of the routing study when the runs' folders are gone? docs/study.json: a line each run and row."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole
from studies.synthetic_world.record import lines_of

FILE = "study.json"


@dataclass(frozen=True)
class Scored:
    """A finished run.

    Attributes:
        group: the row that it belongs to; runs of a row differ by the seed alone.
        options: axis -> option, and `include` for what stands beside the product of the axes.
        rate: the learning rate chosen for the row; None where nothing is chosen.
        scores: task, and `average` -> score on the report split.
        trainable, total: parameters, the frozen CLIP left out.
        step_ms: median time of a training step.
        cpu_s: processor time of the whole command.
        steps: how many it trained.
        version: commit of the code that ran, with a star where files differed from it.
    """

    group: str
    options: dict[str, str]
    rate: float | None
    scores: dict[str, float]
    trainable: int
    total: int
    step_ms: float
    cpu_s: float
    steps: int
    version: str


@dataclass(frozen=True)
class Study:
    """What the tables are made of.

    Attributes:
        runs: name -> a finished run, in the order of the grid.
        paired: row -> task -> [mean, low, high]: what it scores more than its row without routing on the same examples,
            mean over seeds, and the interval when examples are drawn again.
        rates: row -> learning rate -> average of its trial on the tune split.
        wall_s: time of all commands, trials included, added up.
        cpu_s: processor time of the same.
        commands: how many there were.
        planned: runs of the grid.
    """

    runs: dict[str, Scored]
    paired: dict[str, dict[str, list[float]]]
    rates: dict[str, dict[str, float]]
    wall_s: float
    cpu_s: float
    commands: int
    planned: int

    def rows(self) -> dict[str, list[Scored]]:
        """Row -> its runs."""
        found: dict[str, list[Scored]] = {}
        for run in self.runs.values():
            found.setdefault(run.group, []).append(run)
        return found


def baseline(options: dict[str, str]) -> str:
    """The row that a row is compared with: the same modules, without routing."""
    return f"{options['method']}-none"


def write_record(path: Path, studies: dict[str, Study]) -> None:
    """One line a run and a row, so that a change of one run is a change of one line."""

    def text(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return lines_of({name: json.dumps(one) for name, one in value.items()})

    parts = {
        name: lines_of({key: text(value) for key, value in asdict(study).items()}) for name, study in studies.items()
    }
    write_whole(path, f"{lines_of(parts)}\n")


def read_record(path: Path) -> dict[str, Study]:
    """The studies on record: `full`, `quick`; empty without a file.

    Raises:
        InputError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        return {
            name: Study(**study | {"runs": {run: Scored(**one) for run, one in study["runs"].items()}})
            for name, study in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: is no record of the study ({type(error).__name__}: {error}). Run: git checkout -- {path}"
        ) from None
