"""Training runs through the command: their run folder, resuming, and settings that must not change the result."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from multitask_vl.data.collate import shuffled_images
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import encoder_identity, encoder_mismatch
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_run.write_dataset(folder)
    return folder


def train(data, name, *overrides):
    """Train in this process and return the run folder."""
    folder = data / name
    config = tiny_run.write_config(data, run_dir=str(folder))
    assert tiny_run.launch("train", "--config", str(config), *overrides) == 0
    return folder


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def predictions(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("predictions/*/*.jsonl"))}


def assert_same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(data):
    """A run of 12 steps with dropout."""
    return train(data, "uninterrupted")


def test_run_folder_has_documented_files(uninterrupted):
    scores = json.loads((uninterrupted / "scores.json").read_text())
    assert set(scores["splits"]["test"]["tasks"]) == {"vqa", "gqa", "nlvr2", "coco_caption"}
    values = [task["value"] for task in scores["splits"]["test"]["tasks"].values()]
    assert scores["splits"]["test"]["average"] == pytest.approx(sum(values) / 4)
    for entry in scores["splits"]["test"]["tasks"].values():
        low, high = entry["interval"]
        assert low <= entry["value"] <= high
        assert entry["intervals"][entry["primary_metric"]]["level"] == 95
        assert "submission" not in entry["notes"], "the run reports that its own submission is invalid"
    assert scores["step"] == 12
    assert 0 < scores["parameters"]["trainable"] < scores["parameters"]["total"]
    assert len({path.name for path in (uninterrupted / "submission" / "test").iterdir()}) == 4
    assert [step for step, _, _ in tiny_run.read_losses(uninterrupted)] == list(range(1, 13))
    rows = [json.loads(line) for line in (uninterrupted / "predictions/vqa/test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(7)]
    assert set(rows[0]) == {"id", "images", "text", "prediction", "references", "groups"}
    per_example = json.loads((uninterrupted / "predictions/vqa/test.per_example.json").read_text())
    assert set(per_example) == {row["id"] for row in rows}


def test_resumed_run_equals_uninterrupted(data, uninterrupted):
    """From the checkpoint of step 8, in the middle of an epoch: the same losses, weights and predictions."""
    folder = data / "resumed"
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / "checkpoints/step-00000012")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # as a crash leaves it
    config = tiny_run.write_config(data, run_dir=str(folder))
    assert tiny_run.launch("train", "--config", str(config), "training.resume=auto") == 0
    assert tiny_run.read_losses(folder) == tiny_run.read_losses(uninterrupted)
    assert_same_weights(folder, uninterrupted)
    assert predictions(folder) == predictions(uninterrupted)

    metrics = (folder / "metrics.jsonl").read_text()
    assert tiny_run.launch("train", "--config", str(config), "training.resume=auto") == 0
    assert (folder / "metrics.jsonl").read_text() == metrics, "a finished run that is resumed repeats itself"


def test_resolved_config_with_workers_and_checkpointing_equals(data, uninterrupted):
    """resolved.yaml is a configuration; data-loading workers and gradient checkpointing do not change the result."""
    folder = data / "workers"
    overrides = (f"run_dir={folder}", "training.num_workers=1", "training.gradient_checkpointing=true")
    assert tiny_run.launch("train", "--config", str(uninterrupted / "resolved.yaml"), *overrides) == 0
    assert tiny_run.read_losses(folder) == tiny_run.read_losses(uninterrupted)
    assert_same_weights(folder, uninterrupted)


def test_saved_adapter_scores_the_same_when_loaded(data, uninterrupted, capsys):
    out = data / "evaluated"
    arguments = ("--config", str(uninterrupted / "resolved.yaml"), "--adapter", str(uninterrupted / "adapter"))
    assert tiny_run.launch("evaluate", *arguments, "--out", str(out)) == 0
    assert predictions(out) == predictions(uninterrupted)
    expected, scores = (json.loads((run / "scores.json").read_text())["splits"] for run in (uninterrupted, out))
    assert scores == expected
    trained_on = json.loads((uninterrupted / "adapter/adapter_config.json").read_text())["run"]["features"]
    manifest = FeatureStore(data / "features.h5").manifest
    assert trained_on == encoder_identity(manifest)
    assert "RN50" not in capsys.readouterr().err
    assert "trained on features of RN50" in encoder_mismatch(manifest, {**trained_on, "encoder": "RN50"})[0]


def test_shuffled_image_control_trains(data):
    folder = train(
        data, "shuffled", "features.shuffle_images=true", "training.max_steps=1", "evaluation.final_splits=[]"
    )
    assert "shuffle_images: true" in (folder / "resolved.yaml").read_text()
    image_substitution = shuffled_images([Dataset.from_dict({"images": [["a", "b"], ["c"]]})], seed=0)
    assert sorted(image_substitution) == sorted(image_substitution.values()) == ["a", "b", "c"]
    assert all(key != other for key, other in image_substitution.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: checks bf16 training on one GPU")
@pytest.mark.gpu
def test_bf16_trains_on_gpu(data):
    folder = train(data, "gpu", "training.mixed_precision=bf16")
    assert all(loss == loss for _, _, loss in tiny_run.read_losses(folder))


def test_bf16_trains_on_cpu(data):
    folder = train(data, "bf16", "training.mixed_precision=bf16", "training.max_steps=2")
    assert len(tiny_run.read_losses(folder)) == 2
    assert (folder / "scores.json").exists()
