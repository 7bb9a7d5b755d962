"""Run folders and resuming: a locked folder, valid checkpoints, unchanged training data."""

import json
import shutil
from types import SimpleNamespace

import pytest

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import FileLock
from multitask_vl.training import resume
from tests import tiny_run

pytestmark = pytest.mark.slow

SIX_STEPS = ("training.max_steps=6", "--resume", "auto")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The dataset of a tiny run, and `first`: a run of 6 steps with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_run.write_dataset(folder)
    assert start(folder, "first", *SIX_STEPS) == 0
    return folder


def start(folder, name, *arguments):
    """Train `name` in this process; returns the exit code."""
    config = tiny_run.write_config(folder, run_dir=str(folder / name))
    return tiny_run.launch("train", "--config", str(config), *arguments)


def copy_of_first(data, name):
    shutil.copytree(data / "first", data / name)
    return data / name


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_run_dir_is_locked(data, capsys):
    folder = copy_of_first(data, "twice")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    with FileLock(folder / "run"):
        assert start(data, "twice", *SIX_STEPS) == 2
        (folder / "run.lock").unlink()
        assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before
    err = capsys.readouterr().err
    assert "is being written by process" in err
    assert "train in another folder (run_dir=PATH)" in err
    assert start(data, "twice", *SIX_STEPS) == 0
    assert not (folder / "run.lock").exists()


def test_changed_train_data_is_an_error_other_splits_a_warning(data, capsys):
    folder = copy_of_first(data, "changed")
    for split, code in (("test", 0), ("train", 2)):
        path = data / f"gqa_{split}.json"
        content = path.read_text()
        path.write_text(json.dumps(dict(list(json.loads(content).items())[:5])))
        capsys.readouterr()
        try:
            assert start(data, "changed", *SIX_STEPS) == code
        finally:
            path.write_text(content)
        err = capsys.readouterr().err
        size = tiny_run.SIZES[split]
        assert f"tasks.gqa, split '{split}': was {size} examples of gqa_{split}.json (" in err
        assert "is 5 examples of" in err
    assert "was trained on other examples" in err
    assert "restore the files, or start from scratch with run_dir=PATH" in err
    assert checkpoints(folder) == ["step-00000004", "step-00000006"]


def test_check_data_accepts_renamed_file():
    now = {"examples": 2, "files": {"a.json": "1" * 64}}
    state = {"data": {"vqa": {"train": {"examples": 2, "files": {"b.json": "1" * 64}}}}}
    assert resume.check_data_unchanged(None, state, {"vqa": {"train": now}}) == []
    assert resume.check_data_unchanged(None, {}, {"vqa": {"train": now}}) == []


def test_checkpoint_of_another_run_is_imported(data):
    found = data / "first/checkpoints/best-of-first"  # like the links to the best ones, its name does not have the step
    found.symlink_to("step-00000004")
    assert start(data, "branch", *SIX_STEPS[:1], "training.checkpoint_steps=100", f"training.resume={found}") == 0
    assert checkpoints(data / "branch") == ["step-00000004", "step-00000006"]
    assert checkpoints(data / "first") == ["step-00000004", "step-00000006"]
    shutil.rmtree(data / "branch/checkpoints/step-00000006")  # as if killed before it
    assert start(data, "branch", *SIX_STEPS) == 0
    assert [step for step, _, _ in tiny_run.read_losses(data / "branch")] == [5, 6]


def test_finished_run_without_checkpoints_is_left_untouched(data, capsys):
    folder = copy_of_first(data, "finished")
    scores = (folder / "scores.json").read_text()
    shutil.rmtree(folder / "checkpoints")
    assert start(data, "finished", *SIX_STEPS) == 2
    assert "has finished and its checkpoints are gone" in capsys.readouterr().err
    assert (folder / "scores.json").read_text() == scores


def test_processes_with_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    accelerator = SimpleNamespace()
    monkeypatch.setattr(resume, "gather_object", lambda own: [*own, None])
    with pytest.raises(InputError, match=r"process 0: .*step-00000004, process 1: none"):
        resume.assert_same_on_all_ranks(tmp_path / "step-00000004", accelerator)
    resume.assert_same_on_all_ranks(None, accelerator)


def test_worker_reports_bad_input_without_traceback(data, capsys, monkeypatch):
    def broken(*_, **__):
        raise InputError("features.h5: is truncated")

    monkeypatch.setattr(FeatureStore, "get_many", broken)
    assert start(data, "worker", "training.max_steps=2", "training.num_workers=1") == 2
    err = capsys.readouterr().err
    assert "error: features.h5: is truncated\n" in err
    assert "Traceback" not in err


def test_best_checkpoint_compares_scores_of_max_examples(data):
    overrides = ["evaluation.eval_splits=[test]", "evaluation.eval_every_epochs=0.1", "evaluation.max_examples=2"]
    overrides += ["training.max_steps=7", "training.keep_best={metrics: [average], split: test}"]
    assert start(data, "limited", *overrides) == 0
    lines = (data / "limited/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "scores" in row]
    assert {row["step"]: row["max_examples"] for row in rows if not row.get("final")} == {3: 2, 6: 2, 7: 2}
    index = json.loads((data / "limited/checkpoints/best.json").read_text())["average"]
    averages = {row["step"]: sum(row["scores"].values()) / 4 for row in rows if row.get("max_examples") == 2}
    assert index["value"] == pytest.approx(max(averages.values()))


def test_keep_best_by_task_without_the_split_is_an_error(data, capsys):
    gqa = "tasks.gqa.splits.val.questions=gqa_test.json"
    overrides = ["evaluation.eval_splits=[val]", "training.keep_best={metrics: [gqa, average, vqa], split: val}"]
    assert start(data, "never", gqa, *overrides) == 2
    expected = "training.keep_best: split 'val' has no score vqa (tasks that have it: gqa); set another split"
    assert expected in capsys.readouterr().err
    assert not (data / "never").exists()
