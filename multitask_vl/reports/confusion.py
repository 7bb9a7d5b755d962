"""Which answers are taken for which: the most frequent answers of a split against what was predicted for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from multitask_vl.reports.run import Prediction

MOST = 8
OTHER = "(other)"


@dataclass(frozen=True)
class ConfusionRow:
    """What was predicted where ``reference`` was right: times of each answer of the table; ``place`` is its own."""

    reference: str
    counts: tuple[int, ...]
    total: int
    place: int | None


@dataclass(frozen=True)
class Confusion:
    """Predictions by reference; ``answers`` are the columns, the last of them all others together."""

    title: str
    answers: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]
    notes: tuple[str, ...]


def confusion(title: str, predictions: Sequence[Prediction], most: int = MOST) -> Confusion | None:
    """The confusion of the ``most`` frequent answers; None where answers hardly repeat (captions) or are hidden.

    The reference of an example is what most people said, the first of those said equally often. Case and outer blanks
    do not count. Columns are the answers that were predicted most often for these references.
    """
    pairs = [(_majority(p.references), _plain(p.prediction)) for p in predictions if p.references]
    frequent = [answer for answer, times in Counter(reference for reference, _ in pairs).most_common(most) if times > 1]
    covered = sum(reference in frequent for reference, _ in pairs)
    # where not even a fifth of the examples share an answer, a table of eight says nothing about the task
    if len(frequent) < 2 or covered < len(pairs) / 5:
        return None
    others = Counter(said for reference, said in pairs if reference in frequent and said not in frequent)
    answers = [*frequent, *(said for said, times in others.most_common(max(0, most + 2 - len(frequent))) if times > 1)]
    rows = []
    for place, reference in enumerate(frequent):
        said = Counter(prediction for right, prediction in pairs if right == reference)
        known = [said[answer] for answer in answers]
        total = said.total()
        rows.append(ConfusionRow(reference, (*known, total - sum(known)), total, place))
    notes = [f"{len(frequent)} answers, {covered:,} of {len(pairs):,} examples ({100 * covered / len(pairs):.0f} %)."]
    if hidden := len(predictions) - len(pairs):
        notes.append(f"{hidden:,} examples hide their answers.")
    return Confusion(title, (*(answer or "(nothing)" for answer in answers), OTHER), tuple(rows), tuple(notes))


def _majority(references: Sequence[str]) -> str:
    return Counter(map(_plain, references)).most_common(1)[0][0]


def _plain(text: str) -> str:
    return text.strip().casefold()
