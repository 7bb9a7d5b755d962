"""Speed and memory of predictions, compared with plain transformers.

    python -m benchmarks.generation captions --precision fp32

"Plain" is `generate` of transformers on the same joint encoder. The model is BART-base with single adapters; weights
and features are random, texts are real, with BART's tokenizer. A model with random weights does not end its texts, so
the end is forced: at the maximum length ("full"), or at the length of the real answer ("real").

``captions`` generates one batch: five beams, at most 20 tokens, 36 visual tokens. ``split`` predicts a split of four
tasks as an evaluation does (greedy search for VQA and GQA, classification for NLVR2, beam search for captions). The
plain implementation uses batches in file order, padded to 20 tokens (captions to 40), one `generate` per batch.

The cases alternate. Memory is the peak of one call above the loaded model (Linux). --page writes the table between its
markers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from benchmarks.generation_cases import CASES, Workload
from benchmarks.matrix_products import slow_products_note
from benchmarks.process_memory import peak, reset_peak
from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Table, render

ROOT = Path(__file__).resolve().parents[1]


def measure(
    cases: dict[str, Callable[[], object]], context: Callable[[str], AbstractContextManager], rounds: int
) -> dict[str, dict]:
    """Measure calls after one warm-up round: output, wall and processor seconds of each round, MiB.

    Args:
        cases: name -> call.
        context: name -> context manager that the call runs in; its own time does not count.
        rounds: number of measured rounds.
    """
    measured: dict[str, dict] = {name: {"wall": [], "cpu": []} for name in cases}
    for turn in range(rounds + 1):
        for name, call in cases.items():
            with context(name):
                before = reset_peak() if turn == 0 else None
                wall, cpu = time.perf_counter(), time.process_time()
                output = call()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if before is not None:
                    measured[name]["memory"] = peak() - before
            measured[name]["output"] = output
            print(f"{turn} {name}: {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr, flush=True)
            if turn:
                measured[name]["wall"].append(wall)
                measured[name]["cpu"].append(cpu)
    return measured


def table_rows(label: str, measured: dict[str, dict], count: int, same: Callable[[object, object], str]) -> list[tuple]:
    """Rows of the table: ratios to the first case, and to plain autocast if measured."""
    first, autocast = next(iter(measured.values())), measured.get("plain, bf16 autocast")
    rows = []
    for name, one in measured.items():
        fastest = min(one["wall"])
        rows.append(
            (
                label, name, f"{fastest:.2f}", f"{statistics.median(one['wall']):.2f}", f"{min(one['cpu']):.2f}",
                f"{min(first['wall']) / fastest:.2f}", f"{min(first['cpu']) / min(one['cpu']):.2f}",
                f"{min(autocast['wall']) / fastest:.2f}" if autocast else None,
                f"{count / fastest:.1f}",
                f"{one['memory']:,.0f}" if "memory" in one else None,
                same(first["output"], one["output"]),
            )
        )  # fmt: skip
    return rows


def measure_captions(workload: Workload, options: argparse.Namespace, names: Sequence[str]) -> list[tuple]:
    """Measure batches of captions."""
    collator, rows = workload.collators["coco_caption"], []
    for size in options.rows:
        batch = collator.eval_batch(range(size))
        for length in options.lengths:
            calls = {}
            for name in names:
                generate = workload.generator(CASES[name].ours, length == "real")
                calls[name] = lambda generate=generate: generate(batch, collator.task.decoding).tolist()  # noqa: B023
            label = f"batch {size}, {length} lengths"
            if length == "real":
                mean = statistics.mean(workload.lengths["coco_caption"][id_] for id_ in batch.ids)
                label += f" ({mean:.1f} tokens)"
            measured = measure(calls, lambda name: CASES[name].precision_context(workload.model), options.rounds)
            rows += table_rows(label, measured, size, _same_ids)
    return rows


def measure_split(workload: Workload, options: argparse.Namespace, names: Sequence[str]) -> list[tuple]:
    """Measure the predictions of a split of four tasks."""
    rows = []
    count = sum(len(one.table) for one in workload.collators.values())
    for size in options.rows:
        calls = {name: lambda name=name: workload.predict_split(CASES[name], size) for name in names}  # noqa: B023
        measured = measure(calls, lambda name: nullcontext(), options.rounds)
        rows += table_rows(f"{count} examples, batch {size}", measured, count, _same_texts)
    return rows


def _same_ids(one: list, other: list) -> str:
    equal = sum(a == b for a, b in zip(one, other, strict=True))
    return f"{equal} of {len(one)}"


def _same_texts(one: dict, other: dict) -> str:
    pairs = [(text, other[task][id_]) for task, texts in one.items() for id_, text in texts.items()]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def render_table(options: argparse.Namespace, rows: list[tuple]) -> str:
    """The measurements as Markdown."""
    names = (
        "what", "case", "fastest, s", "median, s", "CPU, s", "times row 1", "by CPU", "times autocast", "examples/s",
        "memory, MiB", "same as row 1",
    )  # fmt: skip
    args = f"{options.part} --precision {options.precision} --rows {' '.join(map(str, options.rows))}"
    lengths = f" --lengths {' '.join(options.lengths)}"
    args += lengths if options.part == "captions" else f" --examples {options.examples}"
    notes = [
        f"{options.threads} threads, {options.rounds} rounds after one warm-up round. Command: "
        f"`python -m benchmarks.generation {args} --rounds {options.rounds}`."
    ]
    if options.precision == "bf16":
        notes += slow_products_note()
    title = {"captions": "Captions", "split": "Evaluation of a mixed split"}[options.part]
    columns = tuple(Column(name, "text") for name in names)
    return render(Table(f"{title}, {options.precision}", columns, tuple(rows), notes=tuple(notes)), "markdown")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and optionally write it to a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data, both = ROOT.parent / "shared" / "data", ["full", "real"]
    parser.add_argument("part", choices=["captions", "split"], help="one batch of captions, or a split of four tasks")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 also measures fp32")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="batch sizes (default: 16 64)")
    parser.add_argument("--lengths", nargs="+", choices=both, default=both, help="output lengths, for captions")
    parser.add_argument("--examples", type=int, default=96, help="examples per task, for split (default: 96)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="measure only these cases")
    parser.add_argument("--data", type=Path, default=data, help="folder of the reference data")
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table between its markers")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    names = options.cases or [name for name in CASES if options.precision == "bf16" or CASES[name].precision == "fp32"]
    with tempfile.TemporaryDirectory() as folder:
        examples = options.examples if options.part == "split" else max(options.rows)
        workload = Workload(options.data.resolve(), Path(folder), examples)
        parts = {"captions": measure_captions, "split": measure_split}
        rows = parts[options.part](workload, options, names)
    table = render_table(options, rows)
    print(table)
    if options.page:
        replace_section(options.page, f"\n{table}\n", f"generation {options.part} {options.precision}", "--page")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
