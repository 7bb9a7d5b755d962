"""Where are the study's results when the runs' folders are gone? In docs/embedded_world.json: settings and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole
from studies.synthetic_world.results import Result, Results, finished
from studies.synthetic_world.runs import StudyRun

FILE = "embedded_world.json"
_DIGITS = 4


def kept(runs: Sequence[StudyRun], out: Path, record: Path) -> dict[str, list[Result]]:
    """Row -> results, in the order of the runs: those that have finished in ``out``, else those on record.

    The record then holds all of them: a run that finishes again replaces itself.

    Raises:
        InputError: the record holds a run that the study does not have, or has with other settings.
    """
    results = {run.name: one for run in runs for one in _recorded(runs, record) if one.run == run}
    results |= {one.run.name: one for found in finished(runs, out).values() for one in found}
    rows: dict[str, list[Result]] = {}
    for run in runs:
        if run.name in results:
            rows.setdefault(f"{run.group}: {run.row}", []).append(results[run.name])
    write_record(rows, record)
    return rows


def write_record(results: Results, record: Path) -> None:
    """One line a run, so that a change of one run is a change of one line."""
    told = {one.run.name: json.dumps(_told(one)) for found in results.values() for one in found}
    write_whole(record, f"{lines_of(told)}\n")


def lines_of(members: Mapping[str, str]) -> str:
    """A JSON object with a line for each member, whose values are JSON already."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "\n}"


def _recorded(runs: Sequence[StudyRun], record: Path) -> list[Result]:
    if not record.is_file():
        return []
    known, results, strange = {run.name: run for run in runs}, [], []
    try:
        for name, told in json.loads(record.read_text()).items():
            if name in known and told.pop("settings") == known[name].settings():
                told["losses"] = {task: tuple(pair) for task, pair in told["losses"].items()}
                results.append(Result(run=known[name], **told))
            else:
                strange.append(name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{record}: is no record of the runs ({type(error).__name__}: {error}). Run: git checkout -- {record}"
        ) from None
    if strange:
        raise InputError(
            f"{record}: {len(strange)} runs are not in the study, or with other settings (first: {strange[0]}); "
            "give a run whose settings change another name, and remove from the file what is no longer wanted"
        )
    return results


def _told(one: Result) -> dict:
    told = {key: value for key, value in asdict(one).items() if key != "run"}
    return {"settings": one.run.settings(), **_rounded(told)}


def _rounded(value):
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
