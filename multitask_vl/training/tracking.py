"""What a run leaves to read: metrics.jsonl without gaps or repeats, trackers beside it, progress on a terminal."""

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
from multitask_vl.storage.atomic import write_whole


class Metrics:
    """``metrics.jsonl``: one JSON object a line, each with a ``step`` (steps taken so far).

    Args:
        path: the file.
        after_step: rows of later steps are dropped first; they belong to a run that died past its last checkpoint. A
            line cut short by the death goes with them, and so do rows marked ``final``: the end is evaluated again.
    """

    def __init__(self, path: Path, after_step: int):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _stays(line, after_step)]
            write_whole(path, "".join(f"{line}\n" for line in kept))

    def add(self, **row) -> None:
        """Append a row; it is on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _stays(line: str, after_step: int) -> bool:
    try:
        row = json.loads(line)
        return row["step"] <= after_step and not row.get("final", False)
    except (ValueError, KeyError, TypeError):
        return False


class Progress:
    """A progress bar on a terminal; elsewhere a line every ``line_every`` steps. Only the main process speaks."""

    def __init__(self, total: int, done: int, active: bool, line_every: int):
        self.total, self.done, self.active, self.line_every = total, done, active, line_every
        self.started, self.first = time.monotonic(), done
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None if active else True, file=sys.stderr)

    def advance(self, note: str) -> None:
        """One step is done; ``note`` says how it went."""
        self.done += 1
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update()
        if self.active and self.bar.disable and (self.done % self.line_every == 0 or self.done == self.total):
            told = f"{1 / self._step_s():.1f} steps/s, {self.left_s() / 60:.1f} min left"
            self.say(f"step {self.done}/{self.total}, {told}, {note}")

    def left_s(self) -> float:
        """Seconds to the last step at the pace since the start of this process, evaluations on the way included."""
        return round((self.total - self.done) * self._step_s(), 1)

    def _step_s(self) -> float:
        return (time.monotonic() - self.started) / max(1, self.done - self.first)

    def say(self, text: str) -> None:
        """A line that does not disturb the bar."""
        if self.active:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self.bar.close()


def start_trackers(accelerator: Accelerator, config: Config, after_step: int = 0) -> None:
    """Start the trackers the accelerator was made with; nested configuration becomes dotted keys.

    Args:
        after_step: what TensorBoard was told of later steps is hidden; it belongs to a run that died past this one.
    """

    def flat(prefix: str, value: object) -> dict[str, object]:
        if isinstance(value, Mapping):
            return {k: v for key, inner in value.items() for k, v in flat(f"{prefix}{key}.", inner).items()}
        return {prefix[:-1]: value if isinstance(value, int | float | bool | str) else str(value)}

    settings = config.tracking
    init = dict(settings.init)
    if config.training.resume is not None:
        init["tensorboard"] = {"purge_step": after_step + 1, **init.get("tensorboard", {})}
    accelerator.init_trackers(settings.project, flat("", config.model_dump(mode="json")), init)
