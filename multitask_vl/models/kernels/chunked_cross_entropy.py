"""Chunked cross-entropy: the loss of every target token without materializing all logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
"""Label of a position without a target."""
LOGITS_PER_CHUNK = 2**23
"""Logits in memory at the same time: 32 MiB in float32, 166 rows of BART's vocabulary."""


class LMHead(NamedTuple):
    """Language-model head: the linear layer from decoder hidden states to logits.

    Attributes:
        weight: [V, d].
        bias: [V], or None.
        scale: factor applied to the hidden states first.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0

    def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., d] multiplied by `scale`, the input of the weight."""
        return hidden if self.scale == 1.0 else hidden * self.scale

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits: [..., d] -> [..., V]."""
        # a bias may be a buffer in another precision than the weight
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(self.scaled(hidden), self.weight, bias)


def per_token_cross_entropy(hidden: torch.Tensor, labels: torch.Tensor, head: LMHead) -> torch.Tensor:
    """Cross-entropy of every target token [B, T] in float32, 0 where the label is ignored.

    Equals `F.cross_entropy` over ``head.logits(hidden)``, but logits are computed only for positions with a target, and
    only for a chunk of them at a time. With a frozen head the gradient for the hidden states is computed in the forward
    pass, while a chunk's logits are in memory, and the backward pass only scales rows. A trainable head needs the
    gradients of the losses first, so its logits are computed a second time. Without gradients only losses are computed.

    Args:
        hidden: decoder hidden states [B, T, d].
        labels: token ids [B, T], `IGNORE_INDEX` where there is no target.
        head: language-model head.
    """
    valid = labels != IGNORE_INDEX
    states, weight, bias = head.scaled(hidden[valid]), head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        # cast once here instead of once per chunk; a weight that already has this dtype is not copied
        dtype = torch.get_autocast_dtype(hidden.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(weight.dtype)
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _TrainableHeadCE if trainable else _FrozenHeadCE
    losses = function.apply(states, weight, bias, labels[valid], torch.is_grad_enabled())
    return losses.new_zeros(labels.shape).masked_scatter(valid, losses)


class _FrozenHeadCE(torch.autograd.Function):
    """Losses [N]. Saves their gradient for the hidden states [N, d]."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, with_gradients):
        needs_grad = with_gradients and ctx.needs_input_grad[0]
        losses = states.new_empty(len(states), dtype=torch.float32)
        grad_states = torch.empty_like(states) if needs_grad else None
        logits = _LogitChunks(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in logits.chunks:
                log_probs, losses[rows] = logits.losses(states[rows], labels[rows])
                if needs_grad:
                    grad_logits = logits.to_weight_dtype(logits.grad_logits(log_probs, labels[rows]))
                    torch.mm(grad_logits, weight, out=grad_states[rows])
        ctx.save_for_backward(grad_states)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (grad_states,) = ctx.saved_tensors
        # in float32: with a scaled loss the factors leave float16's range
        return (grad_states * grad.unsqueeze(-1)).to(grad_states.dtype), None, None, None, None


class _TrainableHeadCE(torch.autograd.Function):
    """Losses [N]. Recomputes each chunk's logits for the gradients of hidden states, weight and bias."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, with_gradients):
        losses = states.new_empty(len(states), dtype=torch.float32)
        logits = _LogitChunks(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in logits.chunks:
                _, losses[rows] = logits.losses(states[rows], labels[rows])
        ctx.save_for_backward(states, weight, bias, labels)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        states, weight, bias, labels = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if needs_states else None
        # sums over chunks are float32, whatever dtype the chunks are computed in
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        logits = _LogitChunks(states, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            for rows in logits.chunks:
                log_probs, _ = logits.losses(states[rows], labels[rows])
                grad_logits = logits.grad_logits(log_probs, labels[rows]).mul_(grad[rows].unsqueeze(-1))
                if needs_bias:
                    grad_bias += grad_logits.sum(0)
                grad_logits = logits.to_weight_dtype(grad_logits)
                if needs_states:
                    torch.mm(grad_logits, weight, out=grad_states[rows])
                if needs_weight and weight.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), states[rows])
                elif needs_weight:
                    grad_weight += grad_logits.t() @ states[rows]
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_states, grad_weight, grad_bias, None, None


class _LogitChunks:
    """Logits of one chunk of rows at a time, in a buffer that is allocated once.

    Freeing a buffer of this size returns it to the system, and page faults on a new one cost as much as computing the
    logits.

    Attributes:
        chunks: slices of rows, one per chunk, in order.
    """

    def __init__(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        size = max(1, min(len(states), LOGITS_PER_CHUNK // len(weight)))
        self.chunks = [slice(start, start + size) for start in range(0, len(states), size)]
        self._weight, self._bias = weight, bias
        self._logits = weight.new_empty(size, len(weight))
        is_float32 = weight.dtype == torch.float32
        self._float32 = self._logits if is_float32 else torch.empty_like(self._logits, dtype=torch.float32)

    def losses(self, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [n, V] and losses [n] in float32. The next call overwrites the log-probabilities."""
        logits, log_probs = self._logits[: len(states)], self._float32[: len(states)]
        if self._bias is None:
            torch.mm(states, self._weight.t(), out=logits)
        else:
            torch.addmm(self._bias, states, self._weight.t(), out=logits)
        if logits.dtype != torch.float32:
            log_probs.copy_(logits)
        torch.log_softmax(log_probs, -1, out=log_probs)
        return log_probs, -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)

    def grad_logits(self, log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Gradient of each loss by its logits [n, V]: softmax minus one at the label. Overwrites ``log_probs``."""
        grad_logits = log_probs.exp_()
        grad_logits[torch.arange(len(grad_logits), device=grad_logits.device), labels] -= 1
        return grad_logits

    def to_weight_dtype(self, grad_logits: torch.Tensor) -> torch.Tensor:
        """The result of `grad_logits`, cast to the weight's dtype into the buffer."""
        if grad_logits.dtype == self._weight.dtype:
            return grad_logits
        return self._logits[: len(grad_logits)].copy_(grad_logits)
