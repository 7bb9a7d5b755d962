"""What did the launcher ask for beside data parallelism, and what does training do of it?

`accelerate launch` tells its processes by environment variables. Those of FSDP are read here and kept from its
`Accelerator`, which would shard what is trained as well, and on a CPU would leave it all out without a word.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, str_to_bool
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from multitask_vl.config.schema import Config
from multitask_vl.models.kernels.fsdp import Sharded
from multitask_vl.models.seq2seq import VLSeq2Seq

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"


def asked() -> bool:
    """Whether frozen weights are to be in shards."""
    return bool(str_to_bool(os.environ.get(FSDP, "false")))


def refusals(config: Config) -> list[str]:
    """What the launcher asks for and training does not do, or not with this configuration; each with a way out."""
    problems = []
    if str_to_bool(os.environ.get(DEEPSPEED, "false")):
        problems.append(
            "DeepSpeed takes its steps by itself, within the backward pass, and training takes them here; launch with "
            "configs/accelerate/many_gpus_ddp.yaml, or with fsdp2.yaml, which puts the frozen weights into shards"
        )
    if not asked():
        return problems
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        return [*problems, f"fsdp_version: {plugin.fsdp_version}, but only 2 is supported"]
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    checks = {
        "fsdp_offload_params: true is not supported; training.mixed_precision=bf16 halves what is frozen": offload,
        "fsdp_activation_checkpointing: set training.gradient_checkpointing=true instead, which brings task and x_R "
        "back where a layer is recomputed": plugin.activation_checkpointing,
        "fsdp_reshard_after_forward: false would keep all layers whole through a step; set it to true": (
            not plugin.reshard_after_forward
        ),
        "training.on_oom: halve does not go with FSDP, where a process that runs out of memory leaves the others "
        "waiting for its part; set error, and a smaller training.micro_batch_size": config.training.on_oom == "halve",
        "training.compile: true does not go with FSDP; leave one of them out": config.training.compile,
    }
    return [*problems, *(said for said, is_so in checks.items() if is_so)]


def wrapped(
    model: VLSeq2Seq, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, list[str]]:
    """What a training pass enters, the optimiser that goes with it, and remarks on how the processes share weights."""
    if not asked():
        return *accelerator.prepare(model, optimizer), []
    if accelerator.num_processes == 1:
        remark = "FSDP was asked for, and one process has nobody to share weights with: they stay whole"
        return *accelerator.prepare(model, optimizer), [remark]
    # for "evaluation", since accelerate would otherwise wrap it for its own data parallelism, which takes no shards
    root = Sharded(model)
    entered = accelerator.prepare_model(root, evaluation_mode=True)
    _, everything = model.parameter_counts()
    part = "half" if accelerator.num_processes == 2 else f"1/{accelerator.num_processes}"
    remark = f"FSDP: {root.total:,} of {everything:,} parameters in shards, {part} of them on each process"
    return entered, accelerator.prepare_optimizer(optimizer), [remark]
