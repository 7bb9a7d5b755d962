"""Rows of a local store file, read and written at their byte offsets."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from multitask_vl.data.store.format import StoreHeader
from multitask_vl.errors import InputError

MAX_BUFFERS = 1024  # IOV_MAX: buffers per preadv


class LocalRows:
    """A store file opened for its rows.

    HDF5 only supplies the byte offsets (`read_local_header`); rows are read with `pread` and written with `pwrite`.
    That is faster, and safe across a fork: each read carries its own position, so processes that inherit the descriptor
    share no state.

    Args:
        header: of the file.
        writable: whether rows can be written.

    Raises:
        InputError: the file was replaced since its header was read.
    """

    def __init__(self, header: StoreHeader, writable: bool = False):
        self.header = header
        self._descriptor = os.open(header.path, os.O_RDWR if writable else os.O_RDONLY)
        status = os.fstat(self._descriptor)
        if (status.st_dev, status.st_ino) != header.identity:
            self.close()
            raise InputError(f"{header.path}: the store was replaced while it was in use; start the command again")

    def read_into(self, row: int, out: np.ndarray) -> None:
        """Fill `out` (C-contiguous float16 [T, D]) with the features of a row."""
        header = self.header
        num_bytes = os.preadv(self._descriptor, [out], header.features_offset + row * header.row_bytes)
        if num_bytes != header.row_bytes:
            raise InputError(f"{header.path}: truncated while it was in use (row {row}); copy or extract it again")

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one array for each of `rows` (any order, repeats allowed), each as for `read_into`.

        Rows are read in the order of the file, adjacent rows with one system call.
        """
        header, rows = self.header, np.asarray(rows)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-2) != 1).tolist()
        order, ordered = order.tolist(), ordered.tolist()
        for start, stop in pairwise([*starts, len(ordered)]):
            for first in range(start, stop, MAX_BUFFERS):
                buffers = [outs[i] for i in order[first : min(first + MAX_BUFFERS, stop)]]
                offset = header.features_offset + ordered[first] * header.row_bytes
                if os.preadv(self._descriptor, buffers, offset) != len(buffers) * header.row_bytes:
                    for i, buffer in enumerate(buffers):  # a short read: read one by one to find the truncated row
                        self.read_into(ordered[first] + i, buffer)

    def checksum_ok(self, row: int, buffer: np.ndarray) -> bool:
        """Return whether a row's bytes match its checksum; `buffer` (as for `read_into`) then holds the row."""
        self.read_into(row, buffer)
        recorded = os.pread(self._descriptor, 4, self.header.crc32_offset + 4 * row)
        return int.from_bytes(recorded, "little") == zlib.crc32(buffer)

    def write(self, row: int, features: np.ndarray) -> None:
        """Write a row (C-contiguous float16 [T, D]): its bytes, then its checksum, then its `done` flag.

        A process killed in between leaves a row that is not done; bytes lost in a power failure later fail the
        checksum.
        """
        header = self.header
        self._pwrite(features.data.cast("B"), header.features_offset + row * header.row_bytes)
        self._pwrite(zlib.crc32(features).to_bytes(4, "little"), header.crc32_offset + 4 * row)
        self._pwrite(b"\x01", header.done_offset + row)

    def mark_undone(self, row: int) -> None:
        """Clear the `done` flag of a row."""
        self._pwrite(b"\x00", self.header.done_offset + row)

    def sync(self) -> None:
        """Flush everything written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:  # a network file system may report only now that it is full
            self._raise_if_disk_full(error)
            raise

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self):
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def _pwrite(self, data: bytes | memoryview, offset: int) -> None:
        remaining = memoryview(data)
        try:
            while remaining:
                written = os.pwrite(self._descriptor, remaining, offset)
                remaining, offset = remaining[written:], offset + written
        except OSError as error:
            self._raise_if_disk_full(error)
            raise

    def _raise_if_disk_full(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{self.header.path}: {error.strerror}; the rows stored so far are kept. Make room and run the same "
                "command again"
            ) from error
