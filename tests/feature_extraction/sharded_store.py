"""Random features of 30 images, their store in three shards, and the command `multitask-vl store` in process."""

from pathlib import Path

from multitask_vl.cli.main import main
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.writer import write_store
from tests.store_fixtures import MANIFEST, corrupt_row, random_features

FEATURES = random_features([f"{n:03d}" for n in range(30)])
KEYS = sorted(FEATURES)


def run_store(*args) -> int:
    """Run `multitask-vl store` and return its exit code."""
    return main(["store", *map(str, args)]) or 0


def write_shards(folder: Path) -> Path:
    """Write `FEATURES` to three shards and return their common name."""
    for i in range(3):
        shard = {key: FEATURES[key] for key in KEYS[i::3]}
        write_store(folder / f"part-{i:05d}-of-00003.h5", MANIFEST, shard)
    return folder / "part.h5"


def break_first_shard(folder: Path) -> None:
    """Mark image 003 as not done and corrupt image 006."""
    first = folder / "part-00000-of-00003.h5"
    rows = LocalRows(read_local_header(first), writable=True)
    rows.mark_undone(1)
    rows.close()
    corrupt_row(first, 2)
