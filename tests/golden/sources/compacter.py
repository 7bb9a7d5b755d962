"""Compacters: named as adapters, with a PHM rule, slices or their two factors, and b per projection."""

from __future__ import annotations

from collections.abc import Iterator

from multitask_vl.methods.compacter import CompacterConfig
from tests.golden.fixture import Fixture
from tests.golden.sources import adapter

OURS = {"W": "W", "W_left": "L", "W_right": "R", "b": "b", "phm_rule": "rule.A"}
"""Tensors of a projection: name in the source -> ours. A rule shared by all is at the top of the source's model."""


def found(fixture: Fixture) -> CompacterConfig | None:
    """The configuration that the tensors imply: sizes, and sharing of slices and rules."""
    slices = {name: value for name, value in fixture.weights.items() if name.endswith((".W", ".W_left"))}
    downs = [name for name, value in slices.items() if ".down_sampler." in name and value.ndim == 3]
    if not downs:
        return None
    first = slices[downs[0]]
    factorized = downs[0].endswith("_left")
    return CompacterConfig(
        name="compacter",
        phm_dim=len(first),
        rank=len(fixture.weights[f"{downs[0].rpartition('.')[0]}.b"]),
        phm_rule=_rule(fixture, len(slices)),
        factorized_phm=factorized,
        factor_rank=first.shape[2] if factorized else 1,
        **adapter.shared(downs, [name for name in slices if ".up_sampler." in name]),
        **adapter.norms(fixture),
    )


def _rule(fixture: Fixture, maps: int) -> str:
    """The `phm_rule` setting: one rule per layer, a single one, or one per projection of each site."""
    rules = [name for name in fixture.weights if name.endswith("phm_rule")]
    if len(rules) == maps:
        return "own"
    return "shared" if len(rules) == 1 else "shared_over_tasks"


def names(name: str) -> Iterator[str]:
    """Our candidate names of a tensor; a rule may be shared by several projections."""
    match = adapter.NAME.fullmatch(name)
    if match and match["half"] and match["kind"] in OURS:
        yield from (f"{half}.{OURS[match['kind']]}" for half in adapter.halves(match))
        if match["kind"] == "phm_rule":
            yield f"{adapter.site(match)}.{match['half']}_rule.A"
    if name.rpartition(".")[2] == "phm_rule":
        yield "shared_modules.compacter.A"
