"""Several processes that fill one store: ranks, shards, takeover and shared results."""

import json
import os
import threading
import time

import numpy as np
import pytest

from feature_extraction import work_sharing
from feature_extraction.extract import extract
from feature_extraction.work_sharing import Process, assign_shards, current_process, shard_path
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import FileLock
from tests.drawn_images import tiny_config
from tests.extraction_child import start_extraction
from tests.store_fixtures import corrupt_row, store_bytes

IMAGES, SHARDS = 24, 3


def shard_paths(folder) -> list:
    return [shard_path(folder / "features.h5", index, SHARDS) for index in range(SHARDS)]


def sharded_config(folder):
    return tiny_config(folder, IMAGES, shards=SHARDS, num_workers=0)


def set_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))


# ---- ranks and shards


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            Process(rank=5, world_size=8, local_rank=1, local_world_size=4),
        ),
        ({"RANK": "1"}, Process()),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
             "SLURM_ARRAY_TASK_COUNT": "4"},
            Process(rank=2, world_size=4),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Process()),  # a batch script without srun is one process
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
            Process(rank=5, world_size=8, local_rank=1, local_world_size=4),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"},
            Process(rank=5, world_size=6, local_rank=0, local_world_size=1),
        ),
    ],
)  # fmt: skip
def test_current_process_reads_launcher_variables(environment, expected):
    assert current_process(environment) == expected


def test_keys_stay_in_their_shard_when_images_are_added(tmp_path):
    few, many = (assign_shards(tmp_path / "f.h5", map(str, range(n)), 5) for n in (40, 90))
    assert [task.path.name for task in few][-1] == "f-00004-of-00005.h5"
    assert sorted(key for task in many for key in task.keys) == sorted(map(str, range(90)))
    for before, after in zip(few, many, strict=True):
        assert set(before.keys) <= set(after.keys)
        assert before.keys == sorted(before.keys)


def test_unsuitable_shard_counts_are_rejected(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"2 images leave [23] of 4 files empty; set fewer"):
        assign_shards(tmp_path / "f.h5", ["a", "b"], 4)
    (tmp_path / "f-00000-of-00002.h5").touch()
    (tmp_path / "fine-00000-of-00007.h5").touch()
    assert len(assign_shards(tmp_path / "f.h5", map(str, range(9)), 2)) == 2
    for shards in (1, 3):
        with pytest.raises(InputError, match=rf"another number of files than {shards} \(first: .*f-00000-of-00002\.h5"):
            assign_shards(tmp_path / "f.h5", map(str, range(9)), shards)
    config = tiny_config(tmp_path, shards=2)
    set_rank(monkeypatch, 0, 3)
    with pytest.raises(InputError, match=r"features\.shards: 2 shards for 3 processes.*features\.shards=12"):
        extract(config, "cpu")


# ---- extraction by several processes


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Folder of the shards that a single process writes, and their bytes."""
    folder = tmp_path_factory.mktemp("single")
    assert extract(sharded_config(folder), "cpu").complete
    return folder, [store_bytes(path) for path in shard_paths(folder)]


def test_shards_are_read_as_one_store(expected, tmp_path):
    folder, _ = expected
    extract(tiny_config(tmp_path, IMAGES, num_workers=0), "cpu")
    single, sharded = FeatureStore(tmp_path / "features.h5"), FeatureStore(folder / "features.h5")
    keys = single.keys()
    assert sorted(sharded.keys()) == keys
    # another composition of the batches may round differently
    np.testing.assert_allclose(sharded.get_many(keys), single.get_many(keys), rtol=1e-3, atol=1e-5)
    tasks = assign_shards(folder / "features.h5", keys, SHARDS)
    for task in tasks:
        assert [key.decode() for key in read_local_header(task.path).keys] == task.keys


@pytest.mark.slow
def test_two_processes_write_the_store_of_one(expected, tmp_path):
    config = sharded_config(tmp_path)
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    processes = [start_extraction(config, pause_s=0.002, environment=rank) for rank in ranks]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    total = 0
    for rank in range(2):
        images, extracted, skipped, complete = (tmp_path / f"summary{rank}").read_text().split()
        assert int(extracted) > 0, "both processes did some of the work"
        assert int(extracted) + int(skipped) == int(images) == IMAGES
        assert complete == "True", "both report the complete store"
        total += int(extracted)
    assert total == IMAGES
    assert [store_bytes(path) for path in shard_paths(tmp_path)] == expected[1]


def test_shards_of_a_crashed_process_are_taken_over(expected, tmp_path, monkeypatch):
    """Rank 1 of 2 crashed inside its file or never started: rank 0 fills its own shards, then the others."""
    config = sharded_config(tmp_path)
    extract(config, "cpu")
    unfinished = LocalRows(read_local_header(shard_paths(tmp_path)[1]), writable=True)
    unfinished.mark_undone(0)
    unfinished.mark_undone(2)
    unfinished.close()
    shard_paths(tmp_path)[0].unlink()
    set_rank(monkeypatch, 0, 2)
    summary = extract(config, "cpu")
    assert summary.complete
    assert summary.extracted == 2 + len(read_local_header(shard_paths(tmp_path)[0]).keys)
    assert [store_bytes(path) for path in shard_paths(tmp_path)] == expected[1]


def test_stored_rows_are_verified_by_their_rank(tmp_path, monkeypatch):
    config = sharded_config(tmp_path)
    extract(config, "cpu")
    for path in shard_paths(tmp_path)[:2]:
        corrupt_row(path, 0)
    for rank in range(2):
        set_rank(monkeypatch, rank, 2)
        assert len(extract(config, "cpu").corrupt_rows) == 1


def test_locked_shard_is_awaited_and_taken_over(expected, tmp_path, monkeypatch, capsys):
    config = sharded_config(tmp_path)
    monkeypatch.setattr(work_sharing, "POLL_S", 0.05)
    lock = FileLock(shard_paths(tmp_path)[0])
    lock.__enter__()
    summaries = []
    set_rank(monkeypatch, 0, 2)
    thread = threading.Thread(target=lambda: summaries.append(extract(config, "cpu")))
    thread.start()
    for _ in range(600):
        if all(path.exists() and read_local_header(path).done.all() for path in shard_paths(tmp_path)[1:]):
            break
        time.sleep(0.1)
    time.sleep(0.2)
    assert thread.is_alive(), "it waits for the locked shard"
    assert not shard_paths(tmp_path)[0].exists()
    lock.__exit__()
    thread.join(60)
    assert summaries[0].complete
    assert "waiting for 1 files that other processes are writing (first: features-00000-of" in capsys.readouterr().err
    assert [store_bytes(path) for path in shard_paths(tmp_path)] == expected[1]


def test_processes_share_one_list_of_failures(tmp_path, monkeypatch):
    config = sharded_config(tmp_path)
    for number in range(12):
        (tmp_path / "images" / f"broken{number}.jpg").write_text("not an image")
    for rank in (1, 0):
        set_rank(monkeypatch, rank, 2)
        summary = extract(config, "cpu")
        assert [failure["key"] for failure in summary.failures] == sorted(f"broken{n}" for n in range(12))
        assert not summary.complete
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 12
    assert len({line["store"] for line in lines}) > 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".lock", ".writing"))]
