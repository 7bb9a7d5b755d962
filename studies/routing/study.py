"""Tables of the routing study: python -m studies.routing.study [--quick] [--no-runs]

Reads the finished runs of `multitask-vl sweep configs/sweeps/routing.yaml`, adds their results to
studies/routing/record.json, and writes the tables of docs/routing_study.md. --quick reads the smaller form of the study
(`multitask-vl sweep configs/sweeps/routing.yaml --smoke`). --no-runs only writes the page from the record.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError, cli_errors
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.reports.run import Run, read_run
from multitask_vl.sweep.grid import Grid, GridRun
from multitask_vl.sweep.jobs import Jobs
from multitask_vl.sweep.read_grid import read_grid
from multitask_vl.sweep.selection import apply_selection, select_value
from studies.records import commit_label
from studies.routing.record import RECORD, RunResult, Study, baseline, read_record, write_record
from studies.routing.tables import write_page

ROOT = Path(__file__).resolve().parents[2]
GRID = ROOT / "configs" / "sweeps" / "routing.yaml"
SPLIT = "test"
ExampleScores = dict[str, dict[str, float]]
"""Task -> example id -> score."""


def read_study(grid: Grid) -> Study | None:
    """Results of the finished runs of a sweep; None if no run has finished."""
    jobs = Jobs(grid.out, ROOT, threads=1)
    selected = (apply_selection(grid, run) for run in grid.runs)
    done = {run.name: run for run in selected if run and jobs.finished(run.name)}
    if not done:
        return None
    folders = {name: read_run(grid.out / "runs" / name) for name in done}
    costs = [json.loads(path.read_text()) for path in sorted((grid.out / "costs").glob("*.json"))]
    groups: dict[str, list[str]] = {}
    for name, run in done.items():
        groups.setdefault(run.group, []).append(name)
    selections = {group: select_value(grid, group) for group in groups} if grid.select else {}
    return Study(
        runs={name: _run_result(grid, run, folders[name]) for name, run in done.items()},
        paired=_differences(groups, done, folders),
        trials={
            group: {f"{one['value']:g}": round(one["average"], 2) for one in selection["averages"]}
            for group, selection in selections.items()
        },
        wall_s=round(sum(cost["wall_s"] for cost in costs), 1),
        cpu_s=round(sum(cost["cpu_s"] for cost in costs), 1),
        num_commands=len(costs),
        num_planned=len(grid.runs),
    )


def _run_result(grid: Grid, run: GridRun, folder: Run) -> RunResult:
    split = folder.scores.splits[SPLIT]
    cost = json.loads((grid.out / "costs" / f"{run.name}.json").read_text())
    axes = ("method", "routing", "seed", "include")
    return RunResult(
        group=run.group,
        options={axis: option for axis, option in run.options.items() if axis in axes},
        lr=run.value,
        scores={task: round(one.value, 3) for task, one in split.tasks.items()} | {"average": round(split.average, 3)},
        trainable=folder.scores.parameters.trainable,
        total=folder.scores.parameters.total,
        step_ms=round(1000 * statistics.median(row.wall_s for row in folder.training), 1),
        cpu_s=cost["cpu_s"],
        steps=folder.scores.step,
        commit=commit_label(folder.record),
    )


def _differences(
    groups: dict[str, list[str]], done: dict[str, GridRun], folders: dict[str, Run]
) -> dict[str, dict[str, list[float]]]:
    """Differences per example of every row whose baseline has the same number of finished runs."""
    scores = {name: _example_scores(folder) for name, folder in folders.items()}
    differences = {}
    for group, names in groups.items():
        base = groups.get(baseline(done[names[0]].options), ())
        if len(base) == len(names) and tuple(base) != tuple(names):
            differences[group] = _paired([scores[name] for name in base], [scores[name] for name in names])
    return differences


def _example_scores(run: Run) -> ExampleScores:
    return {task: {one.id: one.score for one in run.predictions(task, SPLIT)} for task in run.tasks(SPLIT)}


def _paired(base: Sequence[ExampleScores], routed: Sequence[ExampleScores]) -> dict[str, list[float]]:
    """Task -> mean difference over examples, each averaged over seeds, and its interval."""
    differences = {}
    for task, ids in routed[0].items():
        pairs = [(one[task], other[task]) for one, other in zip(base, routed, strict=True)]
        per_example = [statistics.mean(other[id_] - one[id_] for one, other in pairs) for id_ in ids]
        interval = bootstrap_mean_ci(per_example, "examples")
        differences[task] = [round(value, 3) for value in (statistics.mean(per_example), interval.low, interval.high)]
    return differences


@cli_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Read the runs and write record and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="read the smaller form of the study")
    parser.add_argument("--no-runs", action="store_true", help="only write the page from the record")
    parser.add_argument("--grid", type=Path, default=GRID, help="sweep file (default: configs/sweeps/routing.yaml)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of routing_study.md (default: docs)")
    parser.add_argument("--record", type=Path, default=RECORD, help="record file (default: next to this module)")
    options = parser.parse_args(argv)
    studies = read_record(options.record)
    if not options.no_runs:
        found = read_study(grid := read_grid(options.grid, options.quick))
        if found is None:
            smoke = " --smoke" if options.quick else ""
            raise InputError(
                f"{grid.out}: no finished run of the study. Run: "
                f"multitask-vl sweep {options.grid}{smoke} --max-parallel 2"
            )
        studies["quick" if options.quick else "full"] = found
        write_record(options.record, dict(sorted(studies.items())))
    if page := write_page(studies, options.docs):
        print(f"wrote {page}")
    for name, study in studies.items():
        print(f"{name}: {len(study.runs)} of {study.num_planned} runs are finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
