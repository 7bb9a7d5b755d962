"""Rows of a store behind a URL: the header read by HDF5, rows fetched by range requests (fsspec)."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from multitask_vl.data.store.format import H5_READ_ERRORS, StoreHeader, corrupt_message, parse_header
from multitask_vl.errors import InputError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ATTEMPTS = 4
PAUSE_S = 0.5
"""Before the second attempt; doubled before each further one."""
CHUNK = 32 << 20
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def open_filesystem(url: str) -> Any:
    """Return a new fsspec file system for a URL, whose connections belong to this process.

    Raises:
        InputError: an unknown scheme, or a package that is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
    except ImportError as error:
        package = PACKAGES.get(url.split("://")[0], "the package named above")
        raise InputError(f"{url}: {error}. Run: pip install {package}") from error
    except ValueError as error:
        raise InputError(
            f"{url}: {error}; supported are {', '.join(sorted(PACKAGES))} and the other schemes of fsspec"
        ) from error


def read_remote_header(url: str) -> StoreHeader:
    """Read the header of a store behind a URL: manifest, keys and checksums, no features.

    Raises:
        InputError: it cannot be reached, the server does not support range requests, or it is not a complete store.
    """
    filesystem = open_filesystem(url)
    try:
        with filesystem.open(url, "rb", block_size=1 << 20) as file:
            size, begin = getattr(file, "size", None), b""
            if size:
                file.seek(size - 1)  # first of all a range from the end: not every server supports it
                file.read(1)
                file.seek(0)
                begin = file.read(len(HDF5_MAGIC))
            if begin == HDF5_MAGIC:
                file.seek(0)
                return _parse(url, file, size)
    except InputError:
        raise
    except Exception as error:  # each file system has errors of its own
        if "range requests" in str(error):
            raise InputError(_no_range_requests(url)) from error
        hint = f" Check the response: curl -I {url}" if url.startswith("http") else ""
        raise InputError(
            f"{url}: no feature store can be read there ({_describe(error.__cause__ or error)}).{hint}"
        ) from error
    if not size:
        raise InputError(_no_range_requests(url))
    raise InputError(f"{url}: not an HDF5 file ({size:,} bytes, beginning with {begin!r})")


def _parse(url: str, file: Any, size: int) -> StoreHeader:
    try:
        with h5py.File(file, "r") as opened:
            return parse_header(url, opened, size)
    except H5_READ_ERRORS as error:
        raise InputError(corrupt_message(url, str(error))) from error


class RemoteRows:
    """Rows of a store behind a URL.

    A batch is one round of concurrent requests, and the checksum of every row is verified. Each process opens its
    connections at its first read. Failed requests are repeated after a pause.

    Args:
        header: of the store.

    Raises:
        InputError: rows still failed at the last attempt.
    """

    def __init__(self, header: StoreHeader):
        self.header = header
        # A forked process must neither use its parent's file system nor close it by garbage collection.
        self._filesystems: dict[int, Any] = {}

    def read_rows(self, rows: Sequence[int] | np.ndarray, outs: Sequence[np.ndarray] | np.ndarray) -> None:
        """Fill one C-contiguous float16 array [T, D] for each of `rows` (any order; repeated rows are fetched once)."""
        remaining: dict[int, list[np.ndarray]] = {}
        for row, out in zip(rows, outs, strict=True):
            remaining.setdefault(int(row), []).append(out)
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            for row, content in self._fetch(list(remaining)):
                if isinstance(content, BaseException):
                    reason = _describe(content)
                elif len(content) != self.header.row_bytes or zlib.crc32(content) != self.header.crc32[row]:
                    reason = f"the {len(content):,} bytes received do not match the store's checksum; was it replaced?"
                else:
                    for out in remaining.pop(row):
                        out[...] = np.frombuffer(content, "<f2").reshape(self.header.shape)
            if not remaining:
                return
        raise InputError(
            f"{self.header.path}: {len(remaining):,} of {len(rows):,} rows could not be read in {ATTEMPTS} attempts "
            f"(row {next(iter(remaining))}: {reason}). Run again when the server responds, or work on a copy: "
            "features.local_copy=DIR"
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the file in order."""
        url, size = self.header.path, self.header.size
        for start in range(0, size, CHUNK):
            try:
                yield self._filesystem().cat_file(url, start=start, end=min(start + CHUNK, size))
            except Exception as error:  # each file system has errors of its own
                raise InputError(f"{url}: interrupted at byte {start:,} ({_describe(error)}); run again") from error

    def close(self) -> None:
        """Close this process's connections."""
        self._filesystems.pop(os.getpid(), None)

    def _filesystem(self) -> Any:
        if os.getpid() not in self._filesystems:
            self._filesystems[os.getpid()] = open_filesystem(self.header.path)
        return self._filesystems[os.getpid()]

    def _fetch(self, rows: list[int]) -> Iterator[tuple[int, bytes | BaseException]]:
        header = self.header
        starts = [header.features_offset + row * header.row_bytes for row in rows]
        ends = [start + header.row_bytes for start in starts]
        contents = self._filesystem().cat_ranges([header.path] * len(rows), starts, ends, on_error="return")
        return zip(rows, contents, strict=True)


def _no_range_requests(url: str) -> str:
    name = url.rsplit("/", 1)[-1].split("?")[0] or "store.h5"
    return (
        f"{url}: this server does not support range requests (HTTP 206), so single rows cannot be read. Download the "
        f"file once: curl -o {name} {url}, and set features.store={name}"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
