"""record.json of a run: code, machine, data, sampled mixture; and the timing rows of its metrics."""

import json
import shutil

import pytest
import torch

from multitask_vl.config.schema import SamplingConfig
from multitask_vl.data.schedule import Schedule
from multitask_vl.run import provenance
from multitask_vl.run.provenance import SampledMixture
from multitask_vl.training.step_timer import PHASES
from tests import tiny_run

OVERRIDES = (
    "training.max_steps=6", "training.checkpoint_steps=3", "evaluation.final_splits=[]", "training.log_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of six steps whose last checkpoint was lost and that was resumed from step 3."""
    data = tmp_path_factory.mktemp("record")
    tiny_run.write_dataset(data)
    folder = data / "run"
    config = tiny_run.write_config(data, run_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_TOKEN", "hf_abcdefgh12345678")
        assert tiny_run.launch("train", "--config", str(config), *OVERRIDES) == 0
        shutil.rmtree(folder / "checkpoints" / "step-00000006")
        resume = (*OVERRIDES, "training.resume=auto", "tracking.print_steps=2")
        assert tiny_run.launch("train", "--config", str(config), *resume) == 0
    return folder


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "record.json").read_text())


def test_record_has_code_machine_and_data(record):
    assert record["code"]["version"]
    if (tiny_run.ROOT / ".git").exists():
        assert len(record["code"]["commit"]) == 40
        assert record["code"]["dirty"] == bool(record["code"]["changed_files"])
    assert record["torch"] == torch.__version__
    assert {"transformers", "accelerate", "numpy"} <= record["packages"].keys()
    assert record["threads"] == torch.get_num_threads()
    assert record["processes"] == len(record["devices"]) == 1
    assert "cores" in record["devices"][0]
    assert (record["seed"], record["mixed_precision"]) == (3, "no")
    assert record["features"]["manifest"]["encoder"] == "RN101"
    train = record["data"]["vqa"]["train"]
    assert train["examples"] == 23
    assert all(len(digest) == 64 for digest in train["files"].values())
    assert record["started"] <= record["resumes"][0]["at"] <= record["ended"]


def test_record_has_mixture_and_resumes(folder, record):
    steps = sum(one["steps"] for one in record["mixture"].values())
    assert steps == record["steps"]["done"] == record["steps"]["total"] == 6
    for _, task, _ in tiny_run.read_losses(folder):
        assert record["mixture"][task]["steps"] >= 1
    assert record["mixture"]["vqa"]["examples"] <= 6 * record["mixture"]["vqa"]["steps"]
    assert [one["from_step"] for one in record["resumes"]] == [3]
    assert record["resumes"][0]["command"]


def test_record_has_no_environment(folder):
    assert "hf_abcdefgh12345678" not in (folder / "record.json").read_text()


def test_adapter_card_names_the_code(folder, record):
    assert f"| code | {record['code']['version']}" in (folder / "adapter" / "README.md").read_text()


def test_mixture_comes_from_checkpoint_or_schedule():
    schedule = Schedule({"a": 10, "b": 7}, {"a": 4, "b": 4}, SamplingConfig(), seed=1)
    mixture = SampledMixture(schedule.tasks)
    for step in range(9):
        mixture.add(schedule.plan(step))
    assert SampledMixture.from_checkpoint(schedule, {}, 9).counts == mixture.counts
    assert sum(one["steps"] for one in mixture.counts.values()) == 9
    record = {"mixture": {"a": {"steps": 2, "examples": 8}}}
    assert SampledMixture.from_checkpoint(schedule, record, 9).counts == {
        "a": {"steps": 2, "examples": 8},
        "b": {"steps": 0, "examples": 0},
    }


def test_git_state_without_git_has_the_version(monkeypatch):
    monkeypatch.setenv("PATH", "")
    state = provenance.git_state()
    assert state == {"version": state["version"], "commit": None, "dirty": None}


def test_metrics_row_has_timing_and_memory(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        timing = row["time"]
        parts = [timing[f"{phase}_s"] for phase in PHASES]
        assert all(part >= 0 for part in parts)
        assert timing["step_s"] == pytest.approx(sum(parts), abs=1e-3)
        assert timing["forward_s"] > 0
        assert timing["backward_s"] > 0
        assert timing["tokens_per_s"] > 0
        assert timing["images_per_s"] > 0
        assert timing["rss_mib"] > 50
        assert timing["eta_s"] >= 0
    assert rows[-1]["time"]["eta_s"] == 0
