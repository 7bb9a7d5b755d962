"""Out of memory: reported with the settings to change, or halved micro-batches with the same result."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.training.memory import MicroBatches, is_out_of_memory
from tests import fork_server, tiny_run

HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
OVERRIDES = ("training.max_steps=6", "training.checkpoint_steps=3", "evaluation.final_splits=[]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotation files, features and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("memory")
    tiny_run.write_dataset(folder)
    return folder


def train(data, name, *overrides):
    """Train without dropout; returns the exit code and the run folder."""
    folder = data / name
    backbone = {**tiny_run.base_config(data)["backbone"], "dropout": 0.0}
    config = tiny_run.write_config(data, run_dir=str(folder), backbone=backbone)
    return tiny_run.launch("train", "--config", str(config), *OVERRIDES, *overrides), folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def worst_difference(one, other):
    found = [abs(a[2] - b[2]) for a, b in zip(tiny_run.read_losses(one), tiny_run.read_losses(other), strict=True)]
    ours, theirs = weights(one), weights(other)
    return max([*found, *(float((ours[name] - theirs[name]).abs().max()) for name in theirs)])


def limit_rows(monkeypatch, max_rows, error):
    """Raise ``error`` in passes of more than ``max_rows`` rows; returns the list of sizes of all passes."""
    forward, sizes = VLSeq2Seq.forward, []

    def limited(self, batch):
        sizes.append(len(batch))
        if len(batch) > max_rows:
            raise error
        return forward(self, batch)

    monkeypatch.setattr(VLSeq2Seq, "forward", limited)
    return sizes


@pytest.fixture(scope="module")
def unlimited(data):
    """A run with enough memory."""
    code, folder = train(data, "unlimited")
    assert code == 0
    return folder


def test_micro_batches_split_the_global_batch():
    sizes = MicroBatches(configured=8, batch_sizes={"vqa": 64, "gqa": 5}, num_processes=2)
    assert sizes.summary("vqa") == "vqa: batch 64 = 2 processes x 32, in 4 passes of up to 8 (accumulated)"
    assert sizes.summary("gqa") == "gqa: batch 5 = 2 processes x 3, in one pass"
    assert [sizes.halve("vqa") for _ in range(4)] == [4, 2, 1, 1]
    assert sizes.halved == {"vqa": 1}
    restored = MicroBatches(8, sizes.batch_sizes, 2, halved={"vqa": 4, "gqa": 9, "gone": 1})
    assert restored.sizes == {"vqa": 4, "gqa": 3}


def test_is_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError(HOST))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_out_of_memory_error_names_settings(data, monkeypatch, capsys):
    limit_rows(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert train(data, "error")[0] == 2
    err = capsys.readouterr().err
    error = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "out of memory at step 0 on cpu: a pass of" in error
    assert "of task" in error
    assert "4 visual tokens" in error
    assert "peak" in error
    for key in ("training.micro_batch_size=", "training.gradient_checkpointing=true", "training.mixed_precision=bf16"):
        assert key in error
    assert "Traceback" not in err


def test_halving_keeps_the_result_and_survives_resuming(data, unlimited, monkeypatch, capsys):
    sizes = limit_rows(monkeypatch, 2, RuntimeError(HOST))
    code, folder = train(data, "halved", "training.on_oom=halve")
    assert code == 0
    assert max(sizes) > 2
    assert "out of memory; " in capsys.readouterr().err
    assert worst_difference(folder, unlimited) < 1e-5
    halved = [row for row in rows(folder) if "micro_batch_size" in row]
    assert halved
    last = {row["task"]: row["micro_batch_size"] for row in halved}
    assert set(last.values()) <= {1, 2}

    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    state = json.loads((checkpoints[0] / "state.json").read_text())
    assert state["halved"] == {row["task"]: row["micro_batch_size"] for row in halved if row["step"] <= 3}
    shutil.rmtree(checkpoints[1])
    sizes.clear()
    code, _ = train(data, "halved", "training.on_oom=halve", "training.resume=auto")
    assert code == 0
    assert sum(size > 2 for size in sizes) == len([row for row in halved if row["step"] > 3])
    assert [row for row in rows(folder) if "micro_batch_size" in row] == halved
    assert worst_difference(folder, unlimited) < 1e-5


def test_one_row_out_of_memory_is_an_error_under_halving(data, monkeypatch, capsys):
    overrides = ("training.on_oom=halve", "training.micro_batch_size=2")
    limit_rows(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    assert train(data, "too_small", *overrides)[0] == 2
    assert "a pass of 1 examples" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_halve_together(data, unlimited):
    """Only rank 1 runs out of memory; both continue with smaller micro-batches and equal one process."""
    folder = data / "pair"
    backbone = {**tiny_run.base_config(data)["backbone"], "dropout": 0.0}
    config = tiny_run.write_config(data, run_dir=str(folder), backbone=backbone)
    arguments = ["--config", str(config), *OVERRIDES, "training.on_oom=halve"]
    plan = fork_server.FaultPlan(str(data / "pair.log"), max_rows=(1, 2))
    assert fork_server.exit_codes(fork_server.start(arguments, plan, processes=2)) == [0, 0]
    assert "on 2 x cpu" in (data / "pair.log.0").read_text()
    assert "out of memory; " in (data / "pair.log.0").read_text()
    assert (data / "pair.log.1").read_text() == "", "only the main process logs"
    assert any("micro_batch_size" in row for row in rows(folder))
    assert worst_difference(folder, unlimited) < 1e-5
