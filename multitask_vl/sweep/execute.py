"""How are the runs of a grid carried out: trials, then the rest, several at once; what failed is told at the end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from multitask_vl.config import differences, load_config
from multitask_vl.errors import InputError
from multitask_vl.programs import HOME
from multitask_vl.storage.atomic import write_whole
from multitask_vl.sweep.grid import Grid, GridRun
from multitask_vl.sweep.jobs import STOPPED, Jobs
from multitask_vl.sweep.selection import resolved

PROGRAM = HOME / "launch" / "train_multitask.py"


class Sweep:
    """The runs of a grid, and how they are started.

    Args:
        grid: says which.
        at_once: runs at a time.
        threads: of each run; None: the cores of this machine, shared out.
        launcher: words before the training script; None: this Python.
        devices: what is given to CUDA_VISIBLE_DEVICES, one a run; empty: as it is.
    """

    def __init__(
        self,
        grid: Grid,
        at_once: int = 1,
        threads: int | None = None,
        launcher: Sequence[str] | None = None,
        devices: Sequence[str] = (),
    ):
        self.grid, self.at_once = grid, at_once
        self.jobs = Jobs(grid.out, Path.cwd(), threads or max(1, (os.cpu_count() or 1) // at_once))
        self.launcher = list(launcher or [sys.executable])
        self.failures: list[str] = []
        self.stopped: list[str] = []
        self._free: SimpleQueue[str] = SimpleQueue()
        for device in devices:
            self._free.put(device)
        self._devices = bool(devices)

    def command(self, run: GridRun) -> list[str]:
        """The command line of a run."""
        script = [short(PROGRAM), "--config", short(self.grid.base)]
        chosen = [f"{self.grid.select.key}=CHOSEN"] if run.open else []
        return [*self.launcher, *script, *self.grid.words(run), *chosen, "training.resume=auto"]

    def check(self) -> None:
        """Whether what has finished is what the grid says now.

        Raises:
            InputError: runs were made by other settings, which a table would mix with those of now.
        """
        now = [run for run in (resolved(self.grid, one) for one in self.grid.every()) if run is not None]
        other: dict[str, list[str]] = {}
        for run in {one.name: one for one in now}.values():
            made_by = self.grid.out / "runs" / run.name / "resolved.yaml"
            if self.jobs.finished(run.name) and made_by.is_file():
                changed = differences(
                    load_config(made_by), load_config(self.grid.base, self.grid.words(run)), measured=True
                )
                other |= {run.name: changed} if changed else {}
        if other:
            name, changed = next(iter(other.items()))
            folders = " ".join(short(self.grid.out / "runs" / one) for one in other)
            raise InputError(
                f"{self.grid.path}: {len(other)} runs have finished with other settings than it has now, such as "
                f"{name}: {'; '.join(changed)}. Name another 'out', or remove them, and they are run again: rm -r "
                f"{folders}"
            )

    def run_all(self, only: Collection[str] | None = None, minutes: float = float("inf")) -> None:
        """Carry out what is not finished: all trials before the runs whose setting they choose.

        Args:
            only: names of runs; the trials of theirs are not started with them. None: everything.
            minutes: begin no run after so long.
        """
        started = time.monotonic()

        def go(run: GridRun) -> None:
            if not self.jobs.stopping and time.monotonic() - started < 60 * minutes:
                self._one(run)

        for part in self.grid.parts():
            wanted = [run for run in part if only is None or run.name in only]
            with ThreadPoolExecutor(self.at_once) as pool:
                list(pool.map(go, wanted))

    def _one(self, open_run: GridRun) -> None:
        run = resolved(self.grid, open_run)
        if run is None:
            return  # its trials failed, or another process is at them
        with self.jobs.claimed(run.name) as claim:
            if claim is None:
                return
            device = self._free.get() if self._devices else None
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            try:
                environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
                code = self.jobs.run(run.name, self.command(run), claim, environment)
            finally:
                if device is not None:
                    self._free.put(device)
        if code == STOPPED:
            self.stopped.append(run.name)
        elif code and not self.jobs.stopping:
            told = f"exit code {code}" if code > 0 else f"signal {-code}"
            self.failures.append(
                f"{run.name}: {told}: {self.jobs.last_words(run.name)}; see {short(self.jobs.log(run.name))}"
            )
            print(self.failures[-1], file=sys.stderr, flush=True)

    def listed(self, only: Collection[str] | None = None) -> list[tuple[GridRun, str]]:
        """Every run (whose name in the grid is among ``only``) as it stands, and whether it is finished or to do."""
        rows = []
        for run in self.grid.every():
            if only is not None and run.name not in only:
                continue
            now = resolved(self.grid, run)
            if now is None:
                rows.append((run, f"after its trials of {self.grid.select.key}"))
            else:
                rows.append((now, "finished" if self.jobs.finished(now.name) else "to do"))
        return rows

    def write_list(self) -> Path:
        """``runs.json``: name, options, group, state and command of every run, for whoever makes tables of them.

        The runs that are reported come last and say so; under a choice the best trial is one of them as well.
        """
        reported = {run.name for run in self.grid.runs}
        rows = [
            {
                "name": run.name,
                "group": run.group,
                "options": dict(run.options),
                "value": run.value,
                "reported": once.name in reported,
                "state": state,
                "command": shlex.join(["python", *self.command(run)[len(self.launcher) :]]),
            }
            for once, (run, state) in zip(self.grid.every(), self.listed(), strict=True)
        ]
        write_whole(self.grid.out / "runs.json", json.dumps(rows, indent=1) + "\n")
        return self.grid.out / "runs.json"

    def write_table(self) -> Path | None:
        """``table.md`` and ``table.csv`` over the finished runs, mean and deviation over seeds; None without any."""
        done = [resolved(self.grid, run) for run in self.grid.runs]
        names = dict.fromkeys(run.name for run in done if run is not None and self.jobs.finished(run.name))
        if not names:
            return None
        folders = [str(self.grid.out / "runs" / name) for name in names]
        for form, ending in (("markdown", "md"), ("csv", "csv"), ("text", "txt")):
            # reports stand beside everything else and are asked as a user asks them
            words = [sys.executable, "-m", "multitask_vl.reports.tables", *folders, "--format", form]
            made = subprocess.run(words, capture_output=True, text=True, check=False)
            if made.returncode:
                print(made.stderr, file=sys.stderr, end="")
                return None
            write_whole(self.grid.out / f"table.{ending}", made.stdout)
        return self.grid.out / "table.md"


def short(path: Path) -> str:
    """A path as one types it here: relative where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
