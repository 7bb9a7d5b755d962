"""Frozen weights in bfloat16: which are cast, equal results under autocast, exact resuming."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.registry import METHODS
from tests import tiny_run
from tests.tiny_models import FAMILIES, loss_of, perturb, tiny_batch, tiny_config, tiny_model


def cast(model):
    model.cast_frozen(torch.bfloat16)
    return model


def autocast_loss(model):
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, tiny_batch())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS.names())
def test_cast_method_trains_as_exactly_as_under_autocast(family, method):
    settings = {"pooling": "none"} if method == "modex" else None
    models = [perturb(tiny_model(method, settings, family), 0.05) for _ in range(3)]
    cast(models[2])
    losses = [loss_of(models[0], tiny_batch()), autocast_loss(models[1]), autocast_loss(models[2])]
    gradients = []
    for model, loss in zip(models, losses, strict=True):
        loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.trainable_parameters().values() if p.grad is not None])
        )
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.trainable_parameters().values())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    exact = gradients[0]
    errors = [float((one - exact).norm() / exact.norm()) for one in gradients[1:]]
    # T5's ReLU flips where a value is near 0, also under autocast alone
    assert errors[1] < max(3 * errors[0], {"bart": 0.02, "t5": 0.2}[family]), errors
    assert losses[2].item() == pytest.approx(losses[0].item(), rel=0.02)


def test_cast_covers_frozen_linears_and_embeddings_only():
    for family in FAMILIES:
        model = cast(tiny_model("lora", family=family))
        types = {name: p.dtype for name, p in model.named_parameters()}
        assert all(types[name] == torch.float32 for name in model.trainable_parameters())
        frozen = {name: dtype for name, dtype in types.items() if name not in model.trainable_parameters()}
        low = {name for name, dtype in frozen.items() if dtype == torch.bfloat16}
        assert low
        assert all("norm" in name or "relative_attention_bias" in name for name in frozen.keys() - low)
        assert not any("norm" in name or "relative_attention_bias" in name for name in low)
        assert model.lm.lm_head.weight is model.lm.get_input_embeddings().weight


class Casts(TorchDispatchMode):
    """Counts casts of matrices with at least ``size`` entries."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 2 and args[0].numel() >= self.size:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_autocast_casts_no_cast_matrix():
    counts = []
    for model in (tiny_model("adapter", rank=2), cast(tiny_model("adapter", rank=2))):
        batch, smallest = tiny_batch(), 16 * 16
        with model.context.task_scope("vqa"), Casts(smallest) as casts, torch.autocast("cpu", torch.bfloat16):
            model.lm.model.encoder.layers[0](torch.randn(len(batch), 5, 16), None)
        counts.append(casts.count)
    assert counts == [6, 0]


def test_cast_leaves_full_finetuning_in_float32():
    model = cast(tiny_model("full"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_adapter_loads_into_cast_backbone(tmp_path):
    trained = cast(perturb(tiny_model("adapter")))
    save_adapter(trained, tmp_path, tiny_config("adapter"))
    fresh = cast(tiny_model("adapter"))
    load_adapter(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(autocast_loss(fresh), autocast_loss(trained))
    with pytest.raises(InputError, match="too low a precision to merge into"):
        cast(tiny_model("lora")).merge()


@pytest.mark.slow
def test_resumed_bf16_run_is_bitwise_equal(tmp_path):
    tiny_run.write_dataset(tmp_path)
    full, resumed = tmp_path / "full", tmp_path / "resumed"
    overrides = ("training.mixed_precision=bf16", "training.micro_batch_size=4", "training.group_by_length=true")

    def train(folder, *more):
        config = tiny_run.write_config(tmp_path, run_dir=str(folder), training={"max_checkpoints": 9})
        assert tiny_run.launch("train", "--config", str(config), *overrides, *more) == 0
        return load_file(folder / "adapter" / "adapter_model.safetensors")

    expected = train(full)
    shutil.copytree(full, resumed)
    for step in (8, 12):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    actual = train(resumed, "training.resume=auto")
    assert tiny_run.read_losses(resumed) == tiny_run.read_losses(full)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    state = json.loads((full / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert state["config"]["training"]["mixed_precision"] == "bf16"
