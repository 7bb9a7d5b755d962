"""Documents about one image: a generator for every question template."""

from __future__ import annotations

from multitask_vl.synthetic.language import noun_phrase, value_phrase
from multitask_vl.synthetic.pretraining.text_documents import (
    BY_VALUE,
    Document,
    DocumentBuilder,
    object_at_cell,
    register_generator,
)
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    GRID,
    OPPOSITE,
    QUADRANTS,
    RELATIONS,
    SEEN,
    VALUES,
    Appearance,
    Filter,
    relation_holds,
)

TARGET, ANCHOR = (1, 0), (0, 1)
CELLS = tuple(object_at_cell(SEEN[0], cell) for cell in range(GRID * GRID))
QUADRANT_CELLS = {name: [i for i, thing in enumerate(CELLS) if thing.quadrant == name] for name in QUADRANTS}
"""Quadrant -> its cells."""
CELL_RELATIONS = {r: [[relation_holds(r, one, other) for other in CELLS] for one in CELLS] for r in RELATIONS}
"""Relation -> [cell][other cell] -> whether it holds."""


def yes_no(truth: bool) -> str:
    """Answer of a yes/no question."""
    return "yes" if truth else "no"


# ---- one object and its attributes


@register_generator("look-up", *(f"query_{name}" for name in ATTRIBUTES))
def query(builder: DocumentBuilder, template: str) -> Document:
    """Value of an attribute of a described object."""
    attribute = template.removeprefix("query_")
    value = builder.rng.choice(VALUES[attribute])
    target = builder.rng.choice(BY_VALUE[attribute][value])
    names = [name for name in ATTRIBUTES if name != attribute]
    x = Filter.from_appearance(target, builder.rng.sample(names, builder.rng.choice((1, 1, 2, 2, 3))))
    appearances = [target] + [builder.non_matching(x) for _ in range(builder.count() - 1)]
    return builder.single_image(template, builder.phrase(template, x=noun_phrase(x)), value, appearances, [TARGET])


@register_generator("logic", "verify")
def verify(builder: DocumentBuilder, template: str) -> Document:
    """Whether a described object has a value."""
    attribute, truth = builder.rng.choice(ATTRIBUTES), builder.rng.random() < 0.5
    appearances, x = _with_description(builder, exclude=(attribute,))
    value = getattr(appearances[0], attribute)
    named = value if truth else builder.rng.choice([v for v in VALUES[attribute] if v != value])
    question = builder.phrase(template, x=noun_phrase(x), v=value_phrase(attribute, named))
    return builder.single_image(template, question, yes_no(truth), appearances, [TARGET])


@register_generator("look-up", "choose")
def choose(builder: DocumentBuilder, template: str) -> Document:
    """Choice between two values of a described object."""
    attribute = builder.rng.choice(ATTRIBUTES)
    appearances, x = _with_description(builder, exclude=(attribute,))
    value = getattr(appearances[0], attribute)
    pair = [value, builder.rng.choice([v for v in VALUES[attribute] if v != value])]
    builder.rng.shuffle(pair)
    v, w = (value_phrase(attribute, each) for each in pair)
    question = builder.phrase(template, x=noun_phrase(x), v=v, w=w)
    return builder.single_image(template, question, value, appearances, [TARGET])


@register_generator("place", "shape_at", "color_at")
def attribute_in_quadrant(builder: DocumentBuilder, template: str) -> Document:
    """Shape or color of the only object in a quadrant."""
    attribute = template.removesuffix("_at")
    value, quadrant = builder.rng.choice(VALUES[attribute]), builder.rng.choice(QUADRANTS)
    num_others = builder.count() - 1
    elsewhere = [cell for cell in range(GRID * GRID) if cell not in QUADRANT_CELLS[quadrant]]
    cells = [builder.rng.choice(QUADRANT_CELLS[quadrant]), *builder.rng.sample(elsewhere, num_others)]
    appearances = [builder.rng.choice(BY_VALUE[attribute][value]), *builder.appearances(num_others)]
    question = builder.phrase(template, place=quadrant)
    return builder.single_image(template, question, value, appearances, [TARGET], cells)


@register_generator("place", "where")
def where(builder: DocumentBuilder, template: str) -> Document:
    """Quadrant of a described object."""
    quadrant = builder.rng.choice(QUADRANTS)
    appearances, x = _with_description(builder)
    cell = builder.rng.choice(QUADRANT_CELLS[quadrant])
    others = [c for c in range(GRID * GRID) if c != cell]
    cells = [cell, *builder.rng.sample(others, len(appearances) - 1)]
    question = builder.phrase(template, x=noun_phrase(x))
    return builder.single_image(template, question, quadrant, appearances, [TARGET], cells)


