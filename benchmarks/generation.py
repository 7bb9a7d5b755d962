"""How fast are predictions beside the plain way? python -m benchmarks.generation captions --precision fp32

Plain is the library's `generate` over the same joint encoder. Sizes are BART-base's with single adapters, weights and
features random, texts real, through BART's tokenizer. Random weights know no end, so rows are made to end: all at the
greatest length ("full"), or each where its real answer ends ("real").

``captions`` generates for one batch: five beams, at most 20 tokens, 36 cells. ``split`` predicts a whole split of four
tasks (VQA and GQA greedily, NLVR2 by choice, captions by beams), as an evaluation does, beside batches in the order of
the files, padded to 20 tokens (captions' texts to 40), one `generate` after the other.

Cases take turns. Memory is the peak of one call above the loaded model (Linux). --page writes a call's table between
its marks.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from benchmarks.generation_cases import CASES, World
from benchmarks.matrix_products import slow_products_note
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.parameters import put_between_markers

ROOT = Path(__file__).resolve().parents[1]


def timed(
    cases: dict[str, Callable[[], object]], around: Callable[[str], AbstractContextManager], rounds: int
) -> dict[str, dict]:
    """Name -> what it gave, seconds of wall and CPU time of each round, MiB; one round before them warms up.

    Args:
        around: name -> what a call runs in, whose own time does not count.
    """
    found: dict[str, dict] = {name: {"wall": [], "cpu": []} for name in cases}
    for turn in range(rounds + 1):
        for name, work in cases.items():
            with around(name):
                before = _memory_from_here() if turn == 0 else None
                wall, cpu = time.perf_counter(), time.process_time()
                given = work()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if before is not None:
                    found[name]["memory"] = (_kib("VmHWM") - before) / 1024
            found[name]["given"] = given
            print(f"{turn} {name}: {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr, flush=True)
            if turn:
                found[name]["wall"].append(wall)
                found[name]["cpu"].append(cpu)
    return found


def rows_of(label: str, found: dict[str, dict], count: int, same: Callable[[object, object], str]) -> list[tuple]:
    """Rows of the table: ratios to the first case and to plain autocast, where it was measured."""
    first, autocast = next(iter(found.values())), found.get("plain, bf16 autocast")
    rows = []
    for name, one in found.items():
        fastest = min(one["wall"])
        rows.append(
            (
                label, name, f"{fastest:.2f}", f"{statistics.median(one['wall']):.2f}", f"{min(one['cpu']):.2f}",
                f"{min(first['wall']) / fastest:.2f}", f"{min(first['cpu']) / min(one['cpu']):.2f}",
                f"{min(autocast['wall']) / fastest:.2f}" if autocast else None,
                f"{count / fastest:.1f}",
                f"{one['memory']:,.0f}" if "memory" in one else None,
                same(first["given"], one["given"]),
            )
        )  # fmt: skip
    return rows


def captions(world: World, options: argparse.Namespace, names: Sequence[str]) -> list[tuple]:
    """Batches of captions."""
    collator, rows = world.collators["coco_caption"], []
    for size in options.rows:
        batch = collator.predicting(range(size))
        for length in options.lengths:
            works = {}
            for name in names:
                generate = world.generator(CASES[name].ours, length == "real")
                works[name] = lambda generate=generate: generate(batch, collator.task.decoding).tolist()  # noqa: B023
            label = f"batch {size}, {length} lengths"
            if length == "real":
                mean = statistics.mean(world.lengths["coco_caption"][id_] for id_ in batch.ids)
                label += f" ({mean:.1f} tokens)"
            found = timed(works, lambda name: CASES[name].around(world.model), options.rounds)
            rows += rows_of(label, found, size, _same_ids)
    return rows


def split(world: World, options: argparse.Namespace, names: Sequence[str]) -> list[tuple]:
    """A whole split of four tasks."""
    rows = []
    count = sum(len(one.table) for one in world.collators.values())
    for size in options.rows:
        works = {name: lambda name=name: world.split(CASES[name], size) for name in names}  # noqa: B023
        found = timed(works, lambda name: nullcontext(), options.rounds)
        rows += rows_of(f"{count} examples, batch {size}", found, count, _same_texts)
    return rows


def _same_ids(one: list, other: list) -> str:
    equal = sum(a == b for a, b in zip(one, other, strict=True))
    return f"{equal} of {len(one)}"


def _same_texts(one: dict, other: dict) -> str:
    pairs = [(text, other[task][id_]) for task, texts in one.items() for id_, text in texts.items()]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def _memory_from_here() -> float | None:
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator holds back would hide a part of the peak
    reset.write_text("5")  # the peak starts anew
    return _kib("VmRSS")


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def table_of(options: argparse.Namespace, rows: list[tuple]) -> str:
    """The measurements as Markdown."""
    names = (
        "what", "case", "fastest, s", "median, s", "CPU, s", "times row 1", "by CPU", "times autocast", "examples/s",
        "memory, MiB", "same as row 1",
    )  # fmt: skip
    words = f"{options.part} --precision {options.precision} --rows {' '.join(map(str, options.rows))}"
    captions_ = options.part == "captions"
    words += f" --lengths {' '.join(options.lengths)}" if captions_ else f" --examples {options.examples}"
    notes = [
        f"{options.threads} threads, {options.rounds} rounds after one that warms up. Command: "
        f"`python -m benchmarks.generation {words} --rounds {options.rounds}`."
    ]
    if options.precision == "bf16":
        notes += slow_products_note()
    title = {"captions": "Captions", "split": "Evaluation of a mixed split"}[options.part]
    columns = tuple(Column(name, "text") for name in names)
    return render(Table(f"{title}, {options.precision}", columns, tuple(rows), notes=tuple(notes)), "markdown")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table, or write it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["captions", "split"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: fp32 beside it")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="examples a batch")
    parser.add_argument("--lengths", nargs="+", choices=["full", "real"], default=["full", "real"])
    parser.add_argument("--examples", type=int, default=96, help="examples of each task, for split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="only these")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--page", type=Path, help="write the table between its marks in this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    names = options.cases or [name for name in CASES if options.precision == "bf16" or CASES[name].precision == "fp32"]
    with tempfile.TemporaryDirectory() as folder:
        examples = options.examples if options.part == "split" else max(options.rows)
        world = World(options.data.resolve(), Path(folder), examples)
        rows = {"captions": captions, "split": split}[options.part](world, options, names)
    table = table_of(options, rows)
    print(table)
    if options.page:
        put_between_markers(options.page, f"\n{table}\n", f"generation {options.part} {options.precision}", "--page")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
