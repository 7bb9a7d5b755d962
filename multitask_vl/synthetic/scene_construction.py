"""Scenes built for a given answer: exactly k objects match, one object is unique, one is left of another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    MAX_OBJECTS,
    MIN_OBJECTS,
    RELATIONS,
    SEEN,
    VALUES,
    Appearance,
    Filter,
    Object,
    Scene,
    compose_scene,
    relation_holds,
    sample_layout,
    sample_palette,
)

FORMS = (("shape",), ("color",), ("pattern",), ("color", "shape"), ("pattern", "shape"), ("pattern", "color"))
"""Attributes named by questions about presence and number: half of the forms name one, half name two."""


class RelationScene(NamedTuple):
    """Scene in which one object matching ``target`` is ``relation`` the object matching ``anchor``."""

    scene: Scene
    target: Filter
    relation: str
    anchor: Filter
    answer: Object


def sample_filter(
    rng: random.Random, pool: Sequence[Appearance] = SEEN, forms: Sequence[Sequence[str]] = FORMS
) -> Filter:
    """Filter that some appearance of ``pool`` matches; its form does not depend on any answer."""
    return Filter.from_appearance(rng.choice(pool), rng.choice(forms))


def near_misses(target: Filter, pool: Sequence[Appearance]) -> list[Appearance]:
    """Appearances of ``pool`` that match ``target`` in all required attributes but one."""
    names = target.attributes
    values = [getattr(target, name) for name in names]
    return [k for k in pool if sum(getattr(k, n) != v for n, v in zip(names, values, strict=True)) == 1]


def appearances_with_count(
    target: Filter,
    count: int,
    rng: random.Random,
    pool: Sequence[Appearance] = SEEN,
    others: Sequence[Appearance] | None = None,
    near: bool | None = None,
    total: int | None = None,
) -> list[Appearance]:
    """Appearances of a scene in which exactly ``count`` match ``target``.

    Args:
        pool: where the matching ones come from.
        others: where the distractors come from; default ``pool``.
        near: whether distractors include a near miss (all but one attribute right). None: with probability 0.5.
        total: number of objects; by default sampled so that it reveals as little as possible about ``count``.
    """
    others = pool if others is None else others
    if total is None:
        total = rng.randint(max(MIN_OBJECTS, count), MAX_OBJECTS)
    matching = [each for each in pool if target.matches(each)]
    distractors = [each for each in sample_palette(rng, others) if not target.matches(each)]
    distractors = distractors or [each for each in others if not target.matches(each)]
    chosen = [rng.choice(matching) for _ in range(count)]
    num_distractors = total - count
    if near is None:
        near = rng.random() < 0.5
    if near and num_distractors:
        misses = near_misses(target, others)
        num_misses = rng.randint(1, num_distractors)
        chosen += [rng.choice(misses) for _ in range(num_misses)] if misses else []
    chosen += [rng.choice(distractors) for _ in range(total - len(chosen))]
    return chosen


def scene_with_count(
    target: Filter,
    count: int,
    rng: random.Random,
    pool: Sequence[Appearance] = SEEN,
    others: Sequence[Appearance] | None = None,
    near: bool | None = None,
    total: int | None = None,
) -> Scene:
    """Scene in which exactly ``count`` (0 to MAX_OBJECTS) objects match ``target``; see `appearances_with_count`."""
    return compose_scene(appearances_with_count(target, count, rng, pool, others, near, total), rng)


def unique_filters(
    objects: Sequence[Appearance | Object], index: int, exclude: str | None = None, max_attributes: int = 3
) -> list[Filter]:
    """Filters of up to ``max_attributes`` attributes that only object ``index`` matches.

    Shortest first, never with a superfluous attribute, and never with the attribute ``exclude``.
    """
    found: list[Filter] = []
    usable = [name for name in ATTRIBUTES if name != exclude]
    for number in range(1, max_attributes + 1):
        for names in combinations(usable, number):
            if any(set(known.attributes) <= set(names) for known in found):
                continue
            candidate = Filter.from_appearance(objects[index], names)
            if candidate.count(objects) == 1:
                found.append(candidate)
    return found


def scene_for_value(
    attribute: str,
    value: str,
    rng: random.Random,
    pool: Sequence[Appearance] = SEEN,
    others: Sequence[Appearance] | None = None,
) -> Scene:
    """Scene with an object of this value that can be described uniquely without naming the attribute."""
    with_value = [each for each in pool if getattr(each, attribute) == value]
    while True:
        appearances = [rng.choice(with_value)]
        palette = sample_palette(rng, pool if others is None else others)
        appearances += [rng.choice(palette) for _ in range(rng.randint(MIN_OBJECTS, MAX_OBJECTS) - 1)]
        if unique_filters(appearances, 0, exclude=attribute):
            return compose_scene(appearances, rng)


def scene_for_relation(
    attribute: str,
    value: str,
    rng: random.Random,
    pool: Sequence[Appearance] = SEEN,
    others: Sequence[Appearance] | None = None,
) -> RelationScene:
    """Scene for "what <attribute> is the <target> <relation> the <anchor>?" whose answer is ``value``.

    More than one object matches the target's description (unless it is "thing"), but only one in that direction: the
    question cannot be answered without the relation. Positions are sampled first, then appearances are assigned.
    """
    others = pool if others is None else others
    with_value = [each for each in pool if getattr(each, attribute) == value]
    forms = [("shape",), ("color",), ("pattern",), ()]
    forms = [form for form in forms if attribute not in form]
    while True:
        sizes = [rng.choice(VALUES["size"]) for _ in range(rng.randint(3, MAX_OBJECTS))]
        layout = sample_layout(sizes, rng)
        blanks = [Object(size, "", "", "", *xyr) for size, xyr in zip(sizes, layout, strict=True)]
        anchor, target = rng.sample(range(len(blanks)), 2)
        valid = [r for r in RELATIONS if relation_holds(r, blanks[target], blanks[anchor])]
        if not valid:
            continue
        relation = rng.choice(valid)
        related = [k for k in range(len(blanks)) if relation_holds(relation, blanks[k], blanks[anchor])]
        unrelated = [k for k in range(len(blanks)) if k not in related and k != anchor]
        form = rng.choice(forms)
        if (not form and len(related) > 1) or (form and not unrelated):
            continue
        chosen = rng.choice(with_value)
        target_filter = Filter.from_appearance(chosen, form)
        palette = sample_palette(rng, others)
        appearances = [rng.choice(palette) for _ in blanks]
        appearances[target] = chosen
        if form:
            twins = [k for k in others if target_filter.matches(k) and getattr(k, attribute) != value]
            appearances[rng.choice(unrelated)] = rng.choice(twins)
        if any(k != target and target_filter.matches(appearances[k]) for k in related):
            continue
        objects = tuple(
            Object(size, *each[1:], *xyr) for size, each, xyr in zip(sizes, appearances, layout, strict=True)
        )
        if attribute == "size" and objects[target].size != value:
            continue
        anchors = unique_filters(objects, anchor, max_attributes=2)
        if anchors:
            scene = Scene(objects, rng.getrandbits(32))
            return RelationScene(scene, target_filter, relation, rng.choice(anchors), objects[target])


def scene_for_shared_attribute(
    attribute: str,
    rng: random.Random,
    pool: Sequence[Appearance] = SEEN,
    others: Sequence[Appearance] | None = None,
) -> Scene:
    """Scene in which two objects, each with a unique description, share ``attribute`` and nothing else."""
    others = pool if others is None else others
    while True:
        first = rng.choice(pool)
        partners = [k for k in others if shared_attributes(first, k) == [attribute]]
        if not partners:
            continue
        appearances = [first, rng.choice(partners)]
        palette = sample_palette(rng, others)
        appearances += [rng.choice(palette) for _ in range(rng.randint(MIN_OBJECTS, MAX_OBJECTS) - 2)]
        if all(unique_filters(appearances, index, exclude=attribute, max_attributes=2) for index in (0, 1)):
            return compose_scene(appearances, rng)


def shared_attributes(first: Appearance | Object, second: Appearance | Object) -> list[str]:
    """Names of the attributes in which two appearances agree."""
    return [name for name in ATTRIBUTES if getattr(first, name) == getattr(second, name)]
