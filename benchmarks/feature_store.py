"""How fast is our store beside the layouts people have, written and read? python -m benchmarks.feature_store

Writes the same random features in every layout, then reads images in random order and in the order of the file, the
layouts taking turns, each in a process of its own, and prints Markdown: the median over rounds, with the files in the
page cache (the disk is the same for all). Ratios are to the published layout, one float32 HDF5 file per image. A second
table reads with an empty page cache. Writing is timed until everything is on the disk.

--step measures instead how long a training step of BART-base waits for its data (`benchmarks/store_step.py`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

from multitask_vl.data.store.feature_store import FeatureStore, Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.reproduction.parameters import put_between_markers

CELLS, DIM, BATCH, POOL = 49, 2048, 64, 64
Read = Callable[[list[int]], object]
PUBLISHED = "one file per image, float32 (published)"


def key(number: int) -> str:
    """An image key as COCO has them."""
    return f"COCO_val2014_{number:012d}"


def features(images: int) -> Iterable[np.ndarray]:
    """Random features [CELLS, DIM] float16; only POOL different ones, so that making them costs nothing."""
    pool = np.random.default_rng(0).standard_normal((POOL, CELLS, DIM), "f4").astype("<f2")
    return (pool[number % POOL] for number in range(images))


# ---- layouts: how each is written, and how its reader reads


class PerImage:
    """One HDF5 file per image, opened for each read."""

    def __init__(self, folder: Path, dtype: str):
        self.folder, self.dtype = folder / f"per_image_{dtype}", dtype

    def write(self, images: int) -> None:
        self.folder.mkdir()
        for number, one in enumerate(features(images)):
            with h5py.File(self.folder / f"{key(number)}.h5", "w") as file:
                file[f"{key(number)}/features"] = one.astype(self.dtype)

    def open(self) -> Read:
        def one(name: str) -> np.ndarray:
            with h5py.File(self.folder / f"{name}.h5") as file:
                return file[f"{name}/features"][()]

        return lambda numbers: [one(key(number)) for number in numbers]

    def files(self) -> list[Path]:
        return list(self.folder.iterdir())


class Groups:
    """One HDF5 file with a group per image, float16."""

    def __init__(self, folder: Path):
        self.path = folder / "groups.h5"

    def write(self, images: int) -> None:
        with h5py.File(self.path, "w") as file:
            for number, one in enumerate(features(images)):
                file[f"{key(number)}/features"] = one

    def open(self) -> Read:
        file = h5py.File(self.path)
        return lambda numbers: [file[f"{key(number)}/features"][()] for number in numbers]

    def files(self) -> list[Path]:
        return [self.path]


class Ours:
    """Our store; `get_many` gives a batch in one array."""

    def __init__(self, folder: Path, in_memory: bool = False):
        self.path, self.in_memory = folder / "store.h5", in_memory

    def write(self, images: int) -> None:
        manifest = Manifest(
            encoder="none", weights_tag="none", weights_sha256=None, image_size=224, resize="squash", mean=(0, 0, 0),
            std=(1, 1, 1), layer="none", grid=(7, 7), dim=DIM,
        )  # fmt: skip
        source = features(images)
        with StoreWriter(self.path, manifest, [key(number) for number in range(images)]) as writer:
            for at in range(0, images, BATCH):
                rows = range(at, min(at + BATCH, images))
                writer.write(rows, np.stack([next(source) for _ in rows]))

    def open(self) -> Read:
        store = FeatureStore(self.path)
        if self.in_memory:
            store.load_into_memory()
        return lambda numbers: store.get_many([key(number) for number in numbers])

    def files(self) -> list[Path]:
        return [self.path]


class Memmap:
    """A bare array, for the limit: no keys, no manifest, no checksums."""

    def __init__(self, folder: Path):
        self.path = folder / "memmap.bin"

    def write(self, images: int) -> None:
        with self.path.open("wb") as file:
            for one in features(images):
                file.write(one)

    def open(self) -> Read:
        rows = np.memmap(self.path, "<f2", "r").reshape(-1, CELLS, DIM)
        return lambda numbers: np.stack([rows[number] for number in numbers])

    def files(self) -> list[Path]:
        return [self.path]


def _reader(layout, pipe) -> None:
    """A process that reads what it is told, and answers with the seconds it took; None ends it."""
    read = layout.open()
    while (numbers := pipe.recv()) is not None:
        started = time.perf_counter()
        for at in range(0, len(numbers), BATCH):
            read(numbers[at : at + BATCH])
        pipe.send(time.perf_counter() - started)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ---- measuring


def read_all(layouts: dict, images: int, reads: int, rounds: int) -> tuple[dict, dict, dict]:
    """Random and sequential images a second of each layout (medians), and its reader's peak memory in bytes."""
    context = multiprocessing.get_context("spawn")
    pipes, random, in_order, memory = {}, {}, {}, {}
    for name, layout in layouts.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=_reader, args=(layout, theirs), daemon=True).start()
    for turn in range(rounds + 1):  # the first round warms the cache and is not counted
        drawn = np.random.default_rng(turn).integers(0, images, reads).tolist()
        for orders, seconds in ((drawn, random), (list(range(images)), in_order)):
            for name, pipe in pipes.items():
                pipe.send(orders)
                took = pipe.recv()
                if turn:
                    seconds.setdefault(name, []).append(len(orders) / took)
    for name, pipe in pipes.items():
        pipe.send(None)
        memory[name] = pipe.recv()
    return *({name: statistics.median(rates) for name, rates in one.items()} for one in (random, in_order)), memory


