"""Does the embedded world teach? python -m studies.synthetic_world.study --world DIR --out DIR [--only GROUP ...]

Runs the study's runs one after another through launch/train_multitask.py, then writes its tables and charts to
docs/embedded_world.md, and settings and scores of what has finished to docs/embedded_world.json. What stands there, or
has a scores.json, is finished and not run again (--again runs what only stands there); an interrupted run goes on from
its checkpoint: to go on after whatever stopped it, give the same command again. Two of these commands may run side by
side.

Before it: python -m multitask_vl.synthetic.build --out DIR, launch/extract_features.py with configs/examples/quickstart.yaml and
with configs/controls/random_clip.yaml, python -m studies.synthetic_world.symbolic_store --world DIR.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.sweep.jobs import Jobs
from studies.synthetic_world.record import FILE, kept
from studies.synthetic_world.runs import StudyRun, all_runs
from studies.synthetic_world.subset import write_subset

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("main", "bounds", "routed", "rates", "steps", "data", "rank", "methods")


def unfinished(runs: Sequence[StudyRun], out: Path) -> list[StudyRun]:
    """Those without a scores.json, in order."""
    return [run for run in runs if not Jobs(out, ROOT, threads=1).finished(run.name)]


def run_all(runs: Sequence[StudyRun], world: Path, out: Path, threads: int, at_once: int, minutes: float) -> list[str]:
    """Run what is unfinished, ``at_once`` at a time; begin none after ``minutes``. Returns a line for each failure."""
    started, failures, jobs = time.monotonic(), [], Jobs(out, ROOT, threads)

    def go(run: StudyRun) -> None:
        if time.monotonic() - started > 60 * minutes:
            return
        with jobs.claimed(run.name) as claim:
            if claim is None:
                return
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            code = jobs.run(run.name, [sys.executable, *run.words(world, out)], claim)
        if code:
            failures.append(f"{run.name}: exit code {code}, see {jobs.log(run.name)}")
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
    parser.add_argument("--again", action="store_true", help="run what is on record, but has no folder in --out, again")
    parser.add_argument("--shorter", type=int, default=1, help="divide all steps by this, to try the study itself")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--no-runs", action="store_true", help="only write the page, of what has finished")
    options = parser.parse_args(argv)
    world, out = options.world.absolute(), options.out.absolute()
    runs = all_runs(options.shorter)
    record = (options.docs if options.shorter == 1 else out) / FILE
    known = set() if options.again else {one.run.name for found in kept(runs, out, record).values() for one in found}
    failures = []
    if not options.no_runs:
        if not (world / "features.h5").is_file():
            raise InputError(f"--world {world}: no features.h5 there; build it first: see --help")
        chosen = [run for run in runs if run.group in options.only and run.name not in known]
        failures = run_all(chosen, world, out, options.threads, options.at_once, options.minutes)
    from studies.synthetic_world.tables import write_page  # matplotlib takes a second to import

    results = kept(runs, out, record)
    page, done = write_page(runs, out, options.docs, results), sum(map(len, results.values()))
    print(f"wrote {page}; {len(runs) - done} of {len(runs)} runs to go")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
