"""Documents about two images, true or false, and documents that ask for a caption."""

from __future__ import annotations

from collections.abc import Callable

from multitask_vl.synthetic.captions import caption_scene
from multitask_vl.synthetic.language import noun_phrase, number_phrase
from multitask_vl.synthetic.pretraining.text_documents import NO_ROLE, Document, DocumentBuilder, register_generator
from multitask_vl.synthetic.scenes import Filter, Scene
from multitask_vl.synthetic.statements import SIDES


def _image_pair(
    builder: DocumentBuilder, template: str, question: str, truth: bool, x: Filter, numbers: tuple[int, int]
) -> Document:
    """Document about two images with these numbers of matching objects."""
    images, roles = [], []
    for number in numbers:
        objects, image_roles = builder.image(*builder.with_count(x, number, builder.count(max(2, number))))
        images.append(objects)
        roles.append(image_roles)
    return Document(template, question, "true" if truth else "false", tuple(images), tuple(roles))


def _presence_generator(
    is_true: Callable[[bool, bool], bool], **slots: str
) -> Callable[[DocumentBuilder, str], Document]:
    """Generator for a statement that depends on presence in the left and in the right image."""

    def generate(builder: DocumentBuilder, template: str) -> Document:
        truth, x = builder.rng.random() < 0.5, builder.filter(2)
        cases = [(i, j) for i in (0, 1) for j in (0, 1) if is_true(bool(i), bool(j)) == truth]
        presence = builder.rng.choice(cases)
        numbers = tuple(builder.rng.choice((1, 1, 1, 2)) if present else 0 for present in presence)
        question = builder.phrase(template, x=noun_phrase(x), **slots)
        return _image_pair(builder, template, question, truth, x, numbers)

    return generate


register_generator("compare", "both_have")(_presence_generator(lambda left, right: left and right))
register_generator("compare", "only_one")(_presence_generator(lambda left, right: left != right))
register_generator("compare", "any_has")(_presence_generator(lambda left, right: left or right))
register_generator("compare", "none_has")(_presence_generator(lambda left, right: not (left or right)))


@register_generator("compare", "side_has")
def side_has(builder: DocumentBuilder, template: str) -> Document:
    """Presence in a named image."""
    side = builder.rng.choice(SIDES)
    other = SIDES[side == "left"]
    generate = _presence_generator(lambda left, right: (left, right)[SIDES.index(side)], side=side, other=other)
    return generate(builder, template)


@register_generator("compare", "more_on_side")
def more_on_side(builder: DocumentBuilder, template: str) -> Document:
    """Comparison of the numbers in the two images."""
    side, truth, x = builder.rng.randrange(2), builder.rng.random() < 0.5, builder.filter(2)
    pairs = [(i, j) for i in range(builder.max_objects) for j in range(builder.max_objects)]
    pairs = [pair for pair in pairs if (pair[side] > pair[1 - side]) == truth and sum(pair)]
    numbers = builder.rng.choice(pairs)
    question = builder.phrase(template, side=SIDES[side], other=SIDES[1 - side], xs=noun_phrase(x, plural=True))
    return _image_pair(builder, template, question, truth, x, numbers)


@register_generator("compare", "side_number")
def side_number(builder: DocumentBuilder, template: str) -> Document:
    """Number in a named image."""
    side, truth, x = builder.rng.randrange(2), builder.rng.random() < 0.5, builder.filter(2)
    named = builder.rng.randint(0, min(4, builder.max_objects))
    wrong = [n for n in (named - 1, named + 1, named + 2) if 0 <= n <= builder.max_objects]
    number = named if truth else builder.rng.choice(wrong)
    elsewhere = builder.rng.randint(0, builder.max_objects - 1)
    numbers = (number, elsewhere) if side == 0 else (elsewhere, number)
    question = builder.phrase(template, side=SIDES[side], number=number_phrase(x, named))
    return _image_pair(builder, template, question, truth, x, numbers)


@register_generator("compare", "total")
def total(builder: DocumentBuilder, template: str) -> Document:
    """Number in both images together."""
    truth, x, maximum = builder.rng.random() < 0.5, builder.filter(2), builder.max_objects
    named = builder.rng.randint(0, min(6, maximum + 1))
    wrong = [n for n in (named - 1, named + 1, named + 2) if 0 <= n <= 2 * maximum]
    number = named if truth else builder.rng.choice(wrong)
    left = builder.rng.randint(max(0, number - maximum), min(number, maximum))
    question = builder.phrase(template, number=number_phrase(x, named))
    return _image_pair(builder, template, question, truth, x, (left, number - left))


# ---- captions


@register_generator("caption", "caption")
def caption(builder: DocumentBuilder, template: str) -> Document:
    """One of the five captions of a scene."""
    appearances = builder.appearances(builder.count())
    objects, roles = builder.image(appearances, [NO_ROLE] * len(appearances))
    (text,) = caption_scene(Scene(objects), builder.rng, count=1)
    return Document(template, "", text, (objects,), (roles,))
