"""FSDP over frozen weights: each process holds a shard, and a layer is gathered while it computes.

The layers' frozen matrices are sharded with torch's FSDP2. Trainable parameters, a few percent, are replicated as in
plain data parallelism, so gradients, optimizer states, checkpoints and adapters are unaffected by sharding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from multitask_vl.data.batch import Batch
from multitask_vl.errors import InputError
from multitask_vl.models.seq2seq import VLSeq2Seq


class FSDPModel(nn.Module):
    """Training wrapper of a model with sharded layers. Every process must call it equally often.

    Args:
        model: modified in place. Predictions use it directly, inside `unsharded`.

    Raises:
        InputError: no layer has a frozen matrix.
    """

    def __init__(self, model: VLSeq2Seq):
        super().__init__()
        self.model = model
        mesh = init_device_mesh(model.visual.project.weight.device.type, (dist.get_world_size(),))
        self.num_sharded = 0
        """Number of sharded parameters, over all processes."""
        for layer in model.lm.modules():
            if isinstance(layer, GradientCheckpointingLayer) and (frozen := _frozen_matrices(layer)):
                self.num_sharded += sum(matrix.numel() for matrix in frozen)
                fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params={*layer.parameters()} - frozen)
        if not self.num_sharded:
            raise InputError(
                "FSDP shards frozen weights, but every matrix of the layers is trainable; launch with "
                "configs/accelerate/many_gpus_ddp.yaml"
            )
        # a root without parameters of its own, through which layers know their order and prefetch the next one
        fully_shard(self, mesh=mesh, ignored_params={*self.parameters()})
        for parameter in model.trainable_parameters().values():
            dist.broadcast(parameter.data, src=0)
        # the first module to run becomes the root, and predictions, which may run first, only call the layers
        self(None)

    def forward(self, batch: Batch | None) -> torch.Tensor | None:
        """The model's forward pass; None for None."""
        return None if batch is None else self.model(batch)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every process, for predictions, where processes differ in batches and tokens."""
    layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        # tensors created in inference mode could not be trained with afterwards
        with torch.inference_mode(False):
            for layer in layers:
                layer.set_reshard_after_forward(False, recurse=False)
                layer.unshard()
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()


def _frozen_matrices(layer: nn.Module) -> set[nn.Parameter]:
    """Frozen weights of the layer's linear modules. Other parameters are small, or are used outside the layer."""
    linear = (module for module in layer.modules() if isinstance(module, nn.Linear))
    return {module.weight for module in linear if not module.weight.requires_grad}
