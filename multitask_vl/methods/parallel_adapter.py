"""How do parallel adapters work: what a sublayer makes of its input, plus ``up(act(route(down(input))))``.

The adapters of the routing paper's Table 5 (I-Tuning's form). Unlike those behind a sublayer they read what enters it,
and the sublayer's own output takes no part in the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.methods.adapter import Activation
from multitask_vl.methods.base import Method
from multitask_vl.methods.down_projections import BOTTLENECKS, Attention, divided, quarter
from multitask_vl.methods.sites import Layout, PerTask, Site, Tap, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class ParallelAdapterConfig(MethodConfig):
    """Keys of ``method: {name: parallel_adapter, ...}``."""

    rank: Positive = 128
    """Width of the bottleneck."""
    activation: Activation = "gelu_new"
    """Non-linearity in the bottleneck, by its transformers name. Cross-attention has none."""
    sublayers: tuple[Literal["self_attn", "cross_attn", "ffn"], ...] = ("self_attn", "cross_attn", "ffn")
    """Which sublayers get an adapter, in every layer of every stack that has such."""
    input: Literal["normed", "stream"] = "normed"
    """What it reads where a sublayer begins with its norm (T5): what leaves the norm, as the sublayer's own maps do, or
    the residual stream that enters it. In BART the two are the same."""
    sharing: Literal["single", "per_task"] = "single"
    """One adapter for all tasks, or one for each."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Which of the backbone's layer norms are trained as well."""
    mapping: Literal["shared", "split", "cross_attention"] = "shared"
    """What leads into the bottleneck: one map for x and x_R; a pair d -> rank / 4 -> rank for each of the two; or
    attention from x to the rows of x_R in rank dimensions (needs routing.pool `none`; a place that x_R does not reach
    gets no adapter)."""
    heads: Positive = 1
    """Heads of that attention."""
    init: Literal["bert", "zero_up"] = "bert"
    """As the family initialises new maps (BART: normal with spread 0.02, zero biases), or with a zero up-projection, so
    that training starts at the backbone itself."""


class ParallelAdapterSite(Wrapped):
    """A sublayer's last map with an adapter beside the sublayer.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d].
        tap: remembers the sublayer's input.
        down: the way into the bottleneck.
        activation: what follows it.
        up: the way out, a map a task.
        context: task and x_R.
    """

    def __init__(
        self, base: nn.Module, tap: Tap, down: nn.Module, activation: nn.Module, up: PerTask, context: Context
    ):
        super().__init__(base)
        self.tap = tap
        self.down = down
        self.activation = activation
        self.up = up
        self.context = context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]: to what leaves the sublayer is added what the adapter makes of what entered it."""
        bottleneck = self.activation(self.down(self.tap.take()))
        return self.base(x) + self.up.of(self.context.task)(bottleneck)


@METHODS.register("parallel_adapter")
class ParallelAdapter(Method[ParallelAdapterConfig]):
    """An adapter beside every attention and every feed-forward block."""

    Config = ParallelAdapterConfig
    routable = True
    identity = {"init": "zero_up"}
    group = "after a sublayer"
    variants = (
        {"mapping": "split", "routing": {"function": "mm1"}},
        {"mapping": "cross_attention", "routing": {"pool": "none"}},
    )

    def __init__(self, config: ParallelAdapterConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        if config.mapping == "cross_attention":
            context.want_x_r()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """A `ParallelAdapterSite` at the last map of every sublayer asked for."""
        config, context = self.config, self.context
        attends = config.mapping == "cross_attention"
        if site.role not in ("output", "ffn_out") or site.sublayer not in config.sublayers:
            return module
        if attends and not context.reaches(site.stack):
            return module
        own = context.tasks if config.sharing == "per_task" else None
        return ParallelAdapterSite(
            module,
            self.layout.tap(site, normed=config.input == "normed"),
            BOTTLENECKS[config.mapping](self._into, own, site.stack, context),
            nn.Identity() if attends else ACT2FN[config.activation],
            PerTask(self._up, own),
            context,
        )

    def trains(self) -> Iterable[nn.Parameter]:
        """The backbone's layer norms, if so configured."""
        return self.layout.norm_parameters(self.config.train_layer_norms)

    def _into(self) -> nn.Module:
        """What leads one task into one bottleneck."""
        rank, width, linear = self.config.rank, self.layout.width, self.layout.linear
        if self.config.mapping == "shared":
            return linear(width, rank)
        if self.config.mapping == "split":
            inner = quarter(rank, self.config.mapping)
            return nn.Sequential(linear(width, inner), linear(inner, rank))
        heads = divided(rank, self.config.heads)
        return Attention(linear(width, rank), linear(width, rank), linear(width, rank), heads)

    def _up(self) -> nn.Module:
        """What leads one task out of it."""
        up = self.layout.linear(self.config.rank, self.layout.width)
        if self.config.init == "zero_up":
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        return up
