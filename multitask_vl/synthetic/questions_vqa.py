"""What does the embedded VQA ask: attributes, presence, number, comparison, places and relations in one picture."""

from __future__ import annotations

import random

from multitask_vl.synthetic.language import noun, value_phrase
from multitask_vl.synthetic.questions import Facts, Form, Question, Template
from multitask_vl.synthetic.scene_construction import FORMS
from multitask_vl.synthetic.scenes import ATTRIBUTES, COLORS, PATTERNS, RELATIONS, SHAPES, SIZES, VALUES, Filter, holds

YES_NO = ("yes", "no")
MOST_COUNTED = 4
SINGLE = (("shape",), ("color",), ("pattern",))


def describing(asked: str) -> tuple[Form, ...]:
    """Forms of a description that helps to ask for an attribute: one or two of the others."""
    rest = [name for name in ATTRIBUTES if name != asked]
    return (
        *((name,) for name in rest),
        *((one, two) for one in rest for two in rest if rest.index(one) < rest.index(two)),
    )


def query(attribute: str):
    """As in "what color is the striped star?": a description that fits one object only, without the attribute asked."""

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        options = [
            (k, x)
            for k, x in facts.unique(attribute)
            if x.named == form and getattr(facts.objects[k], attribute) == answer
        ]
        if not options:
            return None
        index, x = rng.choice(options)
        name = f"query_{attribute}"
        return Question(name, form, {"x": noun(x)}, answer, (index,), (x,))

    return propose


def exist(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "is there a red star?": half of the absent ones are nearest misses."""
    present = answer == "yes"
    x = Filter.of(rng.choice(facts.objects), form) if present else facts.absent(form, rng.random() < 0.5, rng)
    if x is None:
        return None
    return Question("exist", form, {"x": noun(x)}, answer, facts.matching(x), (x,))


def count(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "how many red things are there?": zero to four."""
    if answer == "0":
        x = facts.absent(form, rng.random() < 0.5, rng)
    else:
        present = {Filter.of(thing, form) for thing in facts.objects}
        right = sorted((x for x in present if x.count(facts.objects) == int(answer)), key=noun)
        x = rng.choice(right) if right else None
    if x is None:
        return None
    return Question("count", form, {"xs": noun(x, plural=True)}, answer, facts.matching(x), (x,))


def verify(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "is the star red?": the form is the attribute. Half of the wrong values occur elsewhere in the picture."""
    (attribute,) = form
    options = facts.unique(attribute)
    if not options:
        return None
    index, x = rng.choice(options)
    value = getattr(facts.objects[index], attribute)
    if answer == "no":
        wrong = other_values(facts, index, x, attribute, rng.random() < 0.5)
        if not wrong:
            return None
        value = rng.choice(wrong)
    slots = {"x": noun(x), "v": value_phrase(attribute, value)}
    return Question("verify", form, slots, answer, (index,), (x,))


def other_values(facts: Facts, index: int, x: Filter, attribute: str, elsewhere: bool) -> list[str]:
    """Values object ``index`` lacks, that may be named with ``x``, and that others in the picture have or have not."""
    thing = facts.objects[index]
    seen = {getattr(other, attribute) for other in facts.objects}
    values = [v for v in VALUES[attribute] if v != getattr(thing, attribute) and (v in seen) == elsewhere]
    if attribute == "size":
        values = [v for v in SIZES if v != thing.size]
    return [v for v in values if facts.may_name(Filter(**{n: getattr(x, n) for n in x.named} | {attribute: v}))]


def numbers(name: str):
    """As in "are there more stars than circles?" and "are there as many ...": both descriptions of one attribute."""

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        (attribute,) = form
        tally = {v: Filter(**{attribute: v}).count(facts.objects) for v in VALUES[attribute]}
        pairs = [(v, w) for v in tally for w in tally if v != w and tally[v] + tally[w] > 0]
        if name == "more":
            pairs = [(v, w) for v, w in pairs if (tally[v] > tally[w]) == (answer == "yes")]
        else:  # both present, else "as many" would ask for presence only
            pairs = [(v, w) for v, w in pairs if tally[v] and tally[w] and (tally[v] == tally[w]) == (answer == "yes")]
        if not pairs:
            return None
        x, y = (Filter(**{attribute: v}) for v in rng.choice(pairs))
        slots = {"xs": noun(x, plural=True), "ys": noun(y, plural=True)}
        return Question(name, form, slots, answer, (*facts.matching(x), *facts.matching(y)), (x, y))

    return propose


def at_place(attribute: str):
    """As in "what color is the thing at the top left?": a quarter that holds one object."""

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        right = [place for place, k in facts.alone_at.items() if getattr(facts.objects[k], attribute) == answer]
        if not right:
            return None
        place = rng.choice(right)
        name = f"{attribute}_at"
        return Question(name, form, {"place": place}, answer, (facts.alone_at[place],))

    return propose


def relate_verify(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "is the star left of the red circle?": the form is the relation."""
    (relation,) = form
    options = facts.unique()
    pairs = [
        (one, other)
        for one in options
        for other in options
        if one[0] != other[0] and holds(relation, facts.objects[one[0]], facts.objects[other[0]]) == (answer == "yes")
    ]
    if not pairs:
        return None
    (index, x), (anchor, y) = rng.choice(pairs)
    slots = {"x": noun(x), "y": noun(y), "rel": relation}
    return Question("relate_verify", form, slots, answer, (index, anchor), (x, y))


COUNTED = tuple(map(str, range(MOST_COUNTED + 1)))
TEMPLATES = (
    Template("query_color", 14, describing("color"), COLORS, query("color")),
    Template("query_shape", 12, describing("shape"), SHAPES, query("shape")),
    Template("query_pattern", 10, describing("pattern"), PATTERNS, query("pattern")),
    Template("query_size", 3, describing("size"), SIZES, query("size")),
    Template("color_at", 6, ((),), COLORS, at_place("color")),
    Template("shape_at", 6, ((),), SHAPES, at_place("shape")),
    Template("count", 14, FORMS, COUNTED, count),
    Template("exist", 17, FORMS, YES_NO, exist),
    Template("verify", 7, tuple((name,) for name in ATTRIBUTES), YES_NO, verify),
    Template("more", 5, SINGLE, YES_NO, numbers("more")),
    Template("as_many", 2, SINGLE, YES_NO, numbers("as_many")),
    Template("relate_verify", 4, tuple((r,) for r in RELATIONS), YES_NO, relate_verify),
)
