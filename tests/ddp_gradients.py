"""Compare gradients of two processes with those of one. Run by torchrun; prints JSON: case -> largest differences.

Averaging gradients depends neither on the family nor on routing, which acts on each row separately
(`test_beams_of_batch_equal_rows_and_unshared`), so DDP is tried with every method and setting on BART and once on the
other families; FSDP, which shards frozen weights, with every method on every family.
"""

from __future__ import annotations

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multitask_vl.errors import InputError
from multitask_vl.models.kernels.fsdp import FSDPModel
from tests.method_cases import ALL_METHODS, BART_SETTINGS
from tests.tiny_models import TASKS, loss_of, perturb, tiny_batch


def difference(model: nn.Module, expected: dict[str, torch.Tensor | None], sharded: bool) -> float | None:
    """Largest difference between gradients averaged over two halves of a batch and those of the full batch.

    Relative to the largest gradient of the tensor where that exceeds 1. A tensor that has a gradient in only one of the
    two counts as infinitely different.

    Args:
        expected: gradients of the full batch.

    Returns:
        None for a model without frozen weights to shard.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if sharded:
        try:
            wrapped = FSDPModel(model)
        except InputError:
            return None
    else:
        # a step of one task leaves the other tasks' tensors without gradient, as in training
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    # processes average gradients; the loss of the full batch is a sum
    (wrapped(tiny_batch(TASKS[0], rows=2).select(torch.tensor([rank]))).sum() * world_size).backward()
    worst = 0.0
    for name, parameter in model.trainable_parameters().items():
        own, other = expected[name], parameter.grad
        if sharded and other is not None:
            dist.all_reduce(other)
            other /= world_size
        if (own is None) != (other is None):
            # parameters of the other task: no gradient in one process, zeros where processes agreed on one
            worst = max(worst, float("inf") if own is not None or other.abs().max() > 0 else 0.0)
        elif own is not None:
            worst = max(worst, float((own - other).abs().max() / own.abs().max().clamp(min=1)))
    return worst


def main() -> None:
    """Compare all cases in this pair of processes."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {}
    for case in BART_SETTINGS:
        model = perturb(case.model())
        copies = copy.deepcopy(model), copy.deepcopy(model)
        loss_of(model, tiny_batch(TASKS[0], rows=2)).backward()
        expected = {name: parameter.grad for name, parameter in model.trainable_parameters().items()}
        found[case.label] = {"ddp": difference(copies[0], expected, sharded=False)}
        if case in ALL_METHODS:
            found[case.label]["fsdp"] = difference(copies[1], expected, sharded=True)
    if dist.get_rank() == 0:
        print(json.dumps({"world_size": dist.get_world_size(), "differences": found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
