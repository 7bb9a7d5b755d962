"""Predictions of a split, gathered over ranks in the order of the split."""

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
from multitask_vl.evaluation.candidates import choice_token_ids, tokenize_candidates
from multitask_vl.evaluation.precision import inference_precision
from multitask_vl.models.decoding.answer_ranking import rank_candidates
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.tasks.base import Task


@torch.inference_mode()
def predict(
    model: VLSeq2Seq, collator: Collator, batch_size: int, accelerator: Accelerator, cast_weights_bf16: bool = True
) -> dict[str, str]:
    """Predict every row of a split; every rank returns all predictions.

    Rows are sorted by length, longest first, so that batches have little padding. Each rank predicts every n-th row,
    which balances the work without duplicated rows. Predictions do not depend on the other rows of a batch, because
    padding is masked everywhere; only rounding does (1e-6 in float32), which matters if two answers score the same to
    six digits.

    Args:
        model: model, not wrapped by accelerate; its train or eval mode is restored.
        collator: collator of the task's split.
        batch_size: rows per batch, over all ranks.
        accelerator: gives rank, number of ranks, device and precision.
        cast_weights_bf16: see `EvaluationConfig`.

    Returns:
        example id -> text, in the order of the split.
    """
    was_training = model.training
    model.eval()
    local = longest_first(collator)[accelerator.process_index :: accelerator.num_processes]
    size = max(1, batch_size // accelerator.num_processes)
    predictions: list[tuple[int, str, str]] = []
    with inference_precision(model, accelerator, cast_weights_bf16):
        for start in range(0, len(local), size):
            batch = collator.eval_batch(local[start : start + size]).to(accelerator.device)
            texts = predict_texts(model, collator.task, collator.tokenizer, batch)
            predictions += zip(batch.rows.tolist(), batch.ids, texts, strict=True)
    model.train(was_training)
    if accelerator.num_processes > 1:
        predictions = gather_object(predictions)
    return {id_: text for _, id_, text in sorted(predictions)}


def longest_first(collator: Collator) -> np.ndarray:
    """All row numbers of a split [n], those with the most tokens first; ties keep the order of the split."""
    lengths: list[int] = []
    for chunk in collator.table.iter(batch_size=4096):
        texts = [collator.task.config.prompt + text for text in chunk["text"]]
        lengths += map(len, collator.tokenizer(texts).input_ids)
    return np.argsort(-np.array(lengths, dtype=np.int64), kind="stable")


def predict_texts(model: VLSeq2Seq, task: Task, tokenizer, batch: Batch) -> list[str]:
    """Predict a text for each row of a batch, with the decoding settings of the task."""
    decoding = task.decoding
    if decoding.mode == "classify":
        chosen = model.classify_first_token(batch, choice_token_ids(task, tokenizer))
        return [decoding.choices[index] for index in chosen.tolist()]
    if decoding.mode == "rank":
        answers, tokens = tokenize_candidates(task, tokenizer)
        return [answers[index] for index in rank_candidates(model, batch, tokens)[0].tolist()]
    return tokenizer.batch_decode(model.generate(batch, decoding), skip_special_tokens=True)


def prediction_rows(collator: Collator, predictions: Mapping[str, str]) -> Iterator[dict]:
    """Rows of a prediction file, in the order of the split."""
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
                "groups": collator.task.groups(json.loads(meta)),
            }


def write_predictions(path: Path, collator: Collator, predictions: Mapping[str, str]) -> None:
    """Write a split's predictions atomically as JSON lines."""
    atomic_write(
        path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prediction_rows(collator, predictions))
    )
