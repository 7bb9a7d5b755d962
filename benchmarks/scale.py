"""Cost of examples at the true size of the datasets: python -m benchmarks.scale [--scale 0.01] [--page FILE]

Writes random files in the official layouts (`scale_files`), then measures, each in a new process: compiling all four
tasks with the readers of training; a second start until its first batch; the memory that a training process and its
workers use for examples; sampling of a step. The baseline reads the official files with json.load, keeps items as dicts
in lists and forks workers. Files are in the page cache; image features are zeros from a store with every key.

It takes some minutes. With --files FOLDER, the same command continues an interrupted measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from benchmarks.scale_files import write_files
from multitask_vl.config import load_config
from multitask_vl.config.schema import Config
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import load_table
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError, cli_errors
from multitask_vl.models.build import load_tokenizer
from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.run.build import build_run
from multitask_vl.run.checks import TRAIN, check_inputs
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks
from multitask_vl.training.dataloader import worker_init

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 4
STEPS = 160
"""Batches that a process collates before its memory is measured; the workers together collate as many."""
SAMPLED_STEPS = (10, 10_000, 1_000_000)
MIB = 1 << 20


class ListTable:
    """Examples as dicts in a list, with the interface that `Collator` needs of a table."""

    def __init__(self, items: list[dict[str, Any]]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: list[int]) -> dict[str, list]:
        items = [self.items[row] for row in rows]
        return {name: [item[name] for item in items] for name in ("id", "images", "text", "answers", "scores")}


class Batches(Dataset):
    """Step number -> process id, and at the last step of each worker its private memory."""

    def __init__(self, collators: dict[str, Collator], schedule: Schedule, seed: int):
        self.collators, self.schedule, self.seed = collators, schedule, seed

    def __getitem__(self, step: int) -> tuple[int, dict[str, float] | None]:
        plan = self.schedule.plan(step)
        self.collators[plan.task].train_batch(plan.rows, self.seed, step)
        # measuring memory takes as long as a batch
        return os.getpid(), private_memory() if step >= 2 * STEPS - WORKERS else None


def private_memory() -> dict[str, float]:
    """Memory of this process in MiB that is not shared: ``allocated``, and ``mapped`` file pages.

    Their sum is the unique set size. The kernel can drop file pages; a page is private while one process maps it.
    """
    text = Path("/proc/self/smaps_rollup").read_text()
    kib = {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("Private_Clean", "Private_Dirty")}
    return {"allocated": kib["Private_Dirty"] / 1024, "mapped": kib["Private_Clean"] / 1024}


def read_lists(tasks: dict[str, Task], data_dir: Path) -> dict[str, ListTable]:
    """The same examples as dicts, from official files that json.load reads at once."""

    def load(name: str) -> Any:
        with (data_dir / name).open(encoding="utf-8") as file:
            return json.load(file)

    vqa = []
    for part in ("train2014", "val2014"):
        annotations = {one["question_id"]: one["answers"] for one in load(f"{part}_annotations.json")["annotations"]}
        for question in load(f"{part}_questions.json")["questions"]:
            humans = [one["answer"] for one in annotations[question["question_id"]]]
            answers, scores = tasks["vqa"].soft_targets(humans)
            image = f"COCO_{part}_{question['image_id']:012d}"
            vqa.append(_item(question["question_id"], [image], question["question"], answers, scores))
    gqa = [
        _item(id_, [one["imageId"]], one["question"], [one["answer"]], [1.0])
        for id_, one in load("train_balanced_questions.json").items()
    ]
    with (data_dir / "nlvr2_train.json").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    nlvr2 = []
    for one in lines:
        pair = one["identifier"].rpartition("-")[0]
        images = [f"{pair}-img0", f"{pair}-img1"]
        nlvr2.append(_item(one["identifier"], images, one["sentence"], [one["label"].lower()], [1.0]))
    captions = [
        _item(f"{image['cocoid']}-{one['sentid']}", [image["filename"][:-4]], "", [one["raw"]], [1.0])
        for image in load("dataset_coco.json")["images"]
        if image["split"] in ("train", "restval")
        for one in image["sentences"]
    ]
    lists = {"vqa": vqa, "gqa": gqa, "nlvr2": nlvr2, "coco_caption": captions}
    return {name: ListTable(items) for name, items in lists.items()}


def _item(id_: Any, images: list[str], text: str, answers: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    return {"id": str(id_), "images": images, "text": text, "answers": list(answers), "scores": list(scores)}


def measure_compile(config: Config, process_start: float) -> dict[str, Any]:
    """Compile the tables: number of examples and seconds per task, and total seconds."""
    measured: dict[str, Any] = {"tasks": {}}
    for name, task in build_tasks(config).items():
        started = time.monotonic()
        rows = len(load_table(task, TRAIN, config.cache_dir))
        measured["tasks"][name] = {"rows": rows, "wall_s": time.monotonic() - started}
    return measured | {"wall_s": time.monotonic() - process_start}


def measure_start(config: Config, process_start: float) -> dict[str, Any]:
    """Seconds from process start to the first batch, with everything that training does before it."""
    imported = time.monotonic() - process_start
    inputs = check_inputs(config, [TRAIN])
    checked = time.monotonic() - process_start
    run = build_run(config, Accelerator(cpu=True), inputs)
    first = run.schedule().plan(0)
    batch = run.collators[first.task, TRAIN].train_batch(first.rows, config.seed, first.step)
    total = time.monotonic() - process_start
    return {"import_s": imported, "check_s": checked - imported, "rows": len(batch), "wall_s": total}


def measure_memory(config: Config, process_start: float, lists: bool) -> dict[str, Any]:
    """Memory for examples in one process and in each worker, and the time to the first batch without checks."""
    tasks, tokenizer = build_tasks(config), load_tokenizer(config.backbone)
    store = FeatureStore(config.data_dir / "features.h5")
    before = private_memory()
    if lists:
        tables = read_lists(tasks, config.data_dir)
    else:
        tables = {name: load_table(task, TRAIN, config.cache_dir) for name, task in tasks.items()}
    sizes = {name: len(table) for name, table in tables.items()}
    schedule = _schedule(config, tasks, sizes)
    collators = {name: Collator(task, tables[name], tokenizer, store) for name, task in tasks.items()}
    batches = Batches(collators, schedule, config.seed)
    batches[0]
    first_s = time.monotonic() - process_start
    for step in range(1, STEPS):
        batches[step]
    gc.collect()
    after = private_memory()
    steps = range(STEPS, 2 * STEPS)
    loader = DataLoader(batches, sampler=steps, batch_size=None, num_workers=WORKERS, worker_init_fn=worker_init)
    workers = {pid: memory for pid, memory in loader if memory}
    return {
        "rows": sizes,
        "first_s": first_s,
        "process": {name: after[name] - before[name] for name in after},
        "workers": [sum(memory.values()) for memory in workers.values()],
    }


def measure_sampling(config: Config, process_start: float) -> dict[str, Any]:
    """Microseconds of sampling a step: the first step of an epoch, which shuffles, and the median of later ones."""
    tasks = build_tasks(config)
    sizes = {name: len(load_table(task, TRAIN, config.cache_dir)) for name, task in tasks.items()}
    schedule, measured = _schedule(config, tasks, sizes), {}
    for first in SAMPLED_STEPS:
        times = []
        for step in range(first, first + 200):
            started = time.perf_counter()
            schedule.plan(step)
            times.append(1e6 * (time.perf_counter() - started))
        measured[str(first)] = {"first_us": times[0], "median_us": statistics.median(times)}
    return measured


def _schedule(config: Config, tasks: dict[str, Task], sizes: dict[str, int]) -> Schedule:
    batches = {
        name: max(1, int(config.training.batch_size * task.config.batch_size_ratio)) for name, task in tasks.items()
    }
    return Schedule(sizes, batches, config.sampling, config.seed)


PARTS = {
    "compile": measure_compile,
    "first": measure_start,
    "start": measure_start,
    "memory": lambda config, process_start: measure_memory(config, process_start, lists=False),
    "sampling": measure_sampling,
    "lists": lambda config, process_start: measure_memory(config, process_start, lists=True),
}


def measure_all(path: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results of all parts; they are stored next to the files and not measured again."""
    results = {}
    for part in parts:
        stored = path.with_name(f"{part}.measured")
        if not stored.exists():
            if part == "compile":
                shutil.rmtree(path.parent / "cache", ignore_errors=True)
            stored.write_text(json.dumps(measure_in_process(part, path)))
        results[part] = json.loads(stored.read_text())
    return results