def _with_description(builder: DocumentBuilder, exclude: tuple[str, ...] = ()) -> tuple[list[Appearance], Filter]:
    """Appearances of an image, and a description that only the first matches."""
    while True:
        appearances = builder.appearances(builder.count())
        x = builder.unique_filter(appearances, 0, exclude)
        if x:
            return appearances, x


# ---- presence and number


@register_generator("existence", "exist")
def exist(builder: DocumentBuilder, template: str) -> Document:
    """Whether some object matches a description."""
    x, truth = builder.filter(3), builder.rng.random() < 0.5
    total = builder.count()
    number = builder.rng.choice((1, 1, 1, min(2, total))) if truth else 0
    appearances, roles = builder.with_count(x, number, total)
    return builder.single_image(template, builder.phrase(template, x=noun_phrase(x)), yes_no(truth), appearances, roles)


@register_generator("count", "count")
def count(builder: DocumentBuilder, template: str) -> Document:
    """Number of objects that match a description."""
    x, number = builder.filter(2), builder.rng.randint(0, builder.max_objects)
    appearances, roles = builder.with_count(x, number, builder.count(max(2, number)))
    question = builder.phrase(template, xs=noun_phrase(x, plural=True))
    return builder.single_image(template, question, str(number), appearances, roles)


@register_generator("number", "more", "as_many")
def compare_numbers(builder: DocumentBuilder, template: str) -> Document:
    """Comparison of two numbers; the descriptions differ in one attribute's value, so that no object matches both."""
    name = builder.rng.choice(("pattern", "color", "shape"))
    v, w = builder.rng.sample(VALUES[name], 2)
    x, y = Filter(**{name: v}), Filter(**{name: w})
    truth = builder.rng.random() < 0.5
    numbers = range(builder.max_objects + 1)
    pairs = [(i, j) for i in numbers for j in numbers if 0 < i + j <= builder.max_objects]
    pairs = [(i, j) for i, j in pairs if ((i > j) if template == "more" else (i == j)) == truth]
    if not pairs:
        return compare_numbers(builder, template)
    i, j = builder.rng.choice(pairs)
    num_others = builder.count(max(2, i + j)) - i - j
    appearances = [builder.matching(x) for _ in range(i)] + [builder.matching(y) for _ in range(j)]
    appearances += [builder.non_matching(x, y) for _ in range(num_others)]
    question = builder.phrase(template, xs=noun_phrase(x, plural=True), ys=noun_phrase(y, plural=True))
    return builder.single_image(template, question, yes_no(truth), appearances, [TARGET] * i + [ANCHOR] * j)


@register_generator("logic", "both_exist", "either_exist")
def two_exist(builder: DocumentBuilder, template: str) -> Document:
    """Conjunction or disjunction of two existence questions."""
    x, y = _sample_compatible(builder)
    truth = builder.rng.random() < 0.5
    if (template == "both_exist") == truth:
        present = (truth, truth)
    else:
        present = builder.rng.choice(((True, False), (False, True), (not truth, not truth)))
    appearances = []
    for description, other, is_present, other_present in ((x, y, *present), (y, x, *present[::-1])):
        while is_present:
            appearance = builder.matching(description)
            if other_present or not other.matches(appearance):
                appearances.append(appearance)
                break
    appearances += [builder.non_matching(x, y) for _ in range(builder.count() - len(appearances))]
    roles = [(int(x.matches(appearance)), int(y.matches(appearance))) for appearance in appearances]
    question = builder.phrase(template, x=noun_phrase(x), y=noun_phrase(y))
    return builder.single_image(template, question, yes_no(truth), appearances, roles)


def _sample_compatible(builder: DocumentBuilder) -> tuple[Filter, Filter]:
    """Two descriptions that name different attributes, or that differ in the value of a shared one."""
    while True:
        x, y = builder.filter(2), builder.filter(2)
        if x.attributes == y.attributes == ("size",):
            continue  # no object is neither small nor large
        shared = set(x.attributes) & set(y.attributes)
        if not shared or any(getattr(x, name) != getattr(y, name) for name in shared):
            return x, y


# ---- relations


@register_generator("relation", *(f"relate_{name}" for name in ATTRIBUTES))
def relate(builder: DocumentBuilder, template: str) -> Document:
    """Attribute of the only ``x`` on that side of ``y``; if ``x`` names a value, another ``x`` is elsewhere."""
    attribute = template.removeprefix("relate_")
    value, relation = builder.rng.choice(VALUES[attribute]), builder.rng.choice(RELATIONS)
    target = builder.rng.choice(BY_VALUE[attribute][value])
    names = [name for name in ATTRIBUTES if name != attribute]
    x = Filter.from_appearance(target, builder.rng.choice(([], builder.rng.sample(names, 1))))
    while True:
        appearances = [target, *builder.appearances(builder.count(2) - 1)]
        if x.attributes and len(appearances) > 2:
            appearances[2] = builder.matching(x)
        y = builder.unique_filter(appearances, 1)
        cells = builder.cells(len(appearances))
        related = [CELL_RELATIONS[relation][cell][cells[1]] for cell in cells]
        num_matching = sum(r and x.matches(each) for r, each in zip(related, appearances, strict=True))
        if y and related[0] and num_matching == 1:
            break
    question = builder.phrase(template, x=noun_phrase(x), rel=relation, y=noun_phrase(y))
    return builder.single_image(template, question, value, appearances, [TARGET, ANCHOR], cells)


