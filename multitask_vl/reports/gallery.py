"""Galleries: a fixed sample of examples, half of them below the mean score, with the answers of one or more runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multitask_vl.errors import InputError
from multitask_vl.reports.images import EmbeddedImage, load_images
from multitask_vl.reports.run import Prediction, Run
from multitask_vl.storage.hashing import text_sha256

Verdict = Literal["right", "partly", "wrong"]
BELOW, NOT_BELOW, DISAGREE, AGREE = "below the mean", "not below the mean", "runs disagree", "runs agree"
FILTER_ORDER = ("wrong", "partly", "right", BELOW, NOT_BELOW, DISAGREE, AGREE)
MAX_INLINE_CHARACTERS = 80
"""References of fewer characters in total are shown on one line, longer ones as a list."""
PredictionsByTask = dict[str, dict[str, Prediction]]
"""Task -> example id -> prediction."""


@dataclass(frozen=True)
class ModelAnswer:
    """The answer of one run to an example; `label` names the run if several are shown."""

    label: str | None
    prediction: str
    score: float
    verdict: Verdict | None


@dataclass(frozen=True)
class GalleryItem:
    """One example of a gallery.

    Attributes:
        id: example id.
        images: images of the example.
        text: its question or statement; empty for captions.
        answers: answers of the runs; the first is that of the reported run.
        references: reference answers with their counts.
        filters: names of the gallery's filters that select this item.
    """

    id: str
    images: list[EmbeddedImage]
    text: str
    answers: list[ModelAnswer]
    references: list[tuple[str, int]]
    filters: list[str]

    @property
    def score(self) -> float:
        """Score of the reported run."""
        return self.answers[0].score

    @property
    def verdict(self) -> Verdict | None:
        """Verdict on the reported run; None for metrics without a maximum (captions)."""
        return self.answers[0].verdict

    @property
    def has_short_references(self) -> bool:
        """Whether the references fit on one line (answers) or need one line each (captions)."""
        return sum(len(text) for text, _ in self.references) < MAX_INLINE_CHARACTERS

    def alt_text(self, index: int) -> str:
        """Text alternative of the image at ``index``."""
        return f"Image {self.images[index].key}{pair_side(self.images, index)}"


@dataclass(frozen=True)
class ExampleGroup:
    """The gallery of one task.

    Attributes:
        task: task name.
        metric: metric of the example scores.
        items: selected examples.
        below: how many of them score below the mean.
        total: number of examples of the task.
        mean: mean score of all its examples.
    """

    task: str
    metric: str
    items: list[GalleryItem]
    below: int
    total: int
    mean: float

    @property
    def filters(self) -> list[str]:
        """Filters to offer, in a fixed order; a filter that selects every item is omitted."""
        counts = Counter(name for item in self.items for name in item.filters)
        choices = [name for name, count in counts.items() if count < len(self.items)]
        return sorted(choices, key=lambda name: FILTER_ORDER.index(name) if name in FILTER_ORDER else len(FILTER_ORDER))

    @property
    def fits_narrow_cards(self) -> bool:
        """Whether every item has short references and a single answer."""
        return all(item.has_short_references and len(item.answers) == 1 for item in self.items)

    @property
    def has_pairs(self) -> bool:
        """Whether an item has several images next to each other."""
        return any(len(item.images) > 1 for item in self.items)


def pair_side(images: Sequence[object], index: int) -> str:
    """``, left of the pair`` or ``, right of the pair`` for an image of two; empty otherwise."""
    return f", {('left', 'right')[index]} of the pair" if len(images) == 2 else ""


def choose(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """At most ``count`` predictions, half of them below the mean score; if one half is too small, the other fills up.

    The sample depends on the example ids, so two runs show the same examples as far as their scores allow.
    """
    if not predictions:
        return []
    mean = statistics.fmean(p.score for p in predictions)
    shuffled = sorted(predictions, key=lambda p: text_sha256(p.id))
    below = [p for p in shuffled if p.score < mean]
    above = [p for p in shuffled if p.score >= mean]
    num_below = min(len(below), max(count // 2, count - len(above)))
    chosen = {p.id for p in below[:num_below] + above[: count - num_below]}
    return [p for p in shuffled if p.id in chosen]


def read_predictions(run: Run, split: str) -> dict[str, list[Prediction]]:
    """Predictions of every scored task of a split.

    Raises:
        InputError: prediction files are missing or malformed; lists all of them.
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
    others: Mapping[str, PredictionsByTask] = {},
) -> list[ExampleGroup]:
    """A sample of the examples of every scored task of a split.

    Args:
        run: the reported run.
        split: split name.
        count: maximum number of examples per task.
        folders: folders to search for images.
        predictions: predictions of the split by task; None: read them.
        others: label -> predictions of another run for the same split, shown on the same cards.

    Raises:
        InputError: prediction files are missing or malformed; lists all of them.
    """
    predictions = read_predictions(run, split) if predictions is None else predictions
    chosen = {task: choose(of_task, count) for task, of_task in predictions.items()}
    images = load_images(folders, [key for sample in chosen.values() for p in sample for key in p.images])
    groups = []
    for task, sample in chosen.items():
        metric = run.scores.splits[split].tasks[task].primary_metric
        of_others = {label: by_task.get(task, {}) for label, by_task in others.items()}
        groups.append(example_group(task, metric, predictions[task], sample, images, of_others))
    return groups


def example_group(
    task: str,
    metric: str,
    predictions: Sequence[Prediction],
    chosen: Sequence[Prediction],
    images: Mapping[str, EmbeddedImage],
    others: Mapping[str, Mapping[str, Prediction]] = {},
    label: str | None = None,
) -> ExampleGroup:
    """The cards of one task.

    Args:
        task: task name.
        metric: metric of the example scores.
        predictions: all predictions of the reported run.
        chosen: the predictions to show.
        images: key -> image.
        others: label -> example id -> prediction of another run.
        label: label of the reported run if there are others.
    """
    mean = statistics.fmean(p.score for p in predictions) if predictions else 0.0
    # Scores above 100 (CIDEr) have no maximum, so no caption counts as right.
    bounded = all(0 <= p.score <= 100 for p in predictions)
    label = label or ("This run" if others else None)
    items = []
    for prediction in chosen:
        answers = [_model_answer(label, prediction, bounded)]
        answers += [
            _model_answer(name, by_id[prediction.id], bounded)
            for name, by_id in others.items()
            if prediction.id in by_id
        ]
        items.append(
            GalleryItem(
                id=prediction.id,
                images=[images[key] for key in prediction.images],
                text=prediction.text,
                answers=answers,
                references=Counter(prediction.references).most_common(),
                filters=_filters(answers, mean),
            )
        )
    return ExampleGroup(task, metric, items, sum(p.score < mean for p in chosen), len(predictions), mean)


def _model_answer(label: str | None, prediction: Prediction, bounded: bool) -> ModelAnswer:
    verdict = _verdict(prediction.score) if bounded else None
    return ModelAnswer(label, prediction.prediction, prediction.score, verdict)


def _filters(answers: Sequence[ModelAnswer], mean: float) -> list[str]:
    first = answers[0]
    names: list[str] = [first.verdict or (BELOW if first.score < mean else NOT_BELOW)]
    if len(answers) > 1:
        lowest = min(answer.score for answer in answers)
        names.append(AGREE if all(answer.score == lowest for answer in answers) else DISAGREE)
        names += [f"{answer.label} better" for answer in answers if answer.score > lowest]
    return names


def _verdict(score: float) -> Verdict:
    if score >= 100:
        return "right"
    return "wrong" if score <= 0 else "partly"
