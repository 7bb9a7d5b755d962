"""Where can a method act in a backbone: leaf modules that describe themselves, and how one is wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

EVERY_TASK = "every_task"
"""The one member of a `PerTask` that all tasks share."""


@dataclass(frozen=True, slots=True)
class Site:
    """A leaf module of the backbone, described so that methods select by what it is, not by how it is called.

    Attributes:
        name: dotted name inside the language model.
        stack: ``encoder`` or ``decoder``.
        layer: index inside the stack; -1 for what stands before the first or after the last layer.
        sublayer: ``self_attn``, ``cross_attn``, ``ffn`` or, for norms outside the layers, ``embedding``.
        role: ``query``, ``key``, ``value``, ``output`` (of an attention), ``ffn_in``, ``ffn_out`` or ``norm``.
        d_in, d_out: widths of what enters and leaves it.
    """

    name: str
    stack: str
    layer: int
    sublayer: str
    role: str
    d_in: int
    d_out: int


class Layout:
    """A language model with its sites and norms: all that a method knows of a backbone.

    Args:
        lm: the language model; its modules are replaced in place.
        sites: linear maps that may be wrapped.
        norms: normalisation layers (role ``norm``).
        init_std: spread of the normal distribution that the family gives new linear maps, or None for torch's default.
    """

    def __init__(self, lm: nn.Module, sites: Sequence[Site], norms: Sequence[Site], init_std: float | None):
        self.lm = lm
        self.sites = tuple(sites)
        self.norms = tuple(norms)
        self.init_std = init_std

    def module(self, site: Site) -> nn.Module:
        """What stands at a site now: the backbone's own module or the outermost wrapping."""
        return self.lm.get_submodule(site.name)

    def replace(self, site: Site, module: nn.Module) -> None:
        """Put ``module`` at a site."""
        parent, _, leaf = site.name.rpartition(".")
        setattr(self.lm.get_submodule(parent), leaf, module)

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """Weights and biases of every norm."""
        for norm in self.norms:
            yield from self.module(norm).parameters()

    def biases(self) -> Iterator[nn.Parameter]:
        """The bias of every module of the language model that has one, norms included."""
        for module in self.lm.modules():
            bias = module._parameters.get("bias")
            if bias is not None:
                yield bias

    def linear(self, d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
        """A new linear map, initialised as the published code of the family initialises those it adds."""
        linear = nn.Linear(d_in, d_out, bias=bias)
        if self.init_std is not None:
            nn.init.normal_(linear.weight, std=self.init_std)
            if bias:
                nn.init.zeros_(linear.bias)
        return linear


class Wrapped(nn.Module):
    """Base of modules that stand in for a leaf module: the original stays as ``.base`` and may be looked through."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        """The original's weight; some library layers look at its dtype."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The original's bias."""
        return self.base.bias


class PerTask(nn.ModuleDict):
    """One module for every task, or one that all share.

    Args:
        make: builds a member.
        tasks: names of the tasks that get their own; None for one shared member.
    """

    def __init__(self, make: Callable[[], nn.Module], tasks: Sequence[str] | None):
        super().__init__({task: make() for task in (tasks if tasks is not None else [EVERY_TASK])})

    def of(self, task: str) -> nn.Module:
        """The member that serves ``task``."""
        return self[EVERY_TASK] if EVERY_TASK in self else self[task]
