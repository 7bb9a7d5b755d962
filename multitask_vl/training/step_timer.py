"""Time of a step by phase (data, forward, backward, optimizer), and throughput."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from multitask_vl.data.batch import Batch

PHASES = ("wait", "forward", "backward", "optimizer")
IDLE = "between"
"""Phase of evaluation, checkpoints and logging, which belongs to no step."""
MAX_EVENTS = 4096
"""CUDA events kept before they are summed up, so that memory stays bounded however rare the readings are."""


class StepTimer:
    """Time of the steps since the last reading, by phase.

    On a CPU, `start_phase` reads the clock. On a CUDA device it records an event in the stream, which takes
    microseconds and does not synchronize: events are compared when the timer is read. So ``wait`` is how long the
    device was idle before a batch arrived, whatever the host did meanwhile.

    Args:
        device: of the model.
        event: creates the events of a device; for tests.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] | None = None):
        on_cuda = device.type == "cuda" and event is None
        self._event = (lambda: torch.cuda.Event(enable_timing=True)) if on_cuda else event
        self._starts: list[tuple[str, Any]] = []
        self._clear()

    def _clear(self) -> None:
        self._spent_s = dict.fromkeys((*PHASES, IDLE), 0.0)
        self.steps = self.tokens = self.images = 0

    def start_phase(self, phase: str) -> None:
        """End the current phase and start another one."""
        if self._event is None:
            now = time.perf_counter()
            if self._starts:
                previous, since = self._starts.pop()
                self._spent_s[previous] += now - since
            self._starts.append((phase, now))
            return
        event = self._event()
        event.record()
        self._starts.append((phase, event))
        if len(self._starts) > MAX_EVENTS:
            self._sum_up()

    def count(self, batch: Batch) -> None:
        """Count a step of this process; call it while the batch is on the host, where this needs no synchronization."""
        self.steps += 1
        self.tokens += int((batch.attention_mask != 0).sum()) + int((batch.labels != -100).sum())
        self.images += num_images(batch)

    def read(self, processed: torch.Tensor | None = None) -> dict[str, float]:
        """Return means over the steps since the last reading, and start a new reading.

        Args:
            processed: tokens and images [2] of all processes; None: those of this process.

        Returns:
            ``step_s`` and its parts ``wait_s``, ``forward_s``, ``backward_s``, ``optimizer_s``, in seconds per step;
            ``tokens_per_s`` (text and target, without padding) and ``images_per_s``.
        """
        self.start_phase(IDLE)
        self._sum_up()
        spent_s = {phase: self._spent_s[phase] for phase in PHASES}
        total_s = sum(spent_s.values())
        tokens, images = (self.tokens, self.images) if processed is None else processed.tolist()
        steps = max(1, self.steps)
        self._clear()
        return {
            "step_s": round(total_s / steps, 5),
            **{f"{phase}_s": round(value / steps, 5) for phase, value in spent_s.items()},
            "tokens_per_s": round(tokens / total_s, 1) if total_s else 0.0,
            "images_per_s": round(images / total_s, 1) if total_s else 0.0,
        }

    def _sum_up(self) -> None:
        if self._event is None or not self._starts:
            return
        self._starts[-1][1].synchronize()
        for (phase, start), (_, end) in zip(self._starts, self._starts[1:], strict=False):
            self._spent_s[phase] += start.elapsed_time(end) / 1000
        del self._starts[:-1]


def num_images(batch: Batch) -> int:
    """Return the number of images of a batch's rows, repeats counted."""
    return math.prod((batch.features if batch.image_index is None else batch.image_index).shape[:2])
