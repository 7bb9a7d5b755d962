"""Cost of a training step of each method, relative to a single adapter: python -m benchmarks.methods [CONFIG ...]

Builds the model of each configuration at its published size with random weights and alternates its training steps with
those of the baseline of the same backbone. Time is the median over rounds of the ratio of two successive steps. The row
"baseline repeated" is a second baseline: the distance of its ratio from 1 is the noise. On a machine with other load,
use --clock cpu, which counts processor time of this process. Memory is the peak of a step above the loaded model
(Linux), relative to the baseline. The data are random: one task, one image. All methods take half an hour on one core;
with --results FILE, the same command continues an interrupted measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.process_memory import peak_of
from benchmarks.random_steps import RandomSteps
from multitask_vl.config import load_config
from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.experiments import find_experiment, read_experiments
from multitask_vl.reproduction.parameters import with_known_sizes

BASELINES = {"bart": "adapter_single", "t5": "t5_adapter_single_96"}
ROUTED = ("mul", "add", "mm1", "mm2")
"""Routing functions, measured on the baseline."""
CONTROL = "baseline repeated"
EXTRA_ROUNDS = 3
"""Multiple of the rounds for rows that differ little from the baseline: routing, and the repeated baseline."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class TimedModel:
    """A model whose training steps on one random batch are timed.

    Args:
        experiment: id of an experiment, or the path of a configuration.
        overrides: key=value.
        rows, input_tokens, target_tokens: size of the batch.
        clock: one of `CLOCKS`.
    """

    def __init__(
        self, experiment: str, overrides: Sequence[str], rows: int, input_tokens: int, target_tokens: int, clock: str
    ):
        path = Path(experiment) if experiment.endswith(".yaml") else find_experiment(experiment).path
        config = with_known_sizes(load_config(path, list(overrides)))
        self.clock = CLOCKS[clock]
        self.family = config.backbone.family
        self.steps = RandomSteps(config, rows, input_tokens, target_tokens)
        trainable, total = self.steps.model.parameter_counts()
        self.percent = 100 * trainable / total

    def step(self) -> float:
        """Train one step and return its seconds."""
        started = self.clock()
        self.steps.step()
        return self.clock() - started

    def memory(self) -> float | None:
        """Peak memory of one step above the loaded model in MiB; None without Linux's /proc."""
        return peak_of(self.steps.step)


def compare(baseline: TimedModel, other: TimedModel, rounds: int) -> list[float]:
    """Ratios of a model's step time to the baseline's, one per round; which runs first alternates."""
    ratios = []
    for n in range(rounds + 1):
        pair = (baseline, other) if n % 2 else (other, baseline)
        seconds = {id(model): model.step() for model in pair}
        ratios.append(seconds[id(other)] / seconds[id(baseline)])
    return ratios[1:]  # the first round warms up


def measure(
    experiments: Sequence[str], rounds: int, sizes: tuple[int, int, int, str], results: Path | None
) -> list[dict]:
    """Measurements by backbone, with the baseline's control and routing functions first.

    Args:
        experiments: ids or YAML files.
        rounds: rounds per experiment.
        sizes: arguments of `TimedModel` after the overrides.
        results: file with one JSON object per line; measurements in it are not repeated, new ones are added.
    """
    known = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    measured = {(one["backbone"], one["label"]): one for one in known}
    for family, name in BASELINES.items():
        chosen = [one for one in experiments if Path(one).stem.startswith("t5_") == (family == "t5") and one != name]
        if not chosen:
            continue
        baseline = None
        cases = [(CONTROL, name, ()), *((f"routed: {f}", name, (f"routing.function={f}",)) for f in ROUTED)]
        cases = [(*case, EXTRA_ROUNDS * rounds) for case in cases]
        cases += [(Path(one).stem, one, (), rounds) for one in chosen]
        for label, experiment, overrides, case_rounds in cases:
            if (family, label) in measured:
                continue
            baseline = baseline or TimedModel(name, (), *sizes)
            other = TimedModel(experiment, overrides, *sizes)
            one = {"backbone": family, "label": label, "percent": other.percent, "sizes": sizes, "baseline": name}
            one |= {"ratios": compare(baseline, other, case_rounds), "memory": [baseline.memory(), other.memory()]}
            one["baseline_percent"] = baseline.percent
            measured[family, label] = one
            print(" ".join(map(str, _row(one))), flush=True)
            if results:
                with results.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            del other
    return sorted(measured.values(), key=lambda one: list(BASELINES).index(one["backbone"]))


def _row(measurement: dict) -> tuple:
    low, median, high = statistics.quantiles(measurement["ratios"], n=4, method="inclusive")
    baseline, memory = measurement["memory"]
    return (
        measurement["label"], measurement["backbone"], measurement["percent"], f"{median:.2f}",
        f"{low:.2f} to {high:.2f}", f"{memory / baseline:.2f}" if baseline else None,
    )  # fmt: skip


def table_rows(measurements: Sequence[dict]) -> list[tuple]:
    """Rows of the table: each backbone's baseline, then its measurements."""
    rows = []
    for family, name in BASELINES.items():
        chosen = [one for one in measurements if one["backbone"] == family]
        if chosen:
            mebibytes = [one["memory"][0] for one in chosen if one["memory"][0]]
            memory = f"{statistics.median(mebibytes):,.0f} MiB" if mebibytes else None
            rows += [(name, family, chosen[0]["baseline_percent"], "1", "", memory), *map(_row, chosen)]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and optionally write it to a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="ids of experiments or YAML files (default: every id)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per method, at least 2 (default: 5)")
    parser.add_argument("--rows", type=int, default=8, help="batch size")
    parser.add_argument("--input-tokens", type=int, default=20, help="tokens per text")
    parser.add_argument("--target-tokens", type=int, default=5, help="tokens per answer")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="wall or processor time")
    parser.add_argument("--results", type=Path, help="file that stores measurements; those in it are not repeated")
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table between its markers")
    options = parser.parse_args(argv)
    experiments = options.configs or sorted(one.id for one in read_experiments() if one.reproduces.id)
    sizes = (options.rows, options.input_tokens, options.target_tokens, options.clock)
    rows = table_rows(measure(experiments, options.rounds, sizes, options.results))
    columns = (
        Column("method", "text"), Column("backbone", "text"), Column("trainable, %", "percent"),
        Column("step time", "text"), Column("interquartile range", "text"), Column("step memory", "text"),
    )  # fmt: skip
    notes = (
        f"Ratios to the first row of the backbone; {options.rows} examples of {options.input_tokens} tokens, 36 visual "
        f"tokens and {options.target_tokens} target tokens, base size, float32, {torch.get_num_threads()} CPU "
        f"thread(s), {options.clock} time; medians of {options.rounds} rounds, {EXTRA_ROUNDS * options.rounds} for "
        f'"{CONTROL}" (the noise) and routing. Memory: above the loaded model.',
    )
    table = render(Table("Cost of a training step", columns, tuple(rows), notes=notes), "markdown")
    print(table)
    if options.page:
        replace_section(options.page, f"\n{table}\n", "cost", "--page")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
