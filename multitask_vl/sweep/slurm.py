"""How does a cluster run a grid: a list of runs, and a SLURM array script whose task i runs line i."""

from __future__ import annotations

import shlex
from pathlib import Path

from multitask_vl.durable import write_whole
from multitask_vl.sweep.execute import ROOT
from multitask_vl.sweep.grid import Grid, GridRun

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
cd {root}
name=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {listed})
exec {python} launch/sweep.py {grid}{quick} --run "$name"
"""


def write_arrays(grid: Grid, quick: bool, at_once: int, python: str) -> tuple[list[Path], str]:
    """Write ``array/trials.*`` (where a setting is chosen) and ``array/runs.*``.

    Args:
        quick: whether the grid was read so.
        at_once: array tasks at a time.
        python: what runs the command on the cluster.

    Returns:
        the scripts, and the command that submits them.
    """
    every = grid.every()
    first = [run for run in every if run.trial or run.value is not None]
    rest = [run for run in every if not (run.trial or run.value is not None)]
    scripts = [
        _write(grid, kind, runs, quick, at_once, python) for kind, runs in (("trials", first), ("runs", rest)) if runs
    ]
    names = [shlex.quote(str(script)) for script in scripts]
    submit = f"sbatch {names[0]}"
    if len(names) > 1:
        submit = f"sbatch --dependency=afterany:$(sbatch --parsable {names[0]}) {names[1]}"
    (grid.out / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not make it
    return scripts, submit


def _write(grid: Grid, kind: str, runs: list[GridRun], quick: bool, at_once: int, python: str) -> Path:
    listed, script = grid.out / "array" / f"{kind}.txt", grid.out / "array" / f"{kind}.sh"
    write_whole(listed, "".join(f"{run.name}\n" for run in runs))
    text = SCRIPT.format(
        job=f"{grid.path.stem}-{kind}",
        count=len(runs),
        at_once=at_once,
        out=grid.out,
        listed=shlex.quote(str(listed)),
        root=shlex.quote(str(ROOT)),
        python=shlex.quote(python),
        grid=shlex.quote(str(grid.path.resolve())),
        quick=" --quick" if quick else "",
    )
    write_whole(script, text)
    script.chmod(0o755)
    return script
