"""Does one routed layer give the recorded numbers: an adapter or a LoRA map alone, with x_R given."""

from __future__ import annotations

import torch
from torch import nn

from multitask_vl.config.schema import RoutingConfig
from multitask_vl.methods.adapter import Adapter, AdapterConfig, AdapterSite
from multitask_vl.methods.lora import LoraConfig, LoraSite
from multitask_vl.methods.sites import EVERY_TASK, Layout, Site
from multitask_vl.routing.context import Context
from tests.golden.fixture import Fixture, NotUnderstood, Report

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


def run_layer(fixture: Fixture) -> Report:
    """Output, and where recorded the gradients of sum(y^2)."""
    tensors, about = fixture.tensors, fixture.meta
    formula = about["routing"].split(" (")[0]
    if formula not in FORMULAS:
        raise NotUnderstood(f"routing {about['routing']!r}")
    context = Context(("task",), RoutingConfig(function=FORMULAS[formula]))
    if tensors.keys() >= ADAPTER:
        layer = _adapter(tensors, context)
        own = {"W_down": layer.down[EVERY_TASK].weight, "b_down": layer.down[EVERY_TASK].bias}
        own |= {"W_up": layer.up[EVERY_TASK].weight, "b_up": layer.up[EVERY_TASK].bias}
    elif tensors.keys() >= LORA and tensors["A"].shape[0] == tensors["B"].shape[1]:
        layer = _lora(tensors, about, context)
        own = {"A": layer.A[EVERY_TASK].weight, "B": layer.B[EVERY_TASK].weight}
        own |= {"weight": layer.base.weight, "bias": layer.base.bias}
    else:
        raise NotUnderstood(f"layer: {about['module']}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    own |= {name: tensors[name].clone().requires_grad_() for name in ("x_h", "x_r")}
    report = Report()
    with context.of("task"):
        context.put("decoder", own["x_r"])
        y = layer(own["x_h"])
    report.close("y", y, tensors["y"])
    y.square().sum().backward()
    for name, value in tensors.items():
        if name.startswith("grad_"):
            gradient = own[name.removeprefix("grad_")].grad
            report.close(name, torch.zeros_like(value) if gradient is None else gradient, value)
    return report


def _adapter(tensors: dict[str, torch.Tensor], context: Context) -> AdapterSite:
    rank, width = tensors["W_down"].shape
    site = Site("layer", "decoder", 0, "ffn", "ffn_out", width, width)
    config = AdapterConfig(name="adapter", rank=rank)
    method = Adapter(config, context, Layout(nn.Module(), (), (), None))
    return AdapterSite(nn.Identity(), site, config, context, method.maker)


def _lora(tensors: dict[str, torch.Tensor], about: dict, context: Context) -> LoraSite:
    d_out, d_in = tensors["weight"].shape
    rank = tensors["A"].shape[0]
    site = Site("layer", "decoder", 0, "self_attn", "query", d_in, d_out)
    config = LoraConfig(name="lora", rank=rank, alpha=about.get("alpha", 2 * rank))
    return LoraSite(nn.Linear(d_in, d_out), site, config, context).eval()
