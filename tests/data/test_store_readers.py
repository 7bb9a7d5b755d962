"""Do the ways to bring features nearer give the same features: memory, a local copy, blocks for a slow disk?"""

import collections
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.block_order import block_order
from multitask_vl.data.store import local_copy as copying
from multitask_vl.data.store import memory_rows
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.local_copy import local_copy
from multitask_vl.data.store.open import open_store
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError
from tests.store_fixtures import MANIFEST, SHAPE, made

ROOT = Path(__file__).resolve().parents[2]
FEATURES = made([f"{n:03d}" for n in range(50)])
KEYS = sorted(FEATURES)


@pytest.fixture
def path(tmp_path):
    """Two shards: their keys interleave."""
    for at in range(2):
        part = {key: FEATURES[key] for key in KEYS[at::2]}
        write_store(tmp_path / f"store-{at:05d}-of-00002.h5", MANIFEST, part)
    return tmp_path / "store.h5"


def same(store, keys=KEYS):
    np.testing.assert_array_equal(store.get_many(keys), np.stack([FEATURES[key] for key in keys]))


# ---- memory


def _pages(store, keys, queue):
    same(store, keys)
    mine = next(part for part in Path("/proc/self/smaps").read_text().split("VmFlags") if "memfd:features" in part)
    queue.put({line.split(":")[0]: int(line.split()[1]) for line in mine.splitlines() if line.endswith(" kB")})


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_rows_in_memory_are_shared_with_workers_and_outlive_the_file(path, tmp_path, start):
    store = open_store(FeaturesConfig(store=path, read="ram"), tmp_path)
    for one in tmp_path.glob("store-*"):
        one.unlink()
    same(store, KEYS[::-1] + KEYS[:3])
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    worker = context.Process(target=_pages, args=(store, KEYS[::3], queue))
    worker.start()
    pages = queue.get(timeout=60)
    worker.join()
    assert pages["Private_Dirty"] == 0, "a worker has no copy of its own"
    assert pages["Rss"] > 0


def test_what_is_not_done_is_not_loaded_and_loading_again_does_nothing(path, tmp_path):
    file = RowFile(read_layout(tmp_path / "store-00001-of-00002.h5"), writable=True)
    file.forget(3)
    store = FeatureStore(path)
    store.load_into_memory()
    assert len(store) == 49
    assert store.missing(KEYS) == [KEYS[7]]
    same(store, [key for key in KEYS if key != KEYS[7]])
    memory = store._memory
    store.load_into_memory()
    assert store._memory is memory


def test_too_little_memory_is_told_before_anything_is_loaded(path, tmp_path, monkeypatch):
    assert 0 < memory_rows.available_memory() < 1 << 50
    monkeypatch.setattr(memory_rows, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"features.read=ram: the rows need 0.00 GB.*features.read=disk"):
        open_store(FeaturesConfig(store=path, read="ram"), tmp_path)


