"""How are compacters named: as adapters are, with a rule, slices or their two factors, and b for each half."""

from __future__ import annotations

from collections.abc import Iterator

from multitask_vl.methods.compacter import CompacterConfig
from tests.golden.fixture import Fixture
from tests.golden.sources import adapter

OURS = {"W": "W", "W_left": "L", "W_right": "R", "b": "b", "phm_rule": "rule.A"}
"""Parts of a half: the source's name -> ours. One rule for all lies at the top of the source's model."""


def found(fixture: Fixture) -> CompacterConfig | None:
    """Sizes and sharing of slices and rules, read off the tensors."""
    slices = {name: value for name, value in fixture.weights.items() if name.endswith((".W", ".W_left"))}
    downs = [name for name, value in slices.items() if ".down_sampler." in name and value.ndim == 3]
    if not downs:
        return None
    first = slices[downs[0]]
    factorized = downs[0].endswith("_left")
    return CompacterConfig(
        name="compacter",
        n=len(first),
        rank=len(fixture.weights[f"{downs[0].rpartition('.')[0]}.b"]),
        rule=_rule(fixture, len(slices)),
        factorized=factorized,
        factor_rank=first.shape[2] if factorized else 1,
        **adapter.shared(downs, [name for name in slices if ".up_sampler." in name]),
        **adapter.norms(fixture),
    )


def _rule(fixture: Fixture, maps: int) -> str:
    """Whose the rules are: as many as maps, a single one, or one for each half of each place."""
    rules = [name for name in fixture.weights if name.endswith("phm_rule")]
    if len(rules) == maps:
        return "own"
    return "shared" if len(rules) == 1 else "shared_over_tasks"


def names(name: str) -> Iterator[str]:
    """The parts of one task's half, and a rule where it may belong to more than one."""
    match = adapter.NAME.fullmatch(name)
    if match and match["half"] and match["kind"] in OURS:
        yield from (f"{half}.{OURS[match['kind']]}" for half in adapter.halves(match))
        if match["kind"] == "phm_rule":
            yield f"{adapter.site(match)}.{match['half']}_rule.A"
    if name.rpartition(".")[2] == "phm_rule":
        yield "beside.compacter.A"
