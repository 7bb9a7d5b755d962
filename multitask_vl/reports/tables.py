"""Which tables does a report show: scores beside the blind control, all metrics, breakdowns, runs over seeds."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.reports.run import IntervalOf, Run, TaskScores, evaluate_command, read_run
from multitask_vl.reports.shuffled_control import check_control, flat
from multitask_vl.reports.table import FORMATS, Column, Range, Table, Value, render, spread_of


def score_table(run: Run | Path | str, control: Run | Path | str | None = None, split: str | None = None) -> str:
    """Plain text for a terminal: each task's score, the blind control's, their difference, and the average.

    Args:
        run: a run, or its folder.
        control: its blind control, if there is one.
        split: the split to show; None: the first that was scored at the end (`report`).

    Raises:
        InputError: a folder cannot be read, the split was not scored, or the control is not one.
    """
    run = run if isinstance(run, Run) else read_run(run)
    control = read_run(control) if isinstance(control, (Path, str)) else control
    notes = check_control(run, control, split) if control else []
    table = scores_of(run, pick_split(run, split), control)
    return "\n".join([render(table, "text"), *(f"note: {note}" for note in notes)])


def pick_split(run: Run, split: str | None) -> str:
    """The split that was asked for, or the run's first; InputError where it has no scores."""
    if split is not None and split not in run.scores.splits:
        raise InputError(
            f"{run.folder}/scores.json has no split {split!r} (it has: {', '.join(run.scores.splits)}). "
            f"Run: {evaluate_command(run.folder)} --split {split}"
        )
    return split or run.splits[0]


def scores_of(run: Run, split: str, control: Run | None = None) -> Table:
    """Headline scores of a split by task, with their intervals where the run has them, and the average as foot."""
    rows = []
    for task, ours in _tasks(run, split):
        row: list[Value] = [task, f"{ours.headline} v{ours.version}", ours.count, ours.value]
        rows.append(_with_control(row, control and control.scores.splits[split].tasks[task].value, control))
    foot: list[Value] = ["average", "", "", run.scores.splits[split].average]
    foot_row = _with_control(foot, control and control.scores.splits[split].average, control)
    columns = (Column("task", "text"), Column("metric", "text"), Column("items", "count"), Column("score"))
    title = f"{run.name}, split {split}, step {run.steps:,}"
    table = Table(title, _columns(columns, control), tuple(rows), (foot_row,), notes_of(run, split, "absent"))
    return _with_intervals(table, [(task, ours.intervals.get(ours.headline)) for task, ours in _tasks(run, split)])


def notes_of(run: Run, split: str, which: Literal["headline", "absent", "all"]) -> tuple[str, ...]:
    """What the scorers had to say about a split.

    Args:
        which: remarks about headline metrics and about no metric at all; besides, why metrics could not be computed; or
            all remarks.
    """
    notes = []
    for task, scores in _tasks(run, split):
        metrics = {**scores.metrics, scores.headline: scores.value}
        absent = [name for name, value in metrics.items() if value is None]
        remarks = dict.fromkeys(absent, "not computed, and the scorer gave no reason") | scores.notes
        general = {about for about in remarks if about == scores.headline or about not in metrics}
        kept = {"headline": general, "absent": general | set(absent), "all": set(remarks)}[which]
        notes += [f"{task}, {about}: {remark}" for about, remark in remarks.items() if about in kept]
    return tuple(notes)


def metrics_of(run: Run, split: str, control: Run | None = None) -> Table:
    """Every metric of every task on a split, the headline ones included."""
    rows, intervals = [], []
    for task, ours in _tasks(run, split):
        theirs = control.scores.splits[split].tasks[task].metrics if control else {}
        for metric, value in ({ours.headline: ours.value} | ours.metrics).items():
            rows.append(_with_control([task, metric, value], theirs.get(metric), control))
            intervals.append((f"{task} {metric}", ours.intervals.get(metric)))
    columns = (Column("task", "text"), Column("metric", "text"), Column("score"))
    notes = notes_of(run, split, "all")
    table = Table(f"All metrics, split {split}", _columns(columns, control), tuple(rows), notes=notes)
    return _with_intervals(table, intervals)


def compare(runs: Sequence[Run], split: str | None = None) -> Table:
    """Several runs in one table; those that differ by the seed alone are one row, mean +- sample standard deviation.

    Raises:
        InputError: a run lacks the split, two runs are the same configuration and seed, or scoring versions differ.
    """
    split = pick_split(runs[0], split)
    for run in runs:
        pick_split(run, split)
    columns = shared_columns(runs, split)
    rows, notes = [], []
    for group in by_seed(runs):
        first = group[0]
        values = [[_value(run, split, task) for run in group] for task in columns]
        complete = all(task in first.scores.splits[split].tasks for task in columns)
        averages = [run.scores.splits[split].average if complete else None for run in group]
        if not complete:
            notes.append(f"{first.name} was not scored on every task of this table: no average is given for it.")
        parameters = first.scores.parameters
        percent = 100 * parameters.trainable / parameters.total if parameters.total else None
        notes += [f"{run.name}, {note}" for run in group for note in notes_of(run, split, "headline")]
        routing = ", ".join(filter(None, describe_routing(first)))
        head: list[Value] = [_common_name(group), describe_method(first), routing, percent, len(group)]
        rows.append((*head, *map(spread_of, values), spread_of(averages)))
    words = tuple(Column(name, "text") for name in ("run", "method", "routing"))
    scores = tuple(Column(task) for task in (*columns, "average"))
    if any(row[4] > 1 for row in rows):
        notes.insert(0, "+- is the sample standard deviation over seeds.")
    title = f"Split {split}: {', '.join(f'{task} {metric}' for task, metric in columns.items())}"
    return Table(
        title,
        (*words, Column("trainable %", "percent"), Column("seeds", "count"), *scores),
        tuple(rows),
        notes=tuple(notes),
    )


