"""VL-PET: gated modifications of encoder sublayers, and small ones in the decoder's cross-attention.

In the encoder, a sublayer with input X and output H returns ``s G * H'`` with ``H' = H + up(act(route(down(H))))``. The
granularity of the method is the shape of the gate G. In the decoder, the values of cross-attention get a parallel
bottleneck. Formulas are those of the published code (VL-PET, ICCV 2023, Section 3); the paper's are options where they
differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, PositiveInt
from multitask_vl.errors import InputError
from multitask_vl.methods.base import Method
from multitask_vl.methods.compacter import CompacterConfig, PHMLinear, PHMRule
from multitask_vl.methods.sites import InputCapture, Site, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context
from multitask_vl.routing.pooling import masked_mean

GATE_INIT_STD = 0.02
"""Std of the initial values of the middleY gate, in both families."""


class VLPetConfig(MethodConfig):
    """Keys of ``method: {name: vl_pet, ...}``."""

    granularity: Literal["large", "middleX", "middleY", "small", "none"] = "large"
    """One gate value per token and channel, per token, per channel, per sample, or no gate."""
    rank: PositiveInt = 96
    """Width of the encoder's bottlenecks (published: 96 for BART-base, 192 for T5-base)."""
    num_heads: Annotated[PositiveInt, Field(validate_default=True)] = 4
    """Heads of the encoder's down-projections. Concatenated heads before an element-wise activation are one linear
    layer, which is what is built: the value must divide `rank` and has no effect."""
    gate_rank: PositiveInt = 96
    """Width of the large gate's bottleneck, which is not routed (published: as `rank`)."""
    gate_scale: float = 1.0
    """The factor s on the gated output (published: 1.0 for BART, 0.3 for T5)."""
    gate_formula: Literal["code", "paper"] = "code"
    """The paper's gates differ from its code's: middleX and small read H, not H', and middleY is 1 + sigmoid(z)."""
    mean_over_padding: bool = False
    """Average the small gate over padding too, as published: then predictions depend on how a batch is padded."""
    decoder_rank: PositiveInt = 96
    """Width of the decoder's bottlenecks."""
    decoder_sites: tuple[Literal["value", "key", "self_attn", "cross_attn", "ffn"], ...] = ("value",)
    """What is modified in the decoder: cross-attention's value or key projection (in parallel), or the output of a
    sublayer (Tables 5 and 6)."""
    train_layer_norms: Literal["encoder", "decoder", "all", "none"] = "encoder"
    """Layer norms of the backbone that are also trained (Table 7)."""
    zero_init: bool = False
    """Initialize up-projections, the last layer of the gates and the middleY gate at zero (published for T5)."""
    adapter_type: Literal["adapter", "compacter"] = "adapter"
    """Projections of the modifications: linear layers or a compacter's (Table 9, "lightweight"). Gates stay linear."""
    phm_dim: PositiveInt = 2
    """Number of Kronecker products per compacter projection; must divide the ranks and the backbone's widths."""

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
        down, up: projections [..., d_in] -> [..., r] -> [..., d_out].
        stack: stack of the site it serves.
        context: current task and x_R.
    """

    def __init__(self, down: nn.Module, up: nn.Module, stack: str, context: Context):
        super().__init__()
        self.down, self.up = down, up
        self.activation = ACT2FN["gelu_new"]
        self.stack, self.context = stack, context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]."""
        return self.up(self.activation(self.context.bottleneck(self.stack, x, self.down)))


class LargeGate(nn.Module):
    """One value per token and channel: ``sigmoid(up(act(down(x))))``, of the sublayer's input only."""

    def __init__(self, down: nn.Linear, up: nn.Linear):
        super().__init__()
        self.down, self.up = down, up
        self.activation = ACT2FN["gelu_new"]

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, d]."""
        return torch.sigmoid(self.up(self.activation(self.down(x))))


class MiddleXGate(nn.Module):
    """One value per token: ``sigmoid(w . (x + hidden) + b)``."""

    def __init__(self, gate_proj: nn.Linear):
        super().__init__()
        self.gate_proj = gate_proj

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, 1]."""
        return torch.sigmoid(self.gate_proj(x + hidden))


class MiddleYGate(nn.Module):
    """One value per channel, the same for all samples: ``1 + z``, or ``1 + sigmoid(z)``."""

    def __init__(self, width: int, init_std: float, sigmoid: bool):
        super().__init__()
        self.z = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.z, std=init_std)
        self.sigmoid = sigmoid

    def forward(self, x: None, hidden: torch.Tensor) -> torch.Tensor:
        """[d]."""
        return 1 + (torch.sigmoid(self.z) if self.sigmoid else self.z)


