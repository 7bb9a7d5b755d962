"""Does routing help on the embedded world? python -m studies.routing.study [--quick] [--no-runs]

Reads the finished runs of configs/sweeps/routing.yaml, which `python launch/sweep.py configs/sweeps/routing.yaml`
makes, keeps what the tables need in docs/study.json, a line each, and writes the tables of docs/study.md; with --quick,
of the smaller form, there and in README.md. With --no-runs: only the pages, of what is on record.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.reports.run import Run, read_run
from multitask_vl.sweep.grid import Grid, GridRun, read_grid
from multitask_vl.sweep.jobs import Jobs
from multitask_vl.sweep.selection import choose, resolved
from studies.routing.record import FILE, Scored, Study, baseline, read_record, write_record
from studies.routing.tables import write_pages
from studies.synthetic_world.results import version_of

ROOT = Path(__file__).resolve().parents[2]
GRID = ROOT / "configs" / "studies" / "routing.yaml"
SPLIT = "report"
Examples = dict[str, dict[str, float]]
"""Task -> id of an example -> its score."""


def read_study(grid: Grid) -> Study | None:
    """What has finished of a grid; None where nothing has."""
    jobs = Jobs(grid.out, ROOT, threads=1)
    done = {run.name: run for run in (resolved(grid, one) for one in grid.runs) if run and jobs.finished(run.name)}
    if not done:
        return None
    read = {name: read_run(grid.out / "runs" / name) for name in done}
    scores = {name: _examples(run) for name, run in read.items()}
    costs = [json.loads(path.read_text()) for path in sorted((grid.out / "costs").glob("*.json"))]
    groups: dict[str, list[str]] = {}
    for name, run in done.items():
        groups.setdefault(run.group, []).append(name)
    paired = {}
    for group, names in groups.items():
        base = groups.get(baseline(done[names[0]].options), ())
        if len(base) == len(names) and tuple(base) != tuple(names):
            paired[group] = _paired([scores[name] for name in base], [scores[name] for name in names])
    choices = {group: choose(grid, group) for group in groups} if grid.select else {}
    return Study(
        runs={name: _scored(grid, run, read[name]) for name, run in done.items()},
        paired=paired,
        rates={
            group: {f"{one['value']:g}": round(one["average"], 2) for one in choice["averages"]}
            for group, choice in choices.items()
        },
        wall_s=round(sum(cost["wall_s"] for cost in costs), 1),
        cpu_s=round(sum(cost["cpu_s"] for cost in costs), 1),
        commands=len(costs),
        planned=len(grid.runs),
    )


def _scored(grid: Grid, run: GridRun, read: Run) -> Scored:
    split = read.scores.splits[SPLIT]
    cost = json.loads((grid.out / "costs" / f"{run.name}.json").read_text())
    return Scored(
        group=run.group,
        options={
            axis: option for axis, option in run.options.items() if axis in ("method", "routing", "seed", "include")
        },
        rate=run.value,
        scores={task: round(one.value, 3) for task, one in split.tasks.items()} | {"average": round(split.average, 3)},
        trainable=read.scores.parameters.trainable,
        total=read.scores.parameters.total,
        step_ms=round(1000 * statistics.median(row.wall_s for row in read.training), 1),
        cpu_s=cost["cpu_s"],
        steps=read.scores.step,
        version=version_of(read.record),
    )


def _examples(run: Run) -> Examples:
    return {task: {one.id: one.score for one in run.predictions(task, SPLIT)} for task in run.tasks(SPLIT)}


def _paired(base: Sequence[Examples], ours: Sequence[Examples]) -> dict[str, list[float]]:
    """Task -> mean gain over examples, each the mean over seeds, and its interval."""
    found = {}
    for task, ids in ours[0].items():
        pairs = [(routed[task], plain[task]) for plain, routed in zip(base, ours, strict=True)]
        per_example = [statistics.mean(routed[id_] - plain[id_] for routed, plain in pairs) for id_ in ids]
        interval = interval_of_mean(per_example, "examples")
        found[task] = [round(value, 3) for value in (statistics.mean(per_example), interval.low, interval.high)]
    return found


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, read the runs, keep the record, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller form of the study")
    parser.add_argument("--no-runs", action="store_true", help="write the pages of what is on record")
    parser.add_argument("--grid", type=Path, default=GRID, help="the study (default configs/sweeps/routing.yaml)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of study.md and study.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="also gets the quick table")
    given = parser.parse_args(argv)
    record = given.docs / FILE
    studies = read_record(record)
    if not given.no_runs:
        found = read_study(grid := read_grid(given.grid, given.quick))
        if found is None:
            quick = " --quick" if given.quick else ""
            raise InputError(
                f"{grid.out}: no run of the study has finished there. Run: "
                f"python launch/sweep.py {given.grid}{quick} --at-once 2"
            )
        studies["quick" if given.quick else "full"] = found
        write_record(record, dict(sorted(studies.items())))
    for page in write_pages(studies, given.docs, given.readme):
        print(f"wrote {page}")
    for name, study in studies.items():
        print(f"{name}: {len(study.runs)} of {study.planned} runs have finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
