"""Base class of tasks: data, prompt, targets, loss, decoding, metric and submission."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field

from multitask_vl.config.schema import DecodingConfig, PositiveInt, Section, TaskConfig
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import ConfidenceInterval
from multitask_vl.tasks.readers.json_stream import ErrorCollector
from multitask_vl.tasks.readers.paths import expand_path, path_problem, resolve_path

C = TypeVar("C", bound=TaskConfig)

Paths = Annotated[
    tuple[Path, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
    Field(min_length=1),
]
"""Type of a configuration key that accepts one path or a list of paths; see `Task.expand_paths`."""

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""Type of a configuration key that accepts one name or a list of names."""


def key_template(*fields: str) -> Any:
    """Type of a configuration key that is a template of image keys, e.g. ``{image_id:012d}``.

    Args:
        fields: names allowed in braces; any other name is an error when the configuration is read.
    """

    def check(template: str) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise ValueError(f"unknown field {{{unknown[0]}}}; known: {', '.join(f'{{{name}}}' for name in fields)}")
        return template

    return Annotated[str, AfterValidator(check)]


class SplitConfig(Section):
    """Keys that every split has. A task extends this with the split's files."""

    expected_count: PositiveInt | None = None
    """Number of examples that the split must have, e.g. 443757 for VQA v2 train; another number is an error."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a task, as read from its official files.

    Attributes:
        id: unique in its split; key of predictions and submissions (question id, identifier, image id).
        images: keys of its images in the feature store, in order (NLVR2: left, right).
        text: the question or statement, without prompt; empty for captions.
        answers: possible targets. Empty if the split hides them, or if an option of the task excludes them all.
        scores: soft score in [0, 1] of each answer, same length.
        meta: further fields for scoring (answer type, ten raw answers, references, ...); JSON-serializable.
    """

    id: str
    images: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    meta: dict[str, Any] = field(default_factory=dict)


