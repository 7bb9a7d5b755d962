"""What is in a store, and is it sound: description, checksums, and coverage of a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_extraction.image_index import index_images
from multitask_vl.data.row_file import RowFile
from multitask_vl.data.store_format import read_layout, shards
from multitask_vl.data.store_writer import Watch


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


def describe(store: Path) -> list[tuple[str, str]]:
    """Name and value of everything worth knowing about a store, in the order to show it."""
    layouts = [read_layout(path) for path in shards(store)]
    rows = sum(len(layout.keys) for layout in layouts)
    done = sum(int(layout.done.sum()) for layout in layouts)
    size = sum(layout.path.stat().st_size for layout in layouts)
    manifest = layouts[0].manifest
    return [
        ("files", ", ".join(str(layout.path) for layout in layouts)),
        ("rows", f"{rows:,}, of which {done:,} done"),
        ("bytes", f"{size:,} ({layouts[0].row_bytes:,} an image)"),
        ("first key", layouts[0].keys[0].decode()),
        *((name, _shown(value)) for name, value in manifest.model_dump().items()),
    ]


def verify(store: Path, images: Sequence[Path] = (), watch: Watch = lambda rows, what: rows) -> Verdict:
    """Check the checksum of every done row, and that every image of the folders has one.

    Args:
        store: a file, or the name of its shards.
        images: folders; none: coverage is not looked at.
        watch: shows the progress.

    Raises:
        InputError: the store cannot be read, or the folders have no images.
    """
    verdict = Verdict()
    keys: set[str] = set()
    for path in shards(store):
        layout = read_layout(path)
        file, buffer = RowFile(layout), np.empty(layout.shape, "<f2")
        names = [key.decode() for key in layout.keys]
        verdict.rows += len(names)
        verdict.undone += [names[row] for row in np.flatnonzero(~layout.done)]
        for row in watch(np.flatnonzero(layout.done).tolist(), "verifying"):
            if file.matches(row, buffer):
                verdict.good += 1
            else:
                verdict.damaged.append(names[row])
        file.close()
        keys.update(names)
    if images:
        wanted = index_images(images).paths.keys()
        verdict.absent = [key for key in wanted if key not in keys]
        verdict.beyond = len(keys - wanted)
    return verdict


def _shown(value: object) -> str:
    if value is None:
        return "not known"
    return " x ".join(map(str, value)) if isinstance(value, tuple) and len(value) == 2 else str(value)
