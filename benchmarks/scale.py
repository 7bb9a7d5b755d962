"""What do examples cost at the true size of the datasets? python -m benchmarks.scale [--scale 0.01] [--page FILE]

It takes some minutes; with --files FOLDER it may be stopped, and the same command goes on where it was.

Writes random files in the official layouts (`scale_files`), then measures, each in a fresh process: compiling all four
tasks by the readers that training uses; a second start until its first batch; the memory that a training process and
its loader workers hold for examples; the draw of a step. Beside it the usual way: the official files read by json.load,
items kept as dicts in lists, workers forked from that. Files are in the page cache; image features are zeros, from a
store with every key.
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
from multitask_vl.data.example_table import compiled
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.models.build import load_tokenizer
from multitask_vl.reports.table import Column, Table, render
from multitask_vl.reproduction.parameters import put_between_markers
from multitask_vl.run.build import assemble
from multitask_vl.run.checks import TRAIN, find_needs
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks
from multitask_vl.training.dataloader import keep_shared

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 4
STEPS = 160
"""Batches that a process draws before its memory is read; the workers share as many."""
DRAWN = (10, 10_000, 1_000_000)
MIB = 1 << 20


class Listed:
    """Examples as dicts in a list, with what `Collator` asks of a table."""

    def __init__(self, items: list[dict[str, Any]]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: list[int]) -> dict[str, list]:
        found = [self.items[row] for row in rows]
        return {name: [item[name] for item in found] for name in ("id", "images", "text", "answers", "scores")}


class Batches(Dataset):
    """Step number -> process, and at the last step of each worker its private memory."""

    def __init__(self, collators: dict[str, Collator], schedule: Schedule, seed: int):
        self.collators, self.schedule, self.seed = collators, schedule, seed

    def __getitem__(self, step: int) -> tuple[int, dict[str, float] | None]:
        draw = self.schedule.draw(step)
        self.collators[draw.task].training(draw.rows, self.seed, step)
        # reading it takes as long as a batch
        return os.getpid(), private_memory() if step >= 2 * STEPS - WORKERS else None


def private_memory() -> dict[str, float]:
    """MiB that no other process shares: ``held`` by the process, and ``mapped`` file pages, which the kernel can drop.

    Their sum is the unique set size. A file page counts as private while only one process has it mapped.
    """
    text = Path("/proc/self/smaps_rollup").read_text()
    kib = {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("Private_Clean", "Private_Dirty")}
    return {"held": kib["Private_Dirty"] / 1024, "mapped": kib["Private_Clean"] / 1024}


def read_lists(tasks: dict[str, Task], data_dir: Path) -> dict[str, Listed]:
    """The same examples as dicts, from official files that json.load reads whole."""

    def load(name: str) -> Any:
        with (data_dir / name).open(encoding="utf-8") as file:
            return json.load(file)

    vqa = []
    for part in ("train2014", "val2014"):
        said = {one["question_id"]: one["answers"] for one in load(f"{part}_annotations.json")["annotations"]}
        for asked in load(f"{part}_questions.json")["questions"]:
            humans = [one["answer"] for one in said[asked["question_id"]]]
            answers, scores = tasks["vqa"].soft_targets(humans)
            image = f"COCO_{part}_{asked['image_id']:012d}"
            vqa.append(_item(asked["question_id"], [image], asked["question"], answers, scores))
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
    return {"vqa": Listed(vqa), "gqa": Listed(gqa), "nlvr2": Listed(nlvr2), "coco_caption": Listed(captions)}


def _item(id_: Any, images: list[str], text: str, answers: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    return {"id": str(id_), "images": images, "text": text, "answers": list(answers), "scores": list(scores)}


def compile_all(config: Config, began: float) -> dict[str, Any]:
    """Seconds of each task and in all, and how many examples there are."""
    found: dict[str, Any] = {"tasks": {}}
    for name, task in build_tasks(config).items():
        started = time.monotonic()
        rows = len(compiled(task, TRAIN, config.cache_dir))
        found["tasks"][name] = {"rows": rows, "wall_s": time.monotonic() - started}
    return found | {"wall_s": time.monotonic() - began}


def start(config: Config, began: float) -> dict[str, Any]:
    """Seconds from the birth of the process to the first batch, everything that training does before it included."""
    imported = time.monotonic() - began
    needs = find_needs(config, [TRAIN])
    checked = time.monotonic() - began
    run = assemble(config, Accelerator(cpu=True), needs)
    draw = run.schedule().draw(0)
    batch = run.collators[draw.task, TRAIN].training(draw.rows, config.seed, draw.step)
    return {"import_s": imported, "check_s": checked - imported, "rows": len(batch), "wall_s": time.monotonic() - began}


def hold(config: Config, began: float, listed: bool) -> dict[str, Any]:
    """Memory for examples in one process and in each worker, and the time to the first batch without any check."""
    tasks, tokenizer = build_tasks(config), load_tokenizer(config.backbone)
    store = FeatureStore(config.data_dir / "features.h5")
    before = private_memory()
    if listed:
        tables = read_lists(tasks, config.data_dir)
    else:
        tables = {name: compiled(task, TRAIN, config.cache_dir) for name, task in tasks.items()}
    sizes = {name: len(table) for name, table in tables.items()}
    schedule = _schedule(config, tasks, sizes)
    collators = {name: Collator(task, tables[name], tokenizer, store) for name, task in tasks.items()}
    batches = Batches(collators, schedule, config.seed)
    batches[0]
    first_s = time.monotonic() - began
    for step in range(1, STEPS):
        batches[step]
    gc.collect()
    after = private_memory()
    steps = range(STEPS, 2 * STEPS)
    loader = DataLoader(batches, sampler=steps, batch_size=None, num_workers=WORKERS, worker_init_fn=keep_shared)
    workers = {pid: memory for pid, memory in loader if memory}
    return {
        "rows": sizes,
        "first_s": first_s,
        "process": {name: after[name] - before[name] for name in after},
        "workers": [memory["held"] + memory["mapped"] for memory in workers.values()],
    }


def draw(config: Config, began: float) -> dict[str, Any]:
    """Microseconds of drawing a step: the first one of a region, which makes its orders, and the ones after it."""
    tasks = build_tasks(config)
    sizes = {name: len(compiled(task, TRAIN, config.cache_dir)) for name, task in tasks.items()}
    schedule, found = _schedule(config, tasks, sizes), {}
    for first in DRAWN:
        times = []
        for step in range(first, first + 200):
            started = time.perf_counter()
            schedule.draw(step)
            times.append(1e6 * (time.perf_counter() - started))
        found[str(first)] = {"first_us": times[0], "median_us": statistics.median(times)}
    return found


def _schedule(config: Config, tasks: dict[str, Task], sizes: dict[str, int]) -> Schedule:
    batches = {name: max(1, int(config.training.batch_size * task.config.batch_share)) for name, task in tasks.items()}
    return Schedule(sizes, batches, config.mixing, config.seed)


PARTS = {
    "compile": compile_all,
    "first": start,
    "start": start,
    "hold": lambda config, began: hold(config, began, listed=False),
    "draw": draw,
    "lists": lambda config, began: hold(config, began, listed=True),
}


def measure_all(path: Path, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each part of the measurement finds; kept beside the files, where it may stand already."""
    found = {}
    for part in wanted:
        kept = path.with_name(f"{part}.measured")
        if not kept.exists():
            if part == "compile":
                shutil.rmtree(path.parent / "cache", ignore_errors=True)
            kept.write_text(json.dumps(measured(part, path)))
        found[part] = json.loads(kept.read_text())
    return found


