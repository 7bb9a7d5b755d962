"""Which examples does a gallery show: a fixed draw, half of them below the split's mean score, half not."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multitask_vl.errors import InputError
from multitask_vl.reports.images import Picture, load_pictures
from multitask_vl.reports.run import Prediction, Run

Verdict = Literal["right", "partly", "wrong"]
BELOW, NOT_BELOW, DISAGREE, AGREE = "below the mean", "not below the mean", "runs disagree", "runs agree"
ORDER = ("wrong", "partly", "right", BELOW, NOT_BELOW, DISAGREE, AGREE)
Scored = dict[str, dict[str, Prediction]]
"""Task -> id -> prediction of another run."""


@dataclass(frozen=True)
class Said:
    """What one run wrote for an example; `label` names the run where there are several."""

    label: str | None
    prediction: str
    score: float
    verdict: Verdict | None


@dataclass(frozen=True)
class Item:
    """One example of the gallery: what the run that the page is about wrote for it, then other runs."""

    id: str
    pictures: list[Picture]
    text: str
    said: list[Said]
    references: list[tuple[str, int]]
    filters: list[str]

    @property
    def score(self) -> float:
        """Of the run that the page is about."""
        return self.said[0].score

    @property
    def verdict(self) -> Verdict | None:
        """Of the run that the page is about; None for scores that are not shares of right (captions)."""
        return self.said[0].verdict

    @property
    def short(self) -> bool:
        """Whether the references fit on a line or two (answers), or want one each (captions)."""
        return sum(len(words) for words, _ in self.references) < 80

    def caption(self, place: int) -> str:
        """What stands for a picture where it cannot be seen."""
        side = f", {('left', 'right')[place]} of the pair" if len(self.pictures) == 2 else ""
        return f"Picture {self.pictures[place].key}{side}"


@dataclass(frozen=True)
class Shelf:
    """The examples of one task: how many of how many, and how many of them below the mean score."""

    task: str
    metric: str
    items: list[Item]
    below: int
    total: int
    mean: float

    @property
    def filters(self) -> list[str]:
        """What a reader may choose to see, in a fixed order; what is so of all items is no choice."""
        found = Counter(name for item in self.items for name in item.filters)
        choices = [name for name, times in found.items() if times < len(self.items)]
        return sorted(choices, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    @property
    def brief(self) -> bool:
        """Whether narrow cards do, because no example has long references or several predictions."""
        return all(item.short and len(item.said) == 1 for item in self.items)

    @property
    def wide(self) -> bool:
        """Whether an example has several pictures side by side."""
        return any(len(item.pictures) > 1 for item in self.items)


def choose(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """At most ``count`` predictions: half below the mean score, half not, the other half filling up where one is short.

    The draw depends on the ids alone, so two runs show the same examples as far as their scores allow.
    """
    if not predictions:
        return []
    mean = statistics.fmean(p.score for p in predictions)
    drawn = sorted(predictions, key=lambda p: hashlib.sha256(p.id.encode()).digest())
    below = [p for p in drawn if p.score < mean]
    above = [p for p in drawn if p.score >= mean]
    from_below = min(len(below), max(count // 2, count - len(above)))
    chosen = {p.id for p in below[:from_below] + above[: count - from_below]}
    return [p for p in drawn if p.id in chosen]


def read_predictions(run: Run, split: str) -> dict[str, list[Prediction]]:
    """Predictions of every task of a split that was scored.

    Raises:
        InputError: prediction files are missing or malformed, all of them told at once.
    """
    problems: list[str] = []
    predictions: dict[str, list[Prediction]] = {}
    for task in (task for task in run.tasks(split) if run.scores.splits[split].tasks[task].value is not None):
        try:
            predictions[task] = run.predictions(task, split)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return predictions


def gallery(
    run: Run,
    split: str,
    count: int,
    folders: Sequence[Path],
    predictions: Mapping[str, Sequence[Prediction]] | None = None,
    others: Mapping[str, Scored] = {},
) -> list[Shelf]:
    """The examples to show for every task of a split that was scored, their pictures taken from ``folders``.

    Args:
        predictions: of the split by task, if they were read before.
        others: label -> predictions of another run for the same split, shown beside.

    Raises:
        InputError: prediction files are missing or malformed, all of them told at once.
    """
    predictions = read_predictions(run, split) if predictions is None else predictions
    chosen = {task: choose(all_of_it, count) for task, all_of_it in predictions.items()}
    metrics = {task: run.scores.splits[split].tasks[task].headline for task in chosen}
    pictures = load_pictures(folders, [key for items in chosen.values() for p in items for key in p.images])
    shelves = []
    for task, items in chosen.items():
        beside = {name: scored.get(task, {}) for name, scored in others.items()}
        shelves.append(shelf(task, metrics[task], predictions[task], items, pictures, beside))
    return shelves


def shelf(
    task: str,
    metric: str,
    everything: Sequence[Prediction],
    chosen: Sequence[Prediction],
    pictures: Mapping[str, Picture],
    others: Mapping[str, Mapping[str, Prediction]] = {},
    label: str | None = None,
) -> Shelf:
    """The cards of one task.

    Args:
        everything: all predictions of the run that the page is about; ``chosen`` are some of them.
        others: label -> id -> prediction of another run.
        label: of the run that the page is about, where there are others.
    """
    mean = statistics.fmean(p.score for p in everything) if everything else 0.0
    # A caption's score has no top, so "right" means nothing there.
    bounded = all(0 <= p.score <= 100 for p in everything)
    label = label or ("This run" if others else None)
    items = []
    for one in chosen:
        said = [_said(label, one, bounded)]
        said += [_said(name, theirs[one.id], bounded) for name, theirs in others.items() if one.id in theirs]
        items.append(
            Item(
                id=one.id,
                pictures=[pictures[key] for key in one.images],
                text=one.text,
                said=said,
                references=Counter(one.references).most_common(),
                filters=_filters(said, mean),
            )
        )
    return Shelf(task, metric, items, sum(p.score < mean for p in chosen), len(everything), mean)


def _said(label: str | None, one: Prediction, bounded: bool) -> Said:
    return Said(label, one.prediction, one.score, _verdict(one.score) if bounded else None)


def _filters(said: Sequence[Said], mean: float) -> list[str]:
    first = said[0]
    found: list[str] = [first.verdict or (BELOW if first.score < mean else NOT_BELOW)]
    if len(said) > 1:
        found.append(AGREE if len({one.score for one in said}) == 1 else DISAGREE)
        found += [f"{one.label} better" for one in said if one.score > min(other.score for other in said)]
    return found


def _verdict(score: float) -> Verdict:
    if score >= 100:
        return "right"
    return "wrong" if score <= 0 else "partly"
