"""Start of a run: the locked run folder and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.config import LoadedConfig, differences
from multitask_vl.config.load import config_from
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.logging import get_logger
from multitask_vl.run.checks import TRAIN
from multitask_vl.run.main_process import on_main_process
from multitask_vl.storage.atomic import leftover_temp_files
from multitask_vl.storage.file_lock import FileLock, LockHeld
from multitask_vl.training import checkpoint

logger = get_logger(__name__)


def lock_run_dir(
    loaded: LoadedConfig, accelerator: Accelerator, resume_from: Path | None, step: int, locks: ExitStack
) -> None:
    """Lock the run folder and bring it to the state after ``step``: what is unfinished or later is removed.

    Called once all inputs are checked. Checkpoints are removed before the metrics are cut, and scores before the
    settings change, so an interruption in between leaves nothing that the next start would take for complete.

    Args:
        resume_from: the checkpoint of ``step``. One of another run is copied, so that ``auto`` finds it from now on.
        locks: holds the lock that keeps other processes from training in the folder.

    Raises:
        InputError: on every process, if another one trains in the folder.
    """
    folder = loaded.config.run_dir
    checkpoints = folder / "checkpoints"

    def lock() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            locks.enter_context(FileLock(folder / "run", hint="train in another folder (run_dir=PATH)"))
        except LockHeld:
            raise
        except InputError:
            logger.warning(f"{folder}: its file system does not support locks, so a second run there is not detected")
        (folder / "scores.json").unlink(missing_ok=True)
        removed = checkpoint.remove_after(checkpoints, step)
        if resume_from is not None and resume_from.resolve().parent != checkpoints.resolve():
            checkpoint.import_from(resume_from, checkpoints, step)
        if removed:
            logger.info(f"resuming after step {step}; removed checkpoints of later steps: {', '.join(removed)}")
        for path in leftover_temp_files(folder):
            path.unlink()
        loaded.write_resolved(folder / "resolved.yaml")

    on_main_process(accelerator, lock)


def find_resume_checkpoint(config: Config) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to resume from, None to start from scratch, and warnings. Writes nothing.

    Raises:
        InputError: the folder holds a run and ``training.resume`` is not set, or a finished run without checkpoints;
            the given checkpoint does not exist, is corrupt, or is of another run while the folder holds a run; its
            configuration differs in settings that decide the training.
    """
    folder, resume = config.run_dir / "checkpoints", config.training.resume
    warnings: list[str] = []
    if resume is None:
        if (config.run_dir / "resolved.yaml").exists():
            raise InputError(
                f"run_dir: {config.run_dir} already holds a run. Resume it with training.resume=auto, or choose "
                f"another folder with run_dir=PATH (or remove it: rm -r {config.run_dir})"
            )
        return None, warnings
    if resume == "auto":
        found, warnings = _latest(config, folder)
        if found is None:
            return None, warnings
    else:
        found = _given(config, folder, Path(resume))
    saved_config = checkpoint.read_state(found).get("config")
    if not isinstance(saved_config, dict):
        raise InputError(f"training.resume: {found}/state.json does not contain a configuration; run: rm -r {found}")
    changed = differences(_with_defaults(saved_config, found), config)
    if changed:
        raise InputError(
            [f"training.resume: {found} was saved by another configuration: {difference}" for difference in changed]
        )
    return found, warnings


def _latest(config: Config, folder: Path) -> tuple[Path | None, list[str]]:
    found, warnings = checkpoint.latest_valid(folder)
    if found is None and warnings:
        raise InputError([*warnings, f"run_dir: no valid checkpoint in {folder}; start from scratch in another folder"])
    if found is None and (config.run_dir / "scores.json").exists():
        raise InputError(
            f"run_dir: the run in {config.run_dir} has finished and its checkpoints are gone, so it cannot be resumed; "
            f"its scores are in scores.json. Choose another folder with run_dir=PATH (or remove it: rm -r "
            f"{config.run_dir})"
        )
    return found, warnings


