"""How is one row of a feature store read or written: a plain read or write at a known place of the file."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from multitask_vl.data.store.format import Layout
from multitask_vl.errors import InputError

MOST_BUFFERS = 1024  # of one preadv


class RowFile:
    """A store file opened for its rows.

    HDF5 is only asked where the rows lie (`store_format.read_layout`); the rows themselves are `pread` and `pwrite`.
    That is faster, and safe across a fork: such a read carries its own position, so processes that inherit the
    descriptor share no state.

    Raises:
        InputError: the file was replaced since the layout was read, so its rows may lie elsewhere.
    """

    def __init__(self, layout: Layout, writable: bool = False):
        self.layout = layout
        self._descriptor = os.open(layout.path, os.O_RDWR if writable else os.O_RDONLY)
        status = os.fstat(self._descriptor)
        if (status.st_dev, status.st_ino) != layout.identity:
            self.close()
            raise InputError(f"{layout.path}: the store was replaced while it was in use; start the command again")

    def read_into(self, row: int, out: np.ndarray) -> None:
        """Fill `out` (C-contiguous float16 [T, D]) with the features of a row."""
        layout = self.layout
        got = os.preadv(self._descriptor, [out], layout.features_at + row * layout.row_bytes)
        if got != layout.row_bytes:
            raise InputError(f"{layout.path}: truncated while it was in use (row {row}); copy or extract it again")

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one array for each of `rows` (any order, repeats allowed), each as for `read_into`.

        They are read in the order of the file, neighbours at once.
        """
        layout, rows = self.layout, np.asarray(rows)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-2) != 1).tolist()
        order, ordered = order.tolist(), ordered.tolist()
        for start, stop in pairwise([*starts, len(ordered)]):
            for at in range(start, stop, MOST_BUFFERS):
                buffers = [outs[i] for i in order[at : min(at + MOST_BUFFERS, stop)]]
                offset = layout.features_at + ordered[at] * layout.row_bytes
                if os.preadv(self._descriptor, buffers, offset) != len(buffers) * layout.row_bytes:
                    for number, buffer in enumerate(buffers):  # a read may be short; one by one tells which row is cut
                        self.read_into(ordered[at] + number, buffer)

    def matches(self, row: int, buffer: np.ndarray) -> bool:
        """Is a row's checksum that of its bytes? `buffer` (as for `read_into`) is left holding the row."""
        self.read_into(row, buffer)
        recorded = os.pread(self._descriptor, 4, self.layout.crc32_at + 4 * row)
        return int.from_bytes(recorded, "little") == zlib.crc32(buffer)

    def write(self, row: int, features: np.ndarray) -> None:
        """Put one row (C-contiguous float16 [T, D]): its bytes, its checksum, and only then that it is done.

        A process killed in between leaves a row that is not done; bytes lost in a power cut fail the checksum later.
        """
        layout = self.layout
        self._put(features.data.cast("B"), layout.features_at + row * layout.row_bytes)
        self._put(zlib.crc32(features).to_bytes(4, "little"), layout.crc32_at + 4 * row)
        self._put(b"\x01", layout.done_at + row)

    def forget(self, row: int) -> None:
        """Make a row count as not done."""
        self._put(b"\x00", self.layout.done_at + row)

    def sync(self) -> None:
        """Wait until everything written lies on the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:  # a network file system may notice only now that it is full
            self._tell_if_full(error)
            raise

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self):
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def _put(self, data: bytes | memoryview, at: int) -> None:
        left = memoryview(data)
        try:
            while left:
                written = os.pwrite(self._descriptor, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            self._tell_if_full(error)
            raise

    def _tell_if_full(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{self.layout.path}: {error.strerror}; what is stored so far is kept. Make room and run the same "
                "command"
            ) from error
