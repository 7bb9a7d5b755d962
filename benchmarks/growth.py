"""How do time and memory of a training step grow? python -m benchmarks.growth [--page FILE --plot FILE]

One quantity grows at a time: rows of a batch, tokens of a target, words of the vocabulary, tasks with adapters of their
own, and examples (the cost of drawing a step and making its batch, without a model). The model is small, since the
shape is the point: 3 + 3 layers of width 128. Time is process CPU time, the fastest of several steps; memory is the
peak of a step above the loaded model (Linux). The exponent is the slope in logarithms over the last doubling of a
quantity: 1 is linear, 0 does not grow.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
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

from multitask_vl.config.schema import BackboneConfig, Config, MixingConfig, TaskConfig, VisualConfig
from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import FEATURES
from multitask_vl.data.schedule import Schedule
from multitask_vl.methods.adapter import AdapterConfig
from multitask_vl.models.build import build_model
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.parameters import put_between_markers
from multitask_vl.synthetic.tokenizer import build_tokenizer
from multitask_vl.tasks.jsonl_vqa import JsonlVQA
from multitask_vl.training.optim import build_optimizer
from studies.charts import save

WORDS = ("what", "color", "is", "the", "thing", "on", "left", "?")
BASE = {"rows": 16, "target": 10, "vocabulary": 4000, "tasks": 1}


class Point(NamedTuple):
    """What one value of a quantity costs: CPU milliseconds, and MiB where measured."""

    value: int
    ms: float
    mib: float | None


def step_at(rows: int, target: int, vocabulary: int, tasks: int) -> tuple[Callable[[], None], Callable[[], float]]:
    """A training step of a new model, and its peak memory."""
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
    model = build_model(config).train()
    trained = model.trainable()
    optimizer = build_optimizer(trained, config.training)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, min(1000, vocabulary), (rows, 12), generator=generator)
    batches = [
        Batch(
            task=name,
            ids=[str(row) for row in range(rows)],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            features=torch.randn(rows, 1, 49, 64, generator=generator).half(),
            labels=torch.randint(10, min(1000, vocabulary), (rows, target), generator=generator),
            weights=torch.ones(rows),
        )
        for name in names
    ]
    turn = iter(range(10**9))

    def step() -> None:
        model(batches[next(turn) % tasks]).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, lambda: peak_of(step)


def peak_of(step: Callable[[], None]) -> float | None:
    """Peak MiB of a step above what was there before; None where Linux's /proc is absent."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator holds back would hide a part of the peak
    reset.write_text("5")

    def mib(name: str) -> float:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024

    before = mib("VmRSS")
    step()
    return mib("VmHWM") - before


def grow(quantity: str, values: Sequence[int], repeats: int) -> list[Point]:
    """Points of one quantity, the others at `BASE`."""
    points = []
    for value in values:
        step, peak = step_at(**BASE | {quantity: value})
        for _ in range(BASE["tasks"] if quantity != "tasks" else value):
            step()  # every task's moments are made
        times = [_cpu_ms(step) for _ in range(repeats)]
        points.append(Point(value, min(times), peak()))
        print(quantity, points[-1], flush=True)
    return points


class NoFeatures:
    """Features of any image: zeros."""

    def get_many(self, keys: Sequence[str]) -> np.ndarray:
        """[N, 4, 8]."""
        return np.zeros((len(keys), 4, 8), np.float16)


