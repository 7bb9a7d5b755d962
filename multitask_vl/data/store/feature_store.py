"""Where do a training run's image features come from: one store of grid features, read by image key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from multitask_vl.data.block_order import BLOCK_ROWS, MIXED, block_order
from multitask_vl.data.store.format import Layout, place, shards
from multitask_vl.data.store.manifest import Manifest, check_manifest
from multitask_vl.data.store.memory_rows import RamRows
from multitask_vl.data.store.rows import Rows, layout_of_place, open_rows
from multitask_vl.data.store.writer import Watch
from multitask_vl.errors import InputError

__all__ = ["FeatureStore", "Manifest", "check_manifest"]


LOADED_ROWS = 256


class FeatureStore:
    """Grid features by image key, from one file, from its shards, or from several stores read as one.

    The keys are read at once, the features when asked for: each process opens the files at its first read, and a
    pickled store carries no open file. What was not done when the store was opened counts as absent.

    Args:
        paths: a store or several. ``NAME.h5`` also stands for all of ``NAME-00000-of-00016.h5`` ...; a URL
            (``https://``, ``s3://``, whatever fsspec knows) for the file behind it.

    Attributes:
        paths: the files and URLs, shards written out.
        manifest: how the features were made; the same for all files but for the version of the tool.

    Raises:
        InputError: a file is missing, truncated or no store; manifests differ; a key stands in two files.
    """

    def __init__(self, paths: Path | str | Iterable[Path | str]):
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not given:
            raise InputError("features.store: names no file")
        self.paths = [file for path in given for file in shards(place(str(path)))]
        self._layouts = _layouts(self.paths)
        self.manifest = self._layouts[0].manifest
        _same_manifest(self._layouts)
        self._keys, self._files, self._rows = _index(self._layouts)
        # Only where they lie is needed from here on; a quarter of a million keys need not be held twice.
        bare = {"keys": np.empty(0, "S1"), "done": np.empty(0, bool)}
        self._layouts = [dataclasses.replace(layout, **bare) for layout in self._layouts]
        self._open: dict[int, Rows] = {}
        self._memory: RamRows | None = None

    def keys(self) -> list[str]:
        """Keys of the images whose features are there, sorted."""
        return [key.decode() for key in self._keys]

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._find([key])[0] >= 0)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys`, in their order and once each, that have no features here: unknown, or not extracted yet."""
        wanted = list(dict.fromkeys(keys))
        return [key for key, at in zip(wanted, self._find(wanted), strict=True) if at < 0]

    def get(self, key: str) -> np.ndarray:
        """Features of an image, float16 [T, D], cells row by row. InputError if there are none."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> np.ndarray:
        """Features of images in the order of `keys`, repeats allowed, float16 [N, T, D].

        Raises:
            InputError: some have none; says how many, one of them, and what to run.
        """
        found = self._find(keys)
        if (found < 0).any():
            raise InputError(self.describe_missing(self.missing(keys), len(set(keys))))
        return self._read(found)

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """Position of each key's row in the store [n], counted through its files; -1 where there is none."""
        found = self._find(keys)
        starts = np.cumsum([0, *(layout.count for layout in self._layouts)])
        return np.where(found < 0, -1, starts[self._files[found]] + self._rows[found]) if len(self) else found

    def blocks(
        self, seed: int, epoch: int, block_rows: int = BLOCK_ROWS, mixed: int = MIXED
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """All features once, in the order of `block_order`: what a disk without fast random reads can follow.

        Yields:
            keys [n] and their features float16 [n, T, D] of one pool: at most `block_rows` * `mixed` images.
        """
        places = np.argsort(np.lexsort((self._rows, self._files)))  # rows without features leave no gaps
        for pool in block_order(places, seed, epoch, block_rows, mixed):
            yield [self._keys[at].decode() for at in pool], self._read(pool)

    def load_into_memory(self, watch: Watch = lambda rows, what: rows) -> None:
        """Hold all features in memory from now on, once for this process and the workers it starts later.

        Raises:
            InputError: there is not enough memory.
        """
        if self._memory is not None:
            return
        memory = RamRows((len(self), self.manifest.cells, self.manifest.dim))
        order = np.lexsort((self._rows, self._files))
        for start in watch(range(0, len(order), LOADED_ROWS), "loading features"):
            self._read(order[start : start + LOADED_ROWS], memory.array)
        self._memory = memory

    def describe_missing(self, missing: Sequence[str], asked: int) -> str:
        """The sentence about image keys without features: `missing` of `asked` distinct ones."""
        first = Path(self.paths[0]).name
        where = first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more files"
        return (
            f"{len(missing):,} of {asked:,} image keys have no features in {where} (first: {missing[0]}). See which: "
            f"python -m feature_extraction.maintenance.manage verify {self.paths[0]} --images FOLDER; extract them: python "
            "launch/extract_features.py --config CONFIG"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def _read(self, found: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Features at positions of the index, in their order [n, T, D]; or each to its own position of `into`."""
        if into is None:
            outs = np.empty((len(found), self.manifest.cells, self.manifest.dim), "<f2")
        else:
            outs = [into[at] for at in found]
        if self._memory is not None:
            self._memory.read_rows(found, outs)
            return outs
        files, rows = self._files[found], self._rows[found]
        for index in np.unique(files).tolist():
            mine = np.flatnonzero(files == index)
            self._rows_of(index).read_rows(rows[mine], outs if len(mine) == len(found) else [outs[at] for at in mine])
        return outs

    def _rows_of(self, index: int) -> Rows:
        if index not in self._open:
            self._open[index] = open_rows(self._layouts[index])
        return self._open[index]

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        """Position of each key in the index [n], -1 where it has none."""
        encoded = [key.encode() for key in keys]
        width = self._keys.dtype.itemsize
        # numpy would cut a longer key to the index's width and could then find another one.
        fits = np.array([len(key) <= width for key in encoded], dtype=bool)
        wanted = np.array(encoded, dtype=self._keys.dtype)
        if not len(self._keys):
            return np.full(len(encoded), -1)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(fits & (self._keys[at] == wanted), at, -1)


def _layouts(paths: Sequence[Path]) -> list[Layout]:
    layouts, problems = [], []
    for path in paths:
        try:
            layouts.append(layout_of_place(path))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return layouts


def _same_manifest(layouts: Sequence[Layout]) -> None:
    first = layouts[0]
    differing = [(one, first.manifest.differences(one.manifest)) for one in layouts[1:]]
    problems = [
        f"{first.path} and {one.path} cannot be read as one, their features were made differently. {'; '.join(found)}"
        for one, found in differing
        if found
    ]
    if problems:
        raise InputError(problems)


def _index(layouts: Sequence[Layout]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys of all done rows, the file each is in and its row there."""
    keys = np.concatenate([layout.keys for layout in layouts])
    files = np.repeat(np.arange(len(layouts), dtype=np.int32), [len(layout.keys) for layout in layouts])
    rows = np.concatenate([np.arange(len(layout.keys)) for layout in layouts])
    order = np.argsort(keys, kind="stable")
    keys, files, rows = keys[order], files[order], rows[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        at = twice[0]
        raise InputError(
            f"features.store: {len(twice):,} image keys stand in more than one file (first: {keys[at].decode()} in "
            f"{layouts[files[at]].path} and {layouts[files[at + 1]].path}); read only one of them"
        )
    done = np.concatenate([layout.done for layout in layouts])[order]
    return keys[done], files[done], rows[done]
