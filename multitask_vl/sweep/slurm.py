"""SLURM array scripts of a sweep: task i runs line i of a list."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from multitask_vl.storage.atomic import atomic_write
from multitask_vl.sweep.grid import Grid

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={job}
#SBATCH --array=1-{count}%{max_parallel}
#SBATCH --output={out}/logs/slurm-%x-%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# Task i runs line i of {names}. Pass resources (--gres=gpu:1, --time, --partition) to sbatch.
set -euo pipefail
cd {cwd}
name=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {names})
exec {command} --run "$name"
"""


def write_arrays(
    grid: Grid, options: Sequence[str], max_parallel: int, python: str, only: Collection[str] | None = None
) -> tuple[list[Path], str]:
    """Write ``array/trials.*`` (if a setting is selected by trials) and ``array/runs.*``.

    Args:
        options: options of the sweep that hold for each run, such as ``--smoke``.
        max_parallel: number of array tasks at the same time.
        python: Python on the cluster.
        only: names of runs; None: everything.

    Returns:
        the scripts, and the command that submits them.
    """
    command = shlex.join([python, "-m", "multitask_vl", "sweep", str(grid.path.resolve()), *options])
    lists = [[run.name for run in runs if only is None or run.name in only] for runs in grid.ready_and_pending()]
    if not grid.select:
        lists.reverse()  # nothing waits for trials
    kinds = dict(zip(("trials", "runs"), lists, strict=True))
    scripts = [_write(grid, kind, names, command, max_parallel) for kind, names in kinds.items() if names]
    quoted = [shlex.quote(str(script)) for script in scripts]
    submit = f"sbatch {quoted[0]}"
    if len(quoted) > 1:
        submit = f"sbatch --dependency=afterany:$(sbatch --parsable {quoted[0]}) {quoted[1]}"
    (grid.out / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not create it
    return scripts, submit


def _write(grid: Grid, kind: str, names: list[str], command: str, max_parallel: int) -> Path:
    names_file, script = grid.out / "array" / f"{kind}.txt", grid.out / "array" / f"{kind}.sh"
    atomic_write(names_file, "".join(f"{name}\n" for name in names))
    text = SCRIPT.format(
        job=f"{grid.path.stem}-{kind}",
        count=len(names),
        max_parallel=max_parallel,
        out=grid.out,
        names=shlex.quote(str(names_file)),
        cwd=shlex.quote(str(Path.cwd())),
        command=command,
    )
    atomic_write(script, text)
    script.chmod(0o755)
    return script
