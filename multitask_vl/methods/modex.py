"""How does ModeX work: adapters after every sublayer, whose experts a router mixes for every token.

A modality-specific adapter (MS) is a plain bottleneck, ``h + up(relu(down(h)))``. A modality-expert coordinated one
(MEC) has three experts, for text, vision and both across, mixed by ``rho = softmax(router(h) / temperature)``; one half
of the adapter is common to them. ModeX (Sci. China Inf. Sci. 2024, Section 3) was never run on our kind of backbone, so
where which adapter stands is our mapping: MEC where image and text are both seen, MS in the decoder's self-attention.
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

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import Site, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import PROMPT, TEXT, VISUAL, Context

EXPERTS = ("text", "visual", "cross")
"""In the order of the router's outputs and of the rows that belong to each."""
Kind = Literal["mec", "ms", "none"]


class ModexConfig(MethodConfig):
    """Keys of ``method: {name: modex, ...}``."""

    rank: Positive = 16
    """Width of the bottleneck (published: 16 and 32)."""
    share: Literal["down", "up", "both", "none"] = "down"
    """Which half of a MEC its experts have in common; the router mixes the other (Table 9). `down` is the published
    code's, `up` the paper's best; `both` leaves one expert and no router, `none` three adapters."""
    temperature: Annotated[float, Field(gt=0)] = 10.0
    """Divides the router's outputs; at 10 the experts' weights stay near a third each."""
    modality_bias: Annotated[float, Field(ge=0)] = 0.0
    """Added, behind the temperature, for the visual expert at the encoder's grid cells and for the text expert at its
    words and prompts. 0 is off (published); a large value gives each modality its own expert."""
    encoder: Kind = "mec"
    """Adapters after the encoder's sublayers; `ms` reads the encoder as a uni-modal stack."""
    decoder_self_attn: Kind = "ms"
    """After the decoder's self-attention."""
    decoder_cross_attn: Kind = "mec"
    """After cross-attention."""
    decoder_ffn: Kind = "mec"
    """After the decoder's feed-forward blocks."""
    init: Literal["kaiming_uniform", "kaiming_normal"] = "kaiming_uniform"
    """Of down-projections: the published code's (with its a = sqrt 5) or its paper's. Up-projections start at zero."""
    train_layer_norms: Literal["all", "encoder", "decoder", "none"] = "all"
    """Which of the backbone's layer norms are trained as well (the published counts hold all)."""


class Experts(nn.Module):
    """A bottleneck with one or several experts in each half: ``up(relu(route(down(x))))``.

    The experts of a half lie in one map, one behind the other, so that none of their outputs is ever made apart.

    Args:
        width: d.
        site: where it stands.
        config: the method's settings.
        share: which halves all experts have in common.
        context: task, x_R and what the positions are.
    """

    def __init__(self, width: int, site: Site, config: ModexConfig, share: str, context: Context):
        super().__init__()
        self.stack, self.share, self.context = site.stack, share, context
        self.rank, self.temperature, self.modality_bias = config.rank, config.temperature, config.modality_bias
        downs = len(EXPERTS) if share in ("up", "none") else 1
        ups = len(EXPERTS) if share in ("down", "none") else 1
        self.router = None if share == "both" else nn.Linear(width, len(EXPERTS))
        self.down = nn.Linear(width, downs * self.rank)
        if config.init == "kaiming_normal":
            nn.init.kaiming_normal_(self.down.weight)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        self.up = nn.Linear(ups * self.rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        # the experts' biases one behind the other: of one axis, so that no optimiser takes it for a matrix
        self.up_bias = nn.Parameter(torch.zeros(ups * width))

    def rho(self, states: torch.Tensor, favour: torch.Tensor | float = 0.0) -> torch.Tensor:
        """How much each token listens to each of `EXPERTS` [.., 3], given its states [.., d]; 1 in sum."""
        return torch.softmax(self.router(states) / self.temperature + favour, -1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is added to ``hidden`` [B, T, d]."""
        if self.router is None:
            inner = torch.relu(self.context.through(self.stack, hidden, self.down))
            return self.up(inner) + self.up_bias
        rho = self.rho(hidden, self._favour())
        if self.share == "up":
            inner = self.context.through(
                self.stack, hidden, lambda states: self._mixed(states, rho), lambda x_r: self._mixed(x_r, self.rho(x_r))
            )
            return self.up(torch.relu(inner)) + self.up_bias
        if self.share == "down":
            inner = self.context.through(self.stack, hidden, self.down).unsqueeze(-2)
        else:
            # each expert's bottleneck is routed by itself
            experts = zip(self.down.weight.split(self.rank), self.down.bias.split(self.rank), strict=True)
            downs = [partial(F.linear, weight=weight, bias=bias) for weight, bias in experts]
            inner = torch.stack([self.context.through(self.stack, hidden, down) for down in downs], -2)
        weighted = (rho.unsqueeze(-1) * torch.relu(inner)).flatten(-2)
        return self.up(weighted) + rho @ self.up_bias.unflatten(0, (len(EXPERTS), -1))

    def _mixed(self, states: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        """The experts' down-projections of ``states``, mixed [.., r]."""
        return (rho.unsqueeze(-1) * self.down(states).unflatten(-1, (len(EXPERTS), -1))).sum(-2)

    def _favour(self) -> torch.Tensor | float:
        """What the router is biased with, by what each position of the encoder is [B, S, 3]."""
        if not self.modality_bias or self.stack != "encoder":
            return 0.0
        kinds = self.context.kinds
        text, visual = (kinds == TEXT) | (kinds == PROMPT), kinds == VISUAL
        return self.modality_bias * torch.stack([text, visual, torch.zeros_like(text)], -1)


class ModexSite(Wrapped):
    """A sublayer's last map with an adapter behind it."""

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
    group = "after a sublayer"
    variants = (
        {"share": "up", "decoder_self_attn": "none"},
        {"share": "none", "modality_bias": 2.0, "train_layer_norms": "decoder"},
        {"share": "both", "encoder": "ms", "init": "kaiming_normal"},
    )

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """A `ModexSite` of the configured kind at every sublayer's last map."""
        if site.role not in ("output", "ffn_out"):
            return module
        config = self.config
        kind = config.encoder if site.stack == "encoder" else getattr(config, f"decoder_{site.sublayer}")
        if kind == "none":
            return module
        share = config.share if kind == "mec" else "both"
        return ModexSite(module, Experts(site.d_out, site, config, share, self.context))

    def trains(self) -> Iterable[nn.Parameter]:
        """The configured layer norms."""
        return self.layout.norm_parameters(self.config.train_layer_norms)
