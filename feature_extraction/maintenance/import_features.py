"""Import of existing features into a store: one HDF5 file per image, or one file with a group per image."""

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
from multitask_vl.config.schema import VisionConfig
from multitask_vl.data.store.manifest import Manifest, encoder_name, weights_name
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from multitask_vl.storage.hashing import file_sha256

DATASET = "features"
HDF5_EXTENSIONS = (".h5", ".hdf5")
BATCH = 256


@dataclass
class ImportResult:
    """Result of an import.

    Attributes:
        images: images in the source.
        stored: images in the store, from this run or an earlier one.
        failures: key -> reason for each image whose features could not be imported.
        skipped_datasets: name -> number of images of further datasets (boxes, ...), which are not imported.
    """

    images: int = 0
    stored: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    skipped_datasets: Counter[str] = field(default_factory=Counter)


class FeatureSource:
    """Features in a layout of older code.

    - a folder of ``KEY.h5``, at any depth, each with the dataset ``KEY/features`` (VL-Adapter's CLIP features);
    - one ``.h5`` file with a group per image, ``KEY/features`` (bottom-up features, for example).

    Attributes:
        keys: the image keys, sorted.

    Raises:
        InputError: the path is neither, or two files have one key.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[str, Path] | None = None
        if path.is_dir():
            self._files = _find_files(path)
            self.keys = sorted(self._files)
        elif path.is_file():
            with self._open(path) as file:
                self.keys = sorted(key for key, entry in file.items() if isinstance(entry, h5py.Group))
        else:
            raise InputError(f"{path}: neither a folder of KEY.h5 files nor an HDF5 file")
        if not self.keys:
            content = "KEY.h5 files" if self._files is not None else "groups"
            raise InputError(f"{path}: has no {content}, so there is nothing to import")

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray | str, list[str]]]:
        """Yield key, its features as stored or the reason why there are none, and the names of its other datasets."""
        if self._files is not None:
            for key in keys:
                try:
                    with self._open(self._files[key]) as file:
                        yield key, *_read_features(file, key)
                except (InputError, OSError) as error:
                    yield key, str(error), []
            return
        with self._open(self.path) as file:
            for key in keys:
                try:
                    yield key, *_read_features(file, key)
                except OSError as error:
                    yield key, str(error), []

    @contextmanager
    def _open(self, path: Path) -> Iterator[h5py.File]:
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error})") from error
        with file:
            yield file


def import_features(
    source: FeatureSource, path: Path, manifest: Manifest, progress: ProgressFn = no_progress
) -> ImportResult:
    """Write the features of a source into a store; running it again resumes.

    Args:
        source: the features.
        path: the store to write.
        manifest: how the features were made. It cannot be verified from the features.
        progress: shows the progress.

    Raises:
        InputError: the store cannot be written, or values do not fit float16. Missing features and features of another
            shape are listed in the result instead.
    """
    result = ImportResult(images=len(source.keys))
    expected = (manifest.cells, manifest.dim)
    with StoreWriter(path, manifest, source.keys, progress) as writer:
        known = set(source.keys)
        pending = {key: row for row, key in enumerate(writer.keys) if writer.pending[row] and key in known}
        result.stored = len(source.keys) - len(pending)
        rows, blocks = [], []

        def flush() -> None:
            if rows:
                writer.write(rows, np.stack(blocks))
                result.stored += len(rows)
                rows.clear()
                blocks.clear()

        for key, features, others in source.read(progress(pending, "importing")):
            result.skipped_datasets.update(others)
            if isinstance(features, str):
                result.failures[key] = features
            elif features.size != expected[0] * expected[1] or features.shape[-1] != expected[1]:
                result.failures[key] = f"features of shape {features.shape}, not {expected}"
            else:
                rows.append(pending[key])
                blocks.append(features.reshape(expected))
            if len(rows) == BATCH:
                flush()
        flush()
    return result


def manifest_from_config(source: FeatureSource, vision: VisionConfig) -> Manifest:
    """Return the manifest of imported features: shape from the first readable image, the rest from the configuration.

    Raises:
        InputError: no image is readable, or the cells do not form a square grid or differ from the configured grid.
    """
    shape = next((found.shape for _, found, _ in source.read(source.keys) if not isinstance(found, str)), None)
    if shape is None:
        _, reason, _ = next(iter(source.read(source.keys)))
        raise InputError(f"{source.path}: none of {len(source.keys):,} images has features (first: {reason})")
    grid = _infer_grid(shape)
    if grid is None:
        raise InputError(
            f"{source.path}: features of shape {shape} (first image: {source.keys[0]}) are not a square grid of cells"
        )
    expected = (1, 1) if vision.output == "pooled" else vision.pool
    if expected is not None and grid != expected:
        raise InputError(
            f"{source.path}: features of shape {shape} (first image: {source.keys[0]}) are {grid[0]}x{grid[1]} cells, "
            f"but vision.output={vision.output} and vision.pool={vision.pool} mean {expected[0]}x{expected[1]}; "
            "correct these two"
        )
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # a slow import that other store commands avoid

    weights = Path(locate(vision.pretrained)) if vision.pretrained else None
    return Manifest(
        encoder=encoder_name(vision),
        weights_tag=weights_name(vision),
        weights_sha256=file_sha256(weights) if weights is not None and weights.is_file() else None,
        image_size=vision.image_size,
        resize=vision.resize,
        mean=vision.mean or OPENAI_DATASET_MEAN,
        std=vision.std or OPENAI_DATASET_STD,
        layer="pooled" if vision.output == "pooled" else "layer4",
        pool=vision.pool,
        grid=grid,
        dim=shape[-1],
    )


def _find_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in HDF5_EXTENSIONS and not path.name.startswith(".") and path.is_file():
            if path.stem in files:
                problems.append(f"image key {path.stem} names two files: {files[path.stem]} and {path}; move one away")
            files[path.stem] = path
    if problems:
        raise InputError(problems)
    return files


def _read_features(file: h5py.File, key: str) -> tuple[np.ndarray | str, list[str]]:
    group = file.get(key)
    if not isinstance(group, h5py.Group) or not isinstance(group.get(DATASET), h5py.Dataset):
        return f"no dataset {key}/{DATASET}", []
    dataset = group[DATASET]
    if dataset.dtype.kind not in "fiu" or not dataset.shape:
        return f"{key}/{DATASET} is not an array of numbers ({dataset.dtype}, shape {dataset.shape})", []
    return dataset[()], [name for name in group if name != DATASET]


def _infer_grid(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the grid of features [D], [T, D] with square T, or [rows, columns, D]; leading axes of 1 are ignored."""
    cells = list(shape[:-1])
    while cells and cells[0] == 1:
        cells.pop(0)
    if len(cells) == 2:
        return cells[0], cells[1]
    side = math.isqrt(math.prod(cells))
    return (side, side) if len(cells) < 2 and side * side == math.prod(cells) else None
