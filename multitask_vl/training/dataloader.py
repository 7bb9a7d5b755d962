"""Which examples does this process train at each step: its share of the schedule's batch, made ahead by workers."""

from __future__ import annotations

import gc

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import Draw, Schedule
from multitask_vl.errors import InputError
from multitask_vl.run.build import Run
from multitask_vl.run.checks import TRAIN
from multitask_vl.training.preemption import shielded


class _Steps(Dataset):
    """Step number -> this process's share of its batch. Workers read ahead; the order is the schedule's."""

    def __init__(self, run: Run, schedule: Schedule, accelerator: Accelerator):
        self.run_collators = {task: run.collators[task, TRAIN] for task in run.tasks}
        self.schedule, self.seed = schedule, run.config.seed
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> tuple[Draw, Batch | InputError]:
        draw = self.schedule.draw(step)
        # a global batch smaller than the number of processes: the rest repeat its first row with no weight
        rows = draw.rows[self.rank :: self.world] if self.rank < len(draw.rows) else draw.rows[:1]
        collator = self.run_collators[draw.task]
        try:
            return draw, collator.training(rows, self.seed, step, offset=self.rank, stride=self.world)
        except InputError as error:  # raised in a worker it would come out wrapped in the worker's traceback
            return draw, error


def keep_shared(worker: int) -> None:
    """Keep a worker's garbage collection off what it was forked with: looking at an object copies its page."""
    gc.freeze()
    shielded()


def loader(run: Run, schedule: Schedule, done: int, total: int, accelerator: Accelerator) -> DataLoader:
    """Of the steps from ``done`` to ``total``: a draw and its batch, or what is wrong with its input."""
    workers = run.config.training.workers
    return DataLoader(
        _Steps(run, schedule, accelerator),
        sampler=range(done, total),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=keep_shared,
        pin_memory=accelerator.device.type == "cuda",
    )
