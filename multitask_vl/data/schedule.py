"""Which task and which rows does step n train: a pure function of (seed, step), so that resuming is arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multitask_vl.config.schema import MixingConfig
from multitask_vl.data.length_groups import grouped


@dataclass(frozen=True)
class Draw:
    """What one step trains.

    Attributes:
        step: 0-based.
        task: name of the task.
        rows: row ids of the task's training split [B]; the same on every process.
        visit: how many batches of this task came before.
    """

    step: int
    task: str
    rows: np.ndarray
    visit: int


class Schedule:
    """The order of tasks and rows, the same on every process and after every restart.

    Time is cut into cycles of `steps_per_epoch` steps. Each cycle gives every task a fixed number of steps (its share)
    in an order shuffled by (seed, cycle). A task walks through its rows without replacement, in an order shuffled by
    (seed, task, pass), and starts the next pass where the last one ended; the last batch of a pass may be smaller. With
    the ``proportional`` mixture a cycle is one pass over every task, as VL-Adapter's round-robin loader does.

    With ``lengths`` a batch has rows of like length (see `multitask_vl.data.length_groups`); what else is said here
    holds as well.

    Args:
        sizes: task -> number of training rows.
        batch_sizes: task -> rows of one step, over all processes.
        mixing: how steps are shared between tasks.
        seed: decides every order.
        lengths: task -> a number for each of its rows, the larger the longer; None: rows are mixed as they come.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        mixing: MixingConfig,
        seed: int,
        lengths: Mapping[str, np.ndarray] | None = None,
    ):
        self.tasks = list(sizes)
        self.sizes = dict(sizes)
        self.batch_sizes = dict(batch_sizes)
        self.seed = seed
        self.batches = {task: math.ceil(sizes[task] / batch_sizes[task]) for task in self.tasks}
        self.steps_per_epoch = sum(self.batches.values())
        self.shares = _shares(self.batches, mixing)
        self.lengths = lengths
        self._grouped: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self, step: int) -> Draw:
        """Task and rows of ``step``; costs the same for any step."""
        cycle, offset = divmod(step, self.steps_per_epoch)
        order, seen = _cycle(self.seed, cycle, tuple(self.shares.values()))
        index = int(order[offset])
        task = self.tasks[index]
        visit = cycle * self.shares[task] + int(seen[offset])
        passed, batch = divmod(visit, self.batches[task])
        size = self.batch_sizes[task]
        rows = self._order(index, passed)[batch * size : (batch + 1) * size]
        return Draw(step=step, task=task, rows=rows, visit=visit)

    def _order(self, index: int, passed: int) -> np.ndarray:
        """All rows of a task in the order of one pass."""
        task = self.tasks[index]
        order = _pass(self.seed, index, passed, self.sizes[task])
        if self.lengths is None:
            return order
        if self._grouped.get(index, (None,))[0] != passed:
            rng = np.random.default_rng([self.seed, 6, index, passed])
            self._grouped[index] = passed, grouped(order, self.lengths[task], self.batch_sizes[task], rng)
        return self._grouped[index][1]


def _shares(batches: Mapping[str, int], mixing: MixingConfig) -> dict[str, int]:
    """Steps of each task in a cycle: by largest remainder, at least one each, summing to the cycle's length."""
    power = {"proportional": 1.0, "temperature": 1.0 / mixing.temperature, "uniform": 0.0}[mixing.strategy]
    total = sum(batches.values())
    weights = {task: count**power for task, count in batches.items()}
    exact = {task: weight / sum(weights.values()) * total for task, weight in weights.items()}
    shares = {task: max(1, math.floor(value)) for task, value in exact.items()}
    by_remainder = sorted(exact, key=lambda task: exact[task] - shares[task], reverse=True)
    for task in by_remainder[: max(0, total - sum(shares.values()))]:
        shares[task] += 1
    while sum(shares.values()) > total:  # a floor of one step lifted a tiny task: take it from the largest
        shares[max(shares, key=shares.__getitem__)] -= 1
    return shares


@functools.lru_cache(maxsize=4)
def _cycle(seed: int, cycle: int, shares: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Task index of each step of a cycle, and how often that task came before within the cycle."""
    order = np.repeat(np.arange(len(shares)), shares)
    np.random.default_rng([seed, 0, cycle]).shuffle(order)
    seen = np.empty_like(order)
    for index in range(len(shares)):
        places = order == index
        seen[places] = np.arange(places.sum())
    return order, seen


@functools.lru_cache(maxsize=16)
def _pass(seed: int, index: int, passed: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, index, passed]).permutation(size)
