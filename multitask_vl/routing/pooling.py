"""Token types of encoder positions, and the masked mean over them."""

from __future__ import annotations

from enum import IntEnum

import torch


class TokenType(IntEnum):
    """Types of encoder positions, as stored in the joint mask [B, S]. Attention only sees zero or not zero."""

    PADDING = 0
    TEXT = 1
    VISUAL = 2
    PROMPT = 3


def masked_mean(hidden_states: torch.Tensor, token_types: torch.Tensor, tokens: str) -> torch.Tensor:
    """Mean [B, 1, d] over the positions selected by ``tokens``.

    Args:
        hidden_states: [B, S, d].
        token_types: `TokenType` of every position [B, S].
        tokens: ``all`` valid positions, ``visual`` or ``text``.
    """
    selected = {
        "all": token_types != TokenType.PADDING,
        "visual": token_types == TokenType.VISUAL,
        "text": token_types == TokenType.TEXT,
    }[tokens]
    weights = selected.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