@pytest.mark.parametrize(
    ("groups", "folder", "limit", "used", "files", "none"),
    [
        ("0::/job/step", "job", "memory.max", "memory.current", "", "max"),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/job",
            "memory/job",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
            "9223372036854771712",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_of_a_job_counts(tmp_path, monkeypatch, groups, folder, limit, used, files, none):
    folder = tmp_path / folder
    (folder / "step").mkdir(parents=True)
    (tmp_path / "groups").write_text(f"{groups}\n")
    (folder / limit).write_text("5000\n")
    (folder / used).write_text("2000\n")
    monkeypatch.setattr(memory_rows, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory_rows, "GROUPS", tmp_path / "groups")
    assert memory_rows.available_memory() == 3000
    # of files that were read, the store among them
    (folder / "memory.stat").write_text(f"anon 500\nfile 1400\n{files}inactive_file 900\n{files}active_file 400\n")
    assert memory_rows.available_memory() == 4300
    (folder / limit).write_text(f"{none}\n")
    assert memory_rows.available_memory() > 10**8


def test_rows_of_a_process_that_is_gone_are_told(path):
    store = FeatureStore(path)
    store.load_into_memory()
    kept = pickle.dumps(store)
    del store
    with pytest.raises(InputError, match="the process that holds the rows is gone"):
        pickle.loads(kept)


# ---- a copy


def test_a_copy_is_made_once_and_again_when_the_store_has_grown(path, tmp_path, monkeypatch):
    features = FeaturesConfig(store=path, local_copy="near")
    store = open_store(features, tmp_path)
    copies = sorted((tmp_path / "near").iterdir())
    assert store.paths == copies
    assert [one.name.split(".")[0] for one in copies] == ["store-00000-of-00002", "store-00001-of-00002"]
    same(store)
    before = [one.stat().st_ino for one in copies]
    assert open_store(features, tmp_path).paths == copies
    assert [one.stat().st_ino for one in copies] == before, "nothing is copied twice"
    write_store(tmp_path / "store-00000-of-00002.h5", MANIFEST, {**made(["new"]), "000": FEATURES["000"]})
    assert "new" in open_store(features, tmp_path)
    assert [one.stat().st_ino == ino for one, ino in zip(copies, before, strict=True)] == [False, True]


def test_what_a_killed_copy_left_does_not_count_as_used(path, tmp_path, monkeypatch):
    one = tmp_path / "store-00000-of-00002.h5"
    copy = local_copy(one, tmp_path / "near")
    left = copy.with_name(f".{copy.name}.partial")
    copy.rename(left)
    usage, size = collections.namedtuple("usage", "free"), one.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0 if left.exists() else size))
    assert local_copy(one, tmp_path / "near") == copy


