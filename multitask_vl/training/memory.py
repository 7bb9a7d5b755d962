"""How many examples go through the model at once, and what happens when memory does not suffice for them."""

from __future__ import annotations

import gc
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task
from multitask_vl.training.step_timer import StepClock, shown_images

GIB = 2**30
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed")


class MicroBatches:
    """The largest forward pass of each task on one process. The global batch never changes; its pieces may.

    Args:
        configured: ``training.micro_batch_size``.
        batches: task -> global batch.
        processes: that share it.
        halved: task -> size that an earlier part of this run ended with.
    """

    def __init__(
        self, configured: int | None, batches: Mapping[str, int], processes: int, halved: Mapping[str, int] = {}
    ):
        self.batches, self.processes = dict(batches), processes
        shares = {task: math.ceil(batch / processes) for task, batch in batches.items()}
        self.sizes = {task: min(share, configured or share) for task, share in shares.items()}
        self.halved = {task: size for task, size in halved.items() if size < self.sizes.get(task, 0)}
        self.sizes |= self.halved

    def halve(self, task: str) -> int:
        """Half as many from now on, at least one; returns the new size."""
        self.sizes[task] = self.halved[task] = max(1, self.sizes[task] // 2)
        return self.sizes[task]

    def passes(self, task: str, batch: int) -> int:
        """The most passes that one of the processes needs for a global batch."""
        return math.ceil(math.ceil(batch / self.processes) / self.sizes[task])

    def described(self, task: str) -> str:
        """How the global batch of a task is made up."""
        batch, size = self.batches[task], self.sizes[task]
        share, passes = math.ceil(batch / self.processes), self.passes(task, batch)
        return (
            f"{task}: batch {batch} = {self.processes} {'process' if self.processes == 1 else 'processes'} x {share}"
            + (f", in {passes} passes of up to {size} (accumulated)" if passes > 1 else ", in one pass")
        )


def micro_batches(config: Config, batches: Mapping[str, int], processes: int, state: Mapping[str, Any]) -> MicroBatches:
    """The sizes of a run, with what was halved before the checkpoint whose state is given.

    Another ``training.micro_batch_size`` than the checkpoint was made with is a user's answer to that, and counts.
    """
    configured = config.training.micro_batch_size
    before = state.get("config", {}).get("training", {}).get("micro_batch_size")
    return MicroBatches(configured, batches, processes, state.get("halved", {}) if before == configured else {})


def add_gradients(
    wrapped: nn.Module,
    task: Task,
    pieces: Sequence[Batch],
    counted: bool,
    denominator: torch.Tensor,
    accelerator: Accelerator,
    clock: StepClock,
    apart: bool,
    idle: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Add the gradient of this process's share of a batch, piece by piece.

    Args:
        pieces: the share, cut into micro-batches.
        counted: whether its rows count.
        denominator: of the global batch.
        apart: leave the averaging over processes to the caller.
        idle: passes without effect behind the others, for processes that must all take as many.

    Returns:
        the share of the loss, and the losses per token [b, T] of each piece.
    """
    loss, all_losses = torch.zeros((), device=accelerator.device), []
    for i, piece in enumerate(pieces):
        with accelerator.no_sync(wrapped) if apart or i < len(pieces) - 1 else nullcontext():
            clock.enter("forward")
            losses = wrapped(piece)
            numerator, _ = task.reduce(losses, *piece.to_reduce())
            share = numerator * counted / denominator
            clock.enter("backward")
            # processes average their gradients, but these are shares of a sum
            accelerator.backward(share * accelerator.num_processes)
        loss += share.detach()
        all_losses.append(losses.detach())
    for _ in range(idle):
        accelerator.backward(0 * wrapped(pieces[-1]).sum())
    return loss, all_losses


def everywhere(here: bool, accelerator: Accelerator) -> bool:
    """Whether something is so on every process."""
    missing = torch.tensor([0.0 if here else 1.0], device=accelerator.device)
    return float(accelerator.reduce(missing, "sum")) == 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, of a device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a CUDA device, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release(device: torch.device) -> None:
    """Give back what a failed pass held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(step: int, batch: Batch, sizes: MicroBatches, device: torch.device) -> InputError:
    """The error that tells a user what did not fit and what to turn."""
    task, size = batch.task, sizes.sizes[batch.task]
    images, cells = shown_images(batch) // len(batch), batch.features.shape[-2]
    smaller = f"training.micro_batch_size={size // 2}" if size > 1 else "a smaller model or a larger device"
    return InputError(
        f"out of memory at step {step} on {device}: a pass of {size} examples of task {task} (text of "
        f"{batch.input_ids.shape[1]} tokens, target of {batch.labels.shape[1]}, {images} x {cells} grid cells); peak "
        f"{peak_bytes(device) / GIB:.2f} GiB. Try {smaller} (the batch stays {sizes.batches[task]}), "
        f"training.gradient_checkpointing=true, or, in a new run, training.mixed_precision=bf16. Go on with "
        f"training.resume=auto; with training.on_oom=halve a run does the first by itself"
    )
