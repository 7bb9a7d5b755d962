"""Rows of a store in memory, shared by a process and the workers it starts."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np

from multitask_vl.errors import InputError
from multitask_vl.storage.memory import available_memory


class MemoryRows:
    """Rows [N, T, D] float16 in anonymous shared memory.

    Forked workers share the same pages; a spawned worker opens them through its parent, which must be alive. The kernel
    frees them when the last process that uses them ends.

    Args:
        shape: N, T and D.

    Attributes:
        array: the rows [N, T, D]; filled by the creator and read-only afterwards.

    Raises:
        InputError: there is not enough memory.
    """

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        required, available = int(np.prod(shape)) * 2, available_memory()
        if required > available:
            raise InputError(
                f"features.cache=memory: the rows need {required / 1e9:,.2f} GB, {available / 1e9:,.2f} GB are "
                "available; use features.cache=none, or copy the store to a fast local disk: features.local_copy=DIR"
            )
        self._descriptor = os.memfd_create("features")
        os.ftruncate(self._descriptor, max(required, 1))
        self._path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.array = self._map()

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one float16 array [T, D] for each of `rows` (any order, repeats allowed)."""
        for row, out in zip(rows, outs, strict=True):
            out[...] = self.array[row]

    def __getstate__(self) -> dict:
        return {"shape": self.shape, "_path": self._path}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        try:
            self._descriptor = os.open(self._path, os.O_RDWR)
        except OSError as error:
            raise InputError(
                f"features.cache=memory: the process that holds the rows has ended ({error}); use features.cache=none"
            ) from error
        self.array = self._map()

    def __del__(self):
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)

    def _map(self) -> np.ndarray:
        size = max(int(np.prod(self.shape)) * 2, 1)
        return np.frombuffer(mmap.mmap(self._descriptor, size), "<f2", int(np.prod(self.shape))).reshape(self.shape)
