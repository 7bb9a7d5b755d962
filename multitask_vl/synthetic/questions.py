"""Which questions are asked of which scene, so that in every form of every template all answers are equally frequent?

A *template* is a kind of question ("how many {xs} are there?"); its *forms* differ in which attributes a description
names, which is all that a reader without the picture can see of it once the attribute words are blanked. Each form
in each of its wordings keeps its own tally of answers: a scene is asked what lags most, or else the next.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from multitask_vl.synthetic.language import QUESTIONS
from multitask_vl.synthetic.scene_construction import (
    draw_filter,
    scene_for_common,
    scene_for_relation,
    scene_for_value,
    scene_with_count,
    unique_filters,
)
from multitask_vl.synthetic.scenes import (
    ALL,
    HELD_OUT,
    HELD_OUT_PAIRS,
    PLACES,
    SEEN,
    VALUES,
    Filter,
    Look,
    Object,
    Scene,
    holds,
    stream,
)

Form = tuple
"""Which attributes the descriptions of a question name; anything hashable."""


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        template: its kind, a key of `language.QUESTIONS`.
        form: what its descriptions name, or whatever else its answers are balanced within.
        slots: what fills the wording's slots.
        about: indices of the objects that it is about.
        named: the descriptions in its text.
        program: steps of the functional program, as GQA writes them (GQA only).
        full_answer: the answer as a sentence (GQA only).
        text: the question itself; filled in by the asker, who chooses the wording.
    """

    template: str
    form: Form
    slots: dict[str, str]
    answer: str
    about: tuple[int, ...] = ()
    named: tuple[Filter, ...] = ()
    program: tuple[dict[str, Any], ...] = ()
    full_answer: str = ""
    text: str = ""


class Facts:
    """A scene with what questions keep asking of it worked out once."""

    def __init__(self, scene: Scene, pool: Sequence[Look]):
        self.objects = scene.objects
        self.pool = pool
        """Looks whose descriptions may be named even where none of them is in the picture."""
        self._unique: dict[str | None, list[tuple[int, Filter]]] = {}

    def unique(self, asked: str | None = None) -> list[tuple[int, Filter]]:
        """Objects and descriptions of one or two attributes, ``asked`` not among them, that fit nothing else."""
        if asked not in self._unique:
            self._unique[asked] = [
                (index, found)
                for index in range(len(self.objects))
                for found in unique_filters(self.objects, index, asked, longest=2)
            ]
        return self._unique[asked]

    @cached_property
    def alone_at(self) -> dict[str, int]:
        """Quarters of the picture that hold one object only, and which."""
        held = {place: [k for k, thing in enumerate(self.objects) if thing.place == place] for place in PLACES}
        return {place: indices[0] for place, indices in held.items() if len(indices) == 1}

    def matching(self, wanted: Filter) -> tuple[int, ...]:
        return tuple(k for k, thing in enumerate(self.objects) if wanted.matches(thing))

    def beyond(self, relation: str, anchor: int) -> list[int]:
        """Objects that are ``relation`` the object ``anchor``."""
        return [k for k, thing in enumerate(self.objects) if holds(relation, thing, self.objects[anchor])]

    def may_name(self, *wanted: Filter) -> bool:
        """Whether these descriptions are allowed: pictures without held-out pairs are not asked about them either."""
        return self.pool is not SEEN or not any(one.names_held_out for one in wanted)

    def absent(self, form: Sequence[str], near: bool, rng: random.Random) -> Filter | None:
        """A description of this form that nothing fits, ``near`` if something fits all but one of its attributes."""
        for _ in range(6):
            wanted = draw_filter(rng, self.pool, (form,))
            if wanted.count(self.objects):
                continue
            if len(form) == 1 or near == any(_misses(wanted, thing) == 1 for thing in self.objects):
                return wanted
        return None


def _misses(wanted: Filter, thing: Object) -> int:
    return sum(getattr(wanted, name) != getattr(thing, name) for name in wanted.named)


Proposal = Callable[[Facts, Form, str, random.Random], Question | None]


@dataclass(frozen=True)
class Template:
    """A kind of question and how to ask it.

    Attributes:
        share: its part of a task's questions, relative to the others.
        forms: its balanced cells.
        answers: what may be answered, in any of its forms.
        propose: (facts, form, answer, rng) -> a question with that answer, or None where the scene has none.
    """

    name: str
    share: float
    forms: tuple[Form, ...]
    answers: tuple[str, ...]
    propose: Proposal


@dataclass
class Asker:
    """Spreads questions over scenes; one for a task and split, so that no task's questions depend on another's code.

    Attributes:
        templates: what may be asked.
        only_held_out: keep only questions that are about, or name, a held-out pair of color and shape.
    """

    templates: Sequence[Template]
    only_held_out: bool = False
    asked: Counter = field(default_factory=Counter)
    forms: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)

    def ask(self, scene: Scene, number: int, rng: random.Random) -> list[Question]:
        """Up to ``number`` different questions about a scene."""
        facts = Facts(scene, ALL if self.only_held_out else SEEN)
        found: list[Question] = []
        while len(found) < number:
            question = self._next(facts, {one.text for one in found}, rng)
            if question is None:
                break
            found.append(question)
        return found

    def _next(self, facts: Facts, known: set[str], rng: random.Random) -> Question | None:
        ranked = sorted(self.templates, key=lambda one: (self.asked[one.name] / one.share, rng.random()))
        for template in ranked:
            wordings = QUESTIONS[template.name].seen
            forms = [(template.name, form, number) for form in template.forms for number in range(len(wordings))]
            for form in sorted(forms, key=lambda one: (self.forms[one], rng.random())):
                least = min(self.answers[*form, answer] for answer in template.answers)
                lagging = [answer for answer in template.answers if self.answers[*form, answer] == least]
                rng.shuffle(lagging)
                for answer in lagging:
                    question = template.propose(facts, form[1], answer, rng)
                    if question is None or not self._wanted(question, facts):
                        continue
                    text = wordings[form[2]].format(**question.slots)
                    if text in known:
                        continue
                    self.asked[template.name] += 1
                    self.forms[form] += 1
                    self.answers[*form, answer] += 1
                    return replace(question, text=text)
        return None

    def _wanted(self, question: Question, facts: Facts) -> bool:
        if not self.only_held_out:
            return True
        pairs = {(facts.objects[k].color, facts.objects[k].shape) for k in question.about}
        return bool(pairs & HELD_OUT_PAIRS) or any(one.names_held_out for one in question.named)


def staged_scene(seed: int, split: str, index: int) -> Scene:
    """Scene ``index`` of a split: built in turn for a number, a value, a relation, or something in common.

    In the split ``heldout`` what the scene is built about is a held-out combination; elsewhere none occurs.
    """
    rng = stream("world", seed, "scene", split, index)
    pool, others = (HELD_OUT, ALL) if split == "heldout" else (SEEN, SEEN)
    kind = index % 8
    if kind in (0, 3, 5):
        return scene_with_count(draw_filter(rng, pool), rng.randint(0, 4), rng, pool, others)
    attribute = rng.choices(tuple(VALUES), weights=(1, 2, 4, 4))[0]
    value = rng.choice(VALUES[attribute])
    if kind in (1, 6):
        return scene_for_value(attribute, value, rng, pool, others)
    if kind in (2, 4):
        return scene_for_relation(attribute, value, rng, pool, others).scene
    return scene_for_common(rng.choice(tuple(VALUES)), rng, pool, others)
