"""How do features that somebody already has become a store: one file per image, or one file with a group per image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from multitask_vl.config import locate
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.store.manifest import Manifest, encoder_name, file_sha256, weights_name
from multitask_vl.data.store.writer import StoreWriter, Watch
from multitask_vl.errors import InputError

DATASET = "features"
ENDINGS = (".h5", ".hdf5")
BATCH = 256


@dataclass
class Imported:
    """What an import did.

    Attributes:
        images: images found in the source.
        stored: of these, how many the store holds now.
        failures: key -> reason, for each image whose features could not be taken over.
        left: dataset name -> number of images that also carry it (boxes, ...); none of it is taken over.
    """

    images: int = 0
    stored: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)


class Source:
    """Features in one of the two layouts of older code.

    - a folder of ``KEY.h5``, at any depth, each with the dataset ``KEY/features`` (VL-Adapter's CLIP features);
    - one ``.h5`` with a group per image, ``KEY/features`` (bottom-up features and the like).

    Attributes:
        keys: the image keys, sorted.

    Raises:
        InputError: nothing of either kind, or two files for one key.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[str, Path] | None = None
        if path.is_dir():
            self._files = _files(path)
            self.keys = sorted(self._files)
        elif path.is_file():
            with self._opened(path) as file:
                self.keys = sorted(key for key, entry in file.items() if isinstance(entry, h5py.Group))
        else:
            raise InputError(f"{path}: neither a folder of KEY.h5 files nor an HDF5 file")
        if not self.keys:
            what = "KEY.h5 files" if self._files is not None else "groups"
            raise InputError(f"{path}: holds no {what}, so there is nothing to import")

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray | str, list[str]]]:
        """Key, its features as stored or the reason why there are none, and the names of its other datasets."""
        if self._files is not None:
            for key in keys:
                try:
                    with self._opened(self._files[key]) as file:
                        yield key, *_features(file, key)
                except (InputError, OSError) as error:
                    yield key, str(error), []
            return
        with self._opened(self.path) as file:
            for key in keys:
                try:
                    yield key, *_features(file, key)
                except OSError as error:
                    yield key, str(error), []

    @contextmanager
    def _opened(self, path: Path) -> Iterator[h5py.File]:
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error})") from error
        with file:
            yield file


def import_features(source: Source, path: Path, manifest: Manifest, watch: Watch = lambda rows, what: rows) -> Imported:
    """Turn the features of a source into a store; a second run goes on, as with extraction.

    Args:
        source: where they are.
        path: the store to fill.
        manifest: how they were made. Nobody can check this from the numbers: it is the caller's word.
        watch: shows the progress.

    Raises:
        InputError: the store cannot be written, or numbers do not fit float16. Features that are missing or of
            another shape are listed in the result instead.
    """
    done = Imported(images=len(source.keys))
    wanted = (manifest.cells, manifest.dim)
    with StoreWriter(path, manifest, source.keys, watch) as writer:
        known = set(source.keys)
        todo = {key: row for row, key in enumerate(writer.keys) if writer.pending[row] and key in known}
        done.stored = len(source.keys) - len(todo)
        rows, blocks = [], []

        def store() -> None:
            if rows:
                writer.write(rows, np.stack(blocks))
                done.stored += len(rows)
                rows.clear()
                blocks.clear()

        for key, features, others in source.read(watch(todo, "importing")):
            done.left.update(others)
            if isinstance(features, str):
                done.failures[key] = features
            elif features.size != wanted[0] * wanted[1] or features.shape[-1] != wanted[1]:
                done.failures[key] = f"features of shape {features.shape}, not {wanted}"
            else:
                rows.append(todo[key])
                blocks.append(features.reshape(wanted))
            if len(rows) == BATCH:
                store()
        store()
    return done


def vouched(source: Source, clip: ClipConfig) -> Manifest:
    """The manifest of features that others made: shape from the first that can be read, the rest as configured.

    Raises:
        InputError: none can be read, the cells do not form a square grid, or not the configured one.
    """
    shape = next((found.shape for _, found, _ in source.read(source.keys) if not isinstance(found, str)), None)
    if shape is None:
        _, reason, _ = next(iter(source.read(source.keys)))
        raise InputError(f"{source.path}: none of {len(source.keys):,} images has features (first: {reason})")
    grid = _grid(shape)
    if grid is None:
        raise InputError(
            f"{source.path}: features of shape {shape} (first image: {source.keys[0]}) are no square grid of cells"
        )
    wanted = (1, 1) if clip.layer == "pooled" else clip.pool
    if wanted is not None and grid != wanted:
        raise InputError(
            f"{source.path}: features of shape {shape} (first image: {source.keys[0]}) are {grid[0]}x{grid[1]} cells; "
            f"clip.layer={clip.layer} and clip.pool={clip.pool} make {wanted[0]}x{wanted[1]}; correct these two"
        )
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # takes seconds; looking at stores does without

    weights = Path(locate(clip.pretrained)) if clip.pretrained else None
    return Manifest(
        encoder=encoder_name(clip),
        weights_tag=weights_name(clip),
        weights_sha256=file_sha256(weights) if weights is not None and weights.is_file() else None,
        image_size=clip.image_size,
        resize=clip.resize,
        mean=clip.mean or OPENAI_DATASET_MEAN,
        std=clip.std or OPENAI_DATASET_STD,
        layer="pooled" if clip.layer == "pooled" else "layer4",
        pool=clip.pool,
        grid=grid,
        dim=shape[-1],
    )


def _files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in ENDINGS and not path.name.startswith(".") and path.is_file():
            if path.stem in files:
                problems.append(
                    f"image key {path.stem} stands for two files: {files[path.stem]} and {path}; move one away"
                )
            files[path.stem] = path
    if problems:
        raise InputError(problems)
    return files


def _features(file: h5py.File, key: str) -> tuple[np.ndarray | str, list[str]]:
    group = file.get(key)
    if not isinstance(group, h5py.Group) or not isinstance(group.get(DATASET), h5py.Dataset):
        return f"no dataset {key}/{DATASET}", []
    found = group[DATASET]
    if found.dtype.kind not in "fiu" or not found.shape:
        return f"{key}/{DATASET} is no array of numbers ({found.dtype}, shape {found.shape})", []
    return found[()], [name for name in group if name != DATASET]


def _grid(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Grid of features of shape [D], [T, D] with T square, or [rows, columns, D]; leading axes of 1 do not count."""
    cells = list(shape[:-1])
    while cells and cells[0] == 1:
        cells.pop(0)
    if len(cells) == 2:
        return cells[0], cells[1]
    side = math.isqrt(math.prod(cells))
    return (side, side) if len(cells) < 2 and side * side == math.prod(cells) else None
