"""How is a document about two pictures made, true or false, and one that asks for a caption?"""

from __future__ import annotations

from collections.abc import Callable

from multitask_vl.synthetic.captions import captions_of
from multitask_vl.synthetic.language import noun, number_of
from multitask_vl.synthetic.pretraining.text_documents import NO_ROLE, Document, Maker, makes
from multitask_vl.synthetic.scenes import Filter, Scene

FEW = [(i, j) for i in range(3) for j in range(3)]
"""Numbers of matching objects in the left and the right picture, where presence is what counts."""
SIDES = ("left", "right")


def _pair(make: Maker, template: str, question: str, truth: bool, wanted: Filter, numbers: tuple[int, int]) -> Document:
    """Two pictures with so many matching objects each."""
    pictures, roles = [], []
    for number in numbers:
        objects, role = make.picture(*make.counted(wanted, number, make.total(max(2, number))))
        pictures.append(objects)
        roles.append(role)
    return Document(template, question, "true" if truth else "false", tuple(pictures), tuple(roles))


def _presence(holds_for: Callable[[bool, bool], bool], **slots: str) -> Callable[[Maker, str], Document]:
    """A generator for a statement that presence on the left and on the right decides."""

    def generate(make: Maker, template: str) -> Document:
        truth, wanted = make.rng.random() < 0.5, make.filter(2)
        present = [p for p in ((x, y) for x in (0, 1) for y in (0, 1)) if holds_for(bool(p[0]), bool(p[1])) == truth]
        numbers = tuple(make.rng.choice((1, 1, 1, 2)) if there else 0 for there in make.rng.choice(present))
        return _pair(make, template, make.say(template, x=noun(wanted), **slots), truth, wanted, numbers)

    return generate


makes("compare", "both_have")(_presence(lambda left, right: left and right))
makes("compare", "only_one")(_presence(lambda left, right: left != right))
makes("compare", "any_has")(_presence(lambda left, right: left or right))
makes("compare", "none_has")(_presence(lambda left, right: not (left or right)))


@makes("compare", "side_has")
def side_has(make: Maker, template: str) -> Document:
    side = make.rng.choice(SIDES)
    other = SIDES[side == "left"]
    generate = _presence(lambda left, right: (left, right)[SIDES.index(side)], side=side, other=other)
    return generate(make, template)


@makes("compare", "more_on_side")
def more_on_side(make: Maker, template: str) -> Document:
    side, truth, wanted = make.rng.randrange(2), make.rng.random() < 0.5, make.filter(2)
    numbers = [(i, j) for i in range(make.most) for j in range(make.most)]
    right = [pair for pair in numbers if (pair[side] > pair[1 - side]) == truth and sum(pair)]
    chosen = make.rng.choice(right)
    question = make.say(template, side=SIDES[side], other=SIDES[1 - side], xs=noun(wanted, plural=True))
    return _pair(make, template, question, truth, wanted, chosen)


@makes("compare", "side_number")
def side_number(make: Maker, template: str) -> Document:
    side, truth, wanted = make.rng.randrange(2), make.rng.random() < 0.5, make.filter(2)
    named = make.rng.randint(0, min(4, make.most))
    wrong = [n for n in (named - 1, named + 1, named + 2) if 0 <= n <= make.most]
    there = named if truth else make.rng.choice(wrong)
    elsewhere = make.rng.randint(0, make.most - 1)
    numbers = (there, elsewhere) if side == 0 else (elsewhere, there)
    question = make.say(template, side=SIDES[side], number=number_of(wanted, named))
    return _pair(make, template, question, truth, wanted, numbers)


@makes("compare", "total")
def total(make: Maker, template: str) -> Document:
    truth, wanted = make.rng.random() < 0.5, make.filter(2)
    named = make.rng.randint(0, min(6, make.most + 1))
    there = (
        named if truth else make.rng.choice([n for n in (named - 1, named + 1, named + 2) if 0 <= n <= 2 * make.most])
    )
    left = make.rng.randint(max(0, there - make.most), min(there, make.most))
    question = make.say(template, number=number_of(wanted, named))
    return _pair(make, template, question, truth, wanted, (left, there - left))


# ---- captions


@makes("caption", "caption")
def caption(make: Maker, template: str) -> Document:
    """What one of five people would write about the objects."""
    looks = make.mixture(make.total())
    objects, roles = make.picture(looks, [NO_ROLE] * len(looks))
    (text,) = captions_of(Scene(objects), make.rng, number=1)
    return Document(template, "", text, (objects,), (roles,))
