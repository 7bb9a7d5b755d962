"""What does a training step of each method cost beside a single adapter's? python benchmarks/methods.py [CONFIG ...]

Builds the model of each configuration at its true size with random weights, and takes steps (forward, backward, AdamW)
in turns with the baseline of the same backbone: adapter, baseline, adapter, ... Time is the median over rounds of the
ratio of two neighbouring steps; the control row, a second baseline beside the first, says how far from 1 the machine
alone takes it. With other work on the machine, --clock cpu counts the process's own processor time instead. Memory is
what a step needs above the loaded model (Linux), each beside a step of the baseline. Data are random: one task, one
image. It takes half an hour of one core; with --results FILE it may be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from multitask_vl.config import load_config
from multitask_vl.data.batch import Batch
from multitask_vl.models.build import build_model
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.parameters import put_between_markers
from multitask_vl.training.optim import build_optimizer

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "parameters"
BASELINES = {"bart": "adapter_single", "t5": "t5_adapter_single_96"}
ROUTED = ("mul", "add", "mm1", "mm2")
"""Functions measured on the baseline itself."""
CONTROL = "the same again"
CLOSER = 3
"""Times as many rounds for what differs by little from the baseline: routing, and the control."""


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Steps:
    """A model that takes training steps on one random batch.

    Args:
        path: a YAML with a whole configuration.
        overrides: dotted.key=value.
        rows, words, targets: size of the batch, tokens of its texts and of its answers.
        clock: one of `CLOCKS`.
    """

    def __init__(self, path: Path, overrides: Sequence[str], rows: int, words: int, targets: int, clock: str):
        config = load_config(path, list(overrides))
        self.clock = CLOCKS[clock]
        self.family = config.backbone.family
        self.model: VLSeq2Seq = build_model(config).train()
        trained = self.model.trainable()
        self.optimizer = build_optimizer(trained, config.training)
        trainable, total = self.model.parameter_counts()
        self.percent = 100 * trainable / total
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 1000, (rows, words), generator=generator)
        cells = 49
        self.batch = Batch(
            task=next(iter(config.tasks)),
            ids=[str(row) for row in range(rows)],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            features=torch.randn(rows, 1, cells, config.visual.feature_dim, generator=generator).half(),
            labels=torch.randint(10, 1000, (rows, targets), generator=generator),
            weights=torch.ones(rows),
        )

    def step(self) -> float:
        """Seconds of one step."""
        started = self.clock()
        self.model(self.batch).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.clock() - started

    def memory(self) -> float | None:
        """Peak memory of one step above the loaded model, in MiB; None where Linux's /proc is absent."""
        status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        if not (status.exists() and reset.exists()):
            return None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator holds back would hide a part of the peak
        reset.write_text("5")  # the peak starts anew
        before = _kib(status, "VmRSS")
        self.step()
        return (_kib(status, "VmHWM") - before) / 1024


def compare(baseline: Steps, other: Steps, rounds: int) -> list[float]:
    """Ratios of the other's step to the baseline's, a pair a round, who goes first taking turns."""
    ratios = []
    for n in range(rounds + 1):
        pair = (baseline, other) if n % 2 else (other, baseline)
        seconds = {id(one): one.step() for one in pair}
        ratios.append(seconds[id(other)] / seconds[id(baseline)])
    return ratios[1:]  # the first round warms up


def measure(paths: Sequence[Path], rounds: int, sizes: tuple[int, int, int, str], results: Path | None) -> list[dict]:
    """What was found, the baseline's own routing functions and control first, backbone after backbone.

    Args:
        results: one JSON object a line; what stands there is not measured again, and what is found is added.
    """
    known = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    found = {(one["backbone"], one["label"]): one for one in known}
    for family, name in BASELINES.items():
        own = [path for path in paths if (path.stem.startswith("t5_")) == (family == "t5") and path.stem != name]
        if not own:
            continue
        first, baseline = FOLDER / f"{name}.yaml", None
        cases = [(CONTROL, first, ()), *((f"routed: {f}", first, (f"routing.function={f}",)) for f in ROUTED)]
        cases = [(*case, CLOSER * rounds) for case in cases] + [(path.stem, path, (), rounds) for path in own]
        for label, path, overrides, times in cases:
            if (family, label) in found:
                continue
            baseline = baseline or Steps(first, (), *sizes)
            other = Steps(path, overrides, *sizes)
            one = {"backbone": family, "label": label, "percent": other.percent, "sizes": sizes, "baseline": name}
            one |= {"ratios": compare(baseline, other, times), "memory": [baseline.memory(), other.memory()]}
            one["baseline_percent"] = baseline.percent
            found[family, label] = one
            print(" ".join(map(str, _row(one))), flush=True)
            if results:
                with results.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            del other
    return sorted(found.values(), key=lambda one: list(BASELINES).index(one["backbone"]))


def _row(one: dict) -> tuple:
    low, middle, high = statistics.quantiles(one["ratios"], n=4, method="inclusive")
    before, needed = one["memory"]
    return (
        one["label"], one["backbone"], one["percent"], f"{middle:.2f}", f"{low:.2f} to {high:.2f}",
        f"{needed / before:.2f}" if before else None,
    )  # fmt: skip


def rows_of(found: Sequence[dict]) -> list[tuple]:
    """Rows of the table, those of a backbone behind its baseline."""
    rows = []
    for family, name in BASELINES.items():
        own = [one for one in found if one["backbone"] == family]
        if own:
            mebibytes = [one["memory"][0] for one in own if one["memory"][0]]
            memory = f"{statistics.median(mebibytes):,.0f} MiB" if mebibytes else None
            rows += [(name, family, own[0]["baseline_percent"], "1", "", memory), *map(_row, own)]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table, or write it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="default: every file of configs/parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8, help="examples a batch")
    parser.add_argument("--words", type=int, default=20, help="tokens of a text")
    parser.add_argument("--targets", type=int, default=5, help="tokens of an answer")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--results", type=Path, help="keep what is found here, and leave out what was found before")
    parser.add_argument("--page", type=Path, help="write the table between its marks in this file")
    options = parser.parse_args(argv)
    paths = options.configs or sorted(FOLDER.glob("*.yaml"))
    sizes = (options.rows, options.words, options.targets, options.clock)
    rows = rows_of(measure(paths, options.rounds, sizes, options.results))
    columns = (
        Column("method", "text"), Column("backbone", "text"), Column("trained, %", "percent"),
        Column("time of a step", "text"), Column("half of the rounds", "text"), Column("memory of a step", "text"),
    )  # fmt: skip
    notes = (
        f"Ratios to the first row of the backbone; {options.rows} examples of {options.words} words, 36 cells and "
        f"{options.targets} target tokens, base size, float32, {torch.get_num_threads()} CPU thread(s), "
        f'{options.clock} time; medians of {options.rounds} rounds, {CLOSER * options.rounds} for "{CONTROL}" '
        "(the noise) and routing. Memory: above the loaded model.",
    )
    table = render(Table("Cost of a training step", columns, tuple(rows), notes=notes), "markdown")
    print(table)
    if options.page:
        put_between_markers(options.page, f"\n{table}\n", "cost", "--page")
    return 0


def _kib(status: Path, name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])


if __name__ == "__main__":
    raise SystemExit(main())
