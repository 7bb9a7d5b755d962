"""What does the model say: predictions of a split, gathered over processes in the order of the split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.durable import write_whole
from multitask_vl.errors import InputError
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.base import Task


@torch.inference_mode()
def predict(model: VLSeq2Seq, collator: Collator, batch_size: int, accelerator: Accelerator) -> dict[str, str]:
    """Predictions of every row of a split, the same on every process.

    Rows are dealt to processes in turn, nothing is padded, so odd sizes need no masking of duplicates.

    Args:
        model: unwrapped, in any mode; it is left in the mode it was in.
        collator: of the task's split.
        batch_size: rows a batch over all processes.
        accelerator: says which process this is.

    Returns:
        example id -> text, in the order of the split.
    """
    was_training = model.training
    model.eval()
    local = range(accelerator.process_index, len(collator.table), accelerator.num_processes)
    size = max(1, batch_size // accelerator.num_processes)
    found: list[tuple[int, str, str]] = []
    for start in range(0, len(local), size):
        batch = collator.predicting(local[start : start + size]).to(accelerator.device)
        with accelerator.autocast():
            texts = texts_of(model, collator.task, collator.tokenizer, batch)
        found += zip(batch.rows.tolist(), batch.ids, texts, strict=True)
    model.train(was_training)
    if accelerator.num_processes > 1:
        found = gather_object(found)
    return {id_: text for _, id_, text in sorted(found)}


def texts_of(model: VLSeq2Seq, task: Task, tokenizer, batch: Batch) -> list[str]:
    """What the model writes for each row of a batch, decoded as the task says."""
    if task.decoding.kind != "choice":
        return tokenizer.batch_decode(model.generate(batch, task.decoding), skip_special_tokens=True)
    chosen = model.choose(batch, choice_ids(task, tokenizer))
    return [task.decoding.choices[index] for index in chosen.tolist()]


def choice_ids(task: Task, tokenizer) -> list[int]:
    """First token of each of a task's choices, without special tokens and leading blank.

    Raises:
        InputError: if there are fewer than two choices or two of them start with the same token.
    """
    choices = task.decoding.choices
    ids = [tokenizer(choice, add_special_tokens=False).input_ids[:1] for choice in choices]
    if len(choices) < 2 or any(not first for first in ids) or len({first[0] for first in ids}) < len(choices):
        raise InputError(
            f"tasks.{task.name}.decoding.choices: {choices} cannot be told apart by their first token {ids}; give at "
            f"least two choices that start differently, or use decoding.kind=greedy"
        )
    return [first[0] for first in ids]


def rows_of(collator: Collator, predictions: Mapping[str, str]) -> Iterator[dict]:
    """What a reader of a prediction file wants to see of each example, in the order of the split."""
    for chunk in collator.table.iter(batch_size=1024):
        for id_, images, text, answers in zip(
            chunk["id"], chunk["images"], chunk["text"], chunk["answers"], strict=True
        ):
            yield {
                "id": id_,
                "images": images,
                "text": text,
                "prediction": predictions[id_],
                "references": answers,
            }


def write_predictions(path: Path, collator: Collator, predictions: Mapping[str, str]) -> None:
    """Write a split's predictions as JSON lines; the file appears whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(collator, predictions)))