class SmallGate(nn.Module):
    """One value per sample: ``sigmoid(w . [x; hidden] + b)``, averaged over positions."""

    def __init__(self, gate_proj: nn.Linear, context: Context, over_padding: bool):
        super().__init__()
        self.gate_proj = gate_proj
        self.context, self.over_padding = context, over_padding

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, 1, 1]."""
        # two products instead of one, so that no tensor of width 2d is allocated
        w_x, w_hidden = self.gate_proj.weight.chunk(2, -1)
        values = torch.sigmoid(F.linear(x, w_x) + F.linear(hidden, w_hidden, self.gate_proj.bias))
        if self.over_padding:
            return values.mean(1, keepdim=True)
        return masked_mean(values, self.context.token_types, "all")


class EncoderSite(SiteWrapper):
    """A sublayer's last linear layer followed by a modification and a gate on their sum.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d].
        bottleneck: computes the modification, [B, T, d] -> [B, T, d].
        gate: function of the sublayer's input and output; None: constant 1.
        captured: holds the sublayer's input; None where the gate does not read it.
        config: the method's settings.
    """

    def __init__(
        self,
        base: nn.Module,
        bottleneck: Bottleneck,
        gate: nn.Module | None,
        captured: InputCapture | None,
        config: VLPetConfig,
    ):
        super().__init__(base)
        self.bottleneck, self.gate, self.captured = bottleneck, gate, captured
        self.scale = config.gate_scale
        self.gate_reads_base = config.gate_formula == "paper"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]."""
        hidden = self.base(x)
        modified = hidden + self.bottleneck(hidden)
        if self.gate is None:
            return self.scale * modified
        residual = self.captured.pop() if self.captured else None
        return self.scale * self.gate(residual, hidden if self.gate_reads_base else modified) * modified


class DecoderSite(SiteWrapper):
    """A linear layer with a bottleneck in parallel to it, or after it.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d_out].
        bottleneck: [B, T, d_in] -> [B, T, d_out] if parallel, else [B, T, d_out] -> [B, T, d_out].
        parallel: whether the bottleneck reads the layer's input or its output.
    """

    def __init__(self, base: nn.Module, bottleneck: Bottleneck, parallel: bool):
        super().__init__(base)
        self.bottleneck, self.parallel = bottleneck, parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d_out]. Cross-attention's keys and values read the encoder's hidden states."""
        hidden = self.base(x)
        return hidden + self.bottleneck(x if self.parallel else hidden)


@METHODS.register("vl_pet")
class VLPet(Method[VLPetConfig]):
    """Gated modifications in the encoder and, in the decoder, a bottleneck parallel to cross-attention's values."""

    Config = VLPetConfig
    routable = True
    identity = {"granularity": "none", "gate_scale": 1.0, "zero_init": True}
    slot = "after a sublayer"
    test_variants = (
        {"granularity": "middleX", "zero_init": True, "gate_scale": 0.3},
        {"granularity": "middleY", "decoder_sites": ("self_attn", "cross_attn", "ffn"), "train_layer_norms": "decoder"},
        {"granularity": "small", "gate_formula": "paper"},
        {"adapter_type": "compacter", "decoder_sites": ("cross_attn",)},
    )

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap the encoder's sublayer outputs in an `EncoderSite`, the configured decoder sites in a `DecoderSite`."""
        config, last = self.config, site.role in ("output", "ffn_out")
        if site.stack == "encoder":
            if not last:
                return module
            gate_reads_input = config.granularity in ("large", "middleX", "small")
            captured = self.site_index.capture_input(site) if gate_reads_input else None
            bottleneck = self._bottleneck(site, site.d_out, config.rank)
            return EncoderSite(module, bottleneck, self._gate(site.d_out), captured, config)
        parallel = site.sublayer == "cross_attn" and site.role in config.decoder_sites
        if not parallel and not (last and site.sublayer in config.decoder_sites):
            return module
        bottleneck = self._bottleneck(site, site.d_in if parallel else site.d_out, config.decoder_rank)
        return DecoderSite(module, bottleneck, parallel)

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The layer norms selected by `train_layer_norms`."""
        return self.site_index.norm_parameters(self.config.train_layer_norms)

    def _bottleneck(self, site: Site, d_in: int, rank: int) -> Bottleneck:
        if self.config.adapter_type == "adapter":
            linear = self.site_index.new_linear
            down, up = linear(d_in, rank), self.maybe_zero_init(linear(rank, site.d_out))
        else:
            n = self.config.phm_dim
            if odd := [width for width in (d_in, rank, site.d_out) if width % n]:
                raise InputError(
                    f"method.phm_dim: {n} does not divide {odd[0]}, a width of the compacters; set it to a divisor of "
                    f"{d_in}, {rank} and {site.d_out}"
                )
            phm = CompacterConfig(name="compacter", phm_dim=n)
            down = PHMLinear(d_in, rank, phm, PHMRule(phm, 0), zero=False)
            up = PHMLinear(rank, site.d_out, phm, PHMRule(phm, 0), zero=self.config.zero_init)
        return Bottleneck(down, up, site.stack, self.context)

    def _gate(self, width: int) -> nn.Module | None:
        config, linear = self.config, self.site_index.new_linear
        if config.granularity == "large":
            return LargeGate(linear(width, config.gate_rank), self.maybe_zero_init(linear(config.gate_rank, width)))
        if config.granularity == "middleX":
            return MiddleXGate(self.maybe_zero_init(linear(width, 1)))
        if config.granularity == "middleY":
            init_std = 0.0 if config.zero_init else GATE_INIT_STD
            return MiddleYGate(width, init_std, sigmoid=config.gate_formula == "paper")
        if config.granularity == "small":
            return SmallGate(self.maybe_zero_init(linear(2 * width, 1)), self.context, config.mean_over_padding)
        return None

    def maybe_zero_init(self, linear: nn.Linear) -> nn.Linear:
        """Return ``linear``, set to zero if `zero_init` is on."""
        if self.config.zero_init:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return linear
