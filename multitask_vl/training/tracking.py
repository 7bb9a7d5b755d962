"""metrics.jsonl without gaps or repeats, experiment trackers, and the progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from multitask_vl.config.schema import Config
from multitask_vl.logging import get_logger
from multitask_vl.storage.atomic import atomic_write

logger = get_logger(__name__)


class Metrics:
    """``metrics.jsonl``: one JSON object per line, each with a ``step``, the number of completed steps.

    Args:
        path: the file.
        after_step: rows of later steps are removed first, since those steps are trained again. So are rows marked
            ``final``, as the final evaluation is repeated, and a line that a crash cut short.
    """

    def __init__(self, path: Path, after_step: int):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _keep(line, after_step)]
            atomic_write(path, "".join(f"{line}\n" for line in kept))

    def add(self, **row) -> None:
        """Append a row and sync it to the disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _keep(line: str, after_step: int) -> bool:
    try:
        row = json.loads(line)
        return row["step"] <= after_step and not row.get("final", False)
    except (ValueError, KeyError, TypeError):
        return False


class Progress:
    """A progress bar on a terminal; elsewhere a log line every ``print_steps`` steps. On the main process only."""

    def __init__(self, total: int, done: int, active: bool, print_steps: int):
        self.total, self.done, self.active, self.print_steps = total, done, active, print_steps
        self.started, self.first = time.monotonic(), done
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None if active else True, file=sys.stderr)

    def update(self, note: str) -> None:
        """Advance by one step and show its ``note``."""
        self.done += 1
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update()
        if self.active and self.bar.disable and (self.done % self.print_steps == 0 or self.done == self.total):
            speed = f"{1 / self._step_s():.1f} steps/s, {self.eta_s() / 60:.1f} min left"
            logger.info(f"step {self.done}/{self.total}, {speed}, {note}")

    def eta_s(self) -> float:
        """Return the seconds to the last step at the average speed of this process, evaluations included."""
        return round((self.total - self.done) * self._step_s(), 1)

    def _step_s(self) -> float:
        return (time.monotonic() - self.started) / max(1, self.done - self.first)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()


def start_trackers(accelerator: Accelerator, config: Config, after_step: int = 0) -> None:
    """Start the configured trackers; nested configuration keys are joined by dots.

    Args:
        after_step: TensorBoard hides what was logged of later steps, since they are trained again.
    """

    def flatten(prefix: str, value: object) -> dict[str, object]:
        if isinstance(value, Mapping):
            return {k: v for key, inner in value.items() for k, v in flatten(f"{prefix}{key}.", inner).items()}
        return {prefix[:-1]: value if isinstance(value, int | float | bool | str) else str(value)}

    settings = config.tracking
    init_kwargs = dict(settings.init_kwargs)
    if config.training.resume is not None:
        init_kwargs["tensorboard"] = {"purge_step": after_step + 1, **init_kwargs.get("tensorboard", {})}
    accelerator.init_trackers(settings.project, flatten("", config.model_dump(mode="json")), init_kwargs)
