"""Mean cross-attention of an answer on the visual tokens of its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.attention_maps import cross_attention_modules, eager_attention, record_attention
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.pooling import TokenType


@dataclass(frozen=True)
class AttentionMap:
    """Cross-attention averaged over the layers, heads and tokens of one answer.

    Attributes:
        weights: share of the total attention on each visual token of each image [I, T]; tokens in row-major order.
        num_layers, num_heads: sizes of the dimensions that are averaged.
    """

    weights: np.ndarray
    num_layers: int
    num_heads: int

    @property
    def image_share(self) -> float:
        """Share of the attention on the images, in [0, 1]; the rest is on the text tokens."""
        return float(self.weights.sum())


@torch.no_grad()
def answer_attention(
    model: VLSeq2Seq, batch: Batch, answer_ids: torch.Tensor, token_mask: torch.Tensor
) -> AttentionMap:
    """Run the decoder on an answer and return where it attends.

    Args:
        model: in eval mode.
        batch: one row.
        answer_ids: token ids of the answer, with special tokens [1, T].
        token_mask: tokens to average over, boolean [T]; if none is set, all tokens are used.
    """
    modules = cross_attention_modules(model)
    with model.context.task_scope(batch.task), eager_attention(model.lm), record_attention(modules) as recorded:
        encoded = model.encode(batch)
        model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(answer_ids))
    weights = torch.stack(recorded)[:, 0]  # [layers, heads, T, S]
    num_layers, num_heads = weights.shape[:2]
    # the decoder predicts token t at position t
    mean = weights[:, :, token_mask if token_mask.any() else ~token_mask].mean((0, 1, 2))
    visual = mean[encoded.token_types[0] == TokenType.VISUAL]
    return AttentionMap(visual.view(batch.images_per_row, -1).float().cpu().numpy(), num_layers, num_heads)
