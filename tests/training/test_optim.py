"""Optimizer, learning rate and clipping against hand calculations and torch."""

import math

import pytest
import torch

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.training.optim import (
    HFLegacyAdamW,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)


def settings(**changes) -> TrainingConfig:
    return TrainingConfig(**{"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3, **changes})


def test_hf_legacy_adamw_follows_its_formula():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer({"w": weight}, settings(optimizer="adamw_hf_legacy"))
    value, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate([0.5, -0.2, 0.3], start=1):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        value -= 0.1 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * m / (math.sqrt(v) + 1e-3)
        value -= 0.1 * 0.1 * value
        assert weight.item() == pytest.approx(value, abs=1e-6)


def test_build_optimizer_returns_the_configured_one():
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 4), torch.randn(4, 4)
    after = {}
    for name, kind in {"adamw": torch.optim.AdamW, "adamw_hf_legacy": HFLegacyAdamW}.items():
        weight = torch.nn.Parameter(start.clone())
        optimizer = build_optimizer({"w": weight}, settings(optimizer=name))
        assert type(optimizer) is kind
        weight.grad = gradient.clone()
        optimizer.step()
        after[name] = weight.detach()
    assert 1e-4 < (after["adamw"] - after["adamw_hf_legacy"]).abs().max() < 0.1


@pytest.mark.parametrize("name", ["adamw", "adamw_hf_legacy"])
def test_tensor_without_gradient_neither_moves_nor_decays(name):
    used, idle = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer({"used": used, "idle": idle}, settings(optimizer=name))
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(idle, torch.ones(3))
    assert idle not in optimizer.state
    assert not torch.equal(used, torch.ones(3))


def test_weight_decay_groups():
    named = {
        "a.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "norm.weight": torch.nn.Parameter(torch.ones(2)),
        "a.bias": torch.nn.Parameter(torch.ones(2)),
    }

    def decaying(**changes):
        groups = build_optimizer(named, settings(**changes)).param_groups
        return {n for g in groups if g["weight_decay"] for n, p in named.items() if any(p is q for q in g["params"])}

    assert decaying(weight_decay_on="all_but_biases") == {"a.weight", "norm.weight"}
    assert decaying(weight_decay_on="matrices") == {"a.weight"}


def test_backbone_lr_applies_to_base_parameters():
    named = {
        "new": torch.nn.Parameter(torch.ones(1)),
        "old": torch.nn.Parameter(torch.ones(1)),
        "old.bias": torch.nn.Parameter(torch.ones(1)),
    }
    optimizer = build_optimizer(named, settings(backbone_lr=0.025), [named["old"], named["old.bias"]])
    set_learning_rate(optimizer, 0.04)
    lrs = {n: g["lr"] for g in optimizer.param_groups for n, p in named.items() if any(p is q for q in g["params"])}
    assert lrs == pytest.approx({"new": 0.04, "old": 0.01, "old.bias": 0.01})
    assert optimizer.param_groups[0]["lr"] == 0.04  # the one that is logged
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.1, 0.0]
    assert len(build_optimizer(named, settings(), [named["old"]]).param_groups) == 2


def test_learning_rate_warms_up_and_decays():
    lrs = [learning_rate(step, 20, 1.0, 0.1) for step in range(21)]
    assert lrs[:3] == [0.0, 0.5, 1.0]
    assert lrs[11] == pytest.approx(0.5)
    assert lrs[20] == 0.0
    assert learning_rate(0, 10, 2.0, 0.0) == 2.0


def test_set_learning_rate_reaches_every_group():
    named = {"w": torch.nn.Parameter(torch.ones(1)), "bias": torch.nn.Parameter(torch.ones(1))}
    optimizer = build_optimizer(named, settings())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_clip_gradients_returns_norm_before_clipping():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], None) == pytest.approx(5.0)
    assert weight.grad.tolist() == [3.0, 4.0]
    assert clip_gradients([weight], 1.0) == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_fused_adamw_equals_torch_and_resumes_exactly():
    torch.manual_seed(0)
    start, gradients = torch.randn(33, 7), [torch.randn(33, 7) for _ in range(4)]
    ours, plain, resumed = (torch.nn.Parameter(start.clone()) for _ in range(3))
    optimizer = build_optimizer({"w": ours}, settings())
    assert optimizer.param_groups[0]["fused"]
    other = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.1, eps=1e-3, fused=False)
    for step, gradient in enumerate(gradients):
        if step == 2:  # as stored in a checkpoint
            kept = {key: value.clone() for key, value in optimizer.state[ours].items()}
            resumed.data.copy_(ours.data)
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    again = build_optimizer({"w": resumed}, settings())
    again.state[resumed] = kept
    for gradient in gradients[2:]:
        resumed.grad = gradient.clone()
        again.step()
    assert torch.equal(resumed, ours)
