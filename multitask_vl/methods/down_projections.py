"""Down-projections into a bottleneck: shared by x and x_R, one for each, or cross-attention from x to the rows of x_R.

These are the three variants of the routing paper's Table 5. Each holds one projection per task, or one for all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.errors import InputError
from multitask_vl.methods.sites import EVERY_TASK, PerTask
from multitask_vl.routing.context import Context

DropoutFn = Callable[[torch.Tensor], torch.Tensor]


def identity(states: torch.Tensor) -> torch.Tensor:
    """Return the input: no dropout."""
    return states


class SharedDown(PerTask):
    """One down-projection for x and x_R, followed by a routing function.

    Args:
        build: builds one task's projection, [B, T, d] -> [B, T, r].
        tasks: names of the tasks that get their own projection; None: one for all tasks.
        stack: ``encoder`` or ``decoder``.
        context: current task and x_R.
    """

    def __init__(self, build: Callable[[], nn.Module], tasks: Sequence[str] | None, stack: str, context: Context):
        super().__init__(build, tasks)
        self.stack = stack
        self.context = context

    def forward(self, x: torch.Tensor, dropout: DropoutFn = identity) -> torch.Tensor:
        """[B, T, d] -> [B, T, r]. ``dropout`` is applied to x and to x_R, independently, before the projection."""
        down = self.for_task(self.context.task)
        return self.context.bottleneck(self.stack, x, lambda states: down(dropout(states)))


class SplitDown(SharedDown):
    """One down-projection for x and another of the same shape for x_R, which exists only where a task is routed."""

    def __init__(self, build: Callable[[], nn.Module], tasks: Sequence[str] | None, stack: str, context: Context):
        super().__init__(lambda: nn.ModuleDict({"text": build()}), tasks, stack, context)
        for task, downs in self.items():
            if context.is_routed(stack, context.tasks if task == EVERY_TASK else [task]):
                downs["image"] = build()

    def forward(self, x: torch.Tensor, dropout: DropoutFn = identity) -> torch.Tensor:
        """[B, T, d] -> [B, T, r]."""
        downs = self.for_task(self.context.task)
        return self.context.bottleneck(
            self.stack, x, lambda states: downs["text"](dropout(states)), lambda states: downs["image"](dropout(states))
        )


class CrossAttentionDown(SharedDown):
    """Cross-attention to the rows of x_R instead of a routing function; ``build`` returns a `RoutingAttention`."""

    def forward(self, x: torch.Tensor, dropout: DropoutFn = identity) -> torch.Tensor:
        """[B, T, d] -> [B, T, r], attending to all valid rows of x_R."""
        x_r, valid = self.context.x_r(self.stack)
        return self.for_task(self.context.task)(dropout(x), dropout(x_r), valid)


class RoutingAttention(nn.Module):
    """``out(softmax(q k^T / sqrt(w / heads)) v)`` with q computed from x, and k and v from the rows of x_R.

    Args:
        query, key, value: projections to one width w, a multiple of ``heads``.
        heads: number of attention heads.
        image: projection of x_R before key and value; None: identity.
        out: output projection; None: identity.
    """

    def __init__(
        self,
        query: nn.Module,
        key: nn.Module,
        value: nn.Module,
        heads: int = 1,
        image: nn.Module | None = None,
        out: nn.Module | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = query, key, value
        self.image = image if image is not None else nn.Identity()
        self.out = out if out is not None else nn.Identity()

    def forward(self, x: torch.Tensor, x_r: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Attend from x [B, T, d] to x_r [B, S, d].

        Args:
            valid: boolean mask of the rows of x_r [B, S]; None: all rows.

        Returns:
            [B, T, r].
        """
        image = self.image(x_r)
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.query(x), self.key(image), self.value(image))
        )
        mask = None if valid is None else valid[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


DOWN_PROJECTIONS: dict[str, type[SharedDown]] = {
    "shared": SharedDown,
    "split": SplitDown,
    "cross_attention": CrossAttentionDown,
}
"""Value of the key ``mapping`` -> its class."""


def quarter_rank(rank: int, mapping: str) -> int:
    """``rank / 4``, the inner width of ``mapping``; raises InputError if 4 does not divide ``rank``."""
    if rank % 4:
        raise InputError(
            f'method.rank: mapping "{mapping}" has an inner width of rank / 4, and {rank} is not divisible by 4; '
            f"set it to {rank + 4 - rank % 4}"
        )
    return rank // 4


def check_num_heads(width: int, heads: int) -> int:
    """Return ``heads``; raises InputError unless they divide the attention's ``width``."""
    if width % heads:
        raise InputError(f"method.heads: {heads} does not divide the attention's width, {width}; set it to 1")
    return heads
