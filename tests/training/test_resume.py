"""Where a run may write and what it goes on from: its own folder, alone in it, with the examples it had."""

import json
import shutil
from types import SimpleNamespace

import pytest

from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import WriterLock
from multitask_vl.training import resume
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The files of a tiny run, and `begun`: a run of 6 steps with checkpoints of 4 and 6."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_run.write_files(folder)
    assert start(folder, "begun", "training.steps=6") == 0
    return folder


def start(folder, name, *words):
    """Train `name` in this process; the exit code."""
    config = tiny_run.write_config(folder, run_dir=str(folder / name))
    return tiny_run.launch("train_multitask", "--config", str(config), *words)


def copied(data, name):
    """The run `begun` under another name, with its own configuration."""
    shutil.copytree(data / "begun", data / name)
    return data / name


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_one_run_at_a_time_in_a_folder(data, capsys):
    folder = copied(data, "twice")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    with WriterLock(folder / "run"):
        assert start(data, "twice", "training.steps=6", "--resume", "auto") == 2
        (folder / "run.lock").unlink()
        assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before
    said = capsys.readouterr().err
    assert "is being written by process" in said
    assert "train elsewhere (run_dir=PATH)" in said
    assert start(data, "twice", "training.steps=6", "--resume", "auto") == 0
    assert not (folder / "run.lock").exists()


def test_other_training_examples_are_refused_and_other_scored_ones_told(data, capsys):
    folder = copied(data, "changed")
    for split, code in (("report", 0), ("train", 2)):
        path = data / f"gqa_{split}.json"
        whole = path.read_text()
        path.write_text(json.dumps(dict(list(json.loads(whole).items())[:5])))
        capsys.readouterr()
        try:
            assert start(data, "changed", "training.steps=6", "--resume", "auto") == code
        finally:
            path.write_text(whole)
        said = capsys.readouterr().err
        size = tiny_run.SIZES[split]
        assert f"tasks.gqa, split '{split}': was {size} examples of gqa_{split}.json (" in said
        assert "is 5 examples of" in said
    assert "was trained on other examples" in said
    assert "put back what was there, or start afresh by run_dir=PATH" in said
    assert checkpoints(folder) == ["step-00000004", "step-00000006"]


def test_a_moved_file_is_no_other_file(data):
    now = {"examples": 2, "files": {"a.json": "1" * 64}}
    state = {"data": {"vqa": {"train": {"examples": 2, "files": {"b.json": "1" * 64}}}}}
    assert resume.what_changes_examples(None, state, {"vqa": {"train": now}}) == []
    assert resume.what_changes_examples(None, {}, {"vqa": {"train": now}}) == []


def test_a_run_from_another_ones_checkpoint_has_it_from_the_start(data):
    found = data / "begun/checkpoints/best-of-mine"  # as the links to the best ones, it does not say its step
    found.symlink_to("step-00000004")
    assert start(data, "branch", "training.steps=6", "training.checkpoint_every=100", f"training.resume={found}") == 0
    assert checkpoints(data / "branch") == ["step-00000004", "step-00000006"]
    assert checkpoints(data / "begun") == ["step-00000004", "step-00000006"]
    shutil.rmtree(data / "branch/checkpoints/step-00000006")  # as if killed before it
    assert start(data, "branch", "training.steps=6", "--resume", "auto") == 0
    assert [step for step, _, _ in tiny_run.losses(data / "branch")] == [5, 6]


def test_a_run_that_has_ended_without_checkpoints_is_left_alone(data, capsys):
    folder = copied(data, "ended")
    scores = (folder / "scores.json").read_text()
    shutil.rmtree(folder / "checkpoints")
    assert start(data, "ended", "training.steps=6", "--resume", "auto") == 2
    assert "has ended and its checkpoints are gone" in capsys.readouterr().err
    assert (folder / "scores.json").read_text() == scores


def test_processes_that_see_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    accelerator = SimpleNamespace()
    monkeypatch.setattr(resume, "gather_object", lambda mine: [*mine, None])
    with pytest.raises(InputError, match=r"process 0: .*step-00000004, process 1: a fresh start"):
        resume.the_same_everywhere(tmp_path / "step-00000004", accelerator)
    assert resume.the_same_everywhere(None, accelerator) is None


def test_a_store_cut_short_is_told_by_a_worker_without_its_traceback(data, capsys, monkeypatch):
    from multitask_vl.data.store.feature_store import FeatureStore

    def broken(*_, **__):
        raise InputError("features.h5: is cut short")

    monkeypatch.setattr(FeatureStore, "get_many", broken)
    assert start(data, "worker", "training.steps=2", "training.workers=1") == 2
    said = capsys.readouterr().err
    assert "error: features.h5: is cut short\n" in said
    assert "Traceback" not in said


def test_a_limit_compares_the_same_examples_up_to_the_end(data):
    words = ["evaluation.during=[report]", "evaluation.every_epochs=0.1", "evaluation.limit=2", "training.steps=7"]
    words += ["training.keep_best={metrics: [average], split: report}"]
    assert start(data, "limited", *words) == 0
    lines = (data / "limited/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "scores" in row]
    assert {row["step"]: row["limit"] for row in rows if not row.get("final")} == {3: 2, 6: 2, 7: 2}
    index = json.loads((data / "limited/checkpoints/best.json").read_text())["average"]
    limited = {row["step"]: sum(row["scores"].values()) / 4 for row in rows if row.get("limit") == 2}
    assert index["value"] == pytest.approx(max(limited.values()))


def test_a_best_score_that_no_task_gives_is_refused(data, capsys):
    gqa = "tasks.gqa.splits.tune.questions=gqa_report.json"
    words = ["evaluation.during=[tune]", "training.keep_best={metrics: [gqa, average, vqa], split: tune}"]
    assert start(data, "never", gqa, *words) == 2
    said = capsys.readouterr().err
    assert "training.keep_best: split 'tune' gives no vqa (tasks that have it: gqa); name another split" in said
    assert not (data / "never").exists()
