"""Time and memory of a training step, compared with plain transformers.

    python -m benchmarks.training --only captions --precision fp32

"Plain" is BART of transformers with sdpa and its own loss, the same visual embedding and adapters, torch's AdamW, and
texts padded to 20 tokens (captions also as targets), as published. A stricter baseline pads to the longest text of the
batch. The model has the size of BART-base; weights and features are random, texts are real: VQA v2 questions and COCO
captions with BART's tokenizer.

The cases alternate on the same rows. The time of a case is the mean over its batches of the fastest (or median) step;
batches grouped by length are selected evenly from the sorted ones, so that their mean is that of an epoch. Memory is
the peak of a step above the loaded model, measured in a separate process (Linux). One command measures one kind of
texts in one precision. --page writes its table between its markers; --results merges measurements of several commands.
"""

from __future__ import annotations

import argparse
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

from benchmarks.matrix_products import ProductRecorder, slow_products_note
from benchmarks.process_memory import RESET, peak_of
from benchmarks.training_cases import CASES, TASKS, Case, make_batches, plain_loss
from multitask_vl.data.batch import Batch
from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Table, render

ROOT = Path(__file__).resolve().parents[1]


def check_losses(cases: dict[str, Case], batches: dict[str, list]) -> None:
    """Exit unless the plain model and ours have the same loss without dropout."""
    plain = next(case for case in cases.values() if case.plain)
    ours = next(case for case in cases.values() if not case.plain)
    batch = batches["mixed"][0]
    with torch.no_grad():
        expected = float(plain_loss(plain.model.eval(), batch))
        loss = float(ours.mean_loss(ours.model.eval(), batch))
    for case in (plain, ours):
        case.model.train()
    if abs(expected - loss) > (1e-4 if ours.precision == "fp32" else 0.05) * expected:
        raise SystemExit(f"losses of plain and ours differ: {expected} and {loss}")
    print(f"same loss without dropout: {expected:.5f} and {loss:.5f}", file=sys.stderr, flush=True)