def _given(config: Config, folder: Path, path: Path) -> Path:
    if not path.is_dir():
        existing = ", ".join(one.name for one in checkpoint.steps(folder)) or "none"
        raise InputError(f"training.resume: no checkpoint {path} (in {folder}: {existing})")
    if (config.run_dir / "resolved.yaml").exists() and path.resolve().parent != folder.resolve():
        raise InputError(
            f"run_dir: {config.run_dir} already holds a run, and {path} is not one of its checkpoints; resume the run "
            f"there with training.resume=auto, or choose another folder with run_dir=PATH"
        )
    reason = checkpoint.corruption(path)
    if reason is not None:
        raise InputError(f"training.resume: {path}: {reason}. Use training.resume=auto to fall back to another one")
    return path


def assert_same_on_all_ranks(resume_from: Path | None, accelerator: Accelerator) -> None:
    """Check that every process found the same checkpoint to resume from.

    Raises:
        InputError: on every process, if they found different ones.
    """
    found = gather_object([None if resume_from is None else str(resume_from)])
    if len(set(found)) > 1:
        by_rank = ", ".join(f"process {rank}: {path or 'none'}" for rank, path in enumerate(found))
        raise InputError(
            f"run_dir: the processes see different checkpoints ({by_rank}), so they would train different steps "
            f"together. It must be one folder that all nodes share; if it is, its file system lags: start again"
        )


def check_data_unchanged(
    resume_from: Path | None, state: Mapping[str, Any], data: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """Return warnings about splits that are evaluated on other examples than before.

    Args:
        state: of the checkpoint; {} without one. Older checkpoints do not contain their data.
        data: task -> split -> provenance of its examples.

    Raises:
        InputError: the training data changed, so the rest of the run would see other examples in another order.
    """
    warnings, problems = [], []
    for task, splits in data.items():
        for split, current in splits.items():
            saved = state.get("data", {}).get(task, {}).get(split, current)
            if _content(saved) == _content(current):
                continue
            change = f"tasks.{task}, split {split!r}: was {_describe(saved)}, is {_describe(current)}"
            if split == TRAIN:
                fix = "restore the files, or start from scratch with run_dir=PATH"
                problems.append(f"training.resume: {resume_from} was trained on other examples: {change}; {fix}")
            else:
                warnings.append(f"evaluated on other examples than before: {change}")
    if problems:
        raise InputError(problems)
    return warnings


def _content(provenance: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Number of examples and checksums of the files; a file may have another name."""
    return provenance["examples"], sorted(provenance["files"].values())


def _describe(provenance: Mapping[str, Any]) -> str:
    files = ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in provenance["files"].items())
    return f"{provenance['examples']:,} examples of {files}"


def numerics_warnings(state: Mapping[str, object], accelerator: Accelerator, config: Config) -> list[str]:
    """Return a warning if settings changed that affect rounding but not the order of examples, such as threads.

    Args:
        state: of the checkpoint that the run resumes from; {} without one.
    """
    now = numerics_settings(accelerator, config)
    changed = [f"{key} {state[key]} before, {now[key]} now" for key in now if state.get(key, now[key]) != now[key]]
    if not changed:
        return []
    return [
        f"resuming with {'; '.join(changed)}: the same examples in the same order, losses equal up to rounding; "
        "dropout masks differ if the number of processes or the micro-batches changed"
    ]


def numerics_settings(accelerator: Accelerator, config: Config) -> dict[str, object]:
    """Return the settings that affect the rounding of a step and may change when a run is resumed."""
    return {
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "micro_batch_size": config.training.micro_batch_size,
        "compile": config.training.compile,
        "mixed_precision": accelerator.mixed_precision,
    }


def _with_defaults(saved_config: Mapping[str, object], checkpoint_dir: Path) -> Config | Mapping[str, object]:
    """Return the configuration of a checkpoint, with the defaults of settings that are newer than it."""
    try:
        return config_from(saved_config, str(checkpoint_dir / "state.json"))
    except InputError:
        return saved_config  # comparing it reports the keys that do not exist any more
