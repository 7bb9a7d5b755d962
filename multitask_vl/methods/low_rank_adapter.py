"""How do low-rank adapters work: adapters whose two maps are products of two thin matrices, ``x (L R) + b``.

One of the kinds in Compacter's comparison (Mahabadi et al. 2021), carried over into VL-Adapter's code without a script.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from multitask_vl.config.schema import Positive
from multitask_vl.errors import InputError
from multitask_vl.methods.adapter import Adapter, AdapterConfig
from multitask_vl.methods.sites import Layout
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class LowRankAdapterConfig(AdapterConfig):
    """Keys of ``method: {name: low_rank_adapter, ...}``; those of the adapter, and these."""

    factor_rank: Positive = 1
    """Width between the two factors of a map; at most the bottleneck's, beyond which they could be one matrix."""
    init: Literal["xavier", "zero_up"] = "xavier"
    """Factors uniform after Glorot with gain sqrt 2 and zero biases (published), or with a zero right factor in the
    up-projection, so that training starts at the backbone itself."""


class LowRankLinear(nn.Module):
    """``(x L) R + b``: in this order k (d_in + d_out) products a row, where x (L R) takes d_in d_out.

    Args:
        d_in, d_out: widths.
        k: width between the factors.
        zero: whether the product shall start at zero.
    """

    def __init__(self, d_in: int, d_out: int, k: int, zero: bool):
        super().__init__()
        self.L = nn.Parameter(torch.empty(d_in, k))
        self.R = nn.Parameter(torch.empty(k, d_out))
        # by its name not a bias to the optimiser: it decays, as published (training.decay: all_but_biases)
        self.b = nn.Parameter(torch.zeros(d_out))
        for factor in (self.L, self.R):
            nn.init.xavier_uniform_(factor, gain=math.sqrt(2))
        if zero:
            nn.init.zeros_(self.R)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_out]."""
        return x @ self.L @ self.R + self.b


@METHODS.register("low_rank_adapter")
class LowRankAdapter(Adapter[LowRankAdapterConfig]):
    """A low-rank adapter wherever `Adapter` puts an adapter."""

    Config = LowRankAdapterConfig

    def __init__(self, config: LowRankAdapterConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        widest = min(config.rank, layout.width)
        if config.factor_rank > widest:
            raise InputError(
                f"method.factor_rank: {config.factor_rank} is more than a map between the backbone's width "
                f"({layout.width}) and method.rank ({config.rank}) can have; set it to {widest} or less"
            )

    def maker(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """What makes the maps of one half of one adapter, a call a task."""
        return lambda: LowRankLinear(d_in, d_out, self.config.factor_rank, zero)
