"""Which method made a file, and which of our tensors is which of the source's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import nn

from multitask_vl.config.schema import MethodConfig
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests.golden import sources
from tests.golden.fixture import Fixture, NotUnderstood

VISUAL = {
    "feat_embedding.0": "project",
    "feat_embedding.1": "project_norm",
    "absolute_vis_pos_embedding.0": "box",
    "absolute_vis_pos_embedding.1": "box_norm",
    "img_order_embedding": "image_order",
}
SOURCES: list[ModuleType] = [
    importlib.import_module(f"{sources.__name__}.{one.name}") for one in pkgutil.iter_modules(sources.__path__)
]


def tasks_of(fixture: Fixture) -> list[str]:
    """Tasks of the source's run, in its order."""
    named = fixture.argument("tasks", "")
    tasks = [task for task in named.split(",") if task]
    found = [task for name in (*fixture.weights, *fixture.aliases) for task in _tasks(name)]
    ran = [*fixture.meta.get("task_of_step", []), *(name.split("/")[0] for name in fixture.under("output"))]
    return list(dict.fromkeys([*tasks, *found, *(task for task in ran if task.isidentifier())]))


def methods_of(fixture: Fixture) -> list[MethodConfig]:
    """The methods that have these tensors and train these names."""
    methods = [found for source in SOURCES if hasattr(source, "found") and (found := source.found(fixture))]
    if not methods:
        whole = any(name.endswith("shared.weight") for name in fixture.meta["trainable"])
        methods.append(MethodConfig(name="full" if whole else "bitfit" if fixture.trained_biases else "frozen"))
    return methods


def used(fixture: Fixture) -> Fixture:
    """The file without tensors that no output depends on; NotUnderstood if a gradient reached one all the same."""
    trainable = fixture.meta["trainable"]
    asked = [source.unused for source in SOURCES if hasattr(source, "unused")]
    idle = {name for name in fixture.weights if any(unused(name) for unused in asked)}
    kept = [i for i, name in enumerate(trainable) if name not in idle]
    tensors = {name: value for name, value in fixture.tensors.items() if name.removeprefix("weight/") not in idle}
    for name, norms in fixture.tensors.items():
        if name.startswith("grad_norm/"):
            tensors[name] = norms[kept]
            reached = [one for one, norm in zip(trainable, norms, strict=True) if one in idle and norm != -1]
            if reached:
                raise NotUnderstood(f"{reached[0]} was held for unused, but has a gradient")
    return Fixture(fixture.path, fixture.meta | {"trainable": [trainable[i] for i in kept]}, tensors)


def ours(model: VLSeq2Seq, name: str) -> str:
    """Our name of the tensor that the source calls ``name``, or of the one it is a part of; NotUnderstood if none."""
    return _place(model, name)[0]


def part(model: VLSeq2Seq, name: str, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of our tensor (or its gradient) what the source calls ``name``: all of it, or a block as long as ``like``.

    A vector may be a row or a column there.
    """
    block = _place(model, name)[1]
    own = tensor if block is None else tensor[block * len(like) : (block + 1) * len(like)]
    return own.reshape(like.shape) if own.squeeze().shape == like.squeeze().shape else own


def load_weights(model: VLSeq2Seq, fixture: Fixture) -> None:
    """Put the recorded weights in; every tensor on both sides must find its partner."""
    parameters = dict(model.named_parameters())
    filled: dict[tuple[str, int | None], str] = {}
    left = {name: parameter.numel() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, value in fixture.weights.items():
            own, block = _place(model, name)
            if (own, block) in filled:
                raise NotUnderstood(f"{name} and {filled[own, block]} are two tensors there, and one here ({own})")
            target = part(model, name, parameters[own], value)
            if target.shape != value.shape:
                raise NotUnderstood(f"{name} is {list(value.shape)} there and {list(target.shape)} here")
            target.copy_(value)
            filled[own, block] = name
            left[own] -= value.numel()
    if missing := [name for name in parameters if left[name]]:
        raise NotUnderstood(f"nothing recorded for {len(missing)} of our tensors (first: {missing[0]})")
    for alias, stored in fixture.aliases.items():
        if not alias.endswith("obj_order_embedding.weight") and _place(model, alias) != _place(model, stored):
            raise NotUnderstood(f"{alias} and {stored} are one tensor there, and two here")


def _place(model: VLSeq2Seq, name: str) -> tuple[str, int | None]:
    """Our name of a tensor, and which block of its rows it is; None: all of it."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for candidate in _candidates(name):
        own, block = candidate if isinstance(candidate, tuple) else (candidate, None)
        if own in known:
            return _first_name(model, known[own]), block
    raise NotUnderstood(f"tensor {name} belongs to no method of this version")


def _candidates(name: str) -> Iterator[str | tuple[str, int]]:
    prefix, visual = "encoder.visual_embedding.", name.removeprefix("model.")
    if visual.startswith(prefix):
        part, _, kind = visual.removeprefix(prefix).rpartition(".")
        if part in VISUAL:
            yield f"visual.{VISUAL[part]}.{kind}"
        return
    for source in SOURCES:
        if hasattr(source, "names"):
            yield from source.names(name)
    parent, _, kind = name.rpartition(".")
    # two methods on one site wrap twice
    yield from (f"lm.{parent}.{depth}{kind}" for depth in ("", "base.", "base.base."))


def _first_name(model: VLSeq2Seq, parameter: nn.Parameter) -> str:
    return next(name for name, other in model.named_parameters() if other is parameter)


def _tasks(name: str) -> list[str]:
    return [task for source in SOURCES if hasattr(source, "task") and (task := source.task(name))]
