"""How far along is it, how fast, and how long still: the progress bars of extraction and store keeping."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tqdm import tqdm


def bar(*args, **options) -> tqdm:
    """A tqdm bar on stderr; in a log file it speaks every 20 seconds only, each time being a new line there."""
    seconds = 0.5 if os.isatty(2) else 20
    return tqdm(*args, mininterval=seconds, maxinterval=2 * seconds, dynamic_ncols=True, **options)


def watch(rows: Iterable, what: str) -> Iterable:
    """A loop over rows under a bar that goes away at the end; a `multitask_vl.data.store.writer.Watch`."""
    return bar(rows, desc=what, unit="row", leave=False)
