"""Checkpoints: atomic, strict, skipped when corrupt."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.training import checkpoint
from multitask_vl.training.optim import build_optimizer
from multitask_vl.training.tracking import Metrics


def trained(steps: int = 2, names=("a.weight", "a.bias", "idle")):
    """Parameters and an optimizer after some steps; ``idle`` never had a gradient."""
    torch.manual_seed(0)
    named = {name: torch.nn.Parameter(torch.randn(3, 2)) for name in names}
    optimizer = build_optimizer(named, TrainingConfig(lr=0.1))
    for _ in range(steps):
        for name, parameter in named.items():
            parameter.grad = None if name == "idle" else torch.randn(3, 2)
        optimizer.step()
    return named, optimizer


def save(folder, step, named, optimizer, keep=2, best=(), **record):
    """Save a checkpoint of these tensors and prune the others, as a run does."""

    def write_adapter(inner):
        weights = {name: one.detach() for name, one in named.items()}
        atomic_write(inner / "adapter_model.safetensors", safetensors.torch.save(weights))

    written = checkpoint.save(folder, step, write_adapter, named, optimizer, record)
    checkpoint.prune(folder, keep, best)
    return written


def test_load_restores_weights_and_moments(tmp_path):
    named, optimizer = trained()
    save(tmp_path, 2, named, optimizer, note="x")
    other, fresh = trained(steps=0)
    assert checkpoint.load(tmp_path / "step-00000002", other, fresh) == 2
    assert checkpoint.read_state(tmp_path / "step-00000002")["note"] == "x"
    gradient = torch.randn(3, 2)
    for parameters, optim in ((named, optimizer), (other, fresh)):
        for parameter in parameters.values():
            parameter.grad = gradient.clone()
        optim.step()
    for name in named:
        assert torch.equal(named[name], other[name]), name


def test_prune_keeps_the_latest(tmp_path):
    named, optimizer = trained()
    for step in (5, 10, 15):
        save(tmp_path, step, named, optimizer)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000010", "step-00000015"]
    assert not list(tmp_path.glob(".writing*"))


def test_latest_valid_skips_corrupt_checkpoint(tmp_path):
    named, optimizer = trained()
    for step in (5, 10):
        save(tmp_path, step, named, optimizer)
    weights = tmp_path / "step-00000010" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found, warnings = checkpoint.latest_valid(tmp_path)
    assert found.name == "step-00000005"
    assert len(warnings) == 1
    assert "step-00000010" in warnings[0]
    assert "checksum" in warnings[0]
    with pytest.raises(InputError, match="checksum"):
        checkpoint.load(tmp_path / "step-00000010", named, optimizer)
    (tmp_path / "step-00000005" / "state.json").write_text("{")
    assert checkpoint.latest_valid(tmp_path)[0] is None


def test_load_lists_tensors_that_do_not_fit(tmp_path):
    named, optimizer = trained()
    save(tmp_path, 1, named, optimizer)
    other, fresh = trained(names=("a.weight", "b.weight"))
    other["a.weight"] = torch.nn.Parameter(torch.zeros(4, 2))
    with pytest.raises(InputError) as caught:
        checkpoint.load(tmp_path / "step-00000001", other, fresh)
    text = str(caught.value)
    assert "b.weight is missing" in text
    assert "a.bias is not trained here" in text
    assert "a.weight has shape (3, 2), the model's is (4, 2)" in text


def test_full_disk_leaves_earlier_checkpoint(tmp_path, monkeypatch):
    named, optimizer = trained()
    save(tmp_path, 1, named, optimizer)

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", disk_full)
    with pytest.raises(InputError, match=r"No space left on device.*resume=auto"):
        save(tmp_path, 2, named, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.corruption(tmp_path / "step-00000001") is None


def test_full_disk_in_tensor_file_is_reported(tmp_path, monkeypatch):
    """safetensors raises its own error."""
    named, optimizer = trained()

    def disk_full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(InputError, match="No space left on device"):
        save(tmp_path, 2, named, optimizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": [], "step": 3}', '{"sha256": {}}', '{"step": 1}'])
def test_malformed_state_is_corruption(tmp_path, content):
    named, optimizer = trained()
    good = save(tmp_path, 1, named, optimizer)
    bad = save(tmp_path, 2, named, optimizer)
    (bad / "state.json").write_text(content)
    assert checkpoint.latest_valid(tmp_path)[0] == good


def test_remove_after_deletes_later_and_unfinished(tmp_path):
    """An interruption later must not find a checkpoint whose steps are not in the metrics."""
    named, optimizer = trained()
    for step in (3, 5, 9):
        save(tmp_path, step, named, optimizer, keep=3)
    (tmp_path / ".writing-00000011" / "adapter").mkdir(parents=True)
    (tmp_path / ".removing-step-00000001").mkdir()
    assert checkpoint.remove_after(tmp_path, 3) == ["step-00000005", "step-00000009"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_prune_keeps_the_best(tmp_path):
    named, optimizer = trained()
    for step in (1, 2, 3, 4):
        save(tmp_path, step, named, optimizer, keep=1, best={2})
    assert [checkpoint.step_of(path) for path in checkpoint.steps(tmp_path)] == [2, 4]


def test_load_reads_older_layout(tmp_path):
    """With the weights next to the moments."""
    named, optimizer = trained()
    old = save(tmp_path, 7, named, optimizer)
    (old / "adapter" / "adapter_model.safetensors").rename(old / "weights.safetensors")
    state = checkpoint.read_state(old)
    state["sha256"]["weights.safetensors"] = state["sha256"].pop("adapter/adapter_model.safetensors")
    (old / "state.json").write_text(json.dumps(state))
    other, fresh = trained(steps=0)
    assert checkpoint.load(old, other, fresh) == 7
    assert torch.equal(other["a.weight"], named["a.weight"])


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": float(step)} for step in (10, 20, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    metrics = Metrics(path, after_step=20)
    metrics.add(step=21, loss=1.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 21]
