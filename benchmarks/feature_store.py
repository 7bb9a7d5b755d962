"""How fast are random reads of our store beside the layouts people have? python benchmarks/feature_store.py

Writes the same random features in every layout, then reads images in random order, the layouts taking turns, and prints
one table: the median over rounds, with the files in the page cache (the disk is the same for all). Ratios are to the
published layout, one float32 HDF5 file per image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from multitask_vl.data.feature_store import FeatureStore, Manifest
from multitask_vl.data.store_writer import write_store

CELLS, DIM, BATCH = 49, 2048, 64
Read = Callable[[list[str]], object]


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--reads", type=int, default=3000, help="random reads of each layout in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to write (about 1.6 MB an image); default: a temporary folder"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        layouts = write(Path(folder), arguments.images)
        rates = measure(layouts, arguments.images, arguments.reads, arguments.rounds)
        sizes = {name: size / arguments.images for name, (_, size) in layouts.items()}
    first = rates["one file per image, float32 (published)"]
    print(f"{arguments.images:,} images of [{CELLS}, {DIM}], {arguments.reads:,} random reads a round")
    print(f"{'layout':<42}{'images/s':>10}{'ratio':>8}{'bytes/image':>13}")
    for name, rate in rates.items():
        print(f"{name:<42}{rate:>10,.0f}{rate / first:>8.1f}{sizes[name]:>13,.0f}")


def write(folder: Path, images: int) -> dict[str, tuple[Read, int]]:
    """Every layout's reader of images ([T, D] each, thrown away one by one unless said) and its bytes on disk."""
    rng = np.random.default_rng(0)
    features = {f"COCO_val2014_{n:012d}": rng.standard_normal((CELLS, DIM), "f4").astype("f2") for n in range(images)}
    layouts: dict[str, tuple[Read, int]] = {}

    per_image = folder / "per_image"
    per_image.mkdir()
    for key, value in features.items():
        with h5py.File(per_image / f"{key}.h5", "w") as file:
            file[f"{key}/features"] = value.astype("f4")

    def one(key: str) -> np.ndarray:
        with h5py.File(per_image / f"{key}.h5") as file:
            return file[f"{key}/features"][()]

    size = sum(path.stat().st_size for path in per_image.iterdir())
    layouts["one file per image, float32 (published)"] = lambda keys: [one(key).shape for key in keys], size

    with h5py.File(folder / "groups.h5", "w") as file:
        for key, value in features.items():
            file[f"{key}/features"] = value
    groups = h5py.File(folder / "groups.h5")
    layouts["one file, a group per image, float16"] = (
        lambda keys: [groups[f"{key}/features"][()].shape for key in keys],
        (folder / "groups.h5").stat().st_size,
    )

    manifest = Manifest(
        encoder="none", weights_tag="none", weights_sha256=None, image_size=224, resize="squash", mean=(0, 0, 0),
        std=(1, 1, 1), layer="none", grid=(7, 7), dim=DIM,
    )  # fmt: skip
    write_store(folder / "store.h5", manifest, features)
    store, size = FeatureStore(folder / "store.h5"), (folder / "store.h5").stat().st_size
    layouts["ours, get"] = lambda keys: [store.get(key).shape for key in keys], size
    layouts[f"ours, get_many (batches of {BATCH}, kept)"] = store.get_many, size

    rows = {key: row for row, key in enumerate(features)}
    np.stack(list(features.values())).tofile(folder / "memmap.bin")
    memmap = np.memmap(folder / "memmap.bin", "f2", "r", shape=(images, CELLS, DIM))
    layouts["memmap, float16 (no keys, no manifest)"] = (
        lambda keys: [np.array(memmap[rows[key]]).shape for key in keys],
        (folder / "memmap.bin").stat().st_size,
    )
    return layouts


def measure(layouts: dict[str, tuple[Read, int]], images: int, reads: int, rounds: int) -> dict[str, float]:
    """Median images a second of each layout; all read the same keys; a first round, not counted, warms the cache."""
    keys = [f"COCO_val2014_{n:012d}" for n in range(images)]
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for turn in range(rounds + 1):
        order = [keys[at] for at in np.random.default_rng(turn).integers(0, images, reads)]
        for name, (read, _) in layouts.items():
            started = time.perf_counter()
            for at in range(0, reads, BATCH):
                read(order[at : at + BATCH])
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: reads / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
