"""Writing and pruning the checkpoints of a run, and links to the best ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from multitask_vl.config.schema import KeepBestConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import save_adapter
from multitask_vl.run.build import Run
from multitask_vl.run.provenance import code_version
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.training import checkpoint
from multitask_vl.training.resume import numerics_settings
from multitask_vl.training.state import TrainState

INDEX = "best.json"
AVERAGE = "average"
CARD_SETTINGS = {"batch_size", "lr", "warmup_ratio", "optimizer", "weight_decay", "max_grad_norm"}


class CheckpointManager:
    """Writes and prunes the checkpoints of a run. Methods are called on every process; the main process writes.

    Args:
        state: what is saved.
        provenance: ``data`` and ``features`` that the run is trained on; kept with every checkpoint.
    """

    def __init__(self, run: Run, state: TrainState, provenance: dict[str, Any]):
        self.run, self.state, self.provenance = run, state, provenance
        self.folder = run.config.run_dir / "checkpoints"
        self.card_settings = {
            "sampling": run.config.sampling.strategy,
            **run.config.training.model_dump(mode="json", include=CARD_SETTINGS),
            "processes": state.accelerator.num_processes,
            "mixed_precision": state.accelerator.mixed_precision,
            "code": code_version(),
        }

    def save(self) -> Path:
        """Write a checkpoint of the current step, prune the others, and return its path.

        Raises:
            InputError: on every process, if the main process could not write it.
        """
        config, state = self.run.config, self.state
        record = {
            "config": config.model_dump(mode="json"),
            **numerics_settings(state.accelerator, config),
            **self.provenance,
        }

        def write_adapter(folder: Path) -> None:
            save_adapter(self.run.model, folder, config, self.card_metadata(state.step))

        def write() -> None:
            state.save(self.folder, write_adapter, record)
            self._prune()

        self._on_main_process(write)
        return checkpoint.path_of(self.folder, state.step)

    def update_best(self) -> None:
        """Link the best checkpoints after an evaluation, and prune the others.

        Raises:
            InputError: as by `save`.
        """
        self._on_main_process(self._prune)

    def card_metadata(self, step: int) -> dict[str, dict]:
        """Return what an adapter's card reports of its training up to ``step``."""
        return {**self.provenance, "training": {"steps": step, **self.card_settings}}

    def _on_main_process(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the main process; an error ends every process, so that none waits for another."""
        state = self.state
        problems: list[list[str] | None] = [None]
        if state.accelerator.is_main_process:
            try:
                work()
            except InputError as error:
                problems = [error.problems]
            except OSError as error:
                reason = f"{error.filename or self.folder}: {error.strerror}"
                problems = [[f"{reason}. Fix this, and run the same command with training.resume=auto"]]
        broadcast_object_list(problems)
        if problems[0]:
            raise InputError(problems[0])

    def _prune(self) -> None:
        config = self.run.config
        metrics = config.run_dir / "metrics.jsonl"
        best = update_best_links(self.folder, metrics, config.training.keep_best, config.evaluation.max_examples)
        checkpoint.prune(self.folder, config.training.max_checkpoints, best)


@dataclass(frozen=True)
class Best:
    """The best checkpoint by one score.

    Attributes:
        step: of the checkpoint.
        value: its score, 0-100.
    """

    step: int
    value: float


def read_evaluations(metrics: Path) -> list[dict]:
    """Return the rows of metrics.jsonl that contain scores, in order. A line that a crash cut short is ignored."""
    rows = []
    for line in metrics.read_text(errors="replace").splitlines() if metrics.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "scores" in row:
            rows.append(row)
    return rows


def unscored_splits(metrics: Path, step: int, splits: Sequence[str]) -> list[str]:
    """Return which splits have no scores of ``step`` yet: an interruption may have come between two splits."""
    scored = {row["split"] for row in read_evaluations(metrics) if row["step"] == step and not row.get("final")}
    return [split for split in splits if split not in scored]


def find_best(
    rows: Iterable[Mapping], settings: KeepBestConfig, steps: Iterable[int], max_examples: int | None = None
) -> dict[str, Best]:
    """Return score name -> the best of ``steps`` by it; the earliest one of equals.

    This depends on what is on the disk only, so a run interrupted between scoring and linking finds the same.

    Args:
        rows: as returned by `read_evaluations`.
        steps: those that have a checkpoint.
        max_examples: `evaluation.max_examples`; scores of more or fewer examples are not comparable and ignored.
    """
    steps, best = set(steps), {}
    for row in rows:
        comparable = row["split"] == settings.split and row.get("max_examples") == max_examples
        if not comparable or row["step"] not in steps or not row["scores"]:
            continue
        scores = {**row["scores"], AVERAGE: sum(row["scores"].values()) / len(row["scores"])}
        for name in settings.metrics:
            if name in scores and (name not in best or scores[name] > best[name].value):
                best[name] = Best(row["step"], scores[name])
    return best


def update_best_links(
    folder: Path, metrics: Path, settings: KeepBestConfig | None, max_examples: int | None = None
) -> set[int]:
    """Write ``best.json`` and a link ``best-NAME`` for each score into the folder of checkpoints.

    Returns:
        steps whose checkpoints must be kept.
    """
    if settings is None or not folder.exists():
        return set()
    checkpoints = {checkpoint.step_of(path): path for path in checkpoint.steps(folder)}
    found = find_best(read_evaluations(metrics), settings, checkpoints, max_examples)
    index = {
        name: {
            "split": settings.split,
            "value": best.value,
            "step": best.step,
            "checkpoint": checkpoints[best.step].name,
        }
        for name, best in found.items()
    }
    atomic_write_json(folder / INDEX, index)
    for name, best in found.items():
        link, writing = folder / f"best-{name}", folder / f".best-{name}.writing"
        writing.unlink(missing_ok=True)
        writing.symlink_to(checkpoints[best.step].name)
        os.replace(writing, link)
    for link in folder.glob("best-*"):
        if link.is_symlink() and link.name.removeprefix("best-") not in found:
            link.unlink()
    return {best.step for best in found.values()}
