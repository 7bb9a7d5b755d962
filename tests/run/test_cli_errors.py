"""Bad input to the training command: exit code 2, what is wrong, where and how to fix it, no traceback."""

import json
import shutil

import pytest
import yaml

from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The dataset of a tiny run, and one finished run under ``run``."""
    folder = tmp_path_factory.mktemp("good")
    tiny_run.write_dataset(folder)
    config = tiny_run.write_config(folder)
    assert tiny_run.launch("train", "--config", str(config), "training.max_steps=2") == 0
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the dataset that a test may change."""
    shutil.copytree(good, tmp_path / "copy", ignore=shutil.ignore_patterns("run", ".cache"))
    return tmp_path / "copy"


def error_of(capsys, config, *overrides) -> str:
    """Return what the command writes to stderr about bad input: at most one screen, without traceback."""
    capsys.readouterr()
    assert tiny_run.launch("train", "--config", str(config), *overrides) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 24
    return err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trainig": {"lr": 1}}, ["tiny.yaml:", "trainig", "did you mean", "training"]),
        ({"training": {"lr": "fast"}}, ["tiny.yaml:", "training.lr", "fast"]),
        ({"training": {"max_steps": 0}}, ["tiny.yaml:", "training.max_steps"]),
        ({"training": {"betas": [1, 1]}}, ["tiny.yaml:", "training.betas"]),
        ({"seed": -1}, ["tiny.yaml:", "seed", "-1"]),
        ({"method": {"name": "adaptor"}}, ["tiny.yaml:", "method", "adaptor", "adapter"]),
        ({"method": {"name": "adapter", "rnk": 4}}, ["tiny.yaml:", "rnk", "rank"]),
        ({"tasks": {"vgqa": {}}}, ["tiny.yaml:", "vgqa", "gqa"]),
        ({"routing": {"function": "mull"}}, ["tiny.yaml:", "routing.function", "mull", "mul"]),
        (
            {"routing": {"function": {"vqa": "mul", "absent": "add"}}},
            ["tiny.yaml:", "routing.function", "absent", "gqa"],
        ),
    ],
    ids=[
        "unknown key",
        "wrong type",
        "out of range",
        "betas",
        "seed",
        "method",
        "method key",
        "task",
        "routing",
        "routing of unknown task",
    ],
)
def test_bad_configuration(folder, capsys, change, expected):
    config = tiny_run.write_config(folder, **change)
    err = error_of(capsys, config)
    for part in expected:
        assert part in err
    number = int(err.split("tiny.yaml:")[1].split(":")[0])
    assert 1 <= number <= len(config.read_text().splitlines())


def test_all_problems_are_reported_together(folder, capsys):
    config = tiny_run.write_config(folder, training={"lr": "fast"}, routing={"function": "mull"}, seeed=1)
    err = error_of(capsys, config)
    for part in ("fast", "mull", "seeed"):
        assert part in err


def test_missing_annotation_file(folder, capsys):
    (folder / "vqa_train_annotations.json").unlink()
    err = error_of(capsys, tiny_run.write_config(folder))
    assert "vqa_train_annotations.json" in err
    assert "vqa" in err


