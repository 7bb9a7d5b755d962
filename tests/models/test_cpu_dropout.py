"""CPU dropout: distribution of the masks, dependence on the seed, coverage of every dropout in a model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.models.kernels import cpu_dropout as module
from multitask_vl.models.kernels.cpu_dropout import CpuDropout, dropout_mask, quantized_rate
from tests.tiny_models import FAMILIES, loss_of, tiny_batch, tiny_model

N = 200_000


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_mask_meets_rate(rate):
    torch.manual_seed(0)
    dropped = N - int(dropout_mask(torch.Size([N]), rate).sum())
    assert abs(quantized_rate(rate) - rate) < 1e-5
    assert abs(dropped - rate * N) < 5 * (rate * (1 - rate) * N) ** 0.5


def test_mask_units_and_masks_are_independent():
    torch.manual_seed(1)
    mask, other = (dropout_mask(torch.Size([N]), 0.3).double() - 0.7 for _ in range(2))
    bound, variance = 5 / N**0.5, 0.3 * 0.7
    for lag in (1, 2, 3, 4, 8, 64, 768):
        assert abs((mask[lag:] * mask[:-lag]).mean() / variance) < bound, lag
    assert abs((mask * other).mean() / variance) < bound
    # the four units that share one 64-bit draw
    for a in range(4):
        assert abs(mask[a::4].mean()) < bound * 2 * variance**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_mean_and_gradient_is_mask(dtype):
    torch.manual_seed(3)
    states = torch.ones(500, 801, dtype=dtype).requires_grad_()
    with CpuDropout():
        out = F.dropout(states, 0.1)
    assert out.dtype == dtype
    assert float(out.detach().double().mean()) == pytest.approx(1, abs=0.005)
    assert set(out.detach().unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - quantized_rate(0.1)), dtype=dtype))}
    out.sum().backward()
    assert torch.equal(states.grad, out.detach())


def test_mask_depends_on_generator_state_only():
    torch.manual_seed(4)
    first, second = dropout_mask(torch.Size([1000]), 0.5), dropout_mask(torch.Size([3, 7]), 0.5)
    torch.manual_seed(4)
    assert torch.equal(dropout_mask(torch.Size([1000]), 0.5), first)
    assert torch.equal(dropout_mask(torch.Size([3, 7]), 0.5), second)
    assert not torch.equal(first[:21], second.flatten())


def test_dropout_leaves_other_cases_to_torch():
    states = torch.randn(5, 6)
    with CpuDropout():
        assert F.dropout(states, 0.0) is not None
        assert torch.equal(F.dropout(states, 0.5, training=False), states)
        assert torch.equal(F.dropout(states, 1.0), torch.zeros(5, 6))
        assert torch.equal(F.dropout(states, 0.0), states)
        in_place = torch.ones(100)
        assert F.dropout(in_place, 0.5, inplace=True) is in_place


@pytest.mark.parametrize("form", ["none", "bool", "float", "causal"])
def test_attention_equals_torch_without_dropped_units(form, monkeypatch):
    """With masks of ones, attention and gradients are equal."""
    monkeypatch.setattr(module, "dropout_mask", lambda shape, rate: torch.ones(shape, dtype=torch.int8))
    monkeypatch.setattr(module, "quantized_rate", lambda rate: 0.0)
    torch.manual_seed(5)
    tensors = [torch.randn(2, 3, length, 8).requires_grad_() for length in (6, 6, 6)]
    visible = torch.rand(2, 1, 6, 6) > 0.3
    visible[..., 0] = True
    mask = {"bool": visible, "float": torch.randn(2, 1, 6, 6)}.get(form)
    settings = {"attn_mask": mask, "is_causal": form == "causal", "scale": 0.3}
    expected = F.scaled_dot_product_attention(*tensors, **settings)
    with CpuDropout():
        got = F.scaled_dot_product_attention(*tensors, dropout_p=0.2, **settings)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), tensors) for out in (got, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_model_draws_every_mask_here(family, monkeypatch):
    rates = []
    monkeypatch.setattr(module, "dropout_mask", lambda shape, rate: rates.append(rate) or dropout_mask(shape, rate))
    for name in ("bernoulli_", "bernoulli"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("torch drew a mask"))
    model = tiny_model("lora", family=family).train()
    torch.manual_seed(0)
    loss_of(model, tiny_batch()).backward()
    layers = 2 * (4 + 6)  # attention, after it, inside and after the feed-forward block
    assert len(rates) > layers
    assert set(rates) == {0.1}
    rates.clear()
    loss_of(model.eval(), tiny_batch())
    assert rates == []


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layer_gets_same_masks(family):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("adapter", family=family).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(0)
        loss_of(model, tiny_batch()).backward()
        gradients.append([p.grad for p in model.trainable_parameters().values() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_torch_dropout_module_is_covered():
    torch.manual_seed(0)
    drop = nn.Dropout(0.5).train()
    with CpuDropout():
        assert drop(torch.ones(10)).grad_fn is None
        torch.manual_seed(1)
        out = drop(torch.ones(64))
    torch.manual_seed(1)
    assert torch.equal(out != 0, dropout_mask(torch.Size([64]), 0.5).bool())
