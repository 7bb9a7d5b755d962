"""Cosine similarities of x_R within and between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from multitask_vl.data.batch import Batch
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.pooling import TokenType, masked_mean


@torch.inference_mode()
def pooled_x_r(model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
    """x_R of each example as the decoder gets it, averaged over its rows.

    For a model without routing, it is the mean encoder output, as with `routing.source: encoder`.

    Returns:
        [B, d], float32.
    """
    with model.context.task_scope(batch.task):
        encoded = model.encode(batch)
        if not model.context.needs_x_r:
            return masked_mean(encoded.hidden_states.float(), encoded.token_types, "all").squeeze(1)
        start = torch.full_like(batch.input_ids[:, :1], model.lm.config.decoder_start_token_id)
        model.decode(encoded, start)
        x_r, valid = model.context.x_r("decoder")
    if valid is None:
        return x_r.float().mean(1)
    return masked_mean(x_r.float(), (valid != TokenType.PADDING).long(), "all").squeeze(1)


def cosines(x_r: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Mean cosine similarities within and between tasks.

    Args:
        x_r: task -> x_R of its examples [N, d], N >= 2.

    Returns:
        ``tasks``; ``examples``, their number by task; ``raw`` [tasks][tasks], mean cosine over pairs of different
        examples; ``centered``, the same after subtracting the mean over all tasks: a common mean makes every cosine
        large.
    """
    tasks = list(x_r)
    center = torch.stack([of_task.mean(0) for of_task in x_r.values()]).mean(0)
    return {
        "tasks": tasks,
        "examples": [len(x_r[task]) for task in tasks],
        "raw": _mean_cosines([x_r[task] for task in tasks]),
        "centered": _mean_cosines([x_r[task] - center for task in tasks]),
    }


def _mean_cosines(groups: list[torch.Tensor]) -> list[list[float]]:
    units = [F.normalize(group, dim=-1) for group in groups]
    rows = []
    for i, one in enumerate(units):
        row = []
        for j, other in enumerate(units):
            products = one @ other.T
            n = len(products)
            mean = (products.sum() - products.trace()) / (n * (n - 1)) if i == j else products.mean()
            row.append(round(mean.item(), 4))
        rows.append(row)
    return rows
