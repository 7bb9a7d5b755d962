"""What does the model say: predictions of a split, gathered over processes in the order of the split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.evaluation.candidates import candidates, choice_ids
from multitask_vl.evaluation.precision import predicting_in
from multitask_vl.models.decoding.answer_ranking import rank
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.storage.atomic import write_whole
from multitask_vl.tasks.base import Task


@torch.inference_mode()
def predict(
    model: VLSeq2Seq, collator: Collator, batch_size: int, accelerator: Accelerator, bf16_weights: bool = True
) -> dict[str, str]:
    """Predictions of every row of a split, the same on every process.

    Rows are taken in the order of their length, the longest first, so that hardly anything of a batch is padding; each
    process takes every n-th of them, so that all have the same to do, and nothing is padded, so odd sizes need no
    masking of duplicates. What is predicted does not depend on the rows of a batch: padding is masked out everywhere.
    Only rounding does (1e-6 in float32), so two answers must score the same to six digits to be exchanged.

    Args:
        model: unwrapped, in any mode; it is left in the mode it was in.
        collator: of the task's split.
        batch_size: rows a batch over all processes.
        accelerator: says which process this is.
        bf16_weights: see `EvaluationConfig`.

    Returns:
        example id -> text, in the order of the split.
    """
    was_training = model.training
    model.eval()
    local = by_length(collator)[accelerator.process_index :: accelerator.num_processes]
    size = max(1, batch_size // accelerator.num_processes)
    found: list[tuple[int, str, str]] = []
    with predicting_in(model, accelerator, bf16_weights):
        for start in range(0, len(local), size):
            batch = collator.predicting(local[start : start + size]).to(accelerator.device)
            texts = texts_of(model, collator.task, collator.tokenizer, batch)
            found += zip(batch.rows.tolist(), batch.ids, texts, strict=True)
    model.train(was_training)
    if accelerator.num_processes > 1:
        found = gather_object(found)
    return {id_: text for _, id_, text in sorted(found)}


def by_length(collator: Collator) -> np.ndarray:
    """All rows of a split [n], those with the most tokens first; equal ones in the order of the split."""
    lengths: list[int] = []
    for chunk in collator.table.iter(batch_size=4096):
        texts = [collator.task.config.prompt + text for text in chunk["text"]]
        lengths += map(len, collator.tokenizer(texts).input_ids)
    return np.argsort(-np.array(lengths, dtype=np.int64), kind="stable")


def texts_of(model: VLSeq2Seq, task: Task, tokenizer, batch: Batch) -> list[str]:
    """What the model writes for each row of a batch, decoded as the task says."""
    decoding = task.decoding
    if decoding.kind == "choice":
        chosen = model.choose(batch, choice_ids(task, tokenizer))
        return [decoding.choices[index] for index in chosen.tolist()]
    if decoding.kind == "rank":
        answers, tokens = candidates(task, tokenizer)
        return [answers[index] for index in rank(model, batch, tokens)[0].tolist()]
    return tokenizer.batch_decode(model.generate(batch, decoding), skip_special_tokens=True)


def rows_of(collator: Collator, predictions: Mapping[str, str]) -> Iterator[dict]:
    """What a reader of a prediction file wants to see of each example, in the order of the split."""
    for chunk in collator.table.iter(batch_size=1024):
        for id_, images, text, answers, meta in zip(
            *(chunk[name] for name in ("id", "images", "text", "answers", "meta")), strict=True
        ):
            yield {
                "id": id_,
                "images": images,
                "text": text,
                "prediction": predictions[id_],
                "references": answers,
                "kinds": collator.task.kinds(json.loads(meta)),
            }


def write_predictions(path: Path, collator: Collator, predictions: Mapping[str, str]) -> None:
    """Write a split's predictions as JSON lines; the file appears whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(collator, predictions)))
