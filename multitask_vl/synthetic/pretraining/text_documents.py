"""What does the tiny BART read in pretraining: a question or statement, the objects it is about, and the answer.

A document is told in words ("plain") or with every object collapsed into one vector ("collapsed"); which of the two is
decided when it becomes tensors (`documents_batch`). It is never drawn, and comes from streams of its own, so that no
picture and no item of the fine-tuning tasks occurs here. Generators live in `documents_questions` (one picture) and
`documents_statements` (two pictures, captions); each builds its objects FOR an answer drawn first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multitask_vl.synthetic.language import QUESTIONS, STATEMENTS
from multitask_vl.synthetic.scenes import ATTRIBUTES, CELL, GRID, SEEN, VALUES, Filter, Look, Object

Roles = tuple[int, int]
"""Whether an object is what the question asks about, and whether it is what that is related or compared to."""
NO_ROLE: Roles = (0, 0)
BY_VALUE = {name: {v: [k for k in SEEN if getattr(k, name) == v] for v in VALUES[name]} for name in ATTRIBUTES}
"""Attribute -> value -> the looks that have it, held-out combinations left out."""


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to read and answer.

    Attributes:
        template: which of `QUESTIONS` or `STATEMENTS` it was made by, or ``caption``.
        question: text without prompt; empty for captions.
        answer: what is to be written.
        pictures: objects of one picture, or of the left and the right one; their centres are the centres of cells.
        roles: of each object, in the same nesting.
    """

    template: str
    question: str
    answer: str
    pictures: tuple[tuple[Object, ...], ...]
    roles: tuple[tuple[Roles, ...], ...]


class Maker:
    """What a generator is given: randomness, how many objects there may be, and the wordings to use.

    Args:
        rng: decides everything.
        most: most objects in a picture.
        held_out: use the wordings kept from training.
    """

    def __init__(self, rng: random.Random, most: int, held_out: bool = False):
        self.rng = rng
        self.most = most
        self.held_out = held_out

    def say(self, template: str, **slots: str) -> str:
        """A wording of the template with its slots filled."""
        wordings = QUESTIONS.get(template) or STATEMENTS[template]
        texts = wordings.held_out if self.held_out else wordings.seen
        return self.rng.choice(texts).format(**slots)

    def total(self, fewest: int = 2) -> int:
        """How many objects: ``fewest`` to ``most``."""
        return self.rng.randint(fewest, max(fewest, self.most))

    def filter(self, longest: int = 2, without: Sequence[str] = ()) -> Filter:
        """A filter of 1 to ``longest`` attributes that some look matches."""
        names = [name for name in ATTRIBUTES if name not in without]
        number = self.rng.choice((1, 1, 2, 2, 3)) if longest > 2 else self.rng.randint(1, longest)
        return Filter.of(self.rng.choice(SEEN), self.rng.sample(names, min(number, len(names))))

    def matching(self, wanted: Filter) -> Look:
        """A look that matches."""
        while True:
            name = self.rng.choice(wanted.named) if wanted.named else None
            pool = BY_VALUE[name][getattr(wanted, name)] if name else SEEN
            look = self.rng.choice(pool)
            if wanted.matches(look):
                return look

    def missing(self, *unwanted: Filter) -> Look:
        """A look that matches none of them; half of the time it shares a value with the first."""
        first = unwanted[0]
        near = self.rng.random() < 0.5 and len(first.named) > 1
        while True:
            name = self.rng.choice(first.named) if near else None
            look = self.rng.choice(BY_VALUE[name][getattr(first, name)] if name else SEEN)
            if not any(each.matches(look) for each in unwanted):
                return look

    def counted(self, wanted: Filter, number: int, total: int) -> tuple[list[Look], list[Roles]]:
        """``total`` looks of which exactly ``number`` match (role: asked about)."""
        looks = [self.matching(wanted) for _ in range(number)]
        looks += [self.missing(wanted) for _ in range(total - number)]
        return looks, [(1, 0)] * number + [NO_ROLE] * (total - number)

    def cells(self, number: int) -> list[int]:
        """Different cells of the grid."""
        return self.rng.sample(range(GRID * GRID), number)

    def picture(
        self, looks: Sequence[Look], roles: Sequence[Roles], cells: Sequence[int] | None = None
    ) -> tuple[tuple[Object, ...], tuple[Roles, ...]]:
        """Objects in random order, at ``cells`` or anywhere, and their roles in that order."""
        cells = self.cells(len(looks)) if cells is None else cells
        order = self.rng.sample(range(len(looks)), len(looks))
        return tuple(at_cell(looks[i], cells[i]) for i in order), tuple(roles[i] for i in order)

    def one(self, template: str, question: str, answer: str, looks, roles, cells=None) -> Document:
        """A document about one picture."""
        objects, roles = self.picture(looks, roles, cells)
        return Document(template, question, answer, (objects,), (roles,))

    def unique(self, looks: Sequence[Look], index: int, without: Sequence[str] = ()) -> Filter | None:
        """A filter of one or two attributes, none of them in ``without``, that only look ``index`` matches."""
        names = [name for name in ATTRIBUTES if name not in without]
        for number in (1, 2, 2, 2):
            candidate = Filter.of(looks[index], self.rng.sample(names, min(number, len(names))))
            if candidate.count(looks) == 1:
                return candidate
        return None

    def mixture(self, number: int) -> list[Look]:
        """Looks out of few colours, shapes and patterns, so that they are alike in some ways; or any looks."""
        if self.rng.random() < 0.4:
            return [self.rng.choice(SEEN) for _ in range(number)]
        colors = self.rng.sample(VALUES["color"], 3)
        shapes = self.rng.sample(VALUES["shape"], 3)
        looks: list[Look] = []
        while len(looks) < number:
            look = self.rng.choice(BY_VALUE["color"][self.rng.choice(colors)])
            if look.shape in shapes:
                looks.append(look)
        return looks


def at_cell(look: Look, cell: int) -> Object:
    """An object of this look in the middle of a grid cell."""
    row, column = divmod(cell, GRID)
    return Object(*look, (column + 0.5) * CELL, (row + 0.5) * CELL, CELL / 2)


Generator = Callable[[Maker], Document]
GENERATORS: dict[str, Generator] = {}
"""Template -> what makes its documents; filled by the modules that define them."""
SKILLS: dict[str, str] = {}
"""Template -> the skill it counts for: look-up, existence, count, relation, compare, logic or caption."""


def makes(skill: str, *templates: str) -> Callable:
    """Register a generator for ``templates``; it is called with the template's name after the maker."""

    def register(function: Callable[[Maker, str], Document]) -> Callable[[Maker, str], Document]:
        for template in templates:
            GENERATORS[template] = lambda maker, template=template: function(maker, template)
            SKILLS[template] = skill
        return function

    return register
