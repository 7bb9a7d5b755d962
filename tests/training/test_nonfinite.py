"""Steps with a non-finite loss or gradient: reported, raised or skipped, the same after resuming."""

import json
import signal
from types import SimpleNamespace

import pytest

from multitask_vl.training.nonfinite import is_finite
from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow

STEPS, SKIP = 24, "training.on_nonfinite=skip"
NAN = {"nan_loss": ("vqa", "5")}
"""One example of VQA whose loss is not a number."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("nonfinite")
    tiny_run.write_dataset(folder)
    return folder


def start(data, name, *overrides, processes=1, **plan):
    """Start a run without dropout and evaluation; returns the exit codes of its processes."""
    settings = tiny_run.base_config(data)
    config = tiny_run.write_config(
        data,
        run_dir=str(data / name),
        backbone={**settings["backbone"], "dropout": 0.0},
        training={**settings["training"], "max_steps": STEPS},
        evaluation={**settings["evaluation"], "final_splits": []},
    )
    plan = fork_server.FaultPlan(log=str(data / f"{name}.log"), **plan)
    arguments = ["--config", str(config), "--resume", "auto", *overrides]
    return fork_server.exit_codes(fork_server.start(arguments, plan, processes))


def log(data, name):
    return "".join(path.read_text() for path in sorted(data.glob(f"{name}.log*")))


def rows(data, name):
    """Rows of metrics.jsonl, without what depends on a clock."""
    found = [json.loads(line) for line in (data / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k in ("step", "task", "loss", "skipped", "ids")} for row in found]


def weights(data, name):
    return (data / name / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def skipping(data):
    """Metrics of a run that skips the steps of one example."""
    assert start(data, "skipping", SKIP, **NAN) == [0], log(data, "skipping")
    return rows(data, "skipping")


def test_skipped_steps_are_counted_and_reported(data, skipping):
    skipped = [row for row in skipping if "skipped" in row]
    assert len(skipped) >= 1
    assert all((row["task"], row["ids"]) == ("vqa", ["5"]) for row in skipped)
    assert [row["step"] for row in skipping if "step" in row and "task" in row] == list(range(1, STEPS + 1))
    assert all("loss" not in row for row in skipped)
    assert log(data, "skipping").count("the step is skipped") == len(skipped)
    state = json.loads((data / f"skipping/checkpoints/step-{STEPS:08d}/state.json").read_text())
    assert state["skips"]["total"] == len(skipped)


def test_skipped_step_is_skipped_again_after_a_kill(data, skipping):
    last = [row["step"] for row in skipping if "skipped" in row][-1]
    plan = NAN | {"at_step": min(last, STEPS - 1)}
    assert start(data, "killed", SKIP, **plan) == [-signal.SIGKILL]
    assert start(data, "killed", SKIP, **NAN) == [0]
    assert rows(data, "killed") == skipping
    assert weights(data, "killed") == weights(data, "skipping")


def test_raised_step_names_task_and_example_and_can_be_skipped(data, skipping):
    assert start(data, "raised", **NAN) == [2]
    assert "on task vqa: examples 5. Lower" in log(data, "raised")
    assert SKIP in log(data, "raised")
    assert "training.resume=auto" in log(data, "raised")
    assert "Traceback" not in log(data, "raised")
    assert start(data, "raised", SKIP, **NAN) == [0]
    assert rows(data, "raised") == skipping
    assert weights(data, "raised") == weights(data, "skipping")


def test_two_processes_skip_the_same_steps(data, skipping):
    assert start(data, "two", SKIP, processes=2, **NAN) == [0, 0], log(data, "two")
    for one, other in zip(rows(data, "two"), skipping, strict=True):
        assert one.keys() == other.keys()
        assert abs(one.pop("loss", 0) - other.get("loss", 0)) < 1e-5
        assert {key: other[key] for key in one} == one


def test_too_many_consecutive_skips_raise(data):
    overrides = (SKIP, "training.max_consecutive_skips=3")
    assert start(data, "nlvr2", *overrides, nan_loss=("nlvr2", "all")) == [2]
    assert "3 steps in a row were skipped (training.max_consecutive_skips)" in log(data, "nlvr2")


def test_nonfinite_gradient_with_finite_loss_is_reported(data):
    assert start(data, "gradient", infinite_grad="gqa") == [2]
    assert "gradient norm nan on task gqa: each of its 10 examples has a finite loss" in log(data, "gradient")


def test_is_finite_allows_overflow_only_while_scaling():
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    accelerator = SimpleNamespace(scaler=scaler)
    assert is_finite(1.0, float("inf"), accelerator)
    scaler.get_scale = lambda: 0.5
    assert not is_finite(1.0, float("inf"), accelerator)
    assert is_finite(1.0, 2.0, accelerator)
    assert not is_finite(float("nan"), 2.0, accelerator)
