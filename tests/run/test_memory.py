"""Out of memory: told with what to turn, or halved and gone on with the same batch, on one process and on two."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.training.memory import MicroBatches, is_out_of_memory
from tests import tiny_run

HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
PLUGIN = """
import os

from multitask_vl.models.seq2seq import VLSeq2Seq

forward = VLSeq2Seq.forward

def limited(self, batch):
    if len(batch) > 2 and os.environ.get("RANK") == "1":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    return forward(self, batch)

VLSeq2Seq.forward = limited
"""
FEW = ("training.steps=6", "training.checkpoint_every=3", "evaluation.final=[]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    tiny_run.write_files(folder)
    return folder


def train(data, name, *words):
    """Train without dropout; the exit code and the run folder."""
    folder = data / name
    backbone = {**tiny_run.values(data)["backbone"], "dropout": 0.0}
    config = tiny_run.write_config(data, run_dir=str(folder), backbone=backbone)
    return tiny_run.launch("train_multitask", "--config", str(config), *FEW, *words), folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def worst_difference(one, other):
    found = [abs(a[2] - b[2]) for a, b in zip(tiny_run.losses(one), tiny_run.losses(other), strict=True)]
    ours, theirs = weights(one), weights(other)
    return max([*found, *(float((ours[name] - theirs[name]).abs().max()) for name in theirs)])


def limit(monkeypatch, most, error):
    """Let no more than ``most`` examples through at once; returns the sizes that came."""
    forward, sizes = VLSeq2Seq.forward, []

    def limited(self, batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise error
        return forward(self, batch)

    monkeypatch.setattr(VLSeq2Seq, "forward", limited)
    return sizes


@pytest.fixture(scope="module")
def whole(data):
    code, folder = train(data, "whole")
    assert code == 0
    return folder


def test_global_batches_are_made_up_of_passes():
    sizes = MicroBatches(configured=8, batches={"vqa": 64, "gqa": 5}, processes=2)
    assert sizes.described("vqa") == "vqa: batch 64 = 2 processes x 32, in 4 passes of up to 8 (accumulated)"
    assert sizes.described("gqa") == "gqa: batch 5 = 2 processes x 3, in one pass"
    assert [sizes.halve("vqa") for _ in range(4)] == [4, 2, 1, 1]
    assert sizes.halved == {"vqa": 1}
    again = MicroBatches(8, sizes.batches, 2, halved={"vqa": 4, "gqa": 9, "gone": 1})
    assert again.sizes == {"vqa": 4, "gqa": 3}


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError(HOST))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_out_of_memory_is_told_with_what_to_turn(data, monkeypatch, capsys):
    limit(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert train(data, "told")[0] == 2
    said = capsys.readouterr().err
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "out of memory at step 0 on cpu: a pass of" in error
    assert "of task" in error
    assert "4 grid cells" in error
    assert "peak" in error
    for knob in ("training.micro_batch_size=", "training.gradient_checkpointing=true", "training.mixed_precision=bf16"):
        assert knob in error
    assert "Traceback" not in said


def test_halving_changes_nothing_but_memory_and_survives_a_restart(data, whole, monkeypatch, capsys):
    sizes = limit(monkeypatch, 2, RuntimeError(HOST))
    code, folder = train(data, "halved", "training.on_oom=halve")
    assert code == 0
    assert max(sizes) > 2
    assert "out of memory; " in capsys.readouterr().err
    assert worst_difference(folder, whole) < 1e-5
    halved = [row for row in rows(folder) if "micro_batch_size" in row]
    assert halved
    last = {row["task"]: row["micro_batch_size"] for row in halved}
    assert set(last.values()) <= {1, 2}

    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    state = json.loads((checkpoints[0] / "state.json").read_text())
    early = {row["task"]: row["micro_batch_size"] for row in halved if row["step"] <= 3}
    assert state["halved"] == early
    shutil.rmtree(checkpoints[1])
    sizes.clear()
    code, _ = train(data, "halved", "training.on_oom=halve", "training.resume=auto")
    assert code == 0
    assert sum(size > 2 for size in sizes) == len([row for row in halved if row["step"] > 3])
    assert [row for row in rows(folder) if "micro_batch_size" in row] == halved
    assert worst_difference(folder, whole) < 1e-5


def test_one_example_that_does_not_fit_is_an_error_under_halving_too(data, monkeypatch, capsys):
    limit(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    assert train(data, "hopeless", "training.on_oom=halve")[0] == 2
    assert "a pass of 1 examples" in capsys.readouterr().err


def test_two_processes_halve_together_where_one_has_no_room(data, whole):
    """Rank 1 alone runs out; the pair goes on with smaller pieces and gets what one process gets."""
    (data / "small_rank_1.py").write_text(PLUGIN)
    folder = data / "pair"
    backbone = {**tiny_run.values(data)["backbone"], "dropout": 0.0}
    config = tiny_run.write_config(data, run_dir=str(folder), backbone=backbone, plugins=["small_rank_1"])
    words = (*FEW, "training.on_oom=halve")
    done = tiny_run.run(config, *words, processes=2, PYTHONPATH=f"{data}:{tiny_run.ROOT}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 x cpu" in done.stderr
    assert "out of memory; " in done.stderr
    assert any("micro_batch_size" in row for row in rows(folder))
    assert worst_difference(folder, whole) < 1e-5