def test_malformed_json_names_the_line(folder, capsys):
    lines = (folder / "nlvr2_train.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-5]
    (folder / "nlvr2_train.jsonl").write_text("\n".join(lines) + "\n")
    err = error_of(capsys, tiny_run.write_config(folder))
    assert "nlvr2_train.jsonl:5" in err


def test_image_key_without_features(folder, capsys):
    path = folder / "gqa_train.json"
    questions = json.loads(path.read_text())
    questions["3"]["imageId"] = "unseen"
    path.write_text(json.dumps(questions))
    err = error_of(capsys, tiny_run.write_config(folder))
    assert "unseen" in err
    assert "1 of" in err
    assert "multitask-vl extract --config" in err


def test_store_of_another_encoder(folder, capsys):
    err = error_of(capsys, tiny_run.write_config(folder, vision={"model": "RN50"}))
    assert "RN101" in err
    assert "RN50" in err


def test_truncated_store(folder, capsys):
    path = folder / "features.h5"
    path.write_bytes(path.read_bytes()[:3000])
    err = error_of(capsys, tiny_run.write_config(folder))
    assert "features.h5" in err


def test_missing_store(folder, capsys):
    (folder / "features.h5").unlink()
    err = error_of(capsys, tiny_run.write_config(folder))
    assert "features.h5" in err
    assert "multitask-vl extract --config" in err


def test_text_over_its_limit(folder, capsys):
    err = error_of(capsys, tiny_run.write_config(folder), "tasks.vqa.max_input_tokens=6")
    assert "max_input_tokens=6" in err
    assert "tasks.vqa.overflow=truncate" in err


def test_truncated_texts_are_counted(folder, capsys):
    config = tiny_run.write_config(folder)
    overrides = ("tasks.vqa.max_input_tokens=6", "tasks.vqa.overflow=truncate", "training.max_steps=1")
    assert tiny_run.launch("train", "--config", str(config), *overrides) == 0
    assert "task vqa, split train: 23 inputs are truncated" in capsys.readouterr().err


def test_existing_run_dir(good, capsys):
    err = error_of(capsys, good / "tiny.yaml")
    assert "already holds a run" in err
    assert "training.resume=auto" in err


def test_checkpoint_of_another_run_in_existing_run_dir(good, folder, capsys):
    config = tiny_run.write_config(folder)
    assert tiny_run.launch("train", "--config", str(config), "training.max_steps=1") == 0
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    foreign = good / "run" / "checkpoints" / "step-00000002"
    err = error_of(capsys, config, f"training.resume={foreign}", "training.max_steps=2")
    assert "already holds a run" in err
    assert before == {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}


def test_bad_input_leaves_no_run_dir(folder, capsys):
    config = tiny_run.write_config(folder)
    error_of(capsys, config, "features.store=absent.h5")
    assert not (folder / "run").exists()
    assert tiny_run.launch("train", "--config", str(config), "training.max_steps=1") == 0


@pytest.mark.parametrize("place", ["/proc/absent/run", "/etc/hostname"])
def test_run_dir_that_cannot_be_created(good, capsys, place):
    err = error_of(capsys, good / "tiny.yaml", f"run_dir={place}")
    assert place.split("/")[1] in err


def test_deeply_nested_configuration(tmp_path, capsys):
    (tmp_path / "deep.yaml").write_text("seed: " + "[" * 3000 + "]" * 3000)
    assert "nested too deeply" in error_of(capsys, tmp_path / "deep.yaml")


def test_unknown_tracker(good, capsys):
    err = error_of(capsys, good / "tiny.yaml", "run_dir=absent", "tracking.trackers=[nonsense,tensorboard]")
    assert "'nonsense' is not known" in err
    assert "tensorboard" in err


def test_more_images_than_max_images(good, capsys):
    err = error_of(capsys, good / "tiny.yaml", "run_dir=absent", "visual.max_images=1")
    assert "tasks.nlvr2" in err
    assert "visual.max_images=2" in err


def test_resume_with_another_configuration(good, capsys):
    err = error_of(capsys, good / "tiny.yaml", "training.resume=auto", "training.max_steps=2", "training.lr=0.5")
    assert "training.lr: was 0.01, is 0.5" in err


def test_resume_from_missing_checkpoint(good, capsys):
    err = error_of(capsys, good / "tiny.yaml", "training.resume=nowhere", "training.max_steps=2")
    assert "nowhere" in err
    assert "step-00000002" in err


def test_task_without_train_split(folder, capsys):
    values = yaml.safe_load(tiny_run.write_config(folder).read_text())
    del values["tasks"]["gqa"]["splits"]["train"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    err = error_of(capsys, folder / "tiny.yaml")
    assert "tasks.gqa.splits" in err


def test_missing_config_file(tmp_path, capsys):
    err = error_of(capsys, tmp_path / "absent.yaml")
    assert "absent.yaml" in err


def test_evaluate_with_mismatched_arguments(good, capsys):
    resolved, adapter = str(good / "run" / "resolved.yaml"), str(good / "run" / "adapter")
    cases = {
        ("--adapter", adapter, "--out", str(good / "out"), "--split", "nowhere"): "nowhere",
        ("--adapter", str(good / "absent"), "--out", str(good / "out")): "absent",
        ("--adapter", adapter, "--out", str(good / "run")): "already contains scores",
        ("--adapter", adapter, "--out", str(good / "out"), "method.rank=8"): "adapter",
    }
    for arguments, expected in cases.items():
        assert tiny_run.launch("evaluate", "--config", resolved, *arguments) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert "Traceback" not in err
