"""How a scene is built FOR an answer: exactly k objects match, one is unique, one stands left of another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    FEWEST,
    MOST,
    RELATIONS,
    SEEN,
    VALUES,
    Filter,
    Look,
    Object,
    Scene,
    compose,
    holds,
    layout,
    palette,
)

FORMS = (("shape",), ("color",), ("pattern",), ("color", "shape"), ("pattern", "shape"), ("pattern", "color"))
"""Attributes that questions about presence and number name: half of them one, half of them two."""


class Relation(NamedTuple):
    """A staged relation: the one object matching ``target`` that is ``relation`` the one matching ``anchor``."""

    scene: Scene
    target: Filter
    relation: str
    anchor: Filter
    answer: Object


def draw_filter(rng: random.Random, pool: Sequence[Look] = SEEN, forms: Sequence[Sequence[str]] = FORMS) -> Filter:
    """A filter that some look of ``pool`` matches, its form drawn first so that no form depends on an answer."""
    return Filter.of(rng.choice(pool), rng.choice(forms))


def near_misses(wanted: Filter, pool: Sequence[Look]) -> list[Look]:
    """Looks of ``pool`` that match ``wanted`` in all named attributes but one."""
    names = wanted.named
    values = [getattr(wanted, name) for name in names]
    return [k for k in pool if sum(getattr(k, n) != v for n, v in zip(names, values, strict=True)) == 1]


def looks_with_count(
    wanted: Filter,
    number: int,
    rng: random.Random,
    pool: Sequence[Look] = SEEN,
    others: Sequence[Look] | None = None,
    near: bool | None = None,
    total: int | None = None,
) -> list[Look]:
    """Looks of a scene in which exactly ``number`` match ``wanted``.

    Args:
        pool: where the matching ones come from.
        others: where the rest comes from; default ``pool``.
        near: whether the rest holds a nearest miss (all but one attribute right). None: by the toss of a coin.
        total: objects in all; default drawn so that it tells as little as possible about ``number``.
    """
    others = pool if others is None else others
    if total is None:
        total = rng.randint(max(FEWEST, number), MOST)
    matching = [look for look in pool if wanted.matches(look)]
    missing = [look for look in palette(rng, others) if not wanted.matches(look)]
    missing = missing or [look for look in others if not wanted.matches(look)]
    looks = [rng.choice(matching) for _ in range(number)]
    rest = total - number
    if near is None:
        near = rng.random() < 0.5
    if near and rest:
        misses = near_misses(wanted, others)
        wrong = rng.randint(1, rest)
        looks += [rng.choice(misses) for _ in range(wrong)] if misses else []
    looks += [rng.choice(missing) for _ in range(total - len(looks))]
    return looks


def scene_with_count(
    wanted: Filter,
    number: int,
    rng: random.Random,
    pool: Sequence[Look] = SEEN,
    others: Sequence[Look] | None = None,
    near: bool | None = None,
    total: int | None = None,
) -> Scene:
    """A scene in which exactly ``number`` (0 to MOST) objects match ``wanted``; see `looks_with_count`."""
    return compose(looks_with_count(wanted, number, rng, pool, others, near, total), rng)


def unique_filters(
    objects: Sequence[Look | Object], index: int, asked: str | None = None, longest: int = 3
) -> list[Filter]:
    """Filters of up to ``longest`` attributes, without the one ``asked``, that only object ``index`` matches.

    Shortest first, and never one with an attribute it could do without.
    """
    found: list[Filter] = []
    usable = [name for name in ATTRIBUTES if name != asked]
    for number in range(1, longest + 1):
        for names in combinations(usable, number):
            if any(set(known.named) <= set(names) for known in found):
                continue
            candidate = Filter.of(objects[index], names)
            if candidate.count(objects) == 1:
                found.append(candidate)
    return found


def scene_for_value(
    attribute: str, value: str, rng: random.Random, pool: Sequence[Look] = SEEN, others: Sequence[Look] | None = None
) -> Scene:
    """A scene in which some object with this value can be told from the rest without naming the attribute."""
    wanted = [look for look in pool if getattr(look, attribute) == value]
    while True:
        looks = [rng.choice(wanted)]
        rest = palette(rng, pool if others is None else others)
        looks += [rng.choice(rest) for _ in range(rng.randint(FEWEST, MOST) - 1)]
        if unique_filters(looks, 0, asked=attribute):
            return compose(looks, rng)


def scene_for_relation(
    attribute: str, value: str, rng: random.Random, pool: Sequence[Look] = SEEN, others: Sequence[Look] | None = None
) -> Relation:
    """A scene for "what <attribute> is the <target> <relation> the <anchor>?" whose answer is ``value``.

    More than one object matches the target's description (unless it is "thing"), but one only in that direction, so the
    relation is needed. Geometry is drawn first and looks are given out to it afterwards.
    """
    others = pool if others is None else others
    wanted = [look for look in pool if getattr(look, attribute) == value]
    forms = [("shape",), ("color",), ("pattern",), ()]
    forms = [form for form in forms if attribute not in form]
    while True:
        sizes = [rng.choice(VALUES["size"]) for _ in range(rng.randint(3, MOST))]
        places = layout(sizes, rng)
        blanks = [Object(size, "", "", "", *xyr) for size, xyr in zip(sizes, places, strict=True)]
        anchor, target = rng.sample(range(len(blanks)), 2)
        right = [r for r in RELATIONS if holds(r, blanks[target], blanks[anchor])]
        if not right:
            continue
        relation = rng.choice(right)
        beyond = [k for k in range(len(blanks)) if holds(relation, blanks[k], blanks[anchor])]
        behind = [k for k in range(len(blanks)) if k not in beyond and k != anchor]
        form = rng.choice(forms)
        if (not form and len(beyond) > 1) or (form and not behind):
            continue
        chosen = rng.choice(wanted)
        target_filter = Filter.of(chosen, form)
        rest = palette(rng, others)
        looks = [rng.choice(rest) for _ in blanks]
        looks[target] = chosen
        if form:
            twins = [k for k in others if target_filter.matches(k) and getattr(k, attribute) != value]
            looks[rng.choice(behind)] = rng.choice(twins)
        if any(k != target and target_filter.matches(looks[k]) for k in beyond):
            continue
        objects = tuple(Object(size, *look[1:], *xyr) for size, look, xyr in zip(sizes, looks, places, strict=True))
        if attribute == "size" and objects[target].size != value:
            continue
        anchors = unique_filters(objects, anchor, longest=2)
        if anchors:
            scene = Scene(objects, rng.getrandbits(32))
            return Relation(scene, target_filter, relation, rng.choice(anchors), objects[target])


def scene_for_common(
    attribute: str, rng: random.Random, pool: Sequence[Look] = SEEN, others: Sequence[Look] | None = None
) -> Scene:
    """A scene in which two objects, each of which can be described alone, share ``attribute`` and nothing else."""
    others = pool if others is None else others
    while True:
        first = rng.choice(pool)
        partners = [k for k in others if _shared(first, k) == [attribute]]
        if not partners:
            continue
        looks = [first, rng.choice(partners)]
        rest = palette(rng, others)
        looks += [rng.choice(rest) for _ in range(rng.randint(FEWEST, MOST) - 2)]
        if all(unique_filters(looks, index, asked=attribute, longest=2) for index in (0, 1)):
            return compose(looks, rng)


def _shared(one: Look | Object, other: Look | Object) -> list[str]:
    return [name for name in ATTRIBUTES if getattr(one, name) == getattr(other, name)]
