"""Language of the synthetic world: vocabulary, noun phrases, and the wordings of questions, statements and captions.

All text is lower case. Words are separated by one space, and punctuation (``. , ?``) follows the word directly, as in
the official files. Numbers are digits in answers (the VQA scorer turns "two" into "2") and words in sentences. Each
template has several wordings; those of `Wordings.held_out` occur in no training text, neither of the language model
nor of the tasks, and serve to probe the language model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    COLORS,
    PATTERNS,
    QUADRANTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Appearance,
    Filter,
    Object,
)

THING = "thing"
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLUMN_WORDS = ("leftmost", "midleft", "midright", "rightmost")
"""One word per column of the grid, for scenes described as text; "left" and "right" are halves of the image."""
ROW_WORDS = ("topmost", "upper", "lower", "bottommost")
"""One word per row of the grid; "top" and "bottom" are halves of the image."""
SYNONYMS = {
    "small": ("little", "tiny"),
    "large": ("big",),
    "striped": ("stripes",),
    "dotted": ("dots",),
    "solid": ("plain",),
    "circle": ("round", "ball"),
    "square": ("box",),
    "cross": ("plus",),
    "purple": ("violet",),
}
"""Other correct words that some of the ten annotators use for an answer; the official answer is never one of them."""


def noun_phrase(described: Filter | Appearance | Object, plural: bool = False) -> str:
    """Adjectives in English order, then the shape or "thing": ``large striped red star``, ``red things``."""
    adjectives = [getattr(described, name) for name in ATTRIBUTES if name != "shape"]
    head = described.shape or THING
    if plural:
        head = "crosses" if head == "cross" else head + "s"
    return " ".join([*filter(None, adjectives), head])


def indefinite(described: Filter | Appearance | Object) -> str:
    """Noun phrase with "a": ``a red star``. No first word begins with a vowel."""
    return f"a {noun_phrase(described)}"


def definite(described: Filter | Appearance | Object) -> str:
    """Noun phrase with "the": ``the red star``."""
    return f"the {noun_phrase(described)}"


def number_phrase(described: Filter, count: int) -> str:
    """Noun phrase with a number: ``two red stars``, ``one red star``, ``no red stars``."""
    return f"{NUMBER_WORDS[count]} {noun_phrase(described, plural=count != 1)}"


def value_phrase(attribute: str, value: str) -> str:
    """Predicate after "is": ``red``, ``striped``, but ``a star``."""
    return f"a {value}" if attribute == "shape" else value


def cell_phrase(thing: Object) -> str:
    """Row word and column word of an object's cell, such as ``upper leftmost``; unique for each of the 16 cells."""
    return f"{ROW_WORDS[thing.row]} {COLUMN_WORDS[thing.column]}"


@dataclass(frozen=True)
class Wordings:
    """Wordings of a template; ``{x}``, ``{y}`` are noun phrases without article, ``{xs}``, ``{ys}`` plural ones.

    Attributes:
        seen: wordings used in training and in the tasks.
        held_out: wordings used only to probe the language model.
    """

    seen: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def sample(self, rng: random.Random, held_out: bool = False, **slots: str) -> str:
        """Sample a wording and fill its slots."""
        return rng.choice(self.held_out if held_out else self.seen).format(**slots)


