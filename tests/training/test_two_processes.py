"""Two processes against one: training, prediction, resuming with another number of processes, signals, FSDP."""

import json
import signal

import pytest
from safetensors.torch import load_file

from multitask_vl.errors import EXIT_FAILURE
from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow

STEPS, FEWER_STEPS = 50, 12
STEPS_PER_EPOCH = 29
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""Environment that accelerate's launcher sets for configs/accelerate/fsdp2.yaml."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("two")
    tiny_run.write_dataset(folder)
    return folder


def start(data, name, *overrides, processes=1, steps=FEWER_STEPS, eval_steps=4, **plan):
    """Start a run without dropout, evaluated on the way; returns the exit codes of its processes."""
    settings = tiny_run.base_config(data)
    config = tiny_run.write_config(
        data,
        run_dir=str(data / name),
        backbone={**settings["backbone"], "dropout": 0.0},
        training={**settings["training"], "max_steps": steps},
        evaluation={
            **settings["evaluation"],
            "eval_splits": ["test"],
            "eval_every_epochs": eval_steps / STEPS_PER_EPOCH,
            "max_examples": 5,
        },
    )
    plan = fork_server.FaultPlan(log=str(data / f"{name}.log"), ids=str(data / f"{name}.ids"), **plan)
    arguments = ["--config", str(config), "--resume", "auto", *overrides]
    return fork_server.exit_codes(fork_server.start(arguments, plan, processes))


def log(data, name):
    return "".join(path.read_text() for path in sorted(data.glob(f"{name}.log*")))


def sampled(data, name):
    """Step -> (task, ids of the global batch), put together from the batches of all processes."""
    by_step = {}
    for path in sorted(data.glob(f"{name}.ids*")):
        for row in map(json.loads, path.read_text().splitlines()):
            by_step.setdefault(row["step"], {})[row["rank"]] = row
    found = {}
    for step, by_rank in by_step.items():
        parts = [by_rank[rank]["ids"] for rank in range(by_rank[0]["world"])]
        if len(parts) == 2 and parts[0] == parts[1]:  # one row for two processes: the second repeats it with weight 0
            parts[1] = []
        ids = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            ids[rank :: len(parts)] = part
        found[step] = (by_rank[0]["task"], ids)
    return found


def evaluations(folder):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "scores" in row]


def predictions(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("predictions/*/*.jsonl"))}


@pytest.fixture(scope="module")
def single(data):
    """One process, from start to end."""
    assert start(data, "single") == [0], log(data, "single")
    return data / "single"


def assert_equal_runs(expected, folder, steps=FEWER_STEPS):
    """Same examples, losses within 1e-5, weights within 1e-4, equal evaluations and predictions."""
    data = folder.parent
    assert sampled(data, folder.name) == sampled(data, expected.name)
    one, other = tiny_run.read_losses(expected), tiny_run.read_losses(folder)
    assert [row[:2] for row in other] == [row[:2] for row in one]
    assert len(one) == steps
    loss_difference = max(abs(a[2] - b[2]) for a, b in zip(one, other, strict=True))
    weights, others = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (expected, folder))
    assert weights.keys() == others.keys()
    weight_difference = max(float((weights[key] - others[key]).abs().max()) for key in weights)
    print(f"{folder.name}: losses differ by at most {loss_difference:.1e}, weights by {weight_difference:.1e}")
    assert loss_difference < 1e-5
    assert weight_difference < 1e-4
    assert evaluations(folder) == evaluations(expected)
    assert predictions(folder) == predictions(expected)


def test_two_processes_equal_one_over_fifty_steps(data):
    """Odd batches and splits, so processes differ in rows and lengths; the loss denominator is the global one."""
    assert start(data, "one", steps=STEPS, eval_steps=20) == [0], log(data, "one")
    assert start(data, "two", steps=STEPS, eval_steps=20, processes=2) == [0, 0], log(data, "two")
    assert "on 2 x cpu" in log(data, "two")
    assert {json.loads(line)["world"] for line in (data / "two.ids.1").read_text().splitlines()} == {2}
    assert_equal_runs(data / "one", data / "two", STEPS)


def test_one_process_resumes_as_two_with_micro_batches(data, single):
    assert start(data, "more", at_step=6, signal=signal.SIGTERM) == [75]
    assert "stopped by SIGTERM after step 7" in log(data, "more")
    assert start(data, "more", "training.micro_batch_size=2", processes=2) == [0, 0], log(data, "more")
    expected = "resuming with processes 1 before, 2 now; micro_batch_size None before, 2 now"
    assert expected in log(data, "more")
    # the loader had fetched step 6 before the signal; no other batch was fetched twice
    assert_equal_runs(single, data / "more")


def test_signal_to_one_of_two_stops_both_and_one_resumes(data, single):
    assert start(data, "fewer", processes=2, at_step=5, signal=signal.SIGUSR1) == [75, 75], log(data, "fewer")
    assert [path.name for path in sorted((data / "fewer/checkpoints").iterdir())][-1] == "step-00000006"
    assert "Traceback" not in log(data, "fewer")
    assert start(data, "fewer", "training.micro_batch_size=4") == [0], log(data, "fewer")
    assert_equal_runs(single, data / "fewer")


def test_signal_to_one_before_evaluation_stops_both(data):
    """Step 4 is fetched, then the weights are evaluated before it is trained: no loss is reduced in between."""
    assert start(data, "before", processes=2, at_step=4, signal=signal.SIGUSR1) == [75, 75], log(data, "before")
    assert "Traceback" not in log(data, "before")
    assert evaluations(data / "before") == []


def test_signal_to_both_during_prediction_repeats_evaluation(data, single):
    plan = {"at_prediction": 3, "signal": signal.SIGTERM, "all_ranks": True}
    assert start(data, "halted", processes=2, **plan) == [75, 75], log(data, "halted")
    assert "Traceback" not in log(data, "halted")
    assert evaluations(data / "halted") == []
    assert start(data, "halted", processes=2) == [0, 0], log(data, "halted")
    assert_equal_runs(single, data / "halted")


def test_signal_to_one_during_prediction_is_reported(data):
    codes = start(data, "lost", processes=2, at_prediction=3, signal=signal.SIGTERM)
    assert codes == [EXIT_FAILURE, 75], log(data, "lost")
    assert "Traceback" not in log(data, "lost")
    assert "error: another process of this run" in (data / "lost.log.0").read_text()
    assert start(data, "lost", processes=2) == [0, 0], log(data, "lost")


def test_fsdp_equals_one_process_and_resumes_without_fsdp(data, single):
    """Stopped before an evaluation, which is then the first thing that the resumed FSDP run does.

    Micro-batches of 2 of odd batches: one process needs an extra pass, and both must run as many.
    """
    overrides = ("training.micro_batch_size=2", "training.gradient_checkpointing=true")
    stop = {"signal": signal.SIGTERM}
    sharded = {"processes": 2, "environment": FSDP}
    assert start(data, "fsdp", *overrides, at_step=3, **sharded, **stop) == [75, 75], log(data, "fsdp")
    assert start(data, "fsdp", *overrides, at_step=5, **sharded, **stop) == [75, 75], log(data, "fsdp")
    assert start(data, "fsdp", at_step=7, **stop) == [75], log(data, "fsdp")
    assert start(data, "fsdp", *overrides, **sharded) == [0, 0], log(data, "fsdp")
    assert all(f"after step {step}, saved" in log(data, "fsdp") for step in (4, 6, 8))
    assert "parameters are sharded, half of them on each process" in log(data, "fsdp")
    assert_equal_runs(single, data / "fsdp")
