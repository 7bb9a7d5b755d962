"""VL-PET: heads, an up-projection and a gate next to a sublayer, and an adapter inside an attention."""

from __future__ import annotations

import re
from collections.abc import Iterator

from multitask_vl.methods.vl_pet import VLPetConfig
from tests.golden.fixture import Fixture

LAST_MAP = {
    "layers": {"attn": "self_attn.out_proj", "ff": "fc2"},
    "block": {"attn": "SelfAttention.o", "ff": "DenseReluDense.wo"},
}
"""BART's layers and T5's blocks: sublayer in the source -> the sublayer's last linear layer."""
VALUE = {"encoder_attn": "v_proj", "EncDecAttention": "v"}
"""Cross-attention -> its value projection."""
GRANULARITY = {
    "large_x_down": ("large", "down"),
    "large_x_up": ("large", "up"),
    "middle_xy_add": ("middleX", "gate_proj"),
    "middle_ia3_add": ("middleY", "z"),
    "small_xy_cat": ("small", "gate_proj"),
}
"""Tensor of a gate in the source -> its granularity, and our name."""
ENCODER = re.compile(
    r"(?P<holder>(?:model\.)?encoder\.(?P<blocks>layers|block)\.\d+(?:\.layer\.\d)?)\."
    r"(?:(?P<place>attn|ff)_adapter_multihead_(?:down\.(?P<head>\d+)|up)|"
    rf"encoder_(?P<gated>attn|ff)_adapter_gating_(?P<gate>{'|'.join(GRANULARITY)}))"
    r"(?:\.(?P<kind>weight|bias))?"
)
DECODER = re.compile(
    r"(?P<holder>(?:model\.)?decoder\.(?:layers|block)\.\d+(?:\.layer\.\d)?\.(?P<attention>\w+))\."
    r"attn_value_parallel_adapter\.adapters\.(?P<task>\w+)\.(?P<half>down|up)_sampler\.(?P<kind>weight|bias)"
)


def found(fixture: Fixture) -> VLPetConfig | None:
    """The configuration: granularity, ranks and heads from the tensors, the scale from the arguments."""
    matched = {name: match for name in fixture.weights if (match := ENCODER.fullmatch(name))}
    if not matched:
        return None
    gates = [match["gate"] for match in matched.values() if match["gate"]]
    granularity = GRANULARITY[gates[0]][0] if gates else "none"
    scaled = fixture.argument("use_encoder_gating_scaling", False)
    return VLPetConfig(
        name="vl_pet",
        granularity=granularity,
        rank=_width(fixture, "_adapter_multihead_up.weight", 1),
        num_heads=1 + max(int(match["head"]) for match in matched.values() if match["head"]),
        gate_rank=_width(fixture, "_gating_large_x_down.weight", 0),
        gate_scale=fixture.argument("encoder_gating_scaling_factor", 1.0) if scaled else 1.0,
        mean_over_padding=granularity == "small",
        decoder_rank=_width(fixture, ".down_sampler.weight", 0),
        decoder_sites=("value",) if any(DECODER.fullmatch(name) for name in fixture.weights) else (),
        train_layer_norms=fixture.trained_norms,
    )


def names(name: str) -> Iterator[str | tuple[str, int]]:
    """Our candidate names of a tensor; a head is a block of rows of the down-projection."""
    if match := ENCODER.fullmatch(name):
        site = f"lm.{match['holder']}.{LAST_MAP[match['blocks']][match['place'] or match['gated']]}"
        kind = f".{match['kind']}" if match["kind"] else ""
        if match["gate"]:
            yield f"{site}.gate.{GRANULARITY[match['gate']][1]}{kind}"
        elif match["head"]:
            yield f"{site}.bottleneck.down{kind}", int(match["head"])
        else:
            yield f"{site}.bottleneck.up{kind}"
    elif match := DECODER.fullmatch(name):
        site = f"lm.{match['holder']}.{VALUE.get(match['attention'])}"
        yield f"{site}.bottleneck.{match['half']}.{match['kind']}"


def task(name: str) -> str | None:
    """The task in a value adapter's name."""
    match = DECODER.fullmatch(name)
    return match["task"] if match else None


def _width(fixture: Fixture, ending: str, axis: int) -> int:
    """Size of the first tensor with such a name; 1 if there is none."""
    return next((value.shape[axis] for name, value in fixture.weights.items() if name.endswith(ending)), 1)
