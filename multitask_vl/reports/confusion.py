"""Confusion tables: the most frequent reference answers of a split against the predictions for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from multitask_vl.reports.run import Prediction

MAX_REFERENCES = 8
OTHER = "(other)"


@dataclass(frozen=True)
class ConfusionRow:
    """Predictions for one reference answer.

    Attributes:
        reference: the reference answer.
        counts: number of predictions per column of the table.
        total: sum of `counts`.
        correct_column: column of the reference itself.
    """

    reference: str
    counts: tuple[int, ...]
    total: int
    correct_column: int


@dataclass(frozen=True)
class Confusion:
    """Predictions by reference; `answers` names the columns, the last of which counts all other predictions."""

    title: str
    answers: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]
    notes: tuple[str, ...]


def confusion(title: str, predictions: Sequence[Prediction], max_references: int = MAX_REFERENCES) -> Confusion | None:
    """The confusion table of the most frequent reference answers.

    The reference of an example is the majority answer; ties go to the answer listed first. Case and surrounding
    whitespace are ignored. Columns are the answers that were predicted most often for these references.

    Args:
        max_references: maximum number of rows.

    Returns:
        None where answers hardly repeat (captions) or are hidden.
    """
    pairs = [(_majority(p.references), _normalize(p.prediction)) for p in predictions if p.references]
    counted = Counter(reference for reference, _ in pairs).most_common(max_references)
    frequent = [answer for answer, count in counted if count > 1]
    covered = sum(reference in frequent for reference, _ in pairs)
    # Below a fifth of the examples, a table of eight answers is not representative of the task.
    if len(frequent) < 2 or covered < len(pairs) / 5:
        return None
    others = Counter(predicted for reference, predicted in pairs if reference in frequent and predicted not in frequent)
    num_others = max(0, max_references + 2 - len(frequent))
    answers = [*frequent, *(answer for answer, count in others.most_common(num_others) if count > 1)]
    rows = []
    for column, reference in enumerate(frequent):
        predicted = Counter(prediction for answer, prediction in pairs if answer == reference)
        counts = [predicted[answer] for answer in answers]
        total = predicted.total()
        rows.append(ConfusionRow(reference, (*counts, total - sum(counts)), total, column))
    notes = [f"{len(frequent)} answers, {covered:,} of {len(pairs):,} examples ({100 * covered / len(pairs):.0f} %)."]
    if hidden := len(predictions) - len(pairs):
        notes.append(f"{hidden:,} examples have hidden answers.")
    return Confusion(title, (*(answer or "(empty)" for answer in answers), OTHER), tuple(rows), tuple(notes))


def _majority(references: Sequence[str]) -> str:
    return Counter(map(_normalize, references)).most_common(1)[0][0]


def _normalize(text: str) -> str:
    return text.strip().casefold()
