"""What do two cores give: two processes of one thread beside one process of two? python benchmarks/processes.py DATA

Trains the same steps on the same examples by the program itself in three ways, in turns, and adds up the fastest time
of each step (waiting for data included, starting and saving not). DATA is a world of `python -m
multitask_vl.synthetic.build` with its features; --config and key=value words take another run, such as a larger
backbone. A run counts only if its log says that there were as many processes as were asked for.
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
WAYS = {(1, 1): "one process, one thread", (1, 2): "one process, two threads", (2, 1): "two processes, one thread each"}
"""(processes, threads of each) -> what it is called."""
YARDSTICK = (1, 2)
WARM_UP = 5
"""First steps, which are not counted."""
ALWAYS = (
    "training.log_every=1", "training.checkpoint_every=null", "evaluation.during=[]", "evaluation.final=[]",
    "tracking.trackers=[]",
)  # fmt: skip


def steps_s(config: Path, words: Sequence[str], processes: int, threads: int) -> dict[int, float]:
    """Step -> seconds that it took, of one run in a folder of its own; the first ones are left out."""
    with tempfile.TemporaryDirectory() as folder:
        script = ["launch/train_multitask.py", "--config", str(config), *ALWAYS, *words, f"run_dir={folder}/run"]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(several if processes > 1 else []), *script]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or f"on {processes} x cpu" not in done.stderr:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["time"]["step_s"] for row in rows if "time" in row and row["step"] > WARM_UP}


def fastest(rounds: Sequence[Mapping[int, float]]) -> float:
    """Seconds of all steps, each at its fastest over the rounds."""
    return sum(min(times) for times in zip(*(one.values() for one in rounds), strict=True))


def table(found: Mapping[tuple[int, int], Sequence[Mapping[int, float]]], steps: int, cores: int | None) -> Table:
    """One row a way; speed and efficiency are beside the yardstick of as many cores."""
    seconds = {way: fastest(rounds) for way, rounds in found.items()}
    columns = (Column("how", "text"), Column("a step, ms", "text"), Column("speed", "text"))
    rows = tuple(
        (WAYS[way], f"{1000 * took_s / (steps - WARM_UP):.1f}", f"{seconds[YARDSTICK] / took_s:.2f}")
        for way, took_s in seconds.items()
    )
    rounds = len(next(iter(found.values())))
    notes = (f"Steps {WARM_UP + 1} to {steps}, each at its fastest of {rounds} rounds; {cores} cores.",)
    return Table("Processes and threads", columns, rows, notes=notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data_dir of the run")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    words = [f"data_dir={args.data.resolve()}", f"training.steps={args.steps}", *args.overrides]
    found: dict[tuple[int, int], list[dict[int, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way, rounds in found.items():
            rounds.append(steps_s(args.config.resolve(), words, *way))
    print(render(table(found, args.steps, os.cpu_count()), "markdown"))


if __name__ == "__main__":
    main()