def grow_examples(values: Sequence[int], repeats: int, by_length: bool) -> tuple[list[Point], list[Point]]:
    """Of drawing a step and making its batch of 64, by the number of examples; and of the first draw of a pass."""
    tokenizer = build_tokenizer(list(WORDS))
    task = JsonlVQA("pets", JsonlVQA.Config(type="jsonl_vqa"), Path())
    later, first = [], []
    for value in values:
        rng = np.random.default_rng(0)
        lengths = rng.integers(2, len(WORDS), value)
        texts = np.array([" ".join(WORDS[:n]) for n in range(len(WORDS))])[lengths]
        names = np.char.mod("%d", np.arange(value))
        one = pa.array(np.arange(value + 1, dtype=np.int32))
        columns = {
            "id": pa.array(names),
            "images": pa.ListArray.from_arrays(one, pa.array(names)),
            "text": pa.array(texts),
            "answers": pa.ListArray.from_arrays(one, pa.array(np.full(value, "left"))),
            "scores": pa.ListArray.from_arrays(one, pa.array(np.ones(value))),
            "meta": pa.array(np.full(value, "{}")),
        }
        table = Dataset(InMemoryTable(pa.table(columns).cast(FEATURES.arrow_schema)))
        collator = Collator(task, table, tokenizer, NoFeatures())
        schedule = Schedule({"pets": value}, {"pets": 64}, MixingConfig(), 0, {"pets": lengths} if by_length else None)
        first.append(Point(value, _cpu_ms(lambda s=schedule: s.draw(0)), None))

        def step(n: int, schedule: Schedule = schedule, collator: Collator = collator) -> None:
            draw = schedule.draw(n)
            collator.training(draw.rows, 0, n)

        step(0)
        later.append(Point(value, min(_cpu_ms(lambda n=n: step(n)) for n in range(1, 1 + 3 * repeats)), None))
        print("examples", later[-1], first[-1], flush=True)
    return later, first


def exponents(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """Slopes in logarithms of time and memory over the last two points."""
    one, other = points[-2:]
    steps = math.log(other.value / one.value)
    memory = math.log(other.mib / one.mib) / steps if one.mib and other.mib else None
    return math.log(other.ms / one.ms) / steps, memory


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
    names = ("grows", "values", "CPU, ms", "exponent", "memory of a step, MiB", "exponent")
    base = ", ".join(f"{value:,} {name}" for name, value in BASE.items())
    notes = (
        f"What does not grow stays at {base}; 12 words, 36 cells, 3 + 3 layers of width 128, dropout 0.1, "
        f"{torch.get_num_threads()} thread, fastest of {options.repeats} steps.",
    )
    columns = tuple(Column(name, "text") for name in names)
    return render(Table("Growth of a training step", columns, tuple(rows), notes=notes), "markdown")


def plot(series: dict[str, list[Point]], path: Path) -> None:
    """Time and memory relative to the first value, on logarithmic axes, beside linear growth."""
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
    """Measure, print the table, write it between the marks of a page, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of every largest value, to try it out")
    parser.add_argument("--page", type=Path, help="write the table between its marks in this file")
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file, beside the page")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    def values(*all_of_them: int) -> list[int]:
        return [max(1, int(value * options.scale)) for value in all_of_them]

    series = {
        "rows of a batch": grow("rows", values(16, 32, 64, 128), options.repeats),
        "tokens of a target": grow("target", values(20, 40, 80, 160), options.repeats),
        "words of the vocabulary": grow("vocabulary", values(8000, 16000, 32000, 64000), options.repeats),
        "tasks with own adapters": grow("tasks", [1, 2, 4, 8, 16], options.repeats),
    }
    sizes = values(10_000, 100_000, 500_000, 1_000_000, 2_000_000)
    series["examples: drawing and making a batch"], series["examples: first draw of a pass"] = grow_examples(
        sizes, options.repeats, by_length=False
    )
    _, series["the same with group_by_length"] = grow_examples(sizes, options.repeats, by_length=True)
    table = table_of(series, options)
    print(table)
    if options.plot:
        plot(series, options.plot)
        drawn = "CPU time and memory of a step beside linear growth, each relative to its first value"
        table += f"\n\n![{drawn}]({options.plot.name})"
    if options.page:
        put_between_markers(options.page, f"\n{table}\n", "growth", "--page")
    return 0


def _cpu_ms(step: Callable[[], object]) -> float:
    started = time.process_time()
    step()
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    raise SystemExit(main())
