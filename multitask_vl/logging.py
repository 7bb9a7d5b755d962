"""Logging on rank 0."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

ROOT = "multitask_vl"
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Environment variables that accelerate reads the rank from, in its order."""


def rank() -> int:
    """Return the rank that the launcher gave to this process, 0 without a launcher."""
    values = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(value) for value in values if value.isdigit()), 0)


class RankLogger(logging.LoggerAdapter):
    """Logger whose messages appear on rank 0 only, unless ``main_process_only=False`` is passed to the call."""

    def log(self, level: int, msg: object, *args: Any, main_process_only: bool = True, **kwargs: Any) -> None:
        """Log a message, by default on rank 0 only."""
        if not main_process_only or rank() == 0:
            super().log(level, msg, *args, **kwargs)


def get_logger(name: str) -> RankLogger:
    """Return the logger of a module: ``logger = get_logger(__name__)``, as with `accelerate.logging`."""
    inside = name == ROOT or name.startswith(f"{ROOT}.")
    return RankLogger(logging.getLogger(name if inside else f"{ROOT}.{name}"), {})


def configure_logging(level: int = logging.INFO) -> None:
    """Show messages from ``level`` on stderr. Commands call this once; a library user may configure logging instead."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, ProgressBarHandler) for handler in logger.handlers):
        logger.addHandler(ProgressBarHandler())


class ProgressBarHandler(logging.Handler):
    """Write lines to the current ``sys.stderr``, above any tqdm bar."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a message; warnings and errors are marked by their level."""
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message. A bar can only exist once tqdm has been imported."""
        try:
            tqdm = sys.modules.get("tqdm")
            if tqdm is None:
                print(self.format(record), file=sys.stderr, flush=True)
            else:
                tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
