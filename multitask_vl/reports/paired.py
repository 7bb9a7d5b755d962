"""Is one run better than another: the same examples scored by both, their differences and how sure these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multitask_vl.metrics.bootstrap import LEVEL, interval_of_mean
from multitask_vl.reports.breakdowns import by_kind
from multitask_vl.reports.run import Prediction
from multitask_vl.reports.table import Column, Range, Table, Value

NOTE = (
    f"{LEVEL} % interval: percentile bootstrap of the mean difference over examples that both runs were scored on, "
    "which are paired; the draw of seeds is not in it, and nothing is corrected for looking at many differences."
)


@dataclass(frozen=True)
class Pairs:
    """Predictions of two runs for the same examples, in the order of the first.

    Attributes:
        first, other: of equal length.
        alone: examples that only one of the two runs was scored on.
        changed: examples of one id whose pictures, text or references are not the same in both; left out.
    """

    first: list[Prediction]
    other: list[Prediction]
    alone: int
    changed: int

    @property
    def differences(self) -> list[float]:
        """The other run's score less the first one's, an example each."""
        return [b.score - a.score for a, b in zip(self.first, self.other, strict=True)]


def pair(first: Sequence[Prediction], other: Sequence[Prediction]) -> Pairs:
    """The examples that two runs have in common."""
    theirs = {one.id: one for one in other}
    both = [(one, theirs[one.id]) for one in first if one.id in theirs]
    same = [(a, b) for a, b in both if (a.images, a.text, a.references) == (b.images, b.text, b.references)]
    alone = len(first) + len(other) - 2 * len(both)
    return Pairs([a for a, _ in same], [b for _, b in same], alone, len(both) - len(same))


def differences_of(title: str, first: str, found: Mapping[str, Mapping[str, Pairs]]) -> Table:
    """Mean differences to the first run.

    Args:
        first: its label.
        found: label of the other run -> task -> pairs.
    """
    rows, notes = [], []
    for label, tasks in found.items():
        for task, pairs in tasks.items():
            if pairs.first:
                rows.append((label, task, *_row(pairs.differences, pairs.first, pairs.other)))
            notes += _left_out(label, first, task, pairs)
    columns = (Column("run", "text"), Column("task", "text"), *_columns(first))
    return Table(title, columns, tuple(rows), notes=(NOTE, *notes) if rows else tuple(notes))


def kinds_of(title: str, first: str, found: Mapping[str, Mapping[str, Pairs]]) -> Table | None:
    """The same by kind of example; None where no prediction says its kind."""
    rows = []
    for label, tasks in found.items():
        for task, pairs in tasks.items():
            other = {one.id: one for one in pairs.other}
            for breakdown, kinds in by_kind(pairs.first).items():
                for kind, members in sorted(kinds.items()):
                    theirs = [other[one.id] for one in members]
                    gains = [b.score - a.score for a, b in zip(members, theirs, strict=True)]
                    name = breakdown.replace("_", " ")
                    rows.append((label, task, name, kind, *_row(gains, members, theirs)))
    if not rows:
        return None
    words = tuple(Column(name, "text") for name in ("run", "task", "breakdown", "kind"))
    return Table(title, (*words, *_columns(first)), tuple(rows), notes=(NOTE,))


def _columns(first: str) -> tuple[Column, ...]:
    return (
        Column("items", "count"),
        Column(f"score of {first}"),
        Column("score"),
        Column("difference", "difference"),
        Column(f"{LEVEL} % interval", "difference"),
        Column("better", "count"),
        Column("worse", "count"),
    )


def _row(gains: Sequence[float], first: Sequence[Prediction], other: Sequence[Prediction]) -> tuple[Value, ...]:
    found = interval_of_mean(gains, "examples")
    means = (sum(one.score for one in rows) / len(rows) for rows in (first, other))
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return (len(gains), *means, sum(gains) / len(gains), Range(found.low, found.high), better, worse)


def _left_out(label: str, first: str, task: str, pairs: Pairs) -> list[str]:
    notes = []
    if pairs.alone:
        notes.append(f"{task}: {pairs.alone:,} examples were scored in only one of {first} and {label}; left out.")
    if pairs.changed:
        notes.append(
            f"{task}: {pairs.changed:,} examples of {first} and {label} have one id but other pictures, text or "
            "references; left out."
        )
    return notes
