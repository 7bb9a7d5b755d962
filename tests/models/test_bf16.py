"""Frozen weights held in bfloat16: what is held, that autocast computes the same with them, that resuming is exact."""

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
from tests.tiny_models import FAMILIES, loss_of, shaken, tiny_batch, tiny_config, tiny_model


def held(model):
    model.hold_frozen(torch.bfloat16)
    return model


def autocast_loss(model):
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, tiny_batch())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_trains_with_it_as_near_to_float32_as_with_autocast_alone(family, method):
    settings = {"pool": "none"} if method == "modex" else None
    models = [shaken(tiny_model(method, settings, family), 0.05) for _ in range(3)]
    held(models[2])
    losses = [loss_of(models[0], tiny_batch()), autocast_loss(models[1]), autocast_loss(models[2])]
    gradients = []
    for model, loss in zip(models, losses, strict=True):
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.trainable().values() if p.grad is not None]))
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.trainable().values())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    exact = gradients[0]
    errors = [float((one - exact).norm() / exact.norm()) for one in gradients[1:]]
    # a T5's ReLU turns over where a number is near 0, under autocast alone just so
    assert errors[1] < max(3 * errors[0], {"bart": 0.02, "t5": 0.2}[family]), errors
    assert losses[2].item() == pytest.approx(losses[0].item(), rel=0.02)


def test_maps_and_embeddings_are_held_and_nothing_else():
    for family in FAMILIES:
        model = held(tiny_model("lora", family=family))
        types = {name: p.dtype for name, p in model.named_parameters()}
        assert all(types[name] == torch.float32 for name in model.trainable())
        frozen = {name: dtype for name, dtype in types.items() if name not in model.trainable()}
        coarse = {name for name, dtype in frozen.items() if dtype == torch.bfloat16}
        assert coarse
        assert all("norm" in name or "relative_attention_bias" in name for name in frozen.keys() - coarse)
        assert not any("norm" in name or "relative_attention_bias" in name for name in coarse)
        assert model.lm.lm_head.weight is model.lm.get_input_embeddings().weight


class Casts(TorchDispatchMode):
    """Counts weights of at least ``size`` numbers that are cast."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 2 and args[0].numel() >= self.size:
            self.found += 1
        return func(*args, **(kwargs or {}))


def test_autocast_casts_no_frozen_matrix():
    found = []
    for model in (tiny_model("adapter", rank=2), held(tiny_model("adapter", rank=2))):
        batch, smallest = tiny_batch(), 16 * 16
        with model.context.of("vqa"), Casts(smallest) as casts, torch.autocast("cpu", torch.bfloat16):
            model.lm.model.encoder.layers[0](torch.randn(len(batch), 5, 16), None)
        found.append(casts.found)
    assert found[0] == 6
    assert found[1] == 0


def test_full_has_nothing_to_hold():
    model = held(tiny_model("full"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_adapter_fits_a_backbone_that_is_held(tmp_path):
    trained = held(shaken(tiny_model("adapter")))
    save_adapter(trained, tmp_path, tiny_config("adapter"))
    fresh = held(tiny_model("adapter"))
    load_adapter(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(autocast_loss(fresh), autocast_loss(trained))
    with pytest.raises(InputError, match="too coarse to fold anything into"):
        held(tiny_model("lora")).merge()


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(tmp_path):
    tiny_run.write_files(tmp_path)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ("training.mixed_precision=bf16", "training.micro_batch_size=4", "training.group_by_length=true")

    def train(folder, *more):
        config = tiny_run.write_config(tmp_path, run_dir=str(folder), training={"keep_checkpoints": 9})
        assert tiny_run.launch("train_multitask", "--config", str(config), *words, *more) == 0
        return load_file(folder / "adapter" / "adapter_model.safetensors")

    expected = train(whole)
    shutil.copytree(whole, resumed)
    for step in (8, 12):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    got = train(resumed, "training.resume=auto")
    assert tiny_run.losses(resumed) == tiny_run.losses(whole)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    state = json.loads((whole / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert state["config"]["training"]["mixed_precision"] == "bf16"
