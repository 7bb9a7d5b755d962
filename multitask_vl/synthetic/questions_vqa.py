"""VQA questions of the synthetic world: attributes, presence, number, comparison, position and relations."""

from __future__ import annotations

import random

from multitask_vl.synthetic.language import noun_phrase, value_phrase
from multitask_vl.synthetic.questions import Form, Proposal, Question, SceneFacts, Template
from multitask_vl.synthetic.scene_construction import FORMS
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    COLORS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    VALUES,
    Filter,
    relation_holds,
)

YES_NO = ("yes", "no")
MAX_COUNT = 4
SINGLE_ATTRIBUTE = (("shape",), ("color",), ("pattern",))


def forms_without(attribute: str) -> tuple[Form, ...]:
    """Forms of descriptions that name one or two attributes other than ``attribute``."""
    rest = [name for name in ATTRIBUTES if name != attribute]
    return (
        *((name,) for name in rest),
        *((first, second) for first in rest for second in rest if rest.index(first) < rest.index(second)),
    )


def query(attribute: str) -> Proposal:
    """Questions such as "what color is the striped star?": a unique description without the attribute asked for."""

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        options = [
            (k, x)
            for k, x in facts.unique_descriptions(attribute)
            if x.attributes == form and getattr(facts.objects[k], attribute) == answer
        ]
        if not options:
            return None
        index, x = rng.choice(options)
        return Question(f"query_{attribute}", form, {"x": noun_phrase(x)}, answer, (index,), (x,))

    return propose


def exist(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "is there a red star?"; half of the absent descriptions are near misses."""
    if answer == "yes":
        x = Filter.from_appearance(rng.choice(facts.objects), form)
    else:
        x = facts.absent_description(form, rng.random() < 0.5, rng)
    if x is None:
        return None
    return Question("exist", form, {"x": noun_phrase(x)}, answer, facts.matching(x), (x,))


def count(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "how many red things are there?", with answers from 0 to MAX_COUNT."""
    if answer == "0":
        x = facts.absent_description(form, rng.random() < 0.5, rng)
    else:
        present = {Filter.from_appearance(thing, form) for thing in facts.objects}
        options = sorted((x for x in present if x.count(facts.objects) == int(answer)), key=noun_phrase)
        x = rng.choice(options) if options else None
    if x is None:
        return None
    return Question("count", form, {"xs": noun_phrase(x, plural=True)}, answer, facts.matching(x), (x,))


def verify(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "is the star red?": the form is the attribute. Half of the wrong values occur in the image."""
    (attribute,) = form
    options = facts.unique_descriptions(attribute)
    if not options:
        return None
    index, x = rng.choice(options)
    value = getattr(facts.objects[index], attribute)
    if answer == "no":
        wrong = other_values(facts, index, x, attribute, rng.random() < 0.5)
        if not wrong:
            return None
        value = rng.choice(wrong)
    slots = {"x": noun_phrase(x), "v": value_phrase(attribute, value)}
    return Question("verify", form, slots, answer, (index,), (x,))


def other_values(facts: SceneFacts, index: int, x: Filter, attribute: str, in_image: bool) -> list[str]:
    """Values that object ``index`` lacks, that may be named with ``x``, and that other objects have (``in_image``)."""
    thing = facts.objects[index]
    seen = {getattr(other, attribute) for other in facts.objects}
    values = [v for v in VALUES[attribute] if v != getattr(thing, attribute) and (v in seen) == in_image]
    if attribute == "size":
        values = [v for v in SIZES if v != thing.size]
    known = {name: getattr(x, name) for name in x.attributes}
    return [v for v in values if facts.may_describe(Filter(**known | {attribute: v}))]


def compare_numbers(name: str) -> Proposal:
    """Questions such as "are there more stars than circles?" or "... as many ...": descriptions of one attribute."""

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        (attribute,) = form
        counts = {v: Filter(**{attribute: v}).count(facts.objects) for v in VALUES[attribute]}
        pairs = [(v, w) for v in counts for w in counts if v != w and counts[v] + counts[w] > 0]
        if name == "more":
            pairs = [(v, w) for v, w in pairs if (counts[v] > counts[w]) == (answer == "yes")]
        else:  # both present, since "as many" would otherwise only ask about presence
            pairs = [
                (v, w) for v, w in pairs if counts[v] and counts[w] and (counts[v] == counts[w]) == (answer == "yes")
            ]
        if not pairs:
            return None
        x, y = (Filter(**{attribute: v}) for v in rng.choice(pairs))
        slots = {"xs": noun_phrase(x, plural=True), "ys": noun_phrase(y, plural=True)}
        return Question(name, form, slots, answer, (*facts.matching(x), *facts.matching(y)), (x, y))

    return propose


def attribute_in_quadrant(attribute: str) -> Proposal:
    """Questions such as "what color is the thing at the top left?" about a quadrant with a single object."""

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        options = [name for name, k in facts.sole_objects.items() if getattr(facts.objects[k], attribute) == answer]
        if not options:
            return None
        quadrant = rng.choice(options)
        return Question(f"{attribute}_at", form, {"place": quadrant}, answer, (facts.sole_objects[quadrant],))

    return propose


def relate_verify(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "is the star left of the red circle?": the form is the relation."""
    (relation,) = form
    options = facts.unique_descriptions()
    pairs = [
        (subject, anchor)
        for subject in options
        for anchor in options
        if subject[0] != anchor[0]
        and relation_holds(relation, facts.objects[subject[0]], facts.objects[anchor[0]]) == (answer == "yes")
    ]
    if not pairs:
        return None
    (index, x), (anchor, y) = rng.choice(pairs)
    slots = {"x": noun_phrase(x), "y": noun_phrase(y), "rel": relation}
    return Question("relate_verify", form, slots, answer, (index, anchor), (x, y))


TEMPLATES = (
    Template("query_color", 14, forms_without("color"), COLORS, query("color")),
    Template("query_shape", 12, forms_without("shape"), SHAPES, query("shape")),
    Template("query_pattern", 10, forms_without("pattern"), PATTERNS, query("pattern")),
    Template("query_size", 3, forms_without("size"), SIZES, query("size")),
    Template("color_at", 6, ((),), COLORS, attribute_in_quadrant("color")),
    Template("shape_at", 6, ((),), SHAPES, attribute_in_quadrant("shape")),
    Template("count", 14, FORMS, tuple(map(str, range(MAX_COUNT + 1))), count),
    Template("exist", 17, FORMS, YES_NO, exist),
    Template("verify", 7, tuple((name,) for name in ATTRIBUTES), YES_NO, verify),
    Template("more", 5, SINGLE_ATTRIBUTE, YES_NO, compare_numbers("more")),
    Template("as_many", 2, SINGLE_ATTRIBUTE, YES_NO, compare_numbers("as_many")),
    Template("relate_verify", 4, tuple((r,) for r in RELATIONS), YES_NO, relate_verify),
)
