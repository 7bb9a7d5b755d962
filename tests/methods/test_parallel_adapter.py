"""Does a parallel adapter read what enters its sublayer, on both backbones, and keep its formulas?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.config import load_config
from multitask_vl.config.schema import RoutingConfig
from multitask_vl.doctor import parameter_report
from multitask_vl.errors import InputError
from multitask_vl.methods.parallel_adapter import ParallelAdapter, ParallelAdapterConfig, ParallelAdapterSite
from multitask_vl.methods.sites import EVERY_TASK, Layout, Site
from multitask_vl.models.build import build_model
from multitask_vl.routing.context import Context
from tests.tiny_models import TASKS, shaken, tiny_batch, tiny_config, tiny_model

PARAMETERS = Path(__file__).resolve().parents[2] / "configs" / "parameters"
UNPOOLED = {"pool": "none"}


def sites(model) -> dict[str, ParallelAdapterSite]:
    return {name: module for name, module in model.lm.named_modules() if isinstance(module, ParallelAdapterSite)}


def traced(model, names: list[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of the named modules of the language model in one call."""
    seen = {}

    def keeper(name: str):
        def keep(module: nn.Module, given: tuple, result: torch.Tensor) -> None:
            seen[name] = given[0].detach(), result.detach()

        return keep

    handles = [model.lm.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    model(tiny_batch())
    for handle in handles:
        handle.remove()
    return seen


def test_an_adapter_reads_the_sublayers_input_and_adds_to_its_output():
    model = shaken(tiny_model("parallel_adapter"))
    layer = "model.decoder.layers.1"
    names = {"self_attn.out_proj": "self_attn.q_proj", "encoder_attn.out_proj": "encoder_attn.q_proj", "fc2": "fc1"}
    seen = traced(model, [f"{layer}.{one}" for pair in names.items() for one in pair])
    for last, first in names.items():
        site = model.lm.get_submodule(f"{layer}.{last}")
        down, up = site.down[EVERY_TASK], site.up[EVERY_TASK]
        entered = seen[f"{layer}.{first}"][0]
        own = site.base(seen[f"{layer}.{last}"][0])
        expected = own + up(F.gelu(down(entered), approximate="tanh"))
        torch.testing.assert_close(seen[f"{layer}.{last}"][1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("input_", "enters"), [("normed", 1), ("stream", 0)])
def test_where_a_sublayer_begins_with_its_norm(input_, enters):
    """T5: what leaves the norm, as the sublayer's own maps see it, or what enters it."""
    model = shaken(tiny_model("parallel_adapter", family="t5", input=input_))
    for block in ("encoder.block.1.layer.1", "decoder.block.0.layer.2"):
        last = f"{block}.DenseReluDense.wo"
        site = model.lm.get_submodule(last)
        seen = traced(model, [f"{block}.layer_norm", last])
        entered = seen[f"{block}.layer_norm"][enters]
        added = site.up[EVERY_TASK](F.gelu(site.down[EVERY_TASK](entered), approximate="tanh"))
        torch.testing.assert_close(seen[last][1], site.base(seen[last][0]) + added, atol=1e-5, rtol=1e-5)


def test_in_bart_both_inputs_are_the_same():
    one, two = (shaken(tiny_model("parallel_adapter", input=which)) for which in ("normed", "stream"))
    assert torch.equal(one(tiny_batch()), two(tiny_batch()))


def test_a_routed_adapter_is_its_formula():
    model, batch = shaken(tiny_model("parallel_adapter", {"function": "mm1"})), tiny_batch()
    last, first = "model.decoder.layers.0.fc2", "model.decoder.layers.0.fc1"
    site, seen = model.lm.get_submodule(last), traced(model, [last, first])
    encoded = model.encode(batch)
    weights = (encoded.kinds > 0).unsqueeze(-1) / (encoded.kinds > 0).sum(1)[:, None, None]
    t, v = (site.down[EVERY_TASK](x) for x in (seen[first][0], (encoded.states * weights).sum(1, keepdim=True)))
    added = site.up[EVERY_TASK](F.gelu(t @ v.transpose(1, 2) @ v, approximate="tanh"))
    torch.testing.assert_close(seen[last][1], site.base(seen[last][0]) + added, atol=1e-4, rtol=1e-4)


def test_cross_attention_is_its_formula_over_the_valid_rows():
    """Section "vs. cross-attention" of the routing paper: no activation, softmax over what is not padding."""
    model, batch = shaken(tiny_model("parallel_adapter", UNPOOLED, mapping="cross_attention")), tiny_batch()
    last, first = "model.decoder.layers.0.encoder_attn.out_proj", "model.decoder.layers.0.encoder_attn.q_proj"
    site, seen = model.lm.get_submodule(last), traced(model, [last, first])
    attention, encoded = site.down[EVERY_TASK], model.encode(batch)
    for row, valid in enumerate(encoded.kinds > 0):
        rows = encoded.states[row][valid]
        q, k, v = attention.query(seen[first][0][row]), attention.key(rows), attention.value(rows)
        added = site.up[EVERY_TASK](F.softmax(q @ k.T / 16**0.5, -1) @ v)
        expected = site.base(seen[last][0][row]) + added
        torch.testing.assert_close(seen[last][1][row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sublayers", "places"),
    [(["ffn"], {"fc2"}), (["self_attn", "cross_attn"], {"out_proj"}), (["cross_attn"], {"out_proj"})],
)
def test_sublayers_can_be_chosen(sublayers, places):
    found = sites(tiny_model("parallel_adapter", sublayers=sublayers))
    assert {name.split(".")[-1] for name in found} == places
    assert len(found) == sum({"ffn": 4, "self_attn": 4, "cross_attn": 2}[one] for one in sublayers)


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize(("source", "count"), [("encoder_pooled", 6), ("visual_pooled", 10)])
def test_attending_adapters_stand_where_x_r_reaches(family, source, count):
    """What is known only when the encoder has run is not there inside it: its sublayers stay bare."""
    routing = UNPOOLED | {"source": source}
    model = tiny_model("parallel_adapter", routing, family=family, mapping="cross_attention")
    found = sites(model)
    assert len(found) == count
    assert any("encoder." in name for name in found) == (source == "visual_pooled")
    model(tiny_batch()).sum().backward()
    assert all(p.grad is not None for module in found.values() for p in module.up.parameters())


def test_split_maps_follow_each_tasks_routing():
    routing = {"function": {TASKS[0]: "mm1", TASKS[1]: "none"}}
    for name, site in sites(tiny_model("parallel_adapter", routing, mapping="split", sharing="per_task")).items():
        routed = {"text", "image"} if ".decoder." in name else {"text"}
        assert {task: set(maps) for task, maps in site.down.items()} == {TASKS[0]: routed, TASKS[1]: {"text"}}
        inner = site.down[TASKS[0]]["text"]
        assert [tuple(one.weight.shape) for one in inner] == [(4, 16), (16, 4)]
        assert all(one.bias is not None for one in inner)


@pytest.mark.parametrize(
    ("mapping", "routing", "each"), [("shared", {"function": "mm1"}, 197_504), ("cross_attention", UNPOOLED, 394_368)]
)
def test_counts_of_one_place_of_gpt2(mapping, routing, each):
    """12 attending adapters are 4,732,416: the published 4.732M (Table 5). With one map they are 2,370,048."""
    with torch.device("meta"):
        maps = {"first": nn.Linear(768, 3072), "last": nn.Linear(3072, 768), "norm": nn.LayerNorm(768)}
        lm = nn.ModuleDict(maps).requires_grad_(False)
        described = [("first", "ffn_in", 768, 3072), ("last", "ffn_out", 3072, 768), ("norm", "norm", 768, 768)]
        first, last, norm = (Site(name, "decoder", 0, "ffn", role, *widths) for name, role, *widths in described)
        config = ParallelAdapterConfig(name="parallel_adapter", rank=128, mapping=mapping, train_layer_norms="none")
        context = Context(TASKS, RoutingConfig(**routing))
        ParallelAdapter(config, context, Layout(lm, [first, last], [norm], 0.02)).install()
    assert sum(p.numel() for p in lm.parameters() if p.requires_grad) == each


@pytest.mark.parametrize(
    ("name", "count"), [("parallel_adapter", 7_557_120), ("parallel_adapter_cross_attention", 8_730_624)]
)
def test_counts_on_clip_bart(name, count):
    assert parameter_report(load_config(PARAMETERS / f"{name}.yaml"))["trainable"] == count


@pytest.mark.parametrize(
    ("settings", "routing", "said"),
    [
        ({"mapping": "split", "rank": 10}, {"function": "mm1"}, "a quarter of it, and 10 is not divisible by 4"),
        (
            {"mapping": "cross_attention", "heads": 3},
            UNPOOLED,
            "method.heads: 3 does not divide the attention's width, 16",
        ),
        ({"mapping": "cross_attention"}, {"pool": "text"}, 'routing.pool: .* "text" averages them into one'),
        ({"mapping": "cross_attention"}, UNPOOLED | {"function": "mm1"}, "routing.function: .* set it to none"),
    ],
)
def test_what_cannot_be_is_refused(settings, routing, said):
    with pytest.raises(InputError, match=said):
        tiny_model("parallel_adapter", routing, **settings)


def test_it_takes_the_place_of_other_adapters():
    one, two = tiny_config("adapter"), tiny_config("parallel_adapter")
    with pytest.raises(InputError, match="adapter and parallel_adapter take the same place"):
        build_model(one.model_copy(update={"method": [*one.method, *two.method]}))


@pytest.mark.parametrize("order", [("parallel_adapter", "lora"), ("lora", "parallel_adapter")])
def test_beside_lora_on_the_maps_it_listens_to(order):
    """Whichever is installed first, the adapter reads the sublayer's input and not what LoRA's dropout leaves of it."""
    one, two = tiny_config(order[0]), tiny_config(order[1])
    model = shaken(build_model(one.model_copy(update={"method": [*one.method, *two.method]})).eval())
    stream = "model.encoder.layers.1.self_attn"
    taken = []
    site = model.lm.get_submodule(f"{stream}.out_proj")
    site.down.register_forward_pre_hook(lambda module, given: taken.append(given[0].detach()))
    model.train()
    seen = traced(model, [f"{stream}.q_proj"])
    assert torch.equal(taken[0], seen[f"{stream}.q_proj"][0])
