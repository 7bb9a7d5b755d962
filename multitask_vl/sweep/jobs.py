"""How is one run of many carried out: claimed by one process, as a program of its own with a log, and its cost kept."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from multitask_vl.storage.atomic import write_whole

STOPPED = 75
"""Exit code of a run that a signal ended early and that was saved: the same command goes on with it."""


class Jobs:
    """Runs under one folder: ``runs/NAME``, ``logs/NAME.log``, ``costs/NAME.json``, ``claims/NAME``.

    Args:
        out: the folder.
        cwd: where the programs run.
        threads: of each of them.
    """

    def __init__(self, out: Path, cwd: Path, threads: int):
        self.out, self.cwd, self.threads = out, cwd, threads
        self.stopping = False
        self._running: set[subprocess.Popen] = set()

    def finished(self, name: str) -> bool:
        """Whether a run has come to its end: that is when it writes its scores."""
        return (self.out / "runs" / name / "scores.json").is_file()

    @contextmanager
    def claimed(self, name: str) -> Iterator[IO | None]:
        """The claim to an unfinished run; None while another process has it, and when it is finished.

        It is a lock on an open file. The run's own program inherits it (see `run`), so that it lasts until both have
        ended, however they end: a sweep that is killed and started again leaves alone what still runs.
        """
        path = self.out / "claims" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield None if self.finished(name) else file

    def run(self, name: str, command: Sequence[str], claim: IO, environment: Mapping[str, str] = {}) -> int:
        """Run a command to its end, its output added to the log, its cost to that of earlier tries.

        Returns:
            its exit code, negative for a signal.
        """
        log, cost = self.log(name), self.out / "costs" / f"{name}.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        cost.parent.mkdir(parents=True, exist_ok=True)
        before = self._cost(cost)
        count = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, **environment}
        started = time.monotonic()
        with log.open("a") as file:
            process = subprocess.Popen(
                list(command), cwd=self.cwd, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                pass_fds=(claim.fileno(),),
                start_new_session=True,  # a Ctrl-C is for the sweep, which asks its runs to save
            )  # fmt: skip
            self._running.add(process)
            if self.stopping:  # asked for between the claim and here
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
        write_whole(cost, json.dumps(row) + "\n")
        return code

    def _cost(self, path: Path) -> dict[str, float]:
        """Of earlier tries; nothing where a death cut the file short."""
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return {"cpu_s": 0.0, "wall_s": 0.0}

    def stop(self) -> None:
        """Begin nothing more, and ask what runs to save and end."""
        self.stopping = True
        for process in list(self._running):
            process.terminate()

    def log(self, name: str) -> Path:
        """What a run said."""
        return self.out / "logs" / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The line of a log that says most about why a run ended: its last error, else its last line."""
        lines = [line.strip() for line in self.log(name).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["nothing was said"])[-1][:300]
