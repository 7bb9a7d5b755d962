"""How do folders of images become a feature store: decode, encode, store, from wherever the last run stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from feature_extraction.encoder import load_encoder
from feature_extraction.image_index import index_images
from feature_extraction.pixels import Unreadable, read_square
from feature_extraction.progress import bar, watch
from multitask_vl.config.schema import Config
from multitask_vl.data.manifest import Manifest
from multitask_vl.data.store_writer import StoreWriter
from multitask_vl.data.writer_lock import WriterLock
from multitask_vl.errors import InputError

FAILURES = "failures.jsonl"


@dataclass
class Summary:
    """What an extraction did.

    Attributes:
        store: the file.
        manifest: how its features were made.
        images: images found in the folders.
        skipped: of these, how many were done before.
        extracted: of these, how many are done now and were not before.
        failures: key, path and reason of each image that could not be read, by key.
        damaged: keys of stored rows whose checksum failed and that were therefore redone.
        beyond: rows of the store without an image in the folders.
        turned: images that were turned upright by their orientation tag.
        ignored: files of the folders that are no images.
        wall_s: seconds spent on new images.
    """

    store: Path
    manifest: Manifest
    images: int = 0
    skipped: int = 0
    extracted: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    beyond: int = 0
    turned: int = 0
    ignored: int = 0
    wall_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Does the store hold every image of the folders?"""
        return self.skipped + self.extracted == self.images


class Decoded(NamedTuple):
    """One batch of images, decoded. Rows that could not be read are black in `pixels`."""

    rows: np.ndarray
    pixels: torch.Tensor | None
    readable: np.ndarray
    failures: list[tuple[int, str]]
    turned: int


class ImageBatches(Dataset):
    """Batches of pixels by number, for a DataLoader whose workers decode whole batches.

    A batch is always the same rows of the store, wherever a run starts: kernels may round differently in a batch of
    another make-up, and a store must come out the same, bit by bit, however often its making was interrupted.
    """

    def __init__(self, paths: Sequence[Path | None], pending: np.ndarray, batch_size: int, size: int, resize: str):
        starts = range(0, len(paths), batch_size)
        self._batches = [
            rows for at in starts if pending[(rows := np.arange(at, min(at + batch_size, len(paths))))].any()
        ]
        self._paths = paths
        self._pending = pending.copy()
        self._size, self._resize = size, resize

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Decoded:
        rows = self._batches[index]
        pixels = np.zeros((len(rows), 3, self._size, self._size), np.uint8)
        readable = np.zeros(len(rows), bool)
        failures, turned = [], 0
        # First the rows that are asked for: where none of them can be read, their neighbours need no decoding.
        for asked in (True, False):
            for at, row in enumerate(rows):
                if self._pending[row] != asked or self._paths[row] is None:
                    continue
                try:
                    pixels[at], upright = read_square(self._paths[row], self._size, self._resize)
                    readable[at] = True
                    turned += upright and asked
                except Unreadable as error:
                    if asked:
                        failures.append((int(row), str(error)))
            if asked and not readable.any():
                return Decoded(rows, None, readable, failures, turned)
        return Decoded(rows, torch.from_numpy(pixels), readable & self._pending[rows], failures, turned)


def extract(config: Config, device: torch.device | str | None = None) -> Summary:
    """Fill the store of a configuration with the features of all images in its folders; a second run goes on.

    Args:
        config: `clip`, `features` and `data_dir` are read.
        device: None takes the GPU if there is one.

    Raises:
        InputError: bad folders, model, weights, store or disk. Unreadable images are no error: they stand in the
            summary and in ``failures.jsonl`` beside the store, and the next run tries them again.
    """
    stores = [config.features.store] if isinstance(config.features.store, Path) else config.features.store
    if len(stores) != 1:
        raise InputError(
            f"features.store: extraction fills one file, the configuration names {len(stores)}; name one: "
            "features.store=FILE.h5"
        )
    store = config.data_dir / stores[0].expanduser()
    index = index_images([config.data_dir / folder.expanduser() for folder in config.features.images])
    encoder = load_encoder(config.clip, config.features.precision, device)
    summary = Summary(store, encoder.manifest, images=len(index.paths), ignored=index.ignored)
    with StoreWriter(store, encoder.manifest, index.paths, watch) as writer:
        wanted = np.array([key in index.paths for key in writer.keys])
        summary.damaged, summary.beyond = writer.damaged, int((~wanted).sum())
        todo = writer.pending & wanted
        summary.skipped = len(index.paths) - int(todo.sum())
        paths = [index.paths.get(key) for key in writer.keys]
        batches = ImageBatches(paths, todo, config.features.batch_size, config.clip.image_size, config.clip.resize)
        started = time.perf_counter()
        with bar(total=summary.images, initial=summary.skipped, desc="extracting", unit="img") as shown:
            for batch in _decoded(batches, config.features.workers, pin=encoder.device.type == "cuda"):
                if batch.pixels is not None:
                    features = encoder(batch.pixels)
                    writer.write(batch.rows[batch.readable], features[batch.readable])
                summary.extracted += int(batch.readable.sum())
                summary.turned += batch.turned
                summary.failures += [
                    {"key": writer.keys[row], "path": str(paths[row]), "reason": reason}
                    for row, reason in batch.failures
                ]
                shown.update(int(batch.readable.sum()) + len(batch.failures))
        summary.wall_s = time.perf_counter() - started
    _write_failures(store, summary.failures)
    return summary


def _decoded(batches: ImageBatches, workers: int, pin: bool) -> Iterator[Decoded]:
    ahead = {"prefetch_factor": 2} if workers else {}
    yield from DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=_as_is, pin_memory=pin, **ahead)


def _as_is(batch: Decoded) -> Decoded:
    return batch


def _write_failures(store: Path, failures: list[dict[str, str]]) -> None:
    """Put a store's failures into the list beside it, in place of those of its last run; an empty list goes away."""
    path = store.with_name(FAILURES)
    with WriterLock(path, wait=True):
        lines = path.read_text().splitlines() if path.exists() else []
        others = [line for line in lines if _store_of(line, path) != store.name]
        mine = [json.dumps({"store": store.name, **one}, ensure_ascii=False) for one in failures]
        if not others + mine:
            path.unlink(missing_ok=True)
            return
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write("\n".join([*others, *mine, ""]))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _store_of(line: str, path: Path) -> str:
    try:
        return json.loads(line)["store"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by extraction ({line[:60]!r}); move it away and run again") from error
