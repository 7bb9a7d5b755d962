"""Bottleneck adapters: ``h + up(act(route(down(h))))`` after the last linear layer of every sublayer.

Houlsby-style adapters as placed by VL-Adapter (Section 3.2; 30 of them in BART-base), with the sharing variants of its
Table 1. Routing functions act between the down-projection and the non-linearity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, PositiveInt
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import PerTask, Site, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


def _check_activation(name: str) -> str:
    if name not in ACT2FN:
        raise ValueError(f"unknown activation {name!r} (known: {', '.join(sorted(ACT2FN))})")
    return name


Activation = Annotated[str, AfterValidator(_check_activation)]
"""Name of an activation in transformers' ``ACT2FN``."""


class AdapterConfig(MethodConfig):
    """Keys of ``method: {name: adapter, ...}``."""

    rank: PositiveInt = 96
    """Width of the bottleneck (published: d_model / 8)."""
    activation: Activation = "gelu_new"
    """Activation in the bottleneck, by its name in transformers."""
    sharing: Literal["single", "per_task", "shared_up", "shared_down"] = "single"
    """One adapter for all tasks, one per task, or one per task with a common up- or down-projection."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Layer norms of the backbone that are also trained (published: all of BART's, none of T5's)."""
    pre_norm: bool = False
    """Add a layer norm before the down-projection, shared by all tasks."""
    post_norm: bool = False
    """Add a layer norm after the up-projection, shared by all tasks."""
    init: Literal["backbone", "zero_up"] = "backbone"
    """`backbone`: as the family initializes new linear layers (BART: normal with std 0.02, zero biases; published).
    `zero_up`: the up-projection starts at zero, so that training starts from the backbone's own function."""


A = TypeVar("A", bound=AdapterConfig)
ProjectionFactory = Callable[[int, int, bool], Callable[[], nn.Module]]


class AdapterSite(SiteWrapper):
    """A linear layer followed by an adapter.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d].
        site: its description.
        config: the method's settings.
        context: current task and x_R.
        factory: given d_in, d_out and whether the output starts at zero, returns a builder of one task's projection.
    """

    def __init__(
        self, base: nn.Module, site: Site, config: AdapterConfig, context: Context, factory: ProjectionFactory
    ):
        super().__init__(base)
        self.stack = site.stack
        self.context = context
        width, sharing = site.d_out, config.sharing
        down_tasks = context.tasks if sharing in ("per_task", "shared_up") else None
        up_tasks = context.tasks if sharing in ("per_task", "shared_down") else None
        self.pre_norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.down = PerTask(factory(width, config.rank, False), down_tasks)
        self.activation = ACT2FN[config.activation]
        self.up = PerTask(factory(config.rank, width, config.init == "zero_up"), up_tasks)
        self.post_norm = nn.LayerNorm(width) if config.post_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]. x_R passes the same norm and down-projection as the hidden states."""
        hidden = self.base(x)
        down, up = self.down.for_task(self.context.task), self.up.for_task(self.context.task)
        bottleneck = self.context.bottleneck(self.stack, hidden, lambda states: down(self.pre_norm(states)))
        return hidden + self.post_norm(up(self.activation(bottleneck)))


@METHODS.register("adapter")
class Adapter(Method[A]):
    """An adapter after the output projection of every attention and after every feed-forward block."""

    Config = AdapterConfig
    routable = True
    identity = {"init": "zero_up"}
    slot = "after a sublayer"

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap the last linear layer of every sublayer in an `AdapterSite`."""
        if site.role not in ("output", "ffn_out"):
            return module
        return AdapterSite(module, site, self.config, self.context, self.projection_factory)

    def projection_factory(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """Return a builder of one half of one adapter, called once per task. Subclasses build other projections.

        Args:
            d_in, d_out: input and output width.
            zero: whether the projection starts at zero.
        """

        def build() -> nn.Module:
            linear = self.site_index.new_linear(d_in, d_out)
            if zero:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            return linear

        return build

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The layer norms selected by `train_layer_norms`."""
        return self.site_index.norm_parameters(self.config.train_layer_norms)
