"""How do several stores, or the shards of one, become one file: rows copied as they are, their checksums verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import Layout, is_url, shards
from multitask_vl.data.store.rows import layout_of_place, open_rows
from multitask_vl.data.store.writer import StoreWriter, Watch
from multitask_vl.errors import InputError


@dataclass
class Merged:
    """What a merge did.

    Attributes:
        rows: rows of the target.
        done: of these, how many have features.
        copied: how many came over this time.
        twice: images that stand in several sources, with the same features.
        damaged: keys whose row failed its checksum in its source; their rows of the target are not done.
    """

    rows: int = 0
    done: int = 0
    copied: int = 0
    twice: int = 0
    damaged: list[str] = field(default_factory=list)


def merge(sources: Sequence[Path | str], target: Path, watch: Watch = lambda rows, what: rows) -> Merged:
    """Bring the rows of all sources into one file; a second run goes on where the last one stopped.

    Rows that are not done in any source stay so in the target, where extraction can go on with them. A target that is
    there already keeps its rows.

    Args:
        sources: store files, names of shards, URLs.
        target: the file to fill.
        watch: shows the progress.

    Raises:
        InputError: manifests differ, an image has different features in two sources, or the target cannot be written.
    """
    paths = [file for source in sources for file in shards(source)]
    layouts = [layout_of_place(path) for path in paths]
    _same_manifest(layouts)
    _not_a_source(target, paths)
    merged = Merged()
    owner = _owners(layouts, merged)
    with StoreWriter(target, layouts[0].manifest, owner, watch) as writer:
        todo = {key: row for row, key in enumerate(writer.keys) if writer.pending[row] and key in owner}
        for index, layout in enumerate(layouts):
            rows = {at: todo[key] for key in todo for which, at in [owner[key]] if which == index and layout.done[at]}
            for at, good, features in checked_rows(
                layout, watch, f"copying {Path(str(layout.path)).name}", sorted(rows)
            ):
                if good:
                    writer.write([rows[at]], features[None])
                    merged.copied += 1
                else:
                    merged.damaged.append(layout.keys[at].decode())
        merged.rows, merged.done = len(writer.keys), int((~writer.pending).sum())
    return merged


def _same_manifest(layouts: Sequence[Layout]) -> None:
    first = layouts[0]
    problems = [
        f"{first.path} and {one.path} cannot become one store, their features were made differently. "
        f"{'; '.join(differences)}"
        for one in layouts[1:]
        if (differences := first.manifest.differences(one.manifest))
    ]
    if problems:
        raise InputError(problems)


def _not_a_source(target: Path, paths: Sequence[Path | str]) -> None:
    if any(not is_url(path) and Path(path).resolve() == target.resolve() for path in paths):
        raise InputError(f"{target}: is one of the stores to be merged; name a new file")
    if shards(target) != [target]:
        raise InputError(
            f"{target}: shards of this name stand beside it, and a reader could not tell which to take; name another "
            "file"
        )


def _owners(layouts: Sequence[Layout], merged: Merged) -> dict[str, tuple[int, int]]:
    """Key -> index of the layout and row that the target takes: done before not done, else the first."""
    owner: dict[str, tuple[int, int]] = {}
    unlike = []
    for index, layout in enumerate(layouts):
        for row, name in enumerate(layout.keys):
            key = name.decode()
            if key not in owner:
                owner[key] = (index, row)
                continue
            other, at = owner[key]
            if not layouts[other].done[at]:
                owner[key] = (index, row)
            elif layout.done[row]:
                merged.twice += 1
                if not _equal(layouts[other], at, layout, row):
                    unlike.append(f"{key} in {layouts[other].path} and {layout.path}")
    if unlike:
        raise InputError(
            f"{len(unlike):,} images have other features in one store than in another (first: {unlike[0]}); leave one "
            "of the stores out, or verify both: python -m feature_extraction.maintenance.manage verify STORE"
        )
    return owner


def _equal(one: Layout, at: int, other: Layout, row: int) -> bool:
    if one.crc32[at] != other.crc32[row]:
        return False
    pair = np.empty((2, *one.shape), "<f2")
    for layout, which, out in ((one, at, pair[:1]), (other, row, pair[1:])):
        source = open_rows(layout)
        source.read_rows([which], out)
        source.close()
    return pair[0].tobytes() == pair[1].tobytes()
