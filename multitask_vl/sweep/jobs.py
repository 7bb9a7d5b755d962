"""Runs as separate programs: locked, logged, with their cost recorded."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from multitask_vl.storage.atomic import atomic_write
from multitask_vl.storage.file_lock import FileLock, LockHeld


class Jobs:
    """Runs under one folder: ``runs/NAME``, ``logs/NAME.log``, ``costs/NAME.json``, ``locks/NAME.lock``.

    Args:
        out: the folder.
        cwd: working directory of the programs.
        threads: CPU threads of each program.

    Attributes:
        stopping: whether `terminate` was called.
    """

    def __init__(self, out: Path, cwd: Path, threads: int):
        self.out, self.cwd, self.threads = out, cwd, threads
        self.stopping = False
        self._running: set[subprocess.Popen] = set()

    def finished(self, name: str) -> bool:
        """Whether a run is complete: scores are written last."""
        return (self.out / "runs" / name / "scores.json").is_file()

    @contextmanager
    def try_lock(self, name: str) -> Iterator[FileLock | None]:
        """Lock an unfinished run; None if another process has it, or if it is finished.

        The program of the run inherits the lock (see `run`), so it lasts until both have ended, however they end: a
        sweep that was killed and started again leaves runs alone that are still in progress.
        """
        path = self.out / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(FileLock(path))
            except LockHeld:
                lock = None
            yield None if lock is None or self.finished(name) else lock

    def run(self, name: str, command: Sequence[str], lock: FileLock, environment: Mapping[str, str] = {}) -> int:
        """Run a command to its end; append its output to the log and add its cost to that of earlier attempts.

        Returns:
            its exit code, negative for a signal.
        """
        log, cost = self.log(name), self.out / "costs" / f"{name}.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        cost.parent.mkdir(parents=True, exist_ok=True)
        before = _read_cost(cost)
        count = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, **environment}
        started = time.monotonic()
        with log.open("a") as file:
            process = subprocess.Popen(
                list(command), cwd=self.cwd, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C reaches the sweep only, which asks its runs to save
            )  # fmt: skip
            self._running.add(process)
            if self.stopping:  # requested between the lock and here
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            self._running.discard(process)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        row = {
            "exit": code,
            "cpu_s": round(before["cpu_s"] + usage.ru_utime + usage.ru_stime, 1),
            "wall_s": round(before["wall_s"] + time.monotonic() - started, 1),
            "threads": self.threads,
        }
        atomic_write(cost, json.dumps(row) + "\n")
        return code

    def terminate(self) -> None:
        """Start nothing more, and ask running programs to save and end."""
        self.stopping = True
        for process in list(self._running):
            process.terminate()

    def log(self, name: str) -> Path:
        """The log file of a run."""
        return self.out / "logs" / f"{name}.log"

    def last_error(self, name: str) -> str:
        """The last error in a run's log, else its last line."""
        lines = [line.strip() for line in self.log(name).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1][:300]


def _read_cost(path: Path) -> dict[str, float]:
    """Cost of earlier attempts; zero without a valid file."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {"cpu_s": 0.0, "wall_s": 0.0}
