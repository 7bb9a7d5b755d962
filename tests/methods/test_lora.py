"""LoRA on fused projections and with split or cross-attention down-projections: formulas, counts, merging, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.down_projections import RoutingAttention
from multitask_vl.methods.lora import Lora, LoraConfig, LoraSite
from multitask_vl.methods.sites import EVERY_TASK, Site, SiteIndex
from multitask_vl.models.build import build_model
from multitask_vl.routing.context import Context
from tests.golden.__main__ import run
from tests.tiny_models import TASKS, perturb, tiny_batch, tiny_config, tiny_model

UNPOOLED = {"pooling": "none"}


def fused(d: int = 12, routing: dict | None = None, like: type = nn.Linear, **settings) -> tuple[Lora, nn.Module]:
    """Perturbed LoRA on a decoder that consists of one fused q|k|v projection, and the bare projection."""
    torch.manual_seed(4)
    base = Conv1D(3 * d, d) if like is Conv1D else nn.Linear(d, 3 * d)
    lm = nn.ModuleDict({"qkv": base.requires_grad_(False)})
    site = Site("qkv", "decoder", 0, "self_attn", "query_key_value", d, 3 * d)
    context = Context(TASKS, RoutingConfig(**(routing or {})))
    config = LoraConfig(**{"name": "lora", "rank": 8, "dropout": 0.0, "biases": "none"} | settings)
    method = Lora(config, context, SiteIndex(lm, [site], [], None))
    bare = copy.deepcopy(base)
    method.install()
    with torch.no_grad():
        for parameter in method.new_parameters:
            parameter += 0.3 * torch.randn(parameter.shape)
    return method, bare


def call(method: Lora, x: torch.Tensor, x_r: torch.Tensor, task: str = TASKS[0]) -> torch.Tensor:
    with method.context.task_scope(task):
        method.context.set_x_r("decoder", x_r)
        return method.site_index.lm["qkv"](x)


@pytest.mark.parametrize(
    ("settings", "routing", "each"),
    [
        ({"biases": "targets"}, {"function": "mm1"}, 395_520),
        ({"biases": "targets", "share_fused_bottleneck": False}, {"function": "mm1"}, 395_520),
        ({"mapping": "split"}, {"function": "mm1"}, 327_680),
        (
            {"mapping": "split", "share_fused_bottleneck": False},
            {"function": "mm1"},
            2 * (2 * (768 * 32 + 32 * 128) + 128 * 768),
        ),
        ({"mapping": "cross_attention"}, UNPOOLED, 327_680),
    ],
)
def test_parameter_count_of_gpt2_layer(settings, routing, each):
    """12 layers have 4,746,240 (bias trained) and 3,932,160: the published 4.746M and 3.932M (Table 5)."""
    with torch.device("meta"):
        method, _ = fused(768, routing, rank=128, **settings)
    assert sum(p.numel() for p in method.site_index.lm.parameters() if p.requires_grad) == each


@pytest.mark.parametrize("function", ["none", "mul", "mm1", "mm2"])
def test_shared_fused_bottleneck_differs_only_where_routing_mixes(function):
    """Not shared, it equals LoRA on three separate projections of which two have an update."""
    separate, bare = fused(routing={"function": function}, share_fused_bottleneck=False)
    shared, _ = fused(routing={"function": function})
    outer = separate.site_index.lm["qkv"]
    value, query, common = outer, outer.base, shared.site_index.lm["qkv"]
    with torch.no_grad():
        for half in "AB":
            parts = [getattr(one, half)[EVERY_TASK].weight for one in (query, value)]
            getattr(common, half)[EVERY_TASK].weight.copy_(torch.cat(parts))
    x, x_r = torch.randn(2, 5, 12), torch.randn(2, 1, 12)
    outputs = []
    for i, one in enumerate((query, None, value)):
        linear = nn.Linear(12, 12)
        linear.load_state_dict({"weight": bare.weight[12 * i : 12 * i + 12], "bias": bare.bias[12 * i : 12 * i + 12]})
        if one is not None:
            site = Site("projection", "decoder", 0, "self_attn", "query", 12, 12)
            linear = LoraSite(linear, site, separate.config, separate.context, ["query"])
            linear.A.load_state_dict(one.A.state_dict())
            linear.B.load_state_dict(one.B.state_dict())
        with separate.context.task_scope(TASKS[0]):
            separate.context.set_x_r("decoder", x_r)
            outputs.append(linear(x))
    expected = torch.cat(outputs, -1)
    torch.testing.assert_close(call(separate, x, x_r), expected)
    mixes = function in ("mm1", "mm2")
    assert torch.allclose(call(shared, x, x_r), expected, atol=1e-5) == (not mixes)


@pytest.mark.parametrize("targets", [("value",), ("key", "query")])
def test_fused_update_changes_target_parts_only(targets):
    method, bare = fused(targets=targets)
    x = torch.randn(2, 5, 12)
    changed = [
        not torch.equal(*pair) for pair in zip(call(method, x, x).chunk(3, -1), bare(x).chunk(3, -1), strict=True)
    ]
    assert changed == ["query" in targets, "key" in targets, "value" in targets]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("like", [nn.Linear, Conv1D])
def test_merged_fused_projection_is_the_same_function(like, share):
    method, bare = fused(like=like, share_fused_bottleneck=share)
    x = torch.randn(2, 5, 12)
    before = call(method, x, x)
    assert method.merge_blocker() is None
    method.merge()
    assert type(method.site_index.lm["qkv"]) is like
    assert not torch.allclose(before, bare(x), atol=1e-2)
    torch.testing.assert_close(method.site_index.lm["qkv"](x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_routing_attention_matches_formula_and_masks_rows(heads):
    torch.manual_seed(0)
    projections = [nn.Linear(10, 6) for _ in range(3)]
    attention = RoutingAttention(*projections, heads)
    x, x_r = torch.randn(2, 4, 10), torch.randn(2, 5, 10)
    valid = torch.tensor([[True] * 5, [True, False, True, False, False]])
    output = attention(x, x_r, valid)
    for row in range(2):
        q, k, v = (
            one(rows)
            for one, rows in zip(projections, (x[row], x_r[row][valid[row]], x_r[row][valid[row]]), strict=True)
        )
        parts = [
            F.softmax(a @ b.T * (6 / heads) ** -0.5, -1) @ c
            for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
        ]
        torch.testing.assert_close(output[row], torch.cat(parts, -1))
    assert torch.equal(attention(x[:1], x_r[:1], None), attention(x[:1], x_r[:1], valid[:1]))


def lora_sites(model) -> dict[str, LoraSite]:
    return {name: module for name, module in model.lm.named_modules() if isinstance(module, LoraSite)}


@pytest.mark.parametrize(("source", "stacks"), [("encoder", {"decoder"}), ("visual", {"encoder", "decoder"})])
def test_cross_attention_updates_follow_x_r(source, stacks):
    model = tiny_model("lora", UNPOOLED | {"source": source}, mapping="cross_attention")
    assert {name.split(".")[1] for name in lora_sites(model)} == stacks


def test_split_projections_follow_routing_of_each_task():
    routing = {"function": {TASKS[0]: "mm1", TASKS[1]: "none"}}
    model = tiny_model("lora", routing, mapping="split", sharing="per_task")
    for name, module in lora_sites(model).items():
        own = {task: set(downs) for task, downs in module.A.items()}
        routed = {"text", "image"} if ".decoder." in name else {"text"}
        assert own == {TASKS[0]: routed, TASKS[1]: {"text"}}
    for task in TASKS:
        model(tiny_batch(task)).sum().backward()
    assert all(p.grad is not None for p in model.trainable_parameters().values())


def test_tensor_names_of_plain_lora():
    names = set(lora_sites(tiny_model("lora"))["model.encoder.layers.0.self_attn.q_proj"].state_dict())
    assert names == {"base.weight", "base.bias", "A.every_task.weight", "B.every_task.weight"}


@pytest.mark.parametrize(("biases", "trained"), [("none", set()), ("targets", {"q_proj", "v_proj"})])
def test_biases_of_targets_only(biases, trained):
    model = tiny_model("lora", biases=biases)
    names = [name for name in model.trainable_parameters() if name.startswith("lm.") and name.endswith("bias")]
    assert {name.split(".")[-3] for name in names} == trained
    assert len(names) == len(trained) * 6


@pytest.mark.parametrize(
    ("settings", "routing", "message"),
    [
        (
            {"mapping": "split", "rank": 6},
            {},
            'method.rank: mapping "split" has an inner width of rank / 4, and 6 is not',
        ),
        ({"mapping": "cross_attention", "rank": 10}, UNPOOLED, "and 10 is not divisible by 4; set it to 12"),
        (
            {"mapping": "cross_attention", "heads": 3},
            UNPOOLED,
            "method.heads: 3 does not divide the attention's width, 4",
        ),
        ({"mapping": "cross_attention"}, {}, 'routing.pooling: .* "mean" averages them into one'),
        ({"mapping": "cross_attention"}, UNPOOLED | {"function": "mm1"}, "routing.function: .* set it to none"),
        (
            {"targets": ["ffn_gate", "query"]},
            {},
            r"no linear layer of role ffn_gate \(it has: query, key, value, output, ffn_in",
        ),
    ],
)
def test_invalid_settings_are_rejected(settings, routing, message):
    with pytest.raises(InputError, match=message):
        tiny_model("lora", routing, **settings)


def test_fused_projection_has_three_roles():
    method, _ = fused()
    assert method.site_index.roles() == ["query", "key", "value"]
    with pytest.raises(InputError, match="no linear layer of role output"):
        fused(targets=("query", "output"))


@pytest.mark.parametrize(
    ("settings", "routing", "reason"),
    [
        ({"mapping": "cross_attention"}, UNPOOLED, "cross-attention LoRA cannot be merged: .* depends on the sample"),
        ({"mapping": "split"}, {"function": "mm1"}, "routed LoRA cannot be merged"),
        ({"mapping": "split"}, {}, "split LoRA cannot be merged"),
    ],
)
def test_other_mappings_reject_merging(settings, routing, reason):
    with pytest.raises(InputError, match=reason):
        tiny_model("lora", routing, **settings).merge()


def test_cross_attention_lora_combines_with_adapter():
    one, two = tiny_config("adapter", UNPOOLED), tiny_config("lora", mapping="cross_attention")
    both = one.model_copy(update={"method": [*one.method, *two.method]})
    model = perturb(build_model(both).eval())
    assert torch.isfinite(model(tiny_batch())).all()


class TestRecordedLayers:
    """The golden runner on files of other sizes and functions, computed from the formulas here."""

    def record(self, path: Path, module: str, y: torch.Tensor, routing: str | None, **tensors: torch.Tensor) -> Path:
        about = {"module": module} | ({"routing": routing} if routing else {})
        tensors = {name.replace("__", "."): value.contiguous() for name, value in (tensors | {"y": y}).items()}
        save_file(tensors, path, {"about": json.dumps(about)})
        return path

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) / 3

    @pytest.fixture(autouse=True)
    def set_seed(self):
        self.generator = torch.Generator().manual_seed(6)

    def fused_update(self, z: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        q, v = (part @ rows.T for part, rows in zip(z.chunk(2, -1), b.chunk(2), strict=True))
        return torch.cat([q, torch.zeros_like(q), v], -1)

    def test_fused(self, tmp_path):
        d, r = 20, 6
        t = {"weight": self.random(3 * d, d), "bias": self.random(3 * d), "A": self.random(2 * r, d)}
        t |= {"B": self.random(2 * d, r), "x_h": self.random(2, 3, d), "x_r": self.random(2, 4, d)}
        left, right = t["x_h"] @ t["A"].T, t["x_r"] @ t["A"].T
        y = t["x_h"] @ t["weight"].T + t["bias"] + 2 * self.fused_update(left @ right.transpose(1, 2) @ right, t["B"])
        report = run(self.record(tmp_path / "f.safetensors", "fused; scaling alpha/r = 2;", y, "x_t x_v^T x_v", **t))
        assert report.failures == []
        report = run(self.record(tmp_path / "f.safetensors", "fused; alpha/r = 1", y, "x_t x_v^T x_v", **t))
        assert report.failures

    @pytest.mark.parametrize("routing", ["no routing", "x_t * x_v", "x_t + x_v"])
    def test_split(self, tmp_path, routing):
        d, r = 20, 8
        t = {"x_h": self.random(2, 3, d), "x_r": self.random(2, 1, d), "lora_B": self.random(2 * d, r)}
        for which in ("text", "img"):
            t |= {
                f"lora_A_{which}__weight": self.random(r // 2, d),
                f"lora_A_{which}_up__weight": self.random(2 * r, r // 2),
            }
        left = t["x_h"] @ t["lora_A_text__weight"].T @ t["lora_A_text_up__weight"].T
        right = t["x_r"] @ t["lora_A_img__weight"].T @ t["lora_A_img_up__weight"].T
        z = {"no routing": left, "x_t * x_v": left * right, "x_t + x_v": left + right}[routing]
        report = run(self.record(tmp_path / "s.safetensors", "split", self.fused_update(z, t["lora_B"]), routing, **t))
        assert report.failures == []

    def test_cross_attention_with_other_heads(self, tmp_path):
        d, r, w = 20, 8, 4
        t = {"x_h": self.random(2, 3, d), "x_r": self.random(2, 7, d), "lora_B": self.random(2 * d, r)}
        t |= {f"lora_A_{which}__weight": self.random(w, d) for which in ("text", "img")}
        t |= {f"lora_A_{one}__weight": self.random(w, w) for one in ("text_query", "img_key", "img_value", "attn_out")}
        t["lora_A_query_up__weight"] = self.random(2 * r, w)
        q = t["x_h"] @ t["lora_A_text__weight"].T @ t["lora_A_text_query__weight"].T
        seen = t["x_r"] @ t["lora_A_img__weight"].T
        k, v = (seen @ t[f"lora_A_img_{one}__weight"].T for one in ("key", "value"))
        heads = [
            F.softmax(a @ b.transpose(1, 2) / 2**0.5, -1) @ c
            for a, b, c in zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
        ]
        z = torch.cat(heads, -1) @ t["lora_A_attn_out__weight"].T @ t["lora_A_query_up__weight"].T
        y = self.fused_update(z, t["lora_B"])
        assert run(self.record(tmp_path / "c.safetensors", "2-head cross-attention", y, None, **t)).failures == []
        assert run(self.record(tmp_path / "c.safetensors", "4-head cross-attention", y, None, **t)).failures
