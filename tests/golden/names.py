"""Mapping of a file to our method and of its tensor names to ours."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from weakref import WeakKeyDictionary

import torch

from multitask_vl.config.schema import MethodConfig
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests.golden import sources
from tests.golden.fixture import Fixture, UnsupportedFile

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

_OWN_NAMES: WeakKeyDictionary[VLSeq2Seq, dict[str, str]] = WeakKeyDictionary()


def tasks_of(fixture: Fixture) -> list[str]:
    """Tasks of the source's run, in its order."""
    named = fixture.argument("tasks", "")
    tasks = [task for task in named.split(",") if task]
    found = [task for name in (*fixture.weights, *fixture.aliases) for task in _tasks(name)]
    ran = [*fixture.meta.get("task_of_step", []), *(name.split("/")[0] for name in fixture.under("output"))]
    return list(dict.fromkeys([*tasks, *found, *(task for task in ran if task.isidentifier())]))


def methods_of(fixture: Fixture) -> list[MethodConfig]:
    """The methods that have these tensors and train these parameters."""
    methods = [found for source in SOURCES if hasattr(source, "found") and (found := source.found(fixture))]
    if not methods:
        is_full = any(name.endswith("shared.weight") for name in fixture.meta["trainable"])
        methods.append(MethodConfig(name="full" if is_full else "bitfit" if fixture.trained_biases else "frozen"))
    return methods


def used(fixture: Fixture) -> Fixture:
    """The file without tensors that no output depends on; `UnsupportedFile` if one of them has a gradient."""
    trainable = fixture.meta["trainable"]
    predicates = [source.unused for source in SOURCES if hasattr(source, "unused")]
    idle = {name for name in fixture.weights if any(unused(name) for unused in predicates)}
    used_indices = [i for i, name in enumerate(trainable) if name not in idle]
    tensors = {name: value for name, value in fixture.tensors.items() if name.removeprefix("weight/") not in idle}
    for name, norms in fixture.tensors.items():
        if name.startswith("grad_norm/"):
            tensors[name] = norms[used_indices]
            reached = [one for one, norm in zip(trainable, norms, strict=True) if one in idle and norm != -1]
            if reached:
                raise UnsupportedFile(f"{reached[0]} was assumed to be unused, but has a gradient")
    return Fixture(fixture.path, fixture.meta | {"trainable": [trainable[i] for i in used_indices]}, tensors)


def ours(model: VLSeq2Seq, name: str) -> str:
    """Our name of the source's tensor ``name``, or of the tensor it is part of; `UnsupportedFile` if none."""
    return _place(model, name)[0]


def part(model: VLSeq2Seq, name: str, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of our tensor (or its gradient) that corresponds to the source's ``name``.

    It is the whole tensor, or a block of ``len(like)`` rows. A vector may be a row or a column in the source.
    """
    block = _place(model, name)[1]
    own = tensor if block is None else tensor[block * len(like) : (block + 1) * len(like)]
    return own.reshape(like.shape) if own.squeeze().shape == like.squeeze().shape else own


def load_weights(model: VLSeq2Seq, fixture: Fixture) -> None:
    """Load the recorded weights. Every tensor on either side must have exactly one counterpart."""
    parameters = dict(model.named_parameters())
    filled: dict[tuple[str, int | None], str] = {}
    missing_numel = {name: parameter.numel() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, value in fixture.weights.items():
            own, block = _place(model, name)
            if (own, block) in filled:
                raise UnsupportedFile(
                    f"{name} and {filled[own, block]} are two tensors in the file but one here ({own})"
                )
            target = part(model, name, parameters[own], value)
            if target.shape != value.shape:
                raise UnsupportedFile(f"{name} is {list(value.shape)} in the file and {list(target.shape)} here")
            target.copy_(value)
            filled[own, block] = name
            missing_numel[own] -= value.numel()
    if missing := [name for name in parameters if missing_numel[name]]:
        raise UnsupportedFile(f"nothing recorded for {len(missing)} of our tensors (first: {missing[0]})")
    for alias, stored in fixture.aliases.items():
        if not alias.endswith("obj_order_embedding.weight") and _place(model, alias) != _place(model, stored):
            raise UnsupportedFile(f"{alias} and {stored} are one tensor in the file but two here")


def _place(model: VLSeq2Seq, name: str) -> tuple[str, int | None]:
    """Our name of a tensor, and the block of its rows; None: all rows."""
    known = _own_names(model)
    for candidate in _candidates(name):
        own, block = candidate if isinstance(candidate, tuple) else (candidate, None)
        if own in known:
            return known[own], block
    raise UnsupportedFile(f"tensor {name} belongs to no method of this version")


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


def _own_names(model: VLSeq2Seq) -> dict[str, str]:
    """Every name of our parameters -> the first name of that parameter."""
    if model not in _OWN_NAMES:
        first = {parameter: name for name, parameter in model.named_parameters()}
        _OWN_NAMES[model] = {name: first[one] for name, one in model.named_parameters(remove_duplicate=False)}
    return _OWN_NAMES[model]


def _tasks(name: str) -> list[str]:
    return [task for source in SOURCES if hasattr(source, "task") and (task := source.task(name))]
