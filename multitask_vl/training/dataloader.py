"""Batches of the training steps, prepared ahead by workers."""

from __future__ import annotations

import gc

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import Schedule, StepPlan
from multitask_vl.errors import InputError
from multitask_vl.run.build import Run
from multitask_vl.run.checks import TRAIN
from multitask_vl.training.preemption import ignore_signals


class StepDataset(Dataset):
    """Step number -> its plan and this process's share of its batch. The order is the schedule's."""

    def __init__(self, run: Run, schedule: Schedule, accelerator: Accelerator):
        self.collators = {task: run.collators[task, TRAIN] for task in run.tasks}
        self.schedule, self.seed = schedule, run.config.seed
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> tuple[StepPlan, Batch | InputError]:
        plan = self.schedule.plan(step)
        # a global batch smaller than the number of processes: the others repeat its first row with weight 0
        rows = plan.rows[self.rank :: self.world_size] if self.rank < len(plan.rows) else plan.rows[:1]
        collator = self.collators[plan.task]
        try:
            return plan, collator.train_batch(rows, self.seed, step, offset=self.rank, stride=self.world_size)
        except InputError as error:  # raised in a worker, it would be wrapped in the worker's traceback
            return plan, error


def worker_init(worker: int) -> None:
    """Freeze a worker's garbage collector, which would copy every inherited page, and ignore signals to the job."""
    gc.freeze()
    ignore_signals()


def train_dataloader(run: Run, schedule: Schedule, first: int, total: int, accelerator: Accelerator) -> DataLoader:
    """Return a loader of the steps from ``first`` to ``total``: (plan, batch), or (plan, InputError) for bad input."""
    workers = run.config.training.num_workers
    return DataLoader(
        StepDataset(run, schedule, accelerator),
        sampler=range(first, total),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=worker_init,
        pin_memory=accelerator.device.type == "cuda",
    )
