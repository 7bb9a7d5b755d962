"""Background thread that writes features while the next batch is encoded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

QUEUE_SIZE = 2
"""Batches that may wait to be written; `BackgroundWriter.put` blocks while the queue is full."""


class BackgroundWriter:
    """Write batches of features in a background thread, in order.

    The thread also waits for the GPU, so that the next batch can be sent there meanwhile. An exception in the thread is
    raised by the next `put` or at the end of the ``with`` block. Every batch has been written when the block ends.

        with BackgroundWriter(store_writer.write) as writer:
            writer.put(rows, features, mask)

    Args:
        write: called in the thread with row numbers and their features, in the order of `put`.
    """

    def __init__(self, write: Callable[[Sequence[int], np.ndarray], None]):
        self._write = write
        self._queue: queue.Queue = queue.Queue(maxsize=QUEUE_SIZE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writing features", daemon=True)

    def put(self, rows: np.ndarray, features: torch.Tensor, mask: np.ndarray) -> None:
        """Queue a batch.

        Args:
            rows: rows of the store [B].
            features: their features [B, T, D], on any device.
            mask: which of them to write [B], bool.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((rows, features, mask))

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(self, exception_type: type | None, *_) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and exception_type is None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                continue  # empty the queue, so that `put` does not block forever
            try:
                rows, features, mask = batch
                self._write(rows[mask], features.cpu().numpy()[mask])
            except BaseException as error:  # raised in the main thread
                self._error = error
