"""Low-rank adapters: named as adapters, with two factors and b per projection."""

from __future__ import annotations

from collections.abc import Iterator

from multitask_vl.methods.low_rank_adapter import LowRankAdapterConfig
from tests.golden.fixture import Fixture
from tests.golden.sources import adapter

OURS = {"W_left": "L", "W_right": "R", "b": "b"}
"""Tensors of a projection: name in the source -> ours."""


def found(fixture: Fixture) -> LowRankAdapterConfig | None:
    """The configuration that the tensors imply; a compacter's factors have one more dimension."""
    factors = [name for name, value in fixture.weights.items() if name.endswith(".W_left") and value.ndim == 2]
    downs = [name for name in factors if ".down_sampler." in name]
    if not downs:
        return None
    return LowRankAdapterConfig(
        name="low_rank_adapter",
        rank=len(fixture.weights[f"{downs[0].rpartition('.')[0]}.b"]),
        factor_rank=fixture.weights[downs[0]].shape[1],
        **adapter.shared(downs, [name for name in factors if ".up_sampler." in name]),
        **adapter.norms(fixture),
    )


def names(name: str) -> Iterator[str]:
    """Our candidate names of a tensor."""
    match = adapter.NAME.fullmatch(name)
    if match and match["half"] and match["kind"] in OURS:
        yield from (f"{half}.{OURS[match['kind']]}" for half in adapter.halves(match))
