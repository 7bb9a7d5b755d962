"""Captions of the CLIP pretraining and their token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multitask_vl.synthetic.language import indefinite, noun_phrase
from multitask_vl.synthetic.scenes import ATTRIBUTES, QUADRANTS, VALUES, Appearance, Filter, Object

NOTHING = "nothing"
"""Caption of an empty grid cell."""
VALUE_CAPTIONS = {
    name: tuple(f"a {noun_phrase(Filter(**{name: value}))}" for value in values) for name, values in VALUES.items()
}
"""Attribute -> captions that name one value of it: "a star", "a red thing", "a striped thing", "a large thing"."""

_CAPTION_WORDS = sorted(
    {word for captions in VALUE_CAPTIONS.values() for caption in captions for word in caption.split()}
    | {word for quadrant in QUADRANTS for word in quadrant.split()}
    | {"at", "the", NOTHING}
)
VOCABULARY = ("<pad>", "<start>", *_CAPTION_WORDS, "<end>")
"""Words of the text encoder. The end token is last because open_clip pools at the highest id."""
CONTEXT_LENGTH = 12
"""Maximum length of a caption in tokens, start and end included."""


def full_caption(appearance: Appearance) -> str:
    """Caption with all four attributes: "a large striped red star"."""
    return indefinite(appearance)


def quadrant_caption(thing: Object) -> str:
    """Caption with color, shape and quadrant of one object: "a red star at the top left"."""
    return f"a {thing.color} {thing.shape} at the {thing.quadrant}"


def region_captions() -> tuple[list[str], dict[str, slice]]:
    """Captions that grid cells are classified with, and each attribute's slice of them; the last one is `NOTHING`."""
    captions: list[str] = []
    spans = {}
    for name in ATTRIBUTES:
        spans[name] = slice(len(captions), len(captions) + len(VALUE_CAPTIONS[name]))
        captions += VALUE_CAPTIONS[name]
    return [*captions, NOTHING], spans


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    """Token ids [N, CONTEXT_LENGTH], padded with 0.

    Raises:
        KeyError: a word is not in `VOCABULARY`.
    """
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokens = torch.zeros(len(captions), CONTEXT_LENGTH, dtype=torch.long)
    for row, caption in enumerate(captions):
        caption_ids = [ids["<start>"], *(ids[word] for word in caption.split()), ids["<end>"]]
        tokens[row, : len(caption_ids)] = torch.tensor(caption_ids)
    return tokens
