"""Paired comparison of two runs: score differences on the same examples, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multitask_vl.metrics.bootstrap import LEVEL, bootstrap_mean_ci
from multitask_vl.reports.breakdowns import predictions_by_group
from multitask_vl.reports.run import Prediction
from multitask_vl.reports.table import Column, Range, Table, Value

NOTE = (
    f"{LEVEL} % interval: paired percentile bootstrap of the mean difference over the examples that both runs were "
    "scored on. It does not cover the variance between training seeds, and it is not corrected for multiple "
    "comparisons."
)


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of two runs for the same examples, in the order of the first run.

    Attributes:
        first, other: of equal length.
        unpaired: number of examples that only one of the two runs was scored on.
        changed: number of examples whose images, text or references differ between the runs; not in the pairs.
    """

    first: list[Prediction]
    other: list[Prediction]
    unpaired: int
    changed: int

    @property
    def differences(self) -> list[float]:
        """Score of the other run minus score of the first, per example."""
        return [b.score - a.score for a, b in zip(self.first, self.other, strict=True)]


def pair_predictions(first: Sequence[Prediction], other: Sequence[Prediction]) -> PairedPredictions:
    """Pair the predictions of two runs by example id."""
    other_by_id = {prediction.id: prediction for prediction in other}
    both = [(one, other_by_id[one.id]) for one in first if one.id in other_by_id]
    same = [(a, b) for a, b in both if (a.images, a.text, a.references) == (b.images, b.text, b.references)]
    unpaired = len(first) + len(other) - 2 * len(both)
    return PairedPredictions([a for a, _ in same], [b for _, b in same], unpaired, len(both) - len(same))


def difference_table(title: str, first: str, pairs: Mapping[str, Mapping[str, PairedPredictions]]) -> Table:
    """Mean score differences to the first run, one row per run and task.

    Args:
        title: title of the table.
        first: label of the first run.
        pairs: label of the other run -> task -> pairs.
    """
    rows, notes = [], []
    for label, by_task in pairs.items():
        for task, paired in by_task.items():
            if paired.first:
                rows.append((label, task, *_row(paired.first, paired.other)))
            notes += _exclusion_notes(label, first, task, paired)
    columns = (Column("run", "text"), Column("task", "text"), *_columns(first))
    return Table(title, columns, tuple(rows), notes=(NOTE, *notes) if rows else tuple(notes))


def group_difference_table(
    title: str, first: str, pairs: Mapping[str, Mapping[str, PairedPredictions]]
) -> Table | None:
    """Mean score differences by group of examples; None if no prediction lists its groups. See `difference_table`."""
    rows = []
    for label, by_task in pairs.items():
        for task, paired in by_task.items():
            other_by_id = {prediction.id: prediction for prediction in paired.other}
            for breakdown, groups in predictions_by_group(paired.first).items():
                for group, members in sorted(groups.items()):
                    others = [other_by_id[member.id] for member in members]
                    rows.append((label, task, breakdown.replace("_", " "), group, *_row(members, others)))
    if not rows:
        return None
    text_columns = tuple(Column(name, "text") for name in ("run", "task", "breakdown", "group"))
    return Table(title, (*text_columns, *_columns(first)), tuple(rows), notes=(NOTE,))


def _columns(first: str) -> tuple[Column, ...]:
    return (
        Column("count", "count"),
        Column(f"score of {first}"),
        Column("score"),
        Column("difference", "difference"),
        Column(f"{LEVEL} % interval", "difference"),
        Column("better", "count"),
        Column("worse", "count"),
    )


def _row(first: Sequence[Prediction], other: Sequence[Prediction]) -> tuple[Value, ...]:
    gains = [b.score - a.score for a, b in zip(first, other, strict=True)]
    interval = bootstrap_mean_ci(gains, "examples")
    means = (sum(prediction.score for prediction in rows) / len(rows) for rows in (first, other))
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return (len(gains), *means, sum(gains) / len(gains), Range(interval.low, interval.high), better, worse)


def _exclusion_notes(label: str, first: str, task: str, pairs: PairedPredictions) -> list[str]:
    notes = []
    if pairs.unpaired:
        notes.append(f"{task}: {pairs.unpaired:,} examples skipped: scored in only one of {first} and {label}.")
    if pairs.changed:
        notes.append(
            f"{task}: {pairs.changed:,} examples skipped: same id but different images, text or references in {first} "
            f"and {label}."
        )
    return notes
