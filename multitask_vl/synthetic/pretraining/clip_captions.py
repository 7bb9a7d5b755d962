"""What do the captions of CLIP's pretraining say, and which numbers are their words?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multitask_vl.synthetic.language import a, noun
from multitask_vl.synthetic.scenes import ATTRIBUTES, PLACES, VALUES, Filter, Look, Object

NOTHING = "nothing"
VALUE_CAPTIONS = {
    name: tuple(f"a {noun(Filter(**{name: value}))}" for value in values) for name, values in VALUES.items()
}
"""Attribute -> captions that name one value of it: "a star", "a red thing", "a striped thing", "a large thing"."""

_SPOKEN = sorted(
    {word for captions in VALUE_CAPTIONS.values() for caption in captions for word in caption.split()}
    | {word for place in PLACES for word in place.split()}
    | {"at", "the", NOTHING}
)
WORDS = ("<pad>", "<start>", *_SPOKEN, "<end>")
"""The text tower's vocabulary. The end mark is last because open_clip pools at the highest id."""
CONTEXT = 12
"""Longest caption in words, marks included."""


def full_caption(look: Look) -> str:
    """All four attributes: "a large striped red star"."""
    return a(look)


def placed_caption(thing: Object, place: str | None = None) -> str:
    """Color, shape and quarter of one object: "a red star at the top left"."""
    return f"a {thing.color} {thing.shape} at the {place or thing.place}"


def region_candidates() -> tuple[list[str], dict[str, slice]]:
    """Captions a grid cell is compared with, and where each attribute's are; the last one is `NOTHING`."""
    captions: list[str] = []
    spans = {}
    for name in ATTRIBUTES:
        spans[name] = slice(len(captions), len(captions) + len(VALUE_CAPTIONS[name]))
        captions += VALUE_CAPTIONS[name]
    return [*captions, NOTHING], spans


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    """Word ids [N, CONTEXT], padded with 0. A word outside `WORDS` is a KeyError."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokens = torch.zeros(len(captions), CONTEXT, dtype=torch.long)
    for row, caption in enumerate(captions):
        ids = [numbers["<start>"], *(numbers[word] for word in caption.split()), numbers["<end>"]]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens
