"""What a run leaves beside its numbers: record.json, the time of a step by phase, memory, progress in a log file."""

import json
import shutil
import time

import pytest
import torch

from multitask_vl.config import load_config
from multitask_vl.config.schema import MixingConfig
from multitask_vl.data.schedule import Schedule
from multitask_vl.run import provenance
from multitask_vl.run.provenance import Mixture
from multitask_vl.training import step_timer
from multitask_vl.training.step_timer import BETWEEN, PHASES, StepClock
from multitask_vl.training.tracking import Progress, start_trackers
from tests import tiny_run

FEW = ("training.steps=6", "training.checkpoint_every=3", "evaluation.final=[]", "training.log_every=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    tiny_run.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def folder(data):
    """A run of six steps whose last checkpoint was lost and that was gone on with from step 3."""
    folder = data / "run"
    config = tiny_run.write_config(data, run_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_TOKEN", "hf_abcdefgh12345678")
        assert tiny_run.launch("train_multitask", "--config", str(config), *FEW) == 0
        shutil.rmtree(folder / "checkpoints" / "step-00000006")
        again = (*FEW, "training.resume=auto", "tracking.line_every=2")
        assert tiny_run.launch("train_multitask", "--config", str(config), *again) == 0
    return folder


@pytest.fixture(scope="module")
def kept(folder):
    return json.loads((folder / "record.json").read_text())


def test_a_record_says_what_made_the_run(kept):
    assert kept["code"]["version"]
    if (tiny_run.ROOT / ".git").exists():
        assert len(kept["code"]["commit"]) == 40
        assert kept["code"]["dirty"] == bool(kept["code"]["changed_files"])
    assert kept["torch"] == torch.__version__
    assert {"transformers", "accelerate", "numpy"} <= kept["packages"].keys()
    assert kept["threads"] == torch.get_num_threads()
    assert kept["processes"] == len(kept["devices"]) == 1
    assert "cores" in kept["devices"][0]
    assert (kept["seed"], kept["mixed_precision"]) == (3, "no")
    assert kept["features"]["manifest"]["encoder"] == "RN101"
    train = kept["data"]["vqa"]["train"]
    assert train["examples"] == 23
    assert all(len(digest) == 64 for digest in train["files"].values())
    assert kept["started"] <= kept["resumes"][0]["at"] <= kept["ended"]


def test_a_record_says_what_was_trained(data, folder, kept):
    steps = sum(one["steps"] for one in kept["mixture"].values())
    assert steps == kept["steps"]["done"] == kept["steps"]["total"] == 6
    for _, task, _ in tiny_run.losses(folder):
        assert kept["mixture"][task]["steps"] >= 1
    assert kept["mixture"]["vqa"]["examples"] <= 6 * kept["mixture"]["vqa"]["steps"]
    assert [one["from_step"] for one in kept["resumes"]] == [3]
    assert kept["resumes"][0]["command"]


def test_a_record_holds_no_environment(folder):
    assert "hf_abcdefgh12345678" not in (folder / "record.json").read_text()


def test_an_adapter_s_card_names_the_code(folder, kept):
    assert f"| code | {kept['code']['version']}" in (folder / "adapter" / "README.md").read_text()


def test_a_mixture_is_counted_or_had_from_the_schedule():
    schedule = Schedule({"a": 10, "b": 7}, {"a": 4, "b": 4}, MixingConfig(), seed=1)
    counted = Mixture(schedule.tasks)
    for step in range(9):
        counted.add(schedule.draw(step))
    assert Mixture.so_far(schedule, {}, 9).counts == counted.counts
    assert sum(one["steps"] for one in counted.counts.values()) == 9
    assert Mixture.so_far(schedule, {"mixture": {"a": {"steps": 2, "examples": 8}}}, 9).counts == {
        "a": {"steps": 2, "examples": 8},
        "b": {"steps": 0, "examples": 0},
    }


def test_code_without_git_has_a_version(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.code() == {"version": provenance.code()["version"], "commit": None, "dirty": None}


def test_a_row_says_where_the_time_went(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        spent = row["time"]
        parts = [spent[f"{phase}_s"] for phase in PHASES]
        assert all(part >= 0 for part in parts)
        assert spent["step_s"] == pytest.approx(sum(parts), abs=1e-3)
        assert spent["forward_s"] > 0
        assert spent["backward_s"] > 0
        assert spent["tokens_per_s"] > 0
        assert spent["images_per_s"] > 0
        assert spent["rss_mib"] > 50
        assert spent["left_s"] >= 0
    assert rows[-1]["time"]["left_s"] == 0


class Batch:
    attention_mask = torch.tensor([[1, 1, 0]])
    labels = torch.tensor([[5, -100]])
    features = torch.zeros(1, 2, 4, 8)
    images = None


def test_phases_are_added_up_between_readings(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0, 20.0, 20.0, 21.0])
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: next(now))
    timer = StepClock(torch.device("cpu"))
    for phase in ("wait", "forward", "backward", "optimizer"):
        timer.enter(phase)
    timer.count(Batch)
    timer.enter(BETWEEN)  # at 4.0; an evaluation until 10.0 belongs to no step
    assert timer.read() == {
        "step_s": 4.0, "wait_s": 1.0, "forward_s": 2.0, "backward_s": 0.5, "optimizer_s": 0.5,
        "tokens_per_s": 0.8, "images_per_s": 0.5,
    }  # fmt: skip
    timer.enter("wait")
    timer.enter("forward")
    timer.count(Batch)
    assert timer.read(torch.tensor([30, 8]))["tokens_per_s"] == 30.0, "tokens of all processes"


class Event:
    """A device's event: recorded at a time of the host, compared only after a wait."""

    log: list = []

    def record(self):
        self.at = len(Event.log)
        Event.log.append("record")

    def synchronize(self):
        Event.log.append("wait")

    def elapsed_time(self, other):
        return 1000.0 * (other.at - self.at)


def test_a_device_is_waited_for_only_at_a_reading():
    timer = StepClock(torch.device("cpu"), event=Event)
    for _ in range(3):
        for phase in (*PHASES, BETWEEN):
            timer.enter(phase)
        timer.count(Batch)
    assert "wait" not in Event.log
    read = timer.read()
    assert Event.log.count("wait") == 1
    assert [read[f"{phase}_s"] for phase in PHASES] == [1.0, 1.0, 1.0, 1.0]


def test_the_clock_costs_next_to_nothing():
    """Against steps of a tenth of a second and more."""
    timer = StepClock(torch.device("cpu"))
    began = time.process_time()
    for _ in range(500):
        for phase in (*PHASES, BETWEEN):
            timer.enter(phase)
        timer.count(Batch)
    timer.read()
    assert (time.process_time() - began) / 500 < 1e-3


def test_a_log_file_gets_a_line_every_so_many_steps(capsys):
    progress = Progress(total=5, done=0, active=True, line_every=2)
    for _ in range(5):
        progress.advance("vqa loss 1.000")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert "min left, vqa loss 1.000" in lines[0]
    silent = Progress(total=1, done=0, active=False, line_every=1)
    silent.advance("vqa")
    assert capsys.readouterr().err == ""


def test_trackers_start_as_the_yaml_says(tmp_path):
    words = ["tracking.project=mine", "tracking.init={wandb: {name: run7, mode: offline}}"]
    config = load_config(tiny_run.ROOT / "configs" / "quickstart.yaml", words)
    given = []

    class Accelerator:
        def init_trackers(self, *what):
            given.extend(what)

    start_trackers(Accelerator(), config)
    project, settings, init = given
    assert (project, init["wandb"]) == ("mine", {"name": "run7", "mode": "offline"})
    assert settings["training.lr"] == 2e-3
    assert all(isinstance(value, str | int | float | bool) for value in settings.values())
