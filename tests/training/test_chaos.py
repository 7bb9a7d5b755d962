"""A run that dies 25 times, at any instant, ends as one that was not disturbed: bit for bit, no gaps, no repeats."""

import json
import signal

import numpy as np
import pytest

from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow

STEPS, EVALUATED = 60, (10, 20, 30, 40, 50, 60)
EXACT = ("step", "task", "loss", "lr", "grad_norm", "split", "scores", "final", "skipped", "ids")
"""Keys of metrics.jsonl that are no clock's."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("chaos")
    tiny_run.write_files(folder)
    return folder


def start(data, name, **plan):
    """Start the run ``name`` over these data, the first time or again; returns the exit code."""
    settings = tiny_run.values(data)
    config = tiny_run.write_config(
        data,
        run_dir=str(data / name),
        training={
            **settings["training"], "steps": STEPS, "log_every": 2, "lr": 0.03,
            "keep_best": {"metrics": ["average", "nlvr2"], "split": "report"},
        },
        evaluation={**settings["evaluation"], "during": ["report"], "every_epochs": 0.35, "limit": 3},
    )  # fmt: skip
    words = ["--config", str(config), "--resume", "auto"]
    return fork_server.ended(fork_server.start(words, fork_server.Plan(said=str(data / f"{name}.said"), **plan)))[0]


def exact(line):
    row = json.loads(line)
    return {key: row[key] for key in EXACT if key in row}


def content(folder):
    """What a run leaves: path -> content, apart from where it lies and what a clock said."""
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
def undisturbed(data):
    """The run that nothing happens to."""
    assert start(data, "undisturbed") == 0, (data / "undisturbed.said").read_text()
    return content(data / "undisturbed")


def test_the_undisturbed_run_is_worth_comparing(undisturbed):
    """Logged and evaluated on the way, losses that fall, answers that differ, checkpoints that were kept."""
    rows = undisturbed["metrics.jsonl"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, STEPS + 1, 2))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert [row["step"] for row in rows if "scores" in row and "final" not in row] == list(EVALUATED)
    files = [name for name in undisturbed if name.startswith("predictions/") and name.endswith(".jsonl")]
    said = {json.loads(line)["prediction"] for name in files for line in undisturbed[name].splitlines()}
    assert len(files) == 4
    assert len(said) > 1
    assert f"{undisturbed['checkpoints/best-average']}/adapter/adapter_config.json" in {
        name.removeprefix("checkpoints/") for name in undisturbed
    }
    assert len({name.split("/")[1] for name in undisturbed if name.startswith("checkpoints/step-")}) >= 2


def instants(rng):
    """When to strike: at random steps and in evaluations in the order of the run, and while everything starts."""
    plans = [{"at_step": int(step)} for step in rng.integers(0, STEPS, 9)]
    plans += [{"at_prediction": int(step)} for step in rng.choice(EVALUATED[:-1], 2, replace=False)]
    plans.sort(key=lambda plan: next(iter(plan.values())))
    plans = [plan | {"after_s": float(rng.uniform(0, 0.06))} for plan in plans]
    for _ in range(3):
        plans.insert(int(rng.integers(len(plans))), {"at_start": True, "after_s": float(rng.uniform(0.02, 0.4))})
    return [*plans, {"at_prediction": STEPS - 1, "after_s": float(rng.uniform(0, 0.1))}]


def test_killed_at_25_instants_ten_of_them_inside_checkpoint_writes(data, undisturbed):
    rng = np.random.default_rng(5)
    plans = instants(rng)
    for _ in range(10):  # in the first two thirds, so that there are checkpoints left to write
        plans.insert(int(rng.integers(9)), {"at_change": ("checkpoints/", int(rng.integers(1, 60)))})
    assert len(plans) == 25
    for plan in plans:
        assert start(data, "killed", **plan) == -signal.SIGKILL, plan
    assert start(data, "killed") == 0, (data / "killed.said").read_text()
    ended = content(data / "killed")
    assert ended["metrics.jsonl"] == undisturbed["metrics.jsonl"]
    assert ended.keys() == undisturbed.keys()
    assert [name for name in ended if ended[name] != undisturbed[name]] == []


def test_asked_to_stop_25_times(data, undisturbed):
    """SIGTERM and SIGUSR1: every start ends with code 75 and, once it trains, at least the step begun is kept."""
    rng = np.random.default_rng(6)
    plans = [*instants(rng)[:-1], *instants(rng)[:-1]][:24]
    plans.sort(key=lambda plan: plan.get("at_step", plan.get("at_prediction", 0)))
    plans.append({"at_prediction": STEPS - 1, "after_s": 0.0})
    for i, plan in enumerate(plans):
        code = start(data, "asked", signal=(signal.SIGTERM, signal.SIGUSR1)[i % 2], **plan)
        # the first moments of a start are the interpreter's own: the signal ends it as it ends any program
        assert code == 75 or (code < 0 and "at_start" in plan), (plan, code)
    assert start(data, "asked") == 0, (data / "asked.said").read_text()
    ended = content(data / "asked")
    assert ended["metrics.jsonl"] == undisturbed["metrics.jsonl"]
    # which checkpoints are the newest but one depends on when it was asked; the others do not
    kept = ("step-00000060", "best")
    names = {name for name in undisturbed if not name.startswith("checkpoints/") or name.split("/")[1].startswith(kept)}
    assert [name for name in sorted(names) if ended.get(name) != undisturbed[name]] == []
    said = (data / "asked.said").read_text()
    assert "stopped by SIGTERM after step" in said
    assert "stopped by SIGUSR1" in said
    assert "Traceback" not in said


def test_a_full_disk_in_a_checkpoint_is_told_and_the_run_goes_on_from_the_last_good_one(data, undisturbed):
    for place in (3, 30, 41, 70):
        assert start(data, "full", full_at=("checkpoints/", place)) == 2
    said = (data / "full.said").read_text()
    assert said.count("No space left on device") == 4
    assert said.count("training.resume=auto") == 4
    assert "cannot write checkpoint" in said
    assert "Traceback" not in said
    assert start(data, "full") == 0
    assert content(data / "full") == undisturbed
