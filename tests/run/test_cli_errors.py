"""Bad input to the training command: exit code 2, what and where and how to mend it on one screen, no traceback."""

import json
import shutil

import pytest
import yaml

from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of a tiny run, and one finished run under ``run``."""
    folder = tmp_path_factory.mktemp("good")
    tiny_run.write_files(folder)
    config = tiny_run.write_config(folder)
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.steps=2") == 0
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy that a test may spoil; its configuration points into it."""
    shutil.copytree(good, tmp_path / "copy", ignore=shutil.ignore_patterns("run", ".cache"))
    return tmp_path / "copy"


def complaint(capsys, config, *words) -> str:
    """What the command says of bad input; asserts that it says it decently."""
    capsys.readouterr()
    assert tiny_run.launch("train_multitask", "--config", str(config), *words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 24
    return said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trainig": {"lr": 1}}, ["tiny.yaml:", "trainig", "did you mean", "training"]),
        ({"training": {"lr": "fast"}}, ["tiny.yaml:", "training.lr", "fast"]),
        ({"training": {"steps": 0}}, ["tiny.yaml:", "training.steps"]),
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
        "routing of no task",
    ],
)
def test_configuration(folder, capsys, change, expected):
    config = tiny_run.write_config(folder, **change)
    said = complaint(capsys, config)
    for part in expected:
        assert part in said
    number = int(said.split("tiny.yaml:")[1].split(":")[0])
    assert 1 <= number <= len(config.read_text().splitlines())


def test_all_problems_come_at_once(folder, capsys):
    config = tiny_run.write_config(folder, training={"lr": "fast"}, routing={"function": "mull"}, seeed=1)
    said = complaint(capsys, config)
    for part in ("fast", "mull", "seeed"):
        assert part in said


def test_a_missing_annotation_file(folder, capsys):
    (folder / "vqa_train_annotations.json").unlink()
    said = complaint(capsys, tiny_run.write_config(folder))
    assert "vqa_train_annotations.json" in said
    assert "vqa" in said


def test_malformed_json_names_the_line(folder, capsys):
    lines = (folder / "nlvr2_train.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-5]
    (folder / "nlvr2_train.jsonl").write_text("\n".join(lines) + "\n")
    said = complaint(capsys, tiny_run.write_config(folder))
    assert "nlvr2_train.jsonl:5" in said


def test_an_image_key_without_features(folder, capsys):
    path = folder / "gqa_train.json"
    questions = json.loads(path.read_text())
    questions["3"]["imageId"] = "unseen"
    path.write_text(json.dumps(questions))
    said = complaint(capsys, tiny_run.write_config(folder))
    assert "unseen" in said
    assert "1 of" in said
    assert "launch/extract_features.py" in said


def test_a_store_of_another_trunk(folder, capsys):
    said = complaint(capsys, tiny_run.write_config(folder, clip={"model": "RN50"}))
    assert "RN101" in said
    assert "RN50" in said


def test_a_truncated_store(folder, capsys):
    path = folder / "features.h5"
    path.write_bytes(path.read_bytes()[:3000])
    said = complaint(capsys, tiny_run.write_config(folder))
    assert "features.h5" in said


def test_a_store_that_is_not_there(folder, capsys):
    (folder / "features.h5").unlink()
    said = complaint(capsys, tiny_run.write_config(folder))
    assert "features.h5" in said
    assert "launch/extract_features.py" in said


def test_a_text_over_its_limit(folder, capsys):
    said = complaint(capsys, tiny_run.write_config(folder), "tasks.vqa.max_input_tokens=6")
    assert "max_input_tokens=6" in said
    assert "tasks.vqa.too_long=truncate" in said


def test_a_text_over_its_limit_may_be_cut_and_is_counted(folder, capsys):
    config = tiny_run.write_config(folder)
    words = ("tasks.vqa.max_input_tokens=6", "tasks.vqa.too_long=truncate", "training.steps=1")
    assert tiny_run.launch("train_multitask", "--config", str(config), *words) == 0
    assert "task vqa, split train: 23 inputs are cut" in capsys.readouterr().err


def test_a_run_folder_that_exists(good, capsys):
    said = complaint(capsys, good / "tiny.yaml")
    assert "already holds a run" in said
    assert "training.resume=auto" in said


def test_a_checkpoint_of_another_run_does_not_take_over_a_folder(good, folder, capsys):
    config = tiny_run.write_config(folder)
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.steps=1") == 0
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    foreign = good / "run" / "checkpoints" / "step-00000002"
    said = complaint(capsys, config, f"training.resume={foreign}", "training.steps=2")
    assert "already holds a run" in said
    assert before == {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}


def test_a_run_that_failed_on_bad_input_can_be_started_once_it_is_mended(folder, capsys):
    config = tiny_run.write_config(folder)
    complaint(capsys, config, "features.store=absent.h5")
    assert not (folder / "run").exists()
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.steps=1") == 0


@pytest.mark.parametrize("place", ["/proc/absent/run", "/etc/hostname"])
def test_a_run_folder_that_cannot_be(good, capsys, place):
    said = complaint(capsys, good / "tiny.yaml", f"run_dir={place}")
    assert place.split("/")[1] in said


def test_a_configuration_without_end(tmp_path, capsys):
    (tmp_path / "deep.yaml").write_text("seed: " + "[" * 3000 + "]" * 3000)
    assert "nested too deeply" in complaint(capsys, tmp_path / "deep.yaml")


def test_trackers(good, capsys):
    said = complaint(capsys, good / "tiny.yaml", "run_dir=absent", "tracking.trackers=[nonsense,tensorboard]")
    assert "'nonsense' is not known" in said
    assert "tensorboard" in said


def test_more_images_than_the_model_tells_apart(good, capsys):
    said = complaint(capsys, good / "tiny.yaml", "run_dir=absent", "visual.max_images=1")
    assert "tasks.nlvr2" in said
    assert "visual.max_images=2" in said


def test_resuming_with_another_configuration(good, capsys):
    said = complaint(capsys, good / "tiny.yaml", "training.resume=auto", "training.steps=2", "training.lr=0.5")
    assert "training.lr: was 0.01, is 0.5" in said


def test_resuming_from_a_checkpoint_that_is_not_there(good, capsys):
    said = complaint(capsys, good / "tiny.yaml", "training.resume=nowhere", "training.steps=2")
    assert "nowhere" in said
    assert "step-00000002" in said


def test_a_task_without_training_split(folder, capsys):
    values = yaml.safe_load(tiny_run.write_config(folder).read_text())
    del values["tasks"]["gqa"]["splits"]["train"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    said = complaint(capsys, folder / "tiny.yaml")
    assert "tasks.gqa.splits" in said


def test_no_file(tmp_path, capsys):
    said = complaint(capsys, tmp_path / "absent.yaml")
    assert "absent.yaml" in said


def test_evaluating_what_does_not_fit(good, capsys):
    resolved, adapter = str(good / "run" / "resolved.yaml"), str(good / "run" / "adapter")
    cases = {
        ("--adapter", adapter, "--out", str(good / "out"), "--split", "nowhere"): "nowhere",
        ("--adapter", str(good / "absent"), "--out", str(good / "out")): "absent",
        ("--adapter", adapter, "--out", str(good / "run")): "already holds scores",
        ("--adapter", adapter, "--out", str(good / "out"), "method.rank=8"): "adapter",
    }
    for words, expected in cases.items():
        assert tiny_run.launch("evaluate", "--config", resolved, *words) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert "Traceback" not in said
