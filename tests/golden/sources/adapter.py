"""Adapters: one per sublayer, in a dictionary of tasks."""

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
"""BART's layers and T5's blocks: sublayer in the source -> the linear layer at that site."""
NAME = re.compile(
    r"(?P<holder>(?:model\.)?(?:encoder|decoder)\.(?P<blocks>layers|block)\.\d+(?:\.layer\.\d+)?)\."
    r"(?P<place>\w+)_adapter\."
    r"(?:adapters\.(?P<task>\w+)\.(?P<half>down|up)_sampler|(?P<norm>pre|post)_(?:layer_)?norm)"
    r"\.(?P<kind>\w+)"
)
"""Other methods use the same names for other tensors, except for the last part."""


def found(fixture: Fixture) -> AdapterConfig | None:
    """The configuration that the tensors imply: rank, sharing and norms."""
    downs = [name for name in fixture.weights if NAME.fullmatch(name) and name.endswith("down_sampler.weight")]
    if not downs:
        return None
    return AdapterConfig(
        name="adapter",
        rank=fixture.weights[downs[0]].shape[0],
        **shared(downs, [name for name in fixture.weights if name.endswith("up_sampler.weight")]),
        **norms(fixture),
    )


def shared(downs: list[str], ups: list[str]) -> dict[str, str]:
    """The `sharing` setting implied by the names of stored down- and up-projections."""
    kinds = {(False, False): "single", (True, True): "per_task", (True, False): "shared_up"}
    return {"sharing": kinds.get((own(downs), own(ups)), "shared_down")}


def norms(fixture: Fixture) -> dict[str, str | bool]:
    """The norm settings: trained norms of the backbone, and norms inside the adapters."""
    every = (*fixture.weights, *fixture.aliases)
    extra = {f"{which}_norm": re.compile(rf"_adapter\.{which}_(layer_)?norm") for which in ("pre", "post")}
    return {"train_layer_norms": fixture.trained_norms} | {
        setting: any(map(pattern.search, every)) for setting, pattern in extra.items()
    }


def own(names: list[str]) -> bool:
    """Whether tasks have separate tensors at the same site."""
    return len({found for name in names if (found := task(name))}) > 1


def names(name: str) -> Iterator[str]:
    """Our candidate names of a tensor."""
    if not (match := NAME.fullmatch(name)):
        return
    if match["norm"]:
        yield f"{site(match)}.{match['norm']}_norm.{match['kind']}"
    else:
        yield from (f"{half}.{match['kind']}" for half in halves(match))


def site(match: re.Match) -> str:
    """Our name of the linear layer at a site."""
    return f"lm.{match['holder']}.{PLACES[match['blocks']].get(match['place'])}"


def halves(match: re.Match) -> Iterator[str]:
    """Our candidate names of a projection: the task's own, or the shared one."""
    yield from (f"{site(match)}.{match['half']}.{one}" for one in (match["task"], EVERY_TASK))


def task(name: str) -> str | None:
    """The task in an adapter's name."""
    match = NAME.fullmatch(name)
    return match["task"] if match else None
