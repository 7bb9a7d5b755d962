"""How do compacters work: adapters whose two maps are sums of Kronecker products, ``x (sum_i A_i (x) W_i) + b``.

Parameterised hypercomplex multiplication (Zhang et al. 2021) inside adapters, after Compacter (Mahabadi et al. 2021) as
VL-Adapter runs it: n = 2, every map with a rule and full slices of its own (2.70 % of BART-base trained). Compacter's
own paper shares one rule in the whole model and takes slices of rank 1: ``rule: shared``, ``factorized: true``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from multitask_vl.config.schema import Positive
from multitask_vl.errors import InputError
from multitask_vl.methods.adapter import Adapter, AdapterConfig
from multitask_vl.methods.sites import Layout, Site
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class CompacterConfig(AdapterConfig):
    """Keys of ``method: {name: compacter, ...}``; those of the adapter, and these."""

    n: Positive = 2
    """How many Kronecker products are summed; must divide the backbone's width and the rank."""
    rule: Literal["own", "shared", "shared_over_tasks"] = "own"
    """A rule A [n, n, n] for every map, one for all maps of the model, or one for the maps of all tasks at a place."""
    factorized: bool = False
    """Whether the slices W_i are products of two thin matrices."""
    factor_rank: Positive = 1
    """Width of those; without `factorized` it plays no part."""
    learn_rule: bool = True
    """Whether A is trained. If not, it is neither saved nor drawn by `seed`, but the same in every model."""
    rule_std: Annotated[float, Field(gt=0)] = 0.01
    """Spread of the normal distribution that A begins with."""
    init: Literal["xavier", "zero_up"] = "xavier"
    """Slices uniform after Glorot with gain sqrt 2 and zero biases (published), or with zero slices (factorised: zero
    right factors) in the up-projection, so that training starts at the backbone itself."""


class Rule(nn.Module):
    """How the slices are put together: A [n, n, n].

    Args:
        config: the method's settings.
        number: which rule of the model it is. One that is not learned is drawn by it: what is not trained is not saved,
            so it must be the same in whatever model an adapter is loaded into.
    """

    def __init__(self, config: CompacterConfig, number: int):
        super().__init__()
        shape = (config.n, config.n, config.n)
        if config.learn_rule:
            self.A = nn.Parameter(config.rule_std * torch.randn(shape))
        else:
            drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(number), device="cpu")
            self.register_buffer("A", config.rule_std * drawn, persistent=False)


class PHMLinear(nn.Module):
    """``x H + b`` with ``H = sum_i kron(A_i, W_i)`` [d_in, d_out].

    Full slices: H is built, which costs n products an entry and so next to nothing beside x H; applying the factors to
    x in turn would save no product and keep larger values in between (measured on 500 rows of BART-base's maps: a plain
    linear map's time against up to 6 times as much). Factorised slices are applied in turn, with n k (d_in + d_out)
    products a row where x H has d_in d_out (measured: a quarter of a plain linear map's time).

    Args:
        d_in, d_out: widths, multiples of n.
        config: the method's settings.
        rule: A, its own or one of several maps.
        zero: whether H shall start at zero.
    """

    def __init__(self, d_in: int, d_out: int, config: CompacterConfig, rule: Rule, zero: bool):
        super().__init__()
        n, k = config.n, config.factor_rank
        # in a tuple it is not registered: that is left to whom it belongs to
        self.common = (rule,)
        if config.rule == "own":
            self.rule = rule
        if config.factorized:
            self.L = nn.Parameter(torch.empty(n, d_in // n, k))
            self.R = nn.Parameter(torch.empty(n, k, d_out // n))
            factors = (self.L, self.R)
        else:
            self.W = nn.Parameter(torch.empty(n, d_in // n, d_out // n))
            factors = (self.W,)
        # by its name not a bias to the optimiser: it decays, as published (training.decay: all_but_biases)
        self.b = nn.Parameter(torch.zeros(d_out))
        for one in (one for factor in factors for one in factor):
            nn.init.xavier_uniform_(one, gain=math.sqrt(2))
        if zero:
            nn.init.zeros_(factors[-1])
        self.factorized = config.factorized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_out]."""
        rule = self.common[0].A
        if self.factorized:
            parts = x.unflatten(-1, (len(rule), -1))
            return torch.einsum("...ac,ick,iab,ikd->...bd", parts, self.L, rule, self.R).flatten(-2) + self.b
        transposed = torch.einsum("iab,icd->bdac", rule, self.W).reshape(len(self.b), -1)
        return F.linear(x, transposed, self.b)


@METHODS.register("compacter")
class Compacter(Adapter[CompacterConfig]):
    """A compacter wherever `Adapter` puts an adapter."""

    Config = CompacterConfig
    variants = (
        {"rule": "shared", "factorized": True, "n": 4},
        {"rule": "shared_over_tasks", "sharing": "per_task"},
        {"learn_rule": False, "factorized": True, "factor_rank": 2},
    )

    def __init__(self, config: CompacterConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        widths = {"the backbone's width": layout.width, "method.rank": config.rank}
        problems = [
            f"method.n: {config.n} does not divide {what} ({width}), so a compacter has no whole slices; "
            f"take n among {', '.join(str(n) for n in range(1, 17) if not any(w % n for w in widths.values()))}"
            for what, width in widths.items()
            if width % config.n
        ]
        thinnest = min(widths.values()) // config.n
        if config.factorized and not problems and config.factor_rank > thinnest:
            problems.append(
                f"method.factor_rank: {config.factor_rank} is more than a slice of {layout.width // config.n} by "
                f"{config.rank // config.n} can have; set it to {thinnest} or less"
            )
        if problems:
            raise InputError(problems)
        self.rules = 0
        if config.rule == "shared":
            self.module = self.new_rule()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """As `Adapter.wrap`; what all tasks' maps at a place share belongs to the place."""
        wrapped = super().wrap(site, module)
        if wrapped is not module and self.config.rule == "shared_over_tasks":
            wrapped.down_rule, wrapped.up_rule = (_rule_of(half) for half in (wrapped.down, wrapped.up))
        return wrapped

    def maker(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """What makes the maps of one half of one compacter, a call a task."""
        common = self.new_rule() if self.config.rule == "shared_over_tasks" else self.module
        return lambda: PHMLinear(d_in, d_out, self.config, common or self.new_rule(), zero)

    def new_rule(self) -> Rule:
        """The next rule of the model."""
        self.rules += 1
        return Rule(self.config, self.rules)


def _rule_of(half: nn.Module) -> Rule:
    return next(part for part in half.modules() if isinstance(part, PHMLinear)).common[0]
