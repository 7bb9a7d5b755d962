"""Do two processes train and predict as one does, from the start, half way, and when only one is asked to stop?"""

import json
import signal

import pytest
from safetensors.torch import load_file

from multitask_vl.errors import EXIT_PEER_ENDED
from tests import fork_server, tiny_run

pytestmark = pytest.mark.slow

STEPS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("two")
    tiny_run.write_files(folder)
    return folder


IN_SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What accelerate's launcher tells its processes for configs/accelerate/fsdp2.yaml."""


def start(data, name, *words, processes=1, **plan):
    """Start a run of 50 steps without dropout, evaluated on the way; returns the exit codes of its processes."""
    settings = tiny_run.values(data)
    config = tiny_run.write_config(
        data,
        run_dir=str(data / name),
        backbone={**settings["backbone"], "dropout": 0.0},
        training={**settings["training"], "steps": STEPS},
        evaluation={**settings["evaluation"], "during": ["report"], "every_epochs": 0.7, "limit": 5},
    )
    plan = fork_server.Plan(said=str(data / f"{name}.said"), ids=str(data / f"{name}.ids"), **plan)
    return fork_server.ended(fork_server.start(["--config", str(config), "--resume", "auto", *words], plan, processes))


def said(data, name):
    return "".join(path.read_text() for path in sorted(data.glob(f"{name}.said*")))


def sampled(data, name):
    """Step -> (task, ids of the global batch), put together from what each process was given."""
    shares = {}
    for path in sorted(data.glob(f"{name}.ids*")):
        for row in map(json.loads, path.read_text().splitlines()):
            shares.setdefault(row["step"], {})[row["rank"]] = row
    found = {}
    for step, by_rank in shares.items():
        parts = [by_rank[rank]["ids"] for rank in range(by_rank[0]["world"])]
        if len(parts) == 2 and parts[0] == parts[1]:  # one row for two processes: the second repeats it with no weight
            parts[1] = []
        dealt = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            dealt[rank :: len(parts)] = part
        found[step] = (by_rank[0]["task"], dealt)
    return found


def evaluated(folder):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "scores" in row]


def predictions(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("predictions/*/*.jsonl"))}


@pytest.fixture(scope="module")
def alone(data):
    """One process, from start to end."""
    assert start(data, "alone") == [0], said(data, "alone")
    return data / "alone"


def is_as(alone, folder):
    """Same examples, losses within 1e-5, weights likewise, evaluations and predictions equal."""
    data, name = folder.parent, folder.name
    assert sampled(data, name) == sampled(data, "alone")
    one, other = tiny_run.losses(alone), tiny_run.losses(folder)
    assert [row[:2] for row in other] == [row[:2] for row in one]
    assert len(one) == STEPS
    worst = max(abs(a[2] - b[2]) for a, b in zip(one, other, strict=True))
    own, others = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (alone, folder))
    assert own.keys() == others.keys()
    apart = max(float((own[key] - others[key]).abs().max()) for key in own)
    print(f"{name}: losses differ by at most {worst:.1e}, weights by {apart:.1e}")
    assert worst < 1e-5
    assert apart < 1e-4
    assert evaluated(folder) == evaluated(alone)
    assert predictions(folder) == predictions(alone)


def test_two_processes_equal_one_over_fifty_steps(data, alone):
    """Odd batches and splits, so shards differ in rows and lengths; losses over the all-reduced token count."""
    assert start(data, "two", processes=2) == [0, 0], said(data, "two")
    assert "on 2 x cpu" in said(data, "two")
    worlds = {json.loads(line)["world"] for line in (data / "two.ids.1").read_text().splitlines()}
    assert worlds == {2}
    is_as(alone, data / "two")


def test_one_process_asked_to_stop_half_way_goes_on_as_two_with_other_micro_batches(data, alone):
    assert start(data, "more", at_step=24, signal=signal.SIGTERM) == [75]
    assert "stopped by SIGTERM after step 25" in said(data, "more")
    assert start(data, "more", "training.micro_batch_size=2", processes=2) == [0, 0], said(data, "more")
    told = said(data, "more")
    assert "going on with processes 1 before, 2 now; micro_batch_size None before, 2 now" in told
    # the loader had fetched step 24 before the signal; nothing else was seen twice
    is_as(alone, data / "more")


def test_a_signal_to_one_of_two_ends_both_after_the_same_step_and_one_goes_on(data, alone):
    assert start(data, "fewer", processes=2, at_step=22, signal=signal.SIGUSR1) == [75, 75], said(data, "fewer")
    assert [path.name for path in sorted((data / "fewer/checkpoints").iterdir())][-1] == "step-00000023"
    assert "Traceback" not in said(data, "fewer")
    assert start(data, "fewer", "training.micro_batch_size=4") == [0], said(data, "fewer")
    is_as(alone, data / "fewer")


def test_a_signal_to_one_just_before_an_evaluation_ends_both(data, alone):
    """Step 20 is fetched, then its weights are scored before it is taken: no step's sum comes in between."""
    assert start(data, "before", processes=2, at_step=20, signal=signal.SIGUSR1) == [75, 75], said(data, "before")
    assert "Traceback" not in said(data, "before")
    assert evaluated(data / "before") == []


def test_a_signal_while_two_processes_predict_ends_both_and_the_evaluation_is_repeated(data, alone):
    plan = {"at_prediction": 19, "signal": signal.SIGTERM, "to_all": True}
    assert start(data, "halted", processes=2, **plan) == [75, 75], said(data, "halted")
    assert "Traceback" not in said(data, "halted")
    assert evaluated(data / "halted") == []
    assert start(data, "halted", processes=2) == [0, 0], said(data, "halted")
    is_as(alone, data / "halted")


def test_a_signal_to_one_while_two_predict_is_told_by_the_other(data):
    codes = start(data, "lost", processes=2, at_prediction=19, signal=signal.SIGTERM)
    assert codes == [EXIT_PEER_ENDED, 75], said(data, "lost")
    assert "Traceback" not in said(data, "lost")
    assert "error: another process of this run has ended" in (data / "lost.said.0").read_text()
    assert start(data, "lost", processes=2) == [0, 0], said(data, "lost")


def test_two_processes_that_share_the_frozen_weights_equal_one(data, alone):
    """Pieces of 2 of odd batches: one process needs a pass more than the other, and both must take as many."""
    words = ("training.micro_batch_size=2", "training.gradient_checkpointing=true")
    assert start(data, "shards", *words, processes=2, environment=IN_SHARDS) == [0, 0], said(data, "shards")
    assert "parameters in shards, half of them on each process" in said(data, "shards")
    is_as(alone, data / "shards")


def test_a_run_in_shards_goes_on_as_one_without_and_the_other_way(data, alone):
    """Stopped before an evaluation, which is then the first thing that a run does with its shards."""
    plan = {"processes": 2, "at_step": 19, "signal": signal.SIGTERM, "environment": IN_SHARDS}
    assert start(data, "mixed", **plan) == [75, 75], said(data, "mixed")
    assert start(data, "mixed", **plan | {"at_step": 30}) == [75, 75], said(data, "mixed")
    assert "after step 20, saved" in said(data, "mixed")
    assert "after step 31, saved" in said(data, "mixed")
    assert start(data, "mixed") == [0], said(data, "mixed")
    is_as(alone, data / "mixed")
