"""How are rows of a store read that lies behind a URL: its layout by HDF5, its rows as ranges of bytes (fsspec)."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from multitask_vl.data.store.format import DAMAGES, Layout, damaged, layout_of
from multitask_vl.errors import InputError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ATTEMPTS = 4
PAUSE_S = 0.5
"""Before the second attempt; twice as long before each further one."""
CHUNK = 32 << 20
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def open_filesystem(url: str) -> Any:
    """The fsspec file system of a URL, a new one each time: its connections belong to this process.

    Raises:
        InputError: an unknown scheme, or a library that is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
    except ImportError as error:
        package = PACKAGES.get(url.split("://")[0], "what it asks for")
        raise InputError(f"{url}: {error}. Run: pip install {package}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}; known are {', '.join(sorted(PACKAGES))} and fsspec's others") from error


def read_remote_layout(url: str) -> Layout:
    """As `store_format.read_layout`, of a store behind a URL; reads its keys and checksums, no features.

    Raises:
        InputError: it cannot be reached, does not give ranges of bytes, or is no whole store.
    """
    system = open_filesystem(url)
    try:
        with system.open(url, "rb", block_size=1 << 20) as file:
            size, begin = getattr(file, "size", None), b""
            if size:
                file.seek(size - 1)  # first of all a range from the end: not every server gives it
                file.read(1)
                file.seek(0)
                begin = file.read(len(SIGNATURE))
            if begin == SIGNATURE:
                file.seek(0)
                return _layout(url, file, size)
    except InputError:
        raise
    except Exception as error:  # each file system has errors of its own
        if "range requests" in str(error):
            raise InputError(_without_ranges(url)) from error
        look = f" Look what answers: curl -I {url}" if url.startswith("http") else ""
        raise InputError(
            f"{url}: no feature store can be read there ({_told(error.__cause__ or error)}).{look}"
        ) from error
    if not size:
        raise InputError(_without_ranges(url))
    raise InputError(f"{url}: not an HDF5 file ({size:,} bytes, beginning with {begin!r})")


def _layout(url: str, file: Any, size: int) -> Layout:
    try:
        with h5py.File(file, "r") as opened:
            return layout_of(url, opened, size)
    except DAMAGES as error:
        raise InputError(damaged(url, str(error))) from error


class RemoteRows:
    """Rows of a remote store; a batch is one round of requests side by side, and every row's checksum is compared.

    Connections are opened by each process at its first read. What fails is asked for again, after a pause.

    Raises:
        InputError: rows that still did not come, or came wrong, at the last attempt.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        # A forked process must neither use the file system of its parent nor take it down by forgetting it.
        self._systems: dict[int, Any] = {}

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one C-contiguous float16 [T, D] for each of `rows` (any order; a repeated row is fetched once)."""
        wanted: dict[int, list[np.ndarray]] = {}
        for row, out in zip(rows, outs, strict=True):
            wanted.setdefault(int(row), []).append(out)
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            for row, got in self._fetch(list(wanted)):
                if isinstance(got, BaseException):
                    why = _told(got)
                elif len(got) != self.layout.row_bytes or zlib.crc32(got) != self.layout.crc32[row]:
                    why = f"{len(got):,} bytes came with another checksum than the store recorded; was it replaced?"
                else:
                    for out in wanted.pop(row):
                        out[...] = np.frombuffer(got, "<f2").reshape(self.layout.shape)
            if not wanted:
                return
        raise InputError(
            f"{self.layout.path}: {len(wanted):,} of {len(rows):,} rows could not be read in {ATTEMPTS} attempts (row "
            f"{next(iter(wanted))}: {why}). Start again when the server answers, or work on a copy: "
            "features.local_copy=DIR"
        )

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the whole file, in order."""
        url, size = self.layout.path, self.layout.size
        for at in range(0, size, CHUNK):
            try:
                yield self._system().cat_file(url, start=at, end=min(at + CHUNK, size))
            except Exception as error:  # each file system has errors of its own
                raise InputError(f"{url}: broke off at byte {at:,} ({_told(error)}); start again") from error

    def close(self) -> None:
        """Let go of this process's connections."""
        self._systems.pop(os.getpid(), None)

    def _system(self) -> Any:
        if os.getpid() not in self._systems:
            self._systems[os.getpid()] = open_filesystem(self.layout.path)
        return self._systems[os.getpid()]

    def _fetch(self, rows: list[int]) -> Iterator[tuple[int, bytes | BaseException]]:
        layout = self.layout
        starts = [layout.features_at + row * layout.row_bytes for row in rows]
        ends = [start + layout.row_bytes for start in starts]
        got = self._system().cat_ranges([layout.path] * len(rows), starts, ends, on_error="return")
        return zip(rows, got, strict=True)


def _without_ranges(url: str) -> str:
    name = url.rsplit("/", 1)[-1].split("?")[0] or "store.h5"
    return (
        f"{url}: this server does not give ranges of bytes (HTTP 206), so single rows cannot be read. Download the "
        f"file once: curl -o {name} {url}, and set features.store={name}"
    )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
