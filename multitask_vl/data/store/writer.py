"""Writer of feature stores: created once, filled row by row in place, resumable, one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask_vl.data.store.format import StoreHeader, create_store, read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import sync
from multitask_vl.storage.file_lock import FileLock


class StoreWriter:
    """Context manager that opens a store for writing, for one process at a time.

    Entering creates the store or resumes an existing one: the checksum of every done row is verified, and a row that
    fails counts as not done. New keys grow the store: a new file takes over the valid rows and replaces the old one,
    with all keys in sorted order, as if created with them.

    Args:
        path: the store file.
        manifest: how the features are made; must match the manifest of an existing store.
        keys: image keys that the store must have. Other keys of an existing store are kept.
        progress: shows the progress of checking and copying.

    Attributes:
        keys: keys of the rows, in the order of the file.
        pending: which rows still need features [N], bool.
        corrupt: keys of done rows whose checksum failed.

    Raises:
        InputError: another writer is running, the manifests differ, the file is not a store, or the disk is too small.
    """

    def __init__(self, path: Path, manifest: Manifest, keys: Iterable[str], progress: ProgressFn = no_progress) -> None:
        self.path = Path(path).resolve()  # growing a store replaces the file, not a link to it
        self.manifest = manifest
        self._requested = set(keys)
        self._progress = progress
        self._lock = FileLock(self.path)
        self.keys: list[str] = []
        self.pending = np.zeros(0, dtype=bool)
        self.corrupt: list[str] = []

    def __enter__(self) -> StoreWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.__enter__()
            self._file = self._open_or_create()
        except BaseException as error:
            self._lock.__exit__()
            if isinstance(error, OSError):
                raise InputError(
                    f"{self.path}: cannot be written ({error}); name another path: features.store=PATH"
                ) from error
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            self._file.sync()
            self._file.close()
        finally:
            self._lock.__exit__()

    def write(self, rows: Sequence[int], features: np.ndarray) -> None:
        """Store features and mark their rows done.

        Args:
            rows: n row numbers.
            features: their features [n, T, D]; cast to float16.

        Raises:
            InputError: wrong shape, a value that float16 cannot represent (beyond 65,504, or NaN), or a full disk.
        """
        expected = (len(rows), *self._file.header.shape)
        if features.shape != expected:
            raise InputError(f"{self.path}: features of shape {features.shape} for rows of shape {expected}")
        with np.errstate(over="ignore"):  # overflow becomes infinity and is rejected below
            stored = np.ascontiguousarray(features, dtype="<f2")
        finite = np.isfinite(stored).all(axis=(1, 2))
        if not finite.all():
            bad = [self.keys[row] for row, is_finite in zip(rows, finite, strict=True) if not is_finite]
            raise InputError(
                f"{self.path}: the features of {len(bad)} of {len(rows)} images do not fit float16 (first: {bad[0]}): "
                "beyond 65,504 or not a number. Are these the right weights? If so, try features.precision=fp32"
            )
        for row, block in zip(rows, stored, strict=True):
            self._file.write(int(row), block)
            self.pending[row] = False

    def _open_or_create(self) -> LocalRows:
        self._grown = self.path.with_name(f".{self.path.name}.growing")
        self._grown.unlink(missing_ok=True)  # left by a process that was killed while growing the store
        if not self.path.exists():
            self._create(self.path, sorted(self._requested))
            return self._attach(read_local_header(self.path))
        header = read_local_header(self.path)
        differences = header.manifest.differences(self.manifest)
        if differences:
            raise InputError(
                f"{self.path}: its features were made differently than requested now. {'; '.join(differences)}. Write "
                f"to another file (features.store=OTHER.h5) or delete this one: rm {self.path}"
            )
        existing = {key.decode() for key in header.keys}
        if self._requested <= existing:
            return self._verify(header)
        return self._grow(header)

    def _create(self, path: Path, keys: list[str]) -> None:
        if not keys:
            raise InputError(f"{self.path}: there are no images to store")
        required = len(keys) * self.manifest.cells * self.manifest.dim * 2
        free = shutil.disk_usage(self.path.parent).free
        if free < required:
            raise InputError(
                f"{self.path}: needs {required / 1e9:,.2f} GB for {len(keys):,} images, {free / 1e9:,.2f} GB are free; "
                "make room or name a path on another disk (features.store=PATH)"
            )
        create_store(path, self.manifest, keys)

    def _attach(self, header: StoreHeader) -> LocalRows:
        self.keys = [key.decode() for key in header.keys]
        self.pending = ~header.done
        return LocalRows(header, writable=True)

    def _verify(self, header: StoreHeader) -> LocalRows:
        file = self._attach(header)
        buffer = np.empty(header.shape, "<f2")
        for row in self._progress(np.flatnonzero(header.done).tolist(), "checking stored rows"):
            if not file.checksum_ok(row, buffer):
                file.mark_undone(row)
                self.pending[row] = True
                self.corrupt.append(self.keys[row])
        return file

    def _grow(self, old: StoreHeader) -> LocalRows:
        """Copy the valid rows into a new file that also has the requested keys and then replaces the old one."""
        rows = {old.keys[row].decode(): row for row in np.flatnonzero(old.done).tolist()}
        self._create(self._grown, sorted(self._requested | rows.keys()))
        source, target = LocalRows(old), self._attach(read_local_header(self._grown))
        buffer = np.empty(old.shape, "<f2")
        new_rows = {key: row for row, key in enumerate(self.keys)}
        for row in self._progress(sorted(rows.values()), "copying stored rows"):
            key = old.keys[row].decode()
            if source.checksum_ok(row, buffer):
                target.write(new_rows[key], buffer)
            else:
                self.corrupt.append(key)
        target.sync()
        source.close()
        target.close()
        self._grown.replace(self.path)
        sync(self.path.parent)
        return self._attach(read_local_header(self.path))


def write_store(path: Path, manifest: Manifest, features: Mapping[str, Any]) -> None:
    """Write a complete store of features in memory, image key -> [T, D]; for small sets."""
    with StoreWriter(path, manifest, features) as writer:
        for row, key in enumerate(writer.keys):
            if key in features:
                writer.write([row], np.asarray(features[key])[None])
