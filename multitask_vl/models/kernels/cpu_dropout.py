"""How are units dropped on a CPU: with masks cut from cheap random integers, where torch draws them one by one."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LEVELS = 2**16
"""A mask compares 16 random bits with a threshold, so a rate is met to within 1 / 131,072."""
AT_ONCE = 2**18
"""Units of a mask made together: their random bits, half a megabyte, stay in a core's cache."""


class CpuDropout(TorchFunctionMode):
    """While it is entered, `F.dropout` and dropout of attention on the CPU take their masks from `kept`.

    Everything that calls these functions is reached, the library's layers and `torch.nn.Dropout` included; on other
    devices, and without dropout, torch's own run. A mask depends on the state of torch's generator alone, which each
    one moves on by one number: the same seed gives the same masks with any number of threads, and a recomputed layer
    whose generator was put back gets its masks again.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.dropout:
            return _dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Nested(AbstractContextManager):
    """Several contexts, one inside the other; may be entered more than once if each of them may."""

    def __init__(self, *contexts: AbstractContextManager):
        self.contexts = contexts

    def __enter__(self) -> None:
        self.entered = ExitStack()
        for context in self.contexts:
            self.entered.enter_context(context)

    def __exit__(self, *error: object) -> None:
        self.entered.close()


def kept(shape: torch.Size, rate: float) -> torch.Tensor:
    """A mask of units that stay, int8: 1 with probability 1 - `actual` (``rate``), else 0, independently of each other.

    Numbers rather than booleans, and compared in place: what yields or reads booleans is not vectorised on a CPU and
    takes ten times as long.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    count = math.prod(shape)
    bits, mask = np.random.SFC64(seed), torch.empty(count, dtype=torch.int8)
    for piece in mask.split(AT_ONCE):
        # signed, since torch compares no unsigned ones of this size
        words = torch.from_numpy(bits.random_raw(-(-len(piece) // 4)).view(np.int16)[: len(piece)])
        piece.copy_(words.ge_(_threshold(rate) - LEVELS // 2))
    return mask.view(shape)


def actual(rate: float) -> float:
    """The rate that a mask has: the nearest of `LEVELS`."""
    return _threshold(rate) / LEVELS


def _threshold(rate: float) -> int:
    return round(rate * LEVELS)


def _replaceable(states: torch.Tensor, rate: float) -> bool:
    return states.device.type == "cpu" and states.is_floating_point() and 0 < _threshold(rate) < LEVELS


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if training and not inplace and _replaceable(input, p):
        return _Dropped.apply(input, p)
    return F.dropout(input, p, training, inplace)


class _Dropped(torch.autograd.Function):
    """Units times 0 or 1 / (1 - rate). Keeps a byte a unit."""

    @staticmethod
    def forward(ctx, states, rate):
        ctx.scale = 1 / (1 - actual(rate))
        keep = kept(states.shape, rate)
        ctx.save_for_backward(keep)
        return (states * keep.to(states.dtype)).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (keep,) = ctx.saved_tensors
        return (grad * keep.to(grad.dtype)).mul_(ctx.scale), None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> torch.Tensor:
    """Attention with dropout, which torch composes of single steps on a CPU; so does this, softmax in float32."""
    if more.get("enable_gqa") or not _replaceable(query, dropout_p):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, **more
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # added: the mask is the same for all heads, and a sum needs nothing for its backward pass
        hidden = torch.zeros(attn_mask.shape, dtype=scores.dtype)
        attn_mask = hidden.masked_fill_(~attn_mask, torch.finfo(scores.dtype).min)
    if attn_mask is not None:
        scores = scores + attn_mask
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return _dropout(shares, dropout_p) @ value
