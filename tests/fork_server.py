"""How is the training program started often and cheaply: each start is a fork of a server that has imported everything.

What is to happen to a start (a signal, a death inside a write, a loss that is not a number) is done to the child, here.
"""

from __future__ import annotations

import errno
import functools
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

provenance.packages = functools.cache(provenance.packages)  # what is installed stays so from one start to the next
provenance.packages()
for registry in (TASKS, METHODS, ROUTING, BACKBONES):
    registry.names()  # imports what is registered
DISK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.fsync"}


@dataclass
class Plan:
    """What happens to one start.

    Attributes:
        said: file that gets what the program says.
        signal: what is sent.
        to_job, to_all: to the processes that load for this one as well; to every process of several.
        at_start, at_step, at_prediction: when, one of them: now, when this step (or a later one) is fetched, or when a
            prediction is made after this step was fetched.
        after_s: so much later, by another process; None: by the process itself, there and then.
        at_change: (part of a path, n): SIGKILL before the n-th change of the disk at such a path.
        full_at: likewise, the disk is full there.
        ids: file that gets a line for every batch that is trained.
        broken: (task, id): the loss of this example is not a number; of every example where the id is "all".
        steep: task whose loss is finite and whose gradient is not.
        environment: variables of this start.
    """

    said: str
    signal: int = signal.SIGKILL
    to_job: bool = False
    to_all: bool = False
    at_start: bool = False
    at_step: int | None = None
    at_prediction: int | None = None
    after_s: float | None = None
    at_change: tuple[str, int] | None = None
    full_at: tuple[str, int] | None = None
    ids: str | None = None
    broken: tuple[str, str] | None = None
    steep: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def changes(where: str, number: int, act: Callable[[], None]) -> None:
    """Have ``act`` called before the n-th thing that this process does to the disk at a path with ``where`` in it."""
    seen = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in DISK or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if where in str(arguments[0]):
            seen.append(event)
            if len(seen) == number:
                act()

    fsync = os.fsync

    def told_fsync(descriptor: int) -> None:
        hook("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        fsync(descriptor)

    os.fsync = told_fsync
    sys.addaudithook(hook)


def kill() -> None:
    """This process ends here."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_room() -> None:
    """What the system says when a disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _send(number: int, after_s: float | None, to_job: bool) -> None:
    parent = os.getpid()
    if to_job:
        os.killpg(0, number)
    elif after_s is None:
        os.kill(parent, number)
    elif os.fork() == 0:
        time.sleep(after_s)
        if os.getppid() == parent:
            os.kill(parent, number)
        os._exit(0)


def follow(plan: Plan) -> None:
    """Prepare this process for what is to happen to it."""
    os.environ.update(plan.environment)
    descriptor = os.open(plan.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if plan.at_change:
        changes(*plan.at_change, kill)
    if plan.full_at:
        changes(*plan.full_at, no_room)
    if plan.to_job:
        os.setpgrp()
    sent, fetched = [], []
    training, predicting, forward = Collator.training, Collator.predicting, VLSeq2Seq.forward

    def send() -> None:
        if not sent:
            sent.append(True)
            _send(plan.signal, plan.after_s, plan.to_job)

    def watched_training(self, rows, seed, step, offset=0, stride=1):
        batch = training(self, rows, seed, step, offset, stride)
        fetched.append(step)
        if plan.ids:
            with open(plan.ids, "a") as file:
                row = {"step": step, "rank": offset, "world": stride, "task": batch.task, "ids": batch.ids}
                file.write(json.dumps(row) + "\n")
        if plan.at_step is not None and step >= plan.at_step:
            send()
        return batch

    def watched_predicting(self, rows):
        # a run that goes on from its end fetches nothing before it predicts
        if plan.at_prediction is not None and (not fetched or fetched[-1] >= plan.at_prediction):
            send()
        return predicting(self, rows)

    def watched_forward(self, batch):
        losses = forward(self, batch)
        if plan.broken and plan.broken[0] == batch.task:
            bad = [plan.broken[1] in (id_, "all") for id_ in batch.ids]
            losses = losses.masked_fill(torch.tensor(bad)[:, None], float("nan"))
        if plan.steep == batch.task:
            losses = losses + (0 * losses).sum().sqrt()  # 0, with a slope without end
        return losses

    Collator.training, Collator.predicting, VLSeq2Seq.forward = watched_training, watched_predicting, watched_forward
    if plan.at_start:
        send()


def _child(words: list[str], plan: Plan) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loaders, as in a program of its own
    follow(plan)
    script = tiny_run.ROOT / "launch" / "train_multitask.py"
    sys.argv = [str(script), *words]
    sys.exit(runpy.run_path(str(script))["main"]())


def _server():
    os.environ.update(tiny_run.environment())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fork_server"])
    return context


def start(words: list[str], plan: Plan, processes: int = 1) -> list[BaseProcess]:
    """Start the training program; several processes are a real gloo group, as torchrun makes one.

    A signal of the plan goes to the last process, unless it goes to all. Names of files get the process's number.
    """
    context, started, port = _server(), [], _free_port()
    for rank in range(processes):
        own = plan
        if processes > 1:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = replace(
                plan,
                said=f"{plan.said}.{rank}",
                ids=plan.ids and f"{plan.ids}.{rank}",
                environment=plan.environment | {name: str(value) for name, value in group.items()},
            )
            if rank < processes - 1 and not plan.to_all:
                own = replace(own, at_step=None, at_prediction=None, at_start=False)
        started.append(context.Process(target=_child, args=(words, own)))
        started[-1].start()
    return started


def ended(started: list[BaseProcess], within_s: float = 280) -> list[int]:
    """Exit codes of processes once all have ended; a signal's is negative."""
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
