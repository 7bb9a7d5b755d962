"""Score tables: one run with its shuffled-image control, all metrics, and means over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from multitask_vl.config.compatibility import training_settings
from multitask_vl.errors import InputError
from multitask_vl.reports.run import MetricInterval, Run, TaskScores, evaluate_command, read_run
from multitask_vl.reports.shuffled_control import check_control
from multitask_vl.reports.table import Column, Range, Table, Value, mean_std, render


def score_table_text(run: Run | Path | str, control: Run | Path | str | None = None, split: str | None = None) -> str:
    """`score_table` as plain text for a terminal.

    Args:
        run: a run or its folder.
        control: its shuffled-image control, if there is one.
        split: split to show; None: the first final split.

    Raises:
        InputError: a folder cannot be read, the split was not scored, or ``control`` is not a control of ``run``.
    """
    run = run if isinstance(run, Run) else read_run(run)
    control = read_run(control) if isinstance(control, (Path, str)) else control
    notes = check_control(run, control, split) if control else []
    table = score_table(run, pick_split(run, split), control)
    return "\n".join([render(table, "text"), *(f"note: {note}" for note in notes)])


def pick_split(run: Run, split: str | None) -> str:
    """``split``, or the first reported split of the run if it is None.

    Raises:
        InputError: the split was not scored.
    """
    if split is not None and split not in run.scores.splits:
        raise InputError(
            f"{run.folder}/scores.json has no split {split!r} (it has: {', '.join(run.scores.splits)}). "
            f"Run: {evaluate_command(run.folder)} --split {split}"
        )
    return split or run.splits[0]


def score_table(run: Run, split: str, control: Run | None = None) -> Table:
    """Primary metric of each task on a split, with intervals where available, and the average in the foot."""
    rows = []
    for task, scores in _tasks(run, split):
        row: list[Value] = [task, f"{scores.primary_metric} v{scores.version}", scores.count, scores.value]
        rows.append(_with_control(row, control and control.scores.splits[split].tasks[task].value, control))
    foot: list[Value] = ["average", "", "", run.scores.splits[split].average]
    foot_row = _with_control(foot, control and control.scores.splits[split].average, control)
    columns = (Column("task", "text"), Column("metric", "text"), Column("count", "count"), Column("score"))
    title = f"{run.name}, split {split}, step {run.steps:,}"
    table = Table(title, _columns(columns, control), tuple(rows), (foot_row,), score_notes(run, split, "missing"))
    intervals = [(task, scores.intervals.get(scores.primary_metric)) for task, scores in _tasks(run, split)]
    return _with_intervals(table, intervals)


def score_notes(run: Run, split: str, which: Literal["primary", "missing", "all"]) -> tuple[str, ...]:
    """Notes of the scorers on a split.

    Args:
        which: ``primary``: notes on primary metrics and on no metric in particular; ``missing``: these, and why metrics
            were not computed; ``all``: every note.
    """
    notes = []
    for task, scores in _tasks(run, split):
        metrics = {**scores.metrics, scores.primary_metric: scores.value}
        missing = [name for name, value in metrics.items() if value is None]
        texts = dict.fromkeys(missing, "not computed, and the scorer gave no reason") | scores.notes
        general = {name for name in texts if name == scores.primary_metric or name not in metrics}
        selected = {"primary": general, "missing": general | set(missing), "all": set(texts)}[which]
        notes += [f"{task}, {name}: {text}" for name, text in texts.items() if name in selected]
    return tuple(notes)


def metric_table(run: Run, split: str, control: Run | None = None) -> Table:
    """Every metric of every task on a split, including the primary ones."""
    rows, intervals = [], []
    for task, scores in _tasks(run, split):
        control_metrics = control.scores.splits[split].tasks[task].metrics if control else {}
        for metric, value in ({scores.primary_metric: scores.value} | scores.metrics).items():
            rows.append(_with_control([task, metric, value], control_metrics.get(metric), control))
            intervals.append((f"{task} {metric}", scores.intervals.get(metric)))
    columns = (Column("task", "text"), Column("metric", "text"), Column("score"))
    notes = score_notes(run, split, "all")
    table = Table(f"All metrics, split {split}", _columns(columns, control), tuple(rows), notes=notes)
    return _with_intervals(table, intervals)


def seed_table(runs: Sequence[Run], split: str | None = None) -> Table:
    """Scores of several runs; runs that differ only in the seed are one row, mean +- sample standard deviation.

    Args:
        runs: at least one.
        split: split to show; None: the first final split of the first run.

    Raises:
        InputError: a run lacks the split, two runs have the same configuration and seed, or metric versions differ.
    """
    split = pick_split(runs[0], split)
    for run in runs:
        pick_split(run, split)
    metrics = shared_metrics(runs, split)
    rows, notes = [], []
    for group in group_by_seed(runs):
        first = group[0]
        values = [[_value(run, split, task) for run in group] for task in metrics]
        complete = all(task in first.scores.splits[split].tasks for task in metrics)
        averages = [run.scores.splits[split].average if complete else None for run in group]
        if not complete:
            notes.append(f"{first.name} was not scored on every task of this table, so it has no average.")
        parameters = first.scores.parameters
        percent = 100 * parameters.trainable / parameters.total if parameters.total else None
        notes += [f"{run.name}, {note}" for run in group for note in score_notes(run, split, "primary")]
        routing = ", ".join(filter(None, describe_routing(first)))
        head: list[Value] = [_common_name(group), describe_method(first), routing, percent, len(group)]
        rows.append((*head, *map(mean_std, values), mean_std(averages)))
    if any(row[4] > 1 for row in rows):
        notes.insert(0, "+- is the sample standard deviation over seeds.")
    columns = (
        *(Column(name, "text") for name in ("run", "method", "routing")),
        Column("trainable %", "percent"),
        Column("seeds", "count"),
        *(Column(task) for task in (*metrics, "average")),
    )
    title = f"Split {split}: {', '.join(f'{task} {metric}' for task, metric in metrics.items())}"
    return Table(title, columns, tuple(rows), notes=tuple(notes))


def describe_method(run: Run) -> str:
    """Names of the methods of a run and how each is shared across tasks."""
    methods = run.setting("method", [])
    methods = methods if isinstance(methods, list) else [methods]
    names = [" ".join(filter(None, [m.get("name", "?"), m.get("sharing")])) for m in methods if isinstance(m, dict)]
    return " + ".join(names) or "none"


def describe_routing(run: Run) -> tuple[str, str]:
    """Routing function of a run (one, or one per task) and the source of its x_R."""
    function = run.setting("routing.function", "none")
    if isinstance(function, dict):
        names = set(function.values())
        function = names.pop() if len(names) == 1 else ", ".join(f"{task}: {name}" for task, name in function.items())
    if function == "none":
        return "none", ""
    control = run.setting("routing.control", "none")
    replaced = "" if control == "none" else f", replaced by {control}"
    return function, f"x_R: {run.setting('routing.source', 'encoder')}{replaced}"


def shared_metrics(runs: Sequence[Run], split: str) -> dict[str, str]:
    """Task -> primary metric over all runs.

    Raises:
        InputError: a task was scored with different metrics or metric versions.
    """
    by_task: dict[str, dict[tuple[str, int], Run]] = {}
    for run in runs:
        for task, scores in _tasks(run, split):
            by_task.setdefault(task, {}).setdefault((scores.primary_metric, scores.version), run)
    problems = []
    for task, versions in by_task.items():
        if len(versions) > 1:
            listed = "; ".join(
                f"{metric} version {version} in {run.folder}" for (metric, version), run in versions.items()
            )
            old = versions[min(versions, key=lambda metric_version: metric_version[1])]
            problems.append(f"{task} was scored in different ways ({listed}). Run: {evaluate_command(old.folder)}")
    if problems:
        raise InputError(problems)
    return {task: next(iter(versions))[0] for task, versions in by_task.items()}


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ only in the seed, in the given order.

    Raises:
        InputError: two runs have the same configuration and seed.
    """
    groups: list[tuple[dict, list[Run]]] = []
    for run in runs:
        settings = training_settings(run.config, include_metrics=True) | {"steps": run.steps}
        seed = settings.pop("seed", None)
        group = next((members for known, members in groups if known == settings), None)
        if group is None:
            groups.append((settings, [run]))
            continue
        duplicate = next((other for other in group if other.setting("seed") == seed), None)
        if duplicate is not None:
            raise InputError(
                f"{duplicate.folder} and {run.folder} have the same configuration and seed ({seed}): counting both "
                f"would make the standard deviation too small. Omit one, or train another seed: seed={(seed or 0) + 1}"
            )
        group.append(run)
    return [members for _, members in groups]


