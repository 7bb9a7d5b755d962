"""Extraction in forked processes: slow enough to be killed, killed inside a write, or as one of several ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from feature_extraction.extract import extract
from multitask_vl.config.schema import Config


def start_extraction(
    config: Config, pause_s: float = 0.0, kill_at: int | None = None, environment: Mapping[str, str] | None = None
) -> multiprocessing.Process:
    """Start an extraction in a process forked from this one, so that it imports nothing.

    Args:
        config: the configuration.
        pause_s: pause before every write, so that a kill at a random moment falls between the three writes of a row.
        kill_at: number of the write, from 1, in whose middle the process kills itself.
        environment: variables of this process, such as ``RANK``.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(config, pause_s, kill_at, environment or {}))
    process.start()
    return process


def _run(config: Config, pause_s: float, kill_at: int | None, environment: Mapping[str, str]) -> None:
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    os.environ.update(environment)
    pwrite, count = os.pwrite, 0

    def patched_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        time.sleep(pause_s)
        if count == kill_at:
            pwrite(descriptor, bytes(data)[: max(1, len(data) // 2)], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(descriptor, data, offset)

    os.pwrite = patched_pwrite
    summary = extract(config, "cpu")
    if "RANK" in environment:
        counts = f"{summary.images} {summary.extracted} {summary.skipped} {summary.complete}"
        (Path(config.data_dir) / f"summary{environment['RANK']}").write_text(counts)
