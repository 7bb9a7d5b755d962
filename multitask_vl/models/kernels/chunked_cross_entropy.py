"""What is each target token's loss, without the scores of all of them at once: the vocabulary product in chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Label of a position without a target."""
SCORES_AT_ONCE = 2**23
"""Scores alive at the same time: 32 MiB of them in float32, 166 rows of BART's vocabulary."""


class Head(NamedTuple):
    """The map from decoder states to scores of the next token.

    Attributes:
        weight: [V, d].
        bias: [V], or None.
        scale: the states are multiplied by it first.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0

    def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """The states [..., d] that the weight is multiplied with."""
        return hidden if self.scale == 1.0 else hidden * self.scale

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., V]."""
        # a bias is a buffer that nobody holds in the weight's precision
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(self.scaled(hidden), self.weight, bias)


def token_loss(hidden: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Cross-entropy of every target token [B, T] in float32, 0 where the label is ignored.

    The same as `F.cross_entropy` over ``head.scores(hidden)``, but there are scores only for positions with a target,
    and only for some of them at a time. With a frozen head the derivative by the states is taken on the spot, while a
    chunk's scores are there; the backward pass then only multiplies rows. A trained head needs the gradients of the
    losses first, so that its scores are computed a second time. Without gradients there are only losses.

    Args:
        hidden: decoder states [B, T, d].
        labels: token ids [B, T], `IGNORED` where there is no target.
        head: what scores the next token.
    """
    valid = labels != IGNORED
    states, weight, bias = head.scaled(hidden[valid]), head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        # once here, not once a chunk; nothing is copied of a weight that is held in this precision
        dtype = torch.get_autocast_dtype(hidden.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(weight.dtype)
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _TrainedHead if trained else _FrozenHead
    losses = function.apply(states, weight, bias, labels[valid], torch.is_grad_enabled())
    return losses.new_zeros(labels.shape).masked_scatter(valid, losses)


class _FrozenHead(torch.autograd.Function):
    """Losses [N]. Keeps their derivative by the states, [N, d]."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, with_gradients):
        wanted = with_gradients and ctx.needs_input_grad[0]
        losses = states.new_empty(len(states), dtype=torch.float32)
        slopes = torch.empty_like(states) if wanted else None
        scores = _Scores(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in scores.chunks:
                log_shares, losses[rows] = scores.losses(states[rows], labels[rows])
                if wanted:
                    torch.mm(scores.narrowed(scores.slopes(log_shares, labels[rows])), weight, out=slopes[rows])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (slopes,) = ctx.saved_tensors
        # in float32: with a scaled loss the factors leave float16's range
        return (slopes * grad.unsqueeze(-1)).to(slopes.dtype), None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """Losses [N]. Computes a chunk's scores again to differentiate by states, weight and bias."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, with_gradients):
        losses = states.new_empty(len(states), dtype=torch.float32)
        scores = _Scores(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in scores.chunks:
                _, losses[rows] = scores.losses(states[rows], labels[rows])
        ctx.save_for_backward(states, weight, bias, labels)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        states, weight, bias, labels = ctx.saved_tensors
        for_states, for_weight, for_bias = ctx.needs_input_grad[:3]
        d_states = torch.empty_like(states) if for_states else None
        # sums over chunks are float32, whatever the chunks are computed in
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if for_bias else None
        scores = _Scores(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in scores.chunks:
                log_shares, _ = scores.losses(states[rows], labels[rows])
                slopes = scores.slopes(log_shares, labels[rows]).mul_(grad[rows].unsqueeze(-1))
                if for_bias:
                    d_bias += slopes.sum(0)
                slopes = scores.narrowed(slopes)
                if for_states:
                    torch.mm(slopes, weight, out=d_states[rows])
                if for_weight and weight.dtype == torch.float32:
                    d_weight.addmm_(slopes.t(), states[rows])
                elif for_weight:
                    d_weight += slopes.t() @ states[rows]
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_states, d_weight, d_bias, None, None


class _Scores:
    """Scores of some rows at a time, in memory that is asked for once.

    A block of this size is given back to the system when it is freed, and to get its pages again costs as much as to
    compute what is written there.

    Attributes:
        chunks: the rows to be taken together, one stretch after the other.
    """

    def __init__(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        size = max(1, min(len(states), SCORES_AT_ONCE // len(weight)))
        self.chunks = [slice(start, start + size) for start in range(0, len(states), size)]
        self._weight, self._bias = weight, bias
        self._scores = weight.new_empty(size, len(weight))
        float32 = weight.dtype == torch.float32
        self._in_float32 = self._scores if float32 else torch.empty_like(self._scores, dtype=torch.float32)

    def losses(self, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithms of the softmax [n, V] and the losses [n], in float32; the next call overwrites the first."""
        scores, log_shares = self._scores[: len(states)], self._in_float32[: len(states)]
        if self._bias is None:
            torch.mm(states, self._weight.t(), out=scores)
        else:
            torch.addmm(self._bias, states, self._weight.t(), out=scores)
        if scores.dtype != torch.float32:
            log_shares.copy_(scores)
        torch.log_softmax(log_shares, -1, out=log_shares)
        return log_shares, -log_shares.gather(1, labels.unsqueeze(1)).squeeze(1)

    def slopes(self, log_shares: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Derivative of each loss by its scores [n, V]: softmax minus one at the label. Overwrites ``log_shares``."""
        slopes = log_shares.exp_()
        slopes[torch.arange(len(slopes), device=slopes.device), labels] -= 1
        return slopes

    def narrowed(self, slopes: torch.Tensor) -> torch.Tensor:
        """What `slopes` gave, in the precision of the weight."""
        return slopes if slopes.dtype == self._weight.dtype else self._scores[: len(slopes)].copy_(slopes)
