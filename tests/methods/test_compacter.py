"""Are the maps of compacters and low-rank adapters what their formulas say, and do rules belong to whom they should?"""

from __future__ import annotations

import math

import pytest
import torch

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.methods.compacter import CompacterConfig, PHMLinear, Rule
from multitask_vl.methods.low_rank_adapter import LowRankLinear
from multitask_vl.models.build import build_model
from multitask_vl.training.optim import build_optimizer
from tests.tiny_models import FAMILIES, shaken, tiny_batch, tiny_config, tiny_model


def phm(d_in: int, d_out: int, zero: bool = False, **settings) -> PHMLinear:
    """A map with its own rule."""
    config = CompacterConfig(name="compacter", **settings)
    return PHMLinear(d_in, d_out, config, Rule(config, 1), zero)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
@pytest.mark.parametrize(
    "settings",
    [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 2, "factorized": True}, {"n": 3, "factorized": True, "factor_rank": 2}],
)
def test_a_map_is_a_sum_of_kronecker_products(settings, shape):
    torch.manual_seed(0)
    linear = phm(12, 6, rule_std=1.0, **settings)
    linear.b.data.normal_()
    slices = linear.L @ linear.R if linear.factorized else linear.W
    matrix = sum(torch.kron(a, w) for a, w in zip(linear.rule.A, slices, strict=True))
    x = torch.randn(shape)
    wanted = x @ matrix + linear.b
    torch.testing.assert_close(linear(x), wanted, atol=1e-5, rtol=1e-5)
    parameters = list(linear.parameters())
    seed = torch.randn(wanted.shape)
    for ours, theirs in zip(
        torch.autograd.grad(linear(x), parameters, seed), torch.autograd.grad(wanted, parameters, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_values_at_the_start():
    """Published: A normal with spread 0.01; every slice uniform within sqrt 2 times Glorot's bound; b zero."""
    torch.manual_seed(0)
    linear = phm(768, 96, n=2)
    bound = math.sqrt(2) * math.sqrt(6 / (384 + 48))
    assert 0.95 * bound < linear.W.abs().max() <= bound
    assert linear.W.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not linear.b.any()
    rules = torch.cat([phm(4, 4, n=4).rule.A.flatten() for _ in range(200)])
    assert rules.std().item() == pytest.approx(0.01, rel=0.05)
    assert phm(4, 4, n=2, rule_std=3.0).rule.A.abs().max() > 0.1
    assert not phm(4, 4, zero=True).W.any()
    for factorized in (phm(4, 4, zero=True, factorized=True), LowRankLinear(4, 4, 1, zero=True)):
        assert factorized.L.any()
        assert not factorized.R.any()


def test_a_low_rank_map_is_a_product_of_two():
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
        ({"rule": "own"}, 20),
        ({"rule": "own", "sharing": "per_task"}, 40),
        ({"rule": "own", "sharing": "shared_up"}, 30),
        ({"rule": "shared_over_tasks", "sharing": "per_task"}, 20),
        ({"rule": "shared_over_tasks", "sharing": "shared_down"}, 20),
        ({"rule": "shared", "sharing": "per_task"}, 1),
        ({"rule": "own", "learn_rule": False}, 0),
        ({"rule": "shared", "learn_rule": False}, 0),
    ],
)
def test_rules_are_counted_once_each(settings, rules, family):
    """Ten places of two halves, two tasks."""
    trainable = tiny_model("compacter", family=family, **settings).trainable()
    assert sum(name.endswith(".A") for name in trainable) == rules


def test_a_shared_rule_acts_in_every_map():
    model = tiny_model("compacter", rule="shared", sharing="per_task")
    maps = [module for module in model.modules() if isinstance(module, PHMLinear)]
    assert len(maps) == 40
    assert all(one.common[0].A is model.beside["compacter"].A for one in maps)
    model.beside["compacter"].A.data.zero_()
    # without a rule there is nothing but the bias, zero at the start
    frozen = tiny_model("frozen")
    assert torch.equal(model(tiny_batch()), frozen(tiny_batch()))


def test_rules_that_are_not_learned_are_found_again_under_another_seed(tmp_path):
    """They are not saved, and the adapter's other tensors mean nothing without them."""
    config = tiny_config("compacter", learn_rule=False)
    model = shaken(build_model(config).eval())
    save_adapter(model, tmp_path, config)
    other = build_model(config.model_copy(update={"seed": 8})).eval()
    other.lm.load_state_dict(model.lm.state_dict(), strict=False)
    other.description = model.description
    load_adapter(other, tmp_path)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))
    rules = [module.A for module in model.modules() if isinstance(module, Rule)]
    assert len({tuple(rule.flatten().tolist()) for rule in rules}) == len(rules)


@pytest.mark.parametrize("method", ["compacter", "low_rank_adapter"])
def test_b_decays_as_published(method):
    model = tiny_model(method, train_layer_norms="none")
    named = {name: parameter for name, parameter in model.trainable().items() if name.startswith("lm.")}
    (group,) = build_optimizer(named, TrainingConfig(decay="all_but_biases")).param_groups
    assert group["weight_decay"] > 0
    assert len(group["params"]) == len(named)


@pytest.mark.parametrize(
    ("method", "settings", "why"),
    [
        ("compacter", {"n": 3, "rank": 9}, r"method.n: 3 does not divide the backbone's width \(16\).* among 1$"),
        ("compacter", {"n": 4, "rank": 6}, r"method.n: 4 does not divide method.rank \(6\).* take n among 1, 2$"),
        ("compacter", {"factorized": True, "factor_rank": 9}, "method.factor_rank: 9 .* 8 by 8 .* to 8 or less"),
        ("low_rank_adapter", {"rank": 6, "factor_rank": 7}, "method.factor_rank: 7 is more .* to 6 or less"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(method, settings, why):
    with pytest.raises(InputError, match=why):
        tiny_model(method, **settings)


def test_both_misfits_are_told_at_once():
    with pytest.raises(InputError) as caught:
        tiny_model("compacter", n=5)
    assert len(caught.value.problems) == 2
