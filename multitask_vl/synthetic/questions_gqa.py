"""What does the embedded GQA ask: compositional questions with their programs, open relational ones most of all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from multitask_vl.synthetic.language import THING, a, noun, the, value_phrase
from multitask_vl.synthetic.questions import Facts, Form, Question, Template
from multitask_vl.synthetic.questions_vqa import YES_NO, describing, other_values
from multitask_vl.synthetic.questions_vqa import query as vqa_query
from multitask_vl.synthetic.questions_vqa import relate_verify as vqa_relate_verify
from multitask_vl.synthetic.scene_construction import FORMS
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    COLORS,
    PATTERNS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Filter,
)

Step = dict[str, Any]
SINGLE = (("shape",), ("color",), ("pattern",))


def step(operation: str, argument: str, *dependencies: int) -> Step:
    """One operation of a program, as GQA files hold it."""
    return {"operation": operation, "dependencies": list(dependencies), "argument": argument}


def select(x: Filter, indices: Sequence[int], at: int = 0) -> list[Step]:
    """Steps that pick what ``x`` describes: a noun, then one filter an adjective. ``at``: number of the first step.

    Objects stand as ``{0}``, ``{1}``: the writer puts their ids there. ``-`` stands for nothing, as in GQA.
    """
    found = ",".join(f"{{{k}}}" for k in indices) or "-"
    steps = [step("select", f"{x.shape or THING} ({found})")]
    for name in reversed(x.named):
        if name != "shape":
            steps.append(step(f"filter {name}", getattr(x, name), at + len(steps) - 1))
    return steps


def query(attribute: str):
    """As in "what color is the small striped star?" with its program."""
    ask = vqa_query(attribute)

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        plain = ask(facts, form, answer, rng)
        if plain is None:
            return None
        steps = select(plain.named[0], plain.about)
        steps.append(step("query", attribute, len(steps) - 1))
        return _with(plain, steps, f"{the(plain.named[0])} is {value_phrase(attribute, answer)}.")

    return propose


def relate(attribute: str):
    """As in "what color is the star left of the red circle?": the form is what the description of the target names.

    The relation is needed: something else fits that description, or, for "thing", there is a third object.
    """
    name = f"relate_{attribute}"

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        options = []
        for anchor, y in facts.unique():
            for relation in RELATIONS:
                beyond = facts.beyond(relation, anchor)
                for k in beyond:
                    if getattr(facts.objects[k], attribute) != answer:
                        continue
                    x = Filter.of(facts.objects[k], form)
                    fits = [j for j in facts.matching(x) if j != anchor]
                    if len(fits) > 1 and sum(j in beyond for j in fits) == 1:
                        options.append((k, x, relation, anchor, y))
        if not options:
            return None
        index, x, relation, anchor, y = rng.choice(options)
        slots = {"x": noun(x), "y": noun(y), "rel": relation}
        steps = select(y, [anchor])
        steps.append(step("relate", f"{x.shape or THING},{relation},s ({{{index}}})", len(steps) - 1))
        steps += [step(f"filter {n}", getattr(x, n), len(steps) - 1) for n in x.named if n != "shape"]
        steps.append(step("query", "name" if attribute == "shape" else attribute, len(steps) - 1))
        full = f"{the(x)} {relation} {the(y)} is {value_phrase(attribute, answer)}."
        return Question(name, form, slots, answer, (index, anchor), (x, y), tuple(steps), full)

    return propose


def same_shape(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "what shape is the other thing with the color of the star?": one other shares the form's attribute."""
    (attribute,) = form
    options = []
    for index, x in facts.unique(attribute):
        value = getattr(facts.objects[index], attribute)
        others = [k for k in facts.matching(Filter(**{attribute: value})) if k != index]
        if len(others) == 1 and facts.objects[others[0]].shape == answer:
            options.append((index, x, others[0]))
    if not options:
        return None
    index, x, other = rng.choice(options)
    slots = {"x": noun(x), "attribute": attribute}
    steps = select(x, [index])
    steps.append(step("relate", f"{THING},same {attribute},s ({{{other}}})", len(steps) - 1))
    steps.append(step("query", "name", len(steps) - 1))
    return Question("same_shape", form, slots, answer, (index, other), (x,), tuple(steps), f"it is a {answer}.")


