"""HyperFormer: a hypernetwork generates the weights of all adapters from the task, the layer and the sublayer.

Mahabadi et al. (2021), as VL-Adapter runs it (5.79 % of BART-base trained). A task has an embedding e_t, and each layer
i of a stack an embedding l_i; ``c = LN(W_2 relu(W_1 [e_t; l_i] + b_1) + b_2)``, and every weight and bias of the
adapters after the layer's sublayers is a linear function of the low-dimensional c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from multitask_vl.config.schema import MethodConfig, PositiveInt
from multitask_vl.methods.adapter import Activation
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import Site, SiteIndex, SiteWrapper
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context

SUBLAYERS = ("ffn", "self_attn", "cross_attn")
"""Sublayers in the order of the rows of an efficient generator's sublayer embedding."""
ALL_SUBLAYERS = "every_block"
"""Key of the heads that all sublayers share. Part of tensor names in saved adapters."""
GENERATOR_INIT_STD = 0.01
"""Std of a generator's new linear layers in families that do not define one (T5)."""

Adapters = dict[str, list[dict[str, torch.Tensor]]]
"""Sublayer -> per layer, the tensors of its adapter by name."""


class HyperformerConfig(MethodConfig):
    """Keys of ``method: {name: hyperformer, ...}``."""

    rank: PositiveInt = 96
    """Width of the bottleneck (published: d_model / 8)."""
    activation: Activation = "gelu_new"
    """Activation in the bottleneck, by its name in transformers."""
    generator: Literal["unique", "efficient"] = "unique"
    """In each stack, `unique`: separate heads for every kind of sublayer (published); `efficient`: the same heads for
    all, with an embedding of the sublayer next to e_t and l_i."""
    task_dim: PositiveInt = 512
    """Width of the embeddings of tasks, layers and sublayers."""
    hidden_dim: PositiveInt = 128
    """Width of the hidden layer between them and c."""
    projected_dim: PositiveInt = 8
    """Width of c."""
    train_layer_norms: Literal["all", "encoder", "none"] = "all"
    """Layer norms of the backbone that are also trained (published: all of BART's, none of T5's)."""
    pre_norm: bool = False
    """Add a layer norm before the down-projection, its weight and bias generated too."""
    post_norm: bool = False
    """Add a layer norm after the up-projection, its weight and bias generated too."""
    init: Literal["backbone", "zero_up"] = "backbone"
    """`backbone`: generators as the family initializes new linear layers (BART: normal with std 0.02, zero biases;
    published). `zero_up`: generated up-projections start at zero, so that training starts from the backbone's own
    function."""