def measure_time(cases: dict[str, Case], batches: dict[str, list], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per step of each case, means over batches: fastest, median, and fastest by processor time; tokens."""
    walls: dict[str, list[list[float]]] = {name: [[] for _ in batches[case.order]] for name, case in cases.items()}
    cpus: dict[str, list[list[float]]] = {name: [[] for _ in batches[case.order]] for name, case in cases.items()}
    for turn in range(rounds + 1):
        for index in range(len(batches["mixed"])):
            for name, case in cases.items():
                if turn == 0 and index:
                    continue  # one warm-up step per case
                wall, cpu = time.perf_counter(), time.process_time()
                case.step(batches[case.order][index])
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(f"{turn} {index} {name}: {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr, flush=True)
                if turn:
                    walls[name][index].append(wall)
                    cpus[name][index].append(cpu)
    return {
        name: {
            "fastest": statistics.mean(map(min, walls[name])),
            "median": statistics.mean(map(statistics.median, walls[name])),
            "cpu": statistics.mean(map(min, cpus[name])),
            "tokens": statistics.mean(num_tokens(batch) for batch in batches[case.order]),
        }
        for name, case in cases.items()
    }


def num_tokens(batch: Batch) -> int:
    """Text and target tokens, without padding and visual tokens."""
    return int(batch.attention_mask.sum() + (batch.labels != -100).sum())


def product_seconds(case: Case, batches: dict[str, list]) -> float:
    """Seconds of the matrix products of a case's steps alone, mean over its batches."""
    seconds = []
    for batch in batches[case.order]:
        with ProductRecorder() as recorder:
            case.step(batch)
        seconds.append(recorder.seconds())
    return statistics.mean(seconds)


def measure_memory(options: argparse.Namespace, name: str) -> float | None:
    """Peak of one step in MiB, measured in a new process; None without Linux's /proc."""
    if not RESET.exists():
        return None
    args = ["--only", options.only, "--precision", options.precision, "--rows", str(options.rows)]
    args += ["--threads", str(options.threads), "--batches", str(options.batches)]
    args += ["--memory-of", name, "--data", str(options.data)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *args], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    memory = json.loads(done.stdout.splitlines()[-1])
    print(f"memory of {name}: {memory:.0f} MiB", file=sys.stderr, flush=True)
    return memory


def render_table(options: argparse.Namespace, measured: dict[str, dict]) -> str:
    """The measurements as Markdown, with ratios to the first and the second case."""
    order = [measured[name] for name in CASES if name in measured]
    rows = []
    for name in (name for name in CASES if name in measured):
        one = measured[name]
        rows.append(
            (
                name,
                *(_format(one.get(key), ".2f") for key in ("fastest", "median", "cpu")),
                *(_format(_ratio(row, one, "fastest"), ".2f") for row in order[:2]),
                _format(_ratio(one, one, "tokens", "fastest"), ",.0f"),
                _format(one.get("products"), ".2f"),
                _format(_ratio(one, one, "fastest", "products"), ".2f"),
                _format(one.get("memory"), ",.0f"),
                *(_format(_ratio(one, row, "memory"), ".2f") for row in order[:2]),
            )
        )
    names = (
        "case", "fastest, s", "median, s", "CPU, s", "times row 1", "times row 2", "tokens/s", "products, s",
        "step / products", "memory, MiB", "of row 1", "of row 2",
    )  # fmt: skip
    notes = [f"36 visual tokens, dropout 0.1. {kind.capitalize()}: {how}." for kind, how in measured["about"].items()]
    if options.precision == "bf16":
        notes += slow_products_note()
    columns = tuple(Column(name, "text") for name in names)
    title = f"Training step, {options.only}, {options.precision}"
    return render(Table(title, columns, tuple(rows), notes=tuple(notes)), "markdown")


def profile(case: Case, batches: dict[str, list]) -> int:
    """Print the processor time of a step by operation."""
    case.step(batches[case.order][0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        case.step(batches[case.order][0])
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
    return 0


def measure(options: argparse.Namespace, names: Sequence[str], measured: dict[str, dict]) -> None:
    """Add time and memory of the cases, as far as requested, and the commands to ``measured``."""
    if "time" in options.measure:
        with tempfile.TemporaryDirectory() as folder:
            config, batches = make_batches(options.only, options.data, Path(folder), options.rows, options.batches)
            cases = {name: Case(CASES[name], config, options.precision) for name in names}
            check_losses(cases, batches)
            for name, seconds in measure_time(cases, batches, options.rounds).items():
                measured.setdefault(name, {}).update(seconds)
            for name, case in cases.items():
                if not case.plain:
                    measured[name]["products"] = product_seconds(case, batches)
            del cases
    if "memory" in options.measure:
        for name in names:
            measured.setdefault(name, {})["memory"] = measure_memory(options, name)
    args = f"--only {options.only} --precision {options.precision} --rows {options.rows} --batches {options.batches}"
    batches = f"{options.batches} batch{'es' if options.batches > 1 else ''}"
    settings = f"batch {options.rows}, {options.threads} threads, {batches}, {options.rounds} rounds"
    for kind in options.measure:
        command = f"python -m benchmarks.training {args} --rounds {options.rounds} --measure {kind}"
        measured.setdefault("about", {})[kind] = f"{settings} after one warm-up round (`{command}`)"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(TASKS), default="captions", help="texts (default: captions)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="precision (default: fp32)")
    parser.add_argument("--rows", type=int, default=64, help="batch size (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--batches", type=int, default=2, help="number of batches (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps per case and batch (default: 3)")
    parser.add_argument("--cases", nargs="*", help="measure only these cases: " + "; ".join(CASES))
    parser.add_argument(
        "--measure", nargs="*", default=["time", "memory"], choices=["time", "memory"], help="default: both"
    )
    parser.add_argument("--results", type=Path, help="JSON file that collects the measurements of several commands")
    parser.add_argument("--profile", action="store_true", help="print the time of the last case by operation and exit")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the reference data"
    )
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table between its markers")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and optionally write it to a page."""
    options = parse_args(argv)
    torch.set_num_threads(options.threads)
    names = options.cases or [name for name, kind in CASES.items() if options.precision in kind.precisions]
    if options.memory_of or options.profile:
        with tempfile.TemporaryDirectory() as folder:
            config, batches = make_batches(options.only, options.data, Path(folder), options.rows, options.batches)
            case = Case(CASES[options.memory_of or names[-1]], config, options.precision)
            if options.profile:
                return profile(case, batches)
            print(json.dumps(peak_of(lambda: case.step(batches[case.order][-1]))))
            return 0
    exists = options.results is not None and options.results.exists()
    results: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if exists else {}
    measured = results.setdefault(f"{options.only} {options.precision}", {})
    measure(options, names, measured)
    if options.results is not None:
        options.results.write_text(json.dumps(results, indent=1))
    table = render_table(options, measured)
    print(table)
    if options.page:
        replace_section(options.page, f"\n{table}\n", f"training {options.only} {options.precision}", "--page")
    return 0


def _ratio(one: dict, other: dict, key: str, other_key: str | None = None) -> float | None:
    numerator, denominator = one.get(key), other.get(other_key or key)
    return numerator / denominator if numerator and denominator else None


def _format(value: float | None, spec: str) -> str | None:
    return None if value is None else format(value, spec)


if __name__ == "__main__":
    raise SystemExit(main())
