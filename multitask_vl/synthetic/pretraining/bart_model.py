"""How does the tiny BART read a document during pretraining: words, or objects collapsed into one vector each?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

ROLES = 2
"""Roles an object can have in a question: what is asked about, and what it is related to."""


def tiny_config(vocab_size: int, d_model: int = 128, encoder_layers: int = 3, decoder_layers: int = 3) -> BartConfig:
    """Sizes of the shipped BART; special ids are BART's own (0 <s>, 1 <pad>, 2 </s>)."""
    return BartConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * d_model,
        decoder_ffn_dim=4 * d_model,
        max_position_embeddings=192,
        dropout=0.1,
        activation_function="gelu",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )


def fresh_bart(config: BartConfig, seed: int, side: int, first_place_id: int, image_ids: tuple[int, ...]):
    """A BART to start from.

    Three initial values differ from BART's (std 0.02 everywhere), all of them trained afterwards: matrices get the
    spread that suits this width, positions start as sinusoids, and the rows that stand for the cells of a ``side`` x
    ``side`` grid (ids ``first_place_id`` downwards) start as sums of a row part and a column part, each mostly linear.
    """
    torch.manual_seed(seed)
    bart = BartForConditionalGeneration(config)
    width = config.d_model
    with torch.no_grad():
        for name, value in bart.named_parameters():
            if value.dim() == 2 and "embed" not in name and "shared" not in name:
                nn.init.normal_(value, std=(2 / sum(value.shape)) ** 0.5)
        words = bart.model.shared.weight
        nn.init.normal_(words, std=0.1)
        words[config.pad_token_id] = 0
        for stack in (bart.model.encoder, bart.model.decoder):
            stack.embed_positions.weight.copy_(0.1 * sinusoids(stack.embed_positions.weight.shape[0], width))
        shared, axes, rows, columns, images = (torch.randn(n, width) for n in (1, 2, side, side, len(image_ids)))
        for cell in range(side * side):
            row, column = divmod(cell, side)
            slope = sum((2 * at / (side - 1) - 1) * axis for at, axis in zip((row, column), axes, strict=True))
            words[first_place_id - cell] = 0.15 * (shared[0] + rows[row] + columns[column]) + 0.3 * slope
        for i, token in enumerate(image_ids):
            words[token] = 0.15 * shared[0] + 0.3 * images[i]
    return bart


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Sine and cosine waves of the position [count, width]."""
    angle = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, width, 2)[None] / width)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


@dataclass
class Documents:
    """A batch of documents of one form, as tensors.

    Attributes:
        input_ids, text_mask: question, and in the plain form the scene in words [B, L].
        cell_words: token ids whose embeddings are summed into each cell's vector [B, C, 4]; None in the plain form.
        cell_place, cell_image: token ids of the cell's place and of its picture [B, C].
        cell_mask: 1 on cells, 0 on padding [B, C].
        labels: target tokens [B, T], -100 where padded.
        weights: weight of each target token [B, T].
        anchor: positions in [text; cells] that stand for one object each [B, O]; 0 where there is none.
        roles: 1 where that object has the role [B, O, ROLES].
        values: attribute values of that object [B, O, 4].
        anchor_mask: 1 where there is an object (or an empty cell: roles 0) [B, O].
        answer: first word of the answer [B], -100 where the target is a whole sentence.
    """

    input_ids: torch.Tensor
    text_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    answer: torch.Tensor
    anchor: torch.Tensor
    roles: torch.Tensor
    values: torch.Tensor
    anchor_mask: torch.Tensor
    cell_words: torch.Tensor | None = None
    cell_place: torch.Tensor | None = None
    cell_image: torch.Tensor | None = None
    cell_mask: torch.Tensor | None = None


def collapsed_cells(bart: BartForConditionalGeneration, documents: Documents, noise: torch.Tensor | None = None):
    """One vector a cell [B, C, d]: the normalised sum of its words, plus the rows of its place and its picture.

    This is the form in which the multitask model's visual embedding hands over a grid cell: a normalised projection,
    plus the word-embedding row of the cell's index, plus an image-order row; no position row, no embedding LayerNorm.
    """
    words = bart.model.shared.weight
    vectors = F.embedding(documents.cell_words, words).sum(-2)
    vectors = F.layer_norm(vectors, vectors.shape[-1:])
    if noise is not None:
        vectors = vectors + noise
    return vectors + F.embedding(documents.cell_place, words) + F.embedding(documents.cell_image, words)


def encode(bart: BartForConditionalGeneration, documents: Documents, noise: torch.Tensor | None = None):
    """Encoder states of [text; cells], their mask, and the states before the last layer.

    Shapes [B, L + C, d], bool [B, L + C], [B, L + C, d].
    """
    encoder = bart.model.encoder
    embedded = encoder.embed_tokens(documents.input_ids)
    hidden = encoder.layernorm_embedding(embedded + encoder.embed_positions(documents.input_ids))
    mask = documents.text_mask
    if documents.cell_words is not None:
        hidden = torch.cat((hidden, collapsed_cells(bart, documents, noise)), 1)
        mask = torch.cat((mask, documents.cell_mask), 1)
    attend = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    before_last = hidden
    for layer in encoder.layers:
        before_last, hidden = hidden, layer(hidden, attend)
    return hidden, mask.bool(), before_last


def decode(bart: BartForConditionalGeneration, states: torch.Tensor, mask: torch.Tensor, inputs: torch.Tensor):
    """Logits [B, T, V] of the next word after each of ``inputs`` [B, T]."""
    hidden = bart.model.decoder(
        input_ids=inputs, encoder_hidden_states=states, encoder_attention_mask=mask.long(), use_cache=False
    ).last_hidden_state
    return bart.lm_head(hidden) + bart.final_logits_bias


class Reader(nn.Module):
    """BART with the throw-away heads of pretraining; only ``bart`` is shipped.

    Args:
        bart: the model.
        value_counts: how many values each of an object's attributes can take.
    """

    def __init__(self, bart: BartForConditionalGeneration, value_counts: tuple[int, ...]):
        super().__init__()
        self.bart = bart
        self.value_counts = value_counts
        self.roles = nn.Linear(bart.config.d_model, ROLES)
        self.related = nn.Linear(bart.config.d_model, 1)
        self.values = nn.Linear(bart.config.d_model, sum(value_counts))

    def forward(self, documents: Documents, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Losses (scalars ``answer``, ``early``, ``roles``, ``values``) and ``right`` [B], whole answer correct.

        ``answer``: cross-entropy of the target, weighted by word. ``early``: of the answer's first word, read off the
        encoder's first position through the word embedding. ``roles``: does the question speak of this object? (What
        it is related to has to be known one layer earlier.) ``values``: which attributes has it? (In the plain form
        its noun has to gather them.)
        """
        states, mask, before_last = encode(self.bart, documents, noise)
        labels = documents.labels
        inputs = labels.masked_fill(labels < 0, self.bart.config.pad_token_id).roll(1, 1)
        inputs[:, 0] = self.bart.config.decoder_start_token_id
        logits = decode(self.bart, states, mask, inputs)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        early = states[:, 0] @ self.bart.model.shared.weight.T
        at = documents.anchor[..., None].expand(-1, -1, states.shape[-1])
        objects = states.gather(1, at)
        there = documents.anchor_mask
        count = there.sum().clamp(min=1)
        roles = F.binary_cross_entropy_with_logits(self.roles(objects), documents.roles, reduction="none").mean(-1)
        related = F.binary_cross_entropy_with_logits(
            self.related(before_last.gather(1, at))[..., 0], documents.roles[..., 1], reduction="none"
        )
        known = (documents.values[..., 0] >= 0).flatten().float()
        values = documents.values.clamp(min=0)
        gathered = self.values(objects).split(self.value_counts, -1)
        named = sum(
            F.cross_entropy(part.flatten(0, 1), values[..., i].flatten(), reduction="none")
            for i, part in enumerate(gathered)
        )
        return {
            "answer": (losses * documents.weights.flatten()).sum() / len(labels),
            "early": F.cross_entropy(early, documents.answer, ignore_index=-100, reduction="sum") / len(labels),
            "roles": ((roles + 0.5 * related) * there).sum() / count,
            "values": (named * known).sum() / known.sum().clamp(min=1),
            "right": ((logits.argmax(-1) == labels) | (labels < 0))[:, 1:].all(1),
        }
