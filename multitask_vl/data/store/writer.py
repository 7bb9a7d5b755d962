"""How is a feature store filled: created whole, then row by row in place, resumable, by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask_vl.data.store.format import Layout, create, read_layout
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import sync
from multitask_vl.storage.file_lock import WriterLock

Watch = Callable[[Iterable, str], Iterable]
"""Wraps a loop over rows or keys to show its progress; the text says what is being done to them."""


class StoreWriter:
    """A store opened for filling, as a context manager; only one process gets it.

    Entering creates the store, or goes on with the one that is there: the checksum of every done row is verified and a
    row that fails counts as not done. Keys the store does not have yet extend it: a new file takes over the good rows
    and replaces it, with all keys in sorted order, as if made in one go.

    Args:
        path: the store file.
        manifest: how the features are made; must agree with the manifest of a store that is there.
        keys: the image keys the store must hold. Those it has beyond them stay.
        watch: shows the progress of checking and copying.

    Attributes:
        keys: keys of the rows, in the order of the file.
        pending: which rows still need features [N], bool.
        damaged: keys of done rows whose checksum failed.

    Raises:
        InputError: another writer is at work, the manifests disagree, the file is no store, or the disk is too small.
    """

    def __init__(
        self, path: Path, manifest: Manifest, keys: Iterable[str], watch: Watch = lambda rows, what: rows
    ) -> None:
        self.path = Path(path).resolve()  # growing a store replaces the file, not a link to it
        self.manifest = manifest
        self._wanted = set(keys)
        self._watch = watch
        self._lock = WriterLock(self.path)
        self.keys: list[str] = []
        self.pending = np.zeros(0, dtype=bool)
        self.damaged: list[str] = []

    def __enter__(self) -> StoreWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.__enter__()
            self._file = self._open()
        except BaseException as error:
            self._lock.__exit__()
            if isinstance(error, OSError):
                raise InputError(
                    f"{self.path}: cannot be written ({error}); name another place: features.store=PATH"
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
            rows: which rows, n of them.
            features: their features [n, T, D]; cast to float16.

        Raises:
            InputError: wrong shape, a number float16 cannot hold (beyond 65,504, or not a number), or a full disk.
        """
        wanted = (len(rows), *self._file.layout.shape)
        if features.shape != wanted:
            raise InputError(f"{self.path}: features of shape {features.shape} for rows of shape {wanted}")
        with np.errstate(over="ignore"):  # overflow becomes infinity and is refused below
            stored = np.ascontiguousarray(features, dtype="<f2")
        finite = np.isfinite(stored).all(axis=(1, 2))
        if not finite.all():
            bad = [self.keys[row] for row, fine in zip(rows, finite, strict=True) if not fine]
            raise InputError(
                f"{self.path}: the features of {len(bad)} of {len(rows)} images do not fit float16 (first: {bad[0]}): "
                "beyond 65,504 or not a number. Are these the right weights? If so, try features.precision=fp32"
            )
        for row, block in zip(rows, stored, strict=True):
            self._file.write(int(row), block)
            self.pending[row] = False

    def _open(self) -> RowFile:
        self._grown = self.path.with_name(f".{self.path.name}.growing")
        self._grown.unlink(missing_ok=True)  # left by a process that was killed while extending
        if not self.path.exists():
            self._create(self.path, sorted(self._wanted))
            return self._adopt(read_layout(self.path))
        layout = read_layout(self.path)
        differences = layout.manifest.differences(self.manifest)
        if differences:
            raise InputError(
                f"{self.path}: its features were made differently than asked for now. {'; '.join(differences)}. Write "
                f"to another file (features.store=OTHER.h5) or delete this one: rm {self.path}"
            )
        have = {key.decode() for key in layout.keys}
        if self._wanted <= have:
            return self._check(layout)
        return self._extend(layout)

    def _create(self, path: Path, keys: list[str]) -> None:
        if not keys:
            raise InputError(f"{self.path}: no image, no store")
        needed = len(keys) * self.manifest.cells * self.manifest.dim * 2
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise InputError(
                f"{self.path}: needs {needed / 1e9:,.2f} GB for {len(keys):,} images, {free / 1e9:,.2f} GB are free; "
                "make room or name a place on another disk (features.store=PATH)"
            )
        create(path, self.manifest, keys)

    def _adopt(self, layout: Layout) -> RowFile:
        self.keys = [key.decode() for key in layout.keys]
        self.pending = ~layout.done
        return RowFile(layout, writable=True)

    def _check(self, layout: Layout) -> RowFile:
        file = self._adopt(layout)
        buffer = np.empty(layout.shape, "<f2")
        for row in self._watch(np.flatnonzero(layout.done).tolist(), "checking stored rows"):
            if not file.matches(row, buffer):
                file.forget(row)
                self.pending[row] = True
                self.damaged.append(self.keys[row])
        return file

    def _extend(self, old: Layout) -> RowFile:
        """The union of the good rows and the wanted keys in a new file, which takes the old one's place at the end."""
        rows = {old.keys[row].decode(): row for row in np.flatnonzero(old.done).tolist()}
        self._create(self._grown, sorted(self._wanted | rows.keys()))
        source, target = RowFile(old), self._adopt(read_layout(self._grown))
        buffer = np.empty(old.shape, "<f2")
        new_rows = {key: row for row, key in enumerate(self.keys)}
        for row in self._watch(sorted(rows.values()), "copying stored rows"):
            key = old.keys[row].decode()
            if source.matches(row, buffer):
                target.write(new_rows[key], buffer)
            else:
                self.damaged.append(key)
        target.sync()
        source.close()
        target.close()
        self._grown.replace(self.path)
        sync(self.path.parent)
        return self._adopt(read_layout(self.path))


def write_store(path: Path, manifest: Manifest, features: Mapping[str, Any]) -> None:
    """A complete store from features in memory: image key -> [T, D] numbers. For small sets."""
    with StoreWriter(path, manifest, features) as writer:
        for row, key in enumerate(writer.keys):
            if key in features:
                writer.write([row], np.asarray(features[key])[None])
