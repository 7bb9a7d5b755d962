"""What leads into a bottleneck: one map for x and x_R, a map for each, or cross-attention from x to the rows of x_R.

The three ways that the routing paper compares (its Table 5). Each is a dictionary of tasks whose members are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.errors import InputError
from multitask_vl.methods.sites import EVERY_TASK, PerTask
from multitask_vl.routing.context import Context

Drop = Callable[[torch.Tensor], torch.Tensor]


def _kept(states: torch.Tensor) -> torch.Tensor:
    return states


class Shared(PerTask):
    """The same map for x and x_R, and a routing function behind it.

    Args:
        make: builds a task's map, [B, T, d] -> [B, T, r].
        own: names of the tasks that get their own; None for one that all share.
        stack: ``encoder`` or ``decoder``.
        context: task and x_R.
    """

    def __init__(self, make: Callable[[], nn.Module], own: Sequence[str] | None, stack: str, context: Context):
        super().__init__(make, own)
        self.stack = stack
        self.context = context

    def forward(self, x: torch.Tensor, drop: Drop = _kept) -> torch.Tensor:
        """[B, T, d] -> [B, T, r]; ``drop`` is done to x and to x_R, each for itself, before their maps."""
        down = self.of(self.context.task)
        return self.context.through(self.stack, x, lambda states: down(drop(states)))


class Split(Shared):
    """A map for x and another of the same shape for x_R. Where nothing is routed there is no map for x_R."""

    def __init__(self, make: Callable[[], nn.Module], own: Sequence[str] | None, stack: str, context: Context):
        super().__init__(lambda: nn.ModuleDict({"text": make()}), own, stack, context)
        for task, maps in self.items():
            if context.routes(stack, context.tasks if task == EVERY_TASK else [task]):
                maps["image"] = make()

    def forward(self, x: torch.Tensor, drop: Drop = _kept) -> torch.Tensor:
        """[B, T, d] -> [B, T, r]."""
        maps = self.of(self.context.task)
        return self.context.through(
            self.stack, x, lambda states: maps["text"](drop(states)), lambda states: maps["image"](drop(states))
        )


class CrossAttention(Shared):
    """Attention takes the place of a routing function; ``make`` builds an `Attention`."""

    def forward(self, x: torch.Tensor, drop: Drop = _kept) -> torch.Tensor:
        """[B, T, d] -> [B, T, r], from all valid rows of x_R."""
        x_r, valid = self.context.x_r(self.stack)
        return self.of(self.context.task)(drop(x), drop(x_r), valid)


class Attention(nn.Module):
    """``out(softmax(q k^T / sqrt(w / heads)) v)`` with q of x, and k and v of the rows of x_R.

    Args:
        query, key, value: maps onto one width w, which ``heads`` divides.
        heads: stretches of w that attend for themselves.
        image: what x_R passes before key and value; None: nothing.
        out: what follows; None: nothing.
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
        """x [B, T, d], x_r [B, S, d], valid [B, S] (None: all rows) -> [B, T, r]."""
        seen = self.image(x_r)
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.query(x), self.key(seen), self.value(seen))
        )
        mask = None if valid is None else valid[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


BOTTLENECKS: dict[str, type[Shared]] = {"shared": Shared, "split": Split, "cross_attention": CrossAttention}
"""Mapping -> its class."""


def quarter(rank: int, mapping: str) -> int:
    """A quarter of ``rank``, through which ``mapping`` leads; InputError if that is no whole number."""
    if rank % 4:
        raise InputError(
            f'method.rank: mapping "{mapping}" goes through a quarter of it, and {rank} is not divisible by 4; '
            f"set it to {rank + 4 - rank % 4}"
        )
    return rank // 4


def divided(width: int, heads: int) -> int:
    """``heads``, if they divide the ``width`` they attend over; InputError otherwise."""
    if width % heads:
        raise InputError(f"method.heads: {heads} does not divide the attention's width, {width}; set it to 1")
    return heads
