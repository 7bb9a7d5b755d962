"""Compacters and low-rank adapters: formulas, initialization, sharing of rules, and sizes that do not fit."""

from __future__ import annotations

import math

import pytest
import torch

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.methods.compacter import CompacterConfig, PHMLinear, PHMRule
from multitask_vl.methods.low_rank_adapter import LowRankLinear
from multitask_vl.models.build import build_model
from multitask_vl.training.optim import build_optimizer
from tests.tiny_models import FAMILIES, perturb, tiny_batch, tiny_config, tiny_model


def phm(d_in: int, d_out: int, zero: bool = False, **settings) -> PHMLinear:
    """A projection with its own rule."""
    config = CompacterConfig(name="compacter", **settings)
    return PHMLinear(d_in, d_out, config, PHMRule(config, 1), zero)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
@pytest.mark.parametrize(
    "settings",
    [
        {"phm_dim": 1},
        {"phm_dim": 2},
        {"phm_dim": 3},
        {"phm_dim": 2, "factorized_phm": True},
        {"phm_dim": 3, "factorized_phm": True, "factor_rank": 2},
    ],
)
def test_phm_linear_is_sum_of_kronecker_products(settings, shape):
    torch.manual_seed(0)
    linear = phm(12, 6, phm_rule_std=1.0, **settings)
    linear.b.data.normal_()
    slices = linear.L @ linear.R if linear.factorized else linear.W
    matrix = sum(torch.kron(a, w) for a, w in zip(linear.rule.A, slices, strict=True))
    x = torch.randn(shape)
    expected = x @ matrix + linear.b
    torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)
    parameters = list(linear.parameters())
    seed = torch.randn(expected.shape)
    for ours, theirs in zip(
        torch.autograd.grad(linear(x), parameters, seed), torch.autograd.grad(expected, parameters, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_phm_init():
    """Published: A normal with std 0.01; every slice uniform within sqrt 2 times the Xavier bound; b zero."""
    torch.manual_seed(0)
    linear = phm(768, 96, phm_dim=2)
    bound = math.sqrt(2) * math.sqrt(6 / (384 + 48))
    assert 0.95 * bound < linear.W.abs().max() <= bound
    assert linear.W.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not linear.b.any()
    rules = torch.cat([phm(4, 4, phm_dim=4).rule.A.flatten() for _ in range(200)])
    assert rules.std().item() == pytest.approx(0.01, rel=0.05)
    assert phm(4, 4, phm_dim=2, phm_rule_std=3.0).rule.A.abs().max() > 0.1
    assert not phm(4, 4, zero=True).W.any()
    for factorized in (phm(4, 4, zero=True, factorized_phm=True), LowRankLinear(4, 4, 1, zero=True)):
        assert factorized.L.any()
        assert not factorized.R.any()


def test_low_rank_linear_is_product_of_factors():
    torch.manual_seed(0)
    linear = LowRankLinear(768, 96, 3, zero=False)
    linear.b.data.normal_()
    x = torch.randn(2, 5, 768)
    torch.testing.assert_close(linear(x), x @ (linear.L @ linear.R) + linear.b, atol=1e-4, rtol=1e-4)
    bound = math.sqrt(2) * math.sqrt(6 / (768 + 3))
    assert 0.95 * bound < linear.L.abs().max() <= bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({"phm_rule": "own"}, 20),
        ({"phm_rule": "own", "sharing": "per_task"}, 40),
        ({"phm_rule": "own", "sharing": "shared_up"}, 30),
        ({"phm_rule": "shared_over_tasks", "sharing": "per_task"}, 20),
        ({"phm_rule": "shared_over_tasks", "sharing": "shared_down"}, 20),
        ({"phm_rule": "shared", "sharing": "per_task"}, 1),
        ({"phm_rule": "own", "learn_phm_rule": False}, 0),
        ({"phm_rule": "shared", "learn_phm_rule": False}, 0),
    ],
)
def test_rules_are_counted_once(settings, rules, family):
    """Ten sites with two projections each, two tasks."""
    trainable = tiny_model("compacter", family=family, **settings).trainable_parameters()
    assert sum(name.endswith(".A") for name in trainable) == rules


def test_shared_rule_is_used_by_all_projections():
    model = tiny_model("compacter", phm_rule="shared", sharing="per_task")
    projections = [module for module in model.modules() if isinstance(module, PHMLinear)]
    assert len(projections) == 40
    assert all(one.shared_rule[0].A is model.shared_modules["compacter"].A for one in projections)
    model.shared_modules["compacter"].A.data.zero_()
    # with a rule of zeros only the bias remains, which is zero initially
    frozen = tiny_model("frozen")
    assert torch.equal(model(tiny_batch()), frozen(tiny_batch()))


def test_fixed_rules_do_not_depend_on_the_seed(tmp_path):
    """They are not saved, and the adapter's other tensors depend on them."""
    config = tiny_config("compacter", learn_phm_rule=False)
    model = perturb(build_model(config).eval())
    save_adapter(model, tmp_path, config)
    other = build_model(config.model_copy(update={"seed": 8})).eval()
    other.lm.load_state_dict(model.lm.state_dict(), strict=False)
    other.compatibility = model.compatibility
    load_adapter(other, tmp_path)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))
    rules = [module.A for module in model.modules() if isinstance(module, PHMRule)]
    assert len({tuple(rule.flatten().tolist()) for rule in rules}) == len(rules)


@pytest.mark.parametrize("method", ["compacter", "low_rank_adapter"])
def test_b_has_weight_decay(method):
    model = tiny_model(method, train_layer_norms="none")
    named = {name: parameter for name, parameter in model.trainable_parameters().items() if name.startswith("lm.")}
    (group,) = build_optimizer(named, TrainingConfig(weight_decay_on="all_but_biases")).param_groups
    assert group["weight_decay"] > 0
    assert len(group["params"]) == len(named)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "compacter",
            {"phm_dim": 3, "rank": 9},
            r"method.phm_dim: 3 does not divide the backbone's width \(16\).* one of 1$",
        ),
        (
            "compacter",
            {"phm_dim": 4, "rank": 6},
            r"method.phm_dim: 4 does not divide method.rank \(6\); set it to one of 1, 2$",
        ),
        ("compacter", {"factorized_phm": True, "factor_rank": 9}, "method.factor_rank: 9 .* 8 by 8; set it to 8"),
        ("low_rank_adapter", {"rank": 6, "factor_rank": 7}, "method.factor_rank: 7 exceeds .* to 6 or less"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(method, settings, message):
    with pytest.raises(InputError, match=message):
        tiny_model(method, **settings)


def test_all_size_errors_are_reported_together():
    with pytest.raises(InputError) as caught:
        tiny_model("compacter", phm_dim=5)
    assert len(caught.value.problems) == 2
