"""Compacters: adapters whose projections are sums of Kronecker products, ``x (sum_i A_i (x) W_i) + b``.

Parameterized hypercomplex multiplication (PHM; Zhang et al. 2021) in adapters, after Compacter (Mahabadi et al. 2021)
as VL-Adapter runs it: n = 2, and a rule and full slices for every projection (2.70 % of BART-base trained). Compacter's
own paper shares one rule in the whole model and uses slices of rank 1: ``phm_rule: shared``, ``factorized_phm: true``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from multitask_vl.config.schema import PositiveInt
from multitask_vl.errors import InputError
from multitask_vl.methods.adapter import Adapter, AdapterConfig
from multitask_vl.methods.sites import Site, SiteIndex
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class CompacterConfig(AdapterConfig):
    """Keys of ``method: {name: compacter, ...}``: those of the adapter, and these."""

    phm_dim: PositiveInt = 2
    """Number of Kronecker products per projection, n; must divide the backbone's width and the rank."""
    phm_rule: Literal["own", "shared", "shared_over_tasks"] = "own"
    """One rule A [n, n, n] per projection, one for the whole model, or one per site and half for all tasks."""
    factorized_phm: bool = False
    """Whether the slices W_i are products of two thin matrices."""
    factor_rank: PositiveInt = 1
    """Inner width of these products; only used with `factorized_phm`."""
    learn_phm_rule: bool = True
    """Whether A is trained. If not, it is not saved and does not depend on `seed`: it is the same in every model."""
    phm_rule_std: Annotated[float, Field(gt=0)] = 0.01
    """Std of the normal distribution from which A is initialized."""
    init: Literal["xavier", "zero_up"] = "xavier"
    """`xavier`: slices Xavier uniform with gain sqrt 2, zero biases (published). `zero_up`: the slices of the
    up-projection (or their right factors) start at zero, so that training starts from the backbone's own function."""


class PHMRule(nn.Module):
    """The rule A [n, n, n], the coefficients that combine the slices of a projection.

    Args:
        config: the method's settings.
        index: which rule of the model it is. It seeds a rule that is not trained: such a rule is not saved, so it must
            be the same in every model that an adapter is loaded into.
    """

    def __init__(self, config: CompacterConfig, index: int):
        super().__init__()
        shape = (config.phm_dim, config.phm_dim, config.phm_dim)
        if config.learn_phm_rule:
            self.A = nn.Parameter(config.phm_rule_std * torch.randn(shape))
        else:
            drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(index), device="cpu")
            self.register_buffer("A", config.phm_rule_std * drawn, persistent=False)


class PHMLinear(nn.Module):
    """PHM layer: ``x H + b`` with ``H = sum_i kron(A_i, W_i)`` [d_in, d_out].

    With full slices H is materialized. That costs n multiplications per entry, which is negligible next to x H;
    applying the factors to x one after the other would save nothing and keep larger intermediate values (measured on
    500 rows with BART-base's widths: the time of a plain linear layer against up to 6 times as much). Factorized slices
    are applied one after the other, with n k (d_in + d_out) multiplications per row instead of d_in d_out (measured: a
    quarter of a plain linear layer's time).

    Args:
        d_in, d_out: input and output width, multiples of n.
        config: the method's settings.
        rule: A, used by this projection only or by several.
        zero: whether H starts at zero.
    """

    def __init__(self, d_in: int, d_out: int, config: CompacterConfig, rule: PHMRule, zero: bool):
        super().__init__()
        n, k = config.phm_dim, config.factor_rank
        # a tuple is not registered as a submodule: a shared rule is registered by its owner
        self.shared_rule = (rule,)
        if config.phm_rule == "own":
            self.rule = rule
        if config.factorized_phm:
            self.L = nn.Parameter(torch.empty(n, d_in // n, k))
            self.R = nn.Parameter(torch.empty(n, k, d_out // n))
            factors = (self.L, self.R)
        else:
            self.W = nn.Parameter(torch.empty(n, d_in // n, d_out // n))
            factors = (self.W,)
        # not named "bias", so it gets weight decay as in the published code (training.weight_decay_on: all_but_biases)
        self.b = nn.Parameter(torch.zeros(d_out))
        for matrix in (matrix for factor in factors for matrix in factor):
            nn.init.xavier_uniform_(matrix, gain=math.sqrt(2))
        if zero:
            nn.init.zeros_(factors[-1])
        self.factorized = config.factorized_phm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_out]."""
        rule = self.shared_rule[0].A
        if self.factorized:
            blocks = x.unflatten(-1, (len(rule), -1))
            return torch.einsum("...ac,ick,iab,ikd->...bd", blocks, self.L, rule, self.R).flatten(-2) + self.b
        transposed = torch.einsum("iab,icd->bdac", rule, self.W).reshape(len(self.b), -1)
        return F.linear(x, transposed, self.b)


@METHODS.register("compacter")
class Compacter(Adapter[CompacterConfig]):
    """A compacter wherever `Adapter` puts an adapter.

    Raises:
        InputError: `phm_dim` does not divide the widths, or `factor_rank` exceeds the size of a slice.
    """

    Config = CompacterConfig
    test_variants = (
        {"phm_rule": "shared", "factorized_phm": True, "phm_dim": 4},
        {"phm_rule": "shared_over_tasks", "sharing": "per_task"},
        {"learn_phm_rule": False, "factorized_phm": True, "factor_rank": 2},
    )

    def __init__(self, config: CompacterConfig, context: Context, site_index: SiteIndex):
        super().__init__(config, context, site_index)
        n = config.phm_dim
        widths = {"the backbone's width": site_index.d_model, "method.rank": config.rank}
        divisors = ", ".join(str(d) for d in range(1, 17) if not any(width % d for width in widths.values()))
        problems = [
            f"method.phm_dim: {n} does not divide {label} ({width}); set it to one of {divisors}"
            for label, width in widths.items()
            if width % n
        ]
        thinnest = min(widths.values()) // n
        if config.factorized_phm and not problems and config.factor_rank > thinnest:
            problems.append(
                f"method.factor_rank: {config.factor_rank} exceeds the rank of a slice of "
                f"{site_index.d_model // n} by {config.rank // n}; set it to {thinnest} or less"
            )
        if problems:
            raise InputError(problems)
        self.num_rules = 0
        if config.phm_rule == "shared":
            self.shared_module = self.new_rule()

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """As `Adapter.wrap`; rules shared by the tasks of a site are registered at the site."""
        wrapped = super().wrap(site, module)
        if wrapped is not module and self.config.phm_rule == "shared_over_tasks":
            wrapped.down_rule, wrapped.up_rule = (_rule_of(half) for half in (wrapped.down, wrapped.up))
        return wrapped

    def projection_factory(self, d_in: int, d_out: int, zero: bool) -> Callable[[], nn.Module]:
        """Return a builder of one half of one compacter, called once per task."""
        shared_rule = self.new_rule() if self.config.phm_rule == "shared_over_tasks" else self.shared_module
        return lambda: PHMLinear(d_in, d_out, self.config, shared_rule or self.new_rule(), zero)

    def new_rule(self) -> PHMRule:
        """The next rule of the model."""
        self.num_rules += 1
        return PHMRule(self.config, self.num_rules)


def _rule_of(half: nn.Module) -> PHMRule:
    return next(module for module in half.modules() if isinstance(module, PHMLinear)).shared_rule[0]
