"""Scaling of time and memory of a training step: python -m benchmarks.growth [--page FILE --plot FILE]

One quantity grows at a time: batch size, target length, vocabulary size, number of tasks with one adapter each, and
number of examples (the cost of sampling a step and collating its batch, without a model). The model is small: 3 + 3
layers of width 128. Time is processor time, the fastest of several steps. Memory is the peak of a step above the loaded
model (Linux). The exponent is the slope on logarithmic axes over the last doubling: 1 is linear, 0 is constant.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from matplotlib.figure import Figure

from benchmarks.process_memory import peak_of
from benchmarks.random_steps import RandomSteps
from multitask_vl.config.schema import BackboneConfig, Config, SamplingConfig, TaskConfig, VisualConfig
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import FEATURES
from multitask_vl.data.schedule import Schedule
from multitask_vl.methods.adapter import AdapterConfig
from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.synthetic.tokenizer import build_tokenizer
from multitask_vl.tasks.jsonl_vqa import JsonlVQA
from studies.charts import save

VOCABULARY = ("what", "color", "is", "the", "thing", "on", "left", "?")
BASE = {"rows": 16, "target": 10, "vocabulary": 4000, "tasks": 1}


class Point(NamedTuple):
    """Cost of one value of a quantity: CPU milliseconds, and MiB if measured."""

    value: int
    ms: float
    mib: float | None


def step_at(rows: int, target: int, vocabulary: int, tasks: int) -> tuple[Callable[[], None], Callable[[], float]]:
    """Functions that train one step of a new model, and that return the peak memory of a step in MiB."""
    names = [f"task{n}" for n in range(tasks)]
    sizes = {
        "d_model": 128, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    config = Config(
        backbone=BackboneConfig(config=sizes, extra_tokens=80),
        visual=VisualConfig(feature_dim=64),
        tasks={name: TaskConfig() for name in names},
        method=[AdapterConfig(name="adapter", rank=16, sharing="per_task")],
    )
    steps = RandomSteps(config, rows, input_tokens=12, target_tokens=target, vocabulary=min(1000, vocabulary))
    return steps.step, lambda: peak_of(steps.step)


def grow(quantity: str, values: Sequence[int], repeats: int) -> list[Point]:
    """Measure one quantity, with the others at `BASE`."""
    points = []
    for value in values:
        step, peak = step_at(**BASE | {quantity: value})
        for _ in range(BASE["tasks"] if quantity != "tasks" else value):
            step()  # creates the optimizer state of every task
        times = [_cpu_ms(step) for _ in range(repeats)]
        points.append(Point(value, min(times), peak()))
        print(quantity, points[-1], flush=True)
    return points


class ZeroStore:
    """Feature store that returns zeros for any image."""

    def get_many(self, keys: Sequence[str]) -> np.ndarray:
        """[N, 4, 8]."""
        return np.zeros((len(keys), 4, 8), np.float16)


def grow_examples(values: Sequence[int], repeats: int, by_length: bool) -> tuple[list[Point], list[Point]]:
    """Measure the number of examples: sampling and collating a batch of 64, and the first step of an epoch."""
    tokenizer = build_tokenizer(list(VOCABULARY))
    task = JsonlVQA("pets", JsonlVQA.Config(type="jsonl_vqa"), Path())
    later, first = [], []
    for value in values:
        rng = np.random.default_rng(0)
        lengths = rng.integers(2, len(VOCABULARY), value)
        texts = np.array([" ".join(VOCABULARY[:n]) for n in range(len(VOCABULARY))])[lengths]
        names = np.char.mod("%d", np.arange(value))
        offsets = pa.array(np.arange(value + 1, dtype=np.int32))
        columns = {
            "id": pa.array(names),
            "images": pa.ListArray.from_arrays(offsets, pa.array(names)),
            "text": pa.array(texts),
            "answers": pa.ListArray.from_arrays(offsets, pa.array(np.full(value, "left"))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(np.ones(value))),
            "meta": pa.array(np.full(value, "{}")),
        }
        table = Dataset(InMemoryTable(pa.table(columns).cast(FEATURES.arrow_schema)))
        collator = Collator(task, table, tokenizer, ZeroStore())
        schedule = Schedule(
            {"pets": value}, {"pets": 64}, SamplingConfig(), 0, {"pets": lengths} if by_length else None
        )
        first.append(Point(value, _cpu_ms(lambda s=schedule: s.plan(0)), None))

        def step(n: int, schedule: Schedule = schedule, collator: Collator = collator) -> None:
            collator.train_batch(schedule.plan(n).rows, 0, n)

        step(0)
        later.append(Point(value, min(_cpu_ms(lambda n=n: step(n)) for n in range(1, 1 + 3 * repeats)), None))
        print("examples", later[-1], first[-1], flush=True)
    return later, first


def exponents(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """Slopes of time and memory on logarithmic axes, over the last two points."""
    one, other = points[-2:]
    growth = math.log(other.value / one.value)
    memory = math.log(other.mib / one.mib) / growth if one.mib and other.mib else None
    return math.log(other.ms / one.ms) / growth, memory


def table_of(series: dict[str, list[Point]], options: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    rows = []
    for name, points in series.items():
        slopes = exponents(points)
        rows.append(
            (
                name,
                ", ".join(f"{point.value:,}" for point in points),
                ", ".join(f"{point.ms:,.1f}" for point in points),
                f"{slopes[0]:.2f}",
                ", ".join(f"{point.mib:,.0f}" for point in points) if points[0].mib else None,
                f"{slopes[1]:.2f}" if slopes[1] is not None else None,
            )
        )
    names = ("grows", "values", "CPU, ms", "exponent", "step memory, MiB", "exponent")
    base = ", ".join(f"{value:,} {name}" for name, value in BASE.items())
    notes = (
        f"Constant otherwise: {base}; 12 tokens, 36 visual tokens, 3 + 3 layers of width 128, dropout 0.1, "
        f"{torch.get_num_threads()} thread, fastest of {options.repeats} steps.",
    )
    columns = tuple(Column(name, "text") for name in names)
    return render(Table("Growth of a training step", columns, tuple(rows), notes=notes), "markdown")


def plot(series: dict[str, list[Point]], path: Path) -> None:
    """Plot time and memory relative to the first value on logarithmic axes, with a line for linear growth."""
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(series)), series.items(), strict=True):
        values = [point.value for point in points]
        axes.loglog(values, [point.ms / points[0].ms for point in points], "o-", label="CPU time")
        if points[0].mib:
            axes.loglog(values, [point.mib / points[0].mib for point in points], "s--", label="memory")
        axes.loglog(values, [value / values[0] for value in values], ":", color="grey", label="linear")
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and optionally plot it and write it to a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measured steps per value (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes by this, to test the benchmark")
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table between its markers")
    parser.add_argument("--plot", type=Path, help="SVG file for the plot, in the folder of the page")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    def scaled(*values: int) -> list[int]:
        return [max(1, int(value * options.scale)) for value in values]

    series = {
        "batch size": grow("rows", scaled(16, 32, 64, 128), options.repeats),
        "target length": grow("target", scaled(20, 40, 80, 160), options.repeats),
        "vocabulary size": grow("vocabulary", scaled(8000, 16000, 32000, 64000), options.repeats),
        "tasks, one adapter each": grow("tasks", [1, 2, 4, 8, 16], options.repeats),
    }
    sizes = scaled(10_000, 100_000, 500_000, 1_000_000, 2_000_000)
    later, first = grow_examples(sizes, options.repeats, by_length=False)
    series |= {"examples: sampling and collating a batch": later, "examples: first step of an epoch": first}
    _, series["the same with group_by_length"] = grow_examples(sizes, options.repeats, by_length=True)
    table = table_of(series, options)
    print(table)
    if options.plot:
        plot(series, options.plot)
        alt = "CPU time and step memory next to linear growth, each relative to its first value"
        table += f"\n\n![{alt}]({options.plot.name})"
    if options.page:
        replace_section(options.page, f"\n{table}\n", "growth", "--page")
    return 0


def _cpu_ms(step: Callable[[], object]) -> float:
    started = time.process_time()
    step()
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    raise SystemExit(main())
