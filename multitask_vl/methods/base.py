"""What is a method: it wraps sites of a frozen backbone, and says which of the backbone's own parameters it trains."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from multitask_vl.config.schema import MethodConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.sites import Layout, Site
from multitask_vl.routing.context import Context

C = TypeVar("C", bound=MethodConfig)


class Method(ABC, Generic[C]):
    """One parameter-efficient method, in one file, registered with ``@METHODS.register(name)``.

    What it adds is trained, and found by comparing what stood at a site before with what stands there afterwards:
    parameters are known as objects, names play no part. A subclass overrides `wrap`, `trains`, or both.

    Args:
        config: the method's own section, an instance of `Config`.
        context: the model's task and x_R; wrapping modules keep it.
        layout: the backbone with its sites.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    routable: ClassVar[bool] = False
    """Whether its modules have a bottleneck for routing functions."""
    identity: ClassVar[dict[str, Any] | None] = {}
    """Settings with which an untrained model computes exactly what the bare backbone computes; None: it cannot."""
    group: ClassVar[str | None] = None
    """Methods of the same group take the same place in a layer: at most one of them can be installed."""
    alone: ClassVar[bool] = False
    """Whether no other method can be installed beside it."""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Settings that make it another method in kind: the tests of all methods try each of them as well, under the
    routing of its key ``routing`` if it has one."""

    def __init__(self, config: C, context: Context, layout: Layout):
        self.config = config
        self.context = context
        self.layout = layout
        self.added: list[nn.Parameter] = []
        self.module: nn.Module | None = None
        """What belongs to no site, set by a subclass's constructor: trained and saved with the rest."""

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """What shall stand at ``site``, a linear map or a norm; ``module`` itself to leave the site alone."""
        return module

    def prompt(self, task: str) -> torch.Tensor | None:
        """Embeddings [P, d] to put before every text of ``task``; None for no prompt."""
        return None

    def trains(self) -> Iterable[nn.Parameter]:
        """Parameters of the backbone that are trained besides what was added."""
        return ()

    def cannot_merge(self) -> str | None:
        """Why what was added cannot be folded into the backbone's weights; None if it can."""
        return f'method "{self.config.name}" cannot be merged: what it computes is no change of the backbone\'s weights'

    def merge(self) -> None:
        """Fold what was added into the backbone's weights, in place. Called only if `cannot_merge` gives no reason."""

    def install(self) -> None:
        """Wrap the sites and mark what is trained. Called once, on a backbone whose parameters are all frozen."""
        for site in (*self.layout.sites, *self.layout.norms):
            before = self.layout.module(site)
            known = {id(parameter) for parameter in before.parameters()}
            after = self.wrap(site, before)
            if after is before:
                continue
            self.layout.replace(site, after)
            self.added += [parameter for parameter in after.parameters() if id(parameter) not in known]
        if self.module is not None:
            self.added += self.module.parameters()
        for parameter in (*self.added, *self.trains()):
            parameter.requires_grad_(True)


def refuse_combination(methods: Sequence[type[Method]], names: Sequence[str]) -> None:
    """Refuse methods that cannot stand beside each other.

    Args:
        methods: classes, in the order of the configuration.
        names: under which they are registered.

    Raises:
        InputError: one named twice, two of one group, or one that tolerates no other.
    """
    problems = [
        f'method: "{name}" is named {names.count(name)} times' for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    for group in dict.fromkeys(method.group for method in methods if method.group):
        same = list(dict.fromkeys(name for name, method in zip(names, methods, strict=True) if method.group == group))
        if len(same) > 1:
            problems.append(f"method: {' and '.join(same)} take the same place in a layer ({group}); keep one of them")
    if len(set(names)) > 1:
        problems += [
            f'method: "{name}" cannot be combined: it leaves nothing for another method to do beside it'
            for name, method in zip(names, methods, strict=True)
            if method.alone
        ]
    if problems:
        raise InputError(problems)
