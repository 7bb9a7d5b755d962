"""Does the embedded world teach? python -m benchmarks.embedded_world --world DIR --out DIR [--only GROUP ...]

Runs the study's runs one after another through launch/train_multitask.py, then writes its tables and charts to
docs/embedded_world.md. A run with a scores.json is finished and not run again; an interrupted one goes on from its
checkpoint: to go on after whatever stopped it, give the same command again. Two of these commands may run side by side.

Before it: python -m multitask_vl.synthetic.build --out DIR, launch/extract_features.py with configs/quickstart.yaml and
with configs/controls/random_clip.yaml, python -m benchmarks.symbolic_store --world DIR.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.embedded_runs import StudyRun, all_runs
from benchmarks.embedded_subset import write_subset
from multitask_vl.errors import InputError, exits_cleanly

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("main", "routed", "rates", "steps", "data", "rank", "methods")


def unfinished(runs: Sequence[StudyRun], out: Path) -> list[StudyRun]:
    """Those without a scores.json, in order."""
    return [run for run in runs if not (out / "runs" / run.name / "scores.json").is_file()]


@contextmanager
def claimed(run: StudyRun, out: Path) -> Iterator[bool]:
    """Whether this process may run it: not while another one does. The claim ends with the process, however it ends."""
    path = out / "claims" / run.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield bool(unfinished([run], out))


def run_one(run: StudyRun, world: Path, out: Path, threads: int) -> int:
    """Run it, its output in ``out/logs``, and add what it cost to ``out/costs``; returns its exit code."""
    log, cost = out / "logs" / f"{run.name}.log", out / "costs" / f"{run.name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    cost.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(cost.read_text()) if cost.is_file() else {"cpu_s": 0.0, "wall_s": 0.0}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, *run.words(world, out)], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    row = {
        "exit": code,
        "cpu_s": round(before["cpu_s"] + usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(before["wall_s"] + time.monotonic() - started, 1),
        "threads": threads,
    }
    cost.write_text(json.dumps(row) + "\n")
    return code


def run_all(runs: Sequence[StudyRun], world: Path, out: Path, threads: int, at_once: int, minutes: float) -> list[str]:
    """Run what is unfinished, ``at_once`` at a time; begin none after ``minutes``. Returns a line for each failure."""
    started, failures = time.monotonic(), []

    def go(run: StudyRun) -> None:
        if time.monotonic() - started > 60 * minutes:
            return
        with claimed(run, out) as mine:
            if not mine:
                return
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            code = run_one(run, world, out, threads)
        if code:
            failures.append(f"{run.name}: exit code {code}, see {out}/logs/{run.name}.log")
            print(failures[-1], file=sys.stderr, flush=True)

    todo = unfinished(runs, out)
    for share in sorted({run.share for run in todo} - {1}):
        write_subset(world, out / "subsets" / f"1_of_{share}", share)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(go, todo))
    return failures


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder of the built world with its stores")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study's runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of embedded_world.md")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="run only these groups")
    parser.add_argument("--shorter", type=int, default=1, help="divide all steps by this, to try the study itself")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--no-runs", action="store_true", help="only write the page, of what has finished")
    options = parser.parse_args(argv)
    world, out = options.world.absolute(), options.out.absolute()
    runs = all_runs(options.shorter)
    failures = []
    if not options.no_runs:
        if not (world / "features.h5").is_file():
            raise InputError(f"--world {world}: no features.h5 there; build it first: see --help")
        chosen = [run for run in runs if run.group in options.only]
        failures = run_all(chosen, world, out, options.threads, options.at_once, options.minutes)
    from benchmarks.embedded_tables import write_page  # matplotlib takes a second to import

    print(f"wrote {write_page(runs, out, options.docs)}; {len(unfinished(runs, out))} of {len(runs)} runs to go")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
