"""How good is it: predict splits, write the predictions, score the files, write scores and submissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from multitask_vl.config.schema import EvaluationConfig
from multitask_vl.data.collate import Collator
from multitask_vl.data.examples import example_from_row
from multitask_vl.errors import InputError
from multitask_vl.evaluation.predict import predict, write_predictions
from multitask_vl.evaluation.score import score_predictions
from multitask_vl.evaluation.submission import write_submission
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.base import Scores
from multitask_vl.tasks.files import write_json


def evaluate(
    model: VLSeq2Seq,
    splits: Mapping[str, list[Collator]],
    folder: Path,
    config: EvaluationConfig,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> dict[str, dict]:
    """Predict and score splits; files go under ``folder``.

    Args:
        splits: split -> collators of its tasks.
        folder: gets ``predictions/<task>/<split>.jsonl``, ``...per_example.json`` and ``submission/``.
        say: told each result as it comes.

    Returns:
        split -> {"tasks": {task: ...}, "average": mean of the headline scores}, on the main process; elsewhere empty.
    """
    results = {}
    for split, collators in splits.items():
        scored = {}
        for collator in collators:
            predictions = predict(model, collator, config.batch_size, accelerator)
            if accelerator.is_main_process:
                scored[collator.task.name] = _score(collator, split, predictions, folder, config)
        accelerator.wait_for_everyone()
        if scored:
            values = [entry["value"] for entry in scored.values()]
            results[split] = {"tasks": scored, "average": sum(values) / len(values)}
            table = ", ".join(f"{task} {entry['value']:.1f}" for task, entry in scored.items())
            say(f"{split}: {table}, average {results[split]['average']:.1f}")
            for task, entry in scored.items():
                if "submission" in entry["notes"]:
                    say(f"{split}, {task}: submission {entry['notes']['submission']}")
    return results


def _score(collator: Collator, split: str, predictions: dict[str, str], folder: Path, config: EvaluationConfig) -> dict:
    task = collator.task
    path = folder / "predictions" / task.name / f"{split}.jsonl"
    write_predictions(path, collator, predictions)
    rows = collator.table.to_list()
    scores: Scores = score_predictions(
        task, [example_from_row(row) for row in rows], path, caption_tokenizer=config.caption_tokenizer
    )
    write_json(path.with_suffix(".per_example.json"), scores.per_example)
    # the scores of hours of training are not to be lost over a file that can be written again
    defects = write_submission(task, predictions, folder / "submission" / split / task.submission_name)
    notes = scores.notes | ({"submission": f"not valid: {'; '.join(defects)}"} if defects else {})
    value = scores.metrics[scores.headline]
    intervals = {name: one.as_json() for name, one in scores.intervals.items()}
    if value is None:
        raise InputError(
            f"tasks.{task.name}: {scores.headline} could not be computed: {scores.notes.get(scores.headline, '')}"
        )
    return {
        "headline": scores.headline,
        "value": value,
        "interval": intervals[scores.headline]["interval"] if scores.headline in intervals else None,
        "metrics": scores.metrics,
        "intervals": intervals,
        "groups": scores.groups,
        "notes": notes,
        "version": scores.version,
        "count": len(rows),
    }
