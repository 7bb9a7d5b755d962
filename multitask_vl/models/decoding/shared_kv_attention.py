"""How do the beams of an example attend to one copy of its encoder's keys and values?

The library repeats an example's encoder states for each beam. Here the keys and values of cross-attention have one row
an example, and the queries of its beams stand side by side on the query axis, where the kernel takes any number: in
cross-attention every query sees the same. Registered at the library's public doors for attention functions and masks.
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
        query: [B * K, H, T, D], the K rows of an example side by side.
        key, value: [B, H, S, D].
        attention_mask: [B, 1, T, S] or None. Where K is more than 1, what may be seen does not depend on the time T.

    Returns:
        [B * K, T, H, D], and None.
    """
    rows, length = len(key), query.shape[2]
    times = len(query) // rows
    if times == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    folded = query.unflatten(0, (rows, times)).transpose(1, 2).flatten(2, 3)
    mask = attention_mask if attention_mask is None else attention_mask[:, :, :1]
    if kwargs.get("position_bias") is not None:
        # T5's, which is zero in cross-attention, but has a row for each time
        kwargs["position_bias"] = kwargs["position_bias"][:, :, :1]
    attended, weights = sdpa_attention_forward(module, folded, key, value, mask, **kwargs | {"is_causal": False})
    return attended.unflatten(1, (times, length)).flatten(0, 1), weights


AttentionInterface.register(SHARED, attend)
AttentionMaskInterface.register(SHARED, sdpa_mask)