QUESTIONS: dict[str, Wordings] = {
    # ---- one object and its attributes. {x}: unique filter
    "query_color": Wordings(
        ("what color is the {x}?", "what is the color of the {x}?", "which color does the {x} have?"),
        ("the {x} is what color?",),
    ),
    "query_pattern": Wordings(
        ("what pattern is the {x}?", "what is the pattern of the {x}?", "which pattern does the {x} have?"),
        ("the {x} is what pattern?",),
    ),
    "query_shape": Wordings(
        ("what shape is the {x}?", "what is the shape of the {x}?", "which shape does the {x} have?"),
        ("the {x} is what shape?",),
    ),
    "query_size": Wordings(
        ("what size is the {x}?", "what is the size of the {x}?", "which size does the {x} have?"),
        ("the {x} is what size?",),
    ),
    # ---- presence and number. {x}: any filter
    "exist": Wordings(
        ("is there a {x}?", "can you see a {x}?", "is there a {x} in the picture?"),
        ("does the picture show a {x}?",),
    ),
    "count": Wordings(
        ("how many {xs} are there?", "how many {xs} can you see?", "what is the number of {xs}?"),
        ("there are how many {xs}?",),
    ),
    "verify": Wordings(  # {x}: unique filter, {v}: value_phrase
        ("is the {x} {v}?", "is it true that the {x} is {v}?"),
        ("would you say the {x} is {v}?",),
    ),
    "more": Wordings(
        ("are there more {xs} than {ys}?", "can you see more {xs} than {ys}?"),
        ("is the number of {xs} larger than the number of {ys}?",),
    ),
    "as_many": Wordings(
        ("are there as many {xs} as {ys}?", "can you see as many {xs} as {ys}?"),
        ("is the number of {xs} the same as the number of {ys}?",),
    ),
    # ---- quadrants. {place}: one of QUADRANTS that contains a single object
    "shape_at": Wordings(
        ("what is at the {place}?", "what shape is at the {place}?", "what can you see at the {place}?"),
        ("at the {place} is what shape?",),
    ),
    "color_at": Wordings(
        ("what color is the thing at the {place}?", "which color is at the {place}?"),
        ("at the {place} is what color?",),
    ),
    "where": Wordings(
        ("where is the {x}?", "where in the picture is the {x}?", "in which corner is the {x}?"),
        ("the {x} is where?",),
    ),
    # ---- relations. {x}: filter unique in that direction, {rel}: one of RELATIONS, {y}: unique filter
    "relate_color": Wordings(
        ("what color is the {x} {rel} the {y}?", "what is the color of the {x} {rel} the {y}?"),
        ("the {x} {rel} the {y} is what color?",),
    ),
    "relate_pattern": Wordings(
        ("what pattern is the {x} {rel} the {y}?", "what is the pattern of the {x} {rel} the {y}?"),
        ("the {x} {rel} the {y} is what pattern?",),
    ),
    "relate_shape": Wordings(
        ("what shape is the {x} {rel} the {y}?", "what is the shape of the {x} {rel} the {y}?"),
        ("the {x} {rel} the {y} is what shape?",),
    ),
    "relate_size": Wordings(
        ("what size is the {x} {rel} the {y}?", "what is the size of the {x} {rel} the {y}?"),
        ("the {x} {rel} the {y} is what size?",),
    ),
    "relate_verify": Wordings(
        ("is the {x} {rel} the {y}?", "is it true that the {x} is {rel} the {y}?"),
        ("would you say the {x} is {rel} the {y}?",),
    ),
    "relate_exist": Wordings(
        ("is there a {x} {rel} the {y}?", "can you see a {x} {rel} the {y}?"),
        ("does the picture show a {x} {rel} the {y}?",),
    ),
    "same_shape": Wordings(  # {attribute}: color, pattern or size shared by exactly one other object
        ("what shape is the other thing with the {attribute} of the {x}?",),
        ("which shape has the same {attribute} as the {x}?",),
    ),
    # ---- two objects. {x}, {y}: unique filters
    "same": Wordings(
        ("do the {x} and the {y} have the same {attribute}?", "is the {attribute} of the {x} and the {y} the same?"),
        ("are the {x} and the {y} of the same {attribute}?",),
    ),
    "common": Wordings(
        ("what do the {x} and the {y} have in common?", "what is the same for the {x} and the {y}?"),
        ("the {x} and the {y} have what in common?",),
    ),
    "choose": Wordings(
        ("is the {x} {v} or {w}?", "what is the {x}, {v} or {w}?"),
        ("would you say the {x} is {v} or {w}?",),
    ),
    "both_exist": Wordings(
        ("is there a {x} and a {y}?", "can you see a {x} and a {y}?"),
        ("does the picture show a {x} and a {y}?",),
    ),
    "either_exist": Wordings(
        ("is there a {x} or a {y}?", "can you see a {x} or a {y}?"),
        ("does the picture show a {x} or a {y}?",),
    ),
}
"""Template -> wordings of questions about one image."""

