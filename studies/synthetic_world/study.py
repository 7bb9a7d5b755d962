"""Run the study of the synthetic world: python -m studies.synthetic_world.study --world DIR --out DIR

Starts the runs through launch/train_multitask.py, adds their settings and scores to record.json in this folder, and
writes tables and charts to docs/synthetic_world.md. Recorded runs and runs with a scores.json are not repeated (--rerun
repeats recorded ones). After an interruption, the same command resumes. Several commands may share one --out.

Prepare the data first:
  multitask-vl make-synthetic --out DIR
  multitask-vl extract --config configs/examples/quickstart.yaml data_dir=DIR
  multitask-vl extract --config configs/controls/random_clip.yaml data_dir=DIR
  python -m studies.synthetic_world.symbolic_store --world DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from multitask_vl.errors import InputError, cli_errors
from multitask_vl.logging import configure_logging, get_logger
from multitask_vl.sweep.jobs import Jobs
from studies.synthetic_world.record import RECORD, update_record
from studies.synthetic_world.runs import StudyRun, all_runs
from studies.synthetic_world.subset import write_subset

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("main", "bounds", "routed", "rates", "steps", "data", "rank", "methods")
logger = get_logger(__name__)


def unfinished(runs: Sequence[StudyRun], out: Path) -> list[StudyRun]:
    """The runs without a scores.json, in order."""
    return [run for run in runs if not Jobs(out, ROOT, threads=1).finished(run.name)]


def run_all(
    runs: Sequence[StudyRun], world: Path, out: Path, threads: int, max_parallel: int, time_limit: float
) -> list[str]:
    """Run the unfinished runs.

    Args:
        threads: CPU threads per run.
        max_parallel: number of runs at a time.
        time_limit: minutes after which no further run starts.

    Returns:
        one line per failed run.
    """
    started, failures, jobs = time.monotonic(), [], Jobs(out, ROOT, threads)

    def start(run: StudyRun) -> None:
        if time.monotonic() - started > 60 * time_limit:
            return
        with jobs.try_lock(run.name) as lock:
            if lock is None:
                return
            logger.info(f"{time.strftime('%H:%M:%S')} {run.name}")
            code = jobs.run(run.name, [sys.executable, *run.cli_args(world, out)], lock)
        if code:
            failures.append(f"{run.name}: exit code {code}, see {jobs.log(run.name)}")
            logger.warning(failures[-1])

    todo = unfinished(runs, out)
    for divisor in sorted({run.train_divisor for run in todo} - {1}):
        write_subset(world, out / "subsets" / f"1_of_{divisor}", divisor)
    with ThreadPoolExecutor(max_parallel) as pool:
        list(pool.map(start, todo))
    return failures


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder of the synthetic dataset with its stores")
    parser.add_argument("--out", type=Path, required=True, help="output folder of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of synthetic_world.md (default: docs)")
    parser.add_argument("--record", type=Path, default=RECORD, help="record file (default: next to this module)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="run only these groups")
    parser.add_argument("--rerun", action="store_true", help="also run what is recorded but has no folder in --out")
    parser.add_argument(
        "--steps-divisor", type=int, default=1, help="divide all training steps by this number, to test the study"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run (default: 1)")
    parser.add_argument("--max-parallel", type=int, default=1, help="number of runs at a time (default: 1)")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="start no run after this many minutes")
    parser.add_argument("--no-runs", action="store_true", help="only write the page from finished and recorded runs")
    return parser.parse_args(argv)


@cli_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its record and page."""
    configure_logging()
    options = parse_args(argv)
    world, out = options.world.absolute(), options.out.absolute()
    runs = all_runs(options.steps_divisor)
    record = options.record if options.steps_divisor == 1 else out / RECORD.name
    recorded = {one.run.name for found in update_record(runs, out, record).values() for one in found}
    failures = []
    if not options.no_runs:
        if not (world / "features.h5").is_file():
            raise InputError(f"--world {world}: features.h5 not found; the commands that create it are in --help")
        known = set() if options.rerun else recorded
        chosen = [run for run in runs if run.group in options.groups and run.name not in known]
        failures = run_all(chosen, world, out, options.threads, options.max_parallel, options.time_limit)
    from studies.synthetic_world.tables import write_page  # imports matplotlib, which takes a second

    results = update_record(runs, out, record)
    page, done = write_page(runs, out, options.docs, results), sum(map(len, results.values()))
    print(f"wrote {page}; {done} of {len(runs)} runs are finished")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
