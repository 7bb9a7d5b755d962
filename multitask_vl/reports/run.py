"""Reading run folders: configuration, learning curves, scores and predictions, validated."""

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
ADAPTER_CONFIG = "adapter/adapter_config.json"


class FileModel(BaseModel):
    """Base of models of a run's files; keys that the reports do not use are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class MetricInterval(FileModel):
    """Confidence interval of a metric, 0-100: its ends, its level in percent, and what was resampled."""

    interval: tuple[float, float]
    level: float = 95
    unit: str


class TaskScores(FileModel):
    """Scores of one task on one split, 0-100. A score of None was not computed; `notes` has the reason.

    Intervals are optional.
    """

    primary_metric: str
    value: float | None
    metrics: dict[str, float | None] = {}
    intervals: dict[str, MetricInterval] = {}
    groups: dict[str, dict[str, float | None]] = {}
    notes: dict[str, str] = {}
    version: int = 1
    count: int


class SplitScores(FileModel):
    """Scores of all tasks on one split and the mean of their primary metrics."""

    tasks: dict[str, TaskScores]
    average: float | None


class Parameters(FileModel):
    """Numbers of parameters of the adapted model."""

    trainable: int
    total: int


class ScoresFile(FileModel):
    """Content of scores.json: final scores by split and task. An adapter that was evaluated alone has no `step`."""

    step: int | None = None
    splits: dict[str, SplitScores]
    parameters: Parameters


class Components(FileModel):
    """Numbers of parameters by component."""

    components: dict[str, dict[str, int]] = {}


class AdapterRecord(FileModel):
    """Content of adapter_config.json that the reports use."""

    parameters: Components = Components()


class TrainingRow(FileModel):
    """A training line of metrics.jsonl.

    `wall_s` is the time of this step in seconds; `time` holds means over the steps since the last line.
    """

    step: int
    task: str
    loss: float
    wall_s: float | None = None
    time: dict[str, float] = {}


class EvaluationRow(FileModel):
    """An evaluation line of metrics.jsonl: primary metric of each task, 0-100."""

    step: int
    split: str
    scores: dict[str, float | None]


class Prediction(FileModel):
    """Prediction for one example, with its references and score (0-100; captions may exceed 100).

    `groups` maps each breakdown of the task to the group of this example; it is optional.
    """

    id: str
    images: list[str]
    text: str
    prediction: str
    references: list[str]
    groups: dict[str, str] = {}
    score: float = 0.0


@dataclass(frozen=True)
class Run:
    """The content of a run folder.

    Attributes:
        folder: path of the folder.
        resolved: text of resolved.yaml, including the comments with the origin of each value.
        config: content of resolved.yaml.
        scores: content of scores.json.
        training, evaluations: lines of metrics.jsonl, in file order.
        record: content of record.json (hardware, times, training mixture); empty if the file is missing.
        components: component -> {"trainable", "total"} of the saved adapter; empty if there is none.
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
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def splits(self) -> list[str]:
        """Splits to report: the scored ones of `evaluation.final_splits`, or all scored ones if there are none."""
        final = [split for split in self.setting("evaluation.final_splits", []) if split in self.scores.splits]
        return final or list(self.scores.splits)

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.scores.step or max((row.step for row in self.training), default=0)

    def tasks(self, split: str) -> list[str]:
        """Tasks scored on a split, in the order of the configuration."""
        scored = self.scores.splits[split].tasks
        order = [task for task in self.setting("tasks", {}) if task in scored]
        return order + [task for task in scored if task not in order]

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key; ``default`` if it is missing or null."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def is_control(self) -> bool:
        """Whether the run is a shuffled-image control."""
        return self.setting("features.shuffle_images", False)

    def predictions(self, task: str, split: str) -> list[Prediction]:
        """Predictions of a task on a split with their scores, in file order.

        Raises:
            InputError: a file is missing or malformed, or the example ids of the two files differ.
        """
        path = self.folder / "predictions" / task / f"{split}.jsonl"
        scores_path = path.with_name(f"{split}.per_example.json")
        fix = evaluate_command(self.folder)
        problems: list[str] = []
        rows = _read(path, lambda text: _parse_lines(text, TypeAdapter(Prediction).validate_json), fix, problems)
        scores = _read(scores_path, TypeAdapter(dict[str, float]).validate_json, fix, problems)
        if rows is None or scores is None:
            raise InputError(problems)
        counts = Counter(row.id for row in rows)
        repeated = [id_ for id_, count in counts.items() if count > 1]
        if repeated:
            raise InputError(f"{path}: {len(repeated)} ids are repeated (first: {repeated[0]}). Run: {fix}")
        unmatched = sorted(counts.keys() ^ scores.keys())
        if unmatched:
            raise InputError(
                f"{path} and {scores_path.name} have different examples: {len(unmatched)} ids are in only one of them "
                f"(first: {unmatched[0]}). Run: {fix}"
            )
        return [row.model_copy(update={"score": scores[row.id]}) for row in rows]


