"""What is in a store, and is it sound: description, checksums, and coverage of a folder of images."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.images.image_index import index_images
from multitask_vl.data.store.format import Layout, is_url, shards
from multitask_vl.data.store.rows import layout_of_place, open_rows
from multitask_vl.data.store.writer import Watch

BATCH = 64


@dataclass
class Verdict:
    """What verifying a store found; empty lists are good news.

    Attributes:
        rows: rows of the store.
        good: rows that are done and whose checksum is right.
        undone: keys of rows not extracted yet.
        damaged: keys of rows whose checksum is wrong.
        absent: keys of images that the store has no row for.
        beyond: number of rows without an image (no fault: they were extracted from other folders).
    """

    rows: int = 0
    good: int = 0
    undone: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    beyond: int = 0

    @property
    def sound(self) -> bool:
        """Are all rows good, and all images there?"""
        return not (self.undone or self.damaged or self.absent)


def describe(store: Path | str) -> dict[str, Any]:
    """Everything worth knowing about a store that costs no reading of features.

    Returns:
        ``rows``, ``done`` (numbers of rows), ``bytes`` (of its files), ``bytes_on_disk`` (less where rows are not
        written yet; None behind a URL), ``bytes_of_an_image``, ``first_key``, ``files`` (path, rows and done of each)
        and the ``manifest``.
    """
    layouts = [layout_of_place(path) for path in shards(store)]
    local = [layout.path for layout in layouts if not is_url(layout.path)]
    return {
        "rows": sum(layout.count for layout in layouts),
        "done": sum(int(layout.done.sum()) for layout in layouts),
        "bytes": sum(layout.size for layout in layouts),
        "bytes_on_disk": sum(path.stat().st_blocks * 512 for path in local) if len(local) == len(layouts) else None,
        "bytes_of_an_image": layouts[0].row_bytes,
        "first_key": layouts[0].keys[0].decode(),
        "files": [
            {"path": str(layout.path), "rows": layout.count, "done": int(layout.done.sum())} for layout in layouts
        ],
        "manifest": layouts[0].manifest.model_dump(mode="json"),
    }


def verify(store: Path | str, images: Sequence[Path] = (), watch: Watch = lambda rows, what: rows) -> Verdict:
    """Check the checksum of every done row, and that every image of the folders has one.

    Args:
        store: a file, the name of its shards, or a URL.
        images: folders; none: coverage is not looked at.
        watch: shows the progress.

    Raises:
        InputError: the store cannot be read, or the folders have no images.
    """
    verdict = Verdict()
    keys: set[str] = set()
    for path in shards(store):
        layout = layout_of_place(path)
        names = [key.decode() for key in layout.keys]
        verdict.rows += len(names)
        verdict.undone += [names[row] for row in np.flatnonzero(~layout.done)]
        for row, good, _ in checked_rows(layout, watch, "verifying"):
            if good:
                verdict.good += 1
            else:
                verdict.damaged.append(names[row])
        keys.update(names)
    if images:
        wanted = index_images(images).paths.keys()
        verdict.absent = [key for key in wanted if key not in keys]
        verdict.beyond = len(keys - wanted)
    return verdict


def checked_rows(
    layout: Layout, watch: Watch, what: str, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Row, whether its checksum is right, and its features (float16 [T, D], valid until the next one is asked for).

    Args:
        layout: of the file.
        watch, what: show the progress.
        rows: which rows; None: all that are done.
    """
    wanted = np.flatnonzero(layout.done) if rows is None else np.asarray(rows)
    source, buffer = open_rows(layout), np.empty((BATCH, *layout.shape), "<f2")
    try:
        shown = iter(watch(wanted.tolist(), what))
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            source.read_rows(batch, buffer[: len(batch)])
            for row, features in zip(batch.tolist(), buffer, strict=False):
                next(shown, None)
                yield row, zlib.crc32(features) == layout.crc32[row], features
    finally:
        source.close()
