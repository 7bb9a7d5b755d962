"""What do the formulas of the published VL-PET give on either backbone: hooks on whole sublayers of the bare model.

It knows nothing of the project's method: a sublayer's input and output are read where the library has them, and changed
by functions over a dictionary of tensors by the source's names, written from the formulas in the recorded metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests.golden.fixture import Fixture
from tests.golden.models import build, make_batch, reduced
from tests.golden.names import ours

MARKS = ("_adapter_multihead_", "_adapter_gating_", "_parallel_adapter.")
"""In the names of all that VL-PET adds."""
GATES = {
    "large": {"large_x_down.weight": (12, 64), "large_x_down.bias": (12,), "large_x_up.weight": (64, 12)}
    | {"large_x_up.bias": (64,)},
    "middleX": {"middle_xy_add.weight": (1, 64), "middle_xy_add.bias": (1,)},
    "middleY": {"middle_ia3_add": (64,)},
    "small": {"small_xy_cat.weight": (1, 128), "small_xy_cat.bias": (1,)},
    "none": {},
}
"""Granularity -> endings and shapes of a gate's tensors, for recorded files of width 64."""


class Sublayers:
    """The bare backbone with a file's weights, and VL-PET's formulas on its sublayers.

    Args:
        fixture: a file of VL-PET's, in eval mode.
        scale: on what the gates let through.
    """

    def __init__(self, fixture: Fixture, scale: float):
        added = {name for name in (*fixture.weights, *fixture.aliases) if any(mark in name for mark in MARKS)}
        self.weights = {name: value.clone() for name, value in fixture.weights.items() if name in added}
        self.scale = scale
        kept = {name: value for name, value in fixture.tensors.items() if name.removeprefix("weight/") not in added}
        aliases = {alias: name for alias, name in fixture.aliases.items() if alias not in added}
        meta = fixture.meta | {"aliases": aliases, "trainable": []}
        self.model = build(Fixture(fixture.path, meta, kept), meta["config"])
        if meta["config"].get("model_type") == "t5":
            self._hook_t5()
        else:
            self._hook_bart()

    def tensor(self, name: str) -> torch.Tensor:
        """What the source calls ``name``."""
        if name in self.weights:
            return self.weights[name]
        return dict(self.model.named_parameters())[ours(self.model, name)]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b``."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def gated(self, holder: str, place: str, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """What a sublayer that reads ``x`` and computes ``h`` gives."""
        name, heads = f"{holder}.{place}_adapter_multihead", []
        while f"{name}_down.{len(heads)}.weight" in self.weights:
            heads.append(self.linear(f"{name}_down.{len(heads)}", h))
        y = h + self.linear(f"{name}_up", _gelu(torch.cat(heads, -1)))
        gate = f"{holder}.encoder_{place}_adapter_gating"
        if f"{gate}_large_x_up.weight" in self.weights:
            inner = _gelu(self.linear(f"{gate}_large_x_down", x))
            y = y * _sigmoid(self.linear(f"{gate}_large_x_up", inner))
        elif f"{gate}_middle_xy_add.weight" in self.weights:
            y = y * _sigmoid(self.linear(f"{gate}_middle_xy_add", x + y))
        elif f"{gate}_middle_ia3_add" in self.weights:
            y = y + y * self.weights[f"{gate}_middle_ia3_add"]
        elif f"{gate}_small_xy_cat.weight" in self.weights:
            y = y * _sigmoid(self.linear(f"{gate}_small_xy_cat", torch.cat([x, y], -1))).mean(1, keepdim=True)
        return y * self.scale

    def _value(self, holder: str, module, args: tuple, v: torch.Tensor) -> torch.Tensor:
        name = f"{holder}.attn_value_parallel_adapter.adapters.vqa"
        return v + self.linear(f"{name}.up_sampler", _gelu(self.linear(f"{name}.down_sampler", args[0])))

    def _hook_bart(self) -> None:
        entered = {}

        def attention(holder, module, args, result):
            return self.gated(holder, "attn", args[0], result[0]), *result[1:]

        def note(holder, module, args):
            entered[holder] = args[0]

        def inner(holder, module, args, result):
            return self.gated(holder, "ff", entered[holder], result)

        for i, layer in enumerate(self.model.lm.model.encoder.layers):
            holder = f"model.encoder.layers.{i}"
            layer.self_attn.register_forward_hook(partial(attention, holder))
            layer.fc1.register_forward_pre_hook(partial(note, holder))
            layer.fc2.register_forward_hook(partial(inner, holder))
        for i, layer in enumerate(self.model.lm.model.decoder.layers):
            hook = partial(self._value, f"model.decoder.layers.{i}.encoder_attn")
            layer.encoder_attn.v_proj.register_forward_hook(hook)

    def _hook_t5(self) -> None:
        def attention(holder, module, args, result):
            x = args[0]
            return x + self.gated(holder, "attn", x, result[0] - x), *result[1:]

        def inner(holder, module, args, result):
            return args[0] + self.gated(holder, "ff", args[0], result - args[0])

        for i, block in enumerate(self.model.lm.encoder.block):
            for number, hook in enumerate((attention, inner)):
                block.layer[number].register_forward_hook(partial(hook, f"encoder.block.{i}.layer.{number}"))
        for i, block in enumerate(self.model.lm.decoder.block):
            hook = partial(self._value, f"decoder.block.{i}.layer.1.EncDecAttention")
            block.layer[1].EncDecAttention.v.register_forward_hook(hook)


def with_gates(fixture: Fixture, granularity: str) -> Fixture:
    """A file of another granularity: random gates in the place of its own, nothing computed yet."""
    generator = torch.Generator().manual_seed(4)
    own = [name for name in fixture.weights if "_adapter_gating_" in name]
    prefixes = dict.fromkeys(name.split("_gating_")[0] + "_gating_" for name in own)
    made = {
        f"{prefix}{ending}": (0.4 * torch.randn(shape, generator=generator)).half().float()
        for prefix in prefixes
        for ending, shape in GATES[granularity].items()
    }
    kept = {name: value for name, value in fixture.tensors.items() if name.removeprefix("weight/") not in own}
    trainable = [name for name in fixture.meta["trainable"] if name not in own] + list(made)
    tensors = kept | {f"weight/{name}": value for name, value in made.items()}
    return replace(fixture, meta=fixture.meta | {"trainable": trainable}, tensors=tensors)


def record(path: Path, fixture: Fixture, outputs: Mapping[str, torch.Tensor]) -> None:
    """Write ``fixture`` with other outputs in the recorded format."""
    tensors = {f"weight/{name}": value.half() for name, value in fixture.weights.items()}
    tensors |= {f"input/{name}": value for name, value in fixture.under("input").items()} | dict(outputs)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"json": json.dumps(fixture.meta)})


def computed(fixture: Fixture, scale: float) -> dict[str, torch.Tensor]:
    """Outputs, gradients and greedy ids of the task ``vqa``, by the names of the recorded format."""
    published = Sublayers(fixture, scale)
    model: VLSeq2Seq = published.model
    batch = make_batch(model, "vqa", fixture.under("input"))
    trained = [published.tensor(name).requires_grad_() for name in fixture.meta["trainable"]]
    with model.context.of("vqa"):
        encoded = model.encode(batch)
        hidden = model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(batch.labels))
    losses = model(batch)
    loss = reduced("vqa", losses, batch.labels != -100, batch.weights)
    gradients = torch.autograd.grad(loss, trained)
    outputs = {
        "encoder_last_hidden_state": encoded.states,
        "decoder_last_hidden_state": hidden,
        "logits": model.logits(hidden),
        "loss_per_token": losses,
        "loss_vqa_weighted": loss,
    }
    found = {f"output/vqa/{name}": value.detach() for name, value in outputs.items()}
    found |= {f"grad/vqa/{name}": one for name, one in zip(fixture.meta["trainable"], gradients, strict=True)}
    found["grad_norm/vqa"] = torch.stack([gradient.norm() for gradient in gradients])
    greedy = DecodingConfig(kind="greedy", max_length=20, no_repeat_ngram_size=0)
    return found | {"generate/vqa/greedy": model.generate(batch, greedy)}


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))