def written(folder: Path, scale: float) -> Path:
    """The configuration over the files in a folder; they are written where there are none."""
    path, about = folder / "scale.yaml", folder / "scale.of"
    if not path.exists():
        write_files(folder, scale)
        about.write_text(repr(scale))
    if float(about.read_text()) != scale:
        raise InputError(f"--files: {folder} holds files of another --scale; remove it, or name another folder")
    return path


def measured(part: str, path: Path) -> dict[str, Any]:
    """What a part of the measurement finds in a process of its own, with that process's CPU seconds and peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, str(path), str(time.monotonic())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{part}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return found


def _measure_here(part: str, path: str, began: str) -> None:
    found = PARTS[part](load_config(path), float(began))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # kilobytes on Linux, which /proc needs as well
    print(json.dumps(found | {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}))


def table_of(found: dict[str, dict[str, Any]], scale: float, file_bytes: int) -> str:
    """The measurements as Markdown."""
    made, begun, tables, lists = found["compile"], found["start"], found["hold"], found.get("lists")

    def both(what: str, of_tables: str, of_lists: Any = None) -> tuple[str, str, str | None]:
        return what, of_tables, of_lists(lists) if of_lists and lists else None

    def memory(mib: float) -> str:
        return f"{mib:,.0f} MiB"

    def workers(one: dict[str, Any]) -> str:
        return f"{memory(statistics.mean(one['workers']))} (at most {memory(max(one['workers']))})"

    rows = [
        both(f"compile {name}, {one['rows']:,} examples, once", f"{one['wall_s']:,.1f} s")
        for name, one in made["tasks"].items()
    ]
    rows += [
        both("compile all, the process whole, once", f"{made['wall_s']:,.1f} s, CPU {made['cpu_s']:,.1f} s"),
        both("its peak memory", memory(made["peak_mib"])),
        both(
            "every start to the first batch, nothing checked",
            f"{tables['first_s']:,.1f} s", lambda one: f"{one['first_s']:,.1f} s",
        ),
        both("first start after that, texts' lengths counted", f"{found['first']['wall_s']:,.1f} s"),
        both("every later start to the first batch, as training does it", f"{begun['wall_s']:,.1f} s"),
        both("of it imports", f"{begun['import_s']:,.1f} s"),
        both("of it looking at every example, image key and text length", f"{begun['check_s']:,.1f} s"),
        both("peak memory of a start", memory(begun["peak_mib"]), lambda one: memory(one["peak_mib"])),
        both(
            f"held for examples after {STEPS} batches",
            memory(tables["process"]["held"]), lambda one: memory(one["process"]["held"]),
        ),
        both(
            "with the file's pages, which all processes share (unique set size)",
            memory(sum(tables["process"].values())), lambda one: memory(sum(one["process"].values())),
        ),
        both(
            f"each of {WORKERS} workers adds after {STEPS // WORKERS} batches (unique set size)",
            workers(tables), workers,
        ),
    ]  # fmt: skip
    for step in map(str, DRAWN):
        one = found["draw"][step]
        later = f"{one['median_us']:,.0f} µs, the first of its pass {one['first_us'] / 1000:,.1f} ms"
        rows.append(both(f"draw of step {int(step):,}", later))
    columns = (Column("measure", "text"), Column("compiled tables", "text"), Column("JSON lists in memory", "text"))
    size = "True size" if scale == 1 else f"{scale:g} of the true size"
    notes = (
        f"{size}: {sum(one['rows'] for one in made['tasks'].values()):,} examples from {file_bytes / 1e9:,.2f} GB of "
        "annotation files with random text; files in the page cache.",
        f"{os.cpu_count()} CPU cores. Seconds count from the birth of the process, imports included. Image features "
        "are zeros from a store with every key; tokens are the embedded tokenizer's.",
        "JSON lists keep only what training needs of an item, and are not checked in any way.",
    )
    return render(Table("Examples at scale", columns, tuple(rows), notes=notes), "markdown")


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, measure, print the table or write it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the true size (default 1: 3 GB of disk)")
    parser.add_argument("--files", type=Path, help="keep the files and what was found of them in this folder")
    parser.add_argument("--no-lists", action="store_true", help="leave out JSON lists: at true size they take 10 GB")
    parser.add_argument("--page", type=Path, help="write the table between its marks in this file")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        _measure_here(*options.part)
        return 0
    wanted = [part for part in PARTS if part != "lists" or not options.no_lists]
    with tempfile.TemporaryDirectory() if options.files is None else contextlib.nullcontext(options.files) as folder:
        path = written(Path(folder), options.scale)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.json"))
        table = table_of(measure_all(path, wanted), options.scale, size)
    print(table)
    if options.page:
        put_between_markers(options.page, f"\n{table}\n", "scale", "--page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
