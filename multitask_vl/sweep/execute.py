"""Execution of a sweep: trials first, then the other runs, several in parallel."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from multitask_vl.config import differences, load_config
from multitask_vl.errors import EXIT_PREEMPTED, InputError
from multitask_vl.logging import get_logger
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.sweep.grid import Grid, GridRun
from multitask_vl.sweep.jobs import Jobs
from multitask_vl.sweep.selection import apply_selection

logger = get_logger(__name__)
TRAIN = ["-m", "multitask_vl", "train"]
"""The training command after ``python`` or a launcher; works from a checkout and from an installed package."""


class Sweep:
    """The runs of a grid, and how they are started.

    Args:
        grid: the runs.
        max_parallel: number of runs at the same time.
        threads: CPU threads per run; None: the cores of this machine divided by ``max_parallel``.
        launcher: command before the training module; None: this Python.
        devices: values of CUDA_VISIBLE_DEVICES, one per run; empty: leave it unchanged.

    Attributes:
        failures: one message per run that failed.
        stopped: names of the runs that saved their state and ended on a signal.
    """

    def __init__(
        self,
        grid: Grid,
        max_parallel: int = 1,
        threads: int | None = None,
        launcher: Sequence[str] | None = None,
        devices: Sequence[str] = (),
    ):
        self.grid, self.max_parallel = grid, max_parallel
        self.jobs = Jobs(grid.out, Path.cwd(), threads or max(1, (os.cpu_count() or 1) // max_parallel))
        self.launcher = list(launcher or [sys.executable])
        self.failures: list[str] = []
        self.stopped: list[str] = []
        self._free_devices: SimpleQueue[str] = SimpleQueue()
        for device in devices:
            self._free_devices.put(device)
        self._has_devices = bool(devices)

    def command(self, run: GridRun) -> list[str]:
        """The command line of a run."""
        return [*self.launcher, *TRAIN, *self._arguments(run)]

    def _arguments(self, run: GridRun) -> list[str]:
        selected = [f"{self.grid.select.key}=SELECTED"] if run.needs_selection else []
        base = relative_path(self.grid.base)
        return ["--config", base, *self.grid.cli_args(run), *selected, "training.resume=auto"]

    def check_finished(self) -> None:
        """Check that finished runs have the settings that the grid has now.

        Raises:
            InputError: some have others, and a table would mix both.
        """
        runs = [run for run in (apply_selection(self.grid, run) for run in self.grid.all_runs()) if run is not None]
        outdated: dict[str, list[str]] = {}
        for run in {run.name: run for run in runs}.values():
            resolved = self.grid.out / "runs" / run.name / "resolved.yaml"
            if self.jobs.finished(run.name) and resolved.is_file():
                current = load_config(self.grid.base, self.grid.cli_args(run))
                changed = differences(load_config(resolved), current, include_metrics=True)
                outdated |= {run.name: changed} if changed else {}
        if outdated:
            name, changed = next(iter(outdated.items()))
            folders = " ".join(relative_path(self.grid.out / "runs" / run) for run in outdated)
            raise InputError(
                f"{self.grid.path}: {len(outdated)} runs have finished with other settings than it has now, such as "
                f"{name}: {'; '.join(changed)}. Choose another 'out', or remove them to run them again: rm -r {folders}"
            )

    def run_all(self, only: Collection[str] | None = None, time_limit: float = float("inf")) -> None:
        """Run what is not finished: all trials before the runs whose setting they select.

        Args:
            only: names of runs; their trials are not started with them. None: everything.
            time_limit: start no run after this many minutes.
        """
        started = time.monotonic()

        def start(run: GridRun) -> None:
            if not self.jobs.stopping and time.monotonic() - started < 60 * time_limit:
                self._run_one(run)

        for runs in self.grid.ready_and_pending():
            wanted = [run for run in runs if only is None or run.name in only]
            with ThreadPoolExecutor(self.max_parallel) as pool:
                list(pool.map(start, wanted))

    def _run_one(self, unselected: GridRun) -> None:
        run = apply_selection(self.grid, unselected)
        if run is None:
            return  # its trials failed, or another process runs them
        with self.jobs.try_lock(run.name) as lock:
            if lock is None:
                return
            device = self._free_devices.get() if self._has_devices else None
            logger.info(f"{time.strftime('%H:%M:%S')} {run.name}")
            try:
                environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
                code = self.jobs.run(run.name, self.command(run), lock, environment)
            finally:
                if device is not None:
                    self._free_devices.put(device)
        if code == EXIT_PREEMPTED:
            self.stopped.append(run.name)
        elif code and not self.jobs.stopping:
            cause = f"exit code {code}" if code > 0 else f"signal {-code}"
            log = relative_path(self.jobs.log(run.name))
            self.failures.append(f"{run.name}: {cause}: {self.jobs.last_error(run.name)}; see {log}")
            logger.warning(self.failures[-1])

    def list_runs(self, only: Collection[str] | None = None) -> list[tuple[GridRun, str]]:
        """Every run (whose name in the grid is in ``only``) and its state: finished, pending or waiting for trials."""
        rows = []
        for unselected in self.grid.all_runs():
            if only is not None and unselected.name not in only:
                continue
            run = apply_selection(self.grid, unselected)
            if run is None:
                rows.append((unselected, f"waits for trials of {self.grid.select.key}"))
            else:
                rows.append((run, "finished" if self.jobs.finished(run.name) else "pending"))
        return rows

    def write_run_list(self) -> Path:
        """Write ``runs.json``: name, options, group, state and command of every run.

        Reported runs come last and are marked; with a selection, the best trial can be one of them.
        """
        reported = {run.name for run in self.grid.runs}
        rows = [
            {
                "name": run.name,
                "group": run.group,
                "options": dict(run.options),
                "value": run.value,
                "reported": unselected.name in reported,
                "state": state,
                "command": shlex.join(["multitask-vl", "train", *self._arguments(run)]),
            }
            for unselected, (run, state) in zip(self.grid.all_runs(), self.list_runs(), strict=True)
        ]
        path = self.grid.out / "runs.json"
        atomic_write(path, json.dumps(rows, indent=1) + "\n")
        return path

    def finished_folders(self) -> list[Path]:
        """Folders of the finished runs that are reported."""
        runs = [apply_selection(self.grid, run) for run in self.grid.runs]
        names = dict.fromkeys(run.name for run in runs if run is not None and self.jobs.finished(run.name))
        return [self.grid.out / "runs" / name for name in names]


def relative_path(path: Path) -> str:
    """A path relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
