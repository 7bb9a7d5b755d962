"""Feature store: grid features by image key, from one or several store files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from multitask_vl.data.store.format import StoreHeader, path_or_url, shard_files
from multitask_vl.data.store.manifest import EXTRACT_COMMAND
from multitask_vl.data.store.memory_rows import MemoryRows
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import RowReader, open_rows, read_header
from multitask_vl.errors import InputError

ROWS_PER_READ = 256


class FeatureStore:
    """Read-only mapping from image keys to grid features.

    Keys are read immediately, features on demand: each process opens the files at its first read, and a pickled store
    has no open files. Rows that were not done when the store was opened count as missing.

    Args:
        paths: one or several stores. ``NAME.h5`` also means all of its shards, ``NAME-00000-of-00016.h5`` and so on; a
            URL (``https://``, ``s3://``, any scheme of fsspec) means the file behind it.

    Attributes:
        paths: the files and URLs, including every shard.
        manifest: how the features were made; the same for all files except for `tool_version`.

    Raises:
        InputError: a file is missing, truncated or not a store; manifests differ; two files have the same key.
    """

    def __init__(self, paths: Path | str | Iterable[Path | str]):
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not paths:
            raise InputError("features.store: names no file")
        self.paths = [file for path in paths for file in shard_files(path_or_url(str(path)))]
        headers = _read_headers(self.paths)
        self.manifest = headers[0].manifest
        _check_same_manifest(headers)
        self._keys, self._files, self._rows = _index(headers)
        # From here on only offsets are needed; a quarter of a million keys need not be in memory twice.
        empty = {"keys": np.empty(0, "S1"), "done": np.empty(0, bool)}
        self._headers = [dataclasses.replace(header, **empty) for header in headers]
        self._open: dict[int, RowReader] = {}
        self._memory: MemoryRows | None = None

    def keys(self) -> list[str]:
        """Return the keys of all images with features, sorted."""
        return [key.decode() for key in self._keys]

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._find([key])[0] >= 0)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the distinct `keys` without features, unknown or not extracted yet, in their order."""
        distinct = list(dict.fromkeys(keys))
        return [key for key, position in zip(distinct, self._find(distinct), strict=True) if position < 0]

    def get(self, key: str) -> np.ndarray:
        """Return the features of an image, float16 [T, D], cells in row-major order; InputError if it has none."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> np.ndarray:
        """Return the features of images in the order of `keys`, repeats allowed, float16 [N, T, D].

        Raises:
            InputError: some have none; states how many, one of them, and what to run.
        """
        positions = self._find(keys)
        if (positions < 0).any():
            raise InputError(self.describe_missing(self.missing(keys), len(set(keys))))
        return self._read(positions)

    def load_into_memory(self, progress: ProgressFn = no_progress) -> None:
        """Load all features into memory, once for this process and the workers it starts later.

        Raises:
            InputError: there is not enough memory.
        """
        if self._memory is not None:
            return
        memory = MemoryRows((len(self), self.manifest.cells, self.manifest.dim))
        order = np.lexsort((self._rows, self._files))
        for start in progress(range(0, len(order), ROWS_PER_READ), "loading features"):
            self._read(order[start : start + ROWS_PER_READ], memory.array)
        self._memory = memory

    def describe_missing(self, missing: Sequence[str], total: int) -> str:
        """Return the message about image keys without features: `missing` of `total` distinct ones."""
        first = Path(self.paths[0]).name
        where = first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more files"
        return (
            f"{len(missing):,} of {total:,} image keys have no features in {where} (first: {missing[0]}). List them: "
            f"multitask-vl store verify {self.paths[0]} --images FOLDER; extract them: {EXTRACT_COMMAND}"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def _read(self, positions: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Features at positions of the index, in their order [n, T, D]; or each at its own position of `into`."""
        if into is None:
            outs = np.empty((len(positions), self.manifest.cells, self.manifest.dim), "<f2")
        else:
            outs = [into[position] for position in positions]
        if self._memory is not None:
            self._memory.read_rows(positions, outs)
            return outs
        files, rows = self._files[positions], self._rows[positions]
        for file in np.unique(files).tolist():
            here = np.flatnonzero(files == file)
            self._rows_of(file).read_rows(rows[here], outs if len(here) == len(positions) else [outs[i] for i in here])
        return outs

    def _rows_of(self, file: int) -> RowReader:
        if file not in self._open:
            self._open[file] = open_rows(self._headers[file])
        return self._open[file]

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        """Position of each key in the index [n], -1 if absent."""
        encoded = [key.encode() for key in keys]
        width = self._keys.dtype.itemsize
        # numpy truncates a longer key to the index's width, which could then match another key.
        fits = np.array([len(key) <= width for key in encoded], dtype=bool)
        wanted = np.array(encoded, dtype=self._keys.dtype)
        if not len(self._keys):
            return np.full(len(encoded), -1)
        positions = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(fits & (self._keys[positions] == wanted), positions, -1)


def _read_headers(paths: Sequence[Path | str]) -> list[StoreHeader]:
    headers, problems = [], []
    for path in paths:
        try:
            headers.append(read_header(path))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return headers


def _check_same_manifest(headers: Sequence[StoreHeader]) -> None:
    first = headers[0]
    differing = [(header, first.manifest.differences(header.manifest)) for header in headers[1:]]
    problems = [
        f"{first.path} and {header.path} cannot be read as one store, their features were made differently. "
        f"{'; '.join(differences)}"
        for header, differences in differing
        if differences
    ]
    if problems:
        raise InputError(problems)


def _index(headers: Sequence[StoreHeader]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys of all done rows, and the file and row of each."""
    keys = np.concatenate([header.keys for header in headers])
    files = np.repeat(np.arange(len(headers), dtype=np.int32), [len(header.keys) for header in headers])
    rows = np.concatenate([np.arange(len(header.keys)) for header in headers])
    order = np.argsort(keys, kind="stable")
    keys, files, rows = keys[order], files[order], rows[order]
    duplicates = np.flatnonzero(keys[1:] == keys[:-1])
    if len(duplicates):
        first = duplicates[0]
        raise InputError(
            f"features.store: {len(duplicates):,} image keys are in more than one file (first: {keys[first].decode()} "
            f"in {headers[files[first]].path} and {headers[files[first + 1]].path}); read only one of them"
        )
    done = np.concatenate([header.done for header in headers])[order]
    return keys[done], files[done], rows[done]
