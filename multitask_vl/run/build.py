"""Building a run: accelerator, collators, schedule and model from checked inputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration, patch_environment

from multitask_vl.config.schema import Config
from multitask_vl.data.collate import Collator, image_keys, shuffled_images
from multitask_vl.data.example_table import table_provenance
from multitask_vl.data.length_cache import row_lengths
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.models.kernels.cpu_precision import slow_precision_warning
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.run import distributed
from multitask_vl.run.checks import TRAIN, RunInputs, check_inputs
from multitask_vl.tasks.base import Task


@dataclasses.dataclass
class Run:
    """Data and model of a run.

    Attributes:
        collators: by (task, split).
        warnings: what is worth knowing although nothing is wrong, such as truncated texts and splits that a task lacks.
    """

    config: Config
    tasks: dict[str, Task]
    collators: dict[tuple[str, str], Collator]
    model: VLSeq2Seq
    warnings: list[str]
    store: FeatureStore

    def schedule(self) -> Schedule:
        """Return the schedule of the training split: task and rows of each step."""
        sizes = {task: len(self.collators[task, TRAIN].table) for task in self.tasks}
        batch_sizes = {
            name: max(1, int(self.config.training.batch_size * task.config.batch_size_ratio))
            for name, task in self.tasks.items()
        }
        return Schedule(sizes, batch_sizes, self.config.sampling, self.config.seed, self._lengths())

    def _lengths(self) -> dict[str, np.ndarray] | None:
        if not self.config.training.group_by_length:
            return None
        collators = {name: self.collators[name, TRAIN] for name in self.tasks}
        return {name: row_lengths(one.task, one.table, one.tokenizer) for name, one in collators.items()}

    def data_provenance(self) -> dict[str, dict[str, dict]]:
        """Return task -> split -> number of examples and the files that they come from."""
        return {
            name: {split: table_provenance(one.table) for (task, split), one in self.collators.items() if task == name}
            for name in self.tasks
        }

    def collators_by_split(self, splits: list[str]) -> dict[str, list[Collator]]:
        """Return split -> collators of the tasks that have it."""
        return {
            split: [self.collators[task, split] for task in self.tasks if (task, split) in self.collators]
            for split in splits
        }


def make_accelerator(config: Config) -> Accelerator:
    """Build the accelerator of a run: device and processes from the launcher, trackers from the configuration.

    Raises:
        InputError: a tracker that accelerate does not know or whose package is not installed; launch options that
            training does not support.
    """
    known, installed = ({str(t) for t in trackers} for trackers in (LoggerType, get_available_trackers()))
    problems = [
        f"tracking.trackers: {name!r} "
        + ("is not installed here" if name in known else "is not known")
        + f"; choose among {', '.join(sorted(installed)) or 'none'}"
        for name in config.tracking.trackers
        if name not in installed
    ]
    problems += distributed.unsupported_launch_options(config)
    if problems:
        raise InputError(problems)
    with patch_environment(**{distributed.USE_FSDP: "false"}):
        return Accelerator(
            # without this flag two CPU processes would look for a GPU backend
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.training.mixed_precision,
            log_with=config.tracking.trackers or None,
            project_config=ProjectConfiguration(str(config.run_dir), logging_dir=str(config.run_dir / "tracking")),
            # a step of one task leaves the other tasks' modules without gradient, on every process
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )


def setup_run(config: Config, accelerator: Accelerator, splits: list[str]) -> Run:
    """Check the inputs of a run over ``splits`` and build it.

    Raises:
        InputError: every problem that can be found before the first step, collected: files, texts over their limits,
            image keys without features, features of another encoder.
    """
    inputs = check_inputs(config, splits, accelerator.main_process_first)
    if inputs.problems:
        raise InputError(inputs.problems)
    return build_run(config, accelerator, inputs)


def build_run(config: Config, accelerator: Accelerator, inputs: RunInputs) -> Run:
    """Build a run, with its model, from inputs without problems."""
    tables, store, tokenizer = inputs.tables, inputs.store, inputs.tokenizer
    collators = {}
    for (name, split), table in tables.items():
        image_substitution = None
        if config.features.shuffle_images:
            image_substitution = shuffled_images([t for (_, other), t in tables.items() if other == split], config.seed)
        collators[name, split] = Collator(inputs.tasks[name], table, tokenizer, store, image_substitution)
    model = build_model(config, tokenizer, device=accelerator.device)
    train_tables = [table for (_, split), table in tables.items() if split == TRAIN]
    if config.visual.init_normalize and train_tables:
        model.visual.init_input_normalization(*feature_mean_std(store, train_tables, config.seed))
    if accelerator.mixed_precision == "bf16":
        model.cast_frozen(torch.bfloat16)
    return Run(config, inputs.tasks, collators, model, [*inputs.warnings, *precision_warnings(accelerator)], store)


def precision_warnings(accelerator: Accelerator) -> list[str]:
    """Return a warning if the configured precision is slower than fp32 on this device."""
    warning = slow_precision_warning("training.mixed_precision", accelerator.mixed_precision, accelerator.device)
    return [warning] if warning else []


def feature_mean_std(
    store: FeatureStore, tables: list, seed: int, num_images: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each feature channel [D] over some training images."""
    keys = image_keys(*tables)
    drawn = np.random.default_rng([seed, 5]).choice(len(keys), size=min(num_images, len(keys)), replace=False)
    features = torch.from_numpy(store.get_many([keys[i] for i in sorted(drawn)])).float().flatten(0, 1)
    return features.mean(0), features.std(0)
