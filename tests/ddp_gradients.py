"""Do two processes give the gradients of one? Run by torchrun; prints a line of JSON: case -> largest differences."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from multitask_vl.errors import InputError
from multitask_vl.models.kernels.fsdp import Sharded
from multitask_vl.registry import METHODS
from tests.method_cases import CASES, Case
from tests.tiny_models import TASKS, loss_of, shaken, tiny_batch

IN_SHARDS = [
    case for case in CASES if case.routing == (("function", "mm1" if METHODS.get(case.method).routable else "none"),)
]
"""Every method and sharing once: what is frozen knows nothing of routing."""


def difference(case: Case, alone: dict[str, torch.Tensor | None], in_shards: bool) -> float | None:
    """Largest difference between the gradients of two halves of a batch, averaged by the processes, and of the whole.

    Relative to the largest gradient of the tensor where that is above 1. A tensor that has a gradient in one of the two
    and not in the other counts as infinitely different. None for a model that has nothing to put into shards.

    Args:
        alone: gradients of the whole.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    together = shaken(case.model())
    if in_shards:
        try:
            wrapped = Sharded(together)
        except InputError:
            return None
    else:
        # a step of one task leaves the other tasks' tensors without gradient, as in training
        wrapped = DistributedDataParallel(together, find_unused_parameters=True)
    # processes average, these are shares of a sum
    (wrapped(tiny_batch(TASKS[0], rows=2).rows_slice(rank, rank + 1)).sum() * world).backward()
    worst = 0.0
    for name, parameter in together.trainable().items():
        own, other = alone[name], parameter.grad
        if in_shards and other is not None:
            dist.all_reduce(other)
            other /= world
        if (own is None) != (other is None):
            # what only reaches the other task: no gradient alone, zeros or none where processes agreed on it
            worst = max(worst, float("inf") if own is not None or other.abs().max() > 0 else 0.0)
        elif own is not None:
            worst = max(worst, float((own - other).abs().max() / own.abs().max().clamp(min=1)))
    return worst


def differences(case: Case) -> dict[str, float | None]:
    """Of plain data parallelism and, for `IN_SHARDS`, with the frozen weights in shards."""
    model = shaken(case.model())
    loss_of(model, tiny_batch(TASKS[0], rows=2)).backward()
    alone = {name: parameter.grad for name, parameter in model.trainable().items()}
    found = {"data": difference(case, alone, in_shards=False)}
    return found | ({"shards": difference(case, alone, in_shards=True)} if case in IN_SHARDS else {})


def main() -> None:
    """Every case that lies on this share of the table."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {case.label: differences(case) for case in CASES}
    if dist.get_rank() == 0:
        print(json.dumps({"world": dist.get_world_size(), "differences": found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
