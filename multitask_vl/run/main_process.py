"""Work on the main process while the others wait, outside the collectives of training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from multitask_vl.errors import InputError

T = TypeVar("T")
TIMEOUT = timedelta(days=7)


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Run ``work`` on the main process and return its result; on the others return None once it is done.

    A barrier of the training's own group would time out (NCCL: after ten minutes, and it keeps the device busy). So the
    others wait in a gloo group created for this, with a timeout of a week. If the main process crashes, the connection
    breaks and they fail immediately.

    Raises:
        InputError: on every process, if ``work`` raised one.
    """
    if accelerator.num_processes == 1:
        return work()
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
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
