"""The parts of a training run, set up in order: inputs, checkpoint, model, run folder, trackers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from accelerate import Accelerator

from multitask_vl.config import LoadedConfig
from multitask_vl.config.schema import Config
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.manifest import encoder_identity, encoder_mismatch
from multitask_vl.logging import get_logger
from multitask_vl.run.build import Run, setup_run
from multitask_vl.run.checks import configured_splits
from multitask_vl.run.provenance import RunRecord, features_of
from multitask_vl.training import checkpoint
from multitask_vl.training.checkpoint_manager import CheckpointManager
from multitask_vl.training.preemption import Interruption
from multitask_vl.training.resume import (
    assert_same_on_all_ranks,
    check_data_unchanged,
    find_resume_checkpoint,
    lock_run_dir,
    numerics_warnings,
)
from multitask_vl.training.state import TrainState
from multitask_vl.training.tracking import Metrics, Progress, start_trackers

logger = get_logger(__name__)


@dataclass
class Session:
    """Everything that the training loop works with.

    Attributes:
        run: tasks, data and model.
        schedule: task and rows of each step.
        state: what a step changes.
        first_step: number of steps completed when the run started or resumed.
        checkpoints: writes and prunes checkpoints.
        record: writes record.json.
        metrics: writes metrics.jsonl; None except on the main process.
        progress: the progress bar.
    """

    run: Run
    schedule: Schedule
    state: TrainState
    first_step: int
    checkpoints: CheckpointManager
    record: RunRecord
    metrics: Metrics | None
    progress: Progress

    @property
    def config(self) -> Config:
        """Configuration of the run."""
        return self.run.config

    @property
    def accelerator(self) -> Accelerator:
        """Device and processes of the run."""
        return self.state.accelerator

    @property
    def steps_between_evaluations(self) -> int | None:
        """Number of steps from one evaluation to the next; None without evaluations during training."""
        settings = self.config.evaluation
        if settings.eval_every_epochs is None or not settings.eval_splits:
            return None
        return max(1, round(settings.eval_every_epochs * self.schedule.steps_per_epoch))


def start_session(
    loaded: LoadedConfig, accelerator: Accelerator, interruption: Interruption, locks: ExitStack
) -> Session:
    """Check all inputs, build or restore the state, lock the run folder, and start metrics and trackers.

    Args:
        locks: holds the lock of the run folder.

    Raises:
        InputError: everything that can be found before the first step. The run folder is untouched until then.
    """
    config = loaded.config
    resume_from, warnings = find_resume_checkpoint(config)
    assert_same_on_all_ranks(resume_from, accelerator)
    _log_warnings(warnings)
    run = setup_run(config, accelerator, configured_splits(config))
    schedule = run.schedule()
    saved = checkpoint.read_state(resume_from) if resume_from else {}
    manifest = run.store.manifest
    provenance = {"data": run.data_provenance(), "features": encoder_identity(manifest)}
    data_warnings = check_data_unchanged(resume_from, saved, provenance["data"])
    data_warnings += encoder_mismatch(manifest, saved.get("features", {}))
    state = TrainState.create(run.model, run.tasks, schedule, config, accelerator, resume_from, interruption)
    step, total = state.step, state.total_steps
    progress = Progress(total, step, accelerator.is_main_process, config.tracking.print_steps)
    lock_run_dir(loaded, accelerator, resume_from, step, locks)
    facts = {"seed": config.seed, "data": provenance["data"], "features": features_of(run.store)}
    record = RunRecord(config.run_dir, accelerator, facts, step, total)
    metrics = Metrics(config.run_dir / "metrics.jsonl", after_step=step) if accelerator.is_main_process else None
    checkpoints = CheckpointManager(run, state, provenance)
    checkpoints.update_best()
    start_trackers(accelerator, config, after_step=step)
    _log_warnings([*run.warnings, *data_warnings, *numerics_warnings(saved, accelerator, config)])
    for note in [*state.notes, _summary(run, schedule, state), *map(state.micro_batches.summary, run.tasks)]:
        logger.info(note)
    return Session(run, schedule, state, step, checkpoints, record, metrics, progress)


def _log_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        logger.warning(warning)


def _summary(run: Run, schedule: Schedule, state: TrainState) -> str:
    accelerator, total = state.accelerator, state.total_steps
    trainable, num_parameters = run.model.parameter_counts()
    tasks = ", ".join(f"{t} {schedule.sizes[t]:,} rows x{schedule.batch_sizes[t]}" for t in run.tasks)
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return (
        f"{total} steps ({total / schedule.steps_per_epoch:.1f} epochs) on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {precision}; {tasks}; "
        f"training {trainable:,} of {num_parameters:,} parameters ({100 * trainable / num_parameters:.2f} %)"
    )
