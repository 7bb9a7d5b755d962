"""How is a document about one picture made: a generator for every question template, answer first, objects for it."""

from __future__ import annotations

from multitask_vl.synthetic.language import noun, value_phrase
from multitask_vl.synthetic.pretraining.text_documents import BY_VALUE, NO_ROLE, Document, Maker, at_cell, makes
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    GRID,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SEEN,
    VALUES,
    Filter,
    holds,
)

TARGET, ANCHOR = (1, 0), (0, 1)
CELLS = tuple(at_cell(SEEN[0], cell) for cell in range(GRID * GRID))
AT_PLACE = {place: [i for i, thing in enumerate(CELLS) if thing.place == place] for place in PLACES}
"""Quarter of the picture -> its cells."""
BEYOND = {r: [[holds(r, one, other) for other in CELLS] for one in CELLS] for r in RELATIONS}
"""Relation -> [cell][other cell] -> whether it holds."""


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


# ---- one object and its attributes


@makes("look-up", *(f"query_{name}" for name in ATTRIBUTES))
def query(make: Maker, template: str) -> Document:
    asked = template.removeprefix("query_")
    value = make.rng.choice(VALUES[asked])
    look = make.rng.choice(BY_VALUE[asked][value])
    names = [name for name in ATTRIBUTES if name != asked]
    wanted = Filter.of(look, make.rng.sample(names, make.rng.choice((1, 1, 2, 2, 3))))
    rest = make.total() - 1
    looks = [look] + [make.missing(wanted) for _ in range(rest)]
    return make.one(template, make.say(template, x=noun(wanted)), value, looks, [TARGET] + [NO_ROLE] * rest)


@makes("logic", "verify")
def verify(make: Maker, template: str) -> Document:
    asked, truth = make.rng.choice(ATTRIBUTES), make.rng.random() < 0.5
    looks, wanted = _described(make, without=(asked,))
    value = getattr(looks[0], asked)
    named = value if truth else make.rng.choice([v for v in VALUES[asked] if v != value])
    question = make.say(template, x=noun(wanted), v=value_phrase(asked, named))
    return make.one(template, question, yes_no(truth), looks, [TARGET] + [NO_ROLE] * (len(looks) - 1))


@makes("look-up", "choose")
def choose(make: Maker, template: str) -> Document:
    asked = make.rng.choice(ATTRIBUTES)
    looks, wanted = _described(make, without=(asked,))
    value = getattr(looks[0], asked)
    pair = [value, make.rng.choice([v for v in VALUES[asked] if v != value])]
    make.rng.shuffle(pair)
    v, w = (value_phrase(asked, each) for each in pair)
    question = make.say(template, x=noun(wanted), v=v, w=w)
    return make.one(template, question, value, looks, [TARGET] + [NO_ROLE] * (len(looks) - 1))


@makes("place", "shape_at", "color_at")
def attribute_at(make: Maker, template: str) -> Document:
    asked = template.removesuffix("_at")
    value, place = make.rng.choice(VALUES[asked]), make.rng.choice(PLACES)
    rest = make.total() - 1
    elsewhere = [cell for cell in range(GRID * GRID) if cell not in AT_PLACE[place]]
    cells = [make.rng.choice(AT_PLACE[place]), *make.rng.sample(elsewhere, rest)]
    looks = [make.rng.choice(BY_VALUE[asked][value]), *make.mixture(rest)]
    return make.one(template, make.say(template, place=place), value, looks, [TARGET] + [NO_ROLE] * rest, cells)


@makes("place", "where")
def where(make: Maker, template: str) -> Document:
    place = make.rng.choice(PLACES)
    looks, wanted = _described(make)
    cell = make.rng.choice(AT_PLACE[place])
    cells = [cell, *make.rng.sample([c for c in range(GRID * GRID) if c != cell], len(looks) - 1)]
    question = make.say(template, x=noun(wanted))
    return make.one(template, question, place, looks, [TARGET] + [NO_ROLE] * (len(looks) - 1), cells)


def _described(make: Maker, without: tuple[str, ...] = ()) -> tuple[list, Filter]:
    """Looks of a picture, and a filter that only the first matches."""
    while True:
        looks = make.mixture(make.total())
        wanted = make.unique(looks, 0, without)
        if wanted:
            return looks, wanted