class WeightHeads(nn.ModuleDict):
    """Linear heads from c to the tensors of an adapter.

    Heads that generate biases are themselves named "bias" and get no weight decay, as in the published code
    (training.weight_decay_on: all_but_biases).

    Args:
        config: the method's settings.
        site_index: the backbone and its sites.
    """

    def __init__(self, config: HyperformerConfig, site_index: SiteIndex):
        width, rank = site_index.d_model, config.rank
        self.shapes = {"down_weight": (rank, width), "down_bias": (rank,), "up_weight": (width, rank)}
        self.shapes["up_bias"] = (width,)
        for norm, enabled in {"pre": config.pre_norm, "post": config.post_norm}.items():
            self.shapes |= {f"{norm}_weight": (width,), f"{norm}_bias": (width,)} if enabled else {}
        super().__init__(
            {name: _linear(site_index, config.projected_dim, math.prod(shape)) for name, shape in self.shapes.items()}
        )
        if config.init == "zero_up":
            # a norm of zeros equals its bias
            for name in {"up_weight", "up_bias", "post_bias"} & {*self}:
                nn.init.zeros_(self[name].weight)
                nn.init.zeros_(self[name].bias)

    def forward(self, c: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """[L, projected_dim] -> L adapters."""
        generated = {name: self[name](c).unflatten(-1, shape).unbind() for name, shape in self.shapes.items()}
        return [dict(zip(generated, tensors, strict=True)) for tensors in zip(*generated.values(), strict=True)]


class Generator(nn.Module):
    """Generates all adapters of one stack in one call, so that its large weights are read once, not once per layer.

    Args:
        config: the method's settings.
        site_index: the backbone and its sites.
        stack: ``encoder`` or ``decoder``.
        sublayers: sublayers that have an adapter.
    """

    def __init__(self, config: HyperformerConfig, site_index: SiteIndex, stack: str, sublayers: Sequence[str]):
        super().__init__()
        efficient = config.generator == "efficient"
        self.sublayers = tuple(sublayers)
        self.layers = site_index.new_embedding(site_index.num_layers(stack), config.task_dim)
        # embedding of the sublayers; as published, a row for each of the three whether the stack has it or not
        self.kinds = site_index.new_embedding(len(SUBLAYERS), config.task_dim) if efficient else None
        width = (3 if efficient else 2) * config.task_dim
        self.project = nn.Sequential(
            _linear(site_index, width, config.hidden_dim),
            nn.ReLU(),
            _linear(site_index, config.hidden_dim, config.projected_dim),
            nn.LayerNorm(config.projected_dim, eps=1e-6),
        )
        names = [ALL_SUBLAYERS] if efficient else sublayers
        self.heads = nn.ModuleDict({name: WeightHeads(config, site_index) for name in names})

    def forward(self, e_t: torch.Tensor) -> Adapters:
        """Adapters of a task, given its embedding [task_dim]."""
        layers = self.layers.weight
        inputs = torch.cat([e_t.expand_as(layers), layers], -1)
        if self.kinds is None:
            c = self.project(inputs)
            return {sublayer: self.heads[sublayer](c) for sublayer in self.sublayers}
        adapters = {}
        for sublayer in self.sublayers:
            kind = self.kinds.weight[SUBLAYERS.index(sublayer)].expand_as(layers)
            adapters[sublayer] = self.heads[ALL_SUBLAYERS](self.project(torch.cat([inputs, kind], -1)))
        return adapters


class HyperformerSite(SiteWrapper):
    """A linear layer followed by a generated adapter.

    Args:
        base: the linear layer, [B, T, d_in] -> [B, T, d].
        site: its description.
        config: the method's settings.
        context: current task and x_R.
        shared_module: task embeddings and generators of the stacks; registered with the method.
    """

    def __init__(
        self, base: nn.Module, site: Site, config: HyperformerConfig, context: Context, shared_module: nn.ModuleDict
    ):
        super().__init__(base)
        self.site = site
        self.context = context
        # in a tuple, so that it is not registered at every site
        self.shared_module = (shared_module,)
        self.activation = ACT2FN[config.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, d_in] -> [B, T, d]. x_R passes the same norm and down-projection as the hidden states."""
        hidden = self.base(x)
        stack = self.site.stack
        adapters = self.context.cached(("hyperformer", stack), self._generate)
        own = adapters[self.site.sublayer][self.site.layer]
        bottleneck = self.context.bottleneck(
            stack, hidden, lambda states: F.linear(_norm(states, own, "pre"), own["down_weight"], own["down_bias"])
        )
        return hidden + _norm(F.linear(self.activation(bottleneck), own["up_weight"], own["up_bias"]), own, "post")

    def _generate(self) -> Adapters:
        (shared,) = self.shared_module
        return shared[self.site.stack](shared["tasks"][self.context.task])


@METHODS.register("hyperformer")
class Hyperformer(Method[HyperformerConfig]):
    """A generated adapter after the output projection of every attention and after every feed-forward block."""

    Config = HyperformerConfig
    routable = True
    identity = {"init": "zero_up"}
    slot = "after a sublayer"
    test_variants = ({"generator": "efficient", "pre_norm": True, "post_norm": True},)

    def __init__(self, config: HyperformerConfig, context: Context, site_index: SiteIndex):
        super().__init__(config, context, site_index)
        sublayers: dict[str, list[str]] = {}
        for site in site_index.sites:
            if is_sublayer_output(site) and site.sublayer not in sublayers.setdefault(site.stack, []):
                sublayers[site.stack].append(site.sublayer)
        embeddings = {task: nn.Parameter(torch.randn(config.task_dim)) for task in context.tasks}
        generators = {stack: Generator(config, site_index, stack, names) for stack, names in sublayers.items()}
        self.shared_module = nn.ModuleDict({"tasks": nn.ParameterDict(embeddings), **generators})

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Wrap the last linear layer of every sublayer in a `HyperformerSite`."""
        if not is_sublayer_output(site):
            return module
        return HyperformerSite(module, site, self.config, self.context, self.shared_module)

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """The layer norms selected by `train_layer_norms`."""
        return self.site_index.norm_parameters(self.config.train_layer_norms)


def is_sublayer_output(site: Site) -> bool:
    """Whether ``site`` is the last linear layer of a sublayer."""
    return site.role in ("output", "ffn_out")


def _linear(site_index: SiteIndex, d_in: int, d_out: int) -> nn.Linear:
    linear = site_index.new_linear(d_in, d_out)
    if site_index.init_std is None:
        nn.init.normal_(linear.weight, std=GENERATOR_INIT_STD)
        nn.init.zeros_(linear.bias)
    return linear


def _norm(states: torch.Tensor, adapter: dict[str, torch.Tensor], which: str) -> torch.Tensor:
    """Apply a layer norm with generated weight and bias, if the adapter has one."""
    if f"{which}_weight" not in adapter:
        return states
    # under autocast the generated tensors are in half precision and x_R is not
    weight, bias = (adapter[f"{which}_{name}"].to(states.dtype) for name in ("weight", "bias"))
    return F.layer_norm(states, states.shape[-1:], weight, bias)
