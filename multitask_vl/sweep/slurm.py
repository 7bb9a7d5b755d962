"""How does a cluster run a grid: a list of runs, and a SLURM array script whose task i runs line i."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from multitask_vl.programs import HOME
from multitask_vl.storage.atomic import write_whole
from multitask_vl.sweep.grid import Grid

PROGRAM = HOME / "launch" / "sweep.py"

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={job}
#SBATCH --array=1-{count}%{at_once}
#SBATCH --output={out}/logs/slurm-%x-%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# Task i runs line i of {listed}. What a run needs (--gres=gpu:1, --time, --partition) goes to sbatch.
set -euo pipefail
cd {here}
name=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {listed})
exec {command} --run "$name"
"""


def write_arrays(
    grid: Grid, options: Sequence[str], at_once: int, python: str, only: Collection[str] | None = None
) -> tuple[list[Path], str]:
    """Write ``array/trials.*`` (where a setting is chosen) and ``array/runs.*``.

    Args:
        options: of the sweep, that hold for each of its runs, such as ``--quick``.
        at_once: array tasks at a time.
        python: what runs the command on the cluster.
        only: names of runs; None: everything.

    Returns:
        the scripts, and the command that submits them.
    """
    command = shlex.join([python, str(PROGRAM), str(grid.path.resolve()), *options])
    parts = [[run.name for run in part if only is None or run.name in only] for part in grid.parts()]
    if not grid.select:
        parts.reverse()  # nothing waits for trials
    kinds = dict(zip(("trials", "runs"), parts, strict=True))
    scripts = [_write(grid, kind, names, command, at_once) for kind, names in kinds.items() if names]
    names = [shlex.quote(str(script)) for script in scripts]
    submit = f"sbatch {names[0]}"
    if len(names) > 1:
        submit = f"sbatch --dependency=afterany:$(sbatch --parsable {names[0]}) {names[1]}"
    (grid.out / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not make it
    return scripts, submit


def _write(grid: Grid, kind: str, names: list[str], command: str, at_once: int) -> Path:
    listed, script = grid.out / "array" / f"{kind}.txt", grid.out / "array" / f"{kind}.sh"
    write_whole(listed, "".join(f"{name}\n" for name in names))
    text = SCRIPT.format(
        job=f"{grid.path.stem}-{kind}",
        count=len(names),
        at_once=at_once,
        out=grid.out,
        listed=shlex.quote(str(listed)),
        here=shlex.quote(str(Path.cwd())),
        command=command,
    )
    write_whole(script, text)
    script.chmod(0o755)
    return script
