"""May this run write here, and where does it start: a fresh folder, or the newest whole checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator

from multitask_vl.config import Loaded, differences
from multitask_vl.config.load import config_from
from multitask_vl.config.schema import Config
from multitask_vl.durable import unfinished
from multitask_vl.errors import InputError
from multitask_vl.training import checkpoint


def claim_run_folder(loaded: Loaded, accelerator: Accelerator, step: int, say: Callable[[str], None]) -> None:
    """From here on the folder is this run's, as of ``step``: what a death left half done or beyond it is removed.

    Called when no input is left to be wrong. Checkpoints go before the metrics are cut and scores before the settings
    change, so that a death in between leaves nothing that the next start would take for whole.
    """
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder = loaded.config.run_dir
        (folder / "scores.json").unlink(missing_ok=True)
        gone = checkpoint.drop_later(folder / "checkpoints", step)
        if gone:
            say(f"going on after step {step}; removed, since their steps are taken again: {', '.join(gone)}")
        for path in unfinished(folder):
            path.unlink()
        loaded.write_resolved(folder / "resolved.yaml")


def where_to_start(config: Config) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start; the same on every process. Writes nothing.

    Raises:
        InputError: the folder holds a run and ``training.resume`` is not set; the checkpoint named does not exist, is
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
            return None
    else:
        found = Path(resume)
        if not found.is_dir():
            have = ", ".join(path.name for path in checkpoint.steps(folder)) or "none"
            raise InputError(f"training.resume: no checkpoint {found} (in {folder}: {have})")
        if (config.run_dir / "resolved.yaml").exists() and found.resolve().parent != folder.resolve():
            raise InputError(
                f"run_dir: {config.run_dir} already holds a run, and {found} is not one of its checkpoints; choose "
                f"another place by run_dir=PATH"
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
    }


def _completed(made_by: Mapping[str, object], found: Path) -> Config | Mapping[str, object]:
    """The configuration of a checkpoint, with settings that came after it was written at their defaults."""
    try:
        return config_from(made_by, str(found / "state.json"))
    except InputError:
        return made_by  # comparing it tells what is no setting any more
