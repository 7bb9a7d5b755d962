"""LoRA with optional routing in the bottleneck: ``W x + b + (alpha / r) B route(A dropout(x))``.

The defaults are VL-Adapter's: rank 128, alpha 32, dropout 0.1, query and value of all attentions, and every bias of the
language model trained. With a routing function the update depends on the sample, so it cannot be merged into W.
The other down-projections, and the fused query-key-value projection, are those of the routing paper's Table 5.
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

from multitask_vl.config.schema import MethodConfig, PositiveInt, UnitInterval
from multitask_vl.errors import InputError
from multitask_vl.methods.base import Method
from multitask_vl.methods.down_projections import DOWN_PROJECTIONS, RoutingAttention, check_num_heads, quarter_rank
from multitask_vl.methods.sites import EVERY_TASK, PerTask, Site, SiteIndex, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class LoraConfig(MethodConfig):
    """Keys of ``method: {name: lora, ...}``."""

    rank: PositiveInt = 128
    """Width of the bottleneck."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: UnitInterval = 0.1
    """Dropout rate before A; x and x_R get independent masks."""
    targets: tuple[Literal["query", "key", "value", "output", "ffn_in", "ffn_gate", "ffn_out"], ...] = (
        "query",
        "value",
    )
    """Roles of the linear layers that get an update, in every layer of every stack."""
    sharing: Literal["single", "per_task"] = "single"
    """One pair (A, B) for all tasks, or one per task."""
    biases: Literal["all", "targets", "none"] = "all"
    """Biases that are also trained: all of the language model, layer norms included (published for CLIP-BART), those of
    the targets (published for GPT-2 and RoBERTa), or none."""
    mapping: Literal["shared", "split", "cross_attention"] = "shared"
    """The down-projection A. `shared`: one for x and x_R. `split`: two layers d -> rank / 4 -> rank for each of x and
    x_R. `cross_attention`: attention from x to the rows of x_R in rank / 4 dimensions (requires
    `routing.pooling: none`; sites that x_R does not reach get no update)."""
    heads: PositiveInt = 4
    """Number of heads of that attention."""
    share_fused_bottleneck: bool = True
    """For a fused query-key-value projection: whether its targets share one bottleneck of their total width, in which
    routing mixes them (published for GPT-2), or have one each."""


class LoraSite(SiteWrapper):
    """A linear layer with a parallel low-rank update.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d_out].
        site: its description.
        config: the method's settings.
        context: current task and x_R.
        roles: the slices of the output that get the update; in a fused projection they share one bottleneck.
    """

    def __init__(self, base: nn.Module, site: Site, config: LoraConfig, context: Context, roles: Sequence[str]):
        super().__init__(base)
        self.context = context
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        tasks = context.tasks if config.sharing == "per_task" else None
        part_indices = [index for index, role in enumerate(site.roles) if role in roles]
        self.A = DOWN_PROJECTIONS[config.mapping](
            lambda: build_lora_a(site.d_in, config, len(part_indices)), tasks, site.stack, context
        )
        if len(site.roles) == 1:
            self.B = PerTask(lambda: nn.Linear(config.rank, site.d_out, bias=False), tasks)
        else:
            self.B = PerTask(lambda: FusedLoraB(config.rank, site.d_out, part_indices, len(site.roles)), tasks)
        for a in self.A.modules():
            if isinstance(a, nn.Linear):
                nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        for b in self.B.values():
            nn.init.zeros_(b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]. In cross-attention, keys and values read the encoder's hidden states."""
        return self.base(x) + self.scale * self.B.for_task(self.context.task)(self.A(x, self.dropout))

    def merged(self) -> nn.Module:
        """The base layer with the update added to its weight."""
        base = self.base.merged() if isinstance(self.base, LoraSite) else self.base
        with torch.no_grad():
            update = self.scale * self.B[EVERY_TASK](self.A[EVERY_TASK].weight.T)
            # transformers' Conv1D keeps its weight as [d_in, d_out]
            base.weight += update if isinstance(base, Conv1D) else update.T
        return base


