"""Low-rank adapters: adapters whose projections are products of two thin matrices, ``x (L R) + b``.

One of the baselines in Compacter (Mahabadi et al. 2021); VL-Adapter's code contains it without a training script.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from multitask_vl.config.schema import PositiveInt
from multitask_vl.errors import InputError
from multitask_vl.methods.adapter import Adapter, AdapterConfig
from multitask_vl.methods.sites import SiteIndex
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class LowRankAdapterConfig(AdapterConfig):
    """Keys of ``method: {name: low_rank_adapter, ...}``: those of the adapter, and these."""

    factor_rank: PositiveInt = 1
    """Width between the two factors of a projection; at most the width of the bottleneck."""
    init: Literal["xavier", "zero_up"] = "xavier"
    """`xavier`: factors Xavier uniform with gain sqrt 2, zero biases (published). `zero_up`: the right factor of the
    up-projection starts at zero, so that training starts from the backbone's own function."""


class LowRankLinear(nn.Module):
    """``(x L) R + b``: k (d_in + d_out) multiplications per row, where x (L R) would take d_in d_out.

    Args:
        d_in, d_out: input and output width.
        k: width between the factors.
        zero: whether the product starts at zero.
    """

    def __init__(self, d_in: int, d_out: int, k: int, zero: bool):
        super().__init__()
        self.L = nn.Parameter(torch.empty(d_in, k))
        self.R = nn.Parameter(torch.empty(k, d_out))
        # not named "bias", so it gets weight decay as in the published code (training.weight_decay_on: all_but_biases)
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
    """A low-rank adapter wherever `Adapter` puts an adapter.

    Raises:
        InputError: `factor_rank` exceeds the width of the bottleneck or of the backbone.
    """

    Config = LowRankAdapterConfig

    def __init__(self, config: LowRankAdapterConfig, context: Context, site_index: SiteIndex):
        super().__init__(config, context, site_index)
        widest = min(config.rank, site_index.d_model)
        if config.factor_rank > widest:
            raise InputError(
                f"method.factor_rank: {config.factor_rank} exceeds the rank of a projection between the backbone's "
                f"width ({site_index.d_model}) and method.rank ({config.rank}); set it to {widest} or less"
            )

    def projection_factory(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """Return a builder of one half of one adapter, called once per task."""
        return lambda: LowRankLinear(d_in, d_out, self.config.factor_rank, zero)
