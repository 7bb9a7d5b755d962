"""How do processes share the weights that nobody trains: each keeps a part, and a layer is whole while it works.

The frozen matrices of the layers are put into shards by torch's FSDP2; what is trained, a few percent, stays whole and
the same on every process, as under plain data parallelism. So gradients, moments, checkpoints and adapters know nothing
of shards.
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


class Sharded(nn.Module):
    """Where a training pass enters a model whose layers are in shards; every process must enter as often.

    Args:
        model: it is changed in place. Predictions use it as it is, within `whole`.

    Raises:
        InputError: no layer has a frozen matrix.
    """

    def __init__(self, model: VLSeq2Seq):
        super().__init__()
        self.model = model
        mesh = init_device_mesh(model.visual.project.weight.device.type, (dist.get_world_size(),))
        self.total = 0
        """How many weights are in shards, all processes' together."""
        for layer in model.lm.modules():
            if isinstance(layer, GradientCheckpointingLayer) and (frozen := _frozen_matrices(layer)):
                self.total += sum(matrix.numel() for matrix in frozen)
                fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params={*layer.parameters()} - frozen)
        if not self.total:
            raise InputError(
                "FSDP puts frozen weights into shards, and here every matrix of the layers is trained; launch with "
                "configs/accelerate/many_gpus_ddp.yaml"
            )
        # a root without weights of its own, by which layers know their order and fetch the next one ahead
        fully_shard(self, mesh=mesh, ignored_params={*self.parameters()})
        for parameter in model.trainable().values():
            dist.broadcast(parameter.data, src=0)
        # the first to run becomes the root, and predictions, which may come first, enter the layers only
        self(None)

    def forward(self, batch: Batch | None) -> torch.Tensor | None:
        """As the model's; None for None."""
        return None if batch is None else self.model(batch)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While this runs, every process has all weights: in predictions one has more batches and tokens than another."""
    layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        # what inference mode makes could not be trained with afterwards
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
    """Weights of its linear maps that are not trained. All else is small, or is read from outside of a layer."""
    linear = (module for module in layer.modules() if isinstance(module, nn.Linear))
    return {module.weight for module in linear if not module.weight.requires_grad}
