"""What a task is: reads official files, says what the model sees and should write, scores what it wrote."""

from __future__ import annotations

import glob
import string
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field

from multitask_vl.config.schema import DecodingConfig, Positive, Section, TaskConfig
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import Interval
from multitask_vl.tasks.readers.json_stream import Problems

C = TypeVar("C", bound=TaskConfig)

Paths = Annotated[
    tuple[Path, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
    Field(min_length=1),
]
"""Type of a configuration key that takes one path or a list of paths; see `Task.files`."""

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""Type of a configuration key that takes one name or a list of names."""


def key_template(*fields: str) -> Any:
    """Type of a configuration key that says how an image key is made, e.g. ``{image_id:012d}``.

    Args:
        fields: names that may stand in the braces; another one is an error where the configuration is read.
    """

    def check(template: str) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise ValueError(f"unknown field {{{unknown[0]}}}; known: {', '.join(f'{{{name}}}' for name in fields)}")
        return template

    return Annotated[str, AfterValidator(check)]


class SplitConfig(Section):
    """Keys that every split has. A task's file extends this with the files that hold it."""

    expected_count: Positive | None = None
    """How many examples the split must have, e.g. 443757 for VQA v2 train; another number is an error."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a task, as read from its official files.

    Attributes:
        id: unique within its split; what predictions and submissions are keyed by (question id, identifier, image id).
        images: keys of its pictures in the feature store, in order (NLVR2: left, right).
        text: the question or statement, without prompt; empty for captions.
        answers: possible targets. Empty where the split hides them, or where an option of the task leaves none.
        scores: soft score in [0, 1] of each answer, same length.
        meta: whatever scoring needs beyond that (answer type, ten raw answers, references, ...); JSON-able.
    """

    id: str
    images: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What scoring a split gives. Everything is on the 0-100 scale.

    Attributes:
        headline: name of the metric that stands for the task in tables.
        metrics: metric -> value, or None where it could not be computed (`notes` says why).
        per_example: id -> score of the headline metric (or its per-item form), for galleries and intervals.
        groups: breakdown name (answer_type, ...) -> group -> value.
        notes: metric -> why it is None, and other remarks.
        version: the task's scoring version.
        intervals: metric -> its confidence interval, for the headline at least where it is a mean.
    """

    headline: str
    metrics: dict[str, float | None]
    per_example: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    version: int = 1
    intervals: dict[str, Interval] = field(default_factory=dict)


class HiddenAnswers(InputError):
    """A split without its answers cannot be scored here; its submission is for the server that has them."""

    def __init__(self, task: str):
        super().__init__(f"tasks.{task}: the split hides its answers; send the submission file to the server")


class Task(ABC, Generic[C]):
    """One task: data, prompt, target, loss, decoding, metric and submission, in one file.

    Subclasses are registered with ``@TASKS.register(name)`` and built as ``TaskClass(name, config, data_dir)``.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    version: ClassVar[int] = 1
    headline: ClassVar[str]
    """Name of the metric that stands for the task in tables."""
    submission_name: ClassVar[str]
    """File name of the official submission."""
    pictures: ClassVar[int] = 1
    """Pictures of one question, where whoever asks does not say another number."""
    reads_text: ClassVar[bool] = True
    """Whether an example has a text beside its pictures."""

    def __init__(self, name: str, config: C, data_dir: Path):
        self.name = name
        self.config = config
        self.data_dir = Path(data_dir)
        self.remarks: dict[str, dict[str, int]] = {}
        """Split -> what `read` took in another form than the file has, or left out as the options say -> how often."""

    # ---- data

    @abstractmethod
    def sources(self, split: str) -> list[Path]:
        """Files `read` opens for this split (their content keys the compiled table). InputError if one is missing."""

    @abstractmethod
    def read(self, split: str) -> Iterator[Example]:
        """Examples of a split from its official files. InputError (file:line) if they are malformed."""

    def resolve(self, path: str | Path) -> Path:
        """A path of the configuration, relative ones starting at ``data_dir``."""
        path = Path(path).expanduser()
        return path if path.is_absolute() else self.data_dir / path

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """The files that paths of the configuration stand for, in this order.

        A path is a file; a folder, which stands for every file in it (hidden ones aside); or a pattern such as
        ``gqa/train_all_questions_*.json``. The files of a folder or pattern come sorted by name. A path that stands for
        nothing is passed over here; `existing` tells it.
        """
        return [file for path in paths for file in self._stands_for(path)]

    def existing(self, paths: Mapping[str, Sequence[Path]]) -> list[Path]:
        """`files` of all paths, given by their key under ``tasks.<name>`` (``splits.train.questions``).

        Raises:
            InputError: naming every path that stands for no file, and every folder that holds folders.
        """
        problems = []
        for key, path in ((key, path) for key, some in paths.items() for path in some):
            resolved = self.resolve(path)
            if resolved.is_dir() and (inner := [one.name for one in sorted(resolved.iterdir()) if one.is_dir()]):
                problems.append(
                    f"tasks.{self.name}.{key}: the folder {resolved} holds folders (first: {inner[0]}), which are not "
                    f"searched; name the files, or give a pattern such as {path}/*/*.json"
                )
            elif not self._stands_for(path):
                what = "holds no file" if resolved.is_dir() else "is not there, nor does it match as a pattern"
                problems.append(
                    f"tasks.{self.name}.{key}: there is no file {resolved}"
                    + (f" ({what})" if resolved.is_dir() or glob.has_magic(str(path)) else "")
                    + f"; set it, or data_dir (now {self.data_dir}), to where the download lies"
                )
        if problems:
            raise InputError(problems)
        return self.files([path for some in paths.values() for path in some])

    def _stands_for(self, path: Path) -> list[Path]:
        resolved = self.resolve(path)
        if resolved.is_dir():
            return sorted(one for one in resolved.iterdir() if one.is_file() and not one.name.startswith("."))
        if resolved.is_file():
            return [resolved]
        pattern = str(Path(path).expanduser())
        found = glob.glob(pattern, root_dir=self.data_dir, recursive=True) if glob.has_magic(pattern) else []
        return sorted(self.data_dir / one for one in found if (self.data_dir / one).is_file())

    def collected(self, split: str) -> Problems:
        """Where `read` collects the problems and remarks of a split."""
        self.remarks[split] = {}
        return Problems(self.where(split), self.remarks[split])

    def where(self, split: str) -> str:
        """Dotted path of a split in the configuration, for messages.

        Raises:
            InputError: the task has no such split.
        """
        if split not in self.config.splits:
            raise InputError(f"tasks.{self.name}.splits: there is no '{split}' among {sorted(self.config.splits)}")
        return f"tasks.{self.name}.splits.{split}"

    def reading_options(self, split: str) -> dict[str, Any]:
        """What, beside the files' content, decides what `read` yields; it keys the compiled table. JSON-able.

        Here: the split's own keys and those that the task's file adds to `TaskConfig`.
        """
        every = self.config.model_dump(mode="json")
        own = {key: value for key, value in every.items() if key not in TaskConfig.model_fields}
        return {**own, "split": split, "splits": every["splits"][split]}

    # ---- training

    def target(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> tuple[str, float]:
        """Text to learn and its weight for one visit: an answer drawn by its soft score (VL-Adapter section 8.4)."""
        total = float(sum(scores))
        if not answers or total <= 0:
            return "", 0.0
        drawn = int(rng.choice(len(answers), p=np.asarray(scores, dtype=np.float64) / total))
        return answers[drawn], float(scores[drawn])

    def targets(
        self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator
    ) -> list[tuple[str, float, float]]:
        """All that an example learns on one visit: texts, their weights, and the share of the example that each is.

        Shares add up to 1. Here: the one `target`. A task that gives several takes ``shares`` in `reduce`.
        """
        return [(*self.target(answers, scores, rng), 1.0)]

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a batch as a fraction, so that shards and micro-batches add up.

        Args:
            token_loss: cross-entropy of each target token [B, T], 0 where not valid.
            valid: which positions are targets [B, T], bool.
            weights: weight of each drawn target [B].

        Returns:
            numerator and denominator, both scalars; the loss is sum of numerators / sum of denominators. Here: the mean
            over rows of the mean over a row's tokens (GQA and NLVR2, VL-Adapter section 8.5).
        """
        rows = token_loss.sum(1) / valid.sum(1).clamp(min=1)
        return rows.sum(), token_loss.new_tensor(float(len(rows)))

    # ---- evaluation

    @property
    def decoding(self) -> DecodingConfig:
        """How predictions are made."""
        return self.config.decoding

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        """Score predictions (id -> text) of a split; ids must be exactly those of ``examples`` (InputError otherwise).

        A split that hides its answers raises HiddenAnswers: it is predicted and its submission written all the same.

        ``options`` are the keys of `EvaluationConfig` that scoring may use (``caption_tokenizer``).
        """

    def kinds(self, meta: Mapping[str, Any]) -> dict[str, str]:
        """Breakdown -> kind of an example with this ``meta``, by the names of `Scores.groups`; it goes beside its
        prediction, so that a report can tell how sure the score of a kind is. Here: none."""
        return {}

    def check_scoring(self, **options: Any) -> list[str]:
        """Remarks on what `score` cannot compute on this machine, told before hours of training.

        Raises:
            InputError: it cannot compute the headline.
        """
        return []

    def ordered(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> list[str]:
        """Predictions in the order of ``examples``, for `score`.

        Raises:
            InputError: ids are missing or too many; there are no examples.
        """
        if not examples:
            raise InputError(f"tasks.{self.name}: there are no examples to score")
        check_ids([example.id for example in examples], predictions, f"tasks.{self.name}")
        return [predictions[example.id] for example in examples]

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        """Score an official results file against an official annotation file; JSON-able, on the 0-100 scale."""
        raise InputError(f"{cls.__name__} does not score official files")

    @abstractmethod
    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        """Write the file that the task's official server takes."""

    @classmethod
    def official_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        """Ids that official question files want answered, each of the type it has there; see `submissions.ids_of`.

        ``options`` are those of ``python -m multitask_vl.evaluation.submission`` (``subset``).
        """
        raise InputError(f"{cls.__name__} does not check submissions")

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        """Raise InputError with every kind of defect of a file that `submission` wrote; see `submissions`.

        A task without this method has its submissions written unchecked.

        Args:
            ids: of all that must be answered, as official files write them; a run, which knows ids as text, gives
                `files.official_id` of them.
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
