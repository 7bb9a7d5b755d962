"""Write and read rates of the feature store, compared with other layouts: python -m benchmarks.feature_store

Writes the same random features in every layout, then reads images in random order and in file order. The layouts
alternate, each in its own process. Prints Markdown: medians over rounds, with the files in the page cache. Ratios are
relative to the published layout, one float32 HDF5 file per image. A second table reads with an empty page cache.
Writing is measured until everything is on disk.

--step instead measures how long a training step of BART-base waits for its data (`benchmarks/store_step.py`).
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

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.reports.markers import replace_section

CELLS, DIM, BATCH, POOL = 49, 2048, 64, 64
Read = Callable[[list[int]], object]
PUBLISHED = "one file per image, float32 (published)"


def key(number: int) -> str:
    """An image key in the format of COCO."""
    return f"COCO_val2014_{number:012d}"


def features(images: int) -> Iterable[np.ndarray]:
    """Random features [CELLS, DIM] float16; POOL different ones, so that generating them takes no time."""
    pool = np.random.default_rng(0).standard_normal((POOL, CELLS, DIM), "f4").astype("<f2")
    return (pool[number % POOL] for number in range(images))


# ---- layouts: write(images) writes the files, open() returns a function that reads a list of images


class PerImageFiles:
    """One HDF5 file per image, opened for each read."""

    def __init__(self, folder: Path, dtype: str):
        self.folder, self.dtype = folder / f"per_image_{dtype}", dtype

    def write(self, images: int) -> None:
        self.folder.mkdir()
        for number, one in enumerate(features(images)):
            with h5py.File(self.folder / f"{key(number)}.h5", "w") as file:
                file[f"{key(number)}/features"] = one.astype(self.dtype)

    def open(self) -> Read:
        def read(name: str) -> np.ndarray:
            with h5py.File(self.folder / f"{name}.h5") as file:
                return file[f"{name}/features"][()]

        return lambda numbers: [read(key(number)) for number in numbers]

    def files(self) -> list[Path]:
        return list(self.folder.iterdir())


class GroupPerImage:
    """One HDF5 file with one group per image, float16."""

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


class Store:
    """Our feature store; `get_many` returns a batch as one array."""

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
    """A plain array as the upper bound: no keys, no manifest, no checksums."""

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
    """Process that reads the image numbers it receives and sends the seconds; None ends it with its peak memory."""
    read = layout.open()
    while (numbers := pipe.recv()) is not None:
        started = time.perf_counter()
        for at in range(0, len(numbers), BATCH):
            read(numbers[at : at + BATCH])
        pipe.send(time.perf_counter() - started)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ---- measuring


def read_all(layouts: dict, images: int, reads: int, rounds: int, start_method: str) -> tuple[dict, dict, dict]:
    """Random and sequential images/s of each layout (medians), and the peak memory of its reader in bytes."""
    context = multiprocessing.get_context(start_method)
    pipes, random, in_order, memory = {}, {}, {}, {}
    for name, layout in layouts.items():
        pipes[name], child_pipe = context.Pipe()
        context.Process(target=_reader, args=(layout, child_pipe), daemon=True).start()
    for turn in range(rounds + 1):  # the first round warms the cache and is not counted
        sample = np.random.default_rng(turn).integers(0, images, reads).tolist()
        for numbers, rates in ((sample, random), (list(range(images)), in_order)):
            for name, pipe in pipes.items():
                pipe.send(numbers)
                elapsed = pipe.recv()
                if turn:
                    rates.setdefault(name, []).append(len(numbers) / elapsed)
    for name, pipe in pipes.items():
        pipe.send(None)
        memory[name] = pipe.recv()
    return *({name: statistics.median(rates) for name, rates in one.items()} for one in (random, in_order)), memory


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Remove files from the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_cold(layouts: dict, images: int, rounds: int) -> list[tuple[str, float]]:
    """Images/s with an empty page cache, reading all images once."""
    published, ours = layouts[PUBLISHED], layouts["ours, get_many"]
    cases: dict[str, tuple[object, Callable[[int], None]]] = {}

    def random(layout) -> Callable[[int], None]:
        read = layout.open()

        def run(turn: int) -> None:
            order = np.random.default_rng(turn).permutation(images).tolist()
            for at in range(0, images, BATCH):
                read(order[at : at + BATCH])

        return run

    cases["published layout, random order"] = published, random(published)
    cases["ours, random order"] = ours, random(ours)
    store = FeatureStore(ours.path)
    cases["ours, order of the file"] = (
        ours,
        lambda turn: [
            store.get_many([key(n) for n in range(at, min(at + BATCH, images))]).shape for at in range(0, images, BATCH)
        ],
    )
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name, (layout, run) in cases.items():
            drop_from_page_cache(layout.files())
            started = time.perf_counter()
            run(turn)
            rates[name].append(images / (time.perf_counter() - started))
    return [(name, statistics.median(values)) for name, values in rates.items()]


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path("../shared/data")
    parser.add_argument("--images", type=int, default=1500, help="number of images (default: 1500)")
    parser.add_argument("--reads", type=int, default=3000, help="random reads per layout and round (default: 3000)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--folder", type=Path, help="folder for the files, 1.4 MB per image (default: a temporary one)")
    parser.add_argument("--step", action="store_true", help="measure how long a training step waits for its data")
    parser.add_argument("--markdown", type=Path, help="Markdown page that receives the tables between its markers")
    parser.add_argument("--questions", type=Path, default=data / "vqav2_60k", help="--step: folder of VQA v2 questions")
    parser.add_argument("--tokenizer", type=Path, default=data / "bart_tokenizer", help="--step: BART's tokenizer")
    parser.add_argument("--steps", type=int, default=20, help="--step: measured steps (default: 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.step:
            from benchmarks.store_step import measure_step  # the reader processes do not need torch

            name = "step"
            text = measure_step(Path(folder), options.questions, options.tokenizer, options.steps)
        else:
            name, text = "rates", compare(Path(folder), options.images, options.reads, options.rounds)
    print(text)
    if options.markdown:
        replace_section(options.markdown, text, name)


def compare(folder: Path, images: int, reads: int, rounds: int, start_method: str = "spawn") -> str:
    """Write and read every layout; return both tables."""
    layouts = {
        PUBLISHED: PerImageFiles(folder, "float32"),
        "one file per image, float16": PerImageFiles(folder, "float16"),
        "one file, a group per image, float16": GroupPerImage(folder),
        "ours, get_many": Store(folder),
        "memmap, float16 (no keys, no manifest)": Memmap(folder),
    }
    written = {}
    for name, layout in layouts.items():
        os.sync()
        started = time.perf_counter()
        layout.write(images)
        os.sync()
        written[name] = images / (time.perf_counter() - started)
    layouts["ours, get_many, cache: memory"] = Store(folder, in_memory=True)
    random, in_order, memory = read_all(layouts, images, reads, rounds, start_method)
    lines = [
        f"{images:,} images, batches of {BATCH}, median of {rounds} rounds, page cache warm:\n",
        "| layout | written/s | random reads/s | ratio | in order/s | bytes/image | reader's peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, layout in layouts.items():
        size = sum(path.stat().st_size for path in layout.files()) / images
        columns = [
            name, f"{written[name]:,.0f}" if name in written else "", f"{random[name]:,.0f}",
            f"{random[name] / random[PUBLISHED]:.1f}", f"{in_order[name]:,.0f}", f"{size:,.0f}",
            f"{memory[name] / 1e6:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    rates = read_cold(layouts, images, rounds)
    lines += [f"\nEmpty page cache, all images once, median of {rounds} rounds:\n"]
    lines += ["| order | images/s | ratio |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {rate:,.0f} | {rate / rates[0][1]:.1f} |" for name, rate in rates]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
