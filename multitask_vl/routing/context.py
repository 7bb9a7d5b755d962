"""How do the task's name and x_R reach a bottleneck: one context object a model, never a global.

The task is set for the length of one call. x_R arrives at the decoder's door: a pre-hook takes it from the arguments of
the decoder stack, which ``generate()`` has by then repeated per beam. Gradient checkpointing brings both back when it
recomputes a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING
from multitask_vl.routing import controls

PADDING, TEXT, VISUAL, PROMPT = 0, 1, 2, 3
"""Kinds of encoder positions. The joint mask [B, S] holds them, so that the door can tell words from grid cells."""

Route = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Down = Callable[[torch.Tensor], torch.Tensor]
T = TypeVar("T")


@dataclass
class _Call:
    """What is known while one call of the model runs.

    Attributes:
        task: which one runs.
        x_r: stack -> x_R [B, S, d] and which of its rows are valid [B, S] (None: all).
        kinds: what each encoder position is [B, S], once the encoder has begun.
        early_rows: rows at the end of the encoder's output that are x_R.
        made: what `Context.once` has made.
    """

    task: str
    x_r: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)
    kinds: torch.Tensor | None = None
    early_rows: int = 0
    made: dict[Hashable, Any] = field(default_factory=dict)

    def copy(self) -> _Call:
        return replace(self, x_r=dict(self.x_r), made=dict(self.made))


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
        self._routes = _routes(self.tasks, config)
        self._wanted = False
        self._call: _Call | None = None

    # ---- what the model sets

    @contextmanager
    def of(self, task: str) -> Iterator[None]:
        """Run the body for ``task``: as part of a call for it that is running, or as one of which nothing is left."""
        if task not in self.tasks:
            raise InputError(f"task {task!r} is not one of this model's ({', '.join(self.tasks)})")
        before = self._call
        if before is None or before.task != task:
            self._call = _Call(task)
        try:
            yield
        finally:
            self._call = before

    def put(self, stack: str, x_r: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Set x_R [B, S, d] for the bottlenecks of ``stack`` (``encoder`` or ``decoder``).

        Args:
            valid: which rows count [B, S]; None: all of them.
        """
        self._running().x_r[stack] = (x_r, valid)

    def early(self, projected: torch.Tensor, ids: Sequence[str], width: int, training: bool) -> torch.Tensor | None:
        """x_R [B, S, width] where it is known before the encoder has run, else None. S is 1 if it is pooled, else N.

        Such an x_R travels as more, masked, last rows of the encoder's output, and is taken off again at the
        decoder's door; so it is repeated per beam with the rest.

        Args:
            projected: projected grid cells [B, N, width].
            ids: example ids, length B.
        """
        call = self._running()
        call.early_rows = 0
        if not self.wanted or not (self._enters() or self.config.control != "none"):
            return None
        if self.config.control != "none":
            rows = projected.shape[1] if self.config.pool == "none" else 1
            x_r = controls.replacement(self.config.control, ids, rows, width, projected, training, self.seed)
        else:
            x_r = projected if self.config.pool == "none" else projected.mean(1, keepdim=True)
        call.early_rows = x_r.shape[1]
        if self.reaches("encoder"):
            self.put("encoder", x_r)
        return x_r

    def positions(self, kinds: torch.Tensor) -> None:
        """Tell what each position of the encoder is [B, S], before its first layer runs."""
        self._running().kinds = kinds

    def door(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Pre-hook (with kwargs) of the decoder stack: sets x_R, and leaves an ordinary 0/1 mask to the stack."""
        states, kinds = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is None or kinds is None:
            raise RuntimeError("the decoder needs encoder_hidden_states and encoder_attention_mask as keywords")
        if self.wanted:
            rows = self._running().early_rows
            if rows:
                self.put("decoder", states[:, -rows:])
                states, kinds = states[:, :-rows], kinds[:, :-rows]
            elif self.config.pool == "none":
                self.put("decoder", states, kinds != PADDING)
            else:
                self.put("decoder", pooled(states, kinds, self.config.pool))
        mask = (kinds != PADDING).long()
        return args, kwargs | {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    # ---- what a method asks

    @property
    def task(self) -> str:
        """The running task; raises outside a call of the model."""
        return self._running().task

    @property
    def routed(self) -> bool:
        """Whether any task has a routing function other than ``none``."""
        return any(route is not None for route in self._routes.values())

    @property
    def kinds(self) -> torch.Tensor:
        """What each position of the encoder is [B, S]: `PADDING`, `TEXT`, `VISUAL` or `PROMPT`. For encoder sites."""
        kinds = self._running().kinds
        if kinds is None:
            raise RuntimeError("the encoder has not begun: call the model's encode, not its parts")
        return kinds

    def want_x_r(self) -> None:
        """Called by a method that uses x_R by itself (cross-attention) rather than by a routing function.

        Raises:
            InputError: there is a routing function besides, or x_R is pooled.
        """
        problems = []
        if self.routed:
            problems.append(
                "routing.function: this method's cross-attention takes the place of a routing function; set it to none"
            )
        if self.config.pool != "none":
            problems.append(
                f'routing.pool: this method\'s cross-attention chooses among rows of x_R, but "{self.config.pool}" '
                "averages them into one; set it to none"
            )
        if problems:
            raise InputError(problems)
        self._wanted = True

    def through(self, stack: str, x: torch.Tensor, down: Down, down_r: Down | None = None) -> torch.Tensor:
        """``down(x)`` [B, T, r], routed by ``down(x_R)`` where the running task routes this stack.

        Args:
            x: hidden states [B, T, d].
            down: the map into the bottleneck, shared by x and x_R, bias and dropout included.
            down_r: another map for x_R; None: ``down``.
        """
        route = self._route()
        if route is None or not self.reaches(stack):
            return down(x)
        x_r, valid = self.x_r(stack)
        x_v = (down_r or down)(x_r)
        if valid is not None:
            x_v = x_v * valid.unsqueeze(-1).to(x_v.dtype)
        return route(down(x), x_v)

    def reaches(self, stack: str) -> bool:
        """Whether x_R goes into the bottlenecks of ``stack``: into the encoder's only if it is what enters the encoder.

        A control replaces x_R where it goes, and nowhere else.
        """
        return stack == "decoder" or (self._enters() and self.wanted)

    def routes(self, stack: str, tasks: Sequence[str]) -> bool:
        """Whether x_R is routed into bottlenecks of ``stack`` for any of ``tasks``; may be asked before any call."""
        return (stack == "decoder" or self._enters()) and any(self._routes[task] is not None for task in tasks)

    def x_r(self, stack: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x_R [B, S, d] and which of its rows are valid [B, S] (None: all)."""
        call = self._running()
        if stack not in call.x_r:
            raise RuntimeError(f"x_R is missing in the {stack}: its stack was called in a way that does not set it")
        return call.x_r[stack]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made at the first request in a call and kept until the call ends."""
        made = self._running().made
        if key not in made:
            made[key] = make()
        return made[key]

    # ---- gradient checkpointing

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of `torch.utils.checkpoint`: recompute a layer with the task and x_R of its forward pass."""
        return nullcontext(), _AsItWas(self, self._running().copy())

    # ---- parts

    @property
    def wanted(self) -> bool:
        """Whether anything asks for x_R while the present task runs."""
        return self._wanted or self._route() is not None

    def _running(self) -> _Call:
        if self._call is None:
            raise RuntimeError("no task is running: call the model's forward, generate or choose, not its parts")
        return self._call

    def _route(self) -> Route | None:
        return self._routes[self.task]

    def _enters(self) -> bool:
        return self.config.source == "visual_pooled"


class _AsItWas(AbstractContextManager):
    """Puts a context back into an earlier state; may be entered more than once (a second backward pass)."""

    def __init__(self, context: Context, state: _Call):
        self.context, self.state = context, state

    def __enter__(self) -> None:
        self.present = self.context._call
        # a copy: what is made in a recomputation belongs to its own graph
        self.context._call = self.state.copy()

    def __exit__(self, *error: object) -> None:
        self.context._call = self.present


def pooled(states: torch.Tensor, kinds: torch.Tensor, pool: str) -> torch.Tensor:
    """Mean [B, 1, d] of ``states`` [B, S, d] over the positions that ``pool`` names: all valid, visual or text."""
    wanted = {"all": kinds != PADDING, "visual": kinds == VISUAL, "text": kinds == TEXT}[pool]
    weights = wanted.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def _routes(tasks: Sequence[str], config: RoutingConfig) -> dict[str, Route | None]:
    function: str | Mapping[str, str] = config.function
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
    if not problems and config.pool == "none":
        for name in dict.fromkeys(named.values()):
            problems += _unfit_for_rows(name, ROUTING.get(name), config)
    if problems:
        raise InputError(problems)
    return {task: None if named[task] == "none" else ROUTING.get(named[task]) for task in tasks}


def _unfit_for_rows(name: str, route: Route, config: RoutingConfig) -> list[str]:
    """Why a function cannot be given several routing rows, found by giving it some."""
    x_t, x_v = (torch.tensor(rows, device="cpu") for rows in ([[[1.0, 2.0]]], [[[1.0, 2.0], [3.0, 5.0]]]))
    try:
        alone, with_padding = route(x_t, x_v), route(x_t, torch.cat([x_v, torch.zeros_like(x_v)], 1))
    except InputError as error:
        return error.problems
    padded = config.source == "encoder_pooled" and config.control == "none"
    if padded and not torch.allclose(alone, with_padding):
        return [
            f'routing.function: "{name}" depends on how far x_R is padded, so that an example would depend on its '
            "batch; set routing.source to visual_pooled, whose rows are always as many"
        ]
    return []
