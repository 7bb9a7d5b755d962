"""May this run write here, and where does it start: a fresh folder, or the newest whole checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.config import Loaded, differences
from multitask_vl.config.load import config_from
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.run.checks import TRAIN
from multitask_vl.run.main_process import on_main_process
from multitask_vl.storage.atomic import unfinished
from multitask_vl.storage.file_lock import Busy, WriterLock
from multitask_vl.training import checkpoint


def claim_run_folder(
    loaded: Loaded,
    accelerator: Accelerator,
    start_from: Path | None,
    step: int,
    say: Callable[[str], None],
    held: ExitStack,
) -> None:
    """From here on the folder is this run's, as of ``step``: what a death left half done or beyond it is removed.

    Called when no input is left to be wrong. Checkpoints go before the metrics are cut and scores before the settings
    change, so that a death in between leaves nothing that the next start would take for whole.

    Args:
        start_from: the checkpoint of ``step``. One of another run is copied, so that ``auto`` finds it from now on.
        held: gets the lock by which no other process trains in the folder meanwhile.

    Raises:
        InputError: on every process, if another one trains in the folder.
    """
    folder = loaded.config.run_dir
    checkpoints = folder / "checkpoints"

    def claim() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(WriterLock(folder / "run", elsewhere="train elsewhere (run_dir=PATH)"))
        except Busy:
            raise
        except InputError:
            say(f"{folder}: its file system takes no locks; a second run there would not be noticed")
        (folder / "scores.json").unlink(missing_ok=True)
        gone = checkpoint.drop_later(checkpoints, step)
        if start_from is not None and start_from.resolve().parent != checkpoints.resolve():
            checkpoint.adopt(start_from, checkpoints, step)
        if gone:
            say(f"going on after step {step}; removed, since their steps are taken again: {', '.join(gone)}")
        for path in unfinished(folder):
            path.unlink()
        loaded.write_resolved(folder / "resolved.yaml")

    on_main_process(accelerator, claim)


def where_to_start(config: Config) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. Writes nothing.

    Raises:
        InputError: the folder holds a run and ``training.resume`` is not set, or one that has ended and has no
            checkpoint; the checkpoint named does not exist, is
            damaged or belongs to another folder's run while this one holds a run of its own; it was made by a
            configuration that trains something else.
    """
    folder, resume = config.run_dir / "checkpoints", config.training.resume
    if resume is None:
        if (config.run_dir / "resolved.yaml").exists():
            raise InputError(
                f"run_dir: {config.run_dir} already holds a run. Go on with it by training.resume=auto, or choose "
                f"another place by run_dir=PATH (or remove it: rm -r {config.run_dir})"
            )
        return None
    if resume == "auto":
        found, remarks = checkpoint.newest_whole(folder)
        for remark in remarks:
            print(remark, flush=True)
        if found is None:
            if remarks:
                raise InputError([*remarks, f"run_dir: no undamaged checkpoint in {folder}; start afresh elsewhere"])
            if (config.run_dir / "scores.json").exists():
                raise InputError(
                    f"run_dir: the run in {config.run_dir} has ended and its checkpoints are gone, so there is nothing "
                    f"to go on from; its scores are in scores.json. Choose another place by run_dir=PATH (or remove "
                    f"it: rm -r {config.run_dir})"
                )
            return None
    else:
        found = Path(resume)
        if not found.is_dir():
            have = ", ".join(path.name for path in checkpoint.steps(folder)) or "none"
            raise InputError(f"training.resume: no checkpoint {found} (in {folder}: {have})")
        if (config.run_dir / "resolved.yaml").exists() and found.resolve().parent != folder.resolve():
            raise InputError(
                f"run_dir: {config.run_dir} already holds a run, and {found} is not one of its checkpoints; go on "
                f"with the run there by training.resume=auto, or choose another place by run_dir=PATH"
            )
        reason = checkpoint.damage(found)
        if reason is not None:
            raise InputError(f"training.resume: {found}: {reason}. Use training.resume=auto to fall back")
    made_by = checkpoint.read_state(found).get("config")
    if not isinstance(made_by, dict):
        raise InputError(f"training.resume: {found}/state.json holds no configuration; remove it: rm -r {found}")
    changed = differences(_completed(made_by, found), config)
    if changed:
        raise InputError(
            [f"training.resume: {found} was made by another configuration: {difference}" for difference in changed]
        )
    return found


def the_same_everywhere(start_from: Path | None, accelerator: Accelerator) -> Path | None:
    """Where to start, as found by every process.

    Raises:
        InputError: on every process, if they have found different ones.
    """
    found = gather_object([None if start_from is None else str(start_from)])
    if len(set(found)) > 1:
        told = ", ".join(f"process {rank}: {path or 'a fresh start'}" for rank, path in enumerate(found))
        raise InputError(
            f"run_dir: its processes see different checkpoints ({told}), so they would train different steps together. "
            f"It must be one folder that all nodes share; if it is, its file system lags: start again"
        )
    return start_from


def what_changes_examples(
    start_from: Path | None, state: Mapping[str, Any], data: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """Remarks on splits whose scores are of other examples than before the run stopped.

    Args:
        state: as recorded with the checkpoint; older ones do not tell their data.
        data: task -> split -> what its examples are made from.

    Raises:
        InputError: what is trained on has changed: the rest of the run would be of other examples, in another order.
    """
    remarks, problems = [], []
    for task, splits in data.items():
        for split, now in splits.items():
            before = state.get("data", {}).get(task, {}).get(split, now)
            if _content(before) == _content(now):
                continue
            told = f"tasks.{task}, split {split!r}: was {_about(before)}, is {_about(now)}"
            if split == TRAIN:
                mend = "put back what was there, or start afresh by run_dir=PATH"
                problems.append(f"training.resume: {start_from} was trained on other examples: {told}; {mend}")
            else:
                remarks.append(f"other examples are scored than before: {told}")
    if problems:
        raise InputError(problems)
    return remarks


def _content(made_from: Mapping[str, Any]) -> tuple[int, list[str]]:
    """What must be equal; a file may have another name."""
    return made_from["examples"], sorted(made_from["files"].values())


def _about(made_from: Mapping[str, Any]) -> str:
    files = ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in made_from["files"].items())
    return f"{made_from['examples']:,} examples of {files}"


def what_changes_bits(state: Mapping[str, object], accelerator: Accelerator, config: Config) -> list[str]:
    """Remarks on settings that keep the order of examples but not every bit, such as threads and processes.

    Args:
        state: as recorded with the checkpoint that the run goes on from.
    """
    now = machine(accelerator, config)
    changed = [f"{key} {state[key]} before, {now[key]} now" for key in now if state.get(key, now[key]) != now[key]]
    if not changed:
        return []
    return [
        f"going on with {'; '.join(changed)}: the same examples in the same order, losses equal to rounding; where "
        "dropout is on, its masks are others with other processes or micro-batches"
    ]


def machine(accelerator: Accelerator, config: Config) -> dict[str, object]:
    """What a step's bits depend on beside the configuration that must not change."""
    return {
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "micro_batch_size": config.training.micro_batch_size,
        "compile": config.training.compile,
        "mixed_precision": accelerator.mixed_precision,
    }


def _completed(made_by: Mapping[str, object], found: Path) -> Config | Mapping[str, object]:
    """The configuration of a checkpoint, with settings that came after it was written at their defaults."""
    try:
        return config_from(made_by, str(found / "state.json"))
    except InputError:
        return made_by  # comparing it tells what is no setting any more