def forget(files: Iterable[Path]) -> None:
    """Take files out of the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cold(layouts: dict, images: int, rounds: int) -> list[tuple[str, float]]:
    """Images a second with an empty page cache: all images once, in each way that is named."""
    published, ours = layouts[PUBLISHED], layouts["ours, get_many"]
    ways: dict[str, tuple[object, Callable[[int], None]]] = {}

    def random(layout) -> Callable[[int], None]:
        read = layout.open()

        def run(turn: int) -> None:
            order = np.random.default_rng(turn).permutation(images).tolist()
            for at in range(0, images, BATCH):
                read(order[at : at + BATCH])

        return run

    ways["published layout, random order"] = published, random(published)
    ways["ours, random order"] = ours, random(ours)
    for block_rows, mixed in ((16, 8), (64, 8), (256, 4)):
        store = FeatureStore(ours.path)
        ways[f"ours, blocks of {block_rows} rows, {mixed} mixed"] = (
            ours, lambda turn, s=store, b=block_rows, m=mixed: [len(keys) for keys, _ in s.blocks(0, turn, b, m)],
        )  # fmt: skip
    store = FeatureStore(ours.path)
    ways["ours, order of the file"] = (
        ours,
        lambda turn: [
            store.get_many([key(n) for n in range(at, min(at + BATCH, images))]).shape for at in range(0, images, BATCH)
        ],
    )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, (layout, run) in ways.items():
            forget(layout.files())
            started = time.perf_counter()
            run(turn)
            rates[name].append(images / (time.perf_counter() - started))
    return [(name, statistics.median(values)) for name, values in rates.items()]


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--reads", type=int, default=3000, help="random reads of each layout in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (about 1.4 MB an image); default: a temporary one")
    parser.add_argument("--step", action="store_true", help="how long a training step waits for its data")
    parser.add_argument("--markdown", type=Path, help="also write what was measured between the markers of this page")
    parser.add_argument("--questions", type=Path, default=Path("../shared/data/vqav2_60k"), help="of --step")
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/data/bart_tokenizer"), help="of --step")
    parser.add_argument("--steps", type=int, default=20, help="of --step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.step:
            from benchmarks.store_step import measure_step  # the readers' processes do without torch

            name = "step"
            text = measure_step(Path(folder), arguments.questions, arguments.tokenizer, arguments.steps)
        else:
            name, text = "rates", compare(Path(folder), arguments.images, arguments.reads, arguments.rounds)
    print(text)
    if arguments.markdown:
        put_between_markers(arguments.markdown, text, name)


def compare(folder: Path, images: int, reads: int, rounds: int) -> str:
    """Write and read in every layout; both tables."""
    layouts = {
        PUBLISHED: PerImage(folder, "float32"),
        "one file per image, float16": PerImage(folder, "float16"),
        "one file, a group per image, float16": Groups(folder),
        "ours, get_many": Ours(folder),
        "memmap, float16 (no keys, no manifest)": Memmap(folder),
    }
    written = {}
    for name, layout in layouts.items():
        os.sync()
        started = time.perf_counter()
        layout.write(images)
        os.sync()
        written[name] = images / (time.perf_counter() - started)
    layouts["ours, get_many, read: ram"] = Ours(folder, in_memory=True)
    random, in_order, memory = read_all(layouts, images, reads, rounds)
    lines = [
        f"{images:,} images, batches of {BATCH}, median of {rounds} rounds, page cache warm:\n",
        "| layout | written/s | random reads/s | ratio | in order/s | bytes/image | reader's peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, layout in layouts.items():
        size = sum(path.stat().st_size for path in layout.files()) / images
        cells = [
            name, f"{written[name]:,.0f}" if name in written else "", f"{random[name]:,.0f}",
            f"{random[name] / random[PUBLISHED]:.1f}", f"{in_order[name]:,.0f}", f"{size:,.0f}",
            f"{memory[name] / 1e6:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    rates = cold(layouts, images, rounds)
    lines += [f"\nEmpty page cache, all images once, median of {rounds} rounds:\n"]
    lines += ["| order | images/s | ratio |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {rate:,.0f} | {rate / rates[0][1]:.1f} |" for name, rate in rates]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
