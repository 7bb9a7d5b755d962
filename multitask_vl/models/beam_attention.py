"""How do the beams of an example attend to one copy of its encoder's keys and values?

The library repeats an example's encoder states for each beam. Here the keys and values of cross-attention have one row
an example, and the queries of its beams, one token each, stand side by side on the query axis, where the kernel takes
any number. Registered at the library's public doors for attention functions and their masks.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

KERNEL = "sdpa"
"""The attention implementation that can be shared; others generate as the library does."""
SHARED = "sdpa_shared_by_beams"
"""The name of ours."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The library's ``sdpa``, where K rows of ``query`` may share a row of ``key`` and ``value``.

    Args:
        query: [B * K, H, T, D], the K beams of an example side by side; T is 1 where K is more than 1.
        key, value: [B, H, S, D].
        attention_mask: [B, 1, T, S] or None.

    Returns:
        [B * K, T, H, D], and None.
    """
    rows, beams = len(key), len(query) // len(key)
    if beams == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if query.shape[2] != 1:
        raise ValueError(f"beams share keys for one token at a time, not for {query.shape[2]}")
    folded = query.squeeze(2).unflatten(0, (rows, beams)).transpose(1, 2)
    # several queries, but of one time: nothing among them is causal
    attended, weights = sdpa_attention_forward(
        module, folded, key, value, attention_mask, **kwargs | {"is_causal": False}
    )
    return attended.flatten(0, 1).unsqueeze(1), weights


AttentionInterface.register(SHARED, attend)
AttentionMaskInterface.register(SHARED, sdpa_mask)
