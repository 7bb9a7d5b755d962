"""Base class of methods: which sites of the frozen backbone are wrapped, and which of its parameters are trained."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from multitask_vl.config.schema import MethodConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.sites import Site, SiteIndex
from multitask_vl.routing.context import Context

C = TypeVar("C", bound=MethodConfig)


class Method(ABC, Generic[C]):
    """Base class of a fine-tuning method; one file per method, registered with ``@METHODS.register(name)``.

    Everything a method adds is trained. New parameters are collected by object identity when a site is wrapped, never
    by their names. A subclass overrides `wrap`, `trainable_base_parameters`, or both.

    Args:
        config: the method's section of the configuration, an instance of `Config`.
        context: the model's current task and x_R; modules that wrap a site keep a reference to it.
        site_index: the backbone and its sites.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    routable: ClassVar[bool] = False
    """Whether the method has a bottleneck in which routing functions can act."""
    identity: ClassVar[dict[str, Any] | None] = {}
    """Settings with which the untrained model computes exactly what the bare backbone does; None: there are none."""
    slot: ClassVar[str | None] = None
    """Where in a layer the method acts. Only one method per slot can be installed."""
    exclusive: ClassVar[bool] = False
    """Whether the method cannot be combined with any other."""
    test_variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Settings that change what is computed. The tests of all methods also try each of these; a key ``routing`` holds
    the routing section of the variant."""

    def __init__(self, config: C, context: Context, site_index: SiteIndex):
        self.config = config
        self.context = context
        self.site_index = site_index
        self.new_parameters: list[nn.Parameter] = []
        self.shared_module: nn.Module | None = None
        """Module that belongs to no single site, set by a subclass's constructor. It is trained and saved too."""

    def wrap(self, site: Site, module: nn.Module) -> nn.Module:
        """Return the module to install at ``site``, a linear layer or a norm; return ``module`` to leave it as it is.

        Args:
            site: description of the site.
            module: the module that is installed now.
        """
        return module

    def prompt(self, task: str) -> torch.Tensor | None:
        """Embeddings [P, d] to prepend to every text of ``task``, or None."""
        return None

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the backbone that are trained in addition to the new ones."""
        return ()

    def merge_blocker(self) -> str | None:
        """The reason why the method cannot be merged into the backbone's weights, or None if it can."""
        return f'method "{self.config.name}" cannot be merged: it is not a change of the backbone\'s weights'

    def merge(self) -> None:
        """Merge the new parameters into the backbone's weights, in place. Requires `merge_blocker` to return None."""

    def install(self) -> None:
        """Wrap the sites and set ``requires_grad``. Call once, on a backbone whose parameters are all frozen."""
        for site in (*self.site_index.sites, *self.site_index.norms):
            before = self.site_index.module(site)
            known = {id(parameter) for parameter in before.parameters()}
            after = self.wrap(site, before)
            if after is before:
                continue
            self.site_index.replace(site, after)
            self.new_parameters += [parameter for parameter in after.parameters() if id(parameter) not in known]
        if self.shared_module is not None:
            self.new_parameters += self.shared_module.parameters()
        for parameter in (*self.new_parameters, *self.trainable_base_parameters()):
            parameter.requires_grad_(True)


def check_method_combination(methods: Sequence[type[Method]], names: Sequence[str]) -> None:
    """Check that the methods can be installed together.

    Args:
        methods: classes, in the order of the configuration.
        names: their registered names, in the same order.

    Raises:
        InputError: a method listed twice, two methods of one slot, or an exclusive method next to another one.
    """
    problems = [
        f'method: "{name}" is listed {names.count(name)} times; list it once'
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for slot in dict.fromkeys(method.slot for method in methods if method.slot):
        same = list(dict.fromkeys(name for name, method in zip(names, methods, strict=True) if method.slot == slot))
        if len(same) > 1:
            problems.append(f"method: {' and '.join(same)} act at the same place ({slot}); keep one of them")
    if len(set(names)) > 1:
        problems += [
            f'method: "{name}" cannot be combined with another method; list it alone'
            for name, method in zip(names, methods, strict=True)
            if method.exclusive
        ]
    if problems:
        raise InputError(problems)
