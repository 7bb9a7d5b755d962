"""How are low-rank adapters named: as adapters are, with two factors and b for each half."""

from __future__ import annotations

from collections.abc import Iterator

from multitask_vl.methods.low_rank_adapter import LowRankAdapterConfig
from tests.golden.fixture import Fixture
from tests.golden.sources import adapter

OURS = {"W_left": "L", "W_right": "R", "b": "b"}
"""Parts of a half: the source's name -> ours."""


def found(fixture: Fixture) -> LowRankAdapterConfig | None:
    """Sizes and sharing, read off the tensors; a compacter's factors are stacks of n."""
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
    """The parts of one task's half."""
    match = adapter.NAME.fullmatch(name)
    if match and match["half"] and match["kind"] in OURS:
        yield from (f"{half}.{OURS[match['kind']]}" for half in adapter.halves(match))
