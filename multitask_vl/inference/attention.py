"""Where did the decoder look for an answer: its cross-attention on the pictures' cells, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.context import VISUAL


@dataclass(frozen=True)
class Attention:
    """Mean cross-attention over layers, heads and the words of an answer.

    Attributes:
        cells: share of all attention that each cell of each picture gets [I, T], row by row.
        layers, heads: what the mean is over.
    """

    cells: np.ndarray
    layers: int
    heads: int

    @property
    def on_pictures(self) -> float:
        """Share of the attention in [0, 1] that falls on the pictures; the rest is on the words."""
        return float(self.cells.sum())


@torch.no_grad()
def attention(model: VLSeq2Seq, batch: Batch, answer: torch.Tensor, words: torch.Tensor) -> Attention:
    """The attention with which an answer is written, which is given to the decoder word by word.

    Args:
        model: in eval mode.
        batch: one row.
        answer: its tokens with specials [1, T].
        words: which of them are counted [T]; if none is, all are.
    """
    with _watched(model) as seen, model.context.of(batch.task):
        encoded = model.encode(batch)
        model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(answer))
    weights = torch.stack(seen)[:, 0]  # [layers, heads, T, S]
    layers, heads = weights.shape[:2]
    # position t of the decoder writes token t
    mean = weights[:, :, words if words.any() else ~words].mean((0, 1, 2))
    pictures = batch.features.shape[1] if batch.images is None else batch.images.shape[1]
    cells = mean[encoded.kinds[0] == VISUAL]
    return Attention(cells.view(pictures, -1).float().cpu().numpy(), layers, heads)


@contextmanager
def _watched(model: VLSeq2Seq) -> Iterator[list[torch.Tensor]]:
    """While this runs, the weights [B, H, T, S] of each cross-attention are appended to what it yields."""
    lm, seen = model.lm, []
    sites = [one for one in model.family.layout(lm).sites if one.sublayer == "cross_attn" and one.role == "query"]
    modules = [lm.get_submodule(site.name.rpartition(".")[0]) for site in sites]
    # the library's attentions return their weights last
    handles = [one.register_forward_hook(lambda _, args, output: seen.append(output[-1])) for one in modules]
    before = lm.config._attn_implementation
    # no other implementation has weights to show
    lm.set_attn_implementation("eager")
    try:
        yield seen
    finally:
        lm.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
