"""How does LoRA work: ``W x + b + (alpha / r) B route(A dropout(x))`` on chosen projections of every attention.

Defaults are VL-Adapter's: rank 128, alpha 32, dropout 0.1, query and value of all attentions, every bias of the
language model trained. With a routing function the update depends on the sample, so it cannot be folded into W.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from multitask_vl.config.schema import MethodConfig, Positive, Share
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import EVERY_TASK, PerTask, Site, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class LoraConfig(MethodConfig):
    """Keys of ``method: {name: lora, ...}``."""

    rank: Positive = 128
    """Width of the bottleneck."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Share = 0.1
    """Rate of the dropout before A; x and x_R are dropped independently."""
    targets: tuple[Literal["query", "key", "value", "output", "ffn_in", "ffn_out"], ...] = ("query", "value")
    """Roles of the maps that get an update, in every layer of both stacks."""
    sharing: Literal["single", "per_task"] = "single"
    """One pair (A, B) for all tasks, or one for each."""
    biases: Literal["all", "none"] = "all"
    """Whether every bias of the language model is trained as well, layer norms' included (published)."""


class LoraSite(Wrapped):
    """A linear map with a low-rank update beside it.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d_out].
        site: its description.
        config: the method's settings.
        context: task and x_R.
    """

    def __init__(self, base: nn.Module, site: Site, config: LoraConfig, context: Context):
        super().__init__(base)
        self.stack = site.stack
        self.context = context
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        own = context.tasks if config.sharing == "per_task" else None
        self.A = PerTask(lambda: nn.Linear(site.d_in, config.rank, bias=False), own)
        self.B = PerTask(lambda: nn.Linear(config.rank, site.d_out, bias=False), own)
        for a in self.A.values():
            nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        for b in self.B.values():
            nn.init.zeros_(b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]. In cross-attention ``x`` of the value map are the encoder's states."""
        a, b = self.A.of(self.context.task), self.B.of(self.context.task)
        bottleneck = self.context.through(self.stack, x, lambda states: a(self.dropout(states)))
        return self.base(x) + self.scale * b(bottleneck)

    def merged(self) -> nn.Module:
        """The original map with the update added to its weight."""
        with torch.no_grad():
            self.base.weight += self.scale * self.B[EVERY_TASK].weight @ self.A[EVERY_TASK].weight
        return self.base


@METHODS.register("lora")
class Lora(Method[LoraConfig]):
    """Low-rank updates of attention (and, if asked for, feed-forward) maps."""

    Config = LoraConfig
    routable = True

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """A `LoraSite` at every map whose role is a target."""
        if site.role not in self.config.targets:
            return module
        return LoraSite(module, site, self.config, self.context)

    def trains(self) -> Iterable[nn.Parameter]:
        """Every bias of the language model, if so configured."""
        return self.layout.biases() if self.config.biases == "all" else ()

    def cannot_merge(self) -> str | None:
        """Routed and per-task LoRA cannot."""
        if self.context.routed:
            return (
                "routed LoRA cannot be merged: its update B route(A x, A x_R) depends on the sample through x_R, "
                "so no single weight matrix equals it"
            )
        if self.config.sharing == "per_task":
            return "per-task LoRA cannot be merged: every task has its own update, and the weight is one"
        return None

    def merge(self) -> None:
        """Add each update to its map's weight and put the map back."""
        for site in self.layout.sites:
            module = self.layout.module(site)
            if isinstance(module, LoraSite):
                self.layout.replace(site, module.merged())
        self.added.clear()
