"""Parallel adapters: input, formulas, placement, counts and errors, on both families."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.parallel_adapter import ParallelAdapter, ParallelAdapterConfig, ParallelAdapterSite
from multitask_vl.methods.sites import EVERY_TASK, Site, SiteIndex
from multitask_vl.models.build import build_model
from multitask_vl.routing.context import Context
from tests.tiny_models import TASKS, perturb, tiny_batch, tiny_config, tiny_model

UNPOOLED = {"pooling": "none"}


def sites(model) -> dict[str, ParallelAdapterSite]:
    return {name: module for name, module in model.lm.named_modules() if isinstance(module, ParallelAdapterSite)}


def trace(model, names: list[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of the named modules of the language model in one call."""
    seen = {}

    def hook(name: str):
        def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            seen[name] = args[0].detach(), output.detach()

        return record

    handles = [model.lm.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    model(tiny_batch())
    for handle in handles:
        handle.remove()
    return seen


def test_adapter_reads_input_and_adds_to_output():
    model = perturb(tiny_model("parallel_adapter"))
    layer = "model.decoder.layers.1"
    names = {"self_attn.out_proj": "self_attn.q_proj", "encoder_attn.out_proj": "encoder_attn.q_proj", "fc2": "fc1"}
    seen = trace(model, [f"{layer}.{one}" for pair in names.items() for one in pair])
    for last, first in names.items():
        site = model.lm.get_submodule(f"{layer}.{last}")
        down, up = site.down[EVERY_TASK], site.up[EVERY_TASK]
        entered = seen[f"{layer}.{first}"][0]
        own = site.base(seen[f"{layer}.{last}"][0])
        expected = own + up(F.gelu(down(entered), approximate="tanh"))
        torch.testing.assert_close(seen[f"{layer}.{last}"][1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("input_", "index"), [("normalized", 1), ("residual", 0)])
def test_input_of_pre_norm_sublayer(input_, index):
    """T5: the output of the norm, as the sublayer's own layers read it, or its input."""
    model = perturb(tiny_model("parallel_adapter", family="t5", input=input_))
    for block in ("encoder.block.1.layer.1", "decoder.block.0.layer.2"):
        last = f"{block}.DenseReluDense.wo"
        site = model.lm.get_submodule(last)
        seen = trace(model, [f"{block}.layer_norm", last])
        entered = seen[f"{block}.layer_norm"][index]
        added = site.up[EVERY_TASK](F.gelu(site.down[EVERY_TASK](entered), approximate="tanh"))
        torch.testing.assert_close(seen[last][1], site.base(seen[last][0]) + added, atol=1e-5, rtol=1e-5)


def test_both_inputs_are_equal_in_bart():
    one, two = (perturb(tiny_model("parallel_adapter", input=which)) for which in ("normalized", "residual"))
    assert torch.equal(one(tiny_batch()), two(tiny_batch()))


def test_routed_adapter_matches_formula():
    model, batch = perturb(tiny_model("parallel_adapter", {"function": "mm1"})), tiny_batch()
    last, first = "model.decoder.layers.0.fc2", "model.decoder.layers.0.fc1"
    site, seen = model.lm.get_submodule(last), trace(model, [last, first])
    encoded = model.encode(batch)
    weights = (encoded.token_types > 0).unsqueeze(-1) / (encoded.token_types > 0).sum(1)[:, None, None]
    t, v = (site.down[EVERY_TASK](x) for x in (seen[first][0], (encoded.hidden_states * weights).sum(1, keepdim=True)))
    added = site.up[EVERY_TASK](F.gelu(t @ v.transpose(1, 2) @ v, approximate="tanh"))
    torch.testing.assert_close(seen[last][1], site.base(seen[last][0]) + added, atol=1e-4, rtol=1e-4)


def test_cross_attention_matches_formula_over_valid_rows():
    """Section "vs. cross-attention" of the routing paper: no activation, softmax over what is not padding."""
    model, batch = perturb(tiny_model("parallel_adapter", UNPOOLED, mapping="cross_attention")), tiny_batch()
    last, first = "model.decoder.layers.0.encoder_attn.out_proj", "model.decoder.layers.0.encoder_attn.q_proj"
    site, seen = model.lm.get_submodule(last), trace(model, [last, first])
    attention, encoded = site.down[EVERY_TASK], model.encode(batch)
    for row, valid in enumerate(encoded.token_types > 0):
        rows = encoded.hidden_states[row][valid]
        q, k, v = attention.query(seen[first][0][row]), attention.key(rows), attention.value(rows)
        added = site.up[EVERY_TASK](F.softmax(q @ k.T / 16**0.5, -1) @ v)
        expected = site.base(seen[last][0][row]) + added
        torch.testing.assert_close(seen[last][1][row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sublayers", "leaves"),
    [(["ffn"], {"fc2"}), (["self_attn", "cross_attn"], {"out_proj"}), (["cross_attn"], {"out_proj"})],
)
def test_sublayers_can_be_selected(sublayers, leaves):
    found = sites(tiny_model("parallel_adapter", sublayers=sublayers))
    assert {name.split(".")[-1] for name in found} == leaves
    assert len(found) == sum({"ffn": 4, "self_attn": 4, "cross_attn": 2}[one] for one in sublayers)


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize(("source", "count"), [("encoder", 6), ("visual", 10)])
def test_cross_attention_adapters_follow_x_r(family, source, count):
    """An x_R from the encoder's output is not available inside the encoder, so its sublayers get no adapter."""
    routing = UNPOOLED | {"source": source}
    model = tiny_model("parallel_adapter", routing, family=family, mapping="cross_attention")
    found = sites(model)
    assert len(found) == count
    assert any("encoder." in name for name in found) == (source == "visual")
    model(tiny_batch()).sum().backward()
    assert all(p.grad is not None for module in found.values() for p in module.up.parameters())


def test_split_projections_follow_routing_of_each_task():
    routing = {"function": {TASKS[0]: "mm1", TASKS[1]: "none"}}
    for name, site in sites(tiny_model("parallel_adapter", routing, mapping="split", sharing="per_task")).items():
        routed = {"text", "image"} if ".decoder." in name else {"text"}
        assert {task: set(downs) for task, downs in site.down.items()} == {TASKS[0]: routed, TASKS[1]: {"text"}}
        inner = site.down[TASKS[0]]["text"]
        assert [tuple(one.weight.shape) for one in inner] == [(4, 16), (16, 4)]
        assert all(one.bias is not None for one in inner)


@pytest.mark.parametrize(
    ("mapping", "routing", "each"), [("shared", {"function": "mm1"}, 197_504), ("cross_attention", UNPOOLED, 394_368)]
)
def test_parameter_count_of_gpt2_layer(mapping, routing, each):
    """12 cross-attention adapters have 4,732,416: the published 4.732M (Table 5). With mapping shared: 2,370,048."""
    with torch.device("meta"):
        modules = {"first": nn.Linear(768, 3072), "last": nn.Linear(3072, 768), "norm": nn.LayerNorm(768)}
        lm = nn.ModuleDict(modules).requires_grad_(False)
        sites_ = [("first", "ffn_in", 768, 3072), ("last", "ffn_out", 3072, 768), ("norm", "norm", 768, 768)]
        first, last, norm = (Site(name, "decoder", 0, "ffn", role, *widths) for name, role, *widths in sites_)
        config = ParallelAdapterConfig(name="parallel_adapter", rank=128, mapping=mapping, train_layer_norms="none")
        context = Context(TASKS, RoutingConfig(**routing))
        ParallelAdapter(config, context, SiteIndex(lm, [first, last], [norm], 0.02)).install()
    assert sum(p.numel() for p in lm.parameters() if p.requires_grad) == each


@pytest.mark.parametrize(
    ("settings", "routing", "message"),
    [
        ({"mapping": "split", "rank": 10}, {"function": "mm1"}, "rank / 4, and 10 is not divisible by 4"),
        (
            {"mapping": "cross_attention", "heads": 3},
            UNPOOLED,
            "method.heads: 3 does not divide the attention's width, 16",
        ),
        ({"mapping": "cross_attention"}, {"pooling": "mean"}, 'routing.pooling: .* "mean" averages them into one'),
        ({"mapping": "cross_attention"}, UNPOOLED | {"function": "mm1"}, "routing.function: .* set it to none"),
    ],
)
def test_invalid_settings_are_rejected(settings, routing, message):
    with pytest.raises(InputError, match=message):
        tiny_model("parallel_adapter", routing, **settings)


def test_conflicts_with_other_adapters():
    one, two = tiny_config("adapter"), tiny_config("parallel_adapter")
    with pytest.raises(InputError, match="adapter and parallel_adapter act at the same place"):
        build_model(one.model_copy(update={"method": [*one.method, *two.method]}))


@pytest.mark.parametrize("order", [("parallel_adapter", "lora"), ("lora", "parallel_adapter")])
def test_combines_with_lora_on_captured_layers(order):
    """Whichever is installed first, the adapter reads the sublayer's input, not LoRA's input after dropout."""
    one, two = tiny_config(order[0]), tiny_config(order[1])
    model = perturb(build_model(one.model_copy(update={"method": [*one.method, *two.method]})).eval())
    attention = "model.encoder.layers.1.self_attn"
    inputs = []
    site = model.lm.get_submodule(f"{attention}.out_proj")
    site.down.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    model.train()
    seen = trace(model, [f"{attention}.q_proj"])
    assert torch.equal(inputs[0], seen[f"{attention}.q_proj"][0])