# ---- presence and number


@makes("existence", "exist")
def exist(make: Maker, template: str) -> Document:
    wanted, truth = make.filter(3), make.rng.random() < 0.5
    total = make.total()
    looks, roles = make.counted(wanted, make.rng.choice((1, 1, 1, min(2, total))) if truth else 0, total)
    return make.one(template, make.say(template, x=noun(wanted)), yes_no(truth), looks, roles)


@makes("count", "count")
def count(make: Maker, template: str) -> Document:
    wanted, number = make.filter(2), make.rng.randint(0, make.most)
    looks, roles = make.counted(wanted, number, make.total(max(2, number)))
    return make.one(template, make.say(template, xs=noun(wanted, plural=True)), str(number), looks, roles)


@makes("number", "more", "as_many")
def numbers(make: Maker, template: str) -> Document:
    """Two filters with different values of one attribute, so that no object matches both."""
    name = make.rng.choice(("pattern", "color", "shape"))
    v, w = make.rng.sample(VALUES[name], 2)
    x, y = Filter(**{name: v}), Filter(**{name: w})
    truth = make.rng.random() < 0.5
    pairs = [(i, j) for i in range(make.most + 1) for j in range(make.most + 1) if 0 < i + j <= make.most]
    right = [(i, j) for i, j in pairs if ((i > j) if template == "more" else (i == j)) == truth]
    if not right:
        return numbers(make, template)
    i, j = make.rng.choice(right)
    rest = make.total(max(2, i + j)) - i - j
    looks = [make.matching(x) for _ in range(i)] + [make.matching(y) for _ in range(j)]
    looks += [make.missing(x, y) for _ in range(rest)]
    question = make.say(template, xs=noun(x, plural=True), ys=noun(y, plural=True))
    return make.one(template, question, yes_no(truth), looks, [TARGET] * i + [ANCHOR] * j + [NO_ROLE] * rest)


@makes("logic", "both_exist", "either_exist")
def junction(make: Maker, template: str) -> Document:
    while True:
        x, y = make.filter(2), make.filter(2)
        if x.named == y.named == ("size",):
            continue  # nothing is neither small nor large
        if not set(x.named) & set(y.named) or _apart(x, y):
            break
    truth = make.rng.random() < 0.5
    if (template == "both_exist") == truth:
        present = (truth, truth)
    else:
        present = make.rng.choice(((True, False), (False, True), (not truth, not truth)))
    looks = []
    for wanted, other, there, other_there in ((x, y, *present), (y, x, *present[::-1])):
        while there:
            look = make.matching(wanted)
            if other_there or not other.matches(look):
                looks.append(look)
                break
    looks += [make.missing(x, y) for _ in range(make.total() - len(looks))]
    roles = [(int(x.matches(look)), int(y.matches(look))) for look in looks]
    return make.one(template, make.say(template, x=noun(x), y=noun(y)), yes_no(truth), looks, roles)


def _apart(x: Filter, y: Filter) -> bool:
    """Whether two filters disagree in some attribute that both name."""
    return any(getattr(x, name) != getattr(y, name) for name in x.named if name in y.named)


# ---- relations


@makes("relation", *(f"relate_{name}" for name in ATTRIBUTES))
def relate(make: Maker, template: str) -> Document:
    """The only ``x`` on that side of the only ``y``; where ``x`` names a value, another ``x`` stands elsewhere."""
    asked = template.removeprefix("relate_")
    value, relation = make.rng.choice(VALUES[asked]), make.rng.choice(RELATIONS)
    look = make.rng.choice(BY_VALUE[asked][value])
    names = [name for name in ATTRIBUTES if name != asked]
    wanted = Filter.of(look, make.rng.choice(([], make.rng.sample(names, 1))))
    while True:
        looks = [look, *make.mixture(make.total(2) - 1)]
        if wanted.named and len(looks) > 2:
            looks[2] = make.matching(wanted)
        anchor = make.unique(looks, 1)
        cells = make.cells(len(looks))
        beyond = [BEYOND[relation][cell][cells[1]] for cell in cells]
        if anchor and beyond[0] and sum(b and wanted.matches(k) for b, k in zip(beyond, looks, strict=True)) == 1:
            break
    question = make.say(template, x=noun(wanted), rel=relation, y=noun(anchor))
    return make.one(template, question, value, looks, [TARGET, ANCHOR] + [NO_ROLE] * (len(looks) - 2), cells)


