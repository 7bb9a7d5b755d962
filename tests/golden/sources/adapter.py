"""How are adapters named: one per place, in a dictionary of tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from multitask_vl.methods.adapter import AdapterConfig
from multitask_vl.methods.sites import EVERY_TASK
from tests.golden.fixture import Fixture

PLACES = {
    "layers": {
        "attn": "self_attn.out_proj",
        "self_attn": "self_attn.out_proj",
        "enc_attn": "encoder_attn.out_proj",
        "ff": "fc2",
    },
    "block": {"attn": "SelfAttention.o", "enc_attn": "EncDecAttention.o", "ff": "DenseReluDense.wo"},
}
"""BART's layers and T5's blocks: what the source calls a place -> the map that stands there."""
NAME = re.compile(
    r"(?P<holder>(?:model\.)?(?:encoder|decoder)\.(?P<blocks>layers|block)\.\d+(?:\.layer\.\d+)?)\."
    r"(?P<place>\w+)_adapter\."
    r"(?:adapters\.(?P<task>\w+)\.(?P<half>down|up)_sampler|(?P<norm>pre|post)_(?:layer_)?norm)"
    r"\.(?P<kind>weight|bias)"
)


def found(fixture: Fixture) -> AdapterConfig | None:
    """Rank, sharing and norms, read off the tensors."""
    downs = [name for name in fixture.weights if NAME.fullmatch(name) and name.endswith("down_sampler.weight")]
    if not downs:
        return None
    ups = [name for name in fixture.weights if name.endswith("up_sampler.weight")]
    sharing = {(False, False): "single", (True, True): "per_task", (True, False): "shared_up"}
    every = (*fixture.weights, *fixture.aliases)
    return AdapterConfig(
        name="adapter",
        rank=fixture.weights[downs[0]].shape[0],
        sharing=sharing.get((own(downs), own(ups)), "shared_down"),
        train_layer_norms=fixture.trained_norms,
        pre_norm=any(re.search(r"_adapter\.pre_(layer_)?norm", name) for name in every),
        post_norm=any(re.search(r"_adapter\.post_(layer_)?norm", name) for name in every),
    )


def own(names: list[str]) -> bool:
    """Whether tasks have their own: more than one stored tensor at the same place."""
    return len({found for name in names if (found := task(name))}) > 1


def names(name: str) -> Iterator[str]:
    """The wrapped map's own parts."""
    if not (match := NAME.fullmatch(name)):
        return
    site = f"lm.{match['holder']}.{PLACES[match['blocks']].get(match['place'])}"
    if match["norm"]:
        yield f"{site}.{match['norm']}_norm.{match['kind']}"
    else:
        yield from (f"{site}.{match['half']}.{one}.{match['kind']}" for one in (match["task"], EVERY_TASK))


def task(name: str) -> str | None:
    """The task in an adapter's name."""
    match = NAME.fullmatch(name)
    return match["task"] if match else None
