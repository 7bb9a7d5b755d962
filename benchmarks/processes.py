"""Two processes with one thread each, compared with one process: python -m benchmarks.processes DATA

Trains the same steps on the same examples with launch/train_multitask.py in three layouts, which alternate, and adds up
the fastest time of each step. Waiting for data is included, startup and saving are not. DATA is a folder written by
`multitask-vl make-synthetic` with its features; --config and key=value overrides select another run, for example a
larger backbone. A run counts only if its log confirms the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from multitask_vl.reports.table import Column, Table, render

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = {
    (1, 1): "one process, one thread",
    (1, 2): "one process, two threads",
    (2, 1): "two processes, one thread each",
}
"""(processes, threads per process) -> label."""
BASELINE = (1, 2)
WARM_UP = 5
"""Number of first steps that are not counted."""
COMMON = (
    "training.log_steps=1", "training.checkpoint_steps=null", "evaluation.eval_splits=[]", "evaluation.final_splits=[]",
    "tracking.trackers=[]",
)  # fmt: skip


def step_seconds(config: Path, overrides: Sequence[str], processes: int, threads: int) -> dict[int, float]:
    """Step -> its seconds in one run, without the warm-up steps."""
    with tempfile.TemporaryDirectory() as folder:
        script = ["launch/train_multitask.py", "--config", str(config), *COMMON, *overrides, f"run_dir={folder}/run"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), *script]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or f"on {processes} x cpu" not in done.stderr:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["time"]["step_s"] for row in rows if "time" in row and row["step"] > WARM_UP}


def fastest(rounds: Sequence[Mapping[int, float]]) -> float:
    """Total seconds of all steps, each at its fastest over the rounds."""
    return sum(min(times) for times in zip(*(one.values() for one in rounds), strict=True))


def table(measured: Mapping[tuple[int, int], Sequence[Mapping[int, float]]], steps: int, cores: int | None) -> Table:
    """One row per layout, with its speed relative to one process with two threads."""
    seconds = {layout: fastest(rounds) for layout, rounds in measured.items()}
    columns = (Column("layout", "text"), Column("ms/step", "text"), Column("speed", "text"))
    rows = tuple(
        (LAYOUTS[layout], f"{1000 * total_s / (steps - WARM_UP):.1f}", f"{seconds[BASELINE] / total_s:.2f}")
        for layout, total_s in seconds.items()
    )
    rounds = len(next(iter(measured.values())))
    notes = (f"Steps {WARM_UP + 1} to {steps}, each at its fastest of {rounds} rounds; {cores} cores.",)
    return Table("Processes and threads", columns, rows, notes=notes)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "configs" / "examples" / "quickstart.yaml"
    parser.add_argument("data", type=Path, help="data_dir of the run")
    parser.add_argument("--config", type=Path, default=default, help="configuration (default: the quickstart)")
    parser.add_argument("--steps", type=int, default=60, help="training steps per run (default: 60)")
    parser.add_argument("--rounds", type=int, default=2, help="runs per layout (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides")
    args = parser.parse_intermixed_args()
    overrides = [f"data_dir={args.data.resolve()}", f"training.max_steps={args.steps}", *args.overrides]
    measured: dict[tuple[int, int], list[dict[int, float]]] = {layout: [] for layout in LAYOUTS}
    for _ in range(args.rounds):
        for layout, rounds in measured.items():
            rounds.append(step_seconds(args.config.resolve(), overrides, *layout))
    print(render(table(measured, args.steps, os.cpu_count()), "markdown"))


if __name__ == "__main__":
    main()
