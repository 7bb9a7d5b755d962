"""How does VL-PET work: gated modifications of encoder sublayers, and small ones in the decoder's cross-attention.

In the encoder a sublayer that reads X and computes H gives ``s G * H'`` with ``H' = H + up(act(route(down(H))))``. How
fine the gate G is, is the method's granularity. In the decoder the values of cross-attention get a parallel bottleneck.
Formulas are those of the published code (VL-PET, ICCV 2023, Section 3); where its paper has others they are an option.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.errors import InputError
from multitask_vl.methods.base import Method
from multitask_vl.methods.compacter import CompacterConfig, PHMLinear, Rule
from multitask_vl.methods.sites import Site, Tap, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context, pooled

GATE_SPREAD = 0.02
"""Spread of the values that the middleY gate's vector starts with, in either family."""


class VLPetConfig(MethodConfig):
    """Keys of ``method: {name: vl_pet, ...}``."""

    granularity: Literal["large", "middleX", "middleY", "small", "none"] = "large"
    """What the gate tells apart: every number of every token, tokens, channels, samples, or nothing (no gate)."""
    rank: Positive = 96
    """Width of the encoder's bottlenecks (published: 96 for BART-base, 192 for T5-base)."""
    num_heads: Annotated[Positive, Field(validate_default=True)] = 4
    """Heads of the encoder's down-projections. Concatenated heads under an element-wise non-linearity are one linear
    map, which is what is built: it must divide `rank`, and changes nothing."""
    gate_rank: Positive = 96
    """Width of the large gate's bottleneck, which is not routed (published: as `rank`)."""
    gate_scale: float = 1.0
    """The factor s on what the gate lets through (published: 1.0 for BART, 0.3 for T5)."""
    gate_formula: Literal["code", "paper"] = "code"
    """The paper's gates differ from its code's: middleX and small look at H, not H', and middleY is 1 + sigmoid(z)."""
    legacy_pad_mean: bool = False
    """Average the small gate over padding too, as published: then what a batch is padded to changes its rows."""
    decoder_rank: Positive = 96
    """Width of the decoder's bottlenecks."""
    decoder_sites: tuple[Literal["value", "key", "self_attn", "cross_attn", "ffn"], ...] = ("value",)
    """Where the decoder is modified: beside cross-attention's value or key projection, or behind a whole sublayer
    (Tables 5 and 6)."""
    train_layer_norms: Literal["encoder", "decoder", "all", "none"] = "encoder"
    """Which of the backbone's layer norms are trained as well (Table 7)."""
    zero_init: bool = False
    """Start up-projections, what feeds the gates' sigmoids and the gates' vectors at zero (published for T5)."""
    module: Literal["adapter", "compacter"] = "adapter"
    """What a modification is made of: plain maps, or a compacter's (Table 9, "lightweight"). Gates keep plain ones."""
    n: Positive = 2
    """How many Kronecker products a compacter sums; must divide the ranks and the backbone's widths."""

    @field_validator("num_heads")
    @classmethod
    def _heads_divide(cls, heads: int, info: ValidationInfo) -> int:
        rank = info.data.get("rank", heads)
        if rank % heads:
            raise ValueError(f"must divide rank, and {rank} is not a multiple of {heads}")
        return heads


class Bottleneck(nn.Module):
    """``up(act(route(down(x))))``.

    Args:
        down, up: maps [.., d_in] -> [.., r] -> [.., d_out].
        stack: of the site it serves.
        context: task and x_R.
    """

    def __init__(self, down: nn.Module, up: nn.Module, stack: str, context: Context):
        super().__init__()
        self.down, self.up = down, up
        self.activation = ACT2FN["gelu_new"]
        self.stack, self.context = stack, context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]."""
        return self.up(self.activation(self.context.through(self.stack, x, self.down)))


class LargeGate(nn.Module):
    """A weight for every number: ``sigmoid(up(act(down(x))))`` of the sublayer's input alone."""

    def __init__(self, down: nn.Linear, up: nn.Linear):
        super().__init__()
        self.down, self.up = down, up
        self.activation = ACT2FN["gelu_new"]

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, d]."""
        return torch.sigmoid(self.up(self.activation(self.down(x))))


class MiddleXGate(nn.Module):
    """A weight a token: ``sigmoid(w . (x + hidden) + b)``."""

    def __init__(self, weigh: nn.Linear):
        super().__init__()
        self.weigh = weigh

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, 1]."""
        return torch.sigmoid(self.weigh(x + hidden))


class MiddleYGate(nn.Module):
    """A weight a channel, the same for all samples: ``1 + z``."""

    def __init__(self, width: int, spread: float, sigmoid: bool):
        super().__init__()
        self.z = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.z, std=spread)
        self.sigmoid = sigmoid

    def forward(self, x: None, hidden: torch.Tensor) -> torch.Tensor:
        """[d]."""
        return 1 + (torch.sigmoid(self.z) if self.sigmoid else self.z)


