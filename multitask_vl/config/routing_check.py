"""Checks of the routing functions named in a configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.registry import ROUTING

NO_ROUTING = "none"


def routing_problems(function: str | Mapping[str, str], tasks: Collection[str]) -> dict[str | None, str]:
    """Problems of ``routing.function`` by task; the key None is a problem of the value as a whole.

    Args:
        function: one name for all tasks, or task -> name.
        tasks: names of the configured tasks.
    """
    names = {None: function} if isinstance(function, str) else dict(function)
    problems: dict[str | None, str] = {}
    for task, name in names.items():
        if task is not None and task not in tasks:
            problems[task] = f"unknown task{did_you_mean(task, tasks, 'tasks')}"
        # the built-in default needs no lookup, which would import every routing function
        elif name != NO_ROUTING and name not in ROUTING.names():
            problems[task] = f"got {name!r}{did_you_mean(name, ROUTING.names())}"
    missing = [task for task in tasks if task not in names]
    if None not in names and missing:
        problems[None] = f"no function for {', '.join(missing)}; name one for each task ({missing[0]}: {NO_ROUTING})"
    return problems
