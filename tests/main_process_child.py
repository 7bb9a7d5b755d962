"""Two forked ranks that call `on_main_process` with work longer than the timeout of their process group."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from multitask_vl.errors import InputError
from multitask_vl.run.main_process import on_main_process
from tests.preload import context_with

GROUP_TIMEOUT_S, WORK_S = 5, 10


def slow_work() -> str:
    """Work that takes longer than the timeout of the process group."""
    time.sleep(WORK_S)
    return "scored"


def failing_work() -> str:
    """Work that raises InputError."""
    raise InputError("no answers")


def run_rank(rank: int, port: int, results: multiprocessing.Queue) -> None:
    """Run slow work, a collective operation and failing work on one rank, and report the results."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    timeout = InitProcessGroupKwargs(timeout=timedelta(seconds=GROUP_TIMEOUT_S))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[timeout])
    result = on_main_process(accelerator, slow_work)
    ranks = int(accelerator.reduce(torch.ones(()), "sum"))
    try:
        on_main_process(accelerator, failing_work)
        failure = None
    except InputError as error:
        failure = str(error)
    accelerator.wait_for_everyone()
    results.put((rank, ranks, result, failure))
    accelerator.end_training()


def run_two_ranks(timeout_s: float) -> list[tuple]:
    """Run `run_rank` on two ranks, forked from a server that has imported this module, and return their results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the server of the training tests, which they share
    context = context_with("tests.fork_server")
    results = context.Queue()
    processes = [context.Process(target=run_rank, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=timeout_s) for _ in processes]
    for process in processes:
        process.join(timeout_s)
    assert [process.exitcode for process in processes] == [0, 0]
    return sorted(found)
