"""Which method made a file, and which of our tensors is which of the source's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from multitask_vl.config.schema import MethodConfig
from multitask_vl.methods.adapter import AdapterConfig
from multitask_vl.methods.lora import LoraConfig
from multitask_vl.methods.sites import EVERY_TASK
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests.golden.fixture import Fixture, NotUnderstood

VISUAL = {
    "feat_embedding.0": "project",
    "feat_embedding.1": "project_norm",
    "absolute_vis_pos_embedding.0": "box",
    "absolute_vis_pos_embedding.1": "box_norm",
    "img_order_embedding": "image_order",
}
ADAPTED = {
    ("encoder", "attn"): "self_attn.out_proj",
    ("encoder", "ff"): "fc2",
    ("decoder", "self_attn"): "self_attn.out_proj",
    ("decoder", "enc_attn"): "encoder_attn.out_proj",
    ("decoder", "ff"): "fc2",
}
ADAPTER = re.compile(
    r"model\.(?P<stack>encoder|decoder)\.layers\.(?P<layer>\d+)\.(?P<place>\w+)_adapter\."
    r"(?:adapters\.(?P<task>\w+)\.(?P<half>down|up)_sampler|(?P<norm>pre|post)_(?:layer_)?norm)"
    r"\.(?P<kind>weight|bias)"
)
LORA = re.compile(r"(?P<site>model\..*_proj)\.lora_(?P<half>A|B)s\.(?P<task>\w+)")


def tasks_of(fixture: Fixture) -> list[str]:
    """Tasks of the source's run, in its order."""
    named = fixture.argument("tasks", "")
    tasks = [task for task in named.split(",") if task]
    found = [task for name in (*fixture.weights, *fixture.aliases) for task in _task(name)]
    ran = [*fixture.meta.get("task_of_step", []), *(name.split("/")[0] for name in fixture.under("output"))]
    return list(dict.fromkeys([*tasks, *found, *(task for task in ran if task.isidentifier())]))


def methods_of(fixture: Fixture) -> list[MethodConfig]:
    """The method that has these tensors and trains these names."""
    stored, trained = fixture.weights, fixture.meta["trainable"]
    every = (*stored, *fixture.aliases)
    downs = [name for name in stored if name.endswith("down_sampler.weight")]
    loras = [name for name in stored if ".lora_As." in name]
    norms = any(name.endswith("_attn_layer_norm.weight") for name in trained)
    biases = any(name.endswith("fc1.bias") for name in trained)
    methods: list[MethodConfig] = []
    if downs:
        own_down, own_up = _own(downs), _own(name for name in stored if name.endswith("up_sampler.weight"))
        sharing = {(False, False): "single", (True, True): "per_task", (True, False): "shared_up"}
        methods.append(
            AdapterConfig(
                name="adapter",
                rank=stored[downs[0]].shape[0],
                sharing=sharing.get((own_down, own_up), "shared_down"),
                train_layer_norms="all" if norms else "none",
                pre_norm=any(re.search(r"_adapter\.pre_(layer_)?norm", name) for name in every),
                post_norm=any(re.search(r"_adapter\.post_(layer_)?norm", name) for name in every),
            )
        )
    if loras:
        methods.append(
            LoraConfig(
                name="lora",
                rank=stored[loras[0]].shape[0],
                alpha=float(fixture.argument("lora_alpha", _flag(fixture, "lora_alpha", 32))),
                sharing="per_task" if _own(loras) else "single",
                biases="all" if biases else "none",
            )
        )
    if not methods:
        whole = "model.shared.weight" in trained
        methods.append(MethodConfig(name="full" if whole else "bitfit" if biases else "frozen"))
    return methods


def ours(model: VLSeq2Seq, name: str) -> str:
    """Our name of the tensor that the source calls ``name``; NotUnderstood if we have none."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for candidate in _candidates(name):
        if candidate in known:
            return _first_name(model, known[candidate])
    raise NotUnderstood(f"tensor {name} belongs to no method of this version")


def load_weights(model: VLSeq2Seq, fixture: Fixture) -> None:
    """Put the recorded weights in; every tensor on both sides must find its partner."""
    parameters = dict(model.named_parameters())
    filled: dict[str, str] = {}
    with torch.no_grad():
        for name, value in fixture.weights.items():
            own = ours(model, name)
            if own in filled:
                raise NotUnderstood(f"{name} and {filled[own]} are two tensors there, and one here ({own})")
            if parameters[own].shape != value.shape:
                raise NotUnderstood(f"{name} is {list(value.shape)} there and {list(parameters[own].shape)} here")
            parameters[own].copy_(value)
            filled[own] = name
    if left := [name for name in parameters if name not in filled]:
        raise NotUnderstood(f"nothing recorded for {len(left)} of our tensors (first: {left[0]})")
    for alias, stored in fixture.aliases.items():
        if not alias.endswith("obj_order_embedding.weight") and ours(model, alias) != ours(model, stored):
            raise NotUnderstood(f"{alias} and {stored} are one tensor there, and two here")


def _candidates(name: str) -> Iterator[str]:
    prefix, visual = "model.encoder.visual_embedding.", name.removeprefix("model.encoder.visual_embedding.")
    if name.startswith(prefix):
        part, _, kind = visual.rpartition(".")
        if part in VISUAL:
            yield f"visual.{VISUAL[part]}.{kind}"
    elif match := ADAPTER.fullmatch(name):
        leaf = ADAPTED.get((match["stack"], match["place"]))
        site = f"lm.model.{match['stack']}.layers.{match['layer']}.{leaf}"
        if match["norm"]:
            yield f"{site}.{match['norm']}_norm.{match['kind']}"
        else:
            for task in (match["task"], EVERY_TASK):
                yield f"{site}.{match['half']}.{task}.{match['kind']}"
    elif match := LORA.fullmatch(name):
        for task in (match["task"], EVERY_TASK):
            yield f"lm.{match['site']}.{match['half']}.{task}.weight"
    else:
        parent, _, kind = name.rpartition(".")
        # two methods on one site wrap twice
        yield from (f"lm.{parent}.{depth}{kind}" for depth in ("", "base.", "base.base."))


def _first_name(model: VLSeq2Seq, parameter: nn.Parameter) -> str:
    return next(name for name, other in model.named_parameters() if other is parameter)


def _task(name: str) -> list[str]:
    match = ADAPTER.fullmatch(name) or LORA.fullmatch(name)
    return [match["task"]] if match and match["task"] else []


def _own(names: Iterable[str]) -> bool:
    """Whether tasks have their own: more than one stored tensor at the same place."""
    return len({task for name in names for task in _task(name)}) > 1


def _flag(fixture: Fixture, name: str, default: float) -> float:
    found = re.search(rf"--{name}[ =]([\d.]+)", fixture.meta.get("flags", ""))
    return float(found[1]) if found else default