def read_run(folder: Path | str) -> Run:
    """Read a run folder.

    Raises:
        InputError: files are missing or malformed; lists all of them, each with the command that creates it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: run folder not found. Run: {_train_command(folder)}")
    train, evaluate = _train_command(folder), evaluate_command(folder)
    problems: list[str] = []
    resolved = _read(folder / "resolved.yaml", _parse_mapping, train, problems)
    rows = _read(folder / "metrics.jsonl", lambda text: _parse_lines(text, _metrics_row), train, problems)
    scores = _read(folder / "scores.json", TypeAdapter(ScoresFile).validate_json, evaluate, problems)
    if scores is not None and not any(split.tasks for split in scores.splits.values()):
        problems.append(f"{folder / 'scores.json'}: it has no scored task. Run: {evaluate}")
    record, adapter = {}, AdapterRecord()
    if (folder / "record.json").exists():
        parse = TypeAdapter(dict[str, Any]).validate_json
        record = _read(folder / "record.json", parse, f"rm {folder / 'record.json'}", problems) or {}
    if (folder / ADAPTER_CONFIG).exists():
        adapter = _read(folder / ADAPTER_CONFIG, AdapterRecord.model_validate_json, train, problems) or adapter
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
        components=adapter.parameters.components,
    )


def _train_command(folder: Path) -> str:
    return f"accelerate launch launch/train_multitask.py --config CONFIG.yaml run_dir={folder}"


def evaluate_command(folder: Path) -> str:
    """The command that recreates the scores and predictions of a run."""
    remove = f"rm {folder}/scores.json && " if (folder / "scores.json").exists() else ""
    return f"{remove}multitask-vl evaluate --config {folder}/resolved.yaml --adapter {folder}/adapter --out {folder}"


def _read(path: Path, parse: Callable[[str], T], fix: str, problems: list[str]) -> T | None:
    """Content of a file. On failure, None, and a message with the command ``fix`` is appended to ``problems``."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path} is missing. Run: {fix}")
    except _LineError as error:
        problems.append(f"{path}:{error}. Run: {fix}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, ValueError) as error:
        problems.append(f"{path}: {_first_problem(error)}. Run: {fix}")
    return None


class _LineError(Exception):
    """A malformed line of a JSON Lines file; the message starts with its number."""


def _parse_lines(text: str, parse: Callable[[str], T]) -> list[T]:
    values = []
    # JSON strings may contain U+2028 and U+0085 unescaped, at which splitlines() would split.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(parse(line))
            except ValidationError as error:
                raise _LineError(f"{number}: {_first_problem(error)}") from error
    return values


def _metrics_row(line: str) -> TrainingRow | EvaluationRow | None:
    """A line of metrics.jsonl; None for other kinds of lines."""
    row = TypeAdapter(dict[str, Any]).validate_json(line)
    if "scores" in row:
        return EvaluationRow.model_validate(row)
    return TrainingRow.model_validate(row) if "loss" in row else None


def _parse_mapping(text: str) -> tuple[str, dict[str, Any]]:
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise ValueError("not a mapping of settings")
    return text, value


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        more = f" ({error.error_count()} problems in total)" if error.error_count() > 1 else ""
        return f"{location}: {first['msg']}{more}" if location else f"{first['msg']}{more}"
    return " ".join(str(error).split())
