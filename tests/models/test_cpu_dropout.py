"""Cheap masks on the CPU: their distribution, that a seed decides them, that every dropout of a model takes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.models.kernels import cpu_dropout as module
from multitask_vl.models.kernels.cpu_dropout import CpuDropout, actual, kept
from tests.tiny_models import FAMILIES, loss_of, tiny_batch, tiny_model

N = 400_000


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_the_rate_is_met(rate):
    torch.manual_seed(0)
    dropped = N - int(kept(torch.Size([N]), rate).sum())
    assert abs(actual(rate) - rate) < 1e-5
    assert abs(dropped - rate * N) < 5 * (rate * (1 - rate) * N) ** 0.5


def test_units_are_dropped_independently_of_each_other_and_of_the_mask_before():
    torch.manual_seed(1)
    mask, other = (kept(torch.Size([N]), 0.3).double() - 0.7 for _ in range(2))
    bound, variance = 5 / N**0.5, 0.3 * 0.7
    for lag in (1, 2, 3, 4, 8, 64, 768):
        assert abs((mask[lag:] * mask[:-lag]).mean() / variance) < bound, lag
    assert abs((mask * other).mean() / variance) < bound
    # the four masks that one word of the generator gives
    for a in range(4):
        assert abs(mask[a::4].mean()) < bound * 2 * variance**0.5


def test_both_halves_of_the_range_occur():
    """A trap: `random_()` without bounds never sets the top bit, so a threshold in its middle would drop everything."""
    torch.manual_seed(2)
    for rate in (0.25, 0.5, 0.75):
        assert abs(float(kept(torch.Size([N]), rate).double().mean()) - (1 - rate)) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_the_mean_and_its_gradient_is_its_mask(dtype):
    torch.manual_seed(3)
    states = torch.ones(500, 801, dtype=dtype).requires_grad_()
    with CpuDropout():
        out = F.dropout(states, 0.1)
    assert out.dtype == dtype
    assert float(out.detach().double().mean()) == pytest.approx(1, abs=0.005)
    assert set(out.detach().unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - actual(0.1)), dtype=dtype))}
    out.sum().backward()
    assert torch.equal(states.grad, out.detach())


def test_the_generator_s_state_decides_and_moves_on_by_one_number():
    torch.manual_seed(4)
    first, second = kept(torch.Size([1000]), 0.5), kept(torch.Size([3, 7]), 0.5)
    torch.manual_seed(4)
    assert torch.equal(kept(torch.Size([1000]), 0.5), first)
    assert torch.equal(kept(torch.Size([3, 7]), 0.5), second)
    assert not torch.equal(first[:21], second.flatten())


def test_what_it_does_not_replace():
    states = torch.randn(5, 6)
    with CpuDropout():
        assert F.dropout(states, 0.0) is not None
        assert torch.equal(F.dropout(states, 0.5, training=False), states)
        assert torch.equal(F.dropout(states, 1.0), torch.zeros(5, 6))
        assert torch.equal(F.dropout(states, 0.0), states)
        in_place = torch.ones(100)
        assert F.dropout(in_place, 0.5, inplace=True) is in_place


@pytest.mark.parametrize("form", ["none", "bool", "float", "causal"])
def test_attention_is_torch_s_where_nothing_is_dropped(form, monkeypatch):
    """With masks that keep everything: the same attention and gradients."""
    monkeypatch.setattr(module, "kept", lambda shape, rate: torch.ones(shape, dtype=torch.int8))
    monkeypatch.setattr(module, "actual", lambda rate: 0.0)
    torch.manual_seed(5)
    tensors = [torch.randn(2, 3, length, 8).requires_grad_() for length in (6, 6, 6)]
    seen = torch.rand(2, 1, 6, 6) > 0.3
    seen[..., 0] = True
    mask = {"bool": seen, "float": torch.randn(2, 1, 6, 6)}.get(form)
    settings = {"attn_mask": mask, "is_causal": form == "causal", "scale": 0.3}
    expected = F.scaled_dot_product_attention(*tensors, **settings)
    with CpuDropout():
        got = F.scaled_dot_product_attention(*tensors, dropout_p=0.2, **settings)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), tensors) for out in (got, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_of_a_model_in_training_takes_its_masks_here(family, monkeypatch):
    made, counted = [], kept
    monkeypatch.setattr(module, "kept", lambda shape, rate: made.append(rate) or counted(shape, rate))
    for name in ("bernoulli_", "bernoulli"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("torch drew a mask"))
    model = tiny_model("lora", family=family).train()
    torch.manual_seed(0)
    loss_of(model, tiny_batch()).backward()
    layers = 2 * (4 + 6)  # attention, behind it, inside and behind the feed-forward block
    assert len(made) > layers
    assert set(made) == {0.1}
    made.clear()
    loss_of(model.eval(), tiny_batch())
    assert made == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recomputed_layer_has_its_masks_again(family):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("adapter", family=family).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(0)
        loss_of(model, tiny_batch()).backward()
        gradients.append([p.grad for p in model.trainable().values() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_layer_of_torch_s_own_is_reached():
    torch.manual_seed(0)
    drop = nn.Dropout(0.5).train()
    with CpuDropout():
        assert drop(torch.ones(10)).grad_fn is None
        torch.manual_seed(1)
        got = drop(torch.ones(64))
    torch.manual_seed(1)
    assert torch.equal(got != 0, kept(torch.Size([64]), 0.5).bool())