def describe_method(run: Run) -> str:
    """The methods of a run with how they are shared across tasks, in a few words."""
    methods = run.setting("method", [])
    methods = methods if isinstance(methods, list) else [methods]
    words = [" ".join(filter(None, [m.get("name", "?"), m.get("sharing")])) for m in methods if isinstance(m, dict)]
    return " + ".join(words) or "none"


def describe_routing(run: Run) -> tuple[str, str]:
    """The routing of a run in a few words: one function, or a function a task; and where its x_R comes from."""
    function = run.setting("routing.function", "none")
    if isinstance(function, dict):
        kinds = set(function.values())
        function = kinds.pop() if len(kinds) == 1 else ", ".join(f"{task}: {name}" for task, name in function.items())
    if function == "none":
        return "none", ""
    control = run.setting("routing.control", "none")
    extra = "" if control == "none" else f", replaced by {control}"
    return function, f"x_R: {run.setting('routing.source', 'encoder_pooled')}{extra}"


def _tasks(run: Run, split: str) -> list[tuple[str, TaskScores]]:
    return [(task, run.scores.splits[split].tasks[task]) for task in run.tasks(split)]


def _columns(columns: tuple[Column, ...], control: Run | None) -> tuple[Column, ...]:
    return (*columns, Column("blind control"), Column("difference", "difference")) if control else columns


def _with_control(row: list[Value], theirs: float | None, control: Run | None) -> tuple[Value, ...]:
    """A row whose last value is the run's score, with the control's score and the difference added."""
    if control is None:
        return tuple(row)
    ours = row[-1]
    return (*row, theirs, None if ours is None or theirs is None else ours - theirs)


def _with_intervals(table: Table, intervals: Sequence[tuple[str, IntervalOf | None]]) -> Table:
    """A table with the interval of each row behind its score, and a note on what they are; as it is where none has one.

    Args:
        intervals: what the note calls a row, and its interval, for each row of the table's body.
    """
    known = [(name, one) for name, one in intervals if one is not None]
    if not known:
        return table
    at = [column.name for column in table.columns].index("score") + 1
    ranges = [None if one is None else Range(*one.interval) for _, one in intervals]
    rows = tuple((*row[:at], one, *row[at:]) for row, one in zip(table.rows, ranges, strict=True))
    foot = tuple((*row[:at], None, *row[at:]) for row in table.foot)
    level = f"{known[0][1].level:g} % interval"
    drawn = ", ".join(f"{name} {one.resampled}" for name, one in known)
    return dataclasses.replace(
        table,
        columns=(*table.columns[:at], Column(level), *table.columns[at:]),
        rows=rows,
        foot=foot,
        notes=(*table.notes, f"{level}: percentile bootstrap over {drawn}; the draw of seeds is not in it"),
    )


def shared_columns(runs: Sequence[Run], split: str) -> dict[str, str]:
    """Task -> headline metric over all runs; InputError where one task was scored in two ways."""
    ways: dict[str, dict[tuple[str, int], Run]] = {}
    for run in runs:
        for task, scores in _tasks(run, split):
            ways.setdefault(task, {}).setdefault((scores.headline, scores.version), run)
    problems = []
    for task, found in ways.items():
        if len(found) > 1:
            told = "; ".join(f"{metric} version {version} in {run.folder}" for (metric, version), run in found.items())
            old = found[min(found, key=lambda way: way[1])]
            problems.append(f"{task} was scored in different ways ({told}). Run: {evaluate_command(old.folder)}")
    if problems:
        raise InputError(problems)
    return {task: next(iter(found))[0] for task, found in ways.items()}


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in groups that share everything but the seed, in the order given."""
    groups: list[tuple[dict, list[Run]]] = []
    for run in runs:
        settings = flat(run.config) | {"steps": run.steps}
        seed = settings.pop("seed", None)
        group = next((members for known, members in groups if known == settings), None)
        if group is None:
            groups.append((settings, [run]))
            continue
        twin = next((other for other in group if other.setting("seed") == seed), None)
        if twin is not None:
            raise InputError(
                f"{twin.folder} and {run.folder} are one configuration with one seed ({seed}): counting both "
                f"would make the spread too small. Leave one out, or train another seed: seed={(seed or 0) + 1}"
            )
        group.append(run)
    return [members for _, members in groups]


def _common_name(group: Sequence[Run]) -> str:
    names = [run.name for run in group]
    if len(names) == 1:
        return names[0]
    length = next((i for i, marks in enumerate(zip(*names, strict=False)) if len(set(marks)) > 1), min(map(len, names)))
    return names[0][:length].rstrip("-_. 0123456789").removesuffix("seed").rstrip("-_. ") or names[0]


def _value(run: Run, split: str, task: str) -> float | None:
    scores = run.scores.splits[split].tasks.get(task)
    return scores.value if scores else None


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table of several runs."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.reports.tables", description=main.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to write it (default: text)")
    parser.add_argument("--split", help="which split (default: the first run's first final one)")
    options = parser.parse_args(arguments)
    print(render(compare([read_run(folder) for folder in options.runs], options.split), options.format))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
