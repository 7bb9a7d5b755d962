"""How are a store's rows held in memory once, for a process and all the workers it starts?"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from multitask_vl.errors import InputError

CGROUPS = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
"""Which groups this process is in: a line `ID:CONTROLLERS:PATH` each, without controllers in version 2."""


class RamRows:
    """Rows [N, T, D] float16 in anonymous shared memory.

    Forked workers see the same pages; a spawned one opens them through its living parent. The system frees them when
    the last process that has them ends, however it ends.

    Attributes:
        array: the rows [N, T, D]. The maker fills them; nobody writes later.

    Raises:
        InputError: there is not enough memory.
    """

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        need, free = int(np.prod(shape)) * 2, available_memory()
        if need > free:
            raise InputError(
                f"features.read=ram: the rows need {need / 1e9:,.2f} GB, {free / 1e9:,.2f} GB of memory are available; "
                "use features.read=disk, or copy the store to a fast local disk: features.local_copy=DIR"
            )
        self._descriptor = os.memfd_create("features")
        os.ftruncate(self._descriptor, max(need, 1))
        self._path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.array = self._mapped()

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one float16 [T, D] for each of `rows` (any order, repeats allowed)."""
        for row, out in zip(rows, outs, strict=True):
            out[...] = self.array[row]

    def close(self) -> None:
        """Nothing to do: the memory goes when the last array on it does."""

    def __getstate__(self) -> dict:
        return {"shape": self.shape, "_path": self._path}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        try:
            self._descriptor = os.open(self._path, os.O_RDWR)
        except OSError as error:
            raise InputError(
                f"features.read=ram: the process that holds the rows is gone ({error}); use features.read=disk"
            ) from error
        self.array = self._mapped()

    def __del__(self):
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)

    def _mapped(self) -> np.ndarray:
        size = max(int(np.prod(self.shape)) * 2, 1)
        return np.frombuffer(mmap.mmap(self._descriptor, size), "<f2", int(np.prod(self.shape))).reshape(self.shape)


def available_memory() -> int:
    """Bytes this process may still take: of the machine, or of the limit that its job runs under if that is less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return max(0, min([free, *_left_by_limits()]))


def _left_by_limits() -> Iterator[int]:
    """Bytes that each limit leaves, of this process's group and of those above it, in either version of such groups."""
    for line in GROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            folder, limit, used, prefix = CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            folder, limit, used, prefix = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        folder /= group.strip("/")
        for one in (folder, *folder.parents):
            known = one.is_relative_to(CGROUPS) and (one / limit).is_file() and (one / used).is_file()
            if known and (most := (one / limit).read_text().strip()) != "max":
                yield int(most) - int((one / used).read_text()) + _given_back(one / "memory.stat", prefix)


def _given_back(stat: Path, prefix: str) -> int:
    """Bytes that count as used and that the kernel gives up for others: what it keeps of files that were read."""
    fields = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
