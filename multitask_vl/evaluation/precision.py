"""Numerical precision of inference: that of training, for bf16 with weights cast once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from multitask_vl.models.kernels.fsdp import unsharded


@contextmanager
def inference_precision(model: nn.Module, accelerator: Accelerator, cast_weights_bf16: bool) -> Iterator[None]:
    """Run the body in the precision of training.

    With bf16, all weights are cast to bf16 while the body runs, and autocast is off: it would cast trainable weights
    again at every token, and return to float32 at every norm. Compiled modules run eagerly, because the shapes of
    generation change at every token. FSDP shards are gathered while the body runs.

    Args:
        model: model of the run, possibly sharded.
        accelerator: gives the mixed precision of training.
        cast_weights_bf16: see `EvaluationConfig`. False: autocast, as in training.
    """
    bf16 = accelerator.mixed_precision == "bf16" and cast_weights_bf16
    eager = torch.compiler.set_stance("force_eager")
    with eager, unsharded(model), _cast_weights_bf16(model) if bf16 else accelerator.autocast():
        yield


@contextmanager
def _cast_weights_bf16(model: nn.Module) -> Iterator[None]:
    """Replace float32 tensors of the modules by bf16 copies. DDP and the optimizer keep the original tensors."""
    copies: dict[int, torch.Tensor] = {}
    originals = []
    for module in model.modules():
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        originals += [(module, name, tensor) for name, tensor in tensors if tensor.dtype == torch.float32]
    try:
        for module, name, tensor in originals:
            if id(tensor) not in copies:
                copy = tensor.detach().to(torch.bfloat16)
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            setattr(module, name, copies[id(tensor)])
        yield
    finally:
        for module, name, tensor in originals:
            setattr(module, name, tensor)
