"""GQA questions of the synthetic world: compositional questions with their programs, mostly open relational ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from multitask_vl.synthetic.language import THING, definite, indefinite, noun_phrase, value_phrase
from multitask_vl.synthetic.questions import Form, Proposal, Question, SceneFacts, Template
from multitask_vl.synthetic.questions_vqa import SINGLE_ATTRIBUTE, YES_NO, forms_without, other_values
from multitask_vl.synthetic.questions_vqa import query as vqa_query
from multitask_vl.synthetic.questions_vqa import relate_verify as vqa_relate_verify
from multitask_vl.synthetic.scene_construction import FORMS, shared_attributes
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    COLORS,
    PATTERNS,
    QUADRANTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Filter,
    Object,
)

Step = dict[str, Any]


def step(operation: str, argument: str, *dependencies: int) -> Step:
    """One operation of a program, in the format of GQA files."""
    return {"operation": operation, "dependencies": list(dependencies), "argument": argument}


def select(x: Filter, indices: Sequence[int], first: int = 0) -> list[Step]:
    """Steps that select the objects ``x`` describes: the noun, then one filter per adjective.

    Objects are written as ``{0}``, ``{1}``, which the writer replaces by their ids, and none as ``-``, as in GQA.

    Args:
        first: index of the first step in the program.
    """
    steps = [step("select", f"{x.shape or THING} ({_object_slots(indices)})")]
    for name in reversed(x.attributes):
        if name != "shape":
            steps.append(step(f"filter {name}", getattr(x, name), first + len(steps) - 1))
    return steps


def _object_slots(indices: Sequence[int]) -> str:
    return ",".join(f"{{{k}}}" for k in indices) or "-"


def _relate(x: Filter, relation: str, indices: Sequence[int], steps: list[Step]) -> None:
    """Append the steps that move from the last result to the objects ``x`` describes in that direction."""
    steps.append(step("relate", f"{x.shape or THING},{relation},s ({_object_slots(indices)})", len(steps) - 1))
    # Two filters both depend on the relate step, not on each other: the files of FORMAT_VERSION 1 have it this way.
    relate_index = len(steps) - 1
    steps += [step(f"filter {name}", getattr(x, name), relate_index) for name in x.attributes if name != "shape"]


def query(attribute: str) -> Proposal:
    """Questions such as "what color is the small striped star?"."""
    propose_vqa = vqa_query(attribute)

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        question = propose_vqa(facts, form, answer, rng)
        if question is None:
            return None
        (x,) = question.descriptions
        steps = select(x, question.object_indices)
        steps.append(step("query", attribute, len(steps) - 1))
        full_answer = f"{definite(x)} is {value_phrase(attribute, answer)}."
        return replace(question, program=tuple(steps), full_answer=full_answer)

    return propose


def relate(attribute: str) -> Proposal:
    """Questions such as "what color is the star left of the red circle?": the form is the target's description.

    The relation is necessary: another object fits the description, or, for "thing", there is a third object.
    """
    name = f"relate_{attribute}"

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        options = []
        for anchor, y in facts.unique_descriptions():
            for relation in RELATIONS:
                related = facts.related(relation, anchor)
                for k in related:
                    if getattr(facts.objects[k], attribute) != answer:
                        continue
                    x = Filter.from_appearance(facts.objects[k], form)
                    matches = [j for j in facts.matching(x) if j != anchor]
                    if len(matches) > 1 and sum(j in related for j in matches) == 1:
                        options.append((k, x, relation, anchor, y))
        if not options:
            return None
        index, x, relation, anchor, y = rng.choice(options)
        slots = {"x": noun_phrase(x), "y": noun_phrase(y), "rel": relation}
        steps = select(y, [anchor])
        _relate(x, relation, [index], steps)
        steps.append(step("query", "name" if attribute == "shape" else attribute, len(steps) - 1))
        full_answer = f"{definite(x)} {relation} {definite(y)} is {value_phrase(attribute, answer)}."
        return Question(name, form, slots, answer, (index, anchor), (x, y), tuple(steps), full_answer)

    return propose


def same_shape(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "what shape is the other thing with the color of the star?": one other object shares it."""
    (attribute,) = form
    options = []
    for index, x in facts.unique_descriptions(attribute):
        value = getattr(facts.objects[index], attribute)
        others = [k for k in facts.matching(Filter(**{attribute: value})) if k != index]
        if len(others) == 1 and facts.objects[others[0]].shape == answer:
            options.append((index, x, others[0]))
    if not options:
        return None
    index, x, other = rng.choice(options)
    slots = {"x": noun_phrase(x), "attribute": attribute}
    steps = select(x, [index])
    _relate(Filter(), f"same {attribute}", [other], steps)
    steps.append(step("query", "name", len(steps) - 1))
    return Question("same_shape", form, slots, answer, (index, other), (x,), tuple(steps), f"it is a {answer}.")


