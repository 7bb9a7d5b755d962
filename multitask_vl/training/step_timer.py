"""Where does a step's time go: waiting for data, forward, backward, optimiser; how much was processed meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from multitask_vl.data.batch import Batch

PHASES = ("wait", "forward", "backward", "optimizer")
BETWEEN = "between"
"""Evaluation, checkpoints and logging: no part of a step."""
MIB = 2**20
_MARKS = 4096
"""Marks of a device that are kept before they are summed up; a rare reading far from the last one costs no memory."""


class StepClock:
    """The time of the steps since the last reading, by phase.

    ``enter`` says which phase begins. On a CPU that takes the time; on a CUDA device it puts an event into the stream,
    which costs microseconds and waits for nothing: the events are only compared at a reading, so ``wait`` is how long
    the device stood idle before a batch arrived, whatever the host did meanwhile.

    Args:
        device: of the model.
        event: makes the device's events; for tests.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] | None = None):
        on_cuda = device.type == "cuda" and event is None
        self._event = (lambda: torch.cuda.Event(enable_timing=True)) if on_cuda else event
        self._marks: list[tuple[str, Any]] = []
        self._clear()

    def _clear(self) -> None:
        self._spent_s = dict.fromkeys((*PHASES, BETWEEN), 0.0)
        self.steps = self.tokens = self.images = 0

    def enter(self, phase: str) -> None:
        """What ran so far ends, ``phase`` begins."""
        if self._event is None:
            now = time.perf_counter()
            if self._marks:
                before, since = self._marks.pop()
                self._spent_s[before] += now - since
            self._marks.append((phase, now))
            return
        event = self._event()
        event.record()
        self._marks.append((phase, event))
        if len(self._marks) > _MARKS:
            self._sum_up()

    def count(self, batch: Batch) -> None:
        """A step of this process on ``batch``; given while it is on the host, where looking costs no wait."""
        self.steps += 1
        self.tokens += int((batch.attention_mask != 0).sum()) + int((batch.labels != -100).sum())
        self.images += shown_images(batch)

    def read(self, processed: torch.Tensor | None = None) -> dict[str, float]:
        """Means over the steps since the last reading, which they end.

        Args:
            processed: tokens and images of all processes; None: those of this one.

        Returns:
            ``step_s`` and its parts ``wait_s``, ``forward_s``, ``backward_s``, ``optimizer_s``; ``tokens_per_s`` (text
            and target, without padding) and ``images_per_s``. Seconds are of one step.
        """
        self.enter(BETWEEN)
        self._sum_up()
        spent_s = {phase: self._spent_s[phase] for phase in PHASES}
        whole_s = sum(spent_s.values())
        tokens, images = (self.tokens, self.images) if processed is None else processed.tolist()
        steps = max(1, self.steps)
        self._clear()
        return {
            "step_s": round(whole_s / steps, 5),
            **{f"{phase}_s": round(value / steps, 5) for phase, value in spent_s.items()},
            "tokens_per_s": round(tokens / whole_s, 1) if whole_s else 0.0,
            "images_per_s": round(images / whole_s, 1) if whole_s else 0.0,
        }

    def _sum_up(self) -> None:
        if self._event is None or not self._marks:
            return
        self._marks[-1][1].synchronize()
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            self._spent_s[phase] += start.elapsed_time(end) / 1000
        del self._marks[:-1]


def shown_images(batch: Batch) -> int:
    """Images that the rows of a batch show, repeats counted."""
    return math.prod((batch.features if batch.images is None else batch.images).shape[:2])


def memory_mib(device: torch.device) -> dict[str, int]:
    """Memory of this process in MiB: resident now, and the peak that torch allocated on a CUDA device."""
    found = {"rss_mib": psutil.Process().memory_info().rss // MIB}
    if device.type == "cuda":
        found["cuda_peak_mib"] = torch.cuda.max_memory_allocated(device) // MIB
    return found
