"""Five captions per image of the synthetic world, about its most salient content.

The salient content is the same for all five: several similar objects ("three red stars"), or else the largest and
rarest object. Captions differ in the attributes they mention, in what they add, and in the wording.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from multitask_vl.synthetic.language import CAPTIONS, NUMBER_WORDS, noun_phrase
from multitask_vl.synthetic.scenes import RELATIONS, Filter, Object, Scene, relation_holds

CAPTIONS_PER_IMAGE = 5
_GROUP_FORMS = (("color", "shape"), ("pattern", "shape"), ("shape",), ("color",))


def caption_scene(scene: Scene, rng: random.Random, count: int = CAPTIONS_PER_IMAGE) -> list[str]:
    """``count`` true captions of a scene of at least one object."""
    group = salient_group(scene.objects)
    ranked = sorted(scene.objects, key=lambda thing: (-salience(thing, scene.objects), thing.cell))
    captions: list[str] = []
    for _ in range(count):
        for _ in range(4):  # retry, so that two captions are seldom equal
            if len(ranked) == 1:
                text = CAPTIONS["one"].sample(rng, first=describe_object(ranked[0], scene.objects, rng))
            else:
                text = _two_objects(ranked, rng) if group is None else _group(group, ranked, rng)
            if text not in captions:
                break
        captions.append(text)
    return captions


def salient_group(objects: Sequence[Object]) -> Filter | None:
    """Description that three or more objects share, or two attributes that both of two share; None if there is none."""
    for names in _GROUP_FORMS:
        shared = {
            Filter.from_appearance(thing, names)
            for thing in objects
            if names[0] != "pattern" or thing.pattern != "solid"
        }
        if not shared:
            continue
        best = max(shared, key=lambda each: (each.count(objects), noun_phrase(each)))
        if best.count(objects) >= 3 or (best.count(objects) == len(objects) == 2 and len(names) == 2):
            return best
    return None


def salience(thing: Object, objects: Sequence[Object]) -> float:
    """Salience of an object: 2 for large, plus 1 for each of shape, color and pattern that no other object has."""
    rare = sum(Filter.from_appearance(thing, (name,)).count(objects) == 1 for name in ("shape", "color", "pattern"))
    return 2 * (thing.size == "large") + rare


def describe_object(thing: Object, objects: Sequence[Object], rng: random.Random) -> str:
    """Phrase such as ``a large striped red star``: color and shape always, "large" and the pattern often."""
    sizes = {other.size for other in objects}
    return "a " + noun_phrase(
        Filter(
            size=thing.size if thing.size == "large" and len(sizes) > 1 and rng.random() < 0.8 else None,
            pattern=thing.pattern if thing.pattern != "solid" and rng.random() < 0.7 else None,
            color=thing.color,
            shape=thing.shape,
        )
    )


def _group(group: Filter, ranked: Sequence[Object], rng: random.Random) -> str:
    first = f"{NUMBER_WORDS[group.count(ranked)]} {noun_phrase(group, plural=True)}"
    rest = [thing for thing in ranked if not group.matches(thing)]
    if rest and rng.random() < 0.85:
        text = CAPTIONS["two"].sample(rng, first=first, second=describe_object(rest[0], ranked, rng))
        return text.replace("there is", "there are")
    return CAPTIONS["many"].sample(rng, first=first)


def _two_objects(ranked: Sequence[Object], rng: random.Random) -> str:
    subject, other = ranked[0], ranked[1]
    first, second = describe_object(subject, ranked, rng), describe_object(other, ranked, rng)
    style = rng.random()
    if style < 0.2:
        return CAPTIONS["place"].sample(rng, first=first, place=subject.quadrant)
    relations = [relation for relation in RELATIONS if relation_holds(relation, subject, other)]
    if style < 0.5 and relations:
        return CAPTIONS["relation"].sample(rng, first=first, rel=rng.choice(relations), second=second)
    return CAPTIONS["two"].sample(rng, first=first, second=second)
