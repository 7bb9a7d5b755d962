"""Documents of the BART pretraining: a question or statement, the objects it is about, and the answer.

A document is described in words ("plain") or has every object collapsed into one vector ("collapsed"); the form is
chosen when it becomes tensors (`text_batches`). Documents are never rendered and have their own random streams, so that
no image and no example of the fine-tuning tasks occurs here. The generators are in `text_questions` (one image) and
`text_statements` (two images, captions); each samples the answer first and builds the objects for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multitask_vl.synthetic.language import QUESTIONS, STATEMENTS
from multitask_vl.synthetic.scenes import ATTRIBUTES, CELL, GRID, SEEN, VALUES, Appearance, Filter, Object

Roles = tuple[int, int]
"""Whether an object is what the question asks about, and whether it is what the former is related or compared to."""
NO_ROLE: Roles = (0, 0)
BY_VALUE = {name: {v: [k for k in SEEN if getattr(k, name) == v] for v in VALUES[name]} for name in ATTRIBUTES}
"""Attribute -> value -> appearances with this value, without held-out combinations."""


@dataclass(frozen=True, slots=True)
class Document:
    """Text to read and answer.

    Attributes:
        template: key of `QUESTIONS` or `STATEMENTS`, or ``caption``.
        question: text without prompt; empty for captions.
        answer: target text.
        images: objects of one image, or of the left and the right one; their centers are the centers of cells.
        roles: roles of each object, in the same nesting.
    """

    template: str
    question: str
    answer: str
    images: tuple[tuple[Object, ...], ...]
    roles: tuple[tuple[Roles, ...], ...]


class DocumentBuilder:
    """Sampling of wordings, descriptions and objects for the generators.

    Args:
        rng: source of all randomness.
        max_objects: maximum number of objects per image.
        held_out: use the wordings that training does not show.
    """

    def __init__(self, rng: random.Random, max_objects: int, held_out: bool = False):
        self.rng = rng
        self.max_objects = max_objects
        self.held_out = held_out

    def phrase(self, template: str, **slots: str) -> str:
        """Sample a wording of the template and fill its slots."""
        wordings = QUESTIONS.get(template) or STATEMENTS[template]
        return wordings.sample(self.rng, self.held_out, **slots)

    def count(self, minimum: int = 2) -> int:
        """Sample a number of objects from ``minimum`` to ``max_objects``."""
        return self.rng.randint(minimum, max(minimum, self.max_objects))

    def filter(self, max_attributes: int = 2) -> Filter:
        """Sample a description of 1 to ``max_attributes`` attributes that some appearance matches."""
        number = self.rng.choice((1, 1, 2, 2, 3)) if max_attributes > 2 else self.rng.randint(1, max_attributes)
        return Filter.from_appearance(self.rng.choice(SEEN), self.rng.sample(list(ATTRIBUTES), number))

    def matching(self, description: Filter) -> Appearance:
        """Sample an appearance that matches."""
        while True:
            name = self.rng.choice(description.attributes) if description.attributes else None
            pool = BY_VALUE[name][getattr(description, name)] if name else SEEN
            appearance = self.rng.choice(pool)
            if description.matches(appearance):
                return appearance

    def non_matching(self, *descriptions: Filter) -> Appearance:
        """Sample an appearance that matches none of them; half of the time it shares a value with the first."""
        first = descriptions[0]
        near = self.rng.random() < 0.5 and len(first.attributes) > 1
        while True:
            name = self.rng.choice(first.attributes) if near else None
            appearance = self.rng.choice(BY_VALUE[name][getattr(first, name)] if name else SEEN)
            if not any(each.matches(appearance) for each in descriptions):
                return appearance

    def with_count(self, description: Filter, number: int, total: int) -> tuple[list[Appearance], list[Roles]]:
        """Sample ``total`` appearances of which exactly ``number`` match (role: asked about)."""
        appearances = [self.matching(description) for _ in range(number)]
        appearances += [self.non_matching(description) for _ in range(total - number)]
        return appearances, [(1, 0)] * number + [NO_ROLE] * (total - number)

    def cells(self, number: int) -> list[int]:
        """Sample different cells of the grid."""
        return self.rng.sample(range(GRID * GRID), number)

    def image(
        self, appearances: Sequence[Appearance], roles: Sequence[Roles], cells: Sequence[int] | None = None
    ) -> tuple[tuple[Object, ...], tuple[Roles, ...]]:
        """Objects in random order, at ``cells`` or at random cells, and their roles in that order."""
        cells = self.cells(len(appearances)) if cells is None else cells
        order = self.rng.sample(range(len(appearances)), len(appearances))
        return tuple(object_at_cell(appearances[i], cells[i]) for i in order), tuple(roles[i] for i in order)

    def single_image(
        self,
        template: str,
        question: str,
        answer: str,
        appearances: Sequence[Appearance],
        roles: Sequence[Roles],
        cells: Sequence[int] | None = None,
    ) -> Document:
        """Document about one image; objects beyond the given ``roles`` have none."""
        roles = [*roles, *[NO_ROLE] * (len(appearances) - len(roles))]
        objects, ordered_roles = self.image(appearances, roles, cells)
        return Document(template, question, answer, (objects,), (ordered_roles,))

    def unique_filter(
        self, appearances: Sequence[Appearance], index: int, exclude: Sequence[str] = ()
    ) -> Filter | None:
        """Sample a description of 1 or 2 attributes, none in ``exclude``, that only appearance ``index`` matches.

        Returns None if four tries fail.
        """
        names = [name for name in ATTRIBUTES if name not in exclude]
        for number in (1, 2, 2, 2):
            candidate = Filter.from_appearance(appearances[index], self.rng.sample(names, min(number, len(names))))
            if candidate.count(appearances) == 1:
                return candidate
        return None

    def appearances(self, number: int) -> list[Appearance]:
        """Sample appearances of three colors and three shapes, so that they share values; or of any (40 %)."""
        if self.rng.random() < 0.4:
            return [self.rng.choice(SEEN) for _ in range(number)]
        colors = self.rng.sample(VALUES["color"], 3)
        shapes = self.rng.sample(VALUES["shape"], 3)
        appearances: list[Appearance] = []
        while len(appearances) < number:
            appearance = self.rng.choice(BY_VALUE["color"][self.rng.choice(colors)])
            if appearance.shape in shapes:
                appearances.append(appearance)
        return appearances


def object_at_cell(appearance: Appearance, cell: int) -> Object:
    """Object in the center of a grid cell."""
    row, column = divmod(cell, GRID)
    return Object(*appearance, (column + 0.5) * CELL, (row + 0.5) * CELL, CELL / 2)


Generator = Callable[[DocumentBuilder], Document]
GENERATORS: dict[str, Generator] = {}
"""Template -> generator of its documents; filled by the modules that define them."""
SKILLS: dict[str, str] = {}
"""Template -> its skill: look-up, logic, place, existence, count, number, relation, compare or caption."""


def register_generator(skill: str, *templates: str) -> Callable:
    """Register a generator for ``templates``; it is called with the builder and the template's name."""

    def register(function: Callable[[DocumentBuilder, str], Document]) -> Callable[[DocumentBuilder, str], Document]:
        for template in templates:
            GENERATORS[template] = lambda builder, template=template: function(builder, template)
            SKILLS[template] = skill
        return function

    return register