class SmallGate(nn.Module):
    """A weight a sample: ``sigmoid(w . [x; hidden] + b)`` averaged over positions."""

    def __init__(self, weigh: nn.Linear, context: Context, over_padding: bool):
        super().__init__()
        self.weigh = weigh
        self.context, self.over_padding = context, over_padding

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, 1, 1]."""
        # in two parts, so that nothing of width 2d is made
        of_x, of_hidden = self.weigh.weight.chunk(2, -1)
        weights = torch.sigmoid(F.linear(x, of_x) + F.linear(hidden, of_hidden, self.weigh.bias))
        if self.over_padding:
            return weights.mean(1, keepdim=True)
        return pooled(weights, self.context.kinds, "all")


class EncoderSite(Wrapped):
    """A sublayer's last map with a modification behind it and a gate on both.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d].
        bottleneck: makes the modification, [B, T, d] -> [B, T, d].
        gate: weights of x and hidden; None: 1.
        tap: gives x, the sublayer's input; None where the gate does not look at it.
        config: the method's settings.
    """

    def __init__(
        self, base: nn.Module, bottleneck: Bottleneck, gate: nn.Module | None, tap: Tap | None, config: VLPetConfig
    ):
        super().__init__(base)
        self.bottleneck, self.gate, self.tap = bottleneck, gate, tap
        self.scale = config.gate_scale
        self.reads_output = config.gate_formula == "paper"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]."""
        hidden = self.base(x)
        modified = hidden + self.bottleneck(hidden)
        if self.gate is None:
            return self.scale * modified
        stream = self.tap.take() if self.tap else None
        return self.scale * self.gate(stream, hidden if self.reads_output else modified) * modified


class DecoderSite(Wrapped):
    """A map with a bottleneck beside it, or behind it.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d_out].
        bottleneck: [B, T, d_in] -> [B, T, d_out] beside the map, [B, T, d_out] -> [B, T, d_out] behind it.
        parallel: whether it stands beside.
    """

    def __init__(self, base: nn.Module, bottleneck: Bottleneck, parallel: bool):
        super().__init__(base)
        self.bottleneck, self.parallel = bottleneck, parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]. ``x`` of cross-attention's value and key maps are the encoder's states."""
        hidden = self.base(x)
        return hidden + self.bottleneck(x if self.parallel else hidden)


@METHODS.register("vl_pet")
class VLPet(Method[VLPetConfig]):
    """Gated modifications in the encoder, a bottleneck beside cross-attention's values in the decoder."""

    Config = VLPetConfig
    routable = True
    identity = {"granularity": "none", "gate_scale": 1.0, "zero_init": True}
    group = "after a sublayer"
    variants = (
        {"granularity": "middleX", "zero_init": True, "gate_scale": 0.3},
        {"granularity": "middleY", "decoder_sites": ("self_attn", "cross_attn", "ffn"), "train_layer_norms": "decoder"},
        {"granularity": "small", "gate_formula": "paper"},
        {"module": "compacter", "decoder_sites": ("cross_attn",)},
    )

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """An `EncoderSite` at every last map of an encoder sublayer, a `DecoderSite` at the configured places."""
        config, last = self.config, site.role in ("output", "ffn_out")
        if site.stack == "encoder":
            if not last:
                return module
            reads = config.granularity in ("large", "middleX", "small")
            tap = self.layout.tap(site) if reads else None
            bottleneck = self._bottleneck(site, site.d_out, config.rank)
            return EncoderSite(module, bottleneck, self._gate(site.d_out), tap, config)
        parallel = site.sublayer == "cross_attn" and site.role in config.decoder_sites
        if not parallel and not (last and site.sublayer in config.decoder_sites):
            return module
        bottleneck = self._bottleneck(site, site.d_in if parallel else site.d_out, config.decoder_rank)
        return DecoderSite(module, bottleneck, parallel)

    def trains(self) -> Iterable[nn.Parameter]:
        """The configured layer norms."""
        return self.layout.norm_parameters(self.config.train_layer_norms)

    def _bottleneck(self, site: Site, d_in: int, rank: int) -> Bottleneck:
        if self.config.module == "adapter":
            down, up = self.layout.linear(d_in, rank), self._at_zero(self.layout.linear(rank, site.d_out))
        else:
            n = self.config.n
            if odd := [width for width in (d_in, rank, site.d_out) if width % n]:
                raise InputError(
                    f"method.n: {n} does not divide {odd[0]}, a width of the compacters; take one that divides all of "
                    f"{d_in}, {rank} and {site.d_out}"
                )
            phm = CompacterConfig(name="compacter", n=n)
            down = PHMLinear(d_in, rank, phm, Rule(phm, 0), zero=False)
            up = PHMLinear(rank, site.d_out, phm, Rule(phm, 0), zero=self.config.zero_init)
        return Bottleneck(down, up, site.stack, self.context)

    def _gate(self, width: int) -> nn.Module | None:
        config, linear = self.config, self.layout.linear
        if config.granularity == "large":
            return LargeGate(linear(width, config.gate_rank), self._at_zero(linear(config.gate_rank, width)))
        if config.granularity == "middleX":
            return MiddleXGate(self._at_zero(linear(width, 1)))
        if config.granularity == "middleY":
            spread = 0.0 if config.zero_init else GATE_SPREAD
            return MiddleYGate(width, spread, sigmoid=config.gate_formula == "paper")
        if config.granularity == "small":
            return SmallGate(self._at_zero(linear(2 * width, 1)), self.context, config.legacy_pad_mean)
        return None

    def _at_zero(self, linear: nn.Linear) -> nn.Linear:
        """The same map, at zero if so configured."""
        if self.config.zero_init:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return linear
