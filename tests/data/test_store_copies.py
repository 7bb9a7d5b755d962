"""Features read through memory or a local copy equal those in the store."""

import collections
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store import local_copy as local_copy_module
from multitask_vl.data.store import memory_rows
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.local_copy import local_copy
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.open import open_store
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError
from tests.store_fixtures import MANIFEST, corrupt_row, random_features

FEATURES = random_features([f"{n:03d}" for n in range(50)])
KEYS = sorted(FEATURES)


@pytest.fixture
def path(tmp_path):
    """A store of two shards whose keys interleave."""
    for i in range(2):
        shard = {key: FEATURES[key] for key in KEYS[i::2]}
        write_store(tmp_path / f"store-{i:05d}-of-00002.h5", MANIFEST, shard)
    return tmp_path / "store.h5"


@pytest.fixture
def shard(path):
    """The first of the two shards."""
    return path.with_name("store-00000-of-00002.h5")


def check_features(store, keys=KEYS):
    np.testing.assert_array_equal(store.get_many(keys), np.stack([FEATURES[key] for key in keys]))


# ---- memory


def _page_counts(store, keys, queue):
    check_features(store, keys)
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    mapped = next(part for part in maps if "memfd:features" in part)
    queue.put({line.split(":")[0]: int(line.split()[1]) for line in mapped.splitlines() if line.endswith(" kB")})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_memory_rows_are_shared_with_workers(path, tmp_path, method):
    store = open_store(FeaturesConfig(store=path, cache="memory"), tmp_path)
    for file in tmp_path.glob("store-*"):
        file.unlink()
    check_features(store, KEYS[::-1] + KEYS[:3])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_page_counts, args=(store, KEYS[::3], queue))
    worker.start()
    pages = queue.get(timeout=60)
    worker.join()
    assert pages["Private_Dirty"] == 0, "a worker has no copy of its own"
    assert pages["Rss"] > 0


def test_memory_rows_skip_undone_rows_and_load_once(path, tmp_path):
    file = LocalRows(read_local_header(tmp_path / "store-00001-of-00002.h5"), writable=True)
    file.mark_undone(3)
    store = FeatureStore(path)
    store.load_into_memory()
    assert len(store) == 49
    assert store.missing(KEYS) == [KEYS[7]]
    check_features(store, [key for key in KEYS if key != KEYS[7]])
    memory = store._memory
    store.load_into_memory()
    assert store._memory is memory


def test_memory_rows_require_enough_memory(path, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_rows, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"features.cache=memory: the rows need 0.00 GB.*features.cache=none"):
        open_store(FeaturesConfig(store=path, cache="memory"), tmp_path)


def test_memory_rows_of_ended_process_are_reported(path):
    store = FeatureStore(path)
    store.load_into_memory()
    pickled = pickle.dumps(store)
    del store
    with pytest.raises(InputError, match="the process that holds the rows has ended"):
        pickle.loads(pickled)


# ---- local copy


def test_local_copy_is_reused_until_the_store_changes(path, tmp_path):
    features = FeaturesConfig(store=path, local_copy="near")
    store = open_store(features, tmp_path)
    copies = sorted((tmp_path / "near").iterdir())
    assert store.paths == copies
    assert [copy.name.split(".")[0] for copy in copies] == ["store-00000-of-00002", "store-00001-of-00002"]
    check_features(store)
    before = [copy.stat().st_ino for copy in copies]
    assert open_store(features, tmp_path).paths == copies
    assert [copy.stat().st_ino for copy in copies] == before, "nothing is copied twice"
    grown = {**random_features(["new"]), "000": FEATURES["000"]}
    write_store(tmp_path / "store-00000-of-00002.h5", MANIFEST, grown)
    assert "new" in open_store(features, tmp_path)
    assert [copy.stat().st_ino == ino for copy, ino in zip(copies, before, strict=True)] == [False, True]


def test_partial_copy_is_deleted_before_free_space_is_checked(shard, tmp_path, monkeypatch):
    copy = local_copy(shard, tmp_path / "near")
    leftover = copy.with_name(f".{copy.name}.partial")
    copy.rename(leftover)
    usage, size = collections.namedtuple("usage", "free"), shard.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0 if leftover.exists() else size))
    assert local_copy(shard, tmp_path / "near") == copy


def test_local_copies_of_equally_named_stores_are_distinct(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_store(tmp_path / name / "features.h5", MANIFEST, random_features([name]))
    features = FeaturesConfig(store=["a/features.h5", "b/features.h5"], local_copy=tmp_path / "near")
    assert open_store(features, tmp_path).keys() == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"not a store", None], ids=["empty", "text", "truncated"])
def test_invalid_local_copy_is_replaced(shard, tmp_path, content):
    copy = local_copy(shard, tmp_path / "near")
    copy.write_bytes(shard.read_bytes()[:-300] if content is None else content)
    copy.with_name(f".{copy.name}.partial").write_text("left by a killed process")
    assert local_copy(shard, tmp_path / "near") == copy
    assert list((tmp_path / "near").iterdir()) == [copy]
    assert copy.read_bytes() == shard.read_bytes()


def test_local_copy_on_a_full_disk_leaves_nothing(path, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(InputError, match=r"features.local_copy: .*near: .* needs 0.00 GB.*another disk"):
        open_store(FeaturesConfig(store=path, local_copy="near"), tmp_path)
    assert list((tmp_path / "near").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"features.local_copy: .*another disk"):
        open_store(FeaturesConfig(store=path, local_copy="file/near"), tmp_path)


def test_corrupt_store_is_not_copied(shard, tmp_path):
    corrupt_row(shard, 4)
    message = r"1 of 25 rows copied .* fail their checksum \(first: 008\).*multitask-vl store verify"
    with pytest.raises(InputError, match=message):
        local_copy(shard, tmp_path / "near")
    assert list((tmp_path / "near").iterdir()) == []


def test_concurrent_local_copies_copy_once(shard, tmp_path, monkeypatch):
    sources, results = [], []
    chunks = local_copy_module._chunks

    def slow(source):
        sources.append(source.path)
        time.sleep(0.3)
        yield from chunks(source)

    monkeypatch.setattr(local_copy_module, "_chunks", slow)
    threads = [threading.Thread(target=lambda: results.append(local_copy(shard, tmp_path / "near"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sources == [shard]
    assert results == [results[0]] * 2
    assert read_local_header(results[0]).same_contents(read_local_header(shard))


def test_killed_local_copy_is_started_again(shard, tmp_path):
    def killed(source):
        yield b"x" * 5000
        os._exit(9)

    child = os.fork()
    if child == 0:
        local_copy_module._chunks = killed
        local_copy(shard, tmp_path / "near")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list((tmp_path / "near").iterdir())) == 2, "the lock file and the partial copy"
    copy = local_copy(shard, tmp_path / "near")
    assert copy.read_bytes() == shard.read_bytes()
    assert list((tmp_path / "near").iterdir()) == [copy]