def test_stores_of_one_name_do_not_meet_in_the_folder(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_store(tmp_path / name / "features.h5", MANIFEST, made([name]))
    features = FeaturesConfig(store=["a/features.h5", "b/features.h5"], local_copy=tmp_path / "near")
    assert open_store(features, tmp_path).keys() == ["a", "b"]


@pytest.mark.parametrize("spoil", [b"", b"no store", None])
def test_what_lies_in_the_place_of_a_copy_and_is_none_is_replaced(path, tmp_path, spoil):
    one = tmp_path / "store-00000-of-00002.h5"
    copy = local_copy(one, tmp_path / "near")
    copy.write_bytes(one.read_bytes()[:-300] if spoil is None else spoil)
    copy.with_name(f".{copy.name}.partial").write_text("left by a killed process")
    assert local_copy(one, tmp_path / "near") == copy
    assert list((tmp_path / "near").iterdir()) == [copy]
    assert copy.read_bytes() == one.read_bytes()


def test_a_disk_too_small_is_told_and_nothing_is_left(path, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(InputError, match=r"features.local_copy: .*near: .* needs 0.00 GB.*another disk"):
        open_store(FeaturesConfig(store=path, local_copy="near"), tmp_path)
    assert list((tmp_path / "near").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"features.local_copy: .*another disk"):
        open_store(FeaturesConfig(store=path, local_copy="file/near"), tmp_path)


def test_a_damaged_store_is_not_copied(path, tmp_path):
    one = tmp_path / "store-00000-of-00002.h5"
    layout = read_layout(one)
    with one.open("r+b") as file:
        file.seek(layout.features_at + 4 * layout.row_bytes)
        file.write(b"\x01\x02")
    with pytest.raises(InputError, match=r"1 of 25 rows copied .* fail their checksum \(first: 008\).*manage verify"):
        local_copy(one, tmp_path / "near")
    assert list((tmp_path / "near").iterdir()) == []


def test_of_two_that_start_together_one_copies_and_one_waits(path, tmp_path, monkeypatch):
    copies = []
    chunks = copying._chunks

    def slow(source):
        copies.append(source.path)
        time.sleep(0.3)
        yield from chunks(source)

    monkeypatch.setattr(copying, "_chunks", slow)
    one, got = tmp_path / "store-00000-of-00002.h5", []
    starts = [threading.Thread(target=lambda: got.append(local_copy(one, tmp_path / "near"))) for _ in range(2)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    assert copies == [one]
    assert got == [got[0]] * 2
    assert read_layout(got[0]).holds_the_same_as(read_layout(one))


def test_a_process_killed_while_copying_leaves_nothing_in_the_way(path, tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from multitask_vl.data import local_copy as one\n"
        "chunks = one._chunks\n"
        "def slow(source):\n"
        "    yield next(chunks(source))[:5000]\n"
        "    print('copying', flush=True)\n"
        "    time.sleep(60)\n"
        "one._chunks = slow\n"
        "one.local_copy(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    one = tmp_path / "store-00000-of-00002.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(one), str(tmp_path / "near")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "copying\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    copy = local_copy(one, tmp_path / "near")
    assert copy.read_bytes() == one.read_bytes()
    assert list((tmp_path / "near").iterdir()) == [copy]


# ---- blocks


def test_blocks_give_everything_once_in_another_order_each_epoch(path):
    store, seen = FeatureStore(path), []
    for epoch in (0, 1, 0):
        keys = []
        for names, features in store.blocks(seed=1, epoch=epoch, block_rows=4, mixed=3):
            assert 0 < len(names) <= 12
            np.testing.assert_array_equal(features, np.stack([FEATURES[name] for name in names]))
            keys += names
        assert sorted(keys) == KEYS
        seen.append(keys)
    assert seen[0] == seen[2] != seen[1]
    assert seen[0] != KEYS


def test_a_pool_is_a_few_contiguous_stretches_of_the_store(path, monkeypatch):
    reads = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: reads.append(len(args[1])) or preadv(*args))
    pools = list(FeatureStore(path).blocks(seed=0, epoch=0, block_rows=5, mixed=2))
    assert sum(reads) == 50
    assert len(reads) <= 2 * len(pools) + 1, "one read for a block, and one more where the second shard begins"


def test_block_order_is_a_permutation_that_keeps_neighbours_in_a_pool():
    rng = np.random.default_rng(0)
    places = rng.integers(0, 1000, 5000)
    pools = block_order(places, seed=3, epoch=2, block_rows=50, mixed=4)
    assert sorted(np.concatenate(pools).tolist()) == list(range(5000))
    pool_of = {int(place): number for number, pool in enumerate(pools) for place in places[pool]}
    assert len(pool_of) == len(set(places.tolist())), "items of one image are in one pool"
    for pool in pools:
        stretches = 1 + np.count_nonzero(np.diff(np.unique(places[pool])) > 50)
        assert stretches <= 4
        assert not (np.diff(places[pool]) >= 0).all(), "shuffled within"
    assert [len(pool) for pool in block_order(places, 3, 3, 50, 4)] != [len(pool) for pool in pools]
    assert block_order(np.array([], int), 0, 0) == []
    loose = np.concatenate(block_order(np.arange(1000), 0, 0, block_rows=1, mixed=1))
    assert abs(np.corrcoef(loose, np.arange(1000))[0, 1]) < 0.1


def test_places_are_positions_through_all_files(path):
    store = FeatureStore(path)
    assert store.places(KEYS[:4]).tolist() == [0, 25, 1, 26]
    assert store.places(["x", KEYS[2]]).tolist() == [-1, 1]


def test_neighbours_are_read_at_once_and_repeats_are_allowed(tmp_path, monkeypatch):
    write_store(tmp_path / "s.h5", MANIFEST, FEATURES)
    rows, reads = RowFile(read_layout(tmp_path / "s.h5")), []
    preadv = os.preadv
    monkeypatch.setattr("multitask_vl.data.store.row_file.MOST_BUFFERS", 3)
    monkeypatch.setattr(os, "preadv", lambda *args: reads.append(len(args[1])) or preadv(*args))
    asked = [7, 3, 5, 4, 3, 6, 20]
    got = np.empty((7, *SHAPE), "<f2")
    rows.read_rows(asked, got)
    np.testing.assert_array_equal(got, np.stack([FEATURES[KEYS[row]] for row in asked]))
    assert reads == [1, 3, 2, 1]
    rows.read_rows([], got)
