"""What does a training step cost beside the plain way? python -m benchmarks.training --only captions --precision fp32

Plain is the library's BART with sdpa and its own loss, the same visual embedding and adapters, torch's AdamW, texts
padded to 20 tokens (captions to 20 as well), as published. A second yardstick pads only to the batch's longest. Sizes
are BART-base's, weights and features random, texts real: VQA v2 questions and COCO captions through BART's tokenizer.

All cases take their steps in turns, on the same rows. A case's time is the mean over its batches of the fastest (or
median) step; batches by length are drawn evenly from the sorted ones, so that their mean is that of a pass. Memory is
what a step needs above the loaded model, in a process of its own (Linux). One call measures one kind of texts in one
precision; --page writes its table between its marks, --results adds what earlier calls found of the same kind.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.matrix_products import Products, slow_products_note
from benchmarks.training_cases import CASES, TASKS, Case, batches_of, plain_loss
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.parameters import put_between_markers

ROOT = Path(__file__).resolve().parents[1]


def check(cases: dict[str, Case], batches: dict[str, list]) -> None:
    """Without dropout plain and ours have the same loss, or the comparison means nothing."""
    plain = next(case for case in cases.values() if case.plain)
    ours = next(case for case in cases.values() if not case.plain)
    batch = batches["mixed"][0]
    with torch.no_grad():
        one, other = plain_loss(plain.model.eval(), batch), ours.mean_loss(ours.model.eval(), batch)
    for case in (plain, ours):
        case.model.train()
    if abs(float(one) - float(other)) > (1e-4 if ours.precision == "fp32" else 0.05) * float(one):
        raise SystemExit(f"plain and ours differ: {float(one)} and {float(other)}")
    print(f"same loss without dropout: {float(one):.5f} and {float(other):.5f}", file=sys.stderr, flush=True)


def timed(cases: dict[str, Case], batches: dict[str, list], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each case: the mean over batches of the fastest, the median and the fastest by process CPU time."""
    walls: dict[str, list[list[float]]] = {name: [[] for _ in batches[case.order]] for name, case in cases.items()}
    cpus: dict[str, list[list[float]]] = {name: [[] for _ in batches[case.order]] for name, case in cases.items()}
    for turn in range(rounds + 1):
        for place in range(len(batches["mixed"])):
            for name, case in cases.items():
                if turn == 0 and place:
                    continue  # one step of each warms up
                wall, cpu = time.perf_counter(), time.process_time()
                case.step(batches[case.order][place])
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(f"{turn} {place} {name}: {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr, flush=True)
                if turn:
                    walls[name][place].append(wall)
                    cpus[name][place].append(cpu)
    return {
        name: {
            "fastest": statistics.mean(map(min, walls[name])),
            "median": statistics.mean(map(statistics.median, walls[name])),
            "cpu": statistics.mean(map(min, cpus[name])),
            "tokens": statistics.mean(tokens(batch) for batch in batches[case.order]),
        }
        for name, case in cases.items()
    }


def tokens(batch) -> int:
    """Words read and written, padding and cells not counted."""
    return int(batch.attention_mask.sum() + (batch.labels != -100).sum())


def products(case: Case, batches: dict[str, list]) -> float:
    """Seconds of the matrix products of the case's steps alone, the mean over its batches."""
    seconds = []
    for batch in batches[case.order]:
        with Products() as seen:
            case.step(batch)
        seconds.append(seen.seconds())
    return statistics.mean(seconds)


def memory(case: Case, batch) -> float:
    """Peak of one step above what the process had before, MiB."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator holds back would hide a part of the peak
    reset.write_text("5")  # the peak starts anew
    before = _kib(status, "VmRSS")
    case.step(batch)
    return (_kib(status, "VmHWM") - before) / 1024


def measured_memory(options: argparse.Namespace, name: str) -> float | None:
    """`memory` in a fresh process; None where Linux's /proc is absent."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    words = ["--only", options.only, "--precision", options.precision, "--rows", str(options.rows)]
    words += ["--threads", str(options.threads), "--batches", str(options.batches)]
    words += ["--memory-of", name, "--data", str(options.data)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"memory of {name}: {found:.0f} MiB", file=sys.stderr, flush=True)
    return found


def table_of(options: argparse.Namespace, found: dict[str, dict]) -> str:
    """The measurements as Markdown, with ratios to the first and the second case."""
    order = [found[name] for name in CASES if name in found]
    rows = []
    for name in (name for name in CASES if name in found):
        one = found[name]
        rows.append(
            (
                name,
                *(_said(one.get(key), ".2f") for key in ("fastest", "median", "cpu")),
                *(_said(_ratio(row, one, "fastest"), ".2f") for row in order[:2]),
                _said(_ratio(one, one, "tokens", "fastest"), ",.0f"),
                _said(one.get("products"), ".2f"),
                _said(_ratio(one, one, "fastest", "products"), ".2f"),
                _said(one.get("memory"), ",.0f"),
                *(_said(_ratio(one, row, "memory"), ".2f") for row in order[:2]),
            )
        )
    names = (
        "case", "fastest, s", "median, s", "CPU, s", "times row 1", "times row 2", "tokens/s", "products, s",
        "step / products", "memory, MiB", "of row 1", "of row 2",
    )  # fmt: skip
    notes = [f"36 cells, dropout 0.1. {what.capitalize()}: {how}." for what, how in found["about"].items()]
    if options.precision == "bf16":
        notes += slow_products_note()
    columns = tuple(Column(name, "text") for name in names)
    title = f"Training step, {options.only}, {options.precision}"
    return render(Table(title, columns, tuple(rows), notes=tuple(notes)), "markdown")


def profile(case: Case, batches: dict[str, list]) -> int:
    """Print where the processor time of a step goes, operation by operation."""
    case.step(batches[case.order][0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        case.step(batches[case.order][0])
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table, or write it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(TASKS), default="captions")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rows", type=int, default=64, help="examples a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", help="only some of: " + "; ".join(CASES))
    parser.add_argument("--measure", nargs="*", default=["time", "memory"], choices=["time", "memory"])
    parser.add_argument("--results", type=Path, help="a JSON file that gathers what several calls measure")
    parser.add_argument("--profile", action="store_true", help="say what the last case spends its time on, and stop")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--page", type=Path, help="write the table between its marks in this file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    wanted = [name for name, kind in CASES.items() if options.precision in kind.precisions]
    wanted = [options.memory_of] if options.memory_of else options.cases or wanted
    known = options.results is not None and options.results.exists()
    everything: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if known else {}
    found = everything.setdefault(f"{options.only} {options.precision}", {})
    with tempfile.TemporaryDirectory() as folder:
        config, batches = batches_of(options.only, options.data, Path(folder), options.rows, options.batches)
        if options.memory_of:
            case = Case(CASES[options.memory_of], config, options.precision)
            print(json.dumps(memory(case, batches[case.order][-1])))
            return 0
        if options.profile:
            return profile(Case(CASES[wanted[-1]], config, options.precision), batches)
        if "time" in options.measure:
            cases = {name: Case(CASES[name], config, options.precision) for name in wanted}
            check(cases, batches)
            for name, seconds in timed(cases, batches, options.rounds).items():
                found.setdefault(name, {}).update(seconds)
            for name, case in cases.items():
                if not case.plain:
                    found[name]["products"] = products(case, batches)
            del cases
    if "memory" in options.measure:
        for name in wanted:
            found.setdefault(name, {})["memory"] = measured_memory(options, name)
    words = f"--only {options.only} --precision {options.precision} --rows {options.rows} --batches {options.batches}"
    how = (
        f"batch {options.rows}, {options.threads} threads, {options.batches} batches, {options.rounds} rounds after one"
    )
    for what in options.measure:
        command = f"python -m benchmarks.training {words} --rounds {options.rounds} --measure {what}"
        found.setdefault("about", {})[what] = f"{how} that warms up (`{command}`)"
    if options.results is not None:
        options.results.write_text(json.dumps(everything, indent=1))
    table = table_of(options, found)
    print(table)
    if options.page:
        put_between_markers(options.page, f"\n{table}\n", f"training {options.only} {options.precision}", "--page")
    return 0


def _ratio(one: dict, other: dict, key: str, below: str | None = None) -> float | None:
    above, below = one.get(key), other.get(below or key)
    return above / below if above and below else None


def _said(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _kib(status: Path, name: str) -> int:
    return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])


if __name__ == "__main__":
    raise SystemExit(main())
