"""Recorded results of the study: record.json, with settings and scores of every finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from studies.records import object_lines
from studies.synthetic_world.results import Result, Results, read_finished
from studies.synthetic_world.runs import StudyRun

RECORD = Path(__file__).with_name("record.json")
_DIGITS = 4


def update_record(runs: Sequence[StudyRun], out: Path, record: Path) -> dict[str, list[Result]]:
    """Merge the finished runs of ``out`` into the record and return all recorded results.

    A run that finished again replaces its recorded result.

    Returns:
        "group: row" -> results, in the order of the runs.

    Raises:
        InputError: the record is corrupt, or contains a run that is not in the study or has other settings.
    """
    results = {one.run.name: one for one in _read_record(runs, record)}
    results |= {one.run.name: one for found in read_finished(runs, out).values() for one in found}
    rows: dict[str, list[Result]] = {}
    for run in runs:
        if run.name in results:
            rows.setdefault(f"{run.group}: {run.row}", []).append(results[run.name])
    write_record(rows, record)
    return rows


def write_record(results: Results, record: Path) -> None:
    """Write the results with one line per run, so that a diff shows which runs changed."""
    lines = {one.run.name: json.dumps(_to_json(one)) for found in results.values() for one in found}
    atomic_write(record, f"{object_lines(lines)}\n")


def _read_record(runs: Sequence[StudyRun], record: Path) -> list[Result]:
    if not record.is_file():
        return []
    known, results, unknown = {run.name: run for run in runs}, [], []
    try:
        for name, entry in json.loads(record.read_text()).items():
            if name in known and entry.pop("settings") == known[name].settings():
                entry["losses"] = {task: tuple(pair) for task, pair in entry["losses"].items()}
                results.append(Result(run=known[name], **entry))
            else:
                unknown.append(name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{record}: not a record of this study ({type(error).__name__}: {error}). To restore it, run: "
            f"git checkout -- {record}"
        ) from None
    if unknown:
        raise InputError(
            f"{record}: {len(unknown)} runs are not in the study or have other settings (first: {unknown[0]}). Give a "
            "run with changed settings a new name, and remove its old line from the file"
        )
    return results


def _to_json(result: Result) -> dict[str, Any]:
    values = {key: value for key, value in asdict(result).items() if key != "run"}
    return {"settings": result.run.settings(), **_rounded(values)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
