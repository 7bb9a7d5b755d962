"""Tiny BART and its pretraining losses on documents in words or with one vector per object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

NUM_ROLES = 2
"""Roles an object can have in a question: what is asked about, and what that is related to."""


def tiny_config(vocab_size: int, d_model: int = 128, encoder_layers: int = 3, decoder_layers: int = 3) -> BartConfig:
    """Configuration of the bundled BART; special ids are BART's own (0 <s>, 1 <pad>, 2 </s>)."""
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


def init_bart(
    config: BartConfig, seed: int, grid_size: int, first_position_id: int, image_ids: tuple[int, ...]
) -> BartForConditionalGeneration:
    """BART with random weights.

    Three initial values differ from BART's (std 0.02 everywhere), all of them trained afterwards: matrices get the std
    that suits this width, positions start as sinusoids, and the embeddings of grid cells start as sums of a row part
    and a column part, each mostly linear.

    Args:
        grid_size: side of the grid of cells.
        first_position_id: token id of cell 0; the other cells have the ids below it.
        image_ids: token ids of the first and the second image.
    """
    torch.manual_seed(seed)
    bart = BartForConditionalGeneration(config)
    width = config.d_model
    with torch.no_grad():
        for name, value in bart.named_parameters():
            if value.dim() == 2 and "embed" not in name and "shared" not in name:
                nn.init.normal_(value, std=(2 / sum(value.shape)) ** 0.5)
        embeddings = bart.model.shared.weight
        nn.init.normal_(embeddings, std=0.1)
        embeddings[config.pad_token_id] = 0
        for stack in (bart.model.encoder, bart.model.decoder):
            stack.embed_positions.weight.copy_(0.1 * sinusoids(stack.embed_positions.weight.shape[0], width))
        counts = (1, 2, grid_size, grid_size, len(image_ids))
        shared, axes, rows, columns, images = (torch.randn(n, width) for n in counts)
        for cell in range(grid_size * grid_size):
            row, column = divmod(cell, grid_size)
            slope = sum((2 * at / (grid_size - 1) - 1) * axis for at, axis in zip((row, column), axes, strict=True))
            embeddings[first_position_id - cell] = 0.15 * (shared[0] + rows[row] + columns[column]) + 0.3 * slope
        for i, token in enumerate(image_ids):
            embeddings[token] = 0.15 * shared[0] + 0.3 * images[i]
    return bart


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Sinusoidal position embeddings [count, width]."""
    angle = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, width, 2)[None] / width)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


@dataclass
class DocumentBatch:
    """Batch of documents of one form, as tensors.

    Attributes:
        input_ids, text_mask: question, followed by the scene in words in the plain form [B, L].
        labels: target tokens [B, T], -100 where padded.
        weights: loss weight of each target token [B, T].
        answer: first token of the answer [B], -100 where the target is a full sentence.
        object_positions: position of each object's token in [text; cells] [B, O]; 0 where there is none.
        roles: 1 where the object has the role [B, O, NUM_ROLES].
        values: indices of the object's attribute values [B, O, 4].
        object_mask: 1 where there is an object or an empty cell (roles 0) [B, O].
        cell_words: token ids whose embeddings are summed into each cell's vector [B, C, 4]; None in the plain form.
        cell_positions, cell_images: token ids of the cell's position and of its image [B, C]; None in the plain form.
        cell_mask: 1 on cells, 0 on padding [B, C]; None in the plain form.
    """

    input_ids: torch.Tensor
    text_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    answer: torch.Tensor
    object_positions: torch.Tensor
    roles: torch.Tensor
    values: torch.Tensor
    object_mask: torch.Tensor
    cell_words: torch.Tensor | None = None
    cell_positions: torch.Tensor | None = None
    cell_images: torch.Tensor | None = None
    cell_mask: torch.Tensor | None = None


def embed_cells(bart: BartForConditionalGeneration, batch: DocumentBatch, noise: torch.Tensor | None = None):
    """Vector of each cell [B, C, d]: normalized sum of its words plus the embeddings of its position and its image.

    The multitask model's visual embedding passes on a grid cell in the same form: a normalized projection, plus the
    word embedding of the cell's index, plus an image-order embedding; no position embedding and no embedding LayerNorm.

    Args:
        noise: added to the normalized sum [B, C, d].
    """
    embeddings = bart.model.shared.weight
    vectors = F.embedding(batch.cell_words, embeddings).sum(-2)
    vectors = F.layer_norm(vectors, vectors.shape[-1:])
    if noise is not None:
        vectors = vectors + noise
    return vectors + F.embedding(batch.cell_positions, embeddings) + F.embedding(batch.cell_images, embeddings)


def encode(bart: BartForConditionalGeneration, batch: DocumentBatch, noise: torch.Tensor | None = None):
    """Encode [text; cells].

    Returns:
        Hidden states [B, L + C, d], attention mask bool [B, L + C], and the last layer's input [B, L + C, d].
    """
    encoder = bart.model.encoder
    embedded = encoder.embed_tokens(batch.input_ids)
    hidden = encoder.layernorm_embedding(embedded + encoder.embed_positions(batch.input_ids))
    mask = batch.text_mask
    if batch.cell_words is not None:
        hidden = torch.cat((hidden, embed_cells(bart, batch, noise)), 1)
        mask = torch.cat((mask, batch.cell_mask), 1)
    attention_mask = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    before_last = hidden
    for layer in encoder.layers:
        before_last, hidden = hidden, layer(hidden, attention_mask)
    return hidden, mask.bool(), before_last


def decode(bart: BartForConditionalGeneration, hidden_states: torch.Tensor, mask: torch.Tensor, inputs: torch.Tensor):
    """Logits of the next token after each of ``inputs`` [B, T]: [B, T, V]."""
    hidden = bart.model.decoder(
        input_ids=inputs, encoder_hidden_states=hidden_states, encoder_attention_mask=mask.long(), use_cache=False
    ).last_hidden_state
    return bart.lm_head(hidden) + bart.final_logits_bias


def shift_right(bart: BartForConditionalGeneration, labels: torch.Tensor) -> torch.Tensor:
    """Decoder inputs for teacher forcing: labels shifted right behind the start token [B, T]."""
    inputs = labels.masked_fill(labels < 0, bart.config.pad_token_id).roll(1, 1)
    inputs[:, 0] = bart.config.decoder_start_token_id
    return inputs


def is_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether every target token after <s> has the highest logit [B]."""
    return ((logits.argmax(-1) == labels) | (labels < 0))[:, 1:].all(1)