def where(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "where is the red star?", answered by a quadrant of the image."""
    options = [
        (k, x) for k, x in facts.unique_descriptions() if x.attributes == form and facts.objects[k].quadrant == answer
    ]
    if not options:
        return None
    index, x = rng.choice(options)
    steps = select(x, [index])
    steps.append(step("query", "position", len(steps) - 1))
    full_answer = f"{definite(x)} is at the {answer}."
    return Question("where", form, {"x": noun_phrase(x)}, answer, (index,), (x,), tuple(steps), full_answer)


def _sample_pair(
    facts: SceneFacts, attribute: str, accept: Callable[[Object, Object], bool], rng: random.Random
) -> tuple[tuple[int, int], tuple[Filter, Filter]] | None:
    """Indices and descriptions of two accepted objects, described without ``attribute``; None if there are none."""
    options = facts.unique_descriptions(attribute)
    pairs = [
        (first, second)
        for first in options
        for second in options
        if first[0] != second[0] and accept(facts.objects[first[0]], facts.objects[second[0]])
    ]
    if not pairs:
        return None
    (first, x), (second, y) = rng.choice(pairs)
    return (first, second), (x, y)


def _compare_program(operation: str, indices: tuple[int, int], descriptions: tuple[Filter, Filter]) -> tuple[Step, ...]:
    """Program that selects two objects and compares them."""
    steps = select(descriptions[0], [indices[0]])
    first = len(steps) - 1
    steps += select(descriptions[1], [indices[1]], len(steps))
    return (*steps, step(operation, "", first, len(steps) - 1))


def common(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "what do the star and the red circle have in common?": exactly one attribute."""
    found = _sample_pair(facts, answer, lambda u, v: shared_attributes(u, v) == [answer], rng)
    if found is None:
        return None
    indices, (x, y) = found
    program = _compare_program("common", indices, (x, y))
    slots = {"x": noun_phrase(x), "y": noun_phrase(y)}
    full_answer = f"{definite(x)} and {definite(y)} have the same {answer}."
    return Question("common", form, slots, answer, indices, (x, y), program, full_answer)


def same(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "do the star and the circle have the same color?": the form is the attribute."""
    (attribute,) = form
    found = _sample_pair(
        facts, attribute, lambda u, v: (getattr(u, attribute) == getattr(v, attribute)) == (answer == "yes"), rng
    )
    if found is None:
        return None
    indices, (x, y) = found
    program = _compare_program(f"same {attribute}", indices, (x, y))
    slots = {"x": noun_phrase(x), "y": noun_phrase(y), "attribute": attribute}
    predicate = "the same" if answer == "yes" else "no common"
    full_answer = f"{answer}, {definite(x)} and {definite(y)} have {predicate} {attribute}."
    return Question("same", form, slots, answer, indices, (x, y), program, full_answer)


def choose(facts: SceneFacts, form: Form, position: str, rng: random.Random) -> Question | None:
    """Questions such as "is the star red or blue?": the form is the attribute, the answer which one is right."""
    (attribute,) = form
    options = facts.unique_descriptions(attribute)
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
    slots = {"x": noun_phrase(x), "v": v, "w": w}
    full_answer = f"{definite(x)} is {value_phrase(attribute, right)}."
    return Question("choose", form, slots, right, (index,), (x,), tuple(steps), full_answer)


def relate_verify(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "is the star left of the red circle?"."""
    question = vqa_relate_verify(facts, form, answer, rng)
    if question is None:
        return None
    (relation,), (x, y), (index, anchor) = form, question.descriptions, question.object_indices
    steps = select(x, [index])
    steps.append(step("verify rel", f"{y.shape or THING},{relation},o ({{{anchor}}})", len(steps) - 1))
    negation = "" if answer == "yes" else "not "
    full_answer = f"{answer}, {definite(x)} is {negation}{relation} {definite(y)}."
    return replace(question, program=tuple(steps), full_answer=full_answer)


def relate_exist(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
    """Questions such as "is there a star left of the red circle?"; half of the absent objects are elsewhere."""
    options = facts.unique_descriptions()
    if not options:
        return None
    anchor, y = rng.choice(options)
    relation = rng.choice(RELATIONS)
    related = facts.related(relation, anchor)
    unrelated = [k for k in range(len(facts.objects)) if k != anchor and k not in related]
    if answer == "yes":
        x = Filter.from_appearance(facts.objects[rng.choice(related)], form) if related else None
    elif rng.random() < 0.5:
        x = Filter.from_appearance(facts.objects[rng.choice(unrelated)], form) if unrelated else None
    else:
        x = facts.absent_description(form, rng.random() < 0.5, rng)
    if x is None or x.matches(facts.objects[anchor]):
        return None
    matches = tuple(k for k in facts.matching(x) if k in related)
    if bool(matches) != (answer == "yes"):
        return None
    steps = select(y, [anchor])
    _relate(x, relation, matches, steps)
    steps.append(step("exist", "?", len(steps) - 1))
    slots = {"x": noun_phrase(x), "y": noun_phrase(y), "rel": relation}
    subject = indefinite(x) if matches else f"no {noun_phrase(x)}"
    full_answer = f"{answer}, there is {subject} {relation} {definite(y)}."
    return Question("relate_exist", form, slots, answer, (*matches, anchor), (x, y), tuple(steps), full_answer)


def two_exist(name: str, operator: str) -> Proposal:
    """Questions such as "is there a star and a circle?" or "... a star or a circle?": two descriptions of one form."""

    def propose(facts: SceneFacts, form: Form, answer: str, rng: random.Random) -> Question | None:
        if answer == "yes":
            num_present = 2 if operator == "and" else rng.choice((1, 1, 2))
        else:
            num_present = rng.choice((0, 1, 1)) if operator == "and" else 0
        present = sorted({Filter.from_appearance(thing, form) for thing in facts.objects}, key=noun_phrase)
        if len(present) < num_present:
            return None
        descriptions = rng.sample(present, num_present)
        while len(descriptions) < 2:
            absent = facts.absent_description(form, rng.random() < 0.5, rng)
            if absent is None or absent in descriptions:
                return None
            descriptions.append(absent)
        rng.shuffle(descriptions)
        x, y = descriptions
        steps: list[Step] = []
        results = []
        for each in descriptions:
            steps += select(each, facts.matching(each), len(steps))
            steps.append(step("exist", "?", len(steps) - 1))
            results.append(len(steps) - 1)
        steps.append(step(operator, "", *results))
        slots = {"x": noun_phrase(x), "y": noun_phrase(y)}
        indices = (*facts.matching(x), *facts.matching(y))
        return Question(name, form, slots, answer, indices, (x, y), tuple(steps), f"{answer}.")

    return propose


def _target_forms(attribute: str) -> tuple[Form, ...]:
    return ((), *(form for form in SINGLE_ATTRIBUTE if attribute not in form))


def _pair_forms(attribute: str) -> tuple[Form, ...]:
    return tuple(form for form in forms_without(attribute) if len(form) == 2)


TEMPLATES = (
    Template("relate_color", 14, _target_forms("color"), COLORS, relate("color")),
    Template("relate_shape", 14, _target_forms("shape"), SHAPES, relate("shape")),
    Template("relate_pattern", 8, _target_forms("pattern"), PATTERNS, relate("pattern")),
    Template("relate_size", 4, _target_forms("size"), SIZES, relate("size")),
    Template("same_shape", 6, (("color",), ("pattern",), ("size",)), SHAPES, same_shape),
    Template("where", 8, FORMS, QUADRANTS, where),
    Template("common", 5, ((),), ATTRIBUTES, common),
    Template("query_color", 6, _pair_forms("color"), COLORS, query("color")),
    Template("query_shape", 5, _pair_forms("shape"), SHAPES, query("shape")),
    Template("query_pattern", 3, _pair_forms("pattern"), PATTERNS, query("pattern")),
    Template("choose", 6, tuple((name,) for name in ATTRIBUTES), ("first", "second"), choose),
    Template("same", 6, tuple((name,) for name in ATTRIBUTES), YES_NO, same),
    Template("relate_exist", 6, FORMS, YES_NO, relate_exist),
    Template("relate_verify", 4, tuple((relation,) for relation in RELATIONS), YES_NO, relate_verify),
    Template("both_exist", 3, FORMS, YES_NO, two_exist("both_exist", "and")),
    Template("either_exist", 2, FORMS, YES_NO, two_exist("either_exist", "or")),
)
TYPES = {
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
"""Template -> structural, semantic and detailed type in GQA's classification."""