def _tasks(run: Run, split: str) -> list[tuple[str, TaskScores]]:
    return [(task, run.scores.splits[split].tasks[task]) for task in run.tasks(split)]


def _columns(columns: tuple[Column, ...], control: Run | None) -> tuple[Column, ...]:
    return (*columns, Column("shuffled images"), Column("difference", "difference")) if control else columns


def _with_control(row: list[Value], control_score: float | None, control: Run | None) -> tuple[Value, ...]:
    """A row that ends with the run's score, extended by the control's score and the difference."""
    if control is None:
        return tuple(row)
    score = row[-1]
    return (*row, control_score, None if score is None or control_score is None else score - control_score)


def _with_intervals(table: Table, intervals: Sequence[tuple[str, MetricInterval | None]]) -> Table:
    """Add a column of intervals after the scores and a note on them; unchanged without intervals.

    Args:
        intervals: name of the row for the note, and its interval, for each row of the table's body.
    """
    known = [(name, interval) for name, interval in intervals if interval is not None]
    if not known:
        return table
    at = [column.name for column in table.columns].index("score") + 1
    ranges = [None if interval is None else Range(*interval.interval) for _, interval in intervals]
    rows = tuple((*row[:at], added, *row[at:]) for row, added in zip(table.rows, ranges, strict=True))
    foot = tuple((*row[:at], None, *row[at:]) for row in table.foot)
    level = f"{known[0][1].level:g} % interval"
    units = ", ".join(f"{name} {interval.unit}" for name, interval in known)
    note = f"{level}: percentile bootstrap over {units}. It does not cover the variance between training seeds."
    return dataclasses.replace(
        table,
        columns=(*table.columns[:at], Column(level), *table.columns[at:]),
        rows=rows,
        foot=foot,
        notes=(*table.notes, note),
    )


def _common_name(group: Sequence[Run]) -> str:
    """The common prefix of the names of a group, without a trailing "seed"."""
    names = [run.name for run in group]
    if len(names) == 1:
        return names[0]
    differing = (i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1)
    prefix = names[0][: next(differing, min(map(len, names)))]
    return prefix.rstrip("-_. 0123456789").removesuffix("seed").rstrip("-_. ") or names[0]


def _value(run: Run, split: str, task: str) -> float | None:
    scores = run.scores.splits[split].tasks.get(task)
    return scores.value if scores else None
