"""Who gives the rows of a store file: the local file, or requests to where a URL points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from multitask_vl.data.store.format import Layout, is_url, read_layout
from multitask_vl.data.store.row_file import RowFile


class Rows(Protocol):
    """What `RowFile` (local), `RemoteRows` (behind a URL) and `RamRows` (in memory) have in common."""

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one C-contiguous float16 [T, D] for each of `rows`, in any order, repeats allowed."""

    def close(self) -> None:
        """Give back what is open."""


def layout_of_place(path: Path | str) -> Layout:
    """The layout of a file or of what lies behind a URL.

    Raises:
        InputError: as `store_format.read_layout`, or the URL cannot be read by ranges of bytes.
    """
    if not is_url(path):
        return read_layout(Path(path))
    from multitask_vl.data.store.remote_rows import read_remote_layout  # libraries of the network only where it is used

    return read_remote_layout(path)


def open_rows(layout: Layout) -> Rows:
    """The reader of a file's rows."""
    if not is_url(layout.path):
        return RowFile(layout)
    from multitask_vl.data.store.remote_rows import RemoteRows

    return RemoteRows(layout)