@makes("relation", "relate_verify")
def relate_verify(make: Maker, template: str) -> Document:
    """Two described objects; where it does not hold, its opposite does."""
    relation, truth = make.rng.choice(RELATIONS), make.rng.random() < 0.5
    while True:
        looks = make.mixture(make.total())
        x, y = make.unique(looks, 0), make.unique(looks, 1)
        cells = make.cells(len(looks))
        if x and y and BEYOND[relation if truth else OPPOSITE[relation]][cells[0]][cells[1]]:
            break
    question = make.say(template, x=noun(x), rel=relation, y=noun(y))
    return make.one(template, question, yes_no(truth), looks, [TARGET, ANCHOR] + [NO_ROLE] * (len(looks) - 2), cells)


@makes("relation", "relate_exist")
def relate_exist(make: Maker, template: str) -> Document:
    """Half of the noes have an ``x`` on the wrong side."""
    relation, truth = make.rng.choice(RELATIONS), make.rng.random() < 0.5
    while True:
        x = make.filter(2)
        looks = make.mixture(make.total())
        if truth or make.rng.random() < 0.5:
            looks[0] = make.matching(x)
        y = make.unique(looks, 1)
        cells = make.cells(len(looks))
        if not y or x.matches(looks[1]):
            continue
        roles = [(int(BEYOND[relation][c][cells[1]] and x.matches(k)), 0) for c, k in zip(cells, looks, strict=True)]
        if any(role[0] for role in roles) == truth:
            break
    roles[1] = ANCHOR
    question = make.say(template, x=noun(x), rel=relation, y=noun(y))
    return make.one(template, question, yes_no(truth), looks, roles, cells)


# ---- two objects


@makes("logic", "same_shape")
def same_shape(make: Maker, template: str) -> Document:
    """The shape of the one other object that shares an attribute with the described one."""
    name, value = make.rng.choice(("color", "pattern", "size")), make.rng.choice(VALUES["shape"])
    while True:
        target = make.rng.choice(BY_VALUE["shape"][value])
        anchor = make.rng.choice(BY_VALUE[name][getattr(target, name)])
        shared = Filter.of(anchor, (name,))
        looks = [target, anchor] + [make.missing(shared) for _ in range(make.total() - 2)]
        x = make.unique(looks, 1, without=(name,))
        if x:
            break
    question = make.say(template, attribute=name, x=noun(x))
    return make.one(template, question, value, looks, [TARGET, ANCHOR] + [NO_ROLE] * (len(looks) - 2))


@makes("logic", "same")
def same(make: Maker, template: str) -> Document:
    name, truth = make.rng.choice(ATTRIBUTES), make.rng.random() < 0.5
    while True:
        looks = make.mixture(make.total())
        x, y = make.unique(looks, 0, without=(name,)), make.unique(looks, 1, without=(name,))
        if x and y and (getattr(looks[0], name) == getattr(looks[1], name)) == truth:
            break
    question = make.say(template, attribute=name, x=noun(x), y=noun(y))
    return make.one(template, question, yes_no(truth), looks, [TARGET, ANCHOR] + [NO_ROLE] * (len(looks) - 2))


@makes("logic", "common")
def common(make: Maker, template: str) -> Document:
    name = make.rng.choice(ATTRIBUTES)
    while True:
        looks = make.mixture(make.total())
        first = looks[0]
        looks[1] = make.rng.choice(BY_VALUE[name][getattr(first, name)])
        if any(getattr(first, other) == getattr(looks[1], other) for other in ATTRIBUTES if other != name):
            continue
        x, y = make.unique(looks, 0), make.unique(looks, 1)
        if x and y:
            break
    question = make.say(template, x=noun(x), y=noun(y))
    return make.one(template, question, name, looks, [TARGET, ANCHOR] + [NO_ROLE] * (len(looks) - 2))
