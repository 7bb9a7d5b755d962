"""ModeX: adapters after every sublayer, with experts that a router mixes for every token.

A modality-specific adapter (MS) is a plain bottleneck, ``h + up(relu(down(h)))``. A modality-expert coordinated one
(MEC) has three experts, for text, image and cross-modal content, mixed by ``softmax(router(h) / temperature)``; one
half of the adapter is shared by them. ModeX (Sci. China Inf. Sci. 2024, Section 3) was not published for this kind of
backbone; the placement here is our own: MEC where image and text are both visible, MS in the decoder's self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from multitask_vl.config.schema import MethodConfig, PositiveInt
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import Site, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context
from multitask_vl.routing.pooling import TokenType

EXPERTS = ("text", "visual", "cross")
"""Experts in the order of the router's outputs and of their rows in the projections."""
AdapterKind = Literal["mec", "ms", "none"]


class ModexConfig(MethodConfig):
    """Keys of ``method: {name: modex, ...}``."""

    rank: PositiveInt = 16
    """Width of the bottleneck (published: 16 and 32)."""
    shared_projection: Literal["down", "up", "both", "none"] = "down"
    """The projection that the experts of a MEC share; the router mixes the other (Table 9). `down` is the published
    code's, `up` the paper's best; `both` leaves one expert and no router, `none` three separate adapters."""
    temperature: Annotated[float, Field(gt=0)] = 10.0
    """Divides the router's outputs; at 10 the experts' weights stay close to a third each."""
    modality_bias: Annotated[float, Field(ge=0)] = 0.0
    """Added to the logits, after the temperature, of the visual expert at visual tokens of the encoder and of the text
    expert at text and prompt tokens. 0 is off (published); a large value gives each modality its own expert."""
    encoder: AdapterKind = "mec"
    """Adapters after the encoder's sublayers; `ms` treats the encoder as a unimodal stack."""
    decoder_self_attn: AdapterKind = "ms"
    """Adapters after the decoder's self-attention."""
    decoder_cross_attn: AdapterKind = "mec"
    """Adapters after cross-attention."""
    decoder_ffn: AdapterKind = "mec"
    """Adapters after the decoder's feed-forward blocks."""
    init: Literal["kaiming_uniform", "kaiming_normal"] = "kaiming_uniform"
    """Initialization of down-projections: the published code's (with a = sqrt 5) or the paper's. Up-projections start
    at zero."""
    train_layer_norms: Literal["all", "encoder", "decoder", "none"] = "all"
    """Layer norms of the backbone that are also trained (included in the published counts: all)."""


class Experts(nn.Module):
    """A bottleneck with one or three experts in each projection: ``up(relu(route(down(x))))``.

    The experts of a projection are stored concatenated in one linear layer, so that their outputs are never
    materialized separately.

    Args:
        width: d.
        site: the site it serves.
        config: the method's settings.
        shared_projection: which projections all experts share.
        context: current task, x_R and token types.
    """

    def __init__(self, width: int, site: Site, config: ModexConfig, shared_projection: str, context: Context):
        super().__init__()
        self.stack, self.shared_projection, self.context = site.stack, shared_projection, context
        self.rank, self.temperature, self.modality_bias = config.rank, config.temperature, config.modality_bias
        num_downs = len(EXPERTS) if shared_projection in ("up", "none") else 1
        num_ups = len(EXPERTS) if shared_projection in ("down", "none") else 1
        self.router = None if shared_projection == "both" else nn.Linear(width, len(EXPERTS))
        self.down = nn.Linear(width, num_downs * self.rank)
        if config.init == "kaiming_normal":
            nn.init.kaiming_normal_(self.down.weight)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        self.up = nn.Linear(num_ups * self.rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        # the experts' biases, concatenated: one-dimensional, so that no optimizer treats them as a matrix
        self.up_bias = nn.Parameter(torch.zeros(num_ups * width))

    def router_weights(self, states: torch.Tensor, modality_logits: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Weights of the `EXPERTS` [..., 3] for hidden states [..., d]; they sum to 1."""
        return torch.softmax(self.router(states) / self.temperature + modality_logits, -1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The update of ``hidden``, [B, T, d] -> [B, T, d]."""
        if self.router is None:
            inner = torch.relu(self.context.bottleneck(self.stack, hidden, self.down))
            return self.up(inner) + self.up_bias
        weights = self.router_weights(hidden, self.modality_logits())
        if self.shared_projection == "up":
            inner = self.context.bottleneck(
                self.stack,
                hidden,
                lambda states: self.mixed_down(states, weights),
                lambda x_r: self.mixed_down(x_r, self.router_weights(x_r)),
            )
            return self.up(torch.relu(inner)) + self.up_bias
        if self.shared_projection == "down":
            inner = self.context.bottleneck(self.stack, hidden, self.down).unsqueeze(-2)
        else:
            # the bottleneck of each expert is routed separately
            experts = zip(self.down.weight.split(self.rank), self.down.bias.split(self.rank), strict=True)
            downs = [partial(F.linear, weight=weight, bias=bias) for weight, bias in experts]
            inner = torch.stack([self.context.bottleneck(self.stack, hidden, down) for down in downs], -2)
        mixed = (weights.unsqueeze(-1) * torch.relu(inner)).flatten(-2)
        return self.up(mixed) + weights @ self.up_bias.unflatten(0, (len(EXPERTS), -1))

    def mixed_down(self, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Mixture of the experts' down-projections of ``states``, [..., d] -> [..., r]."""
        return (weights.unsqueeze(-1) * self.down(states).unflatten(-1, (len(EXPERTS), -1))).sum(-2)

    def modality_logits(self) -> torch.Tensor | float:
        """Bias of the router by token type [B, S, 3]; 0 outside the encoder."""
        if not self.modality_bias or self.stack != "encoder":
            return 0.0
        types = self.context.token_types
        text, visual = (types == TokenType.TEXT) | (types == TokenType.PROMPT), types == TokenType.VISUAL
        return self.modality_bias * torch.stack([text, visual, torch.zeros_like(text)], -1)


class ModexSite(SiteWrapper):
    """A sublayer's last linear layer followed by an adapter."""

    def __init__(self, base: nn.Module, experts: Experts):
        super().__init__(base)
        self.experts = experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]."""
        hidden = self.base(x)
        return hidden + self.experts(hidden)


@METHODS.register("modex")
class Modex(Method[ModexConfig]):
    """MS and MEC adapters after the output projection of every attention and after every feed-forward block."""

    Config = ModexConfig
    routable = True
    slot = "after a sublayer"
    test_variants = (
        {"shared_projection": "up", "decoder_self_attn": "none"},
        {"shared_projection": "none", "modality_bias": 2.0, "train_layer_norms": "decoder"},
        {"shared_projection": "both", "encoder": "ms", "init": "kaiming_normal"},
    )

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap the last linear layer of every sublayer in a `ModexSite` of the configured kind."""
        if site.role not in ("output", "ffn_out"):
            return module
        config = self.config
        kind = config.encoder if site.stack == "encoder" else getattr(config, f"decoder_{site.sublayer}")
        if kind == "none":
            return module
        shared = config.shared_projection if kind == "mec" else "both"
        return ModexSite(module, Experts(site.d_out, site, config, shared, self.context))

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The layer norms selected by `train_layer_norms`."""
        return self.site_index.norm_parameters(self.config.train_layer_norms)
