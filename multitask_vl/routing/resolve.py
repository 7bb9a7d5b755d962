"""The routing function of every task, resolved and checked against the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from multitask_vl.config.routing_check import NO_ROUTING, routing_problems
from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING

RoutingFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def resolve_functions(tasks: Sequence[str], config: RoutingConfig) -> dict[str, RoutingFunction | None]:
    """The routing function of each task; None where the task is not routed.

    Raises:
        InputError: an unknown function, a task without one, a function for a task that does not exist, or a function
            that the configured x_R does not fit.
    """
    function: str | Mapping[str, str] = config.function
    names = dict.fromkeys(tasks, function) if isinstance(function, str) else dict(function)
    problems = [
        f"routing.function{'' if task is None else f'.{task}'}: {problem}"
        for task, problem in routing_problems(function, tasks).items()
    ]
    if not problems and config.pooling == "none":
        for name in dict.fromkeys(names.values()):
            problems += _multi_row_problems(name, ROUTING.get(name), config)
    if problems:
        raise InputError(problems)
    return {task: None if names[task] == NO_ROUTING else ROUTING.get(names[task]) for task in tasks}


def _multi_row_problems(name: str, function: RoutingFunction, config: RoutingConfig) -> list[str]:
    """Why ``function`` cannot take several rows of x_R, found by calling it on a small example."""
    x_t, x_v = (torch.tensor(rows, device="cpu") for rows in ([[[1.0, 2.0]]], [[[1.0, 2.0], [3.0, 5.0]]]))
    try:
        unpadded, padded = function(x_t, x_v), function(x_t, torch.cat([x_v, torch.zeros_like(x_v)], 1))
    except InputError as error:
        return error.problems
    has_padding = config.source == "encoder" and config.control == "none"
    if has_padding and not torch.allclose(unpadded, padded):
        return [
            f'routing.function: "{name}" depends on the amount of padding in x_R, so an example\'s result would depend '
            "on its batch; set routing.source to visual, which has no padding"
        ]
    return []
