"""What of a run is put on the disk on the way: its checkpoints, how many of them stay, and the facts in their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn import Parameter

from multitask_vl.data.store.manifest import trunk_of
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import save_adapter
from multitask_vl.run.build import Run
from multitask_vl.run.provenance import revision
from multitask_vl.training import checkpoint
from multitask_vl.training.best_checkpoint import keep_best
from multitask_vl.training.resume import machine


class Keeper:
    """Saves a run's state. Its methods are called on every process; the main one writes.

    Args:
        parameters: trainable tensors by name.
        optimizer: not the prepared one.
    """

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, Parameter],
    ):
        self.run, self.accelerator = run, accelerator
        self.optimizer, self.parameters = optimizer, parameters
        self.folder = run.config.run_dir / "checkpoints"
        keys = {"batch_size", "lr", "warmup_ratio", "optimizer", "weight_decay", "clip_norm"}
        self.data = run.data()
        self.settings = {
            "mixing": run.config.mixing.strategy,
            **run.config.training.model_dump(mode="json", include=keys),
            "processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "code": revision(),
        }

    def save(self, step: int, counted: Mapping[str, object]) -> Path:
        """Write the checkpoint of ``step`` and delete those that need not stay; returns its folder.

        Args:
            counted: JSON-able, what the run has counted so far and goes on counting after a restart.

        Raises:
            InputError: on every process, if the main one could not write it.
        """
        config, accelerator = self.run.config, self.accelerator
        record = {"config": config.model_dump(mode="json"), **machine(accelerator, config), **counted}
        if accelerator.scaler is not None:
            record["scaler"] = accelerator.scaler.state_dict()

        def write_adapter(folder: Path) -> None:
            save_adapter(self.run.model, folder, config, self.facts(step))

        def write() -> None:
            checkpoint.save(self.folder, step, write_adapter, self.parameters, self.optimizer, record)
            self._drop_old()

        self._on_main(write)
        return self.folder / f"{checkpoint.PREFIX}{step:08d}"

    def note_best(self) -> None:
        """After an evaluation: find the best checkpoints anew, and delete those that need not stay any more.

        Raises:
            InputError: as by `save`.
        """
        self._on_main(self._drop_old)

    def _on_main(self, act: Callable[[], None]) -> None:
        """Have the main process do something, and every process end if it cannot, so that none waits for it."""
        problems: list[list[str] | None] = [None]
        if self.accelerator.is_main_process:
            try:
                act()
            except InputError as error:
                problems = [error.problems]
            except OSError as error:
                why = f"{error.filename or self.folder}: {error.strerror}"
                problems = [[f"{why}. Mend that, and start the same command with training.resume=auto"]]
        broadcast_object_list(problems)
        if problems[0]:
            raise InputError(problems[0])

    def _drop_old(self) -> None:
        config = self.run.config
        settings, metrics = config.training, config.run_dir / "metrics.jsonl"
        best = keep_best(self.folder, metrics, settings.keep_best, config.evaluation.limit)
        checkpoint.drop_old(self.folder, settings.keep_checkpoints, best)

    def facts(self, step: int) -> dict[str, dict]:
        """What an adapter's card tells of its training up to ``step``."""
        features = trunk_of(self.run.store.manifest)
        return {"data": self.data, "features": features, "training": {"steps": step, **self.settings}}
