"""Is a split compiled once, found again, made anew when anything it depends on changes, and safe among processes?"""

import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
from datasets.utils import are_progress_bars_disabled

from multitask_vl.data import example_table
from multitask_vl.data.example_table import compiled, example_from_row
from multitask_vl.errors import InputError
from multitask_vl.tasks import base
from multitask_vl.tasks.base import Example, Task
from multitask_vl.tasks.vqa import VQA
from tests.task_files import make, read, vqa_files, write


class Counted(VQA):
    """A task that writes a line for each time it is read, slowly enough for another process to meet it."""

    def read(self, split):
        with (self.data_dir / "reads.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        yield from super().read(split)


def counted(folder: Path, files: dict | None = None, **task_options) -> Task:
    config = VQA.Config.model_validate({**task_options, "splits": {"s": files or vqa_files(folder)}})
    return Counted("vqa", config, folder)


def reads(folder: Path) -> int:
    return len((folder / "reads.txt").read_text().splitlines())


def test_rows_hold_the_examples_exactly(tmp_path, capfd):
    bars = are_progress_bars_disabled()
    task = make("vqa", tmp_path, **vqa_files(tmp_path, 5))
    table = compiled(task, "s", tmp_path / "cache")
    assert table.column_names == ["id", "images", "text", "answers", "scores", "meta"]
    assert [example_from_row(row) for row in table.to_list()] == read(task)
    assert isinstance(json.loads(table[0]["meta"]), dict)
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert are_progress_bars_disabled() == bars


def test_tables_are_mapped_from_one_file_and_travel_by_its_path(tmp_path):
    table = compiled(make("vqa", tmp_path, **vqa_files(tmp_path, 500)), "s", tmp_path / "cache")
    (file,) = table.cache_files
    folder = Path(file["filename"]).parent
    assert folder.parent == tmp_path / "cache" / "examples"
    assert folder.stat().st_mode == folder.parent.stat().st_mode, "whoever may read the cache may read its tables"
    travelling = pickle.dumps(table)
    assert len(travelling) < 20_000 < Path(file["filename"]).stat().st_size
    assert pickle.loads(travelling)[[0, 499]]["id"] == ["10", "509"]


def test_many_rows_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(example_table, "_ROWS_A_WRITE", 3)
    table = compiled(make("vqa", tmp_path, **vqa_files(tmp_path, 8)), "s", tmp_path / "cache")
    assert table["id"][:] == [str(10 + i) for i in range(8)]


def test_a_second_call_does_not_read(tmp_path):
    first = compiled(counted(tmp_path), "s", tmp_path / "cache")
    again = compiled(counted(tmp_path), "s", tmp_path / "cache")
    assert reads(tmp_path) == 1
    assert first.to_list() == again.to_list()


def test_a_changed_source_option_or_reader_makes_a_new_table(tmp_path, monkeypatch):
    files = vqa_files(tmp_path)
    cache = tmp_path / "cache"
    compiled(counted(tmp_path, files), "s", cache)
    stat = (tmp_path / "a.json").stat()
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("red", "tan"))
    os.utime(tmp_path / "a.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time: content decides
    assert compiled(counted(tmp_path, files), "s", cache)[0]["answers"][0] == "tan"
    assert compiled(counted(tmp_path, {**files, "image_key": "{image_id}"}), "s", cache)[0]["images"] == ["0"]
    assert compiled(counted(tmp_path, files, soft_scores=[0.5]), "s", cache)[0]["scores"] == [0.5] * 3
    assert reads(tmp_path) == 4
    compiled(counted(tmp_path, files, prompt="q: ", max_input_tokens=5, batch_share=2), "s", cache)
    assert reads(tmp_path) == 4  # these do not enter
    copy = tmp_path / "base.py"
    copy.write_text(Path(base.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(base, "__file__", str(copy))
    compiled(counted(tmp_path, files), "s", cache)
    assert reads(tmp_path) == 5


def _compile(folder: Path, barrier, queue) -> None:
    task = counted(folder, {"questions": "q.json", "annotations": "a.json"})
    barrier.wait()
    queue.put(len(compiled(task, "s", folder / "cache")))


def test_processes_that_start_together_share_one_table(tmp_path):
    vqa_files(tmp_path, 4)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    started = [context.Process(target=_compile, args=(tmp_path, barrier, queue)) for _ in range(2)]
    for process in started:
        process.start()
    assert [queue.get(timeout=60), queue.get(timeout=60)] == [4, 4]
    for process in started:
        process.join()
    assert reads(tmp_path) == 1
    assert len([path for path in (tmp_path / "cache" / "examples").iterdir() if path.is_dir()]) == 1


def test_what_a_killed_process_left_is_no_table(tmp_path):
    cache = tmp_path / "cache"
    folder = Path(compiled(counted(tmp_path), "s", cache).cache_files[0]["filename"]).parent
    left = folder.with_name(f".{folder.name}.abc.writing")
    os.rename(folder, left)
    (left / "examples.arrow").write_bytes(b"half")
    assert len(compiled(counted(tmp_path), "s", cache)) == 3
    assert not left.exists()


def test_failures_leave_nothing_behind(tmp_path):
    task = make("gqa", tmp_path, questions=write(tmp_path, "q.json", {"1": {"imageId": "a"}}))
    with pytest.raises(InputError, match="field 'question'"):
        compiled(task, "s", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "examples").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cache_dir: cannot write to .*cache/examples"):
        compiled(make("vqa", tmp_path, **vqa_files(tmp_path)), "s", tmp_path / "cache")


def test_answers_and_scores_must_pair(tmp_path, monkeypatch):
    task = make("vqa", tmp_path, **vqa_files(tmp_path))
    monkeypatch.setattr(task, "read", lambda split: iter([Example("1", ("k",), "t", ("a", "b"), (1.0,))]))
    with pytest.raises(InputError, match="other numbers of answers and scores: 1"):
        compiled(task, "s", tmp_path / "cache")
