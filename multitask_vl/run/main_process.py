"""How does one process work for minutes while the others wait: outside the collectives of the training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from multitask_vl.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=7)


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """What ``work`` gives on the main process; None on the others, which return when it is done.

    A barrier of the training's own group would time out (NCCL: after ten minutes, and it keeps the device busy). The
    others wait in a group of gloo, made for this and with a week's patience. Should the main process die, they hear of
    it at once, as the connection breaks.

    Raises:
        InputError: ``work`` raised one; then it is raised on every process.
    """
    if accelerator.num_processes == 1:
        return work()
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    result: T | None = None
    problems: list[list[str] | None] = [None]
    try:
        if accelerator.is_main_process:
            try:
                result = work()
            except InputError as error:
                problems[0] = error.problems
        dist.broadcast_object_list(problems, src=0, group=group)
    finally:
        dist.destroy_process_group(group)
    if problems[0]:
        raise InputError(problems[0])
    return result
