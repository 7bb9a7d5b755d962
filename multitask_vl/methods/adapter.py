"""How do bottleneck adapters work: ``h + up(act(route(down(h))))`` after every sublayer's last linear map.

Houlsby-style adapters as placed by VL-Adapter (its Section 3.2; 30 of them in BART-base), with the sharing variants of
its Table 1 and room for routing functions between the down-projection and the non-linearity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import PerTask, Site, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


def _known_activation(name: str) -> str:
    if name not in ACT2FN:
        raise ValueError(f"unknown activation {name!r} (known: {', '.join(sorted(ACT2FN))})")
    return name


Activation = Annotated[str, AfterValidator(_known_activation)]
"""A non-linearity by its transformers name."""


class AdapterConfig(MethodConfig):
    """Keys of ``method: {name: adapter, ...}``."""

    rank: Positive = 96
    """Width of the bottleneck (published: d_model / 8)."""
    activation: Activation = "gelu_new"
    """Non-linearity in the bottleneck, by its transformers name."""
    sharing: Literal["single", "per_task", "shared_up", "shared_down"] = "single"
    """One adapter for all tasks, one for each, or one for each with a common up- or down-projection."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Which of the backbone's layer norms are trained as well (published: all of BART's, none of T5's)."""
    pre_norm: bool = False
    """A layer norm before the down-projection, common to all tasks."""
    post_norm: bool = False
    """A layer norm after the up-projection, common to all tasks."""
    init: Literal["bert", "zero_up"] = "bert"
    """As the family initialises new maps (BART: normal with spread 0.02, zero biases; published), or with a zero
    up-projection, so that training starts at the backbone itself."""


A = TypeVar("A", bound=AdapterConfig)
Maker = Callable[[int, int, bool], Callable[[], nn.Module]]


class AdapterSite(Wrapped):
    """A linear map with an adapter behind it.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d].
        site: its description.
        config: the method's settings.
        context: task and x_R.
        make: gives, for widths d_in and d_out and whether it shall start at zero, what makes one task's linear map.
    """

    def __init__(self, base: nn.Module, site: Site, config: AdapterConfig, context: Context, make: Maker):
        super().__init__(base)
        self.stack = site.stack
        self.context = context
        width, sharing = site.d_out, config.sharing
        own_down = context.tasks if sharing in ("per_task", "shared_up") else None
        own_up = context.tasks if sharing in ("per_task", "shared_down") else None
        self.pre_norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.down = PerTask(make(width, config.rank, False), own_down)
        self.activation = ACT2FN[config.activation]
        self.up = PerTask(make(config.rank, width, config.init == "zero_up"), own_up)
        self.post_norm = nn.LayerNorm(width) if config.post_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]. x_R takes the same way into the bottleneck as the hidden states."""
        hidden = self.base(x)
        down, up = self.down.of(self.context.task), self.up.of(self.context.task)
        bottleneck = self.context.through(self.stack, hidden, lambda states: down(self.pre_norm(states)))
        return hidden + self.post_norm(up(self.activation(bottleneck)))


@METHODS.register("adapter")
class Adapter(Method[A]):
    """An adapter after the output projection of every attention and after every feed-forward block."""

    Config = AdapterConfig
    routable = True
    identity = {"init": "zero_up"}
    group = "after a sublayer"

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """An `AdapterSite` at every sublayer's last map."""
        if site.role not in ("output", "ffn_out"):
            return module
        return AdapterSite(module, site, self.config, self.context, self.maker)

    def maker(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """What makes the linear maps of one half of one adapter, a call a task. Other methods make other maps."""

        def make() -> nn.Module:
            linear = self.layout.linear(d_in, d_out)
            if zero:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            return linear

        return make

    def trains(self) -> Iterable[nn.Parameter]:
        """The backbone's layer norms, if so configured."""
        return self.layout.norm_parameters(self.config.train_layer_norms)
