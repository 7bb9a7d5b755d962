"""How good is it: predict splits, write the predictions, score the files, write scores and submissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from multitask_vl.tasks.base import HiddenAnswers, Scores
from multitask_vl.tasks.readers.json_stream import write_json


def evaluate(
    model: VLSeq2Seq,
    splits: Mapping[str, list[Collator]],
    folder: Path,
    config: EvaluationConfig,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> dict[str, dict]:
    """Predict and score splits; files go under ``folder``.

    All splits are predicted first, by all processes; then the main process scores, while the others wait for it.

    Args:
        splits: split -> collators of its tasks.
        folder: gets ``predictions/<task>/<split>.jsonl``, ``...per_example.json`` and ``submission/``.
        say: told each result as it comes.

    Returns:
        split -> {"tasks": {task: ...}, "average": mean of the headline scores}, on the main process; elsewhere empty.
        The value of a task whose split hides its answers is None, and then so is the average.
    """
    predictions = {}
    for split, collators in splits.items():
        for collator in collators:
            found = predict(model, collator, config.batch_size, accelerator, config.bf16_weights)
            predictions[split, collator.task.name] = found
            if accelerator.is_main_process:
                write_predictions(_file(folder, collator, split), collator, found)

    def score() -> dict[str, dict]:
        results = {}
        for split, collators in splits.items():
            scored = {
                collator.task.name: _score(collator, split, predictions[split, collator.task.name], folder, config)
                for collator in collators
            }
            if scored:
                results[split] = _result(split, scored, say)
        return results

    # everything was predicted and gathered before: a scorer may take minutes, during which nothing must be exchanged
    return on_main_process(accelerator, score) or {}


def _result(split: str, scored: dict[str, dict], say: Callable[[str], None]) -> dict:
    values = [entry["value"] for entry in scored.values()]
    average = None if None in values else sum(values) / len(values)
    told = {task: entry["value"] for task, entry in scored.items()} | {"average": average}
    say(f"{split}: {', '.join(f'{name} {_one_decimal(value)}' for name, value in told.items())}")
    for task, entry in scored.items():
        if "submission" in entry["notes"]:
            say(f"{split}, {task}: submission {entry['notes']['submission']}")
    return {"tasks": scored, "average": average}


def _file(folder: Path, collator: Collator, split: str) -> Path:
    return folder / "predictions" / collator.task.name / f"{split}.jsonl"


def _one_decimal(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.1f}"


def _score(collator: Collator, split: str, predictions: dict[str, str], folder: Path, config: EvaluationConfig) -> dict:
    task = collator.task
    path = _file(folder, collator, split)
    rows = collator.table.to_list()
    # the scores of hours of training are not to be lost over a file that can be written again
    defects = write_submission(task, predictions, folder / "submission" / split / task.submission_name)
    examples = [example_from_row(row) for row in rows]
    try:
        scores = score_predictions(task, examples, path, caption_tokenizer=config.caption_tokenizer)
        if scores.metrics[scores.headline] is None:
            why = scores.notes.get(scores.headline, "")
            raise InputError(f"tasks.{task.name}: {scores.headline} could not be computed: {why}")
    except HiddenAnswers as error:
        scores = Scores(task.headline, {task.headline: None}, notes={task.headline: str(error)}, version=task.version)
    write_json(path.with_suffix(".per_example.json"), scores.per_example)
    notes = scores.notes | ({"submission": f"not valid: {'; '.join(defects)}"} if defects else {})
    intervals = {name: one.as_json() for name, one in scores.intervals.items()}
    return {
        "headline": scores.headline,
        "value": scores.metrics[scores.headline],
        "interval": intervals[scores.headline]["interval"] if scores.headline in intervals else None,
        "metrics": scores.metrics,
        "intervals": intervals,
        "groups": scores.groups,
        "notes": notes,
        "version": scores.version,
        "count": len(rows),
    }
