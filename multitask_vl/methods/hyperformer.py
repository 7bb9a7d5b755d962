"""How does HyperFormer work: one small network writes every adapter's weights, given the task, the layer and the block.

Mahabadi et al. (2021), as VL-Adapter runs it (5.79 % of BART-base trained). What a task owns is a vector e_t; with l_i,
which a stack owns for its layer i, ``c = LN(W_2 relu(W_1 [e_t; l_i] + b_1) + b_2)``, and every weight and bias of the
adapters after the layer's sublayers is a linear map of the few numbers c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.methods.adapter import Activation
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import Layout, Site, Wrapped
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context

BLOCKS = ("ffn", "self_attn", "cross_attn")
"""Sublayers in the order of the rows that name them to an efficient generator."""
EVERY_BLOCK = "every_block"
GENERATED = 0.01
"""Spread of a generator's new maps in families that have none of their own (T5)."""

Adapters = dict[str, list[dict[str, torch.Tensor]]]
"""Sublayer -> for each layer, the tensors of its adapter by name."""


class HyperformerConfig(MethodConfig):
    """Keys of ``method: {name: hyperformer, ...}``."""

    rank: Positive = 96
    """Width of the bottleneck (published: d_model / 8)."""
    activation: Activation = "gelu_new"
    """Non-linearity in the bottleneck, by its transformers name."""
    generator: Literal["unique", "efficient"] = "unique"
    """In each stack: maps of every sublayer's own (published), or the same for all, which are told the sublayer by a
    third vector beside e_t and l_i."""
    task_dim: Positive = 512
    """Width of the vectors of tasks, layers and sublayers."""
    hidden_dim: Positive = 128
    """Width of the hidden layer between them and c."""
    projected_dim: Positive = 8
    """Width of c."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Which of the backbone's layer norms are trained as well (published: all of BART's, none of T5's)."""
    pre_norm: bool = False
    """A layer norm before the down-projection, its gain and shift generated too."""
    post_norm: bool = False
    """A layer norm after the up-projection, its gain and shift generated too."""
    init: Literal["family", "zero_up"] = "family"
    """Generators as the family initialises new maps (BART: normal with spread 0.02, zero biases; published), or zero
    where they make the up-projection, so that training starts at the backbone itself."""


