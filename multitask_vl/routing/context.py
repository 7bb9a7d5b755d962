"""How do the task's name and x_R reach a bottleneck: one context object a model, never a global.

The task is set for the length of one call. x_R arrives at the decoder's door: a pre-hook takes it from the arguments of
the decoder stack, which ``generate()`` has by then repeated per beam. Gradient checkpointing brings both back when it
recomputes a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING
from multitask_vl.routing import controls

PADDING, TEXT, VISUAL = 0, 1, 2
"""Kinds of encoder positions. The joint mask [B, S] holds them, so that the door can tell words from grid cells."""

Route = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Context:
    """What every bottleneck of one model may ask: which task is running, and what x_R is.

    Args:
        tasks: names of the model's tasks.
        config: function per task, source, pooling and control.
        seed: of the noise control outside training.

    Raises:
        InputError: a function that is not known, a task without one, or one for a task that does not exist.
    """

    def __init__(self, tasks: Sequence[str], config: RoutingConfig, seed: int = 0):
        self.tasks = tuple(tasks)
        self.config = config
        self.seed = seed
        self._routes = _routes(self.tasks, config.function)
        self._task: str | None = None
        self._x_r: dict[str, torch.Tensor] = {}

    # ---- what the model sets

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Run the body for ``task``; afterwards nothing of it is left."""
        if task not in self.tasks:
            raise InputError(f"task {task!r} is not one of this model's ({', '.join(self.tasks)})")
        before = self._task, self._x_r
        self._task, self._x_r = task, {}
        try:
            yield
        finally:
            self._task, self._x_r = before

    def put(self, stack: str, x_r: torch.Tensor) -> None:
        """Set x_R [B, S, d] for the bottlenecks of ``stack`` (``encoder`` or ``decoder``)."""
        self._x_r[stack] = x_r

    def early(self, projected: torch.Tensor, ids: Sequence[str], width: int, training: bool) -> torch.Tensor | None:
        """x_R [B, 1, width] where it is known before the encoder has run, else None.

        Such an x_R travels as one more, masked, last row of the encoder's output, and is taken off again at the
        decoder's door; so it is repeated per beam with the rest.

        Args:
            projected: projected grid cells [B, N, width].
            ids: example ids, length B.
        """
        if not self._early():
            return None
        if self.config.control != "none":
            return controls.replacement(self.config.control, ids, width, projected, training, self.seed)
        return projected.mean(1, keepdim=True)

    def door(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Pre-hook (with kwargs) of the decoder stack: sets x_R, and leaves an ordinary 0/1 mask to the stack."""
        states, kinds = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is None or kinds is None:
            raise RuntimeError("the decoder needs encoder_hidden_states and encoder_attention_mask as keywords")
        if self._route() is not None:
            if self._early():
                self.put("decoder", states[:, -1:])
                states, kinds = states[:, :-1], kinds[:, :-1]
            else:
                self.put("decoder", pooled(states, kinds, self.config.pool))
        mask = (kinds != PADDING).long()
        return args, kwargs | {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    # ---- what a bottleneck asks

    @property
    def task(self) -> str:
        """The running task; raises outside a call of the model."""
        if self._task is None:
            raise RuntimeError("no task is running: call the model's forward, generate or choose, not its parts")
        return self._task

    @property
    def routed(self) -> bool:
        """Whether any task has a routing function other than ``none``."""
        return any(route is not None for route in self._routes.values())

    def through(self, stack: str, x: torch.Tensor, down: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``down(x)`` [B, T, r], routed by ``down(x_R)`` where the running task routes this stack.

        Args:
            x: hidden states [B, T, d].
            down: the map into the bottleneck, shared by x and x_R, bias and dropout included.
        """
        route = self._route()
        if route is None or (stack == "encoder" and self.config.source == "encoder_pooled"):
            return down(x)
        if stack not in self._x_r:
            raise RuntimeError(f"x_R is missing in the {stack}: its stack was called in a way that does not set it")
        return route(down(x), down(self._x_r[stack]))

    # ---- gradient checkpointing

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of `torch.utils.checkpoint`: recompute a layer with the task and x_R of its forward pass."""
        return nullcontext(), _AsItWas(self, (self._task, dict(self._x_r)))

    # ---- parts

    def _route(self) -> Route | None:
        return self._routes[self.task]

    def _early(self) -> bool:
        known = self.config.source == "visual_pooled" or self.config.control != "none"
        return known and self._route() is not None


class _AsItWas(AbstractContextManager):
    """Puts a context back into an earlier state; may be entered more than once (a second backward pass)."""

    def __init__(self, context: Context, state: tuple):
        self.context, self.state = context, state

    def __enter__(self) -> None:
        self.present = self.context._task, self.context._x_r
        self.context._task, self.context._x_r = self.state

    def __exit__(self, *error: object) -> None:
        self.context._task, self.context._x_r = self.present


def pooled(states: torch.Tensor, kinds: torch.Tensor, pool: str) -> torch.Tensor:
    """Mean [B, 1, d] of ``states`` [B, S, d] over the positions that ``pool`` names: all valid, visual or text."""
    wanted = {"all": kinds != PADDING, "visual": kinds == VISUAL, "text": kinds == TEXT}[pool]
    weights = wanted.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def _routes(tasks: Sequence[str], function: str | Mapping[str, str]) -> dict[str, Route | None]:
    named = dict.fromkeys(tasks, function) if isinstance(function, str) else dict(function)
    problems = [
        f"routing.function.{task}: there is no task {task!r} under tasks: (there are: {', '.join(tasks)})"
        for task in named
        if task not in tasks
    ]
    problems += [
        f'routing.function: task {task!r} has no function; give it one, "none" for no routing'
        for task in tasks
        if task not in named
    ]
    known = ROUTING.names()
    problems += [f"routing.function: {ROUTING.unknown(name)}" for name in {*named.values()} if name not in known]
    if problems:
        raise InputError(problems)
    return {task: None if named[task] == "none" else ROUTING.get(named[task]) for task in tasks}
