"""How does LoRA work: ``W x + b + (alpha / r) B route(A dropout(x))`` on chosen projections of every attention.

Defaults are VL-Adapter's: rank 128, alpha 32, dropout 0.1, query and value of all attentions, every bias of the
language model trained. With a routing function the update depends on the sample, so it cannot be folded into W.
The other ways into the bottleneck, and the fused projection, are those of the routing paper's Table 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from multitask_vl.config.schema import MethodConfig, Positive, Share
from multitask_vl.errors import InputError
from multitask_vl.methods.base import Method
from multitask_vl.methods.down_projections import BOTTLENECKS, Attention, divided, quarter
from multitask_vl.methods.sites import EVERY_TASK, Layout, PerTask, Site, Wrapped
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
    targets: tuple[Literal["query", "key", "value", "output", "ffn_in", "ffn_gate", "ffn_out"], ...] = (
        "query",
        "value",
    )
    """Roles of the maps that get an update, in every layer of every stack."""
    sharing: Literal["single", "per_task"] = "single"
    """One pair (A, B) for all tasks, or one for each."""
    biases: Literal["all", "targets", "none"] = "all"
    """Which biases are trained as well: every one of the language model, layer norms' included (published for
    CLIP-BART), those of the maps with an update (published for GPT-2 and RoBERTa), or none."""
    mapping: Literal["shared", "split", "cross_attention"] = "shared"
    """What A is: one map for x and x_R; a pair d -> rank / 4 -> rank for each of the two; or attention from x to the
    rows of x_R in rank / 4 dimensions (needs routing.pool `none`; a place that x_R does not reach gets no update)."""
    heads: Positive = 4
    """Heads of that attention."""
    couple: bool = True
    """Where query, key and value are one map: whether the targets among them have a common bottleneck, as wide as
    theirs together, in which routing mixes them (published for GPT-2), or each its own."""


class LoraSite(Wrapped):
    """A linear map with a low-rank update beside it.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d_out].
        site: its description.
        config: the method's settings.
        context: task and x_R.
        roles: which parts of the map get the update; on a fused map they share its bottleneck.
    """

    def __init__(self, base: nn.Module, site: Site, config: LoraConfig, context: Context, roles: Sequence[str]):
        super().__init__(base)
        self.context = context
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        own = context.tasks if config.sharing == "per_task" else None
        places = [place for place, role in enumerate(site.parts) if role in roles]
        self.A = BOTTLENECKS[config.mapping](lambda: _into(site.d_in, config, len(places)), own, site.stack, context)
        if len(site.parts) == 1:
            self.B = PerTask(lambda: nn.Linear(config.rank, site.d_out, bias=False), own)
        else:
            self.B = PerTask(lambda: Scattered(config.rank, site.d_out, places, len(site.parts)), own)
        for a in self.A.modules():
            if isinstance(a, nn.Linear):
                nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        for b in self.B.values():
            nn.init.zeros_(b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]. In cross-attention ``x`` of the value map are the encoder's states."""
        return self.base(x) + self.scale * self.B.of(self.context.task)(self.A(x, self.dropout))

    def merged(self) -> nn.Module:
        """The original map with the update added to its weight."""
        base = self.base.merged() if isinstance(self.base, LoraSite) else self.base
        with torch.no_grad():
            update = self.scale * self.B[EVERY_TASK](self.A[EVERY_TASK].weight.T)
            # the library's Conv1D keeps its weight as [d_in, d_out]
            base.weight += update if isinstance(base, Conv1D) else update.T
        return base


class Scattered(nn.Module):
    """B of a fused map: each r numbers of a common bottleneck go to a part of their own; the other parts get zero.

    Args:
        rank: r.
        d_out: width of all parts together.
        places: which parts, by number.
        parts: how many parts there are.
    """

    def __init__(self, rank: int, d_out: int, places: Sequence[int], parts: int):
        super().__init__()
        self.places = tuple(places)
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(len(places) * (d_out // parts), rank))

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        """[..., places x r] -> [..., d_out]."""
        n = len(self.places)
        groups = zip(bottleneck.chunk(n, -1), self.weight.chunk(n), strict=True)
        updates = dict(zip(self.places, (F.linear(group, weight) for group, weight in groups), strict=True))
        nothing = torch.zeros_like(updates[self.places[0]])
        return torch.cat([updates.get(place, nothing) for place in range(self.parts)], -1)


@METHODS.register("lora")
class Lora(Method[LoraConfig]):
    """Low-rank updates of attention (and, if asked for, feed-forward) maps."""

    Config = LoraConfig
    routable = True
    variants = (
        {"mapping": "split", "routing": {"function": "mm1"}},
        {"mapping": "cross_attention", "routing": {"pool": "none"}},
    )

    def __init__(self, config: LoraConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        roles = layout.roles()
        if unknown := [target for target in config.targets if target not in roles]:
            raise InputError(
                f"method.targets: this backbone has no map of role {' or '.join(unknown)} (it has: {', '.join(roles)})"
            )
        if config.mapping == "cross_attention":
            context.want_x_r()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """A `LoraSite` at every map that plays a target's role; one for each such role if these are not coupled."""
        roles = [role for role in site.parts if role in self.config.targets]
        absent = self.config.mapping == "cross_attention" and not self.context.reaches(site.stack)
        if not roles or absent:
            return module
        for together in [roles] if self.config.couple else [[role] for role in roles]:
            module = LoraSite(module, site, self.config, self.context, together)
        return module

    def trains(self) -> Iterable[nn.Parameter]:
        """The language model's biases, as configured."""
        if self.config.biases == "all":
            yield from self.layout.biases()
        if self.config.biases == "targets":
            maps = (self.layout.module(site) for site in self.layout.sites)
            yield from (one.bias for one in maps if isinstance(one, LoraSite) and one.bias is not None)

    def cannot_merge(self) -> str | None:
        """Only one pair (A, B) without x_R can."""
        if self.config.mapping == "cross_attention":
            return (
                "cross-attention LoRA cannot be merged: its update depends on the sample through x_R, "
                "so no single weight matrix equals it"
            )
        if self.context.routed:
            return (
                "routed LoRA cannot be merged: its update B route(A x, A x_R) depends on the sample through x_R, "
                "so no single weight matrix equals it"
            )
        if self.config.mapping == "split":
            return 'split LoRA cannot be merged: its maps are made to be routed; without routing, use mapping "shared"'
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


def _into(d_in: int, config: LoraConfig, parts: int) -> nn.Module:
    """What one task's A consists of, for a bottleneck that ``parts`` of a map share; without biases, as all of LoRA."""
    rank = parts * config.rank
    if config.mapping == "shared":
        return nn.Linear(d_in, rank, bias=False)
    width = parts * quarter(config.rank, config.mapping)
    if config.mapping == "split":
        return nn.Sequential(nn.Linear(d_in, width, bias=False), nn.Linear(width, rank, bias=False))
    return Attention(
        nn.Sequential(nn.Linear(d_in, width, bias=False), nn.Linear(width, width, bias=False)),
        nn.Linear(width, width, bias=False),
        nn.Linear(width, width, bias=False),
        divided(width, config.heads),
        image=nn.Linear(d_in, width, bias=False),
        out=nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, rank, bias=False)),
    )
