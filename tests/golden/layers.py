"""Comparison of single routed layers: an adapter or a LoRA layer, with x_R given."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.methods.adapter import Adapter, AdapterConfig, AdapterSite
from multitask_vl.methods.lora import LoraConfig, LoraSite
from multitask_vl.methods.sites import EVERY_TASK, Site, SiteIndex
from multitask_vl.routing.context import Context
from tests.golden.fixture import Fixture, Report, UnsupportedFile

FORMULAS = {
    "no routing": "none",
    "x_t * x_v": "mul",
    "x_t + x_v": "add",
    "x_t x_v^T x_v": "mm1",
    "x_t x''_v": "mm2",
    "ReLU(x_t) ReLU(x_v)^T x_v": "mm1_relu",
}
ADAPTER = {"W_down", "b_down", "W_up", "b_up"}
LORA = {"weight", "bias", "A", "B"}
SPLIT = {"lora_A_text.weight", "lora_A_text_up.weight", "lora_A_img.weight", "lora_A_img_up.weight", "lora_B"}
ATTENTION = {
    "lora_A_text.weight": "query.0",
    "lora_A_text_query.weight": "query.1",
    "lora_A_img.weight": "image",
    "lora_A_img_key.weight": "key",
    "lora_A_img_value.weight": "value",
    "lora_A_attn_out.weight": "out.0",
    "lora_A_query_up.weight": "out.1",
}
"""Names in the source -> names inside our A."""
ADAPTED = {1: ("query",), 2: ("query", "value"), 3: ("query", "key", "value")}
"""Number of adapted parts of a fused q|k|v layer -> the parts; the source adapts q and v."""


def run_layer(fixture: Fixture) -> Report:
    """Compare the output and, where recorded, the gradients of sum(y^2)."""
    tensors, about = fixture.tensors, fixture.meta
    formula = about.get("routing", "no routing").split(" (")[0]
    if formula not in FORMULAS:
        raise UnsupportedFile(f"routing {about['routing']!r}")
    layer, context, own = _layer(tensors, about, FORMULAS[formula])
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    own |= {name: tensors[name].clone().requires_grad_() for name in ("x_h", "x_r")}
    report = Report()
    with context.task_scope("task"):
        context.set_x_r("decoder", own["x_r"])
        y = layer(own["x_h"])
    report.close("y", y, tensors["y"])
    y.square().sum().backward()
    for name, value in tensors.items():
        if name.startswith("grad_") and name.removeprefix("grad_") in own:
            gradient = own[name.removeprefix("grad_")].grad
            report.close(name, torch.zeros_like(value) if gradient is None else gradient, value)
        elif name not in own and name != "y":
            report.ignored.append(name)
    return report


def _layer(
    tensors: dict[str, torch.Tensor], about: dict[str, Any], function: str
) -> tuple[nn.Module, Context, dict[str, nn.Parameter]]:
    """The layer of a file, its context, and its parameters by the names of the recorded tensors."""
    context = Context(("task",), RoutingConfig(function=function))
    if tensors.keys() >= ADAPTER:
        layer = _adapter(tensors, context)
        own = {"W_down": layer.down[EVERY_TASK].weight, "b_down": layer.down[EVERY_TASK].bias}
        return layer, context, own | {"W_up": layer.up[EVERY_TASK].weight, "b_up": layer.up[EVERY_TASK].bias}
    if tensors.keys() >= LORA:
        layer = _lora(tensors, about, context, tensors["B"], len(tensors["A"]), mapping="shared")
        own = {"A": layer.A[EVERY_TASK].weight, "B": layer.B[EVERY_TASK].weight}
        return layer, context, own | {"weight": layer.base.weight, "bias": layer.base.bias}
    if tensors.keys() >= SPLIT:
        rank = len(tensors["lora_A_text_up.weight"])
        layer = _lora(tensors, about, context, tensors["lora_B"], rank, mapping="split")
        own = {"lora_B": layer.B[EVERY_TASK].weight}
        for which in layer.A[EVERY_TASK]:
            source = {"text": "text", "image": "img"}[which]
            into, up = layer.A[EVERY_TASK][which]
            own |= {f"lora_A_{source}.weight": into.weight, f"lora_A_{source}_up.weight": up.weight}
        return _update_alone(layer), context, own
    if tensors.keys() >= {*ATTENTION, "lora_B"} and (heads := re.search(r"(\d+)-head", about["module"])):
        context = Context(("task",), RoutingConfig(pooling="none"))
        rank = len(tensors["lora_A_query_up.weight"])
        layer = _lora(tensors, about, context, tensors["lora_B"], rank, mapping="cross_attention", heads=int(heads[1]))
        attention = layer.A[EVERY_TASK]
        own = {name: attention.get_submodule(ours).weight for name, ours in ATTENTION.items()}
        return _update_alone(layer), context, own | {"lora_B": layer.B[EVERY_TASK].weight}
    raise UnsupportedFile(f"layer: {about['module']}")


def _adapter(tensors: dict[str, torch.Tensor], context: Context) -> AdapterSite:
    rank, width = tensors["W_down"].shape
    site = Site("layer", "decoder", 0, "ffn", "ffn_out", width, width)
    config = AdapterConfig(name="adapter", rank=rank)
    method = Adapter(config, context, SiteIndex(nn.Module(), (), (), None))
    return AdapterSite(nn.Identity(), site, config, context, method.projection_factory)


def _lora(
    tensors: dict[str, torch.Tensor], about: dict[str, Any], context: Context, b: torch.Tensor, rank: int, **settings
) -> LoraSite:
    """A linear layer with LoRA; it is a fused q|k|v layer if ``rank`` is a multiple of B's columns."""
    d_in, d_out, (rows, r) = tensors["x_h"].shape[-1], tensors["y"].shape[-1], b.shape
    parts = rank // r
    fused = parts > 1 or rows < d_out
    if rank % r or parts not in ADAPTED or rows != (parts * d_out // 3 if fused else d_out):
        raise UnsupportedFile(f"B {list(b.shape)} with a bottleneck of {rank} and {d_out} outputs")
    site = Site("layer", "decoder", 0, "self_attn", "query_key_value" if fused else "query", d_in, d_out)
    alpha_text = re.search(r"alpha(/r)? = ([\d.]+)(r?)", about["module"])
    alpha = float(alpha_text[2]) * (r if alpha_text[1] or alpha_text[3] else 1) if alpha_text else r
    config = LoraConfig(name="lora", rank=r, alpha=about.get("alpha", alpha), **settings)
    return LoraSite(nn.Linear(d_in, d_out), site, config, context, ADAPTED[parts]).eval()


def _update_alone(layer: LoraSite) -> LoraSite:
    """The layer with a zero base, since these files record the update only."""
    nn.init.zeros_(layer.base.weight)
    nn.init.zeros_(layer.base.bias)
    return layer
