"""Documents as tensors: the question in words, the objects as one vector each or in words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch

from multitask_vl.synthetic.language import QUESTIONS, STATEMENTS, cell_phrase, indefinite, vocabulary
from multitask_vl.synthetic.pretraining import text_questions, text_statements  # noqa: F401  (they fill GENERATORS)
from multitask_vl.synthetic.pretraining.bart_model import NUM_ROLES, DocumentBatch
from multitask_vl.synthetic.pretraining.text_documents import (
    GENERATORS,
    NO_ROLE,
    SKILLS,
    Document,
    DocumentBuilder,
    Roles,
)
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    COLORS,
    GRID,
    PATTERNS,
    SHAPES,
    SIZES,
    VALUES,
    Appearance,
    Object,
)

PROMPTS = ("vqa", "gqa", "gpa", "nlvr", "caption")
"""Task names at the start of a text, ``gpa`` as in the published recipe."""
EMPTY = "nothing"
"""Word that an empty cell's vector is made of."""
DENOISE = "denoise"
"""Template name of denoising documents."""
NUM_CELLS = GRID * GRID
VALUE_INDEX = {name: {value: i for i, value in enumerate(VALUES[name])} for name in ATTRIBUTES}
NUM_ATTRIBUTES = len(ATTRIBUTES)
VALUE_COUNTS = tuple(len(VALUES[name]) for name in ATTRIBUTES)
FILLERS = (
    "what", "which", "is", "are", "does", "do", "have", "can", "you", "see", "there", "in", "picture", "it", "that",
    "would", "say", "show", "shows", "contain", "contains",
)  # fmt: skip
"""Words that a question or statement can be understood without."""
PERTURBED_FRACTION = 0.35
"""Fraction of the questions and statements with a perturbed wording in training."""
VALUE_WORDS = {*SIZES, *PATTERNS, *COLORS, *SHAPES}


def tokenizer_words() -> list[str]:
    """Words that the tokenizer must know as one token each."""
    return sorted({*vocabulary(), *PROMPTS, EMPTY, ":"})


def add_prompt(document: Document, rng: random.Random | None) -> str:
    """Question with its task's prompt; questions about one image belong to VQA and GQA alike.

    Args:
        rng: varies the prompt as fine-tuning recipes do (sometimes there is none) and perturbs some wordings with
            `perturb_wording`. None: deterministic.
    """
    question = document.question
    if rng and rng.random() < PERTURBED_FRACTION and document.template != DENOISE:
        question = perturb_wording(question, rng)
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


HELD_OUT_WORDINGS = _held_out_wordings()
"""Matches every question and statement in a held-out wording."""


def perturb_wording(text: str, rng: random.Random) -> str:
    """Drop or replace fillers of a text, or move its first words to the end (document rotation of BART).

    It makes the model robust to unseen wordings without changing the meaning, and never yields a held-out wording.
    """
    first_noun = re.search(r" (?=(the|a) )", text)
    if first_noun and rng.random() < 0.4:
        text = f"{text[first_noun.end() : -1]} {text[: first_noun.start()]}{text[-1]}"

    def replacement(match: re.Match) -> str:
        return rng.choice(("", *FILLERS)) if rng.random() < 0.4 else match[0]

    perturbed = re.sub(rf"\b({'|'.join(FILLERS)})\b", replacement, text)
    perturbed = re.sub(r" (?=[?.])", "", " ".join(perturbed.split()))
    return text if HELD_OUT_WORDINGS.fullmatch(perturbed) else perturbed


def denoising_document(builder: DocumentBuilder) -> Document:
    """One or more sentences in which words, and spans of words, are masked; the target is the full text."""
    rng = builder.rng
    template = rng.choice(list(GENERATORS))
    source = GENERATORS[template](builder)
    if SKILLS[template] == "caption":
        text = source.answer
    elif rng.random() < 0.5:
        text = f"{source.question} {source.answer}"
    else:
        text = " ".join(object_sentence(thing, rng) for thing in source.images[0][:3])
    words, masked = re.findall(r" ?[^ .,?]+|[.,?]", text), []
    position = 0
    while position < len(words):
        if rng.random() < 0.2:
            masked.append(" <mask>" if position else "<mask>")
            position += rng.choice((1, 1, 2, 3))
        else:
            masked.append(words[position])
            position += 1
    return Document(DENOISE, "".join(masked), text, (), ())


def object_sentence(thing: Object, rng: random.Random) -> str:
    """Description of an object: ``there is a large striped red star upper leftmost.``"""
    return f"{rng.choice(('', 'there is '))}{indefinite(thing)} {cell_phrase(thing)}."


