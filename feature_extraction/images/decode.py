"""How do image files become batches of pixels, ahead of the trunk and always in the same batches?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import Unreadable, read_square

AHEAD = 2
MOST_WORKERS = 16


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

    def __init__(
        self, images: Sequence[ImageFile | None], pending: np.ndarray, batch_size: int, size: int, resize: str
    ):
        starts = range(0, len(images), batch_size)
        self._batches = [
            rows for at in starts if pending[(rows := np.arange(at, min(at + batch_size, len(images))))].any()
        ]
        self._images = images
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
                if self._pending[row] != asked or self._images[row] is None:
                    continue
                try:
                    pixels[at], upright = read_square(self._images[row], self._size, self._resize)
                    readable[at] = True
                    turned += upright and asked
                except Unreadable as error:
                    if asked:
                        failures.append((int(row), str(error)))
            if asked and not readable.any():
                return Decoded(rows, None, readable, failures, turned)
        return Decoded(rows, torch.from_numpy(pixels), readable & self._pending[rows], failures, turned)


def decoded(batches: ImageBatches, workers: int | None, device: torch.device, beside: int = 1) -> Iterator[Decoded]:
    """The batches in order, decoded by other processes `AHEAD` batches each ahead of the trunk.

    Args:
        batches: what to decode.
        workers: processes; None: see `FeaturesConfig.workers`. A single batch is decoded here.
        device: where the trunk is; for a GPU, pixels come in pinned memory.
        beside: processes of ours that share this machine's cores.
    """
    gpu = device.type == "cuda"
    if workers is None:
        cores = len(os.sched_getaffinity(0)) // beside
        workers = max(1, min(MOST_WORKERS, cores))
        workers = min(workers, len(batches) - 1) if batches else 0
    # Forked, whatever Python's default is: a worker begins at once and has all it needs.
    ahead = {"prefetch_factor": AHEAD, "multiprocessing_context": "fork"} if workers else {}
    if workers and not gpu:
        ahead["worker_init_fn"] = _give_way
    yield from DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=_as_is, pin_memory=gpu, **ahead)


def _give_way(worker: int) -> None:
    """Decode where the trunk leaves a core idle: a thread of it that is held up holds up all the others."""
    os.nice(19)


def _as_is(batch: Decoded) -> Decoded:
    return batch
