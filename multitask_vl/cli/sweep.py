"""Run a grid of training runs and tabulate it.

    multitask-vl sweep configs/sweeps/routing.yaml --max-parallel 2

Finished runs are skipped and interrupted ones resumed: run the same command again after any interruption, and on as
many machines with the same folder as you like.

Exit codes: 0 nothing failed; 1 a run failed; 2 bad input; 75 a signal ended it early and its runs have saved their
state.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import EXIT_FAILURE, EXIT_PREEMPTED, InputError
from multitask_vl.logging import get_logger

if TYPE_CHECKING:
    from multitask_vl.sweep.execute import Sweep
    from multitask_vl.sweep.grid import Grid

logger = get_logger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Preemption, Ctrl-C, a closed terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("grid", type=Path, help="YAML file of the sweep, such as configs/sweeps/routing.yaml")
    parser.add_argument("--smoke", action="store_true", help="run the smaller form that the file describes")
    parser.add_argument(
        "--max-parallel", type=int, default=1, metavar="N", help="runs at the same time (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads per run (default: cores / max-parallel)")
    parser.add_argument("--devices", default="", metavar="0,1", help="GPUs; each is used by one run at a time")
    parser.add_argument("--launcher", default="", help='launcher prefix, such as "torchrun --nproc_per_node 2"')
    parser.add_argument("--filter", nargs="+", metavar="PATTERN", help="only runs whose name matches, such as '*mul*'")
    parser.add_argument("--run", metavar="NAME", help="only this run, as a task of a SLURM array does")
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), metavar="MINUTES", help="start no run after this many minutes"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands")
    parser.add_argument(
        "--update-page", type=Path, metavar="FILE", help="also write the table between its markers in a Markdown page"
    )
    parser.add_argument("--array", action="store_true", help="write SLURM array scripts and print how to submit them")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    devices = [device for device in args.devices.split(",") if device]
    if args.max_parallel < 1 or (devices and args.max_parallel > len(devices)):
        raise InputError(
            f"--max-parallel: got {args.max_parallel}; must be 1 or more, and at most the number of devices"
        )
    from multitask_vl.sweep.execute import Sweep
    from multitask_vl.sweep.read_grid import read_grid

    grid = read_grid(args.grid, args.smoke)
    sweep = Sweep(grid, args.max_parallel, args.threads, shlex.split(args.launcher), devices)
    only = _selected_names(grid, args)
    sweep.check_finished()
    if args.array:
        from multitask_vl.sweep.slurm import write_arrays

        scripts, submit = write_arrays(grid, _array_options(args), args.max_parallel, sys.executable, only)
        print(f"wrote {', '.join(map(str, scripts))}\nsubmit: {submit}")
        return 0
    if args.dry_run:
        rows = sweep.list_runs(only)
        for entry, state in rows:
            print(f"{entry.name}: {state}\n  {shlex.join(sweep.command(entry))}")
        print(f"{len(rows)} runs, {sum(state == 'finished' for _, state in rows)} finished")
        return 0
    with _terminate_on_signal(sweep):
        sweep.write_run_list()
        sweep.run_all(only, args.time_limit)
    return _summarize(sweep, table=args.run is None, page=args.update_page)


@contextmanager
def _terminate_on_signal(sweep: Sweep) -> Iterator[None]:
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, lambda *_: sweep.jobs.terminate()) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _array_options(args: argparse.Namespace) -> list[str]:
    """Options that the tasks of an array take as well."""
    if args.devices or args.time_limit != float("inf"):
        raise InputError(
            "--array: SLURM sets devices and time (sbatch --gres, --time); omit --devices and --time-limit"
        )
    values = {"--launcher": args.launcher, "--threads": args.threads}
    return [*(["--smoke"] if args.smoke else []), *(f"{name}={value}" for name, value in values.items() if value)]


def _selected_names(grid: Grid, args: argparse.Namespace) -> set[str] | None:
    from multitask_vl.sweep.selection import apply_selection

    option, patterns = ("--run", [args.run]) if args.run else ("--filter", args.filter)
    if not patterns:
        return None
    names = {run.name for run in grid.all_runs()}
    found = {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        raise InputError(f"{option}: no run of {grid.path} is called {' or '.join(patterns)}")
    if args.run and any(apply_selection(grid, run) is None for run in grid.runs if run.name == args.run):
        raise InputError(f"--run {args.run}: its trials are not finished; run them first (--dry-run lists them)")
    return found


def _summarize(sweep: Sweep, table: bool, page: Path | None) -> int:
    """Write the run list and the table over seeds; print what is left and what failed."""
    sweep.write_run_list()
    states = [state for _, state in sweep.list_runs()]
    if table:
        _write_tables(sweep, page)
        print(f"{states.count('finished')} of {len(states)} runs are finished, {len(sweep.failures)} failed")
    for failure in sweep.failures:
        print(f"failed: {failure}", file=sys.stderr)
    stopped = sweep.jobs.stopping or sweep.stopped
    if stopped:
        logger.warning(f"stopped, {len(sweep.stopped)} runs saved; run the same command again to continue")
    if sweep.failures:
        return EXIT_FAILURE
    return EXIT_PREEMPTED if stopped else 0


def _write_tables(sweep: Sweep, page: Path | None) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.txt`` over the finished runs: mean and deviation over seeds."""
    folders = sweep.finished_folders()
    if not folders:
        return
    from multitask_vl.cli.compare import average_seeds
    from multitask_vl.reports.markers import replace_section
    from multitask_vl.storage.atomic import atomic_write

    tables = {
        suffix: average_seeds(folders, form) for form, suffix in (("markdown", "md"), ("csv", "csv"), ("text", "txt"))
    }
    for suffix, text in tables.items():
        atomic_write(sweep.grid.out / f"table.{suffix}", text + "\n")
    print(f"\n{tables['txt']}\n\nwrote {sweep.grid.out / 'table.md'}")
    if page is not None:
        replace_section(page, f"\n{tables['md']}\n", f"sweep {sweep.grid.path.stem}", "--update-page")
