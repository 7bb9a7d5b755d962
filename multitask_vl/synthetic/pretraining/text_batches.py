"""How do documents become tensors: the question in words, the objects as one vector each or in words too?"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch

from multitask_vl.synthetic.language import QUESTIONS, STATEMENTS, a, cell_words, vocabulary
from multitask_vl.synthetic.pretraining import text_questions, text_statements  # noqa: F401  (they fill GENERATORS)
from multitask_vl.synthetic.pretraining.bart_model import ROLES, Documents
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, NO_ROLE, SKILLS, Document, Maker, Roles
from multitask_vl.synthetic.scenes import ATTRIBUTES, COLORS, GRID, PATTERNS, SHAPES, SIZES, VALUES, Look, Object

PROMPTS = ("vqa", "gqa", "gpa", "nlvr", "caption")
"""Task names that start a text, ``gpa`` as in the published recipe."""
EMPTY = "nothing"
"""What an empty cell's vector is made of."""
DENOISE = "denoise"
"""Template name of documents whose masked words are to be written."""
VALUE_INDEX = {name: {value: i for i, value in enumerate(VALUES[name])} for name in ATTRIBUTES}
WIDTH = len(ATTRIBUTES)
VALUE_COUNTS = tuple(len(VALUES[name]) for name in ATTRIBUTES)
FILLERS = (
    "what", "which", "is", "are", "does", "do", "have", "can", "you", "see", "there", "in", "picture", "it", "that",
    "would", "say", "show", "shows", "contain", "contains",
)  # fmt: skip
"""Words without which a question or statement can still be understood."""
GARBLED = 0.35
"""Share of the questions and statements that are garbled, in training."""
TELLING = {*SIZES, *PATTERNS, *COLORS, *SHAPES}


def all_words() -> list[str]:
    """Words the tokenizer must know as one token each."""
    return sorted({*vocabulary(), *PROMPTS, EMPTY, ":"})


def prompted(document: Document, rng: random.Random | None) -> str:
    """The question behind its task's prompt; one-picture questions belong to VQA and GQA alike.

    With ``rng`` the prompt is varied as fine-tuning recipes vary it (now and then there is none), and some questions
    are `garbled`; without, nothing is random.
    """
    question = document.question
    if rng and rng.random() < GARBLED and document.template != DENOISE:
        question = garbled(question, rng)
    if document.template == DENOISE or (rng and rng.random() < 0.05):
        return question
    if document.template in STATEMENTS:
        name = "nlvr"
    elif SKILLS[document.template] == "caption":
        name = "caption"
    elif rng is None:
        name = "gqa" if SKILLS[document.template] in ("relation", "logic", "place") else "vqa"
    else:
        name = rng.choice(("vqa", "vqa", "vqa", "gqa", "gqa", "gpa"))
    return f"{name}: {question}"


def _held_out_wordings() -> re.Pattern:
    wordings = [text for table in (QUESTIONS, STATEMENTS) for each in table.values() for text in each.held_out]
    return re.compile("|".join(re.sub(r"\\{\w+\\}", ".+", re.escape(text)) for text in wordings))


KEPT_FROM_TRAINING = _held_out_wordings()
"""Matches every question and statement in a held-out wording."""


def garbled(text: str, rng: random.Random) -> str:
    """A seen wording's text with fillers left out or exchanged, or its first words moved to the end (BART's rotation).

    So that a wording never seen is no stumbling block; what is asked for stays the same. Never a held-out
    wording itself.
    """
    first_noun = re.search(r" (?=(the|a) )", text)
    if first_noun and rng.random() < 0.4:
        text = f"{text[first_noun.end() : -1]} {text[: first_noun.start()]}{text[-1]}"

    def other(found: re.Match) -> str:
        return rng.choice(("", *FILLERS)) if rng.random() < 0.4 else found[0]

    words = re.sub(rf"\b({'|'.join(FILLERS)})\b", other, text)
    words = re.sub(r" (?=[?.])", "", " ".join(words.split()))
    return text if KEPT_FROM_TRAINING.fullmatch(words) else words


def make_denoising(make: Maker) -> Document:
    """A sentence or two of the world's language in which words, and runs of words, are masked."""
    template = make.rng.choice(list(GENERATORS))
    source = GENERATORS[template](make)
    if SKILLS[template] == "caption":
        text = source.answer
    elif make.rng.random() < 0.5:
        text = f"{source.question} {source.answer}"
    else:
        text = " ".join(sentence(thing, make.rng) for thing in source.pictures[0][:3])
    words, kept = re.findall(r" ?[^ .,?]+|[.,?]", text), []
    position = 0
    while position < len(words):
        if make.rng.random() < 0.2:
            kept.append(" <mask>" if position else "<mask>")
            position += make.rng.choice((1, 1, 2, 3))
        else:
            kept.append(words[position])
            position += 1
    return Document(DENOISE, "".join(kept), text, (), ())


def sentence(thing: Object, rng: random.Random) -> str:
    """An object in words: ``there is a large striped red star upper leftmost.``"""
    return f"{rng.choice(('', 'there is '))}{a(thing)} {cell_words(thing)}."


