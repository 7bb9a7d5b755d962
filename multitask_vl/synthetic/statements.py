"""NLVR2 statements of the synthetic world, and image pairs for which they are true or false.

A *set* is four pairs of images and two sentences, each true of two of the pairs, as in NLVR2: no sentence, template or
wording reveals its label. The pairs are sampled for the first sentence; the second sentence is searched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multitask_vl.synthetic.language import STATEMENTS, noun_phrase, number_phrase
from multitask_vl.synthetic.scene_construction import FORMS, sample_filter, scene_with_count
from multitask_vl.synthetic.scenes import ALL_APPEARANCES, HELD_OUT, SEEN, Appearance, Filter, Scene, split_rng

PAIRS_PER_SET = 4
SENTENCES_PER_SET = 2
SIDES = ("left", "right")
Counts = tuple[int, int]
"""Number of matching objects in the left and in the right image."""


class StatementKind(NamedTuple):
    """Template of statements.

    Attributes:
        weight: relative frequency among all sentences.
        is_true: (counts, side, number) -> whether the statement is true.
        numbers: numbers it may name; (0,) if none.
    """

    weight: float
    is_true: Callable[[Counts, int, int], bool]
    numbers: tuple[int, ...] = (0,)


STATEMENT_KINDS: dict[str, StatementKind] = {
    "side_has": StatementKind(36, lambda counts, side, number: counts[side] > 0),
    "both_have": StatementKind(14, lambda counts, side, number: min(counts) > 0),
    "only_one": StatementKind(20, lambda counts, side, number: (counts[0] > 0) != (counts[1] > 0)),
    "any_has": StatementKind(8, lambda counts, side, number: max(counts) > 0),
    "none_has": StatementKind(6, lambda counts, side, number: max(counts) == 0),
    "side_number": StatementKind(8, lambda counts, side, number: counts[side] == number, (2, 3)),
    "more_on_side": StatementKind(5, lambda counts, side, number: counts[side] > counts[1 - side]),
    "total": StatementKind(3, lambda counts, side, number: sum(counts) == number, (2, 3, 4)),
}


@dataclass(frozen=True)
class Statement:
    """Sentence about a left and a right image; only some templates use ``side`` and ``number``."""

    template: str
    text: str
    description: Filter
    side: int
    number: int

    def is_true_for(self, left: Scene, right: Scene) -> bool:
        """Whether it is true of this pair."""
        counts = self.description.count(left.objects), self.description.count(right.objects)
        return STATEMENT_KINDS[self.template].is_true(counts, self.side, self.number)


@dataclass(frozen=True)
class PairSet:
    """Pairs that share their sentences.

    Attributes:
        pairs: (left, right) scenes, PAIRS_PER_SET of them.
        sentences: SENTENCES_PER_SET statements.
        labels: label of sentence s for pair p at ``labels[p][s]``; half of each column is true.
    """

    pairs: tuple[tuple[Scene, Scene], ...]
    sentences: tuple[Statement, ...]
    labels: tuple[tuple[bool, ...], ...]


def pair_set(seed: int, split: str, index: int) -> PairSet:
    """Set ``index`` of a split; depends on the arguments alone."""
    rng = split_rng(seed, "nlvr2", split, index)
    ood = split == "ood"
    pool, others = (HELD_OUT, ALL_APPEARANCES) if ood else (SEEN, SEEN)
    while True:
        first = _sample_statement(_sample_template(rng), sample_filter(rng, pool), rng)
        labels = [True, False] * (PAIRS_PER_SET // 2)
        rng.shuffle(labels)
        # half of the false and half of the true pairs contain near misses, which therefore reveal nothing
        near = {label: rng.sample([True, False], 2) for label in (True, False)}
        pairs = tuple(_sample_pair(first, label, near[label].pop(), pool, others, rng) for label in labels)
        second = _search_second(pairs, first, pool, rng, forms=(("color", "shape"),) if ood else FORMS)
        if second is not None:
            sentences = (first, second)
            return PairSet(
                pairs, sentences, tuple(tuple(each.is_true_for(*pair) for each in sentences) for pair in pairs)
            )


def _sample_template(rng: random.Random) -> str:
    return rng.choices(list(STATEMENT_KINDS), weights=[kind.weight for kind in STATEMENT_KINDS.values()])[0]


def _sample_statement(template: str, description: Filter, rng: random.Random) -> Statement:
    side, number = rng.randrange(2), rng.choice(STATEMENT_KINDS[template].numbers)
    text = STATEMENTS[template].sample(
        rng,
        x=noun_phrase(description),
        xs=noun_phrase(description, plural=True),
        side=SIDES[side],
        other=SIDES[1 - side],
        number=number_phrase(description, number),
    )
    return Statement(template, text, description, side, number)


def _sample_pair(
    statement: Statement,
    label: bool,
    near: bool,
    pool: Sequence[Appearance],
    others: Sequence[Appearance],
    rng: random.Random,
) -> tuple[Scene, Scene]:
    """Pair for which the statement has this label; presence on each side is sampled first, then the counts."""
    kind = STATEMENT_KINDS[statement.template]
    max_count = 3 if kind.numbers != (0,) or statement.template == "more_on_side" else 2
    cases = [
        (left, right)
        for left in range(max_count + 1)
        for right in range(max_count + 1)
        if kind.is_true((left, right), statement.side, statement.number) == label
    ]
    if max_count == 2:
        presence = rng.choice(sorted({(left > 0, right > 0) for left, right in cases}))
        cases = [case for case in cases if (case[0] > 0, case[1] > 0) == presence]
        weights = [1 / (1 + sum(case)) for case in cases]  # mostly a single object
    else:
        weights = [1.0] * len(cases)
    counts = rng.choices(cases, weights=weights)[0]
    left, right = (scene_with_count(statement.description, count, rng, pool, others, near) for count in counts)
    return left, right


def _search_second(
    pairs: Sequence[tuple[Scene, Scene]],
    first: Statement,
    pool: Sequence[Appearance],
    rng: random.Random,
    forms: Sequence[Sequence[str]],
    tries: int = 60,
) -> Statement | None:
    """Another statement that is true of exactly half of the pairs; its template is sampled before anything else."""
    candidates = [thing.appearance for pair in pairs for scene in pair for thing in scene.objects]
    candidates = [appearance for appearance in candidates if appearance in pool]
    for _ in range(8):
        template = _sample_template(rng)
        for _ in range(tries):
            description = Filter.from_appearance(rng.choice(candidates), rng.choice(forms))
            candidate = _sample_statement(template, description, rng)
            num_true = sum(candidate.is_true_for(*pair) for pair in pairs)
            if candidate.description != first.description and num_true == len(pairs) // 2:
                return candidate
    return None