@register_generator("relation", "relate_verify")
def relate_verify(builder: DocumentBuilder, template: str) -> Document:
    """Whether a relation of two described objects holds; where it does not, its opposite does."""
    relation, truth = builder.rng.choice(RELATIONS), builder.rng.random() < 0.5
    actual = relation if truth else OPPOSITE[relation]
    while True:
        appearances = builder.appearances(builder.count())
        x, y = builder.unique_filter(appearances, 0), builder.unique_filter(appearances, 1)
        cells = builder.cells(len(appearances))
        if x and y and CELL_RELATIONS[actual][cells[0]][cells[1]]:
            break
    question = builder.phrase(template, x=noun_phrase(x), rel=relation, y=noun_phrase(y))
    return builder.single_image(template, question, yes_no(truth), appearances, [TARGET, ANCHOR], cells)


@register_generator("relation", "relate_exist")
def relate_exist(builder: DocumentBuilder, template: str) -> Document:
    """Whether some ``x`` is on that side of ``y``; for half of the negative answers, one is on another side."""
    relation, truth = builder.rng.choice(RELATIONS), builder.rng.random() < 0.5
    while True:
        x = builder.filter(2)
        appearances = builder.appearances(builder.count())
        if truth or builder.rng.random() < 0.5:
            appearances[0] = builder.matching(x)
        y = builder.unique_filter(appearances, 1)
        cells = builder.cells(len(appearances))
        if not y or x.matches(appearances[1]):
            continue
        related = [CELL_RELATIONS[relation][cell][cells[1]] for cell in cells]
        roles = [(int(r and x.matches(each)), 0) for r, each in zip(related, appearances, strict=True)]
        if any(role[0] for role in roles) == truth:
            break
    roles[1] = ANCHOR
    question = builder.phrase(template, x=noun_phrase(x), rel=relation, y=noun_phrase(y))
    return builder.single_image(template, question, yes_no(truth), appearances, roles, cells)


# ---- two objects


@register_generator("logic", "same_shape")
def same_shape(builder: DocumentBuilder, template: str) -> Document:
    """Shape of the only other object that shares an attribute with a described one."""
    name, value = builder.rng.choice(("color", "pattern", "size")), builder.rng.choice(VALUES["shape"])
    while True:
        target = builder.rng.choice(BY_VALUE["shape"][value])
        anchor = builder.rng.choice(BY_VALUE[name][getattr(target, name)])
        shared = Filter.from_appearance(anchor, (name,))
        appearances = [target, anchor] + [builder.non_matching(shared) for _ in range(builder.count() - 2)]
        x = builder.unique_filter(appearances, 1, exclude=(name,))
        if x:
            break
    question = builder.phrase(template, attribute=name, x=noun_phrase(x))
    return builder.single_image(template, question, value, appearances, [TARGET, ANCHOR])


@register_generator("logic", "same")
def same(builder: DocumentBuilder, template: str) -> Document:
    """Whether two described objects share an attribute."""
    name, truth = builder.rng.choice(ATTRIBUTES), builder.rng.random() < 0.5
    while True:
        appearances = builder.appearances(builder.count())
        x, y = (builder.unique_filter(appearances, index, exclude=(name,)) for index in (0, 1))
        if x and y and (getattr(appearances[0], name) == getattr(appearances[1], name)) == truth:
            break
    question = builder.phrase(template, attribute=name, x=noun_phrase(x), y=noun_phrase(y))
    return builder.single_image(template, question, yes_no(truth), appearances, [TARGET, ANCHOR])


@register_generator("logic", "common")
def common(builder: DocumentBuilder, template: str) -> Document:
    """Name of the only attribute that two described objects share."""
    name = builder.rng.choice(ATTRIBUTES)
    while True:
        appearances = builder.appearances(builder.count())
        first = appearances[0]
        appearances[1] = builder.rng.choice(BY_VALUE[name][getattr(first, name)])
        if any(getattr(first, other) == getattr(appearances[1], other) for other in ATTRIBUTES if other != name):
            continue
        x, y = builder.unique_filter(appearances, 0), builder.unique_filter(appearances, 1)
        if x and y:
            break
    question = builder.phrase(template, x=noun_phrase(x), y=noun_phrase(y))
    return builder.single_image(template, question, name, appearances, [TARGET, ANCHOR])
