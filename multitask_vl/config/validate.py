"""What is wrong with a configuration, all at once: composed values into a `Config`, or one line for each problem."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from multitask_vl.config.error_messages import complaints, origin, shown
from multitask_vl.config.schema import BackboneConfig, Config, RoutingConfig
from multitask_vl.config.yaml_nodes import Node, did_you_mean
from multitask_vl.errors import InputError
from multitask_vl.registry import BACKBONES, METHODS, ROUTING, TASKS, Registry, load_plugins


def validate(tree: Node, problems: list[str]) -> Config | None:
    """Build the configuration that a tree of values describes.

    Plugins come first, so that the names they register are known. Tasks and methods are checked by the `Config` of the
    registered class, everything else by `Config` itself, names and splits that must agree with each other at the end.

    Args:
        tree: the composed values, `method` already a list.
        problems: gets a line for everything that is wrong.

    Returns:
        None where anything was wrong, now or before.
    """
    _load_plugins(tree, problems)
    values = tree.plain()
    tasks = _checked_tasks(tree, problems)
    if tasks is not None:
        values["tasks"] = tasks
    methods = _checked_methods(tree, problems)
    if methods is not None:
        values["method"] = methods
    config = _checked(Config, values, tree, (), problems)
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


def _checked_tasks(tree: Node, problems: list[str]) -> dict[str, Any] | None:
    tasks = tree.value.get("tasks")
    if tasks is None or not isinstance(tasks.value, dict):
        return None
    checked = {}
    for name, section in tasks.value.items():
        at = ("tasks", name)
        if not isinstance(section.value, dict):
            problems.append(
                f"{section.origin}: tasks.{name}: got {section.plain()!r}; expected a mapping of its settings"
            )
            continue
        type_ = section.value.get("type")
        if type_ is not None and isinstance(type_.value, str):
            task = _registered(TASKS, type_, (*at, "type"), tree, problems)
        elif name in TASKS.names():
            task = TASKS.get(name)
        else:
            told = f"there is no task of this name{did_you_mean(name, TASKS.names())}"
            problems.append(f"{section.origin}: tasks.{name}: {told} (or say its type; a task of your own: plugins)")
            continue
        if task is not None:
            checked[name] = _checked(task.Config, section.plain(), tree, at, problems)
    return {name: config for name, config in checked.items() if config is not None}


def _checked_methods(tree: Node, problems: list[str]) -> list[Any] | None:
    methods = tree.value.get("method")
    if methods is None or not isinstance(methods.value, list):
        return None
    checked = []
    for position, section in enumerate(methods.value):
        at = ("method", str(position))
        name = section.value.get("name") if isinstance(section.value, dict) else None
        if name is None or not isinstance(name.value, str):
            problems.append(
                f"{section.origin}: {shown(at, tree)}: the key 'name' is missing or no text "
                f"(known methods: {', '.join(METHODS.names())})"
            )
            continue
        method = _registered(METHODS, name, (*at, "name"), tree, problems)
        if method is not None:
            checked.append(_checked(method.Config, section.plain(), tree, at, problems))
    return [config for config in checked if config is not None]


def _checked(model: type[BaseModel], values: Any, tree: Node, at: tuple[str, ...], problems: list[str]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.extend(complaints(error, model, tree, at))
    except InputError as error:
        problems.extend(f"{origin(tree, at)}: {shown(at, tree)}: {problem}" for problem in error.problems)
    return None


def _registered(registry: Registry, name: Node, at: tuple[str, ...], tree: Node, problems: list[str]) -> Any:
    known = registry.names()
    if name.value in known:
        return registry.get(name.value)
    problems.append(f"{name.origin}: {shown(at, tree)}: got {name.value!r}{did_you_mean(name.value, known)}")
    return None


def _check_backbone(tree: Node, problems: list[str]) -> None:
    family = _child(_child(tree, "backbone"), "family")
    # The built-in default needs no look-up, which would import the models.
    if family is not None and isinstance(family.value, str) and family.value != BackboneConfig().family:
        _registered(BACKBONES, family, ("backbone", "family"), tree, problems)


def _check_routing(tree: Node, problems: list[str]) -> None:
    function = _child(_child(tree, "routing"), "function")
    if function is None:
        return
    at = ("routing", "function")
    tasks = _keys(_child(tree, "tasks"))
    per_task = function.value if isinstance(function.value, dict) else {}
    for task, node in per_task.items():
        if task not in tasks:
            problems.append(
                f"{node.origin}: routing.function.{task}: there is no such task{did_you_mean(task, tasks, 'tasks')}"
            )
    left_out = [task for task in tasks if task not in per_task]
    if per_task and left_out:
        problems.append(
            f"{function.origin}: routing.function: leaves out {', '.join(left_out)}; "
            f"name each task's function ({left_out[0]}: none)"
        )
    names = [((*at, task), node) for task, node in per_task.items()] or [(at, function)]
    for place, node in names:
        if isinstance(node.value, str) and node.value != RoutingConfig().function:
            _registered(ROUTING, node, place, tree, problems)


def _check_splits(tree: Node, problems: list[str]) -> None:
    """A split that no task has would never be scored, and a typing error in its name never noticed."""
    tasks = _child(tree, "tasks")
    known = dict.fromkeys(split for task in _keys(tasks) for split in _keys(_child(_child(tasks, task), "splits")))
    for key in ("during", "final") if known else ():
        asked = _child(_child(tree, "evaluation"), key)
        for node in asked.value if asked is not None and isinstance(asked.value, list) else ():
            if isinstance(node.value, str) and node.value not in known:
                problems.append(
                    f"{node.origin}: evaluation.{key}: no task has a split {node.value!r}"
                    f"{did_you_mean(node.value, known, 'splits')}"
                )


def _check_keep_best(config: Config, tree: Node, problems: list[str]) -> None:
    """A score that is never taken on the way would never have a best."""
    wanted, at = config.training.keep_best, ("training", "keep_best")
    if wanted is None:
        return
    where, known = origin(tree, at), ["average", *config.tasks]
    for name in wanted.metrics:
        if name not in known:
            problems.append(f"{where}: training.keep_best.metrics: got {name!r}{did_you_mean(name, known)}")
    if wanted.split not in config.evaluation.during or config.evaluation.every_epochs is None:
        problems.append(
            f"{where}: training.keep_best.split: {wanted.split!r} is not scored on the way; put it into "
            f"evaluation.during and set evaluation.every_epochs"
        )


def _child(node: Node | None, key: str) -> Node | None:
    return node.value.get(key) if node is not None and isinstance(node.value, dict) else None


def _keys(node: Node | None) -> Iterable[str]:
    return list(node.value) if node is not None and isinstance(node.value, dict) else []
