"""Sites: the leaf modules of a backbone that a method may wrap, and the modules that wrap them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

EVERY_TASK = "every_task"
"""Key of the only member of a `PerTask` that all tasks share. Part of tensor names in saved adapters."""


@dataclass(frozen=True, slots=True)
class Site:
    """A leaf module of the backbone, described by its function so that methods need no module names.

    Attributes:
        name: dotted name inside the language model.
        stack: ``encoder`` or ``decoder``.
        layer: index in the stack; -1 before the first or after the last layer.
        sublayer: ``self_attn``, ``cross_attn``, ``ffn`` or, for norms outside the layers, ``embedding`` or ``final``.
        role: ``query``, ``key``, ``value``, ``query_key_value`` (fused projection), ``output`` (of an attention),
            ``ffn_in``, ``ffn_gate`` (the multiplicative branch of a gated feed-forward block), ``ffn_out`` or ``norm``.
        d_in, d_out: input and output width.
    """

    name: str
    stack: str
    layer: int
    sublayer: str
    role: str
    d_in: int
    d_out: int

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the equal slices of the output: one for a plain projection, three in order for a fused one."""
        return ("query", "key", "value") if self.role == "query_key_value" else (self.role,)


class SiteIndex:
    """A language model with its sites and norms: everything a method knows about a backbone.

    Args:
        lm: the language model; its modules are replaced in place.
        sites: linear layers that may be wrapped.
        norms: normalization layers (role ``norm``).
        init_std: std of the normal distribution that the family uses for new linear layers; None: torch's default.
        pre_norm: whether a sublayer starts with its norm (T5) or ends with it (BART).
        bias_tables: names of parameters that are biases without being named so (T5's relative position tables).
    """

    def __init__(
        self,
        lm: nn.Module,
        sites: Sequence[Site],
        norms: Sequence[Site],
        init_std: float | None,
        pre_norm: bool = False,
        bias_tables: Sequence[str] = (),
    ):
        self.lm = lm
        self.sites = tuple(sites)
        self.norms = tuple(norms)
        self.init_std = init_std
        self.pre_norm = pre_norm
        self.bias_tables = tuple(bias_tables)

    def module(self, site: Site) -> nn.Module:
        """The module installed at a site: the backbone's own, or the outermost wrapper."""
        return self.lm.get_submodule(site.name)

    def replace(self, site: Site, module: nn.Module) -> None:
        """Install ``module`` at a site."""
        parent, _, leaf = site.name.rpartition(".")
        setattr(self.lm.get_submodule(parent), leaf, module)

    @property
    def d_model(self) -> int:
        """Width of the residual stream, d."""
        return self.norms[0].d_in

    def num_layers(self, stack: str) -> int:
        """Number of layers of ``stack``."""
        return 1 + max(site.layer for site in self.sites if site.stack == stack)

    def roles(self) -> list[str]:
        """Roles of the linear layers, without repetition, in order."""
        return list(dict.fromkeys(role for site in self.sites for role in site.roles))

    def capture_input(self, site: Site, normalized: bool = False) -> InputCapture:
        """Capture the residual stream at the input of the sublayer of ``site``.

        Args:
            normalized: where a sublayer starts with its norm, capture the output of that norm instead, which is what
                the sublayer's first linear layer reads.
        """
        first = "norm" if self.pre_norm and not normalized else "ffn_in" if site.sublayer == "ffn" else "query"
        key = (site.stack, site.layer, site.sublayer)
        same = [other for other in (*self.sites, *self.norms) if (other.stack, other.layer, other.sublayer) == key]
        return InputCapture(self.module(next(other for other in same if first in other.roles)))

    def norm_parameters(self, which: str) -> Iterator[nn.Parameter]:
        """Weights and biases of the norms of ``all`` stacks, of the ``encoder`` or ``decoder`` only, or of ``none``."""
        for norm in self.norms:
            if which == "all" or norm.stack == which:
                yield from self.module(norm).parameters()

    def biases(self) -> Iterator[nn.Parameter]:
        """The biases of all modules of the language model, norms included, and the bias tables."""
        for module in self.lm.modules():
            bias = module._parameters.get("bias")
            if bias is not None:
                yield bias
        yield from (self.lm.get_parameter(name) for name in self.bias_tables)

    def new_linear(self, d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
        """A new linear layer, initialized as the published code of the family does."""
        linear = nn.Linear(d_in, d_out, bias=bias)
        if self.init_std is not None:
            nn.init.normal_(linear.weight, std=self.init_std)
            if bias:
                nn.init.zeros_(linear.bias)
        return linear

    def new_embedding(self, rows: int, width: int) -> nn.Embedding:
        """A new embedding table, initialized as `new_linear`; torch's default is a standard normal distribution."""
        table = nn.Embedding(rows, width)
        if self.init_std is not None:
            nn.init.normal_(table.weight, std=self.init_std)
        return table


class InputCapture:
    """Forward pre-hook that keeps a module's input until another module of the same sublayer reads it.

    Args:
        module: its first argument is kept. The hook also runs when gradient checkpointing recomputes the layer.
    """

    def __init__(self, module: nn.Module):
        self._input: torch.Tensor | None = None
        module.register_forward_pre_hook(self._hook)

    def _hook(self, module: nn.Module, args: tuple) -> None:
        self._input = args[0]

    def pop(self) -> torch.Tensor:
        """Return the last input and drop the reference, so that no stale tensor is used or kept alive.

        Raises:
            RuntimeError: the hooked module has not run since the last call.
        """
        if self._input is None:
            raise RuntimeError("no sublayer input was captured: its modules were called in another order")
        captured, self._input = self._input, None
        return captured


class SiteWrapper(nn.Module):
    """Base class of modules that wrap a leaf module, which stays available as ``.base``."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        """Weight of the base module; some transformers layers read its dtype."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias of the base module."""
        return self.base.bias


class PerTask(nn.ModuleDict):
    """One module per task, or one that all tasks share.

    Args:
        build: builds one module.
        tasks: names of the tasks that get their own module; None: one shared module.
    """

    def __init__(self, build: Callable[[], nn.Module], tasks: Sequence[str] | None):
        super().__init__({task: build() for task in (tasks if tasks is not None else [EVERY_TASK])})

    def for_task(self, task: str) -> nn.Module:
        """The module that serves ``task``."""
        return self[EVERY_TASK] if EVERY_TASK in self else self[task]