class Heads(nn.ModuleDict):
    """The linear maps from c to the tensors of an adapter.

    Those that make biases are biases to the optimiser by their name, as published (training.decay: all_but_biases).

    Args:
        config: the method's settings.
        layout: the backbone.
    """

    def __init__(self, config: HyperformerConfig, layout: Layout):
        width, rank = layout.width, config.rank
        self.shapes = {"down_weight": (rank, width), "down_bias": (rank,), "up_weight": (width, rank)}
        self.shapes["up_bias"] = (width,)
        for which, wanted in {"pre": config.pre_norm, "post": config.post_norm}.items():
            self.shapes |= {f"{which}_weight": (width,), f"{which}_bias": (width,)} if wanted else {}
        super().__init__(
            {name: _linear(layout, config.projected_dim, math.prod(shape)) for name, shape in self.shapes.items()}
        )
        if config.init == "zero_up":
            # the norm of zeros is its shift
            for name in {"up_weight", "up_bias", "post_bias"} & {*self}:
                nn.init.zeros_(self[name].weight)
                nn.init.zeros_(self[name].bias)

    def forward(self, c: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """[L, projected_dim] -> L adapters."""
        made = {name: self[name](c).unflatten(-1, shape).unbind() for name, shape in self.shapes.items()}
        return [dict(zip(made, tensors, strict=True)) for tensors in zip(*made.values(), strict=True)]


class Generator(nn.Module):
    """Makes all adapters of one stack at once: its large maps are read once, not once a layer.

    Args:
        config: the method's settings.
        layout: the backbone.
        stack: ``encoder`` or ``decoder``.
        blocks: sublayers that have an adapter.
    """

    def __init__(self, config: HyperformerConfig, layout: Layout, stack: str, blocks: Sequence[str]):
        super().__init__()
        efficient = config.generator == "efficient"
        self.blocks = tuple(blocks)
        self.layers = layout.embedding(layout.depth(stack), config.task_dim)
        # as published, a row for each of the three whether the stack has it or not
        self.kinds = layout.embedding(len(BLOCKS), config.task_dim) if efficient else None
        given = (3 if efficient else 2) * config.task_dim
        self.narrow = nn.Sequential(
            _linear(layout, given, config.hidden_dim),
            nn.ReLU(),
            _linear(layout, config.hidden_dim, config.projected_dim),
            nn.LayerNorm(config.projected_dim, eps=1e-6),
        )
        names = [EVERY_BLOCK] if efficient else blocks
        self.heads = nn.ModuleDict({name: Heads(config, layout) for name in names})

    def forward(self, e_t: torch.Tensor) -> Adapters:
        """Adapters of a task, from its vector [task_dim]."""
        layers = self.layers.weight
        known = torch.cat([e_t.expand_as(layers), layers], -1)
        if self.kinds is None:
            c = self.narrow(known)
            return {block: self.heads[block](c) for block in self.blocks}
        made = {}
        for block in self.blocks:
            kind = self.kinds.weight[BLOCKS.index(block)].expand_as(layers)
            made[block] = self.heads[EVERY_BLOCK](self.narrow(torch.cat([known, kind], -1)))
        return made


class HyperformerSite(Wrapped):
    """A linear map with a generated adapter behind it.

    Args:
        base: the map, [B, T, d_in] -> [B, T, d].
        site: its description.
        config: the method's settings.
        context: task and x_R.
        module: vectors of tasks and generators of stacks; belongs to the method.
    """

    def __init__(self, base: nn.Module, site: Site, config: HyperformerConfig, context: Context, module: nn.ModuleDict):
        super().__init__(base)
        self.place = site
        self.context = context
        # in a tuple it is not registered at every site
        self.common = (module,)
        self.activation = ACT2FN[config.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]. x_R takes the same way into the bottleneck as the hidden states."""
        hidden = self.base(x)
        stack = self.place.stack
        own = self.context.once(("hyperformer", stack), self._generate)[self.place.sublayer][self.place.layer]
        bottleneck = self.context.through(
            stack, hidden, lambda states: F.linear(_norm(states, own, "pre"), own["down_weight"], own["down_bias"])
        )
        return hidden + _norm(F.linear(self.activation(bottleneck), own["up_weight"], own["up_bias"]), own, "post")

    def _generate(self) -> Adapters:
        (module,) = self.common
        return module[self.place.stack](module["tasks"][self.context.task])


@METHODS.register("hyperformer")
class Hyperformer(Method[HyperformerConfig]):
    """A generated adapter after the output projection of every attention and after every feed-forward block."""

    Config = HyperformerConfig
    routable = True
    identity = {"init": "zero_up"}
    group = "after a sublayer"
    variants = ({"generator": "efficient", "pre_norm": True, "post_norm": True},)

    def __init__(self, config: HyperformerConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        places = [(site.stack, site.sublayer) for site in layout.sites if _is_place(site)]
        vectors = {task: nn.Parameter(torch.randn(config.task_dim)) for task in context.tasks}
        generators = {
            stack: Generator(config, layout, stack, list(dict.fromkeys(block for one, block in places if one == stack)))
            for stack in dict.fromkeys(stack for stack, _ in places)
        }
        self.module = nn.ModuleDict({"tasks": nn.ParameterDict(vectors), **generators})

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """A `HyperformerSite` at every sublayer's last map."""
        if not _is_place(site):
            return module
        return HyperformerSite(module, site, self.config, self.context, self.module)

    def trains(self) -> Iterable[nn.Parameter]:
        """The backbone's layer norms, if so configured."""
        return self.layout.norm_parameters(self.config.train_layer_norms)


def _is_place(site: Site) -> bool:
    return site.role in ("output", "ffn_out")


def _linear(layout: Layout, d_in: int, d_out: int) -> nn.Linear:
    linear = layout.linear(d_in, d_out)
    if layout.init_std is None:
        nn.init.normal_(linear.weight, std=GENERATED)
        nn.init.zeros_(linear.bias)
    return linear


def _norm(states: torch.Tensor, adapter: dict[str, torch.Tensor], which: str) -> torch.Tensor:
    """A layer norm with generated gain and shift, where there is one."""
    if f"{which}_weight" not in adapter:
        return states
    # under autocast what is generated is in half precision, and x_R is not
    gain, shift = (adapter[f"{which}_{kind}"].to(states.dtype) for kind in ("weight", "bias"))
    return F.layer_norm(states, states.shape[-1:], gain, shift)
