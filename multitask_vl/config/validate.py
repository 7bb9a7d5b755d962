"""Validation of composed values: a `Config`, or one message for each problem."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from multitask_vl.config.error_messages import display_key, origin, validation_messages
from multitask_vl.config.routing_check import NO_ROUTING, routing_problems
from multitask_vl.config.schema import BackboneConfig, Config
from multitask_vl.config.yaml_nodes import Node, did_you_mean
from multitask_vl.errors import InputError
from multitask_vl.registry import BACKBONES, METHODS, TASKS, Registry, load_plugins


def validate(tree: Node, problems: list[str]) -> Config | None:
    """Build the configuration from a tree of values.

    Plugins are imported first, so that the names they register are known. Tasks and methods are validated by the
    `Config` of the registered class, the rest by `Config`, and finally the names and splits that refer to each other.

    Args:
        tree: the composed values, with `method` as a list.
        problems: receives a line for each problem.

    Returns:
        None if there is any problem, including those already in the list.
    """
    _load_plugins(tree, problems)
    values = tree.to_python()
    tasks = _validated_tasks(tree, problems)
    if tasks is not None:
        values["tasks"] = tasks
    methods = _validated_methods(tree, problems)
    if methods is not None:
        values["method"] = methods
    config = _validated(Config, values, tree, (), problems)
    _check_backbone(tree, problems)
    _check_routing(tree, problems)
    _check_splits(tree, problems)
    if config is not None:
        _check_keep_best(config, tree, problems)
    return None if problems else config


def _load_plugins(tree: Node, problems: list[str]) -> None:
    plugins = tree.value.get("plugins")
    if plugins is None or not isinstance(plugins.value, list):
        return
    for node in plugins.value:
        if not isinstance(node.value, str):
            continue
        try:
            load_plugins([node.value])
        except InputError as error:
            problems.extend(f"{node.origin}: {problem}" for problem in error.problems)


def _validated_tasks(tree: Node, problems: list[str]) -> dict[str, Any] | None:
    tasks = tree.value.get("tasks")
    if tasks is None or not isinstance(tasks.value, dict):
        return None
    validated = {}
    for name, section in tasks.value.items():
        at = ("tasks", name)
        if not isinstance(section.value, dict):
            problems.append(
                f"{section.origin}: tasks.{name}: got {section.to_python()!r}; expected a mapping of its settings"
            )
            continue
        type_ = section.value.get("type")
        if type_ is not None and isinstance(type_.value, str):
            task = _registered(TASKS, type_, (*at, "type"), tree, problems)
        elif name in TASKS.names():
            task = TASKS.get(name)
        else:
            problems.append(
                f"{section.origin}: tasks.{name}: unknown task{did_you_mean(name, TASKS.names())} "
                "(or set its type; custom tasks are imported by plugins)"
            )
            continue
        if task is not None:
            validated[name] = _validated(task.Config, section.to_python(), tree, at, problems)
    return {name: config for name, config in validated.items() if config is not None}


def _validated_methods(tree: Node, problems: list[str]) -> list[Any] | None:
    methods = tree.value.get("method")
    if methods is None or not isinstance(methods.value, list):
        return None
    validated = []
    for position, section in enumerate(methods.value):
        at = ("method", str(position))
        name = section.value.get("name") if isinstance(section.value, dict) else None
        if name is None or not isinstance(name.value, str):
            problems.append(
                f"{section.origin}: {display_key(at, tree)}: the key 'name' is missing or not text "
                f"(known methods: {', '.join(METHODS.names())})"
            )
            continue
        method = _registered(METHODS, name, (*at, "name"), tree, problems)
        if method is not None:
            validated.append(_validated(method.Config, section.to_python(), tree, at, problems))
    return [config for config in validated if config is not None]


def _validated(model: type[BaseModel], values: Any, tree: Node, at: tuple[str, ...], problems: list[str]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.extend(validation_messages(error, model, tree, at))
    except InputError as error:
        problems.extend(f"{origin(tree, at)}: {display_key(at, tree)}: {problem}" for problem in error.problems)
    return None


def _registered(registry: Registry, name: Node, at: tuple[str, ...], tree: Node, problems: list[str]) -> Any:
    known = registry.names()
    if name.value in known:
        return registry.get(name.value)
    problems.append(f"{name.origin}: {display_key(at, tree)}: got {name.value!r}{did_you_mean(name.value, known)}")
    return None


def _check_backbone(tree: Node, problems: list[str]) -> None:
    family = _child(_child(tree, "backbone"), "family")
    # the built-in default needs no lookup, which would import the models
    if family is not None and isinstance(family.value, str) and family.value != BackboneConfig().family:
        _registered(BACKBONES, family, ("backbone", "family"), tree, problems)


def _check_routing(tree: Node, problems: list[str]) -> None:
    function = _child(_child(tree, "routing"), "function")
    if function is None:
        return
    value = function.to_python()
    if isinstance(value, dict):
        # the schema has reported names that are not text
        value = {task: name if isinstance(name, str) else NO_ROUTING for task, name in value.items()}
    elif not isinstance(value, str):
        return
    for task, problem in routing_problems(value, _keys(_child(tree, "tasks"))).items():
        keys = ("routing", "function") if task is None else ("routing", "function", task)
        problems.append(f"{origin(tree, keys)}: {'.'.join(keys)}: {problem}")


def _check_splits(tree: Node, problems: list[str]) -> None:
    """Report splits that no task has: they would never be scored, and a misspelled name would go unnoticed."""
    tasks = _child(tree, "tasks")
    known = dict.fromkeys(split for task in _keys(tasks) for split in _keys(_child(_child(tasks, task), "splits")))
    for key in ("eval_splits", "final_splits") if known else ():
        splits = _child(_child(tree, "evaluation"), key)
        for node in splits.value if splits is not None and isinstance(splits.value, list) else ():
            if isinstance(node.value, str) and node.value not in known:
                problems.append(
                    f"{node.origin}: evaluation.{key}: no task has a split {node.value!r}"
                    f"{did_you_mean(node.value, known, 'splits')}"
                )


def _check_keep_best(config: Config, tree: Node, problems: list[str]) -> None:
    """Report metrics and splits of `keep_best` that are never evaluated during training."""
    keep_best, at = config.training.keep_best, ("training", "keep_best")
    if keep_best is None:
        return
    where, known = origin(tree, at), ["average", *config.tasks]
    for name in keep_best.metrics:
        if name not in known:
            problems.append(f"{where}: training.keep_best.metrics: got {name!r}{did_you_mean(name, known)}")
    if keep_best.split not in config.evaluation.eval_splits or config.evaluation.eval_every_epochs is None:
        problems.append(
            f"{where}: training.keep_best.split: {keep_best.split!r} is not evaluated during training; add it to "
            "evaluation.eval_splits and set evaluation.eval_every_epochs"
        )


def _child(node: Node | None, key: str) -> Node | None:
    return node.value.get(key) if node is not None and isinstance(node.value, dict) else None


def _keys(node: Node | None) -> Iterable[str]:
    return list(node.value) if node is not None and isinstance(node.value, dict) else []