def prepare_files(folder: Path, scale: float) -> Path:
    """The configuration for the files in a folder; writes them if there are none."""
    path, scale_path = folder / "scale.yaml", folder / "scale.of"
    if not path.exists():
        write_files(folder, scale)
        scale_path.write_text(repr(scale))
    if float(scale_path.read_text()) != scale:
        raise InputError(f"--files: {folder} contains files of another --scale; remove it, or use another folder")
    return path


def measure_in_process(part: str, path: Path) -> dict[str, Any]:
    """Results of one part in a new process, with the CPU seconds and peak memory of that process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, str(path), str(time.monotonic())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    line = done.stdout.splitlines()[-1]
    print(f"{part}: {line}", file=sys.stderr, flush=True)
    return json.loads(line)


def _measure_here(part: str, path: str, process_start: str) -> None:
    results = PARTS[part](load_config(path), float(process_start))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # ru_maxrss is in KiB on Linux, the only system with /proc, which is needed here
    print(json.dumps(results | {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}))


def table_rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    """Rows of the table: measure, value with compiled tables, value with lists."""
    compiled, started, tables, lists = results["compile"], results["start"], results["memory"], results.get("lists")

    def row(label: str, value: str, of_lists: Any = None) -> tuple[str, str, str | None]:
        return label, value, of_lists(lists) if of_lists and lists else None

    def workers(one: dict[str, Any]) -> str:
        return f"{_mib(statistics.mean(one['workers']))} (at most {_mib(max(one['workers']))})"

    rows = [
        row(f"compile {name}, {one['rows']:,} examples, once", f"{one['wall_s']:,.1f} s")
        for name, one in compiled["tasks"].items()
    ]
    rows += [
        row("compile all, complete process, once", f"{compiled['wall_s']:,.1f} s, CPU {compiled['cpu_s']:,.1f} s"),
        row("its peak memory", _mib(compiled["peak_mib"])),
        row(
            "every start to the first batch, without checks",
            f"{tables['first_s']:,.1f} s", lambda one: f"{one['first_s']:,.1f} s",
        ),
        row("first start after compilation, token lengths counted", f"{results['first']['wall_s']:,.1f} s"),
        row("every later start to the first batch, as training does it", f"{started['wall_s']:,.1f} s"),
        row("of that, imports", f"{started['import_s']:,.1f} s"),
        row("of that, checking every example, image key and text length", f"{started['check_s']:,.1f} s"),
        row("peak memory of a start", _mib(started["peak_mib"]), lambda one: _mib(one["peak_mib"])),
        row(
            f"memory for examples after {STEPS} batches",
            _mib(tables["process"]["allocated"]), lambda one: _mib(one["process"]["allocated"]),
        ),
        row(
            "including the file's pages, shared by all processes (unique set size)",
            _mib(sum(tables["process"].values())), lambda one: _mib(sum(one["process"].values())),
        ),
        row(
            f"each of {WORKERS} workers adds after {STEPS // WORKERS} batches (unique set size)",
            workers(tables), workers,
        ),
    ]  # fmt: skip
    for step in SAMPLED_STEPS:
        one = results["sampling"][str(step)]
        times = f"{one['median_us']:,.0f} µs, the first of its epoch {one['first_us'] / 1000:,.1f} ms"
        rows.append(row(f"sampling of step {step:,}", times))
    return rows


def _mib(mib: float) -> str:
    return f"{mib:,.0f} MiB"


def render_table(results: dict[str, dict[str, Any]], scale: float, file_bytes: int) -> str:
    """The measurements as Markdown."""
    columns = (Column("measure", "text"), Column("compiled tables", "text"), Column("JSON lists in memory", "text"))
    size = "True size" if scale == 1 else f"{scale:g} of the true size"
    notes = (
        f"{size}: {sum(one['rows'] for one in results['compile']['tasks'].values()):,} examples from "
        f"{file_bytes / 1e9:,.2f} GB of annotation files with random text; files in the page cache.",
        f"{os.cpu_count()} CPU cores. Seconds count from process start, imports included. Image features are zeros "
        "from a store with every key; tokens are those of the bundled tokenizer.",
        "JSON lists keep only what training needs of an item, without any check.",
    )
    table = Table("Examples at scale", columns, tuple(table_rows(results)), notes=notes)
    return render(table, "markdown")


@cli_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, measure, print the table, and optionally write it to a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the true size (default: 1, 3 GB of disk)")
    parser.add_argument("--files", type=Path, help="folder that keeps the files and measurements")
    parser.add_argument("--no-lists", action="store_true", help="skip JSON lists, which need 10 GB of memory")
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table between its markers")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        _measure_here(*options.part)
        return 0
    parts = [part for part in PARTS if part != "lists" or not options.no_lists]
    with tempfile.TemporaryDirectory() if options.files is None else contextlib.nullcontext(options.files) as folder:
        path = prepare_files(Path(folder), options.scale)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.json"))
        table = render_table(measure_all(path, parts), options.scale, size)
    print(table)
    if options.page:
        replace_section(options.page, f"\n{table}\n", "scale", "--page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
