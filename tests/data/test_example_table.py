"""Example tables: cached by content, rebuilt when their key changes, safe between processes."""

import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
from datasets.utils import are_progress_bars_disabled

from multitask_vl.data import example_table
from multitask_vl.data.example_table import example_from_row, load_table
from multitask_vl.errors import InputError
from multitask_vl.tasks import base
from multitask_vl.tasks.base import Example, Task
from multitask_vl.tasks.vqa import VQA
from tests.task_files import make, read, vqa_files, write


class CountedVQA(VQA):
    """A task that writes one line each time it is read."""

    read_s = 0.0

    def read(self, split):
        with (self.data_dir / "reads.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.read_s)
        yield from super().read(split)


def counted(folder: Path, files: dict | None = None, **task_options) -> Task:
    config = VQA.Config.model_validate({**task_options, "splits": {"s": files or vqa_files(folder)}})
    return CountedVQA("vqa", config, folder)


def num_reads(folder: Path) -> int:
    return len((folder / "reads.txt").read_text().splitlines())


def test_table_rows_are_the_examples(tmp_path, capfd):
    bars = are_progress_bars_disabled()
    task = make("vqa", tmp_path, **vqa_files(tmp_path, 5))
    table = load_table(task, "s", tmp_path / "cache")
    assert table.column_names == ["id", "images", "text", "answers", "scores", "meta"]
    assert [example_from_row(row) for row in table.to_list()] == read(task)
    assert isinstance(json.loads(table[0]["meta"]), dict)
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert are_progress_bars_disabled() == bars


def test_table_is_mapped_from_one_file_and_pickled_by_path(tmp_path):
    table = load_table(make("vqa", tmp_path, **vqa_files(tmp_path, 500)), "s", tmp_path / "cache")
    (file,) = table.cache_files
    folder = Path(file["filename"]).parent
    assert folder.parent == tmp_path / "cache" / "examples"
    assert folder.stat().st_mode == folder.parent.stat().st_mode, "readers of the cache can read its tables"
    pickled = pickle.dumps(table)
    assert len(pickled) < 20_000 < Path(file["filename"]).stat().st_size
    assert pickle.loads(pickled)[[0, 499]]["id"] == ["10", "509"]


def test_table_is_written_in_record_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(example_table, "_ROWS_PER_BATCH", 3)
    table = load_table(make("vqa", tmp_path, **vqa_files(tmp_path, 8)), "s", tmp_path / "cache")
    assert table["id"][:] == [str(10 + i) for i in range(8)]


def test_table_is_rebuilt_when_source_option_or_reader_changes(tmp_path, monkeypatch):
    files = vqa_files(tmp_path)
    cache = tmp_path / "cache"
    first = load_table(counted(tmp_path, files), "s", cache)
    assert load_table(counted(tmp_path, files), "s", cache).to_list() == first.to_list()
    assert num_reads(tmp_path) == 1
    stat = (tmp_path / "a.json").stat()
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("red", "tan"))
    os.utime(tmp_path / "a.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time, other content
    assert load_table(counted(tmp_path, files), "s", cache)[0]["answers"][0] == "tan"
    assert load_table(counted(tmp_path, {**files, "image_key": "{image_id}"}), "s", cache)[0]["images"] == ["0"]
    assert load_table(counted(tmp_path, files, soft_scores=[0.5]), "s", cache)[0]["scores"] == [0.5] * 3
    assert num_reads(tmp_path) == 4
    load_table(counted(tmp_path, files, prompt="q: ", max_input_tokens=5, batch_size_ratio=2), "s", cache)
    assert num_reads(tmp_path) == 4  # reading does not depend on these
    copy = tmp_path / "base.py"
    copy.write_text(Path(base.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(base, "__file__", str(copy))
    load_table(counted(tmp_path, files), "s", cache)
    assert num_reads(tmp_path) == 5


def _load(folder: Path, barrier, queue) -> None:
    task = counted(folder, {"questions": "q.json", "annotations": "a.json"})
    barrier.wait()
    queue.put(len(load_table(task, "s", folder / "cache")))


def test_concurrent_processes_build_one_table(tmp_path, monkeypatch):
    vqa_files(tmp_path, 4)
    monkeypatch.setattr(CountedVQA, "read_s", 0.3)  # long enough for the other process to wait
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_load, args=(tmp_path, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60), queue.get(timeout=60)] == [4, 4]
    for process in processes:
        process.join()
    assert num_reads(tmp_path) == 1
    assert len([path for path in (tmp_path / "cache" / "examples").iterdir() if path.is_dir()]) == 1


def test_leftovers_of_killed_process_are_removed(tmp_path):
    cache = tmp_path / "cache"
    folder = Path(load_table(counted(tmp_path), "s", cache).cache_files[0]["filename"]).parent
    leftover = folder.with_name(f".{folder.name}.abc.writing")
    os.rename(folder, leftover)
    (leftover / "examples.arrow").write_bytes(b"half")
    assert len(load_table(counted(tmp_path), "s", cache)) == 3
    assert not leftover.exists()


def test_failed_read_leaves_cache_empty(tmp_path):
    task = make("gqa", tmp_path, questions=write(tmp_path, "q.json", {"1": {"imageId": "a"}}))
    with pytest.raises(InputError, match="field 'question'"):
        load_table(task, "s", tmp_path / "cache")
    assert list((tmp_path / "cache" / "examples").iterdir()) == []


def test_unwritable_cache_is_reported(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cache_dir: cannot write to .*cache/examples"):
        load_table(make("vqa", tmp_path, **vqa_files(tmp_path)), "s", tmp_path / "cache")


def test_answers_without_scores_are_reported(tmp_path, monkeypatch):
    task = make("vqa", tmp_path, **vqa_files(tmp_path))
    monkeypatch.setattr(task, "read", lambda split: iter([Example("1", ("k",), "t", ("a", "b"), (1.0,))]))
    with pytest.raises(InputError, match="different numbers of answers and scores: 1"):
        load_table(task, "s", tmp_path / "cache")
