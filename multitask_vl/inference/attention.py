"""Where did the decoder look for an answer: its cross-attention on the pictures' cells, averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.attention_maps import cross_attentions, eager, recorded
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
    with model.context.of(batch.task), eager(model.lm), recorded(cross_attentions(model)) as seen:
        encoded = model.encode(batch)
        model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(answer))
    weights = torch.stack(seen)[:, 0]  # [layers, heads, T, S]
    layers, heads = weights.shape[:2]
    # position t of the decoder writes token t
    mean = weights[:, :, words if words.any() else ~words].mean((0, 1, 2))
    cells = mean[encoded.kinds[0] == VISUAL]
    return Attention(cells.view(batch.pictures, -1).float().cpu().numpy(), layers, heads)
