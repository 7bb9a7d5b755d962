"""Evaluate splits: predict, write predictions, score, write scores and submissions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from multitask_vl.config.schema import EvaluationConfig
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import example_from_row
from multitask_vl.errors import InputError
from multitask_vl.evaluation.predict import predict, write_predictions
from multitask_vl.evaluation.score import score_predictions
from multitask_vl.evaluation.submission import write_submission
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.run.main_process import on_main_process
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.tasks.base import LabelsHidden, Scores


def evaluate(
    model: VLSeq2Seq,
    splits: Mapping[str, list[Collator]],
    folder: Path,
    config: EvaluationConfig,
    accelerator: Accelerator,
) -> dict[str, dict]:
    """Predict and score splits, and write the files under ``folder``.

    All ranks predict all splits first; then the main process scores while the others wait.

    Args:
        model: model to evaluate, not wrapped by accelerate.
        splits: split -> collators of its tasks.
        folder: gets ``predictions/<task>/<split>.jsonl``, ``...per_example.json`` and ``submission/``.
        config: evaluation settings.
        accelerator: distributed state of the run.

    Returns:
        split -> {"tasks": {task: ...}, "average": mean of the primary metrics} on the main process; empty on the other
        ranks. The value of a task whose split has no labels is None, and then the average is None too.

    Raises:
        InputError: a primary metric could not be computed.
    """
    predictions = {}
    for split, collators in splits.items():
        for collator in collators:
            texts = predict(model, collator, config.batch_size, accelerator, config.cast_weights_bf16)
            predictions[split, collator.task.name] = texts
            if accelerator.is_main_process:
                write_predictions(_predictions_path(folder, collator, split), collator, texts)

    def score() -> dict[str, dict]:
        results = {}
        for split, collators in splits.items():
            scored = {
                collator.task.name: _score(collator, split, predictions[split, collator.task.name], folder, config)
                for collator in collators
            }
            if scored:
                results[split] = {"tasks": scored, "average": _average(scored)}
        return results

    # a scorer may take minutes, so all collective operations are over before it starts
    return on_main_process(accelerator, score) or {}


def summary_lines(results: Mapping[str, dict]) -> list[str]:
    """Describe the results of `evaluate`: one line per split with its scores, one per submission file."""
    lines = []
    for split, result in results.items():
        values = {task: entry["value"] for task, entry in result["tasks"].items()} | {"average": result["average"]}
        lines.append(f"{split}: {', '.join(f'{name} {_one_decimal(value)}' for name, value in values.items())}")
        lines += [
            f"{split}, {task}: submission {entry['notes']['submission']}"
            for task, entry in result["tasks"].items()
            if "submission" in entry["notes"]
        ]
    return lines


def _average(scored: dict[str, dict]) -> float | None:
    values = [entry["value"] for entry in scored.values()]
    return None if None in values else sum(values) / len(values)


def _predictions_path(folder: Path, collator: Collator, split: str) -> Path:
    return folder / "predictions" / collator.task.name / f"{split}.jsonl"


def _one_decimal(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.1f}"


def _score(collator: Collator, split: str, predictions: dict[str, str], folder: Path, config: EvaluationConfig) -> dict:
    task = collator.task
    path = _predictions_path(folder, collator, split)
    rows = collator.table.to_list()
    # an invalid submission is reported in the scores and raises no error: the file can be written again
    defects = write_submission(task, predictions, folder / "submission" / split / task.submission_name)
    examples = [example_from_row(row) for row in rows]
    try:
        scores = score_predictions(task, examples, path, caption_tokenizer=config.caption_tokenizer)
        if scores.metrics[scores.primary_metric] is None:
            reason = scores.notes.get(scores.primary_metric, "")
            raise InputError(f"tasks.{task.name}: {scores.primary_metric} could not be computed: {reason}")
    except LabelsHidden as error:
        metric = task.primary_metric
        scores = Scores(metric, {metric: None}, notes={metric: str(error)}, version=task.version)
    atomic_write_json(path.with_suffix(".per_example.json"), scores.per_example)
    notes = scores.notes | ({"submission": f"not valid: {'; '.join(defects)}"} if defects else {})
    intervals = {name: interval.as_json() for name, interval in scores.intervals.items()}
    return {
        "primary_metric": scores.primary_metric,
        "value": scores.metrics[scores.primary_metric],
        "interval": intervals[scores.primary_metric]["interval"] if scores.primary_metric in intervals else None,
        "metrics": scores.metrics,
        "intervals": intervals,
        "groups": scores.groups,
        "notes": notes,
        "version": scores.version,
        "count": len(rows),
    }
