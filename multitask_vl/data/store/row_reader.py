"""Row readers of a store file, chosen by whether it is local or behind a URL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from multitask_vl.data.store.format import StoreHeader, is_url, read_local_header
from multitask_vl.data.store.local_rows import LocalRows


class RowReader(Protocol):
    """Interface of `LocalRows` and `RemoteRows`."""

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one C-contiguous float16 array [T, D] for each of `rows`, in any order, repeats allowed."""

    def close(self) -> None:
        """Release open files and connections."""


def read_header(path: Path | str) -> StoreHeader:
    """Read the header of a store file or URL.

    Raises:
        InputError: as `read_local_header`, or the server does not support range requests.
    """
    if not is_url(path):
        return read_local_header(Path(path))
    from multitask_vl.data.store.remote_rows import read_remote_header  # network libraries only where they are used

    return read_remote_header(path)


def open_rows(header: StoreHeader) -> RowReader:
    """Open the rows of a store file for reading."""
    if not is_url(header.path):
        return LocalRows(header)
    from multitask_vl.data.store.remote_rows import RemoteRows

    return RemoteRows(header)