class DocumentCollator:
    """Batching of documents.

    Args:
        tokenizer: tokenizer of the synthetic world.

    Attributes:
        position_ids: token id of each grid cell.
        image_ids: token ids of the first and the second image.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.word_ids = {word: tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in tokenizer_words()}
        self.position_ids = [tokenizer.convert_tokens_to_ids(f"<vis_extra_id_{i}>") for i in range(NUM_CELLS)]
        self.image_ids = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(2)]
        self._noun_ids = {self.word_ids[shape] for shape in SHAPES}
        self._value_word_ids = torch.tensor(
            [tokenizer.convert_tokens_to_ids(form) for word in sorted(VALUE_WORDS) for form in (word, f"Ġ{word}")]
        )
        self._encoded: dict[str, list[int]] = {}
        self._appearances: dict[Appearance, list[int]] = {}
        self._empty_cell = [1, *NO_ROLE, *[-1] * NUM_ATTRIBUTES, *[self.word_ids[EMPTY]] * NUM_ATTRIBUTES]
        self._padding = [0, *NO_ROLE, *[-1] * NUM_ATTRIBUTES, *[0] * NUM_ATTRIBUTES, 0, 0]

    def __call__(
        self,
        documents: Sequence[Document],
        collapsed: bool,
        rng: random.Random,
        max_empty: int = NUM_CELLS,
        vary: bool = True,
    ) -> DocumentBatch:
        """Collate documents.

        Args:
            collapsed: represent objects as vectors; otherwise the scene follows the question in words.
            max_empty: maximum number of empty cells per image in the collapsed form; GRID^2 includes all of them.
            vary: vary the prompts and wordings.
        """
        texts = [add_prompt(document, rng if vary else None) for document in documents]
        input_ids = self.tokenizer(texts).input_ids
        targets = self.tokenizer([document.answer for document in documents]).input_ids
        if collapsed:
            start = max(map(len, input_ids))
            rows = pad_rows([self._cell_rows(document, max_empty, rng) for document in documents], self._padding)
            positions = torch.arange(start, start + rows.shape[1]).expand(len(input_ids), -1)
        else:
            scenes = [
                self._scene_text(document, len(ids) - 1, rng)
                for document, ids in zip(documents, input_ids, strict=True)
            ]
            input_ids = [[*ids[:-1], *scene, ids[-1]] for ids, (scene, _) in zip(input_ids, scenes, strict=True)]
            rows = pad_rows([objects for _, objects in scenes], [0, *self._padding])
            positions, rows = rows[..., 0], rows[..., 1:]
        present, roles, values, words, cell_positions, cell_images = rows.split(
            [1, NUM_ROLES, NUM_ATTRIBUTES, NUM_ATTRIBUTES, 1, 1], -1
        )
        is_question = torch.tensor([SKILLS.get(document.template, "caption") != "caption" for document in documents])
        labels = pad_rows(targets, -100)
        return DocumentBatch(
            input_ids=pad_rows(input_ids, self.tokenizer.pad_token_id),
            text_mask=pad_rows([[1] * len(ids) for ids in input_ids], 0),
            labels=labels,
            weights=self._token_weights(labels, is_question),
            answer=labels[:, 1].masked_fill(~is_question, -100),
            object_positions=positions,
            roles=roles.float(),
            values=values,
            object_mask=present[..., 0].float() * is_question[:, None],
            cell_words=words if collapsed else None,
            cell_positions=cell_positions[..., 0] if collapsed else None,
            cell_images=cell_images[..., 0] if collapsed else None,
            cell_mask=present[..., 0] if collapsed else None,
        )

    def _token_weights(self, labels: torch.Tensor, is_question: torch.Tensor) -> torch.Tensor:
        """Loss weight of each target token [B, T]: 1 on answer words, 0.3 on value words of sentences, else 0.1."""
        weights = torch.where(labels >= 0, 0.1, 0.0)
        answer_words = is_question[:, None] & (labels > 2)
        weights[answer_words] = 1.0
        weights[~answer_words & torch.isin(labels, self._value_word_ids)] = 0.3
        return weights

    def _cell_rows(self, document: Document, max_empty: int, rng: random.Random) -> list[list[int]]:
        """Object row, position token and image token of each cell, occupied cells first; the order has no meaning."""
        rows = []
        for image_id, things, roles in zip(self.image_ids, document.images, document.roles, strict=False):
            for thing, role in zip(things, roles, strict=True):
                rows.append([*self._object_row(thing, role), self.position_ids[thing.cell], image_id])
            occupied = {thing.cell for thing in things}
            empty = [cell for cell in range(NUM_CELLS) if cell not in occupied]
            if max_empty < NUM_CELLS:
                empty = rng.sample(empty, min(len(empty), rng.randint(0, max_empty)))
            rows += [[*self._empty_cell, self.position_ids[cell], image_id] for cell in empty]
        return rows

    def _object_row(self, thing: Object, role: Roles) -> list[int]:
        """1, roles, index of each attribute's value, token id of each attribute's value."""
        appearance = thing.appearance
        if appearance not in self._appearances:
            indices = [VALUE_INDEX[name][value] for name, value in zip(ATTRIBUTES, appearance, strict=True)]
            self._appearances[appearance] = [*indices, *(self.word_ids[value] for value in appearance)]
        return [1, *role, *self._appearances[appearance]]

    def _scene_text(self, document: Document, start: int, rng: random.Random) -> tuple[list[int], list[list[int]]]:
        """Token ids of the scene in words, and the noun's position and object row of each object."""
        ids: list[int] = []
        rows = []
        for side, things, roles in zip_longest(("left", "right"), document.images, document.roles):
            if things is None:
                continue
            if len(document.images) == 2:
                ids += self._encode(f" {side} image:")
            for thing, role in zip(things, roles, strict=True):
                sentence = self._encode(f" {object_sentence(thing, rng)}")
                noun = next(i for i, token in enumerate(sentence) if token in self._noun_ids)
                rows.append([start + len(ids) + noun, *self._object_row(thing, role), 0, 0])
                ids += sentence
        return ids, rows

    def _encode(self, text: str) -> list[int]:
        """Token ids of a continuation, cached since the same sentences recur."""
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self._encoded[text]


def pad_rows(rows: Sequence[Sequence], fill) -> torch.Tensor:
    """Rows of unequal length as one tensor [B, longest, ...] with at least one column."""
    longest = max(1, *map(len, rows))
    return torch.from_numpy(np.array([[*row, *[fill] * (longest - len(row))] for row in rows]))
