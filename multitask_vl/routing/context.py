"""Per-model routing context: the running task and x_R, as every bottleneck reads them.

The task is set for the length of one call. For x_R, a pre-hook reads the arguments of the decoder stack, which
``generate()`` has already repeated per beam. Gradient checkpointing restores both when it recomputes a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.routing.controls import control_x_r
from multitask_vl.routing.pooling import TokenType, masked_mean
from multitask_vl.routing.resolve import RoutingFunction, resolve_functions

DownProjection = Callable[[torch.Tensor], torch.Tensor]
T = TypeVar("T")


@dataclass
class _CallState:
    """State of one call of the model.

    Attributes:
        task: the running task.
        x_r: stack -> x_R [B, S, d] and the mask of its valid rows [B, S] (None: all valid).
        token_types: `TokenType` of every encoder position [B, S], set when the encoder starts.
        num_x_r_rows: rows at the end of the encoder's output that hold x_R.
        cache: values computed by `Context.cached`.
    """

    task: str
    x_r: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)
    token_types: torch.Tensor | None = None
    num_x_r_rows: int = 0
    cache: dict[Hashable, Any] = field(default_factory=dict)

    def copy(self) -> _CallState:
        return replace(self, x_r=dict(self.x_r), cache=dict(self.cache))


class Context:
    """The running task and x_R, shared by all bottlenecks of one model.

    Args:
        tasks: names of the model's tasks.
        config: function per task, source, pooling and control of x_R.
        seed: seed of the noise control outside training.

    Raises:
        InputError: an unknown function, a task without one, or a function for a task that does not exist.
    """

    def __init__(self, tasks: Sequence[str], config: RoutingConfig, seed: int = 0):
        self.tasks = tuple(tasks)
        self.config = config
        self.seed = seed
        self._functions = resolve_functions(self.tasks, config)
        self._x_r_required = False
        self._call: _CallState | None = None

    # ---- set by the model

    @contextmanager
    def task_scope(self, task: str) -> Iterator[None]:
        """Run the body for ``task``. Joins a running call for the same task; otherwise starts one and discards it."""
        if task not in self.tasks:
            raise InputError(f"task {task!r} is not one of this model's tasks ({', '.join(self.tasks)})")
        previous = self._call
        if previous is None or previous.task != task:
            self._call = _CallState(task)
        try:
            yield
        finally:
            self._call = previous

    def set_x_r(self, stack: str, x_r: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Set x_R for the bottlenecks of one stack.

        Args:
            stack: ``encoder`` or ``decoder``.
            x_r: [B, S, d].
            valid: mask of its valid rows [B, S]; None: all valid.
        """
        self._running().x_r[stack] = (x_r, valid)

    def set_visual_x_r(
        self, projected: torch.Tensor, ids: Sequence[str], width: int, training: bool
    ) -> torch.Tensor | None:
        """Set an x_R that is known before the encoder runs: the visual tokens, or a control.

        Such an x_R is appended to the encoder's output as masked rows, and `decoder_pre_hook` removes it again. It is
        therefore repeated per beam together with the output.

        Args:
            projected: projected visual tokens [B, N, width].
            ids: example ids, length B.

        Returns:
            x_R [B, S, width] with S = 1 if pooled and N otherwise, or None where x_R comes from the encoder's output
            or is not needed.
        """
        call = self._running()
        call.num_x_r_rows = 0
        if not self.needs_x_r or not (self._visual_source() or self.config.control != "none"):
            return None
        if self.config.control != "none":
            rows = projected.shape[1] if self.config.pooling == "none" else 1
            x_r = control_x_r(self.config.control, ids, rows, width, projected, training, self.seed)
        else:
            x_r = projected if self.config.pooling == "none" else projected.mean(1, keepdim=True)
        call.num_x_r_rows = x_r.shape[1]
        if self.receives_x_r("encoder"):
            self.set_x_r("encoder", x_r)
        return x_r

    def set_token_types(self, token_types: torch.Tensor) -> None:
        """Set the `TokenType` of every encoder position [B, S], before the first encoder layer runs."""
        self._running().token_types = token_types

    def decoder_pre_hook(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook (with kwargs) of the decoder stack: set x_R and pass an ordinary 0/1 mask on."""
        hidden_states, token_types = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if hidden_states is None or token_types is None:
            raise RuntimeError("pass encoder_hidden_states and encoder_attention_mask to the decoder as keywords")
        if self.needs_x_r:
            rows = self._running().num_x_r_rows
            if rows:
                self.set_x_r("decoder", hidden_states[:, -rows:])
                hidden_states, token_types = hidden_states[:, :-rows], token_types[:, :-rows]
            elif self.config.pooling == "none":
                self.set_x_r("decoder", hidden_states, token_types != TokenType.PADDING)
            else:
                self.set_x_r("decoder", masked_mean(hidden_states, token_types, self.config.tokens))
        mask = (token_types != TokenType.PADDING).long()
        return args, kwargs | {"encoder_hidden_states": hidden_states, "encoder_attention_mask": mask}

    # ---- read by methods

    @property
    def task(self) -> str:
        """The running task.

        Raises:
            RuntimeError: no call of the model is running.
        """
        return self._running().task

    @property
    def routed(self) -> bool:
        """Whether any task has a routing function other than ``none``."""
        return any(function is not None for function in self._functions.values())

    @property
    def token_types(self) -> torch.Tensor:
        """`TokenType` of every encoder position [B, S], for encoder sites.

        Raises:
            RuntimeError: the encoder has not started.
        """
        token_types = self._running().token_types
        if token_types is None:
            raise RuntimeError("the encoder has not started: call the model's encode, not its submodules")
        return token_types

    def require_x_r(self) -> None:
        """Request x_R for a method that reads it directly (cross-attention) instead of by a routing function.

        Raises:
            InputError: a routing function is configured too, or x_R is pooled.
        """
        problems = []
        if self.routed:
            problems.append(
                "routing.function: this method's cross-attention replaces the routing function; set it to none"
            )
        if self.config.pooling != "none":
            problems.append(
                f'routing.pooling: this method\'s cross-attention attends to rows of x_R, but "{self.config.pooling}" '
                "averages them into one; set it to none"
            )
        if problems:
            raise InputError(problems)
        self._x_r_required = True

    def bottleneck(
        self, stack: str, x: torch.Tensor, down: DownProjection, down_r: DownProjection | None = None
    ) -> torch.Tensor:
        """``down(x)`` [B, T, r], routed by ``down(x_R)`` where the running task routes this stack.

        Args:
            stack: ``encoder`` or ``decoder``.
            x: hidden states [B, T, d].
            down: the down-projection, shared by x and x_R, including bias and dropout.
            down_r: a separate down-projection for x_R; None: ``down``.
        """
        function = self._function()
        if function is None or not self.receives_x_r(stack):
            return down(x)
        x_r, valid = self.x_r(stack)
        x_v = (down_r or down)(x_r)
        if valid is not None:
            x_v = x_v * valid.unsqueeze(-1).to(x_v.dtype)
        return function(down(x), x_v)

    def receives_x_r(self, stack: str) -> bool:
        """Whether x_R reaches the bottlenecks of ``stack``: always the decoder's, the encoder's for source ``visual``.

        A control replaces x_R at the same sites and adds none.
        """
        return stack == "decoder" or (self._visual_source() and self.needs_x_r)

    def is_routed(self, stack: str, tasks: Sequence[str]) -> bool:
        """Whether ``stack`` is routed for any of ``tasks``. Does not need a running call."""
        return (stack == "decoder" or self._visual_source()) and any(
            self._functions[task] is not None for task in tasks
        )

    def x_r(self, stack: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x_R [B, S, d] of a stack and the mask of its valid rows [B, S] (None: all valid)."""
        call = self._running()
        if stack not in call.x_r:
            raise RuntimeError(f"x_R is missing in the {stack}: the stack was called in a way that does not set it")
        return call.x_r[stack]

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of ``compute``, computed on the first request and kept until the call ends."""
        cache = self._running().cache
        if key not in cache:
            cache[key] = compute()
        return cache[key]

    @property
    def needs_x_r(self) -> bool:
        """Whether the running task uses x_R."""
        return self._x_r_required or self._function() is not None

    # ---- gradient checkpointing

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of `torch.utils.checkpoint`: recompute a layer with the task and x_R of its forward pass."""
        return nullcontext(), _RestoreState(self, self._running().copy())

    def _running(self) -> _CallState:
        if self._call is None:
            raise RuntimeError(
                "no task is running: call the model's forward, generate or classify_first_token, not its submodules"
            )
        return self._call

    def _function(self) -> RoutingFunction | None:
        return self._functions[self.task]

    def _visual_source(self) -> bool:
        return self.config.source == "visual"


class _RestoreState(AbstractContextManager):
    """Restores an earlier state of a context; re-enterable, for a second backward pass."""

    def __init__(self, context: Context, state: _CallState):
        self.context, self.state = context, state

    def __enter__(self) -> None:
        self.previous = self.context._call
        # a copy: values cached during a recomputation belong to its own graph
        self.context._call = self.state.copy()

    def __exit__(self, *error: object) -> None:
        self.context._call = self.previous
