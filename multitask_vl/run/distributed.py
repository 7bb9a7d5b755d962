"""Data parallelism and FSDP for training, and the launch options that are not supported.

`accelerate launch` passes its options in environment variables. Those of FSDP are read here and hidden from
`Accelerator`, which would shard the trainable tensors as well and, on a CPU, silently ignore FSDP.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, str_to_bool
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from multitask_vl.config.schema import Config
from multitask_vl.models.kernels.fsdp import FSDPModel
from multitask_vl.models.seq2seq import VLSeq2Seq

USE_FSDP, USE_DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"


def fsdp_requested() -> bool:
    """Return whether the launcher asks for FSDP, which shards the frozen weights."""
    return bool(str_to_bool(os.environ.get(USE_FSDP, "false")))


def unsupported_launch_options(config: Config) -> list[str]:
    """Return launch options that training does not support with this configuration, each with an alternative."""
    problems = []
    if str_to_bool(os.environ.get(USE_DEEPSPEED, "false")):
        problems.append(
            "DeepSpeed is not supported: it runs the optimizer inside the backward pass, and training runs it here; "
            "launch with configs/accelerate/many_gpus_ddp.yaml, or with fsdp2.yaml, which shards the frozen weights"
        )
    if not fsdp_requested():
        return problems
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        return [*problems, f"fsdp_version: {plugin.fsdp_version}, but only 2 is supported"]
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    checks = {
        "fsdp_offload_params: true is not supported; training.mixed_precision=bf16 halves the frozen weights": offload,
        "fsdp_activation_checkpointing: set training.gradient_checkpointing=true instead, which restores task and x_R "
        "where a layer is recomputed": plugin.activation_checkpointing,
        "fsdp_reshard_after_forward: false would keep all layers unsharded during a step; set it to true": (
            not plugin.reshard_after_forward
        ),
        "training.on_oom: halve does not work with FSDP, where a process that runs out of memory leaves the others "
        "waiting for its shards; set error, and a smaller training.micro_batch_size": config.training.on_oom == "halve",
        "training.compile: true does not work with FSDP; use one of the two": config.training.compile,
    }
    return [*problems, *(problem for problem, applies in checks.items() if applies)]


def prepare_distributed(
    model: VLSeq2Seq, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, list[str]]:
    """Prepare model and optimizer for data parallelism or, where the launcher asks for it, FSDP.

    Returns:
        the module that a training pass calls, the optimizer to step, and notes on how weights are sharded.
    """
    if not fsdp_requested():
        return *accelerator.prepare(model, optimizer), []
    if accelerator.num_processes == 1:
        note = "FSDP: there is only one process, so weights are not sharded"
        return *accelerator.prepare(model, optimizer), [note]
    # evaluation_mode, since accelerate would otherwise wrap it for DDP, which does not take shards
    fsdp_model = FSDPModel(model)
    prepared_model = accelerator.prepare_model(fsdp_model, evaluation_mode=True)
    _, num_parameters = model.parameter_counts()
    part = "half" if accelerator.num_processes == 2 else f"1/{accelerator.num_processes}"
    note = (
        f"FSDP: {fsdp_model.num_sharded:,} of {num_parameters:,} parameters are sharded, {part} of them on each process"
    )
    return prepared_model, accelerator.prepare_optimizer(optimizer), [note]
