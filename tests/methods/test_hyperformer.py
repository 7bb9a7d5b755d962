"""Are a hyperformer's adapters made once a call, of the task's own vector, and equal to the formula's?"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from multitask_vl.config.schema import DecodingConfig, TrainingConfig
from multitask_vl.methods.hyperformer import BLOCKS, Generator, Heads
from multitask_vl.training.optim import build_optimizer
from tests.tiny_models import FAMILIES, TASKS, loss_of, shaken, tiny_batch, tiny_model


def counted(model) -> list[str]:
    """The stacks whose adapters are made, in the order of the calls from now on."""
    calls = []
    for stack in ("encoder", "decoder"):
        model.beside["hyperformer"][stack].register_forward_hook(lambda *given, stack=stack: calls.append(stack))
    return calls


@pytest.mark.parametrize("generator", ["unique", "efficient"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_made_once_a_call(family, generator):
    model = tiny_model("hyperformer", {"function": "mm1"}, family, generator=generator)
    calls = counted(model)
    model(tiny_batch())
    assert calls == ["encoder", "decoder"]
    calls.clear()
    model.generate(tiny_batch(), DecodingConfig(kind="beam", num_beams=3, max_length=9))
    assert calls == ["encoder", "decoder"], "a step of generation made them again"
    calls.clear()
    model.choose(tiny_batch(), [4, 5])
    assert calls == ["encoder", "decoder"]


def test_recomputed_layers_make_them_again_only_where_they_were_made():
    """The first layer of a stack made them inside its checkpoint; the other layers find what it made."""
    model = tiny_model("hyperformer").train()
    model.enable_gradient_checkpointing()
    calls = counted(model)
    loss_of(model, tiny_batch()).backward()
    assert calls == ["encoder", "decoder", "decoder", "encoder"]


@pytest.mark.parametrize("settings", [{}, {"pre_norm": True, "post_norm": True}])
@pytest.mark.parametrize("generator", ["unique", "efficient"])
def test_what_is_made_is_the_formula_layer_by_layer(generator, settings):
    model = shaken(tiny_model("hyperformer", generator=generator, **settings))
    module = model.beside["hyperformer"]
    made, vector = module["decoder"](module["tasks"]["vqa"]), module["tasks"]["vqa"]
    own: Generator = module["decoder"]
    assert list(made) == ["self_attn", "cross_attn", "ffn"]
    first, _, second, norm = own.narrow
    for block, layers in made.items():
        assert len(layers) == 2
        for i, tensors in enumerate(layers):
            known = [vector, own.layers.weight[i]]
            if generator == "efficient":
                known.append(own.kinds.weight[BLOCKS.index(block)])
            c = second(torch.relu(first(torch.cat(known))))
            c = F.layer_norm(c, c.shape, norm.weight, norm.bias, eps=1e-6)
            heads: Heads = own.heads["every_block" if generator == "efficient" else block]
            assert set(tensors) == set(heads)
            for name, tensor in tensors.items():
                torch.testing.assert_close(tensor, heads[name](c).view(tensor.shape), atol=1e-5, rtol=1e-5)
    assert made["ffn"][0]["down_weight"].shape == made["ffn"][0]["up_weight"].T.shape == (16, 16)


@pytest.mark.parametrize("settings", [{}, {"generator": "efficient"}, {"post_norm": True}])
def test_every_place_applies_its_own_adapter(settings):
    """At every place: hidden + up(gelu(down(hidden))), with the tensors of that stack, sublayer, layer and task."""
    model = shaken(tiny_model("hyperformer", **settings))
    module, seen = model.beside["hyperformer"], []
    sites = [
        (site, model.lm.get_submodule(site.name))
        for site in model.methods[0].layout.sites
        if site.role in ("output", "ffn_out")
    ]
    for site, wrapped in sites:
        wrapped.base.register_forward_hook(lambda *given, site=site: seen.append([site, given[2]]))
        wrapped.register_forward_hook(lambda *given: seen[-1].append(given[2]))
    model(tiny_batch("nlvr2", images=2))
    assert len(seen) == len(sites) == 10
    made = {stack: module[stack](module["tasks"]["nlvr2"]) for stack in ("encoder", "decoder")}
    for site, hidden, result in seen:
        own = made[site.stack][site.sublayer][site.layer]
        down = F.gelu(hidden @ own["down_weight"].T + own["down_bias"], approximate="tanh")
        up = down @ own["up_weight"].T + own["up_bias"]
        if "post_norm" in settings:
            up = F.layer_norm(up, (16,), own["post_weight"], own["post_bias"], eps=1e-5)
        torch.testing.assert_close(result, hidden + up, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("generator", ["unique", "efficient"])
def test_a_step_of_one_task_leaves_the_other_tasks_vector_alone(generator):
    model = tiny_model("hyperformer", generator=generator)
    loss_of(model, tiny_batch(TASKS[0])).backward()
    vectors = model.beside["hyperformer"]["tasks"]
    assert vectors[TASKS[0]].grad is not None
    assert vectors[TASKS[1]].grad is None
    untouched = {name for name, parameter in model.trainable().items() if parameter.grad is None}
    assert untouched == {f"beside.hyperformer.tasks.{TASKS[1]}"}


@pytest.mark.parametrize(("family", "spread", "table"), [("bart", 0.02, 0.02), ("t5", 0.01, 1.0)])
def test_values_at_the_start(family, spread, table):
    """Published: BART's initialisation reaches every map and table; on T5 maps keep 0.01 and tables torch's 1."""
    module = tiny_model("hyperformer", family=family, task_dim=400, rank=64).beside["hyperformer"]
    head = module["encoder"].heads["ffn"]["down_weight"]
    assert head.weight.std().item() == pytest.approx(spread, rel=0.1)
    assert not head.bias.any()
    assert module["encoder"].layers.weight.std().item() == pytest.approx(table, rel=0.1)
    assert module["tasks"]["vqa"].std().item() == pytest.approx(1.0, rel=0.15)


def test_what_makes_biases_does_not_decay():
    model = tiny_model("hyperformer", pre_norm=True)
    named = {name: parameter for name, parameter in model.trainable().items() if name.startswith("beside.")}
    decaying, still = build_optimizer(named, TrainingConfig(decay="all_but_biases")).param_groups
    assert decaying["weight_decay"] > still["weight_decay"] == 0
    kept = {id(parameter) for parameter in still["params"]}
    heads = [module for module in model.modules() if isinstance(module, Heads)]
    assert len(heads) == 5
    for name, linear in (pair for one in heads for pair in one.items()):
        assert id(linear.bias) in kept
        assert (id(linear.weight) in kept) == name.endswith("_bias")


def test_copies_make_their_own():
    """Generators lie beside the layers: a copied model must not go on asking those of the one it was copied from."""
    model = tiny_model("hyperformer")
    other = copy.deepcopy(model)
    before = other(tiny_batch())
    shaken(model)
    assert torch.equal(other(tiny_batch()), before)
    shaken(other)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_full(family):
    """What is generated is in half precision then; what it meets may be in either."""
    settings = {"pre_norm": True, "post_norm": True}
    model = tiny_model("hyperformer", {"function": "mm1"}, family, **settings)
    full = loss_of(model, tiny_batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = loss_of(model, tiny_batch())
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    assert model.beside["hyperformer"]["tasks"]["vqa"].grad.isfinite().all()
