"""Does a process wait for one that scores longer than its group waits? Run by torchrun; prints a line of JSON each."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from multitask_vl.errors import InputError
from multitask_vl.run.main_process import on_main_process

PATIENCE_S, WORK_S = 5, 12


def slow() -> str:
    """Scores."""
    time.sleep(WORK_S)
    return "scored"


def failing() -> str:
    """No scores."""
    raise InputError("no answers")


def main() -> None:
    """Work alone, then together again."""
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENCE_S))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
    result = on_main_process(accelerator, slow)
    together = int(accelerator.reduce(torch.ones(()), "sum"))
    try:
        on_main_process(accelerator, failing)
        failure = None
    except InputError as error:
        failure = str(error)
    accelerator.wait_for_everyone()
    told = {"told": [accelerator.process_index, together, result, failure]}
    # in one piece, since both processes write to the same place
    os.write(sys.stdout.fileno(), f"{json.dumps(told)}\n".encode())
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