STATEMENTS: dict[str, Wordings] = {
    # {side}: left or right, {other}: the other one
    "side_has": Wordings(
        ("the {side} image contains a {x}.", "there is a {x} in the {side} image."),
        ("the {side} image shows a {x}.",),
    ),
    "both_have": Wordings(
        ("both images contain a {x}.", "there is a {x} in both images."),
        ("each image shows a {x}.",),
    ),
    "only_one": Wordings(
        ("only one image contains a {x}.", "there is a {x} in only one image."),
        ("exactly one image shows a {x}.",),
    ),
    "any_has": Wordings(
        ("at least one image contains a {x}.", "there is a {x} in at least one image."),
        ("one or both images show a {x}.",),
    ),
    "none_has": Wordings(
        ("no image contains a {x}.", "there is no {x} in the images."),
        ("the images show no {x}.",),
    ),
    "side_number": Wordings(  # {number}: number_of
        ("the {side} image contains {number}.", "there are {number} in the {side} image."),
        ("the {side} image shows {number}.",),
    ),
    "more_on_side": Wordings(
        ("the {side} image contains more {xs} than the {other} image.", "there are more {xs} in the {side} image."),
        ("the {side} image shows more {xs} than the {other} image.",),
    ),
    "total": Wordings(
        ("the images contain {number} in total.", "there are {number} in total."),
        ("the images show {number} in total.",),
    ),
}
"""Template -> wordings of statements about a left and a right image, true or false."""

CAPTIONS: dict[str, Wordings] = {
    # {first}, {second}: phrases with article or number
    "one": Wordings(("{first}.", "there is {first}.", "a picture of {first}."), ("we see {first}.",)),
    "two": Wordings(
        ("{first} and {second}.", "there is {first} and {second}.", "a picture of {first} and {second}."),
        ("we see {first} and {second}.",),
    ),
    "many": Wordings(("{first}.", "there are {first}.", "a picture of {first}."), ("we see {first}.",)),
    "relation": Wordings(
        ("{first} {rel} {second}.", "there is {first} {rel} {second}."), ("we see {first} {rel} {second}.",)
    ),
    "place": Wordings(
        ("{first} at the {place}.", "there is {first} at the {place}."), ("we see {first} at the {place}.",)
    ),
}
"""Template -> wordings of captions of one image."""

_WORDS_WITHOUT_TEMPLATE = (
    *SIZES, *PATTERNS, *COLORS, *SHAPES, THING, *NUMBER_WORDS, *COLUMN_WORDS, *ROW_WORDS, *ATTRIBUTES,
    "yes", "no", "true", "false", *"0123456789",
)  # fmt: skip


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, skipping the slots of a wording."""
    return re.findall(r"[a-z]+|[0-9]|[.,?]", re.sub(r"{\w+}", " ", text))


def vocabulary() -> list[str]:
    """Sorted words and punctuation marks of all questions, statements, captions and answers."""
    words = set(_WORDS_WITHOUT_TEMPLATE)
    words.update(noun_phrase(Filter(shape=shape), plural=True) for shape in (*SHAPES, THING))
    for phrase in (*QUADRANTS, *RELATIONS):
        words.update(phrase.split())
    for others in SYNONYMS.values():
        words.update(others)
    for table in (QUESTIONS, STATEMENTS, CAPTIONS):
        for wordings in table.values():
            for wording in (*wordings.seen, *wordings.held_out):
                words.update(split_words(wording))
    return sorted(words)