def where(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "where is the red star?": a quarter of the picture."""
    options = [(k, x) for k, x in facts.unique() if x.named == form and facts.objects[k].place == answer]
    if not options:
        return None
    index, x = rng.choice(options)
    steps = select(x, [index])
    steps.append(step("query", "position", len(steps) - 1))
    slots = {"x": noun(x)}
    return Question("where", form, slots, answer, (index,), (x,), tuple(steps), f"{the(x)} is at the {answer}.")


def _pair(facts: Facts, attribute: str, fits, rng: random.Random):
    """Two objects for which ``fits`` holds, each described alone without ``attribute``; None if there are none."""
    options = facts.unique(attribute)
    pairs = [
        (one, other)
        for one in options
        for other in options
        if one[0] != other[0] and fits(facts.objects[one[0]], facts.objects[other[0]])
    ]
    return rng.choice(pairs) if pairs else None


def common(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "what do the star and the red circle have in common?": exactly one attribute."""
    pair = _pair(facts, answer, lambda u, v: [n for n in ATTRIBUTES if getattr(u, n) == getattr(v, n)] == [answer], rng)
    if pair is None:
        return None
    (one, x), (other, y) = pair
    steps = select(x, [one])
    first = len(steps) - 1
    steps += select(y, [other], len(steps))
    steps.append(step("common", "", first, len(steps) - 1))
    slots = {"x": noun(x), "y": noun(y)}
    full = f"{the(x)} and {the(y)} have the same {answer}."
    return Question("common", form, slots, answer, (one, other), (x, y), tuple(steps), full)


def same(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "do the star and the circle have the same color?": the form is the attribute."""
    (attribute,) = form
    pair = _pair(
        facts, attribute, lambda u, v: (getattr(u, attribute) == getattr(v, attribute)) == (answer == "yes"), rng
    )
    if pair is None:
        return None
    (one, x), (other, y) = pair
    steps = select(x, [one])
    first = len(steps) - 1
    steps += select(y, [other], len(steps))
    steps.append(step(f"same {attribute}", "", first, len(steps) - 1))
    slots = {"x": noun(x), "y": noun(y), "attribute": attribute}
    alike = "the same" if answer == "yes" else "no common"
    full = f"{answer}, {the(x)} and {the(y)} have {alike} {attribute}."
    return Question("same", form, slots, answer, (one, other), (x, y), tuple(steps), full)


def choose(facts: Facts, form: Form, position: str, rng: random.Random) -> Question | None:
    """As in "is the star red or blue?": the form is the attribute; what is balanced is which of the two is right."""
    (attribute,) = form
    options = facts.unique(attribute)
    if not options:
        return None
    index, x = rng.choice(options)
    right = getattr(facts.objects[index], attribute)
    wrong = other_values(facts, index, x, attribute, rng.random() < 0.5)
    if not wrong:
        return None
    pair = [right, rng.choice(wrong)]
    if position == "second":
        pair.reverse()
    v, w = (value_phrase(attribute, value) for value in pair)
    steps = select(x, [index])
    steps.append(step(f"choose {attribute}", "|".join(pair), len(steps) - 1))
    slots = {"x": noun(x), "v": v, "w": w}
    full = f"{the(x)} is {value_phrase(attribute, right)}."
    return Question("choose", form, slots, right, (index,), (x,), tuple(steps), full)


def relate_verify(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "is the star left of the red circle?" with its program."""
    plain = vqa_relate_verify(facts, form, answer, rng)
    if plain is None:
        return None
    (x, y), (index, anchor) = plain.named, plain.about
    steps = select(x, [index])
    steps.append(step("verify rel", f"{y.shape or THING},{form[0]},o ({{{anchor}}})", len(steps) - 1))
    denied = "" if answer == "yes" else "not "
    return _with(plain, steps, f"{answer}, {the(x)} is {denied}{form[0]} {the(y)}.")


def relate_exist(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """As in "is there a star left of the red circle?": half of the absent ones are elsewhere in the picture."""
    options = facts.unique()
    if not options:
        return None
    anchor, y = rng.choice(options)
    relation = rng.choice(RELATIONS)
    beyond = facts.beyond(relation, anchor)
    behind = [k for k in range(len(facts.objects)) if k != anchor and k not in beyond]
    if answer == "yes":
        x = Filter.of(facts.objects[rng.choice(beyond)], form) if beyond else None
    elif rng.random() < 0.5:
        x = Filter.of(facts.objects[rng.choice(behind)], form) if behind else None
    else:
        x = facts.absent(form, rng.random() < 0.5, rng)
    if x is None or x.matches(facts.objects[anchor]):
        return None
    fits = tuple(k for k in facts.matching(x) if k in beyond)
    if bool(fits) != (answer == "yes"):
        return None
    steps = select(y, [anchor])
    found = ",".join(f"{{{k}}}" for k in fits) or "-"
    steps.append(step("relate", f"{x.shape or THING},{relation},s ({found})", len(steps) - 1))
    steps += [step(f"filter {n}", getattr(x, n), len(steps) - 1) for n in x.named if n != "shape"]
    steps.append(step("exist", "?", len(steps) - 1))
    slots = {"x": noun(x), "y": noun(y), "rel": relation}
    full = f"{answer}, there is {a(x) if fits else 'no ' + noun(x)} {relation} {the(y)}."
    return Question("relate_exist", form, slots, answer, (*fits, anchor), (x, y), tuple(steps), full)


def two_exist(name: str, word: str):
    """As in "is there a star and a circle?" and "is there a star or a circle?": both descriptions of one form."""

    def propose(facts: Facts, form: Form, answer: str, rng: random.Random) -> Question | None:
        if answer == "yes":
            present = 2 if word == "and" else rng.choice((1, 1, 2))
        else:
            present = rng.choice((0, 1, 1)) if word == "and" else 0
        there = sorted({Filter.of(thing, form) for thing in facts.objects}, key=noun)
        if len(there) < present:
            return None
        named = rng.sample(there, present)
        while len(named) < 2:
            x = facts.absent(form, rng.random() < 0.5, rng)
            if x is None or x in named:
                return None
            named.append(x)
        rng.shuffle(named)
        x, y = named
        steps: list[Step] = []
        ends = []
        for one in named:
            steps += select(one, facts.matching(one), len(steps))
            steps.append(step("exist", "?", len(steps) - 1))
            ends.append(len(steps) - 1)
        steps.append(step(word, "", *ends))
        slots = {"x": noun(x), "y": noun(y)}
        about = (*facts.matching(x), *facts.matching(y))
        return Question(name, form, slots, answer, about, (x, y), tuple(steps), f"{answer}.")

    return propose


def _with(plain: Question, steps: list[Step], full_answer: str) -> Question:
    return Question(
        plain.template, plain.form, plain.slots, plain.answer, plain.about, plain.named, tuple(steps), full_answer
    )


def _targets(asked: str) -> tuple[Form, ...]:
    return ((), *(form for form in SINGLE if asked not in form))


def _pairs(asked: str) -> tuple[Form, ...]:
    return tuple(form for form in describing(asked) if len(form) == 2)


TEMPLATES = (
    Template("relate_color", 14, _targets("color"), COLORS, relate("color")),
    Template("relate_shape", 14, _targets("shape"), SHAPES, relate("shape")),
    Template("relate_pattern", 8, _targets("pattern"), PATTERNS, relate("pattern")),
    Template("relate_size", 4, _targets("size"), SIZES, relate("size")),
    Template("same_shape", 6, (("color",), ("pattern",), ("size",)), SHAPES, same_shape),
    Template("where", 8, FORMS, PLACES, where),
    Template("common", 5, ((),), ATTRIBUTES, common),
    Template("query_color", 6, _pairs("color"), COLORS, query("color")),
    Template("query_shape", 5, _pairs("shape"), SHAPES, query("shape")),
    Template("query_pattern", 3, _pairs("pattern"), PATTERNS, query("pattern")),
    Template("choose", 6, tuple((name,) for name in ATTRIBUTES), ("first", "second"), choose),
    Template("same", 6, tuple((name,) for name in ATTRIBUTES), YES_NO, same),
    Template("relate_exist", 6, FORMS, YES_NO, relate_exist),
    Template("relate_verify", 4, tuple((relation,) for relation in RELATIONS), YES_NO, relate_verify),
    Template("both_exist", 3, FORMS, YES_NO, two_exist("both_exist", "and")),
    Template("either_exist", 2, FORMS, YES_NO, two_exist("either_exist", "or")),
)
TYPES = {  # template -> structural, semantic, detailed, as GQA sorts its questions
    **{f"relate_{name}": ("query", "rel", f"relS{name.capitalize()}") for name in ("color", "pattern", "size")},
    "relate_shape": ("query", "rel", "relS"),
    "same_shape": ("query", "rel", "sameRelS"),
    "where": ("query", "attr", "positionQuery"),
    "common": ("compare", "attr", "twoCommon"),
    **{f"query_{name}": ("query", "attr", "directOf") for name in ("color", "pattern")},
    "query_shape": ("query", "cat", "categoryThis"),
    "choose": ("choose", "attr", "chooseAttr"),
    "same": ("compare", "attr", "twoSame"),
    "relate_exist": ("verify", "obj", "existRelS"),
    "relate_verify": ("verify", "rel", "relVerify"),
    "both_exist": ("logical", "obj", "existAnd"),
    "either_exist": ("logical", "obj", "existOr"),
}
