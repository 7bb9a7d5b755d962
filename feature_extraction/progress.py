"""Progress bars of extraction and store maintenance."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(*args, **options) -> tqdm:
    """Return a tqdm bar on stderr; if stderr is a log file, it adds a line at most every 20 seconds."""
    seconds = 0.5 if os.isatty(2) else 20
    return tqdm(*args, mininterval=seconds, maxinterval=2 * seconds, dynamic_ncols=True, **options)


def progress(rows: Iterable, description: str) -> Iterable:
    """Wrap rows in a bar that disappears at the end; a `multitask_vl.data.store.progress.ProgressFn`."""
    return progress_bar(rows, desc=description, unit="row", leave=False)
