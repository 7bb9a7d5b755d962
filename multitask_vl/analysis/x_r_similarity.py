"""Do tasks send different x_R into the bottlenecks: cosines between the examples of one task and of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from multitask_vl.data.batch import Batch
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.context import PADDING, pooled


@torch.inference_mode()
def routing_states(model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
    """x_R of each row [B, d] as its decoder gets it, float32; where it has several rows, their mean.

    A model that routes nothing has none; then it is what `encoder_pooled` would give.
    """
    with model.context.of(batch.task):
        encoded = model.encode(batch)
        if not model.context.wanted:
            return pooled(encoded.states.float(), encoded.kinds, "all").squeeze(1)
        start = torch.full_like(batch.input_ids[:, :1], model.lm.config.decoder_start_token_id)
        model.decode(encoded, start)
        x_r, valid = model.context.x_r("decoder")
    if valid is None:
        return x_r.float().mean(1)
    return pooled(x_r.float(), (valid != PADDING).long(), "all").squeeze(1)


def cosines(states: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Mean cosines within and between tasks.

    Args:
        states: task -> x_R of its examples [N, d], N >= 2.

    Returns:
        ``tasks``, ``examples`` of each; ``raw`` [tasks][tasks], mean cosine of two examples, two different ones on the
        diagonal; ``centred``, the same after the mean over all tasks was taken away, since a mean that all have makes
        every cosine large.
    """
    tasks = list(states)
    middle = torch.stack([one.mean(0) for one in states.values()]).mean(0)
    return {
        "tasks": tasks,
        "examples": [len(states[task]) for task in tasks],
        "raw": _table([states[task] for task in tasks]),
        "centred": _table([states[task] - middle for task in tasks]),
    }


def _table(groups: list[torch.Tensor]) -> list[list[float]]:
    units = [F.normalize(group, dim=-1) for group in groups]
    rows = []
    for i, one in enumerate(units):
        row = []
        for j, other in enumerate(units):
            every = one @ other.T
            n = len(every)
            mean = (every.sum() - every.trace()) / (n * (n - 1)) if i == j else every.mean()
            row.append(round(mean.item(), 4))
        rows.append(row)
    return rows
