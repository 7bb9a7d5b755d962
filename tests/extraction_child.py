"""What does a process do that is started to be killed: it extracts, slowly enough to be caught in the middle."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import torch

from feature_extraction.extract import extract
from multitask_vl.config.schema import Config

PAUSE_S = 0.002
"""Before every write, so that a random moment falls between or inside the three writes of a row."""


def run(config: str) -> None:
    """Extract the configuration in the file ``config``."""
    torch.set_num_threads(1)
    pwrite = os.pwrite

    def slow(descriptor, data, at):
        time.sleep(PAUSE_S)
        return pwrite(descriptor, data, at)

    os.pwrite = slow
    extract(Config.model_validate_json(Path(config).read_text()), "cpu")


def started(config: Path) -> multiprocessing.Process:
    """A process that extracts; it is forked from one that has imported everything, so it begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run, args=(str(config),))
    process.start()
    return process
