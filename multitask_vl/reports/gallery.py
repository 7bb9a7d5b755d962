"""Which examples does a gallery show: a fixed draw, half of them below the split's mean score, half not."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multitask_vl.errors import InputError
from multitask_vl.reports.pictures import Picture, load_pictures
from multitask_vl.reports.run import Prediction, Run

Verdict = Literal["right", "partly", "wrong"]


@dataclass(frozen=True)
class Item:
    """One example of the gallery. `verdict` is None for scores that are not shares of right (captions)."""

    id: str
    pictures: list[Picture]
    text: str
    prediction: str
    references: list[tuple[str, int]]
    score: float
    verdict: Verdict | None

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
    def brief(self) -> bool:
        """Whether narrow cards do, because no example has long references."""
        return all(item.short for item in self.items)

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


def gallery(run: Run, split: str, count: int, folders: Sequence[Path]) -> list[Shelf]:
    """The examples to show for every task of a split that was scored, their pictures taken from ``folders``.

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
    chosen = {task: choose(all_of_it, count) for task, all_of_it in predictions.items()}
    pictures = load_pictures(folders, [key for items in chosen.values() for p in items for key in p.images])
    metrics = {task: run.scores.splits[split].tasks[task].headline for task in chosen}
    return [_shelf(task, metrics[task], predictions[task], items, pictures) for task, items in chosen.items()]


def _shelf(
    task: str, metric: str, everything: list[Prediction], chosen: list[Prediction], pictures: dict[str, Picture]
) -> Shelf:
    mean = statistics.fmean(p.score for p in everything) if everything else 0.0
    # A caption's score has no top, so "right" means nothing there.
    bounded = all(0 <= p.score <= 100 for p in everything)
    items = [
        Item(
            id=p.id,
            pictures=[pictures[key] for key in p.images],
            text=p.text,
            prediction=p.prediction,
            references=Counter(p.references).most_common(),
            score=p.score,
            verdict=_verdict(p.score) if bounded else None,
        )
        for p in chosen
    ]
    below = sum(p.score < mean for p in chosen)
    return Shelf(task, metric, items, below, len(everything), mean)


def _verdict(score: float) -> Verdict:
    if score >= 100:
        return "right"
    return "wrong" if score <= 0 else "partly"
