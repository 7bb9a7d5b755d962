"""How do older code bases read our features: one HDF5 file per image, or one file with a group per image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from feature_extraction.maintenance.import_features import DATASET
from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import Layout, shards
from multitask_vl.data.store.rows import layout_of_place
from multitask_vl.data.store.writer import Watch
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import sync
from multitask_vl.storage.file_lock import WriterLock

DTYPES = {"float16": "<f2", "float32": "<f4"}
OVERHEAD = 2048
"""Bytes that HDF5 puts beside one image's numbers, about, in a file of its own."""


@dataclass
class Exported:
    """What an export did.

    Attributes:
        rows: rows of the store.
        written: images written this time.
        kept: images whose file held these features already.
        undone: keys of rows without features.
        damaged: keys of rows whose checksum failed; not exported.
    """

    rows: int = 0
    written: int = 0
    kept: int = 0
    undone: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def export(
    store: Path | str,
    target: Path,
    layout: Literal["per-image", "groups"],
    dtype: str = "float16",
    watch: Watch = lambda rows, what: rows,
) -> Exported:
    """Write the features of a store in an older layout; `import` turns it back into the same features.

    Args:
        store: a file, the name of its shards, or a URL.
        target: ``per-image``: a folder, which gets ``KEY.h5`` with the dataset ``KEY/features`` [T, D] (VL-Adapter's
            ``data_clip_RN101_att``); a second run goes on. ``groups``: a file with ``KEY/features`` for every key; it
            appears when it is complete.
        dtype: ``float16`` or ``float32``; the numbers are the same.
        watch: shows the progress.

    Raises:
        InputError: the store cannot be read, a key cannot be a name in HDF5, the disk is too small, or a file of groups
            is there already.
    """
    layouts = [layout_of_place(path) for path in shards(store)]
    bad = [key for one in layouts for key in map(bytes.decode, one.keys) if "/" in key or key in (".", "..")]
    if bad:
        raise InputError(f"{store}: {len(bad):,} image keys cannot be names in these layouts (first: {bad[0]})")
    if layout == "groups" and target.exists():
        raise InputError(f"{target}: exists already; name a new file, or remove it: rm {target}")
    if target.is_file():
        raise InputError(f"{target}: a file, not a folder for one .h5 per image")
    folder = target if layout == "per-image" else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    done = sum(int(one.done.sum()) for one in layouts)
    needed = done * (layouts[0].row_bytes // 2 * np.dtype(DTYPES[dtype]).itemsize + OVERHEAD)
    free = shutil.disk_usage(folder).free
    if layout == "per-image":
        free += sum(path.stat().st_size for path in folder.glob("*.h5"))  # they are kept or replaced
    if free < needed:
        raise InputError(f"{target}: needs {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free; make room")
    writing = _per_image if layout == "per-image" else _groups
    return writing(layouts, target, np.dtype(DTYPES[dtype]), watch)


def _per_image(layouts: list[Layout], folder: Path, dtype: np.dtype, watch: Watch) -> Exported:
    exported = Exported()
    with WriterLock(folder / "export"):
        for key, features in _features(layouts, exported, watch):
            path = folder / f"{key}.h5"
            if _holds(path, key, features.astype(dtype)):
                exported.kept += 1
                continue
            partial = folder / f".{key}.h5.partial"
            with h5py.File(partial, "w", locking=False) as file:
                file[f"{key}/{DATASET}"] = features.astype(dtype)
            partial.replace(path)
            exported.written += 1
        sync(folder)
    return exported


def _groups(layouts: list[Layout], path: Path, dtype: np.dtype, watch: Watch) -> Exported:
    exported = Exported()
    partial = path.with_name(f".{path.name}.partial")
    with WriterLock(path):
        try:
            # the newest file format keeps a quarter of a million groups in a tree that is found fast
            with h5py.File(partial, "w", libver="latest", locking=False) as file:
                for key, features in _features(layouts, exported, watch):
                    file[f"{key}/{DATASET}"] = features.astype(dtype)
                    exported.written += 1
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    return exported


def _features(layouts: list[Layout], exported: Exported, watch: Watch) -> Iterator[tuple[str, np.ndarray]]:
    for layout in layouts:
        names = layout.keys
        exported.rows += layout.count
        exported.undone += [names[row].decode() for row in np.flatnonzero(~layout.done)]
        for row, good, features in checked_rows(layout, watch, "exporting"):
            if good:
                yield names[row].decode(), features
            else:
                exported.damaged.append(names[row].decode())


def _holds(path: Path, key: str, features: np.ndarray) -> bool:
    """Does a file hold exactly these features? One that cannot be read does not."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file[f"{key}/{DATASET}"]
            return found.dtype == features.dtype and np.array_equal(found[()], features)
    except (OSError, KeyError):
        return False
