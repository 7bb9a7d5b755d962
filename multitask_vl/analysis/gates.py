"""What do VL-PET's gates let through: their mean over words and over cells, and one layer's gate number by number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from multitask_vl.data.batch import Batch
from multitask_vl.methods.sites import Site
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.context import TEXT, VISUAL

COLUMNS = 96
"""At most so many channels of a gate are kept, evenly spread."""


def gated(model: VLSeq2Seq) -> list[tuple[Site, nn.Module]]:
    """Sites with a gate, and their gates."""
    layout = model.family.layout(model.lm)
    found = [(site, getattr(layout.module(site), "gate", None)) for site in layout.sites]
    return [(site, gate) for site, gate in found if isinstance(gate, nn.Module)]


@torch.inference_mode()
def gate_means(model: VLSeq2Seq, batch: Batch) -> list[dict[str, Any]]:
    """For each gate: ``stack``, ``layer``, ``sublayer``, and its mean over ``words`` and over ``cells`` of a batch."""
    rows = []
    with model.context.of(batch.task), _noted(gated(model)) as seen:
        kinds = model.encode(batch).kinds
    for site, values in seen:
        # [B, T, d], [B, T, 1], [B, 1, 1] or [d]: each position's mean over channels, the same for all where it is one
        means = values.float().mean(-1)
        means = means.expand(kinds.shape[0], -1) if means.dim() > 1 else means.reshape(1, 1)
        means = means.expand(*kinds.shape[:1], kinds.shape[1]) if means.shape[-1] == 1 else means
        about = {"stack": site.stack, "layer": site.layer, "sublayer": site.sublayer}
        places = {"words": kinds[:, : means.shape[1]] == TEXT, "cells": kinds[:, : means.shape[1]] == VISUAL}
        rows.append({**about, **{name: means[where].mean().item() for name, where in places.items()}})
    return rows


@torch.inference_mode()
def gate_map(model: VLSeq2Seq, tokenizer, batch: Batch, row: int = 0) -> dict[str, Any] | None:
    """The first gate of the encoder, number by number, for one row of a batch; None where nothing is gated.

    Returns:
        ``stack``, ``layer``, ``sublayer``; ``positions``, a name for each; ``channels``, which are kept; ``values``
        [positions][channels]. A gate that is the same for all positions or channels has one row or column.
    """
    with model.context.of(batch.task), _noted(gated(model)[:1]) as seen:
        kinds = model.encode(batch).kinds[row]
    if not seen:
        return None
    site, values = seen[0]
    values = (values[row] if values.dim() > 1 else values.unsqueeze(0)).float().cpu()
    names = ["all positions"]
    if len(values) > 1:
        kept = ((kinds == TEXT) | (kinds == VISUAL))[: len(values)].cpu()
        prompts = int((kinds != TEXT).long().argmin())
        words = tokenizer.convert_ids_to_tokens(batch.input_ids[row].tolist())
        cells, names = int((kinds == VISUAL).sum()) // batch.pictures, []
        for place in kept.nonzero().flatten().tolist():
            if kinds[place] == TEXT:
                names.append(words[place - prompts].strip("Ġ▁") or "(blank)")
            else:
                picture, cell = divmod(int((kinds[:place] == VISUAL).sum()), cells)
                names.append(f"cell {cell}" if batch.pictures == 1 else f"picture {picture + 1}, cell {cell}")
        values = values[kept]
    channels = torch.linspace(0, values.shape[1] - 1, min(COLUMNS, values.shape[1])).round().long()
    return {
        "stack": site.stack,
        "layer": site.layer,
        "sublayer": site.sublayer,
        "positions": names,
        "channels": channels.tolist(),
        "values": [[round(v, 4) for v in line] for line in values[:, channels].tolist()],
    }


@contextmanager
def _noted(gates: list[tuple[Site, nn.Module]]) -> Iterator[list[tuple[Site, torch.Tensor]]]:
    """What gates put out while the body runs."""
    seen: list[tuple[Site, torch.Tensor]] = []
    handles = [
        gate.register_forward_hook(lambda _, __, out, site=site: seen.append((site, out.detach())))
        for site, gate in gates
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
