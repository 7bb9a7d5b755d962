"""Run a grid of runs: python launch/sweep.py configs/sweeps/X.yaml [--at-once N] [--dry-run] [--array]

What is finished is skipped and what was interrupted goes on: give the same command again after whatever stopped it, and
as often at a time as there are machines with the same folder. Exit code 0: nothing failed; 1: a run did; 2: bad input;
75: a signal ended it early, what ran was told to save.
"""

import argparse
import fnmatch
import shlex
import signal
import sys
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.reproduction.parameters import put_between_markers
from multitask_vl.sweep.execute import Sweep
from multitask_vl.sweep.grid import Grid, read_grid
from multitask_vl.sweep.jobs import STOPPED
from multitask_vl.sweep.selection import resolved
from multitask_vl.sweep.slurm import write_arrays

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A notice, Ctrl-C, a terminal that is closed."""


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="a YAML such as configs/sweeps/routing.yaml")
    parser.add_argument("--quick", action="store_true", help="the smaller form that the YAML describes")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, help="of each run (default: the cores, shared out)")
    parser.add_argument("--devices", default="", metavar="0,1", help="GPUs, each for one run at a time")
    parser.add_argument("--launcher", default="", help='before the script, such as "torchrun --nproc_per_node 2"')
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="runs whose names fit, such as '*mul*'")
    parser.add_argument("--run", metavar="NAME", help="this run alone, as a task of an array does")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put the table between its markers there")
    parser.add_argument("--array", action="store_true", help="write SLURM array scripts and say how to submit them")
    given = parser.parse_args()
    devices = [one for one in given.devices.split(",") if one]
    if given.at_once < 1 or (devices and given.at_once > len(devices)):
        raise InputError(f"--at-once: got {given.at_once}; give 1 or more, and at most as many as --devices")
    grid = read_grid(given.grid, given.quick)
    sweep = Sweep(grid, given.at_once, given.threads, shlex.split(given.launcher), devices)
    only = _only(grid, given)
    sweep.check()
    if given.array:
        scripts, submit = write_arrays(grid, _of_each_run(given), given.at_once, sys.executable, only)
        print(f"wrote {', '.join(map(str, scripts))}\nsubmit: {submit}")
        return 0
    if given.dry_run:
        rows = sweep.listed(only)
        for run, state in rows:
            print(f"{run.name}: {state}\n  {shlex.join(sweep.command(run))}")
        print(f"{len(rows)} runs, {sum(state == 'finished' for _, state in rows)} finished")
        return 0
    heeded = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]  # nohup has a SIGHUP ignored
    before = {one: signal.signal(one, lambda *_: sweep.jobs.stop()) for one in heeded}
    try:
        sweep.write_list()
        sweep.run_all(only, given.minutes)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return _tell(sweep, alone=given.run is not None, page=given.page)


def _of_each_run(given: argparse.Namespace) -> list[str]:
    """Options that a task of an array takes as well."""
    if given.devices or given.minutes != float("inf"):
        raise InputError(
            "--array: SLURM gives devices and time (sbatch --gres, --time); leave out --devices, --minutes"
        )
    told = {"--launcher": given.launcher, "--threads": given.threads}
    return [*(["--quick"] if given.quick else []), *(f"{name}={value}" for name, value in told.items() if value)]


def _only(grid: Grid, given: argparse.Namespace) -> set[str] | None:
    names = [run.name for run in grid.every()]
    patterns = [given.run] if given.run else given.only
    if not patterns:
        return None
    found = {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        raise InputError(f"--{'run' if given.run else 'only'}: no run of {grid.path} is called {' or '.join(patterns)}")
    if given.run and any(resolved(grid, run) is None for run in grid.runs if run.name == given.run):
        raise InputError(f"--run {given.run}: its trials are not finished; run them first (--dry-run lists them)")
    return found


def _tell(sweep: Sweep, alone: bool, page: Path | None) -> int:
    """What has come out: the table over seeds, what is left, what failed."""
    sweep.write_list()
    states = [state for _, state in sweep.listed()]
    if not alone:
        table = sweep.write_table()
        if table is not None:
            print(f"\n{table.with_suffix('.txt').read_text()}\nwrote {table}")
        if table is not None and page is not None:
            put_between_markers(page, f"\n{table.read_text()}", f"sweep {sweep.grid.path.stem}", "--page")
        print(f"{states.count('finished')} of {len(states)} runs are finished, {len(sweep.failures)} failed")
    for failure in sweep.failures:
        print(f"failed: {failure}", file=sys.stderr)
    if sweep.jobs.stopping or sweep.stopped:
        print(f"stopped ({len(sweep.stopped)} runs saved); give the same command again to go on", file=sys.stderr)
    if sweep.failures:
        return 1
    return STOPPED if sweep.jobs.stopping or sweep.stopped else 0


if __name__ == "__main__":
    raise SystemExit(main())
