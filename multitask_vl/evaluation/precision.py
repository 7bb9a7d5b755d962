"""In which arithmetic are predictions made: that of training, and in bf16 with weights that need no casts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from multitask_vl.models.kernels.fsdp import whole


@contextmanager
def predicting_in(model: nn.Module, accelerator: Accelerator, bf16_weights: bool) -> Iterator[None]:
    """Run the body in the precision of training.

    Under bf16 all weights are bf16 for as long as the body runs, and autocast is off: it would cast what is trained
    anew at every token, and go back to float32 at every norm. What is compiled for training is not used: the shapes of
    predictions change at every token. Weights that are in shards are whole for as long.
    """
    bf16 = accelerator.mixed_precision == "bf16" and bf16_weights
    eager = torch.compiler.set_stance("force_eager")
    with eager, whole(model), _all_bf16(model) if bf16 else accelerator.autocast():
        yield


@contextmanager
def _all_bf16(model: nn.Module) -> Iterator[None]:
    """Copies stand in for what is float32; the tensors that DDP and the optimiser know are not touched."""
    copies: dict[int, torch.Tensor] = {}
    kept = []
    for module in model.modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        kept += [(module, name, one) for name, one in own if one.dtype == torch.float32]
    try:
        for module, name, one in kept:
            if id(one) not in copies:
                copy = one.detach().to(torch.bfloat16)
                copies[id(one)] = nn.Parameter(copy, requires_grad=False) if isinstance(one, nn.Parameter) else copy
            setattr(module, name, copies[id(one)])
        yield
    finally:
        for module, name, one in kept:
            setattr(module, name, one)
