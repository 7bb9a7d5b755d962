"""Fast dropout on a CPU: masks cut from cheap random integers instead of torch's per-unit draws."""

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
"""A mask compares 16 random bits with a threshold, so a rate is exact to within 1 / 131,072."""
MASK_CHUNK = 2**18
"""Mask units generated together: their random bits, half a megabyte, stay in a core's cache."""


class CpuDropout(TorchFunctionMode):
    """Mode in which `F.dropout` and attention dropout on a CPU draw their masks with `dropout_mask`.

    It covers every caller of these functions, including the layers of transformers and `torch.nn.Dropout`. On other
    devices, and without dropout, torch's implementations run. A mask depends only on the state of torch's generator,
    from which each mask draws one number: the same seed gives the same masks with any number of threads, and a
    recomputed layer whose generator state was restored gets the same masks again.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.dropout:
            return _dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class ReentrantContexts(AbstractContextManager):
    """Several contexts nested in order. Re-enterable if each of them is."""

    def __init__(self, *contexts: AbstractContextManager):
        self.contexts = contexts

    def __enter__(self) -> None:
        self.entered = ExitStack()
        for context in self.contexts:
            self.entered.enter_context(context)

    def __exit__(self, *error: object) -> None:
        self.entered.close()


def dropout_mask(shape: torch.Size, rate: float) -> torch.Tensor:
    """An int8 mask: independently 1 with probability 1 - `quantized_rate` (``rate``), else 0.

    Integers compared in place rather than booleans: operations that produce or read booleans are not vectorized on a
    CPU and take ten times as long.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    count = math.prod(shape)
    bits, mask = np.random.SFC64(seed), torch.empty(count, dtype=torch.int8)
    for chunk in mask.split(MASK_CHUNK):
        # signed, since torch does not compare unsigned integers of this size
        values = torch.from_numpy(bits.random_raw(-(-len(chunk) // 4)).view(np.int16)[: len(chunk)])
        chunk.copy_(values.ge_(_threshold(rate) - LEVELS // 2))
    return mask.view(shape)


def quantized_rate(rate: float) -> float:
    """The dropout rate of a mask: the nearest of `LEVELS` levels."""
    return _threshold(rate) / LEVELS


def _threshold(rate: float) -> int:
    return round(rate * LEVELS)


def _is_supported(x: torch.Tensor, rate: float) -> bool:
    return x.device.type == "cpu" and x.is_floating_point() and 0 < _threshold(rate) < LEVELS


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if training and not inplace and _is_supported(input, p):
        return _DropoutFunction.apply(input, p)
    return F.dropout(input, p, training, inplace)


class _DropoutFunction(torch.autograd.Function):
    """Multiply units by 0 or 1 / (1 - rate). Saves one byte per unit."""

    @staticmethod
    def forward(ctx, x, rate):
        ctx.scale = 1 / (1 - quantized_rate(rate))
        mask = dropout_mask(x.shape, rate)
        ctx.save_for_backward(mask)
        return (x * mask.to(x.dtype)).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return (grad * mask.to(grad.dtype)).mul_(ctx.scale), None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention with dropout, composed of single steps as torch does on a CPU, with the softmax in float32."""
    if kwargs.get("enable_gqa") or not _is_supported(query, dropout_p):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # additive: one mask serves all heads, and a sum saves nothing for its backward pass
        bias = torch.zeros(attn_mask.shape, dtype=scores.dtype)
        attn_mask = bias.masked_fill_(~attn_mask, torch.finfo(scores.dtype).min)
    if attn_mask is not None:
        scores = scores + attn_mask
    probs = torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return _dropout(probs, dropout_p) @ value
