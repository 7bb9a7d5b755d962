"""HyperFormer: formulas, one generation per call, task embeddings, initialization and weight decay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from multitask_vl.config.schema import DecodingConfig, TrainingConfig
from multitask_vl.methods.hyperformer import SUBLAYERS, Generator, WeightHeads
from multitask_vl.training.optim import build_optimizer
from tests.tiny_models import FAMILIES, TASKS, loss_of, perturb, tiny_batch, tiny_model


def record_generations(model) -> list[str]:
    """The stacks whose adapters are generated, in the order of future calls."""
    calls = []
    for stack in ("encoder", "decoder"):
        model.shared_modules["hyperformer"][stack].register_forward_hook(lambda *args, stack=stack: calls.append(stack))
    return calls


@pytest.mark.parametrize("generator", ["unique", "efficient"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_generated_once_per_call(family, generator):
    model = tiny_model("hyperformer", {"function": "mm1"}, family, generator=generator)
    calls = record_generations(model)
    model(tiny_batch())
    assert calls == ["encoder", "decoder"]
    calls.clear()
    model.generate(tiny_batch(), DecodingConfig(mode="beam", num_beams=3, max_length=9))
    assert calls == ["encoder", "decoder"], "a decoding step generated them again"
    calls.clear()
    model.classify_first_token(tiny_batch(), [4, 5])
    assert calls == ["encoder", "decoder"]


def test_checkpointing_regenerates_adapters_once_per_stack():
    """The first layer of a stack generates them inside its checkpoint; the other layers reuse the result."""
    model = tiny_model("hyperformer").train()
    model.enable_gradient_checkpointing()
    calls = record_generations(model)
    loss_of(model, tiny_batch()).backward()
    assert calls == ["encoder", "decoder", "decoder", "encoder"]


@pytest.mark.parametrize("settings", [{}, {"pre_norm": True, "post_norm": True}])
@pytest.mark.parametrize("generator", ["unique", "efficient"])
def test_generated_adapters_match_the_formula(generator, settings):
    model = perturb(tiny_model("hyperformer", generator=generator, **settings))
    module = model.shared_modules["hyperformer"]
    e_t = module["tasks"]["vqa"]
    own: Generator = module["decoder"]
    adapters = own(e_t)
    assert list(adapters) == ["self_attn", "cross_attn", "ffn"]
    first, _, second, norm = own.project
    for sublayer, layers in adapters.items():
        assert len(layers) == 2
        for i, tensors in enumerate(layers):
            inputs = [e_t, own.layers.weight[i]]
            if generator == "efficient":
                inputs.append(own.kinds.weight[SUBLAYERS.index(sublayer)])
            c = second(torch.relu(first(torch.cat(inputs))))
            c = F.layer_norm(c, c.shape, norm.weight, norm.bias, eps=1e-6)
            heads: WeightHeads = own.heads["every_block" if generator == "efficient" else sublayer]
            assert set(tensors) == set(heads)
            for name, tensor in tensors.items():
                torch.testing.assert_close(tensor, heads[name](c).view(tensor.shape), atol=1e-5, rtol=1e-5)
    first = adapters["ffn"][0]
    assert first["down_weight"].shape == first["up_weight"].T.shape == (16, 16)


@pytest.mark.parametrize("settings", [{}, {"generator": "efficient"}, {"post_norm": True}])
def test_every_site_applies_its_own_adapter(settings):
    """At every site: hidden + up(gelu(down(hidden))), with the tensors of that stack, sublayer, layer and task."""
    model = perturb(tiny_model("hyperformer", **settings))
    module, seen = model.shared_modules["hyperformer"], []
    sites = [
        (site, model.lm.get_submodule(site.name))
        for site in model.methods[0].site_index.sites
        if site.role in ("output", "ffn_out")
    ]
    for site, wrapped in sites:
        wrapped.base.register_forward_hook(lambda *args, site=site: seen.append([site, args[2]]))
        wrapped.register_forward_hook(lambda *args: seen[-1].append(args[2]))
    model(tiny_batch("nlvr2", images=2))
    assert len(seen) == len(sites) == 10
    adapters = {stack: module[stack](module["tasks"]["nlvr2"]) for stack in ("encoder", "decoder")}
    for site, hidden, result in seen:
        own = adapters[site.stack][site.sublayer][site.layer]
        down = F.gelu(hidden @ own["down_weight"].T + own["down_bias"], approximate="tanh")
        up = down @ own["up_weight"].T + own["up_bias"]
        if "post_norm" in settings:
            up = F.layer_norm(up, (16,), own["post_weight"], own["post_bias"], eps=1e-5)
        torch.testing.assert_close(result, hidden + up, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("generator", ["unique", "efficient"])
def test_step_of_one_task_skips_other_task_embeddings(generator):
    model = tiny_model("hyperformer", generator=generator)
    loss_of(model, tiny_batch(TASKS[0])).backward()
    embeddings = model.shared_modules["hyperformer"]["tasks"]
    assert embeddings[TASKS[0]].grad is not None
    assert embeddings[TASKS[1]].grad is None
    untouched = {name for name, parameter in model.trainable_parameters().items() if parameter.grad is None}
    assert untouched == {f"shared_modules.hyperformer.tasks.{TASKS[1]}"}


@pytest.mark.parametrize(("family", "std", "table_std"), [("bart", 0.02, 0.02), ("t5", 0.01, 1.0)])
def test_init_std(family, std, table_std):
    """Published: BART's init applies to all layers and tables; on T5 layers have std 0.01 and tables torch's 1."""
    module = tiny_model("hyperformer", family=family, task_dim=400, rank=64).shared_modules["hyperformer"]
    head = module["encoder"].heads["ffn"]["down_weight"]
    assert head.weight.std().item() == pytest.approx(std, rel=0.1)
    assert not head.bias.any()
    assert module["encoder"].layers.weight.std().item() == pytest.approx(table_std, rel=0.1)
    assert module["tasks"]["vqa"].std().item() == pytest.approx(1.0, rel=0.15)


def test_bias_heads_get_no_weight_decay():
    model = tiny_model("hyperformer", pre_norm=True)
    named = {
        name: parameter
        for name, parameter in model.trainable_parameters().items()
        if name.startswith("shared_modules.")
    }
    decayed, not_decayed = build_optimizer(named, TrainingConfig(weight_decay_on="all_but_biases")).param_groups
    assert decayed["weight_decay"] > not_decayed["weight_decay"] == 0
    exempt = {id(parameter) for parameter in not_decayed["params"]}
    heads = [module for module in model.modules() if isinstance(module, WeightHeads)]
    assert len(heads) == 5
    for name, linear in (pair for one in heads for pair in one.items()):
        assert id(linear.bias) in exempt
        assert (id(linear.weight) in exempt) == name.endswith("_bias")


def test_copied_model_uses_its_own_generators():
    """Generators are registered outside the layers; a copy must not use those of the original."""
    model = tiny_model("hyperformer")
    other = copy.deepcopy(model)
    before = other(tiny_batch())
    perturb(model)
    assert torch.equal(other(tiny_batch()), before)
    perturb(other)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_close_to_full(family):
    """Generated tensors are in half precision then; they meet tensors of both precisions."""
    settings = {"pre_norm": True, "post_norm": True}
    model = tiny_model("hyperformer", {"function": "mm1"}, family, **settings)
    full = loss_of(model, tiny_batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = loss_of(model, tiny_batch())
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    assert model.shared_modules["hyperformer"]["tasks"]["vqa"].grad.isfinite().all()
