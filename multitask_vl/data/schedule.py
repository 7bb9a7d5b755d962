"""Schedule of tasks and rows: a pure function of (seed, step), so that resuming needs no state."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multitask_vl.config.schema import SamplingConfig
from multitask_vl.data.length_bucketing import bucket_by_length


@dataclass(frozen=True)
class StepPlan:
    """Task and rows of one training step.

    Attributes:
        step: 0-based.
        task: name of the task.
        rows: row ids of the task's training split [B]; the same on every process.
        batch_index: number of earlier batches of this task.
    """

    step: int
    task: str
    rows: np.ndarray
    batch_index: int


class Schedule:
    """The order of tasks and rows, the same on every process and after every restart.

    An epoch has `steps_per_epoch` steps and gives every task a fixed number of them (`steps_per_task`), in an order
    shuffled by (seed, epoch). A task iterates over its rows without replacement, in an order shuffled by (seed, task,
    task epoch); its next task epoch starts where the last one ended, and the last batch of a task epoch may be smaller.
    With ``proportional`` sampling an epoch is one task epoch of every task, like VL-Adapter's round-robin loader.

    Args:
        sizes: task -> number of training rows.
        batch_sizes: task -> rows per step, over all processes.
        sampling: how the steps of an epoch are divided between tasks.
        seed: decides every order.
        lengths: task -> sort key of each of its rows; batches then have rows of similar length
            (`multitask_vl.data.length_bucketing`). None: no bucketing.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        sampling: SamplingConfig,
        seed: int,
        lengths: Mapping[str, np.ndarray] | None = None,
    ):
        self.tasks = list(sizes)
        self.sizes = dict(sizes)
        self.batch_sizes = dict(batch_sizes)
        self.seed = seed
        self.batches = {task: math.ceil(sizes[task] / batch_sizes[task]) for task in self.tasks}
        self.steps_per_epoch = sum(self.batches.values())
        self.steps_per_task = _apportion(self.batches, sampling)
        self.lengths = lengths
        self._bucketed: dict[int, tuple[int, np.ndarray]] = {}

    def plan(self, step: int) -> StepPlan:
        """Return the task and rows of ``step``; the cost does not depend on the step."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        order, earlier = _task_order(self.seed, epoch, tuple(self.steps_per_task.values()))
        index = int(order[offset])
        task = self.tasks[index]
        batch_index = epoch * self.steps_per_task[task] + int(earlier[offset])
        task_epoch, batch = divmod(batch_index, self.batches[task])
        size = self.batch_sizes[task]
        rows = self._row_order(index, task_epoch)[batch * size : (batch + 1) * size]
        return StepPlan(step=step, task=task, rows=rows, batch_index=batch_index)

    def _row_order(self, index: int, task_epoch: int) -> np.ndarray:
        """All rows of a task in the order of one task epoch."""
        task = self.tasks[index]
        order = _permutation(self.seed, index, task_epoch, self.sizes[task])
        if self.lengths is None:
            return order
        if self._bucketed.get(index, (None,))[0] != task_epoch:
            rng = np.random.default_rng([self.seed, 6, index, task_epoch])
            bucketed = bucket_by_length(order, self.lengths[task], self.batch_sizes[task], rng)
            self._bucketed[index] = task_epoch, bucketed
        return self._bucketed[index][1]


def _apportion(batches: Mapping[str, int], sampling: SamplingConfig) -> dict[str, int]:
    """Steps of each task in an epoch: by largest remainder, at least one each, summing to the length of the epoch."""
    power = {"proportional": 1.0, "temperature": 1.0 / sampling.temperature, "uniform": 0.0}[sampling.strategy]
    total = sum(batches.values())
    weights = {task: count**power for task, count in batches.items()}
    exact = {task: weight / sum(weights.values()) * total for task, weight in weights.items()}
    steps_per_task = {task: max(1, math.floor(value)) for task, value in exact.items()}
    by_remainder = sorted(exact, key=lambda task: exact[task] - steps_per_task[task], reverse=True)
    for task in by_remainder[: max(0, total - sum(steps_per_task.values()))]:
        steps_per_task[task] += 1
    while sum(steps_per_task.values()) > total:  # a tiny task was raised to one step: take it from the largest task
        steps_per_task[max(steps_per_task, key=steps_per_task.__getitem__)] -= 1
    return steps_per_task


@functools.lru_cache(maxsize=4)
def _task_order(seed: int, epoch: int, steps_per_task: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Task index of each step of an epoch, and the number of earlier steps of that task in the epoch."""
    order = np.repeat(np.arange(len(steps_per_task)), steps_per_task)
    np.random.default_rng([seed, 0, epoch]).shuffle(order)
    earlier = np.empty_like(order)
    for index in range(len(steps_per_task)):
        steps = order == index
        earlier[steps] = np.arange(steps.sum())
    return order, earlier


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, index: int, task_epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, index, task_epoch]).permutation(size)
