"""Description and verification of a store: checksums, and coverage of image folders."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.images.image_index import index_images
from multitask_vl.data.store.format import StoreHeader, is_url, shard_files
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import open_rows, read_header

BATCH = 64


@dataclass
class Verification:
    """Result of verifying a store.

    Attributes:
        rows: rows of the store.
        valid: rows that are done and whose checksum matches.
        missing: keys of rows without features yet.
        corrupt: keys of rows whose checksum does not match.
        uncovered: keys of images without a row in the store.
        extra_rows: number of rows without an image; not an error, they come from other folders.
    """

    rows: int = 0
    valid: int = 0
    missing: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    extra_rows: int = 0

    @property
    def ok(self) -> bool:
        """Whether all rows are valid and cover all images."""
        return not (self.missing or self.corrupt or self.uncovered)


def describe(store: Path | str) -> dict[str, Any]:
    """Describe a store without reading its features.

    Returns:
        ``rows``, ``done`` (numbers of rows), ``bytes`` (of its files), ``bytes_on_disk`` (less while rows are not
        written; None for a URL), ``bytes_per_row``, ``first_key``, ``files`` (path, rows and done of each) and the
        ``manifest``.
    """
    headers = [read_header(path) for path in shard_files(store)]
    local = [header.path for header in headers if not is_url(header.path)]
    return {
        "rows": sum(header.count for header in headers),
        "done": sum(int(header.done.sum()) for header in headers),
        "bytes": sum(header.size for header in headers),
        "bytes_on_disk": sum(path.stat().st_blocks * 512 for path in local) if len(local) == len(headers) else None,
        "bytes_per_row": headers[0].row_bytes,
        "first_key": headers[0].keys[0].decode(),
        "files": [
            {"path": str(header.path), "rows": header.count, "done": int(header.done.sum())} for header in headers
        ],
        "manifest": headers[0].manifest.model_dump(mode="json"),
    }


def verify(store: Path | str, images: Sequence[Path] = (), progress: ProgressFn = no_progress) -> Verification:
    """Verify the checksum of every done row, and that every image of the folders has a row.

    Args:
        store: a file, the common name of its shards, or a URL.
        images: image folders; none: coverage is not checked.
        progress: shows the progress.

    Raises:
        InputError: the store cannot be read, or the folders have no images.
    """
    verification = Verification()
    keys: set[str] = set()
    for path in shard_files(store):
        header = read_header(path)
        names = [key.decode() for key in header.keys]
        verification.rows += len(names)
        verification.missing += [names[row] for row in np.flatnonzero(~header.done)]
        for row, valid, _ in checked_rows(header, progress, "verifying"):
            if valid:
                verification.valid += 1
            else:
                verification.corrupt.append(names[row])
        keys.update(names)
    if images:
        image_keys = index_images(images).files.keys()
        verification.uncovered = [key for key in image_keys if key not in keys]
        verification.extra_rows = len(keys - image_keys)
    return verification


def checked_rows(
    header: StoreHeader, progress: ProgressFn, description: str, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Yield row number, whether its checksum matches, and its features.

    The features, float16 [T, D], are valid until the next row is requested.

    Args:
        header: header of the store file.
        progress: shows the progress.
        description: text of the progress bar.
        rows: row numbers; None: all that are done.
    """
    selected = np.flatnonzero(header.done) if rows is None else np.asarray(rows)
    reader, buffer = open_rows(header), np.empty((BATCH, *header.shape), "<f2")
    try:
        shown = iter(progress(selected.tolist(), description))
        for start in range(0, len(selected), BATCH):
            batch = selected[start : start + BATCH]
            reader.read_rows(batch, buffer[: len(batch)])
            for row, features in zip(batch.tolist(), buffer, strict=False):
                next(shown, None)
                yield row, zlib.crc32(features) == header.crc32[row], features
    finally:
        reader.close()
