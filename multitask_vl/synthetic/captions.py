"""What do five people write about a picture of the embedded world: what stands out, in different words?

What stands out is the same for all five: several things alike ("three red stars"), else the largest and rarest thing.
They differ in how much of it they name, in what they add, and in the wording.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from multitask_vl.synthetic.language import CAPTIONS, NUMBERS, noun
from multitask_vl.synthetic.scenes import RELATIONS, Filter, Object, Scene, holds

PER_PICTURE = 5
_GROUPS = (("color", "shape"), ("pattern", "shape"), ("shape",), ("color",))


def captions_of(scene: Scene, rng: random.Random, number: int = PER_PICTURE) -> list[str]:
    """``number`` captions of a scene of one object or more, all true, each about what stands out."""
    group = standing_out(scene.objects)
    ranked = sorted(scene.objects, key=lambda thing: (-salience(thing, scene.objects), thing.cell))
    found: list[str] = []
    for _ in range(number):
        for _ in range(4):  # two people seldom write the same
            if len(ranked) == 1:
                text = CAPTIONS["one"].pick(rng, first=mention(ranked[0], scene.objects, rng))
            else:
                text = _of_two(ranked, rng) if group is None else _of_group(group, ranked, rng)
            if text not in found:
                break
        found.append(text)
    return found


def standing_out(objects: Sequence[Object]) -> Filter | None:
    """What three or more objects share, or both of two if it is two attributes; None if there is nothing."""
    for names in _GROUPS:
        shared = {Filter.of(thing, names) for thing in objects if names[0] != "pattern" or thing.pattern != "solid"}
        if not shared:
            continue
        best = max(shared, key=lambda one: (one.count(objects), noun(one)))
        if best.count(objects) >= 3 or (best.count(objects) == len(objects) == 2 and len(names) == 2):
            return best
    return None


def salience(thing: Object, objects: Sequence[Object]) -> float:
    """How much a thing stands out: by its size, and by having a shape, color or pattern that no other has."""
    rare = sum(Filter.of(thing, (name,)).count(objects) == 1 for name in ("shape", "color", "pattern"))
    return 2 * (thing.size == "large") + rare


def mention(thing: Object, objects: Sequence[Object], rng: random.Random) -> str:
    """``a large striped red star``: color and shape always; solid and small are not worth a word, the rest often is."""
    sizes = {other.size for other in objects}
    return "a " + noun(
        Filter(
            size=thing.size if thing.size == "large" and len(sizes) > 1 and rng.random() < 0.8 else None,
            pattern=thing.pattern if thing.pattern != "solid" and rng.random() < 0.7 else None,
            color=thing.color,
            shape=thing.shape,
        )
    )


def _of_group(group: Filter, ranked: Sequence[Object], rng: random.Random) -> str:
    count = group.count(ranked)
    first = f"{NUMBERS[count]} {noun(group, plural=True)}"
    rest = [thing for thing in ranked if not group.matches(thing)]
    if rest and rng.random() < 0.85:
        text = CAPTIONS["two"].pick(rng, first=first, second=mention(rest[0], ranked, rng))
        return text.replace("there is", "there are")
    return CAPTIONS["many"].pick(rng, first=first)


def _of_two(ranked: Sequence[Object], rng: random.Random) -> str:
    one, other = ranked[0], ranked[1]
    first, second = mention(one, ranked, rng), mention(other, ranked, rng)
    style = rng.random()
    if style < 0.2:
        return CAPTIONS["place"].pick(rng, first=first, place=one.place)
    relations = [relation for relation in RELATIONS if holds(relation, one, other)]
    if style < 0.5 and relations:
        return CAPTIONS["relation"].pick(rng, first=first, rel=rng.choice(relations), second=second)
    return CAPTIONS["two"].pick(rng, first=first, second=second)