class Collator:
    """Makes batches of documents.

    Args:
        tokenizer: the world's.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}
        self.word = {word: tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in all_words()}
        self.nouns = {self.word[shape] for shape in SHAPES}
        self.telling = torch.tensor(
            [tokenizer.convert_tokens_to_ids(form) for word in sorted(TELLING) for form in (word, f"Ġ{word}")]
        )
        self.place = [tokenizer.convert_tokens_to_ids(f"<vis_extra_id_{i}>") for i in range(GRID * GRID)]
        self.image = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(2)]
        self.looks: dict[Look, list[int]] = {}
        self.nothing = [1, *NO_ROLE, *[-1] * WIDTH, *[self.word[EMPTY]] * WIDTH]
        self.no_cell = [0, *NO_ROLE, *[-1] * WIDTH, *[0] * WIDTH, 0, 0]

    def __call__(
        self, documents: Sequence[Document], collapsed: bool, rng: random.Random, empties: int = GRID * GRID,
        vary: bool = True,
    ) -> Documents:  # fmt: skip
        """Tensors of these documents.

        Args:
            collapsed: objects as vectors; else the scene is told in words behind the question.
            empties: collapsed form: up to so many empty cells a picture; GRID^2 for all of them.
            vary: vary the prompts.
        """
        texts = [prompted(document, rng if vary else None) for document in documents]
        ids = self.tokenizer(texts).input_ids
        targets = self.tokenizer([document.answer for document in documents]).input_ids
        if collapsed:
            start = max(map(len, ids))
            facts = padded([self._cells(document, empties, rng) for document in documents], self.no_cell)
            anchor = torch.arange(start, start + facts.shape[1]).expand(len(ids), -1)
        else:
            told = [self._told(document, len(row) - 1, rng) for document, row in zip(documents, ids, strict=True)]
            ids = [[*row[:-1], *words, row[-1]] for row, (words, _) in zip(ids, told, strict=True)]
            facts = padded([found for _, found in told], [0, *self.no_cell])
            anchor, facts = facts[..., 0], facts[..., 1:]
        there, roles, values, words, place, image = facts.split([1, ROLES, WIDTH, WIDTH, 1, 1], -1)
        asked = torch.tensor([SKILLS.get(document.template, "caption") != "caption" for document in documents])
        labels = padded(targets, -100)
        weights = torch.where(labels >= 0, 0.1, 0.0)
        short = asked[:, None] & (labels > 2)
        weights[short] = 1.0
        weights[~short & torch.isin(labels, self.telling)] = 0.3
        return Documents(
            input_ids=padded(ids, self.tokenizer.pad_token_id),
            text_mask=padded([[1] * len(row) for row in ids], 0),
            labels=labels,
            weights=weights,
            answer=labels[:, 1].masked_fill(~asked, -100),
            anchor=anchor,
            roles=roles.float(),
            values=values,
            anchor_mask=there[..., 0].float() * asked[:, None],
            cell_words=words if collapsed else None,
            cell_place=place[..., 0] if collapsed else None,
            cell_image=image[..., 0] if collapsed else None,
            cell_mask=there[..., 0] if collapsed else None,
        )

    def _cells(self, document: Document, empties: int, rng: random.Random) -> list[list[int]]:
        """Facts of each cell, occupied ones first: their order carries nothing."""
        rows = []
        for image, things, roles in zip(self.image, document.pictures, document.roles, strict=False):
            for thing, role in zip(things, roles, strict=True):
                rows.append([*self._facts(thing, role), self.place[thing.cell], image])
            used = {thing.cell for thing in things}
            free = [cell for cell in range(GRID * GRID) if cell not in used]
            if empties < GRID * GRID:
                free = rng.sample(free, min(len(free), rng.randint(0, empties)))
            rows += [[*self.nothing, self.place[cell], image] for cell in free]
        return rows

    def _facts(self, thing: Object, role: Roles) -> list[int]:
        """1, roles, index of each attribute's value, word of each attribute's value."""
        if thing.look not in self.looks:
            look = thing.look
            indices = [VALUE_INDEX[name][value] for name, value in zip(ATTRIBUTES, look, strict=True)]
            self.looks[look] = [*indices, *(self.word[value] for value in look)]
        return [1, *role, *self.looks[thing.look]]

    def _told(self, document: Document, start: int, rng: random.Random) -> tuple[list[int], list[list[int]]]:
        """Token ids of the scene in words; of each object the position of its noun and its facts."""
        ids: list[int] = []
        found = []
        for side, things, roles in zip_longest(("left", "right"), document.pictures, document.roles):
            if things is None:
                continue
            if len(document.pictures) == 2:
                ids += self._piece(f" {side} image:")
            for thing, role in zip(things, roles, strict=True):
                words = self._piece(f" {sentence(thing, rng)}")
                noun = next(i for i, word in enumerate(words) if word in self.nouns)
                found.append([start + len(ids) + noun, *self._facts(thing, role), 0, 0])
                ids += words
        return ids, found

    def _piece(self, text: str) -> list[int]:
        """Token ids of a text that follows other text, remembered: the same sentences come again and again."""
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.known[text]


def padded(rows: Sequence[Sequence], fill) -> torch.Tensor:
    """Rows of unequal length as one tensor [B, longest, ...], at least one column."""
    longest = max(1, *map(len, rows))
    return torch.from_numpy(np.array([[*row, *[fill] * (longest - len(row))] for row in rows]))