class Target(NamedTuple):
    """A target of one example.

    Attributes:
        text: target text; empty if the example has none.
        weight: weight of its loss, 0 for no target.
        fraction: fraction of the example that it represents. The fractions of an example's targets sum to 1.
    """

    text: str
    weight: float
    fraction: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Scores of a split. Everything is on the 0-100 scale.

    Attributes:
        primary_metric: name of the metric that represents the task in tables.
        metrics: metric -> value, or None if it could not be computed (`notes` has the reason).
        per_example: id -> score of the primary metric (or its per-example form), for galleries and intervals.
        groups: breakdown (answer_type, ...) -> group -> value.
        notes: metric -> why it is None, and other notes.
        version: scoring version of the task.
        intervals: metric -> confidence interval; contains the primary metric if that is a mean.
    """

    primary_metric: str
    metrics: dict[str, float | None]
    per_example: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    version: int = 1
    intervals: dict[str, ConfidenceInterval] = field(default_factory=dict)


class LabelsHidden(InputError):
    """A split has no labels, so it cannot be scored; its submission is for the server that has them."""

    def __init__(self, task: str):
        super().__init__(f"tasks.{task}: the labels of the split are hidden; send the submission file to the server")


class Task(ABC, Generic[C]):
    """One task: data, prompt, targets, loss, decoding, metric and submission, in one file.

    Subclasses are registered with ``@TASKS.register(name)``.

    Args:
        name: key under ``tasks:``.
        config: settings of the task.
        data_dir: folder that relative paths of the settings start at.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    version: ClassVar[int] = 1
    primary_metric: ClassVar[str]
    """Name of the metric that represents the task in tables."""
    submission_name: ClassVar[str]
    """File name of the official submission."""
    num_images: ClassVar[int] = 1
    """Default number of images per request in inference."""
    has_text: ClassVar[bool] = True
    """Whether an example has a text in addition to its images."""

    def __init__(self, name: str, config: C, data_dir: Path):
        self.name = name
        self.config = config
        self.data_dir = Path(data_dir)
        self.warnings: dict[str, dict[str, int]] = {}
        """Split -> warning -> number of items: what `read` changed in, or dropped from, the files."""

    # ---- data

    @abstractmethod
    def sources(self, split: str) -> list[Path]:
        """Files that `read` opens for a split. Their content is part of the key of the cached table.

        Raises:
            InputError: no such split, or a file is missing.
        """

    @abstractmethod
    def read(self, split: str) -> Iterator[Example]:
        """Read the examples of a split from its official files.

        Raises:
            InputError: they are malformed; with file:line.
        """

    def resolve(self, path: str | Path) -> Path:
        """Resolve a path of the configuration; relative paths start at ``data_dir``."""
        return resolve_path(path, self.data_dir)

    def expand_paths(self, paths: Sequence[Path]) -> list[Path]:
        """Expand paths of the configuration to files, in this order.

        A path is a file; a folder, which expands to every file in it except hidden ones; or a pattern such as
        ``gqa/train_all_questions_*.json``. The files of a folder or pattern are sorted by name. A path without files is
        skipped; `resolve_files` reports it.
        """
        return [file for path in paths for file in expand_path(path, self.data_dir)]

    def resolve_files(self, paths: Mapping[str, Sequence[Path]]) -> list[Path]:
        """Expand paths given by their key under ``tasks.<name>`` (``splits.train.questions``), and require files.

        Raises:
            InputError: all paths without a file, and all folders that contain folders.
        """
        options = [(f"tasks.{self.name}.{key}", path) for key, group in paths.items() for path in group]
        problems = [problem for option, path in options if (problem := path_problem(option, path, self.data_dir))]
        if problems:
            raise InputError(problems)
        return self.expand_paths([path for _, path in options])

    def new_collector(self, split: str) -> ErrorCollector:
        """New collector for the problems and warnings of reading a split."""
        self.warnings[split] = {}
        return ErrorCollector(self.config_path(split), self.warnings[split])

    def config_path(self, split: str) -> str:
        """Dotted path of a split in the configuration, for messages.

        Raises:
            InputError: the task does not have the split.
        """
        if split not in self.config.splits:
            raise InputError(f"tasks.{self.name}.splits: '{split}' is not one of {sorted(self.config.splits)}")
        return f"tasks.{self.name}.splits.{split}"

    def reading_options(self, split: str) -> dict[str, Any]:
        """Settings that change what `read` yields, JSON-serializable; they are part of the key of the cached table.

        Default: the keys of the split, and the keys that the task adds to `TaskConfig`.
        """
        settings = self.config.model_dump(mode="json")
        added = {key: value for key, value in settings.items() if key not in TaskConfig.model_fields}
        return {**added, "split": split, "splits": settings["splits"][split]}

    # ---- training

    def sample_target(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> Target:
        """Sample one target for a training step: an answer, by its soft score (VL-Adapter section 8.4)."""
        total = float(sum(scores))
        if not answers or total <= 0:
            return Target("", 0.0)
        index = int(rng.choice(len(answers), p=np.asarray(scores, dtype=np.float64) / total))
        return Target(answers[index], float(scores[index]))

    def targets(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> list[Target]:
        """All targets of an example for a training step, whose fractions sum to 1.

        Default: the one of `sample_target`. A task with several targets needs ``target_fraction`` in `reduce`.
        """
        return [self.sample_target(answers, scores, rng)]

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce the loss of a batch to a numerator and a denominator, which sum over ranks and micro-batches.

        The default is the mean over rows of the mean over a row's tokens (GQA, NLVR2; VL-Adapter section 8.5).

        Args:
            token_loss: cross-entropy of each target token [B, T], 0 where not valid.
            valid: which positions are targets [B, T], bool.
            weights: weight of each target [B].

        Returns:
            numerator and denominator, both scalars; the loss is sum of numerators / sum of denominators.
        """
        rows = token_loss.sum(1) / valid.sum(1).clamp(min=1)
        return rows.sum(), token_loss.new_tensor(float(len(rows)))

    # ---- evaluation

    @property
    def decoding(self) -> DecodingConfig:
        """Decoding settings of predictions."""
        return self.config.decoding

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        """Score the predictions (id -> text) of a split.

        Args:
            examples: all examples of the split.
            predictions: exactly one for each of ``examples``.
            options: keys of `EvaluationConfig` that scoring may use (``caption_tokenizer``).

        Raises:
            LabelsHidden: the split has no labels. It can be predicted, and its submission is written.
            InputError: missing or unknown ids.
        """

    def groups(self, meta: Mapping[str, Any]) -> dict[str, str]:
        """Breakdown -> group of an example with this ``meta``, with the names of `Scores.groups`.

        It is written with each prediction, so that a report can compute intervals of a group's score. Default: none.
        """
        return {}

    def check_scoring(self, **options: Any) -> list[str]:
        """Warnings about metrics that `score` cannot compute on this machine, checked before training starts.

        Raises:
            InputError: it cannot compute the primary metric.
        """
        return []

    def aligned_predictions(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> list[str]:
        """Predictions in the order of ``examples``, for `score`.

        Raises:
            InputError: missing or unknown ids, or no examples.
        """
        if not examples:
            raise InputError(f"tasks.{self.name}: there are no examples to score")
        check_ids([example.id for example in examples], predictions, f"tasks.{self.name}")
        return [predictions[example.id] for example in examples]

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        """Score an official results file against an official annotation file: JSON-serializable, on the 0-100 scale."""
        raise InputError(f"{cls.__name__} does not score official files")

    @abstractmethod
    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        """Write the submission file of the task's official server."""

    @classmethod
    def submission_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        """Ids that official question files require an answer for, with their type there.

        Args:
            questions: official question files.
            options: those of ``multitask-vl check-submission`` (``subset``).
        """
        raise InputError(f"{cls.__name__} does not check submissions")

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        """Check a file that `submission` wrote. Default: no check.

        Args:
            ids: all expected ids, with their type in official files (see `native_id`).

        Raises:
            InputError: every kind of defect.
        """


def check_ids(expected: Collection[str], found: Mapping[str, Any], subject: str) -> None:
    """Raise InputError unless predictions are for exactly the expected ids; one instance of each defect is named."""
    known, problems = set(expected), []
    missing = [id_ for id_ in expected if id_ not in found]
    extra = [id_ for id_ in found if id_ not in known]
    if missing:
        problems.append(f"{subject}: {len(missing):,} of {len(known):,} ids have no prediction (first: {missing[0]})")
    if extra:
        problems.append(f"{subject}: {len(extra):,} predictions are for unknown ids (first: {extra[0]})")
    if problems:
        raise InputError(problems)
