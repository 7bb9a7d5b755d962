"""Shared-KV attention: the beams of an example attend to one copy of its encoder's keys and values.

Transformers repeats an example's encoder output for each beam. Here the keys and values of cross-attention have one row
per example, and the queries of its beams are concatenated on the query axis, which may have any length since in
cross-attention every query sees the same positions. Registered with transformers' public attention and mask interfaces.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BASE_IMPL = "sdpa"
"""Attention implementation for which sharing is supported; others generate without it."""
SHARED_KV_IMPL = "sdpa_shared_kv"
"""Name under which `shared_kv_sdpa` is registered."""


def shared_kv_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Transformers' ``sdpa``, where K rows of ``query`` may share one row of ``key`` and ``value``.

    Args:
        query: [B * K, H, T, D], the K rows of an example adjacent.
        key, value: [B, H, S, D].
        attention_mask: [B, 1, T, S] or None. With K > 1 it must not depend on T.

    Returns:
        [B * K, T, H, D], and None.
    """
    rows, length = len(key), query.shape[2]
    repeats = len(query) // rows
    if repeats == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    folded = query.unflatten(0, (rows, repeats)).transpose(1, 2).flatten(2, 3)
    mask = attention_mask if attention_mask is None else attention_mask[:, :, :1]
    if kwargs.get("position_bias") is not None:
        # T5's bias, which is zero in cross-attention but has T rows
        kwargs["position_bias"] = kwargs["position_bias"][:, :, :1]
    attended, weights = sdpa_attention_forward(module, folded, key, value, mask, **kwargs | {"is_causal": False})
    return attended.unflatten(1, (repeats, length)).flatten(0, 1), weights


AttentionInterface.register(SHARED_KV_IMPL, shared_kv_sdpa)
AttentionMaskInterface.register(SHARED_KV_IMPL, sdpa_mask)
