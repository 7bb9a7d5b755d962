"""What does a run folder say: configuration, learning curves, scores and predictions, checked as they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from multitask_vl.errors import InputError

T = TypeVar("T")
ADAPTER = "adapter/adapter_config.json"


class Record(BaseModel):
    """A part of a run's files. Keys that the reports do not use are left alone, so that runs may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class IntervalOf(Record):
    """The confidence interval of a metric, 0-100: of which level in percent, and what was resampled for it."""

    interval: tuple[float, float]
    level: float = 95
    resampled: str


class TaskScores(Record):
    """Scores of one task on one split, 0-100. A value of None was not computed; `notes` says why.

    Runs of older versions have no intervals.
    """

    headline: str
    value: float | None
    metrics: dict[str, float | None] = {}
    intervals: dict[str, IntervalOf] = {}
    groups: dict[str, dict[str, float | None]] = {}
    notes: dict[str, str] = {}
    version: int = 1
    count: int


class SplitScores(Record):
    """Scores of all tasks on one split and the mean of their headline metrics."""

    tasks: dict[str, TaskScores]
    average: float | None


class Parameters(Record):
    """Numbers of parameters of the wrapped model."""

    trainable: int
    total: int


class ScoresFile(Record):
    """Content of scores.json: final scores, by split and task; `step` is absent where an adapter was scored alone."""

    step: int | None = None
    splits: dict[str, SplitScores]
    parameters: Parameters


class Components(Record):
    """Parameters by component."""

    components: dict[str, dict[str, int]] = {}


class Saved(Record):
    """What an adapter's own record says of its parameters."""

    parameters: Components = Components()


class TrainingRow(Record):
    """One line of metrics.jsonl about a training step; `wall_s` is the time that this step took, `time` means over the
    steps since the last line."""

    step: int
    task: str
    loss: float
    wall_s: float | None = None
    time: dict[str, float] = {}


class EvaluationRow(Record):
    """One line of metrics.jsonl about an evaluation on the way: headline score of each task, 0-100."""

    step: int
    split: str
    scores: dict[str, float | None]


class Prediction(Record):
    """What the model wrote for one example, beside what people wrote, and its score (0-100; captions may exceed it).

    `kinds` says of which kind it is in each breakdown of its task; runs of older versions have none.
    """

    id: str
    images: list[str]
    text: str
    prediction: str
    references: list[str]
    kinds: dict[str, str] = {}
    score: float = 0.0


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        folder: where it lies.
        resolved: text of resolved.yaml, comments (origins of the values) included.
        config: the same, parsed.
        scores: content of scores.json.
        training, evaluations: lines of metrics.jsonl, in file order.
        record: content of record.json (machine, times, what was trained on); empty where a run left none.
        components: component -> its trainable and all parameters, as the saved adapter says; empty where none is there.
    """

    folder: Path
    resolved: str
    config: dict[str, Any]
    scores: ScoresFile
    training: list[TrainingRow]
    evaluations: list[EvaluationRow]
    record: dict[str, Any] = field(default_factory=dict)
    components: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def splits(self) -> list[str]:
        """Splits to report: those of `evaluation.final` that have scores, or all that have where none of them does."""
        final = [split for split in self.setting("evaluation.final", []) if split in self.scores.splits]
        return final or list(self.scores.splits)

    @property
    def steps(self) -> int:
        """Steps trained."""
        return self.scores.step or max((row.step for row in self.training), default=0)

    def tasks(self, split: str) -> list[str]:
        """Tasks scored on a split, in the order of the configuration."""
        scored = self.scores.splits[split].tasks
        order = [task for task in self.setting("tasks", {}) if task in scored]
        return order + [task for task in scored if task not in order]

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted path; ``default`` where it is absent or null."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def is_control(self) -> bool:
        """Whether the run saw the features of other pictures than the examples' own."""
        return self.setting("features.control", "none") != "none"

    def predictions(self, task: str, split: str) -> list[Prediction]:
        """Predictions of a task on a split with the score of each, in file order.

        Raises:
            InputError: a file is missing or malformed, or the two files are not about the same examples.
        """
        path = self.folder / "predictions" / task / f"{split}.jsonl"
        scores_path = path.with_name(f"{split}.per_example.json")
        mend = evaluate_command(self.folder)
        problems: list[str] = []
        rows = _read(path, lambda text: _lines(text, TypeAdapter(Prediction).validate_json), mend, problems)
        scores = _read(scores_path, TypeAdapter(dict[str, float]).validate_json, mend, problems)
        if rows is None or scores is None:
            raise InputError(problems)
        ids = Counter(row.id for row in rows)
        twice = [id for id, times in ids.items() if times > 1]
        if twice:
            raise InputError(f"{path}: {len(twice)} ids stand in it more than once (first: {twice[0]}). Run: {mend}")
        unmatched = sorted(ids.keys() ^ scores.keys())
        if unmatched:
            raise InputError(
                f"{path} and {scores_path.name} are not about the same examples: {len(unmatched)} ids are in only "
                f"one of them (first: {unmatched[0]}). Run: {mend}"
            )
        return [row.model_copy(update={"score": scores[row.id]}) for row in rows]


