"""May this run write here, and where does it start: a fresh folder, or the newest whole checkpoint of the same run."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from multitask_vl.config import Loaded, differences
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.training import checkpoint


def claim_run_folder(loaded: Loaded, accelerator: Accelerator) -> Path | None:
    """Decide where to start, and write ``resolved.yaml``.

    Returns:
        the checkpoint to go on from, or None for a fresh start; the same on every process.

    Raises:
        InputError: the folder holds a run and ``training.resume`` is not set; the checkpoint named does not exist or is
            damaged; it was made by a configuration that trains something else.
    """
    start = _start(loaded.config)  # every process looks before the first one writes
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        loaded.config.run_dir.mkdir(parents=True, exist_ok=True)
        loaded.write_resolved(loaded.config.run_dir / "resolved.yaml")
    return start


def _start(config: Config) -> Path | None:
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
        reason = checkpoint.damage(found)
        if reason is not None:
            raise InputError(f"training.resume: {found}: {reason}. Use training.resume=auto to fall back")
    changed = differences(checkpoint.read_state(found)["config"], config)
    if changed:
        raise InputError(
            [f"training.resume: {found} was made by another configuration: {difference}" for difference in changed]
        )
    return found
