"""A run that is killed 25 times, at any instant, equals an uninterrupted one: bit for bit, no gaps, no repeats."""

import json
import signal

import numpy as np
import pytest

from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH = 16
STEPS, EVALUATED = 60, (10, 20, 30, 40, 50, 60)
EXACT = ("step", "task", "loss", "lr", "grad_norm", "split", "scores", "final", "skipped", "ids")
"""Keys of metrics.jsonl that do not depend on a clock."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("chaos")
    tiny_run.write_dataset(folder)
    return folder


def start(data, name, **plan):
    """Start or resume the run ``name``; returns the exit code."""
    settings = tiny_run.base_config(data)
    one_layer = {**settings["backbone"]["config"], "encoder_layers": 1, "decoder_layers": 1}
    config = tiny_run.write_config(
        data,
        only_tasks=["vqa", "nlvr2"],
        run_dir=str(data / name),
        backbone={**settings["backbone"], "config": one_layer},
        training={
            **settings["training"], "max_steps": STEPS, "log_steps": 2, "lr": 0.03,
            "keep_best": {"metrics": ["average", "nlvr2"], "split": "test"},
        },
        evaluation={
            **settings["evaluation"], "eval_splits": ["test"], "eval_every_epochs": 10 / STEPS_PER_EPOCH,
            "max_examples": 3,
        },
    )  # fmt: skip
    arguments = ["--config", str(config), "--resume", "auto"]
    plan = fork_server.FaultPlan(log=str(data / f"{name}.log"), **plan)
    return fork_server.exit_codes(fork_server.start(arguments, plan))[0]


def exact(line):
    row = json.loads(line)
    return {key: row[key] for key in EXACT if key in row}


def content(folder):
    """Everything in a run folder: path -> content, without its own path and what depends on a clock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.name == "record.json":
            found[name] = {key: json.loads(path.read_text())[key] for key in ("steps", "mixture", "data")}
        elif path.name == "metrics.jsonl":
            found[name] = [exact(line) for line in path.read_text().splitlines()]
        elif path.suffix in (".json", ".yaml"):
            found[name] = path.read_text().replace(str(folder), "RUN")
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(data):
    """The content of a run without faults."""
    assert start(data, "uninterrupted") == 0, (data / "uninterrupted.log").read_text()
    return content(data / "uninterrupted")


def test_uninterrupted_run_is_worth_comparing(uninterrupted):
    """Logged and evaluated during training, falling losses, different predictions, several checkpoints."""
    rows = uninterrupted["metrics.jsonl"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, STEPS + 1, 2))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert [row["step"] for row in rows if "scores" in row and "final" not in row] == list(EVALUATED)
    files = [name for name in uninterrupted if name.startswith("predictions/") and name.endswith(".jsonl")]
    predictions = {json.loads(line)["prediction"] for name in files for line in uninterrupted[name].splitlines()}
    assert len(files) == 2
    assert len(predictions) > 1
    assert f"{uninterrupted['checkpoints/best-average']}/adapter/adapter_config.json" in {
        name.removeprefix("checkpoints/") for name in uninterrupted
    }
    assert len({name.split("/")[1] for name in uninterrupted if name.startswith("checkpoints/step-")}) >= 2


def instants(rng):
    """Fault plans at random steps and evaluations, in the order of the run, and during the start."""
    plans = [{"at_step": int(step)} for step in rng.integers(0, STEPS, 9)]
    plans += [{"at_prediction": int(step)} for step in rng.choice(EVALUATED[:-1], 2, replace=False)]
    plans.sort(key=lambda plan: next(iter(plan.values())))
    plans = [plan | {"after_s": float(rng.uniform(0, 0.06))} for plan in plans]
    for _ in range(3):
        plans.insert(int(rng.integers(len(plans))), {"at_start": True, "after_s": float(rng.uniform(0.02, 0.4))})
    return [*plans, {"at_prediction": STEPS - 1, "after_s": float(rng.uniform(0, 0.1))}]


def test_run_equals_after_25_kills(data, uninterrupted):
    """Ten of them inside checkpoint writes."""
    rng = np.random.default_rng(5)
    plans = instants(rng)
    for _ in range(10):  # in the first two thirds, so that there are checkpoints left to write
        plans.insert(int(rng.integers(9)), {"at_change": ("checkpoints/", int(rng.integers(1, 60)))})
    assert len(plans) == 25
    for plan in plans:
        assert start(data, "killed", **plan) == -signal.SIGKILL, plan
    assert start(data, "killed") == 0, (data / "killed.log").read_text()
    resumed = content(data / "killed")
    assert resumed["metrics.jsonl"] == uninterrupted["metrics.jsonl"]
    assert resumed.keys() == uninterrupted.keys()
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []


def test_run_equals_after_25_stop_signals(data, uninterrupted):
    """SIGTERM and SIGUSR1: every start exits with 75 and, once it trains, completes and saves the current step."""
    rng = np.random.default_rng(6)
    plans = [*instants(rng)[:-1], *instants(rng)[:-1]][:24]
    plans.sort(key=lambda plan: plan.get("at_step", plan.get("at_prediction", 0)))
    plans.append({"at_prediction": STEPS - 1, "after_s": 0.0})
    for i, plan in enumerate(plans):
        code = start(data, "stopped", signal=(signal.SIGTERM, signal.SIGUSR1)[i % 2], **plan)
        # before Python code runs, the signal ends the process as any other
        assert code == 75 or (code < 0 and "at_start" in plan), (plan, code)
    assert start(data, "stopped") == 0, (data / "stopped.log").read_text()
    resumed = content(data / "stopped")
    assert resumed["metrics.jsonl"] == uninterrupted["metrics.jsonl"]
    # which checkpoint is the latest but one depends on the signals; the others do not
    kept = ("step-00000060", "best")
    names = {n for n in uninterrupted if not n.startswith("checkpoints/") or n.split("/")[1].startswith(kept)}
    assert [name for name in sorted(names) if resumed.get(name) != uninterrupted[name]] == []
    log = (data / "stopped.log").read_text()
    assert "stopped by SIGTERM after step" in log
    assert "stopped by SIGUSR1" in log
    assert "Traceback" not in log, log[log.index("Traceback") - 1500 :][:6000]


def test_full_disk_in_checkpoint_is_reported_and_run_resumes(data, uninterrupted):
    for number in (3, 30, 41, 70):
        assert start(data, "full", full_at=("checkpoints/", number)) == 2
    log = (data / "full.log").read_text()
    assert log.count("No space left on device") == 4
    assert log.count("training.resume=auto") == 4
    assert "cannot write checkpoint" in log
    assert "Traceback" not in log
    assert start(data, "full") == 0
    assert content(data / "full") == uninterrupted
