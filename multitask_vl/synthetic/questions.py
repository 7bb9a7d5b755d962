"""Question sampling: in every form of every template, all answers are equally frequent.

A *template* is a type of question ("how many {xs} are there?"). Its *forms* differ in the attributes that a description
names: all that can be seen of a question once its attribute words are blanked. Answers are counted separately for each
form in each wording, and a scene is asked the question whose answer is behind, or else the next one.
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
    sample_filter,
    scene_for_relation,
    scene_for_shared_attribute,
    scene_for_value,
    scene_with_count,
    unique_filters,
)
from multitask_vl.synthetic.scenes import (
    ALL_APPEARANCES,
    HELD_OUT,
    HELD_OUT_PAIRS,
    QUADRANTS,
    SEEN,
    VALUES,
    Appearance,
    Filter,
    Object,
    Scene,
    relation_holds,
    split_rng,
)

Form = tuple
"""Attributes that the descriptions of a question name, or another hashable key."""


@dataclass(frozen=True)
class Question:
    """Question about a scene.

    Attributes:
        template: key of `language.QUESTIONS`.
        form: attributes its descriptions name, or whatever else its answers are balanced within.
        slots: values of the wording's slots.
        object_indices: indices of the objects it is about.
        descriptions: descriptions in its text.
        program: steps of the functional program in GQA's notation (GQA only).
        full_answer: the answer as a sentence (GQA only).
        text: the question; set by the sampler, which chooses the wording.
    """

    template: str
    form: Form
    slots: dict[str, str]
    answer: str
    object_indices: tuple[int, ...] = ()
    descriptions: tuple[Filter, ...] = ()
    program: tuple[dict[str, Any], ...] = ()
    full_answer: str = ""
    text: str = ""


class SceneFacts:
    """Scene with cached answers to recurring queries.

    Args:
        scene: the scene.
        pool: appearances whose descriptions may be named even if no object has them.
    """

    def __init__(self, scene: Scene, pool: Sequence[Appearance]):
        self.objects = scene.objects
        self.pool = pool
        self._unique: dict[str | None, list[tuple[int, Filter]]] = {}

    def unique_descriptions(self, exclude: str | None = None) -> list[tuple[int, Filter]]:
        """(object index, description) of one or two attributes other than ``exclude`` that fit a single object."""
        if exclude not in self._unique:
            self._unique[exclude] = [
                (index, description)
                for index in range(len(self.objects))
                for description in unique_filters(self.objects, index, exclude, max_attributes=2)
            ]
        return self._unique[exclude]

    @cached_property
    def sole_objects(self) -> dict[str, int]:
        """Quadrant with exactly one object -> index of that object."""
        members = {name: [k for k, thing in enumerate(self.objects) if thing.quadrant == name] for name in QUADRANTS}
        return {name: indices[0] for name, indices in members.items() if len(indices) == 1}

    def matching(self, description: Filter) -> tuple[int, ...]:
        """Indices of the objects that match ``description``."""
        return tuple(k for k, thing in enumerate(self.objects) if description.matches(thing))

    def related(self, relation: str, anchor: int) -> list[int]:
        """Indices of the objects that are ``relation`` the object ``anchor``."""
        return [k for k, thing in enumerate(self.objects) if relation_holds(relation, thing, self.objects[anchor])]

    def may_describe(self, *descriptions: Filter) -> bool:
        """Whether these descriptions may be named: only the ood split names held-out pairs."""
        return self.pool is not SEEN or not any(each.names_held_out_pair for each in descriptions)

    def absent_description(self, form: Sequence[str], near: bool, rng: random.Random) -> Filter | None:
        """Description of this form that no object matches; with ``near``, some object matches all but one attribute."""
        for _ in range(6):
            description = sample_filter(rng, self.pool, (form,))
            if description.count(self.objects):
                continue
            if len(form) == 1 or near == any(_num_mismatches(description, thing) == 1 for thing in self.objects):
                return description
        return None


def _num_mismatches(description: Filter, thing: Object) -> int:
    return sum(getattr(description, name) != getattr(thing, name) for name in description.attributes)


Proposal = Callable[[SceneFacts, Form, str, random.Random], Question | None]


@dataclass(frozen=True)
class Template:
    """Type of question.

    Attributes:
        weight: relative frequency among a task's questions.
        forms: groups within which answers are balanced.
        answers: possible answers in each form.
        propose: (facts, form, answer, rng) -> a question with that answer, or None if the scene allows none.
    """

    name: str
    weight: float
    forms: tuple[Form, ...]
    answers: tuple[str, ...]
    propose: Proposal


@dataclass
class QuestionSampler:
    """Balanced sampling of questions over scenes; one per task and split, so that tasks do not affect each other.

    Attributes:
        templates: templates to sample from.
        only_held_out: keep only questions that are about, or name, a held-out pair of color and shape.
    """

    templates: Sequence[Template]
    only_held_out: bool = False
    template_counts: Counter = field(default_factory=Counter)
    form_counts: Counter = field(default_factory=Counter)
    answer_counts: Counter = field(default_factory=Counter)

    def sample(self, scene: Scene, count: int, rng: random.Random) -> list[Question]:
        """Up to ``count`` different questions about a scene."""
        facts = SceneFacts(scene, ALL_APPEARANCES if self.only_held_out else SEEN)
        questions: list[Question] = []
        while len(questions) < count:
            question = self._next(facts, {each.text for each in questions}, rng)
            if question is None:
                break
            questions.append(question)
        return questions

    def _next(self, facts: SceneFacts, known_texts: set[str], rng: random.Random) -> Question | None:
        ranked = sorted(self.templates, key=lambda each: (self.template_counts[each.name] / each.weight, rng.random()))
        for template in ranked:
            wordings = QUESTIONS[template.name].seen
            forms = [(template.name, form, number) for form in template.forms for number in range(len(wordings))]
            for form in sorted(forms, key=lambda each: (self.form_counts[each], rng.random())):
                for answer in self._rarest_answers(template, form, rng):
                    question = template.propose(facts, form[1], answer, rng)
                    if question is None or not self._is_allowed(question, facts):
                        continue
                    text = wordings[form[2]].format(**question.slots)
                    if text in known_texts:
                        continue
                    self.template_counts[template.name] += 1
                    self.form_counts[form] += 1
                    self.answer_counts[*form, answer] += 1
                    return replace(question, text=text)
        return None

    def _rarest_answers(self, template: Template, form: tuple, rng: random.Random) -> list[str]:
        """Answers given least often in this form and wording, in random order."""
        minimum = min(self.answer_counts[*form, answer] for answer in template.answers)
        rarest = [answer for answer in template.answers if self.answer_counts[*form, answer] == minimum]
        rng.shuffle(rarest)
        return rarest

    def _is_allowed(self, question: Question, facts: SceneFacts) -> bool:
        if not self.only_held_out:
            return True
        pairs = {(facts.objects[k].color, facts.objects[k].shape) for k in question.object_indices}
        return bool(pairs & HELD_OUT_PAIRS) or any(each.names_held_out_pair for each in question.descriptions)


def world_scene(seed: int, split: str, index: int) -> Scene:
    """Scene ``index`` of a split, built in turn for a count, a value, a relation, or a shared attribute.

    In the ood split each scene is built around a held-out combination; in the others none occurs.
    """
    rng = split_rng(seed, "scene", split, index)
    pool, others = (HELD_OUT, ALL_APPEARANCES) if split == "ood" else (SEEN, SEEN)
    kind = index % 8
    if kind in (0, 3, 5):
        return scene_with_count(sample_filter(rng, pool), rng.randint(0, 4), rng, pool, others)
    attribute = rng.choices(tuple(VALUES), weights=(1, 2, 4, 4))[0]
    value = rng.choice(VALUES[attribute])
    if kind in (1, 6):
        return scene_for_value(attribute, value, rng, pool, others)
    if kind in (2, 4):
        return scene_for_relation(attribute, value, rng, pool, others).scene
    return scene_for_shared_attribute(rng.choice(tuple(VALUES)), rng, pool, others)
