"""May this run write here, and where does it start: a fresh folder, or the newest whole checkpoint of the same run."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from multitask_vl.config import Loaded, differences
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.training import checkpoint


def claim_run_folder(loaded: Loaded, accelerator: Accelerator) -> None:
    """Write ``resolved.yaml``: from here on the folder is this run's. Called when no input is left to be wrong."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        loaded.write_resolved(loaded.config.run_dir / "resolved.yaml")


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
    changed = differences(made_by, config)
    if changed:
        raise InputError(
            [f"training.resume: {found} was made by another configuration: {difference}" for difference in changed]
        )
    return found
