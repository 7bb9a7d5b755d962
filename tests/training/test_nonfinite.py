"""A loss or gradient that is not a number: named, the run stopped or the step left out, the same after a restart."""

import json
import signal
from types import SimpleNamespace

import pytest

from multitask_vl.training.nonfinite import is_finite
from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("nonfinite")
    tiny_run.write_files(folder)
    return folder


def start(data, name, *words, processes=1, **plan):
    """Start a run without dropout; returns the exit codes of its processes."""
    settings = tiny_run.values(data)
    backbone = {**settings["backbone"], "dropout": 0.0}
    config = tiny_run.write_config(data, run_dir=str(data / name), backbone=backbone)
    words = ["--config", str(config), "--resume", "auto", "training.steps=40", *words]
    return fork_server.ended(
        fork_server.start(words, fork_server.Plan(said=str(data / f"{name}.said"), **plan), processes)
    )


def said(data, name):
    return "".join(path.read_text() for path in sorted(data.glob(f"{name}.said*")))


def rows(data, name):
    """Rows of metrics.jsonl without the clock's part."""
    found = [json.loads(line) for line in (data / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k in ("step", "task", "loss", "skipped", "ids")} for row in found]


def weights(data, name):
    return (data / name / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def skipping(data):
    """A run in which one example of VQA has no loss, and its steps are left out."""
    assert start(data, "skipping", "training.on_nonfinite=skip", broken=("vqa", "5")) == [0], said(data, "skipping")
    return rows(data, "skipping")


def test_a_run_stops_and_names_task_step_and_example(data):
    assert start(data, "stopped", broken=("vqa", "5")) == [2]
    text = said(data, "stopped")
    assert "on task vqa: examples 5. Lower" in text
    assert "training.on_nonfinite=skip" in text
    assert "Traceback" not in text


def test_steps_are_left_out_counted_and_told(data, skipping):
    left_out = [row for row in skipping if "skipped" in row]
    assert len(left_out) >= 1
    assert all((row["task"], row["ids"]) == ("vqa", ["5"]) for row in left_out)
    assert [row["step"] for row in skipping if "step" in row and "task" in row] == list(range(1, 41))
    assert all("loss" not in row for row in left_out)
    assert said(data, "skipping").count("the step is left out") == len(left_out)
    state = json.loads((data / "skipping/checkpoints/step-00000040/state.json").read_text())
    assert state["skips"]["total"] == len(left_out)


def test_a_step_that_was_left_out_is_left_out_again_after_a_death(data, skipping):
    last = [row["step"] for row in skipping if "skipped" in row][-1]
    plan = {"broken": ("vqa", "5"), "at_step": min(last, 39)}
    assert start(data, "killed", "training.on_nonfinite=skip", **plan) == [-signal.SIGKILL]
    assert start(data, "killed", "training.on_nonfinite=skip", broken=("vqa", "5")) == [0]
    assert rows(data, "killed") == skipping
    assert weights(data, "killed") == weights(data, "skipping")


def test_a_run_that_stopped_goes_on_when_it_may_leave_steps_out(data, skipping):
    assert start(data, "stopped", "training.on_nonfinite=skip", broken=("vqa", "5")) == [0]
    assert rows(data, "stopped") == skipping
    assert weights(data, "stopped") == weights(data, "skipping")


def test_two_processes_leave_the_same_steps_out(data, skipping):
    codes = start(data, "two", "training.on_nonfinite=skip", broken=("vqa", "5"), processes=2)
    assert codes == [0, 0], said(data, "two")
    for one, other in zip(rows(data, "two"), skipping, strict=True):
        assert one.keys() == other.keys()
        assert abs(one.pop("loss", 0) - other.get("loss", 0)) < 1e-5
        assert {key: other[key] for key in one} == one


def test_too_many_in_a_row_end_the_run(data):
    words = ("training.on_nonfinite=skip", "training.max_skips=3")
    broken = [start(data, task, *words, broken=(task, "all")) for task in ("nlvr2",)]
    assert broken == [[2]]
    assert "3 steps in a row were left out (training.max_skips)" in said(data, "nlvr2")


def test_a_gradient_alone_is_told_from_a_loss(data):
    assert start(data, "steep", steep="gqa") == [2]
    text = said(data, "steep")
    assert "gradient norm nan on task gqa: each of its 10 examples has a finite loss" in text


def test_a_gradient_overflows_by_itself_once_nothing_is_scaled_up():
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    accelerator = SimpleNamespace(scaler=scaler)
    assert is_finite(1.0, float("inf"), accelerator)
    scaler.get_scale = lambda: 0.5
    assert not is_finite(1.0, float("inf"), accelerator)
    assert is_finite(1.0, 2.0, accelerator)
    assert not is_finite(float("nan"), 2.0, accelerator)
