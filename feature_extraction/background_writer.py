"""How do encoding and writing overlap: features go to a thread of their own through a short queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

AHEAD = 2


class WriteAhead:
    """``with WriteAhead(writer.write) as ahead: ahead.put(rows, features, chosen)``; a full queue makes `put` wait.

    The thread also waits for the GPU, so the next batch is sent there meanwhile. What went wrong in the thread is
    raised by the next `put`, or at the end of the block. All that was put is written when the block ends.

    Args:
        write: called in the thread with rows and their features, in the order of `put`.
    """

    def __init__(self, write: Callable[[Sequence[int], np.ndarray], None]):
        self._write = write
        self._queue: queue.Queue = queue.Queue(maxsize=AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writing features", daemon=True)

    def put(self, rows: np.ndarray, features: torch.Tensor, chosen: np.ndarray) -> None:
        """Hand over a batch.

        Args:
            rows: rows of the store [B].
            features: of all of them [B, T, D], on any device.
            chosen: which of them to write [B], bool.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((rows, features, chosen))

    def __enter__(self) -> WriteAhead:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drained, or `put` would wait for ever
            try:
                rows, features, chosen = batch
                self._write(rows[chosen], features.cpu().numpy()[chosen])
            except BaseException as error:  # raised where the other thread looks next
                self._error = error
