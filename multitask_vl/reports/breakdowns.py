"""Scores by group of examples (answer type, question type, ...) with example counts and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multitask_vl.metrics.bootstrap import LEVEL, bootstrap_mean_ci
from multitask_vl.reports.run import Prediction, Run
from multitask_vl.reports.table import Column, Range, Table, Value

NOTE = (
    f"{LEVEL} % interval: percentile bootstrap over the examples of the group. It does not cover the variance between "
    "training seeds."
)


def predictions_by_group(predictions: Sequence[Prediction]) -> dict[str, dict[str, list[Prediction]]]:
    """Breakdown -> group -> its predictions, from the `groups` of each prediction."""
    by_group: dict[str, dict[str, list[Prediction]]] = {}
    for prediction in predictions:
        for breakdown, group in prediction.groups.items():
            by_group.setdefault(breakdown, {}).setdefault(group, []).append(prediction)
    return by_group


def breakdown_tables(
    run: Run, split: str, control: Run | None = None, predictions: Mapping[str, Sequence[Prediction]] = {}
) -> dict[str, list[Table]]:
    """Task -> one table per breakdown of its scores. Tasks without breakdowns are omitted.

    Args:
        predictions: predictions of the split by task. Where they list their groups, tables have the number of examples
            and the interval of each score.
    """
    tables: dict[str, list[Table]] = {}
    for task in run.tasks(split):
        members = predictions_by_group(predictions.get(task, ()))
        control_groups = control.scores.splits[split].tasks[task].groups if control else None
        for breakdown, scores in run.scores.splits[split].tasks[task].groups.items():
            control_scores = None if control_groups is None else control_groups.get(breakdown, {})
            table = _breakdown_table(task, breakdown, scores, members.get(breakdown, {}), control_scores)
            tables.setdefault(task, []).append(table)
    return tables


def merge_tables(title: str, tables: Mapping[str, Sequence[Table]]) -> Table:
    """All breakdowns of all tasks as one table, for programs. Cells of columns that a breakdown lacks are None.

    Args:
        tables: as returned by `breakdown_tables`.
    """
    named = [(task, table) for task, of_task in tables.items() for table in of_task]
    columns = {column.name: column for _, table in named for column in table.columns[1:]}
    # Only some breakdowns have counts and intervals; these columns come first, next to the score.
    order = [name for name in ("count", "score", f"{LEVEL} % interval") if name in columns]
    columns = {name: columns[name] for name in dict.fromkeys([*order, *columns])}
    rows: list[tuple[Value, ...]] = []
    for task, table in named:
        for row in table.rows:
            values = dict(zip((column.name for column in table.columns[1:]), row[1:], strict=True))
            rows.append((task, table.columns[0].name, row[0], *(values.get(name) for name in columns)))
    text_columns = (Column("task", "text"), Column("breakdown", "text"), Column("group", "text"))
    notes = tuple(dict.fromkeys(note for _, table in named for note in table.notes))
    return Table(title, (*text_columns, *columns.values()), tuple(rows), notes=notes)


def _breakdown_table(
    task: str,
    breakdown: str,
    scores: Mapping[str, float | None],
    members: Mapping[str, Sequence[Prediction]],
    control_scores: Mapping[str, float | None] | None,
) -> Table:
    name = breakdown.replace("_", " ")
    columns = [Column(name, "text")]
    if members:
        columns.append(Column("count", "count"))
    columns.append(Column("score"))
    if members:
        columns.append(Column(f"{LEVEL} % interval"))
    if control_scores is not None:
        columns += [Column("shuffled images"), Column("difference", "difference")]
    rows = []
    for group, value in scores.items():
        row: list[Value] = [group]
        example_scores = [prediction.score for prediction in members.get(group, ())]
        if members:
            row.append(len(example_scores) or None)
        row.append(value)
        if members:
            interval = bootstrap_mean_ci(example_scores, "examples") if example_scores else None
            row.append(Range(interval.low, interval.high) if interval else None)
        if control_scores is not None:
            control_value = control_scores.get(group)
            row += [control_value, None if value is None or control_value is None else value - control_value]
        rows.append(tuple(row))
    return Table(f"{task} by {name}", tuple(columns), tuple(rows), notes=(NOTE,) if members else ())
