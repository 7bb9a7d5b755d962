"""One training step: forward, backward, clipping, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import StepPlan
from multitask_vl.logging import get_logger
from multitask_vl.training import memory
from multitask_vl.training.nonfinite import describe_step, is_finite, nonfinite_example_ids
from multitask_vl.training.optim import clip_gradients, learning_rate, set_learning_rate
from multitask_vl.training.state import TrainState
from multitask_vl.training.step_timer import IDLE

logger = get_logger(__name__)


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step, equal on every process.

    Attributes:
        loss: mean loss of the global batch.
        grad_norm: global L2 norm of the gradient before clipping.
        learning_rate: of the first parameter group.
        wall_s: seconds of the step on this process.
        skipped: why the weights were not updated, None for a completed update.
        nonfinite_ids: examples whose loss is not finite.
        halved_to: micro-batch size after each out-of-memory error of this step.
        stop: whether a signal reached one of the processes.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    wall_s: float
    skipped: str | None = None
    nonfinite_ids: list[str] = field(default_factory=list)
    halved_to: list[int] = field(default_factory=list)
    stop: bool = False


def train_step(state: TrainState, plan: StepPlan, batch: Batch) -> StepResult:
    """Train one step on this process's share of a batch and advance ``state``; called on every process.

    The learning rate, the seed of dropout and the loss depend on ``plan.step`` and the global batch only, so the result
    is the same for any number of processes and micro-batches, up to rounding.

    Args:
        plan: task and rows of the global batch.
        batch: the rows of this process, on any device. A process without rows of its own passes any row of the task.

    Raises:
        InputError: out of memory where ``on_oom`` does not help, or a non-finite step that may not be skipped.
    """
    started = time.perf_counter()
    accelerator, settings, timer = state.accelerator, state.config.training, state.timer
    timer.count(batch)
    timer.start_phase("forward")
    batch = batch.to(accelerator.device, non_blocking=True)
    set_learning_rate(state.optimizer, learning_rate(plan.step, state.total_steps, settings.lr, settings.warmup_ratio))
    passes, halved_to = _accumulate_with_retries(state, plan, batch)
    timer.start_phase("optimizer")
    if state.manual_sync:
        _average_gradients(state)
    accelerator.unscale_gradients(state.prepared_optimizer)
    norm = clip_gradients(state.parameters.values(), settings.max_grad_norm)
    # a signal to one process is reduced with the loss, so that all processes stop after the same step
    stop = passes.loss.new_tensor(float(state.interruption.signal_name is not None))
    loss, stop = accelerator.reduce(torch.stack([passes.loss, stop]), "sum").tolist()
    finite = is_finite(loss, norm, accelerator)
    if finite or accelerator.scaler is not None:
        state.prepared_optimizer.step()
    state.prepared_optimizer.zero_grad(set_to_none=True)
    state.step = plan.step + 1
    timer.start_phase(IDLE)
    skipped, ids = None, []
    if finite:
        state.skips.reset()
        state.mixture.add(plan)
    else:
        ids = nonfinite_example_ids(passes.micro_batches, passes.token_losses, _has_rows(state, plan), accelerator)
        skipped = describe_step(plan, loss, norm, ids)
        state.skips.record(skipped, settings)
    return StepResult(
        loss=loss,
        grad_norm=norm,
        learning_rate=state.optimizer.param_groups[0]["lr"],
        wall_s=time.perf_counter() - started,
        skipped=skipped,
        nonfinite_ids=ids,
        halved_to=halved_to,
        stop=bool(stop),
    )


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of one process.

    Attributes:
        loss: this process's part of the mean loss, a scalar.
        micro_batches: in the order of the passes.
        token_losses: losses [b, T] of each of them.
    """

    loss: torch.Tensor
    micro_batches: Sequence[Batch]
    token_losses: Sequence[torch.Tensor]


def accumulate_gradients(
    state: TrainState, plan: StepPlan, micro_batches: Sequence[Batch], denominator: torch.Tensor
) -> Passes:
    """Add up the gradients of this process's micro-batches.

    Args:
        denominator: of the loss of the global batch.
    """
    accelerator, task = state.accelerator, state.tasks[plan.task]
    has_rows = _has_rows(state, plan)
    loss, token_losses = torch.zeros((), device=accelerator.device), []
    for i, micro_batch in enumerate(micro_batches):
        sync_later = state.manual_sync or i < len(micro_batches) - 1
        with accelerator.no_sync(state.prepared_model) if sync_later else nullcontext():
            state.timer.start_phase("forward")
            losses = state.prepared_model(micro_batch)
            numerator, _ = task.reduce(losses, *micro_batch.loss_inputs())
            part = numerator * has_rows / denominator
            state.timer.start_phase("backward")
            # processes average their gradients, but these are parts of a sum
            accelerator.backward(part * accelerator.num_processes)
        loss += part.detach()
        token_losses.append(losses.detach())
    if state.uses_fsdp:
        # every process must run as many passes as the others, or the others would wait for its shards
        num_padding_passes = state.micro_batches.num_micro_batches(plan.task, len(plan.rows)) - len(micro_batches)
        for _ in range(num_padding_passes):
            accelerator.backward(0 * state.prepared_model(micro_batches[-1]).sum())
    return Passes(loss, micro_batches, token_losses)


def _accumulate_with_retries(state: TrainState, plan: StepPlan, batch: Batch) -> tuple[Passes, list[int]]:
    """Accumulate gradients; where ``on_oom`` is halve, repeat with half the micro-batch while memory runs out."""
    accelerator, sizes, halve = state.accelerator, state.micro_batches, state.config.training.on_oom == "halve"
    denominator = _global_denominator(state, plan, batch)
    halved_to = []
    while True:
        torch.manual_seed(_dropout_seed(state.config.seed, plan.step, accelerator.process_index))
        passes = None
        try:
            passes = accumulate_gradients(state, plan, batch.split(sizes.sizes[plan.task]), denominator)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if not halve or sizes.sizes[plan.task] == 1:
                raise memory.out_of_memory(plan.step, batch, sizes, accelerator.device) from error
        # outside the handler, whose error would keep the tensors of the pass alive
        if not halve or memory.all_ranks(passes is not None, accelerator):
            return passes, halved_to
        del passes
        state.prepared_optimizer.zero_grad(set_to_none=True)
        memory.empty_cache(accelerator.device)
        halved_to.append(sizes.halve(plan.task))
        logger.warning(f"step {plan.step}: out of memory; {sizes.summary(plan.task)} from here on")


def _global_denominator(state: TrainState, plan: StepPlan, batch: Batch) -> torch.Tensor:
    """Denominator of the loss of the global batch, so that processes and micro-batches add up to one mean."""
    no_loss = torch.zeros(batch.labels.shape, device=batch.labels.device)
    denominator = state.tasks[plan.task].reduce(no_loss, *batch.loss_inputs())[1] * _has_rows(state, plan)
    return state.accelerator.reduce(denominator, "sum").clamp(min=1e-12)


def _has_rows(state: TrainState, plan: StepPlan) -> bool:
    """Whether this process has rows of the batch; there may be more processes than rows."""
    return state.accelerator.process_index < len(plan.rows)


def _average_gradients(state: TrainState) -> None:
    for parameter in state.parameters.values():
        if parameter.grad is not None:
            parameter.grad = state.accelerator.reduce(parameter.grad, "mean")


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, 4, step, rank]).generate_state(1, np.uint64)[0])
