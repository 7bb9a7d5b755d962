"""What a task is: reads official files, says what the model sees and should write, scores what it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from multitask_vl.config.schema import DecodingConfig, TaskConfig

C = TypeVar("C", bound=TaskConfig)


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a task, as read from its official files.

    Attributes:
        id: unique within its split; what predictions and submissions are keyed by (question id, identifier, image id).
        images: keys of its pictures in the feature store, in order (NLVR2: left, right).
        text: the question or statement, without prompt; empty for captions.
        answers: possible targets. Empty only where the split hides them.
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
    """

    headline: str
    metrics: dict[str, float | None]
    per_example: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    version: int = 1


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

    def __init__(self, name: str, config: C, data_dir: Path):
        self.name = name
        self.config = config
        self.data_dir = Path(data_dir)

    # ---- data

    @abstractmethod
    def sources(self, split: str) -> list[Path]:
        """Files `read` opens for this split (their content keys the compiled table). InputError if one is missing."""

    @abstractmethod
    def read(self, split: str) -> Iterator[Example]:
        """Examples of a split from its official files. InputError (file:line where JSON lines are read) if malformed."""

    def resolve(self, path: str | Path) -> Path:
        """A path of the configuration, relative ones starting at ``data_dir``."""
        path = Path(path).expanduser()
        return path if path.is_absolute() else self.data_dir / path

    # ---- training

    def target(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> tuple[str, float]:
        """Text to learn and its weight for one visit: an answer drawn by its soft score (VL-Adapter section 8.4)."""
        total = float(sum(scores))
        if not answers or total <= 0:
            return "", 0.0
        drawn = int(rng.choice(len(answers), p=np.asarray(scores, dtype=np.float64) / total))
        return answers[drawn], float(scores[drawn])

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

        ``options`` are the keys of `EvaluationConfig` that scoring may use (``caption_tokenizer``).
        """

    @abstractmethod
    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        """Write the file that the task's official server takes."""
