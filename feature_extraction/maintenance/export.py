"""Export of a store to other layouts: one HDF5 file per image, one HDF5 file with a group per image, or numpy files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from feature_extraction.maintenance.import_features import DATASET
from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import StoreHeader, shard_files
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import read_header
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_replace, atomic_write, sync
from multitask_vl.storage.file_lock import FileLock

DTYPES = {"float16": "<f2", "float32": "<f4"}
HDF5_OVERHEAD = 2048
"""Approximate bytes of an HDF5 file with the features of one image, without the features."""
FEATURES_FILE, KEYS_FILE = "features.npy", "keys.txt"


@dataclass
class ExportResult:
    """Result of an export.

    Attributes:
        rows: rows of the store.
        written: images written by this run.
        existing: images whose file already had these features.
        missing: keys of rows without features.
        corrupt: keys of rows whose checksum failed; not exported.
    """

    rows: int = 0
    written: int = 0
    existing: int = 0
    missing: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


def export_store(
    store: Path | str,
    target: Path,
    layout: Literal["per-image", "groups", "numpy"],
    dtype: str = "float16",
    progress: ProgressFn = no_progress,
) -> ExportResult:
    """Write the features of a store in another layout.

    ``import`` turns the first two layouts back into a store with the same features.

    - ``per-image``: a folder of ``KEY.h5``, each with the dataset ``KEY/features`` [T, D] (VL-Adapter's
      ``data_clip_RN101_att``). Running it again resumes.
    - ``groups``: one HDF5 file with ``KEY/features`` for every key.
    - ``numpy``: a folder with ``features.npy`` [N, T, D], the rows that have features, and ``keys.txt``, one key per
      line in the same order.

    The files of ``groups`` and ``numpy`` appear when they are complete.

    Args:
        store: a file, the common name of its shards, or a URL.
        target: the folder or file to write.
        layout: see above.
        dtype: ``float16`` or ``float32``; the values are the same.
        progress: shows the progress.

    Raises:
        InputError: the store cannot be read, a key does not fit the layout, the disk is too small, or the target
            exists.
    """
    headers = [read_header(path) for path in shard_files(store)]
    _check_keys(store, headers, layout)
    output = target / FEATURES_FILE if layout == "numpy" else target
    if layout != "per-image" and output.exists():
        raise InputError(f"{output}: exists already; name another target, or remove it: rm {output}")
    if layout != "groups" and target.is_file():
        raise InputError(f"{target}: is a file; the layout {layout} writes a folder")
    folder = target.parent if layout == "groups" else target
    folder.mkdir(parents=True, exist_ok=True)
    row_bytes = headers[0].row_bytes // 2 * np.dtype(DTYPES[dtype]).itemsize
    needed = sum(int(header.done.sum()) for header in headers) * (row_bytes + HDF5_OVERHEAD * (layout != "numpy"))
    free = shutil.disk_usage(folder).free
    if layout == "per-image":
        free += sum(path.stat().st_size for path in folder.glob("*.h5"))  # they are kept or replaced
    if free < needed:
        raise InputError(f"{target}: needs {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free; make room")
    write = {"per-image": _write_per_image, "groups": _write_groups, "numpy": _write_numpy}[layout]
    result = ExportResult()
    write(headers, target, np.dtype(DTYPES[dtype]), result, progress)
    return result


def _check_keys(store: Path | str, headers: list[StoreHeader], layout: str) -> None:
    keys = [key.decode() for header in headers for key in header.keys]
    if layout == "numpy":
        bad = [key for key in keys if key.splitlines() != [key]]
    else:
        bad = [key for key in keys if "/" in key or key in (".", "..")]
    if bad:
        raise InputError(f"{store}: {len(bad):,} image keys cannot be used in the layout {layout} (first: {bad[0]!r})")


def _write_per_image(
    headers: list[StoreHeader], folder: Path, dtype: np.dtype, result: ExportResult, progress: ProgressFn
) -> None:
    with FileLock(folder / "export"):
        for key, features in _valid_features(headers, result, progress):
            path = folder / f"{key}.h5"
            if _has_features(path, key, features.astype(dtype)):
                result.existing += 1
                continue
            temp = folder / f".{key}.h5.partial"
            with h5py.File(temp, "w", locking=False) as file:
                file[f"{key}/{DATASET}"] = features.astype(dtype)
            temp.replace(path)
            result.written += 1
        sync(folder)


def _write_groups(
    headers: list[StoreHeader], path: Path, dtype: np.dtype, result: ExportResult, progress: ProgressFn
) -> None:
    with (
        FileLock(path),
        atomic_replace(path, path.with_name(f".{path.name}.partial")) as temp,
        # The newest file format indexes hundreds of thousands of groups in a tree that is fast to search.
        h5py.File(temp, "w", libver="latest", locking=False) as file,
    ):
        for key, features in _valid_features(headers, result, progress):
            file[f"{key}/{DATASET}"] = features.astype(dtype)
            result.written += 1


def _write_numpy(
    headers: list[StoreHeader], folder: Path, dtype: np.dtype, result: ExportResult, progress: ProgressFn
) -> None:
    path = folder / FEATURES_FILE
    shape = (sum(int(header.done.sum()) for header in headers), *headers[0].shape)
    keys = []
    with FileLock(path), atomic_replace(path, folder / f".{path.name}.partial") as temp:
        array = np.lib.format.open_memmap(temp, mode="w+", dtype=dtype, shape=shape)
        with temp.open("r+b") as file:  # a full disk is an error here; it would kill the process at a mapped page
            os.posix_fallocate(file.fileno(), 0, temp.stat().st_size)
        for key, features in _valid_features(headers, result, progress):
            array[len(keys)] = features
            keys.append(key)
        array.flush()
        if len(keys) < len(array):
            _truncate_npy(temp, array, len(keys))
        result.written = len(keys)
        atomic_write(folder / KEYS_FILE, "".join(f"{key}\n" for key in keys))


def _truncate_npy(path: Path, array: np.memmap, rows: int) -> None:
    """Cut a .npy file after some of its rows; numpy pads the header, so that the first axis can change in place."""
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(array.offset + rows * array[0].nbytes)


def _valid_features(
    headers: list[StoreHeader], result: ExportResult, progress: ProgressFn
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield key and features of the valid rows; count the others in ``result``."""
    for header in headers:
        keys = header.keys
        result.rows += header.count
        result.missing += [keys[row].decode() for row in np.flatnonzero(~header.done)]
        for row, valid, features in checked_rows(header, progress, "exporting"):
            if valid:
                yield keys[row].decode(), features
            else:
                result.corrupt.append(keys[row].decode())


def _has_features(path: Path, key: str, features: np.ndarray) -> bool:
    """Return whether a file has exactly these features; an unreadable file does not."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            stored = file[f"{key}/{DATASET}"]
            return stored.dtype == features.dtype and np.array_equal(stored[()], features)
    except (OSError, KeyError):
        return False
