"""Everything that one training step reads and changes, saved and loaded as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import Parameter

from multitask_vl.config.schema import Config
from multitask_vl.data.schedule import Schedule
from multitask_vl.models.kernels.fsdp import FSDPModel
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.run.distributed import prepare_distributed
from multitask_vl.run.provenance import SampledMixture
from multitask_vl.tasks.base import Task
from multitask_vl.training import checkpoint
from multitask_vl.training.memory import MicroBatches
from multitask_vl.training.nonfinite import SkipCounter
from multitask_vl.training.optim import build_optimizer
from multitask_vl.training.preemption import Interruption
from multitask_vl.training.step_timer import StepTimer


@dataclass
class TrainState:
    """State of a training run between two steps.

    Attributes:
        config: of the run; a step uses its ``training`` section and its seed.
        accelerator: device, processes and precision.
        tasks: task by name, for the reduction of its loss.
        model: the model itself; its trainable tensors are ``parameters``, by name.
        prepared_model: what a training pass calls: the model as prepared for data parallelism or FSDP.
        optimizer: the optimizer itself; ``prepared_optimizer`` is the one that `accelerate` prepared.
        micro_batches: rows of one forward pass, by task; halved after an out-of-memory error if configured.
        mixture: steps and examples that each task was trained on.
        skips: steps skipped because of a non-finite loss or gradient.
        step: number of completed steps.
        total_steps: length of the run, which decides the learning rates.
        interruption: whether a signal asks the run to stop.
        timer: time and amount of data since the last reading.
        notes: messages about the distributed set-up.
    """

    config: Config
    accelerator: Accelerator
    tasks: Mapping[str, Task]
    model: VLSeq2Seq
    prepared_model: nn.Module
    parameters: Mapping[str, Parameter]
    optimizer: torch.optim.Optimizer
    prepared_optimizer: torch.optim.Optimizer
    micro_batches: MicroBatches
    mixture: SampledMixture
    skips: SkipCounter
    step: int
    total_steps: int
    interruption: Interruption
    timer: StepTimer
    notes: list[str]

    @classmethod
    def create(
        cls,
        model: VLSeq2Seq,
        tasks: Mapping[str, Task],
        schedule: Schedule,
        config: Config,
        accelerator: Accelerator,
        resume_from: Path | None = None,
        interruption: Interruption | None = None,
    ) -> TrainState:
        """Build the optimizer, restore a checkpoint if there is one, and prepare everything for the first step.

        Args:
            model: on the accelerator's device. It is changed: gradient checkpointing, compilation, FSDP.
            schedule: gives the batch size of each task and the number of steps of an epoch.
            resume_from: a valid checkpoint of the same configuration.

        Raises:
            InputError: the checkpoint does not fit the model.
        """
        settings = config.training
        parameters = model.trainable_parameters()
        optimizer = build_optimizer(parameters, settings, model.trainable_base_parameters())
        step = checkpoint.load(resume_from, parameters, optimizer) if resume_from else 0
        record = checkpoint.read_state(resume_from) if resume_from else {}
        if accelerator.scaler is not None and record.get("scaler"):
            accelerator.scaler.load_state_dict(record["scaler"])
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if settings.compile:
            model.compile_layers()
        prepared_model, prepared_optimizer, notes = prepare_distributed(model, optimizer, accelerator)
        prepared_model.train()
        return cls(
            config=config,
            accelerator=accelerator,
            tasks=tasks,
            model=model,
            prepared_model=prepared_model,
            parameters=parameters,
            optimizer=optimizer,
            prepared_optimizer=prepared_optimizer,
            micro_batches=MicroBatches.from_checkpoint(config, schedule.batch_sizes, accelerator.num_processes, record),
            mixture=SampledMixture.from_checkpoint(schedule, record, step),
            skips=SkipCounter.from_checkpoint(record),
            step=step,
            total_steps=settings.max_steps or math.ceil(settings.epochs * schedule.steps_per_epoch),
            interruption=interruption or Interruption(),
            timer=StepTimer(accelerator.device),
            notes=notes,
        )

    @property
    def uses_fsdp(self) -> bool:
        """Whether the frozen weights are sharded, so that every process must run as many passes as the others."""
        return isinstance(self.prepared_model, FSDPModel)

    @property
    def manual_sync(self) -> bool:
        """Whether the step averages gradients itself, once every process has all of its own.

        With `on_oom: halve` a process may have to repeat its passes; under FSDP the trainable tensors are not sharded.
        """
        return self.uses_fsdp or (self.config.training.on_oom == "halve" and self.accelerator.num_processes > 1)

    def save(self, folder: Path, write_adapter: Callable[[Path], None], record: Mapping[str, object]) -> Path:
        """Write a checkpoint into ``folder`` and return its path; for one process.

        Args:
            write_adapter: writes weights, settings and card of the model into a folder.
            record: further JSON-serializable entries of the checkpoint's state.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        counters = {
            "mixture": self.mixture.counts,
            "halved": self.micro_batches.halved,
            "skips": asdict(self.skips),
        }
        if self.accelerator.scaler is not None:
            counters["scaler"] = self.accelerator.scaler.state_dict()
        return checkpoint.save(
            folder, self.step, write_adapter, self.parameters, self.optimizer, {**record, **counters}
        )