class PretrainingModel(nn.Module):
    """BART with auxiliary heads that exist only in pretraining; only ``bart`` is saved.

    Args:
        bart: the model.
        value_counts: number of values of each attribute.
    """

    def __init__(self, bart: BartForConditionalGeneration, value_counts: tuple[int, ...]):
        super().__init__()
        self.bart = bart
        self.value_counts = value_counts
        self.roles = nn.Linear(bart.config.d_model, NUM_ROLES)
        self.related = nn.Linear(bart.config.d_model, 1)
        self.values = nn.Linear(bart.config.d_model, sum(value_counts))

    def forward(self, batch: DocumentBatch, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Compute the pretraining losses.

        Returns:
            ``answer``: weighted cross-entropy of the target tokens (scalar).
            ``encoder_answer``: cross-entropy of the answer's first token, read from the encoder's first position
            through the word embedding (scalar).
            ``roles``: binary cross-entropy of each object's roles; the second role is also read one layer earlier
            (scalar).
            ``values``: cross-entropy of each object's attribute values, which in the plain form its noun has to gather
            (scalar).
            ``correct``: whether the full answer is right [B].
        """
        hidden, mask, before_last = encode(self.bart, batch, noise)
        labels = batch.labels
        logits = decode(self.bart, hidden, mask, shift_right(self.bart, labels))
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        encoder_logits = hidden[:, 0] @ self.bart.model.shared.weight.T
        encoder_answer = F.cross_entropy(encoder_logits, batch.answer, ignore_index=-100, reduction="sum")
        positions = batch.object_positions[..., None].expand(-1, -1, hidden.shape[-1])
        objects = hidden.gather(1, positions)
        return {
            "answer": (losses * batch.weights.flatten()).sum() / len(labels),
            "encoder_answer": encoder_answer / len(labels),
            "roles": self._role_loss(batch, objects, before_last.gather(1, positions)),
            "values": self._value_loss(batch, objects),
            "correct": is_correct(logits, labels),
        }

    def _role_loss(self, batch: DocumentBatch, objects: torch.Tensor, before_last: torch.Tensor) -> torch.Tensor:
        roles = F.binary_cross_entropy_with_logits(self.roles(objects), batch.roles, reduction="none").mean(-1)
        related = F.binary_cross_entropy_with_logits(
            self.related(before_last)[..., 0], batch.roles[..., 1], reduction="none"
        )
        return ((roles + 0.5 * related) * batch.object_mask).sum() / batch.object_mask.sum().clamp(min=1)

    def _value_loss(self, batch: DocumentBatch, objects: torch.Tensor) -> torch.Tensor:
        known = (batch.values[..., 0] >= 0).flatten().float()
        values = batch.values.clamp(min=0)
        logits = self.values(objects).split(self.value_counts, -1)
        losses = sum(
            F.cross_entropy(part.flatten(0, 1), values[..., i].flatten(), reduction="none")
            for i, part in enumerate(logits)
        )
        return (losses * known).sum() / known.sum().clamp(min=1)
