"""Parallel adapters: ``up(act(route(down(input))))`` of a sublayer's input, added to the sublayer's output.

The adapters of the routing paper's Table 5 (the form of I-Tuning). Unlike adapters after a sublayer, they read the
sublayer's input; its output does not enter the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, PositiveInt
from multitask_vl.methods.adapter import Activation
from multitask_vl.methods.base import Method
from multitask_vl.methods.down_projections import DOWN_PROJECTIONS, RoutingAttention, check_num_heads, quarter_rank
from multitask_vl.methods.sites import InputCapture, PerTask, Site, SiteIndex, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class ParallelAdapterConfig(MethodConfig):
    """Keys of ``method: {name: parallel_adapter, ...}``."""

    rank: PositiveInt = 128
    """Width of the bottleneck."""
    activation: Activation = "gelu_new"
    """Activation in the bottleneck, by its name in transformers. Not used with `mapping: cross_attention`."""
    sublayers: tuple[Literal["self_attn", "cross_attn", "ffn"], ...] = ("self_attn", "cross_attn", "ffn")
    """Sublayers that get an adapter, in every layer of every stack that has them."""
    input: Literal["normalized", "residual"] = "normalized"
    """What the adapter reads where a sublayer starts with its norm (T5): the output of that norm, as the sublayer's own
    layers do, or the residual stream before it. In BART the two are the same."""
    sharing: Literal["single", "per_task"] = "single"
    """One adapter for all tasks, or one per task."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Layer norms of the backbone that are also trained."""
    mapping: Literal["shared", "split", "cross_attention"] = "shared"
    """The down-projection. `shared`: one for x and x_R. `split`: two layers d -> rank / 4 -> rank for each of x and
    x_R. `cross_attention`: attention from x to the rows of x_R in rank dimensions (requires `routing.pooling: none`;
    sites that x_R does not reach get no adapter)."""
    heads: PositiveInt = 1
    """Number of heads of that attention."""
    init: Literal["backbone", "zero_up"] = "backbone"
    """`backbone`: as the family initializes new linear layers (BART: normal with std 0.02, zero biases). `zero_up`: the
    up-projection starts at zero, so that training starts from the backbone's own function."""


class ParallelAdapterSite(SiteWrapper):
    """A sublayer's last linear layer with an adapter in parallel to the sublayer.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d].
        captured: holds the sublayer's input.
        down: the down-projection.
        activation: follows it.
        up: the up-projection of each task.
        context: current task and x_R.
    """

    def __init__(
        self,
        base: nn.Module,
        captured: InputCapture,
        down: nn.Module,
        activation: nn.Module,
        up: PerTask,
        context: Context,
    ):
        super().__init__(base)
        self.captured = captured
        self.down = down
        self.activation = activation
        self.up = up
        self.context = context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]: the sublayer's output plus the adapter's output for the sublayer's input."""
        bottleneck = self.activation(self.down(self.captured.pop()))
        return self.base(x) + self.up.for_task(self.context.task)(bottleneck)


@METHODS.register("parallel_adapter")
class ParallelAdapter(Method[ParallelAdapterConfig]):
    """An adapter in parallel to every attention and every feed-forward block."""

    Config = ParallelAdapterConfig
    routable = True
    identity = {"init": "zero_up"}
    slot = "after a sublayer"
    test_variants = (
        {"mapping": "split", "routing": {"function": "mm1"}},
        {"mapping": "cross_attention", "routing": {"pooling": "none"}},
    )

    def __init__(self, config: ParallelAdapterConfig, context: Context, site_index: SiteIndex):
        super().__init__(config, context, site_index)
        if config.mapping == "cross_attention":
            context.require_x_r()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap the last linear layer of every configured sublayer in a `ParallelAdapterSite`."""
        config, context = self.config, self.context
        attends = config.mapping == "cross_attention"
        if site.role not in ("output", "ffn_out") or site.sublayer not in config.sublayers:
            return module
        if attends and not context.receives_x_r(site.stack):
            return module
        tasks = context.tasks if config.sharing == "per_task" else None
        return ParallelAdapterSite(
            module,
            self.site_index.capture_input(site, normalized=config.input == "normalized"),
            DOWN_PROJECTIONS[config.mapping](self._build_down, tasks, site.stack, context),
            nn.Identity() if attends else ACT2FN[config.activation],
            PerTask(self._build_up, tasks),
            context,
        )

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The layer norms selected by `train_layer_norms`."""
        return self.site_index.norm_parameters(self.config.train_layer_norms)

    def _build_down(self) -> nn.Module:
        """Build one task's down-projection."""
        rank, width, linear = self.config.rank, self.site_index.d_model, self.site_index.new_linear
        if self.config.mapping == "shared":
            return linear(width, rank)
        if self.config.mapping == "split":
            inner = quarter_rank(rank, self.config.mapping)
            return nn.Sequential(linear(width, inner), linear(inner, rank))
        heads = check_num_heads(rank, self.config.heads)
        return RoutingAttention(linear(width, rank), linear(width, rank), linear(width, rank), heads)

    def _build_up(self) -> nn.Module:
        """Build one task's up-projection."""
        up = self.site_index.new_linear(self.config.rank, self.site_index.d_model)
        if self.config.init == "zero_up":
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        return up