def read_run(folder: Path | str) -> Run:
    """Read a run folder.

    Raises:
        InputError: naming every file that is missing or malformed, and the command that makes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such run folder. Run: {_train(folder)}")
    problems: list[str] = []
    resolved = _read(folder / "resolved.yaml", _mapping, _train(folder), problems)
    rows = _read(folder / "metrics.jsonl", lambda text: _lines(text, _metrics_row), _train(folder), problems)
    scores = _read(folder / "scores.json", TypeAdapter(ScoresFile).validate_json, evaluate_command(folder), problems)
    if scores is not None and not any(split.tasks for split in scores.splits.values()):
        problems.append(f"{folder / 'scores.json'}: no task is scored in it. Run: {evaluate_command(folder)}")
    record, saved = {}, Saved()
    if (folder / "record.json").exists():
        parse = TypeAdapter(dict[str, Any]).validate_json
        record = _read(folder / "record.json", parse, f"rm {folder / 'record.json'}", problems) or {}
    if (folder / ADAPTER).exists():
        saved = _read(folder / ADAPTER, Saved.model_validate_json, _train(folder), problems) or saved
    if problems or resolved is None or rows is None or scores is None:
        raise InputError(problems)
    return Run(
        folder=folder,
        resolved=resolved[0],
        config=resolved[1],
        scores=scores,
        training=[row for row in rows if isinstance(row, TrainingRow)],
        evaluations=[row for row in rows if isinstance(row, EvaluationRow)],
        record=record,
        components=saved.parameters.components,
    )


def _train(folder: Path) -> str:
    return f"accelerate launch launch/train_multitask.py --config CONFIG.yaml run_dir={folder}"


def evaluate_command(folder: Path) -> str:
    """The command that makes scores and predictions of a run anew."""
    again = f"rm {folder}/scores.json && " if (folder / "scores.json").exists() else ""
    return f"{again}python launch/evaluate.py --config {folder}/resolved.yaml --adapter {folder}/adapter --out {folder}"


def _read(path: Path, parse: Callable[[str], T], mend: str, problems: list[str]) -> T | None:
    """Content of a file; None, and a sentence in ``problems``, where that cannot be had."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path} is missing. Run: {mend}")
    except _BadLine as error:
        problems.append(f"{path}:{error}. Run: {mend}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, ValueError) as error:
        problems.append(f"{path}: {_first_problem(error)}. Run: {mend}")
    return None


class _BadLine(Exception):
    """A line of a JSON-lines file that cannot be used; the text starts with its number."""


def _lines(text: str, parse: Callable[[str], T]) -> list[T]:
    values = []
    # not splitlines(), for which a text holds ends of lines that JSON leaves as they are
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(parse(line))
            except ValidationError as error:
                raise _BadLine(f"{number}: {_first_problem(error)}") from error
    return values


def _metrics_row(line: str) -> TrainingRow | EvaluationRow | None:
    """A line of metrics.jsonl; None for a kind of line that the reports do not use."""
    row = TypeAdapter(dict[str, Any]).validate_json(line)
    if "scores" in row:
        return EvaluationRow.model_validate(row)
    return TrainingRow.model_validate(row) if "loss" in row else None


def _mapping(text: str) -> tuple[str, dict[str, Any]]:
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise ValueError("not a mapping of settings")
    return text, value


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" ({error.error_count()} problems in all)" if error.error_count() > 1 else ""
        return f"{place}: {first['msg']}{more}" if place else f"{first['msg']}{more}"
    return " ".join(str(error).split())
