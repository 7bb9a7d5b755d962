"""Many cheap starts of the training program: each is a fork of a server that has imported everything.

The faults of a start (a signal, a crash inside a write, a loss that is not finite) are injected into the child, here.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess

import torch
import transformers.models.bart.modeling_bart
import transformers.models.bart.tokenization_bart  # noqa: F401

import multitask_vl.training.loop  # noqa: F401
from multitask_vl.data.collate import Collator
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.registry import BACKBONES, METHODS, ROUTING, TASKS
from multitask_vl.run import provenance
from tests import tiny_run
from tests.preload import context_with

# neither changes between starts
PACKAGES, GIT_STATE = provenance.packages(), provenance.git_state()
for registry in (TASKS, METHODS, ROUTING, BACKBONES):
    registry.names()  # imports what is registered
DISK_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.fsync"}


@dataclass
class FaultPlan:
    """Faults of one start.

    Attributes:
        log: file that receives the output of the program.
        signal: signal to send.
        whole_job, all_ranks: to the data-loading workers as well; to every process of several.
        at_start, at_step, at_prediction: when, one of them: immediately, when this step (or a later one) is fetched, or
            at a prediction after this step was fetched.
        after_s: so much later, by another process; None: immediately, by the process itself.
        at_change: (part of a path, n): SIGKILL before the n-th change on the disk at such a path.
        full_at: the same, for a full disk.
        ids: file that receives one line for every trained batch.
        nan_loss: (task, id): the loss of this example is not a number; of every example if the id is "all".
        infinite_grad: task whose loss is finite and whose gradient is not.
        max_rows: (rank, n): this rank runs out of memory in passes of more than n rows.
        environment: variables of this start.
    """

    log: str
    signal: int = signal.SIGKILL
    whole_job: bool = False
    all_ranks: bool = False
    at_start: bool = False
    at_step: int | None = None
    at_prediction: int | None = None
    after_s: float | None = None
    at_change: tuple[str, int] | None = None
    full_at: tuple[str, int] | None = None
    ids: str | None = None
    nan_loss: tuple[str, str] | None = None
    infinite_grad: str | None = None
    max_rows: tuple[int, int] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def on_disk_change(part: str, number: int, act: Callable[[], None]) -> None:
    """Call ``act`` before the n-th change that this process makes on the disk at a path containing ``part``."""
    seen = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in DISK_EVENTS or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if part in str(arguments[0]):
            seen.append(event)
            if len(seen) == number:
                act()

    fsync = os.fsync

    def hooked_fsync(descriptor: int) -> None:
        hook("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        fsync(descriptor)

    os.fsync = hooked_fsync
    sys.addaudithook(hook)


def kill() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    """Raise the error of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _send(number: int, after_s: float | None, whole_job: bool) -> None:
    parent = os.getpid()
    if whole_job:
        os.killpg(0, number)
    elif after_s is None:
        os.kill(parent, number)
    elif os.fork() == 0:
        time.sleep(after_s)
        if os.getppid() == parent:
            os.kill(parent, number)
        os._exit(0)


def inject(plan: FaultPlan) -> None:
    """Prepare this process for its faults."""
    os.environ.update(plan.environment)
    provenance.packages, provenance.git_state = lambda: PACKAGES, lambda: GIT_STATE
    descriptor = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if plan.at_change:
        on_disk_change(*plan.at_change, kill)
    if plan.full_at:
        on_disk_change(*plan.full_at, disk_full)
    if plan.whole_job:
        os.setpgrp()
    _patch_batches(plan)
    _patch_losses(plan)


def _patch_batches(plan: FaultPlan) -> None:
    """Record the trained batches and send the signal at a step or a prediction."""
    sent, fetched = [], []
    train_batch, eval_batch = Collator.train_batch, Collator.eval_batch

    def send() -> None:
        if not sent:
            sent.append(True)
            _send(plan.signal, plan.after_s, plan.whole_job)

    def patched_train_batch(self, rows, seed, step, offset=0, stride=1):
        batch = train_batch(self, rows, seed, step, offset, stride)
        fetched.append(step)
        if plan.ids:
            with open(plan.ids, "a") as file:
                row = {"step": step, "rank": offset, "world": stride, "task": batch.task, "ids": batch.ids}
                file.write(json.dumps(row) + "\n")
        if plan.at_step is not None and step >= plan.at_step:
            send()
        return batch

    def patched_eval_batch(self, rows):
        # a run that resumes from its last step fetches nothing before it predicts
        if plan.at_prediction is not None and (not fetched or fetched[-1] >= plan.at_prediction):
            send()
        return eval_batch(self, rows)

    Collator.train_batch, Collator.eval_batch = patched_train_batch, patched_eval_batch
    if plan.at_start:
        send()


def _patch_losses(plan: FaultPlan) -> None:
    forward = VLSeq2Seq.forward

    def patched_forward(self, batch):
        if plan.max_rows and int(os.environ.get("RANK", 0)) == plan.max_rows[0] and len(batch) > plan.max_rows[1]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        losses = forward(self, batch)
        if plan.nan_loss and plan.nan_loss[0] == batch.task:
            bad = [plan.nan_loss[1] in (id_, "all") for id_ in batch.ids]
            losses = losses.masked_fill(torch.tensor(bad)[:, None], float("nan"))
        if plan.infinite_grad == batch.task:
            losses = losses + (0 * losses).sum().sqrt()  # adds 0, whose gradient is infinite
        return losses

    VLSeq2Seq.forward = patched_forward


def _child(arguments: list[str], plan: FaultPlan) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for data-loading workers, as in a process of its own
    inject(plan)
    script = tiny_run.ROOT / "launch" / "train_multitask.py"
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def start(arguments: list[str], plan: FaultPlan, processes: int = 1) -> list[BaseProcess]:
    """Start the training program; several processes form a gloo group, as under torchrun.

    A signal of the plan goes to the last process, unless it goes to all. The process's rank is appended to file names.
    """
    os.environ.update(tiny_run.environment())
    context, started, port = context_with(__name__), [], _free_port()
    for rank in range(processes):
        own = plan
        if processes > 1:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = replace(
                plan,
                log=f"{plan.log}.{rank}",
                ids=plan.ids and f"{plan.ids}.{rank}",
                environment=plan.environment | {name: str(value) for name, value in group.items()},
            )
            if rank < processes - 1 and not plan.all_ranks:
                own = replace(own, at_step=None, at_prediction=None, at_start=False)
        started.append(context.Process(target=_child, args=(arguments, own)))
        started[-1].start()
    return started


def exit_codes(started: list[BaseProcess], within_s: float = 280) -> list[int]:
    """Return the exit codes of processes once all have ended; a signal's is negative."""
    limit = time.monotonic() + within_s
    for process in started:
        process.join(max(0.1, limit - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in started]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
