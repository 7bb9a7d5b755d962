"""Parallel decoding of image files into fixed batches of pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import ImageDecodeError, load_square

PREFETCH = 2
"""Batches that each worker decodes ahead of the encoder."""
MAX_WORKERS = 16


class DecodedBatch(NamedTuple):
    """A decoded batch of images.

    Attributes:
        rows: rows of the store [B].
        pixels: RGB uint8 [B, 3, S, S], zeros for unreadable images; None: no pending image is readable.
        readable: pending images that were decoded [B], bool.
        failures: row and reason of each pending image that could not be read.
        rotated: number of pending images that were rotated by their EXIF orientation.
    """

    rows: np.ndarray
    pixels: torch.Tensor | None
    readable: np.ndarray
    failures: list[tuple[int, str]]
    rotated: int


class ImageBatches(Dataset):
    """Batches of pixels by number, for a DataLoader whose workers decode complete batches.

    A batch always holds the same rows of the store, wherever a run starts: kernels may round differently for another
    batch composition, and the store must be the same to the last bit however often extraction was interrupted.

    Args:
        images: image of each row of the store; None: no image.
        pending: rows to extract [N], bool. Batches without a pending row are skipped.
        batch_size: rows per batch.
        size: side of the square in pixels.
        resize: ``squash`` or ``crop``.
    """

    def __init__(
        self, images: Sequence[ImageFile | None], pending: np.ndarray, batch_size: int, size: int, resize: str
    ):
        starts = range(0, len(images), batch_size)
        batches = (np.arange(start, min(start + batch_size, len(images))) for start in starts)
        self._batches = [rows for rows in batches if pending[rows].any()]
        self._images = images
        self._pending = pending.copy()
        self._size, self._resize = size, resize

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> DecodedBatch:
        rows = self._batches[index]
        pixels = np.zeros((len(rows), 3, self._size, self._size), np.uint8)
        readable = np.zeros(len(rows), bool)
        failures, rotated = [], 0
        # Pending rows first: if none of them is readable, the other rows of the batch need not be decoded.
        for pending in (True, False):
            for i, row in enumerate(rows):
                if self._pending[row] != pending or self._images[row] is None:
                    continue
                try:
                    pixels[i], was_rotated = load_square(self._images[row], self._size, self._resize)
                    readable[i] = True
                    rotated += was_rotated and pending
                except ImageDecodeError as error:
                    if pending:
                        failures.append((int(row), str(error)))
            if pending and not readable.any():
                return DecodedBatch(rows, None, readable, failures, rotated)
        return DecodedBatch(rows, torch.from_numpy(pixels), readable & self._pending[rows], failures, rotated)


def decode_batches(
    batches: ImageBatches, num_workers: int | None, device: torch.device, local_world_size: int = 1
) -> Iterator[DecodedBatch]:
    """Yield the batches in order, decoded by worker processes.

    Args:
        batches: the batches to decode.
        num_workers: number of processes; None: see `FeaturesConfig.num_workers`. A single batch is decoded in this
            process.
        device: device of the encoder; for a GPU, pixels are in pinned memory.
        local_world_size: extraction processes that share this machine's cores.
    """
    gpu = device.type == "cuda"
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) // local_world_size
        num_workers = max(1, min(MAX_WORKERS, cores))
        num_workers = min(num_workers, len(batches) - 1) if batches else 0
    # Forked, whatever Python's default: a forked worker starts without imports and inherits the image list.
    options = {"prefetch_factor": PREFETCH, "multiprocessing_context": "fork"} if num_workers else {}
    if num_workers and not gpu:
        options["worker_init_fn"] = _lower_priority
    yield from DataLoader(
        batches, batch_size=None, num_workers=num_workers, collate_fn=_identity, pin_memory=gpu, **options
    )


def _lower_priority(worker: int) -> None:
    """Leave the cores to the encoder first: one delayed thread of a kernel delays all its others."""
    os.nice(19)


def _identity(batch: DecodedBatch) -> DecodedBatch:
    return batch