class FusedLoraB(nn.Module):
    """B of a fused projection: each block of r bottleneck values updates one part of the output; other parts get zero.

    Args:
        rank: r.
        d_out: width of all parts together.
        part_indices: indices of the parts that are updated.
        num_parts: number of parts.
    """

    def __init__(self, rank: int, d_out: int, part_indices: Sequence[int], num_parts: int):
        super().__init__()
        self.part_indices = tuple(part_indices)
        self.num_parts = num_parts
        self.weight = nn.Parameter(torch.empty(len(part_indices) * (d_out // num_parts), rank))

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        """[..., len(part_indices) * r] -> [..., d_out]."""
        n = len(self.part_indices)
        blocks = zip(bottleneck.chunk(n, -1), self.weight.chunk(n), strict=True)
        updates = dict(zip(self.part_indices, (F.linear(block, weight) for block, weight in blocks), strict=True))
        zeros = torch.zeros_like(updates[self.part_indices[0]])
        return torch.cat([updates.get(part, zeros) for part in range(self.num_parts)], -1)


@METHODS.register("lora")
class Lora(Method[LoraConfig]):
    """Low-rank updates of attention projections and, if configured, of feed-forward layers.

    Raises:
        InputError: the backbone has no linear layer of a target's role.
    """

    Config = LoraConfig
    routable = True
    test_variants = (
        {"mapping": "split", "routing": {"function": "mm1"}},
        {"mapping": "cross_attention", "routing": {"pooling": "none"}},
    )

    def __init__(self, config: LoraConfig, context: Context, site_index: SiteIndex):
        super().__init__(config, context, site_index)
        roles = site_index.roles()
        if unknown := [target for target in config.targets if target not in roles]:
            raise InputError(
                f"method.targets: this backbone has no linear layer of role {' or '.join(unknown)} "
                f"(it has: {', '.join(roles)})"
            )
        if config.mapping == "cross_attention":
            context.require_x_r()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap every linear layer that has a target's role; a fused one once, or once per role if not shared."""
        roles = [role for role in site.roles if role in self.config.targets]
        unreached = self.config.mapping == "cross_attention" and not self.context.receives_x_r(site.stack)
        if not roles or unreached:
            return module
        for group in [roles] if self.config.share_fused_bottleneck else [[role] for role in roles]:
            module = LoraSite(module, site, self.config, self.context, group)
        return module

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The biases selected by `biases`."""
        if self.config.biases == "all":
            yield from self.site_index.biases()
        if self.config.biases == "targets":
            modules = (self.site_index.module(site) for site in self.site_index.sites)
            yield from (one.bias for one in modules if isinstance(one, LoraSite) and one.bias is not None)

    def merge_blocker(self) -> str | None:
        """None for a single pair (A, B) without routing; otherwise the reason."""
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
            return 'split LoRA cannot be merged: it is meant for routing; without routing, use mapping "shared"'
        if self.config.sharing == "per_task":
            return "per-task LoRA cannot be merged: each task has its own update of the same weight"
        return None

    def merge(self) -> None:
        """Add each update to its layer's weight and put the layer back."""
        for site in self.site_index.sites:
            module = self.site_index.module(site)
            if isinstance(module, LoraSite):
                self.site_index.replace(site, module.merged())
        self.new_parameters.clear()


def build_lora_a(d_in: int, config: LoraConfig, num_parts: int) -> nn.Module:
    """Build one task's A for a bottleneck shared by ``num_parts`` parts of a projection. No layer has a bias."""
    rank = num_parts * config.rank
    if config.mapping == "shared":
        return nn.Linear(d_in, rank, bias=False)
    width = num_parts * quarter_rank(config.rank, config.mapping)
    if config.mapping == "split":
        return nn.Sequential(nn.Linear(d_in, width, bias=False), nn.Linear(width, rank, bias=False))
    return RoutingAttention(
        nn.Sequential(nn.Linear(d_in, width, bias=False), nn.Linear(width, width, bias=False)),
        nn.Linear(width, width, bias=False),
        nn.Linear(width, width, bias=False),
        check_num_heads(width, config.heads),
        image=nn.Linear(d_in, width, bias=False),
        out=nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, rank, bias=False)),
    )
