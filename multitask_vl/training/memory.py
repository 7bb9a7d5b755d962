"""Micro-batch sizes and out-of-memory errors."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.errors import InputError
from multitask_vl.storage.memory import GIB, peak_memory
from multitask_vl.training.step_timer import num_images

OOM_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed")


class MicroBatches:
    """Rows of one forward pass on one process, by task. The global batch stays; gradients are accumulated.

    Args:
        configured: ``training.micro_batch_size``.
        batch_sizes: task -> rows of the global batch.
        num_processes: that share it.
        halved: task -> size after out-of-memory errors in an earlier part of this run.
    """

    def __init__(
        self,
        configured: int | None,
        batch_sizes: Mapping[str, int],
        num_processes: int,
        halved: Mapping[str, int] = {},
    ):
        self.batch_sizes, self.num_processes = dict(batch_sizes), num_processes
        local_sizes = {task: math.ceil(size / num_processes) for task, size in batch_sizes.items()}
        self.sizes = {task: min(size, configured or size) for task, size in local_sizes.items()}
        self.halved = {task: size for task, size in halved.items() if size < self.sizes.get(task, 0)}
        self.sizes |= self.halved

    @classmethod
    def from_checkpoint(
        cls, config: Config, batch_sizes: Mapping[str, int], num_processes: int, record: Mapping[str, Any]
    ) -> MicroBatches:
        """Restore the sizes halved before a checkpoint, given its ``record`` ({} without a checkpoint).

        A changed ``training.micro_batch_size`` is the user's answer to running out of memory and takes precedence.
        """
        configured = config.training.micro_batch_size
        before = record.get("config", {}).get("training", {}).get("micro_batch_size")
        return cls(configured, batch_sizes, num_processes, record.get("halved", {}) if before == configured else {})

    def halve(self, task: str) -> int:
        """Halve the size of a task, down to one row; returns the new size."""
        self.sizes[task] = self.halved[task] = max(1, self.sizes[task] // 2)
        return self.sizes[task]

    def num_micro_batches(self, task: str, batch_size: int) -> int:
        """Return the largest number of passes that any process needs for a global batch."""
        return math.ceil(math.ceil(batch_size / self.num_processes) / self.sizes[task])

    def summary(self, task: str) -> str:
        """Describe how the global batch of a task is split."""
        batch_size, size = self.batch_sizes[task], self.sizes[task]
        local_size, passes = math.ceil(batch_size / self.num_processes), self.num_micro_batches(task, batch_size)
        return (
            f"{task}: batch {batch_size} = {self.num_processes} "
            f"{'process' if self.num_processes == 1 else 'processes'} x {local_size}"
            + (f", in {passes} passes of up to {size} (accumulated)" if passes > 1 else ", in one pass")
        )


def all_ranks(here: bool, accelerator: Accelerator) -> bool:
    """Return whether ``here`` is true on every process; called on all of them."""
    missing = torch.tensor([0.0 if here else 1.0], device=accelerator.device)
    return float(accelerator.reduce(missing, "sum")) == 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in OOM_MESSAGES)


def empty_cache(device: torch.device) -> None:
    """Free the memory of a failed pass."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(step: int, batch: Batch, sizes: MicroBatches, device: torch.device) -> InputError:
    """Build the error that names what did not fit and the settings that need less memory."""
    task, size = batch.task, sizes.sizes[batch.task]
    images, tokens = num_images(batch) // len(batch), batch.features.shape[-2]
    smaller = f"training.micro_batch_size={size // 2}" if size > 1 else "a smaller model or a larger device"
    return InputError(
        f"out of memory at step {step} on {device}: a pass of {size} examples of task {task} (text of "
        f"{batch.input_ids.shape[1]} tokens, target of {batch.labels.shape[1]}, {images} x {tokens} visual tokens); "
        f"peak {peak_memory(device) / GIB:.2f} GiB. Try {smaller} (the batch stays {sizes.batch_sizes[task]}), "
        f"training.gradient_checkpointing=true, or, in a new run, training.mixed_precision=bf16. Resume with "
        f"training.resume=auto; with training.on_oom=halve a run halves the micro-batch by itself"
    )
