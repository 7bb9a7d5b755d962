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
        sublayer: ``self_attn``, ``cross_attn``, ``ffn`` or, for norms outside the layers, ``embedding`` or ``final``.
        role: ``query``, ``key``, ``value``, ``query_key_value`` (the three as one map), ``output`` (of an attention),
            ``ffn_in``, ``ffn_gate`` (what a gated feed-forward block multiplies with), ``ffn_out`` or ``norm``.
        d_in, d_out: widths of what enters and leaves it.
    """

    name: str
    stack: str
    layer: int
    sublayer: str
    role: str
    d_in: int
    d_out: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles that equal stretches of what leaves it play: its own alone, or those of a fused map, in order."""
        return ("query", "key", "value") if self.role == "query_key_value" else (self.role,)


class Layout:
    """A language model with its sites and norms: all that a method knows of a backbone.

    Args:
        lm: the language model; its modules are replaced in place.
        sites: linear maps that may be wrapped.
        norms: normalisation layers (role ``norm``).
        init_std: spread of the normal distribution that the family gives new linear maps, or None for torch's default.
        pre_norm: whether a sublayer begins with its norm (T5); otherwise it ends with it (BART).
        bias_tables: names of parameters that are biases without being called so (T5's relative position tables).
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
        """What stands at a site now: the backbone's own module or the outermost wrapping."""
        return self.lm.get_submodule(site.name)

    def replace(self, site: Site, module: nn.Module) -> None:
        """Put ``module`` at a site."""
        parent, _, leaf = site.name.rpartition(".")
        setattr(self.lm.get_submodule(parent), leaf, module)

    @property
    def width(self) -> int:
        """Width of the residual stream, d."""
        return self.norms[0].d_in

    def depth(self, stack: str) -> int:
        """Number of layers of ``stack``."""
        return 1 + max(site.layer for site in self.sites if site.stack == stack)

    def roles(self) -> list[str]:
        """Roles that its maps play, in order."""
        return list(dict.fromkeys(role for site in self.sites for role in site.parts))

    def tap(self, site: Site, normed: bool = False) -> Tap:
        """A tap on the residual stream as it enters the sublayer that ``site`` belongs to, un-normalised.

        Args:
            normed: on what the sublayer's first map sees instead: behind the norm, where a sublayer begins with one.
        """
        first = "norm" if self.pre_norm and not normed else "ffn_in" if site.sublayer == "ffn" else "query"
        place = (site.stack, site.layer, site.sublayer)
        beside = [one for one in (*self.sites, *self.norms) if (one.stack, one.layer, one.sublayer) == place]
        return Tap(self.module(next(one for one in beside if first in one.parts)))

    def norm_parameters(self, which: str) -> Iterator[nn.Parameter]:
        """Weights and biases of the norms of ``all`` stacks, of ``encoder`` or ``decoder`` alone, or of ``none``."""
        for norm in self.norms:
            if which == "all" or norm.stack == which:
                yield from self.module(norm).parameters()

    def biases(self) -> Iterator[nn.Parameter]:
        """The bias of every module of the language model that has one, norms included, and the bias tables."""
        for module in self.lm.modules():
            bias = module._parameters.get("bias")
            if bias is not None:
                yield bias
        yield from (self.lm.get_parameter(name) for name in self.bias_tables)

    def linear(self, d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
        """A new linear map, initialised as the published code of the family initialises those it adds."""
        linear = nn.Linear(d_in, d_out, bias=bias)
        if self.init_std is not None:
            nn.init.normal_(linear.weight, std=self.init_std)
            if bias:
                nn.init.zeros_(linear.bias)
        return linear

    def embedding(self, rows: int, width: int) -> nn.Embedding:
        """A new table, initialised likewise; torch's default is normal with spread 1."""
        table = nn.Embedding(rows, width)
        if self.init_std is not None:
            nn.init.normal_(table.weight, std=self.init_std)
        return table


class Tap:
    """Remembers what entered a module until another module of the same sublayer takes it.

    Args:
        module: whose first argument is remembered. Hooks on modules inside a layer run again when it is recomputed.
    """

    def __init__(self, module: nn.Module):
        self._seen: torch.Tensor | None = None
        module.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, args: tuple) -> None:
        self._seen = args[0]

    def take(self) -> torch.Tensor:
        """What entered last; each may be taken once, so that nothing old is ever used and nothing is kept alive."""
        if self._seen is None:
            raise RuntimeError("the sublayer's input was not seen: its parts were called in another order")
        seen, self._seen = self._seen, None
        return seen


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
