"""How good is a run at each kind of example, how many of them there are, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multitask_vl.metrics.bootstrap import LEVEL, interval_of_mean
from multitask_vl.reports.run import Prediction, Run
from multitask_vl.reports.table import Column, Range, Table, Value

NOTE = f"{LEVEL} % interval: percentile bootstrap over the examples of the kind; the draw of seeds is not in it."


def by_kind(predictions: Sequence[Prediction]) -> dict[str, dict[str, list[Prediction]]]:
    """Breakdown -> kind -> its examples, as the predictions say."""
    found: dict[str, dict[str, list[Prediction]]] = {}
    for one in predictions:
        for breakdown, kind in one.kinds.items():
            found.setdefault(breakdown, {}).setdefault(kind, []).append(one)
    return found


def groups_of(
    run: Run, split: str, control: Run | None = None, predictions: Mapping[str, Sequence[Prediction]] = {}
) -> dict[str, list[Table]]:
    """Task -> one table for each breakdown of its scores (answer type, ...); tasks without any are left out.

    Args:
        predictions: of the split by task; where they say of which kind an example is, tables have the number of
            examples and the interval of each score.
    """
    tables: dict[str, list[Table]] = {}
    for task in run.tasks(split):
        members = by_kind(predictions.get(task, ()))
        theirs = control.scores.splits[split].tasks[task].groups if control else None
        for breakdown, groups in run.scores.splits[split].tasks[task].groups.items():
            known = members.get(breakdown, {})
            others = None if theirs is None else theirs.get(breakdown, {})
            tables.setdefault(task, []).append(_table(task, breakdown, groups, known, others))
    return tables


def flattened(title: str, groups: Mapping[str, Sequence[Table]]) -> Table:
    """All breakdowns of all tasks as one table, for programs; what one of them does not have is absent there.

    Args:
        groups: as `groups_of` gives them.
    """
    every = [(task, table) for task, some in groups.items() for table in some]
    columns = {column.name: column for _, table in every for column in table.columns[1:]}
    # the number of examples and the interval are only in some, and their place is beside the score
    order = [name for name in ("items", "score", f"{LEVEL} % interval") if name in columns]
    columns = {name: columns[name] for name in dict.fromkeys([*order, *columns])}
    rows: list[tuple[Value, ...]] = []
    for task, table in every:
        for row in table.rows:
            cells = dict(zip((column.name for column in table.columns[1:]), row[1:], strict=True))
            rows.append((task, table.columns[0].name, row[0], *(cells.get(name) for name in columns)))
    words = (Column("task", "text"), Column("breakdown", "text"), Column("kind", "text"))
    notes = tuple(dict.fromkeys(note for _, table in every for note in table.notes))
    return Table(title, (*words, *columns.values()), tuple(rows), notes=notes)


def _table(
    task: str,
    breakdown: str,
    groups: Mapping[str, float | None],
    members: Mapping[str, Sequence[Prediction]],
    control: Mapping[str, float | None] | None,
) -> Table:
    words = breakdown.replace("_", " ")
    columns = [Column(words, "text")]
    if members:
        columns.append(Column("items", "count"))
    columns.append(Column("score"))
    if members:
        columns.append(Column(f"{LEVEL} % interval"))
    if control is not None:
        columns += [Column("blind control"), Column("difference", "difference")]
    rows = []
    for group, value in groups.items():
        row: list[Value] = [group]
        scores = [one.score for one in members.get(group, ())]
        if members:
            row.append(len(scores) or None)
        row.append(value)
        if members:
            found = interval_of_mean(scores, "examples") if scores else None
            row.append(Range(found.low, found.high) if found else None)
        if control is not None:
            theirs = control.get(group)
            row += [theirs, None if value is None or theirs is None else value - theirs]
        rows.append(tuple(row))
    return Table(f"{task} by {words}", tuple(columns), tuple(rows), notes=(NOTE,) if members else ())
