"""Training as a user runs it: resumed equals uninterrupted, two processes equal one, micro-batches equal a batch."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import other_trunk, trunk_of
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_run.write_files(folder)
    return folder


def train(data, name, *words, **sections):
    """Train in this process and return the run folder."""
    folder = data / name
    config = tiny_run.write_config(data, run_dir=str(folder), **sections)
    assert tiny_run.launch("train_multitask", "--config", str(config), *words) == 0
    return folder


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def worst_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def predictions(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("predictions/*/*.jsonl"))}


@pytest.fixture(scope="module")
def whole(data):
    """A run of 12 steps that nothing disturbed, dropout on."""
    return train(data, "whole")


@pytest.fixture(scope="module")
def still(data):
    """The same without dropout, on one process."""
    return train(data, "still", backbone={**tiny_run.values(data)["backbone"], "dropout": 0.0})


def test_a_run_folder_holds_what_the_readme_says(whole):
    scores = json.loads((whole / "scores.json").read_text())
    assert set(scores["splits"]["report"]["tasks"]) == {"vqa", "gqa", "nlvr2", "coco_caption"}
    values = [task["value"] for task in scores["splits"]["report"]["tasks"].values()]
    assert scores["splits"]["report"]["average"] == pytest.approx(sum(values) / 4)
    for entry in scores["splits"]["report"]["tasks"].values():
        low, high = entry["interval"]
        assert low <= entry["value"] <= high
        assert entry["intervals"][entry["headline"]]["level"] == 95
        assert "submission" not in entry["notes"], "the run found its own submission not valid"
    assert scores["step"] == 12
    assert 0 < scores["parameters"]["trainable"] < scores["parameters"]["total"]
    names = {path.name for path in (whole / "submission" / "report").iterdir()}
    assert len(names) == 4
    assert [step for step, _, _ in tiny_run.losses(whole)] == list(range(1, 13))
    rows = [json.loads(line) for line in (whole / "predictions/vqa/report.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(7)]
    assert set(rows[0]) == {"id", "images", "text", "prediction", "references", "kinds"}
    per_example = json.loads((whole / "predictions/vqa/report.per_example.json").read_text())
    assert set(per_example) == {row["id"] for row in rows}


def test_a_run_killed_in_the_middle_and_resumed_equals_one_that_was_not(data, whole):
    """SIGKILL mid-epoch, past the checkpoint of step 4: the same losses, weights and predictions, dropout included."""
    folder = data / "killed"
    config = tiny_run.write_config(data, run_dir=str(folder))
    process = subprocess.Popen(
        tiny_run.command(config), cwd=tiny_run.ROOT, env=tiny_run.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 6:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    taken = len(tiny_run.losses(folder))
    assert 6 <= taken < 12

    assert tiny_run.launch("train_multitask", "--config", str(config), "training.resume=auto") == 0
    assert tiny_run.losses(folder) == tiny_run.losses(whole)
    assert worst_difference(weights(folder), weights(whole)) == 0.0
    assert predictions(folder) == predictions(whole)

    metrics = (folder / "metrics.jsonl").read_text()
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.resume=auto") == 0
    assert (folder / "metrics.jsonl").read_text() == metrics, "a finished run that is resumed repeats itself"


def test_two_processes_equal_one(data, still):
    """Real gloo pair; the last batches of a pass have odd sizes, so shards differ in rows and lengths."""
    folder = data / "two"
    config = tiny_run.write_config(
        data, run_dir=str(folder), backbone={**tiny_run.values(data)["backbone"], "dropout": 0.0}
    )
    done = tiny_run.run(config, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 x cpu" in done.stderr, "the launcher gave one process"
    one, two = tiny_run.losses(still), tiny_run.losses(folder)
    assert [row[:2] for row in two] == [row[:2] for row in one]
    assert max(abs(a[2] - b[2]) for a, b in zip(one, two, strict=True)) < 1e-5
    assert worst_difference(weights(folder), weights(still)) < 1e-5
    assert predictions(folder) == predictions(still)


def test_micro_batches_equal_a_batch(data, still):
    backbone = {**tiny_run.values(data)["backbone"], "dropout": 0.0}
    folder = train(data, "micro", "training.micro_batch_size=4", backbone=backbone)
    assert max(abs(a[2] - b[2]) for a, b in zip(tiny_run.losses(still), tiny_run.losses(folder), strict=True)) < 1e-5
    assert worst_difference(weights(folder), weights(still)) < 1e-5


def test_loader_workers_and_gradient_checkpointing_change_nothing(data, whole):
    folder = train(
        data, "workers", "training.workers=1", "training.gradient_checkpointing=true", "tracking.trackers=[]"
    )
    assert tiny_run.losses(folder) == tiny_run.losses(whole)
    assert worst_difference(weights(folder), weights(whole)) == 0.0


def test_a_resolved_file_is_launched_as_it_is(data, whole):
    folder = data / "again"
    assert tiny_run.launch("train_multitask", "--config", str(whole / "resolved.yaml"), f"run_dir={folder}") == 0
    assert tiny_run.losses(folder) == tiny_run.losses(whole)


def test_a_saved_adapter_scores_the_same_when_loaded(data, whole, capsys):
    out = data / "scored"
    words = ("--config", str(whole / "resolved.yaml"), "--adapter", str(whole / "adapter"), "--out", str(out))
    assert tiny_run.launch("evaluate", *words) == 0
    assert predictions(out) == predictions(whole)
    kept, again = (json.loads((folder / "scores.json").read_text())["splits"] for folder in (whole, out))
    assert again == kept
    trained_on = json.loads((whole / "adapter/adapter_config.json").read_text())["run"]["features"]
    manifest = FeatureStore(data / "features.h5").manifest
    assert trained_on == trunk_of(manifest)
    assert "features are made by" not in capsys.readouterr().out
    other = {**trained_on, "encoder": "RN50"}
    assert "trained on those of RN50" in other_trunk(manifest, other)[0]


def test_evaluation_during_training_and_a_tracker(data):
    words = ["evaluation.during=[report]", "evaluation.every_epochs=0.1", "evaluation.limit=3", "log_dir=x"][:-1]
    folder = train(data, "during", *words, "training.steps=7", "tracking.trackers=[tensorboard]")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [(row["step"], row["split"]) for row in rows if "scores" in row]
    assert evaluated[-1] == (7, "report")
    assert len(evaluated) >= 2
    assert list(folder.rglob("events.out.tfevents.*"))


def test_the_blind_control_gives_every_image_another_ones_features(data):
    folder = train(data, "blind", "features.control=shuffled", "training.steps=2")
    assert "control: shuffled" in (folder / "resolved.yaml").read_text()
    from multitask_vl.data.collate import shuffled_images

    stand_in = shuffled_images([Dataset.from_dict({"images": [["a", "b"], ["c"]]})], seed=0)
    assert sorted(stand_in) == sorted(stand_in.values()) == ["a", "b", "c"]
    assert all(key != other for key, other in stand_in.items())


def test_an_infinite_loss_names_task_and_examples(data, capsys, monkeypatch):
    from multitask_vl.models.seq2seq import VLSeq2Seq

    token_loss = VLSeq2Seq.token_loss
    monkeypatch.setattr(VLSeq2Seq, "token_loss", lambda *args: token_loss(*args) * float("inf"))
    config = tiny_run.write_config(data, run_dir=str(data / "infinite"))
    assert tiny_run.launch("train_multitask", "--config", str(config)) == 2
    said = capsys.readouterr().err
    assert "step 0: loss" in said
    assert "on task" in said
    assert "training.resume=auto" in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: checks bf16 training on one GPU")
@pytest.mark.gpu
def test_bf16_on_a_gpu(data):
    folder = train(data, "gpu", "training.mixed_precision=bf16")
    assert all(loss == loss for _, _, loss in tiny_run.losses(folder))


def test_bf16_runs_on_this_processor(data):
    folder = train(data, "bf16", "training.mixed_precision=bf16", "training.steps=4")
    assert len(tiny_run.losses(folder)) == 4
    assert os.path.exists(folder / "scores.json")
