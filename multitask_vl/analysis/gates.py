"""VL-PET gates: means over text and visual tokens, and one gate by position and channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from multitask_vl.data.batch import Batch
from multitask_vl.methods.sites import Site
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.pooling import TokenType

MAX_CHANNELS = 96
"""Maximum number of channels of a gate map; more are subsampled evenly."""


def gated_sites(model: VLSeq2Seq) -> list[tuple[Site, nn.Module]]:
    """Sites with a gate, and their gate modules."""
    site_index = model.backbone.sites(model.lm)
    gates = [(site, getattr(site_index.module(site), "gate", None)) for site in site_index.sites]
    return [(site, gate) for site, gate in gates if isinstance(gate, nn.Module)]


@torch.inference_mode()
def gate_means(model: VLSeq2Seq, batch: Batch) -> list[dict[str, Any]]:
    """``stack``, ``layer``, ``sublayer`` of each gate, and its means over ``text`` and ``visual`` tokens of a batch."""
    rows = []
    with model.context.task_scope(batch.task), record_outputs(gated_sites(model)) as recorded:
        token_types = model.encode(batch).token_types
    for site, values in recorded:
        # [B, T, d], [B, T, 1], [B, 1, 1] or [d] -> [B, T]: mean over channels, expanded to all positions
        means = values.float().mean(-1)
        means = means.expand(token_types.shape[0], -1) if means.dim() > 1 else means.reshape(1, 1)
        means = means.expand(*token_types.shape[:1], token_types.shape[1]) if means.shape[-1] == 1 else means
        of_positions = token_types[:, : means.shape[1]]
        rows.append(
            {
                "stack": site.stack,
                "layer": site.layer,
                "sublayer": site.sublayer,
                "text": means[of_positions == TokenType.TEXT].mean().item(),
                "visual": means[of_positions == TokenType.VISUAL].mean().item(),
            }
        )
    return rows


@torch.inference_mode()
def gate_map(model: VLSeq2Seq, tokenizer, batch: Batch, row: int = 0) -> dict[str, Any] | None:
    """The first gate of the encoder by position and channel.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        batch: examples of one task.
        row: row of the batch.

    Returns:
        ``stack``, ``layer``, ``sublayer``; ``positions``, a name for each; ``channels``, the numbers of the channels
        kept; ``values`` [positions][channels]. A gate that is equal for all positions or channels has one row or
        column. None if the model has no gate.
    """
    with model.context.task_scope(batch.task), record_outputs(gated_sites(model)[:1]) as recorded:
        token_types = model.encode(batch).token_types[row]
    if not recorded:
        return None
    site, values = recorded[0]
    values = (values[row] if values.dim() > 1 else values.unsqueeze(0)).float().cpu()
    names = ["all positions"]
    if len(values) > 1:
        kept = ((token_types == TokenType.TEXT) | (token_types == TokenType.VISUAL))[: len(values)].cpu()
        names = _position_names(tokenizer, batch, row, token_types, kept)
        values = values[kept]
    channels = torch.linspace(0, values.shape[1] - 1, min(MAX_CHANNELS, values.shape[1])).round().long()
    return {
        "stack": site.stack,
        "layer": site.layer,
        "sublayer": site.sublayer,
        "positions": names,
        "channels": channels.tolist(),
        "values": [[round(v, 4) for v in of_position] for of_position in values[:, channels].tolist()],
    }


def _position_names(tokenizer, batch: Batch, row: int, token_types: torch.Tensor, kept: torch.Tensor) -> list[str]:
    """Names of the kept positions: tokens of the text, then numbered visual tokens."""
    num_prompt_tokens = int((token_types != TokenType.TEXT).long().argmin())
    tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[row].tolist())
    tokens_per_image = int((token_types == TokenType.VISUAL).sum()) // batch.images_per_row
    names = []
    for position in kept.nonzero().flatten().tolist():
        if token_types[position] == TokenType.TEXT:
            names.append(tokens[position - num_prompt_tokens].strip("Ġ▁") or "(blank)")
        else:
            image, number = divmod(int((token_types[:position] == TokenType.VISUAL).sum()), tokens_per_image)
            names.append(f"visual {number}" if batch.images_per_row == 1 else f"image {image + 1}, visual {number}")
    return names


@contextmanager
def record_outputs(gates: list[tuple[Site, nn.Module]]) -> Iterator[list[tuple[Site, torch.Tensor]]]:
    """Collect the outputs of gates within the context."""
    recorded: list[tuple[Site, torch.Tensor]] = []
    handles = [
        gate.register_forward_hook(lambda _, __, out, site=site: recorded.append((site, out.detach())))
        for site, gate in gates
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
