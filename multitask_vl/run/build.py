"""How does a run come together before its first step: its needs checked together, its batches, schedule and model."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration, patch_environment

from multitask_vl.config.schema import Config
from multitask_vl.data.collate import Collator, image_keys, shuffled_images
from multitask_vl.data.example_table import made_from
from multitask_vl.data.row_lengths import row_lengths
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.models.kernels.cpu_precision import slower_than_fp32
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.run import distributed
from multitask_vl.run.checks import TRAIN, Needs, find_needs
from multitask_vl.tasks.base import Task


@dataclasses.dataclass
class Run:
    """Everything a run works with.

    Attributes:
        collators: (task, split) -> what makes its batches.
        remarks: what the user should know though nothing is wrong (texts that are cut, splits a task does not have).
    """

    config: Config
    tasks: dict[str, Task]
    collators: dict[tuple[str, str], Collator]
    model: VLSeq2Seq
    remarks: list[str]
    store: FeatureStore

    def schedule(self) -> Schedule:
        """Which task and rows each step trains."""
        sizes = {task: len(self.collators[task, TRAIN].table) for task in self.tasks}
        batches = {
            name: max(1, int(self.config.training.batch_size * task.config.batch_share))
            for name, task in self.tasks.items()
        }
        return Schedule(sizes, batches, self.config.mixing, self.config.seed, self._lengths())

    def _lengths(self) -> dict[str, np.ndarray] | None:
        if not self.config.training.group_by_length:
            return None
        collators = {name: self.collators[name, TRAIN] for name in self.tasks}
        return {name: row_lengths(one.task, one.table, one.tokenizer) for name, one in collators.items()}

    def data(self) -> dict[str, dict[str, dict]]:
        """Task -> split -> how many examples it has and which files they come from."""
        return {
            name: {split: made_from(one.table) for (task, split), one in self.collators.items() if task == name}
            for name in self.tasks
        }

    def splits(self, wanted: list[str]) -> dict[str, list[Collator]]:
        """Split -> collators of the tasks that have it."""
        return {
            split: [self.collators[task, split] for task in self.tasks if (task, split) in self.collators]
            for split in wanted
        }


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of a run: device and processes from the launcher, trackers from the configuration.

    Raises:
        InputError: a tracker that accelerate does not know, or whose library is not installed; a launcher that asks
            for what training does not do.
    """
    known, installed = ({str(t) for t in trackers} for trackers in (LoggerType, get_available_trackers()))
    problems = [
        f"tracking.trackers: {name!r} "
        + ("is not installed here" if name in known else "is not known")
        + f"; choose among {', '.join(sorted(installed)) or 'none'}"
        for name in config.tracking.trackers
        if name not in installed
    ]
    problems += distributed.refusals(config)
    if problems:
        raise InputError(problems)
    with patch_environment(**{distributed.FSDP: "false"}):
        return Accelerator(
            # without this flag two CPU processes would look for a GPU backend
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.training.mixed_precision,
            log_with=config.tracking.trackers or None,
            project_config=ProjectConfiguration(str(config.run_dir), logging_dir=str(config.run_dir / "tracking")),
            # a step of one task leaves the other tasks' branches without gradient, on every process alike
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )


def prepare(config: Config, accelerator: Accelerator, splits: list[str]) -> Run:
    """Load and check what a run over ``splits`` needs.

    Raises:
        InputError: every problem that can be found before the first step, collected: files, texts over their limits,
            image keys without features, a store that another trunk made.
    """
    needs = find_needs(config, splits, accelerator.main_process_first)
    if needs.problems:
        raise InputError(needs.problems)
    return assemble(config, accelerator, needs)


def assemble(config: Config, accelerator: Accelerator, needs: Needs) -> Run:
    """A run of what was found complete; its model is built here."""
    tables, store, tokenizer = needs.tables, needs.store, needs.tokenizer
    collators = {}
    for (name, split), table in tables.items():
        stand_in = None
        if config.features.control == "shuffled":
            stand_in = shuffled_images([t for (_, other), t in tables.items() if other == split], config.seed)
        collators[name, split] = Collator(needs.tasks[name], table, tokenizer, store, stand_in)
    model = build_model(config, tokenizer, device=accelerator.device)
    trained = [table for (_, split), table in tables.items() if split == TRAIN]
    if config.visual.standardize and trained:
        model.visual.init_standardized(*_statistics(store, trained, config.seed))
    if accelerator.mixed_precision == "bf16":
        model.hold_frozen(torch.bfloat16)
    remarks = [*needs.remarks, *remarks_on(accelerator)]
    return Run(config, needs.tasks, collators, model, remarks, store)


def remarks_on(accelerator: Accelerator) -> list[str]:
    """What the user should know of the device and the precision."""
    note = slower_than_fp32("training.mixed_precision", accelerator.mixed_precision, accelerator.device)
    return [note] if note else []


def _statistics(store: FeatureStore, tables: list, seed: int, images: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each channel [D] over the cells of some training images."""
    keys = image_keys(*tables)
    drawn = np.random.default_rng([seed, 5]).choice(len(keys), size=min(images, len(keys)), replace=False)
    cells = torch.from_numpy(store.get_many([keys[i] for i in sorted(drawn)])).float().flatten(0, 1)
    return cells.mean(0), cells.std(0)
