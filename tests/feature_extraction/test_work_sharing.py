"""Do several processes fill one store as one would: who does what, who takes over, and what do they say at the end?"""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from feature_extraction import work_sharing
from feature_extraction.extract import extract
from feature_extraction.work_sharing import Process, parts_of, shard_path, this_process
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import WriterLock
from tests import tiny_run
from tests.drawn_images import tiny_config
from tests.store_fixtures import content

SHARDS = 3


def stores(folder) -> list:
    return [shard_path(folder / "features.h5", index, SHARDS) for index in range(SHARDS)]


def as_process(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


# ---- who


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            Process(rank=5, world=8, local=1, beside=4),
        ),
        ({"RANK": "1"}, Process()),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
             "SLURM_ARRAY_TASK_COUNT": "4"},
            Process(rank=2, world=4),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Process()),  # a batch script outside srun is one process
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
            Process(rank=5, world=8, local=1, beside=4),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"},
            Process(rank=5, world=6, local=0, beside=1),
        ),
    ],
)  # fmt: skip
def test_the_launchers_are_understood(environment, expected):
    assert this_process(environment) == expected


def test_a_key_stays_in_its_file_when_others_come(tmp_path):
    few, many = (parts_of(tmp_path / "f.h5", map(str, range(n)), 5) for n in (40, 90))
    assert [part.path.name for part in few][-1] == "f-00004-of-00005.h5"
    assert sorted(key for part in many for key in part.keys) == sorted(map(str, range(90)))
    for one, other in zip(few, many, strict=True):
        assert set(one.keys) <= set(other.keys)
        assert one.keys == sorted(one.keys)


def test_files_of_another_number_and_empty_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"2 images leave [23] of 4 files empty; set fewer"):
        parts_of(tmp_path / "f.h5", ["a", "b"], 4)
    (tmp_path / "f-00000-of-00002.h5").touch()
    (tmp_path / "fine-00000-of-00007.h5").touch()
    assert len(parts_of(tmp_path / "f.h5", map(str, range(9)), 2)) == 2
    for shards in (1, 3):
        with pytest.raises(InputError, match=r"another number of files \(first: .*f-00000-of-00002\.h5\)"):
            parts_of(tmp_path / "f.h5", map(str, range(9)), shards)
    config = tiny_config(tmp_path, shards=2)
    as_process(monkeypatch, 0, 3)
    with pytest.raises(InputError, match=r"features\.shards: 2 for 3 processes.*features\.shards=12"):
        extract(config, "cpu")


# ---- together


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the pictures, in three files."""
    folder = tmp_path_factory.mktemp("alone")
    assert extract(tiny_config(folder, 24, shards=SHARDS, workers=0), "cpu").complete
    return [content(path) for path in stores(folder)]


def test_shards_are_read_as_one_store_of_the_same_images(alone, tmp_path):
    config = tiny_config(tmp_path, 24, workers=0)
    extract(config, "cpu")
    keys = FeatureStore(tmp_path / "features.h5").keys()
    parts = parts_of(tmp_path / "other.h5", keys, SHARDS)
    assert [keys for _, keys, _, _ in alone] == [read_bytes(part.keys) for part in parts]


def read_bytes(keys: list[str]) -> bytes:
    width = max(map(len, keys))
    return b"".join(key.encode().ljust(width, b"\0") for key in keys)


@pytest.mark.slow
def test_two_processes_make_the_store_of_one(alone, tmp_path):
    config = tiny_config(tmp_path, 24, shards=SHARDS)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "together.py").write_text(
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from feature_extraction.extract import extract\n"
        "from feature_extraction.work_sharing import this_process\n"
        "from multitask_vl.config.schema import Config\n"
        "torch.set_num_threads(1)\n"
        "folder, process = Path(sys.argv[1]), this_process()\n"
        "s = extract(Config.model_validate_json((folder / 'config.json').read_text()), 'cpu')\n"
        "told = [process.rank, process.world, s.extracted, s.skipped, s.complete]\n"
        "(folder / f'said{process.rank}').write_text(json.dumps(told))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "together.py"), str(tmp_path)],
        cwd=tiny_run.ROOT, env=tiny_run.environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / f"said{rank}").read_text()) for rank in range(2)]
    assert [(rank, world) for rank, world, *_ in said] == [(0, 2), (1, 2)], "two processes, or nothing is shown"
    assert said[0][2] + said[1][2] == 24
    for _, _, extracted, skipped, complete in said:
        assert extracted + skipped == 24
        assert complete, "both say the same of the whole store"
    assert [content(path) for path in stores(tmp_path)] == alone


def test_what_a_dead_process_left_is_taken_over(alone, tmp_path, monkeypatch):
    """Process 1 of 2 never comes, or died inside its file: process 0 does its own files, then those."""
    config = tiny_config(tmp_path, 24, shards=SHARDS, workers=0)
    extract(config, "cpu")
    dead = stores(tmp_path)[1]
    file = RowFile(read_layout(dead), writable=True)
    file.forget(0)
    file.forget(2)
    file.close()
    stores(tmp_path)[0].unlink()
    as_process(monkeypatch, 0, 2)
    summary = extract(config, "cpu")
    assert summary.complete
    assert summary.extracted == 2 + len(read_layout(stores(tmp_path)[0]).keys)
    assert [content(path) for path in stores(tmp_path)] == alone


def test_stored_rows_are_checked_by_the_process_whose_they_are(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, 24, shards=SHARDS, workers=0)
    extract(config, "cpu")
    for path in stores(tmp_path)[:2]:
        layout, data = read_layout(path), bytearray(path.read_bytes())
        data[layout.features_at + 7] ^= 1
        path.write_bytes(data)
    for rank, damaged in ((0, 1), (1, 1)):
        as_process(monkeypatch, rank, 2)
        assert len(extract(config, "cpu").damaged) == damaged


def test_a_file_that_another_process_writes_is_waited_for_and_taken_if_it_dies(alone, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, 24, shards=SHARDS, workers=0)
    monkeypatch.setattr(work_sharing, "POLL_S", 0.05)
    held = WriterLock(stores(tmp_path)[0])
    held.__enter__()
    found = []
    as_process(monkeypatch, 0, 2)
    thread = threading.Thread(target=lambda: found.append(extract(config, "cpu")))
    thread.start()
    for _ in range(600):
        if all(path.exists() and read_layout(path).done.all() for path in stores(tmp_path)[1:]):
            break
        time.sleep(0.1)
    assert thread.is_alive(), "it waits for the one that is being written"
    assert not stores(tmp_path)[0].exists()
    held.__exit__()
    thread.join(60)
    assert found[0].complete
    assert [content(path) for path in stores(tmp_path)] == alone


def test_processes_share_one_list_of_failures(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, 24, shards=SHARDS, workers=0)
    for number in range(12):
        (tmp_path / "images" / f"broken{number}.jpg").write_text("not an image")
    for rank in (1, 0):
        as_process(monkeypatch, rank, 2)
        summary = extract(config, "cpu")
        assert sorted(one["key"] for one in summary.failures) == sorted(f"broken{n}" for n in range(12))
        assert not summary.complete
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 12
    assert len({line["store"] for line in lines}) > 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".lock", ".writing"))]
