"""What does the embedded NLVR2 state about two pictures, and how are pairs drawn for which it is true or false?

A *set* is four pairs of pictures and two sentences, each true of two of the pairs, as in NLVR2: so no sentence,
template or wording tells anything about its truth. The pairs are drawn for the first sentence; the second is searched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multitask_vl.synthetic.language import STATEMENTS, noun, number_of
from multitask_vl.synthetic.scene_construction import FORMS, draw_filter, scene_with_count
from multitask_vl.synthetic.scenes import ALL, HELD_OUT, SEEN, Filter, Look, Scene, stream

PAIRS = 4
SENTENCES = 2
SIDES = ("left", "right")
Counts = tuple[int, int]
"""How many objects match in the left and in the right picture."""


class Kind(NamedTuple):
    """A kind of statement.

    Attributes:
        share: its part of all sentences, relative to the others.
        holds: (counts, side, number) -> whether it is true.
        numbers: what number it may name; (0,) if none.
    """

    share: float
    holds: Callable[[Counts, int, int], bool]
    numbers: tuple[int, ...] = (0,)


KINDS: dict[str, Kind] = {
    "side_has": Kind(36, lambda counts, side, number: counts[side] > 0),
    "both_have": Kind(14, lambda counts, side, number: min(counts) > 0),
    "only_one": Kind(20, lambda counts, side, number: (counts[0] > 0) != (counts[1] > 0)),
    "any_has": Kind(8, lambda counts, side, number: max(counts) > 0),
    "none_has": Kind(6, lambda counts, side, number: max(counts) == 0),
    "side_number": Kind(8, lambda counts, side, number: counts[side] == number, (2, 3)),
    "more_on_side": Kind(5, lambda counts, side, number: counts[side] > counts[1 - side]),
    "total": Kind(3, lambda counts, side, number: sum(counts) == number, (2, 3, 4)),
}


@dataclass(frozen=True)
class Statement:
    """One sentence about a left and a right picture; ``side`` and ``number`` matter to some kinds only."""

    template: str
    text: str
    named: Filter
    side: int
    number: int

    def truth(self, left: Scene, right: Scene) -> bool:
        """Whether it is true of this pair."""
        counts = self.named.count(left.objects), self.named.count(right.objects)
        return KINDS[self.template].holds(counts, self.side, self.number)


@dataclass(frozen=True)
class PairSet:
    """Pairs that share their sentences.

    Attributes:
        pairs: (left, right) scenes, PAIRS of them.
        sentences: SENTENCES statements.
        labels: truth of sentence s of pair p at ``labels[p][s]``; half of each column is true.
    """

    pairs: tuple[tuple[Scene, Scene], ...]
    sentences: tuple[Statement, ...]
    labels: tuple[tuple[bool, ...], ...]


def pair_set(seed: int, split: str, index: int) -> PairSet:
    """Set ``index`` of a split, a function of its arguments alone."""
    rng = stream("world", seed, "nlvr2", split, index)
    held_out = split == "heldout"
    pool, others = (HELD_OUT, ALL) if held_out else (SEEN, SEEN)
    while True:
        first = _statement(_template(rng), draw_filter(rng, pool), rng)
        truths = [True, False] * (PAIRS // 2)
        rng.shuffle(truths)
        # half of the false pairs, and of the true ones, hold nearest misses: missing by one attribute says nothing
        near = {truth: rng.sample([True, False], 2) for truth in (True, False)}
        pairs = tuple(_pair(first, truth, near[truth].pop(), pool, others, rng) for truth in truths)
        second = _search(pairs, first, pool, rng, forms=(("color", "shape"),) if held_out else FORMS)
        if second is not None:
            sentences = (first, second)
            labels = tuple(tuple(one.truth(*pair) for one in sentences) for pair in pairs)
            return PairSet(pairs, sentences, labels)


def _template(rng: random.Random) -> str:
    return rng.choices(list(KINDS), weights=[kind.share for kind in KINDS.values()])[0]


def _statement(template: str, named: Filter, rng: random.Random) -> Statement:
    side, number = rng.randrange(2), rng.choice(KINDS[template].numbers)
    text = STATEMENTS[template].pick(
        rng,
        x=noun(named),
        xs=noun(named, plural=True),
        side=SIDES[side],
        other=SIDES[1 - side],
        number=number_of(named, number),
    )
    return Statement(template, text, named, side, number)


def _pair(
    statement: Statement, truth: bool, near: bool, pool: Sequence[Look], others: Sequence[Look], rng: random.Random
) -> tuple[Scene, Scene]:
    """Two pictures of which the statement has this truth; presence patterns are drawn first, then numbers."""
    kind = KINDS[statement.template]
    most = 3 if kind.numbers != (0,) or statement.template == "more_on_side" else 2
    cases = [
        (left, right)
        for left in range(most + 1)
        for right in range(most + 1)
        if kind.holds((left, right), statement.side, statement.number) == truth
    ]
    if most == 2:
        pattern = rng.choice(sorted({(left > 0, right > 0) for left, right in cases}))
        cases = [case for case in cases if (case[0] > 0, case[1] > 0) == pattern]
        weights = [1 / (1 + sum(case)) for case in cases]  # mostly one of a kind
    else:
        weights = [1.0] * len(cases)
    counts = rng.choices(cases, weights=weights)[0]
    left, right = (scene_with_count(statement.named, number, rng, pool, others, near) for number in counts)
    return left, right


def _search(
    pairs: Sequence[tuple[Scene, Scene]],
    first: Statement,
    pool: Sequence[Look],
    rng: random.Random,
    forms: Sequence[Sequence[str]],
    tries: int = 60,
) -> Statement | None:
    """Another statement that is true of exactly half of the pairs, of a kind drawn before anything else."""
    looks = [thing.look for pair in pairs for scene in pair for thing in scene.objects if thing.look in pool]
    for _ in range(8):
        template = _template(rng)
        for _ in range(tries):
            candidate = _statement(template, Filter.of(rng.choice(looks), rng.choice(forms)), rng)
            if candidate.named != first.named and sum(candidate.truth(*pair) for pair in pairs) == len(pairs) // 2:
                return candidate
    return None
